"""verl's replay buffer with more settings: a shorter wait, filtering of groups, and one order of a batch."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_stvg.rows.settings import typed

ROLLOUTS = "__rollout_n__"
"""Column of a batch from which verl's agent loop takes a prompt's number of rollouts."""


@dataclass(frozen=True)
class BufferSettings:
    """Settings of `PollingReplayBuffer`: verl's ``trainer.v1.sampler.sampler_kwargs``.

    Attributes:
        filter_groups: give it as ``${algorithm.filter_groups}``, and `train_batch_size` as
            ``${data.train_batch_size}``, and verl's filtering of groups whose rewards are all the same works here too;
            verl keeps it from custom samplers.
        poll_interval: seconds between two looks whether a batch is complete. verl's are 2.0, which rounds the
            generation of a small model up to that.
        prefer: ``spread`` trains on the groups whose scores spread most, where filtering has left more than a batch.
        train_batch_size: see `filter_groups`.
    """

    filter_groups: Any = None
    poll_interval: float = 2.0
    prefer: str | None = None
    train_batch_size: int | None = None


class PollingReplayBuffer(ReplayBuffer):
    """verl's synchronous replay buffer with more settings, see `BufferSettings`.

    Nothing is remembered from step to step: what a resumed run needs is in verl's own checkpoint.
    """

    def __init__(self, *, sampler_kwargs, **kwargs):
        settings = typed(sampler_kwargs, "trainer.v1.sampler.sampler_kwargs", BufferSettings)
        self.prefer, groups = settings.prefer, settings.filter_groups
        if self.prefer not in (None, "spread"):
            raise ValueError(f"sampler_kwargs.prefer={self.prefer} is unknown; use spread, or leave it out")
        if groups and groups.enable:
            if not groups.metric or not settings.train_batch_size:
                raise ValueError(
                    "group filtering needs algorithm.filter_groups.metric and "
                    "sampler_kwargs.train_batch_size=${data.train_batch_size}"
                )
            kwargs |= {
                "filter_groups_metric": groups.metric,
                "max_inflight_gen_batches": groups.max_inflight_gen_batches,
                "train_batch_size": settings.train_batch_size,
                "gen_batch_size": 1,  # verl's data loader has it where algorithm.filter_groups is on
            }
        elif self.prefer:
            raise ValueError(
                "sampler_kwargs.prefer chooses among what filtering leaves; enable algorithm.filter_groups"
            )
        super().__init__(sampler_kwargs=sampler_kwargs, poll_interval=float(settings.poll_interval), **kwargs)

    def _dapo_filtered_keys(self, partition_id):
        """verl's, which asks for a deviation of 0; that of equal values is often another, so they are found first."""
        if self.filter_groups_metric not in (None, "reward") and partition_id != "val":
            known = self._dapo_classification_cache[partition_id]
            new = self.finished_keys[partition_id] - known.keys()
            keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in new]
            known.update(self._same_throughout(keys, partition_id))
        return super()._dapo_filtered_keys(partition_id)

    def _same_throughout(self, keys, partition_id):
        """Of the groups of two or more whose trajectories all have one value of the metric, that value by uid."""
        groups = defaultdict(list)
        if keys:
            data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["extra_fields"])
            for key, fields in zip(keys, data.pop("extra_fields").tolist(), strict=True):
                value = fields.get("reward_extra_info", {}).get(self.filter_groups_metric)
                groups[key.split("_")[0]].append(value)
        same = {uid: set(values) for uid, values in groups.items() if len(values) > 1}
        return {uid: float(value) for uid, (value, *others) in same.items() if not others and value is not None}

    def _select_prompt_uids(self, partition_id, sampleable_keys, batch_size):
        if self.prefer and partition_id == "train" and len(sampleable_keys) > batch_size:
            keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in sampleable_keys]
            scores = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["rm_scores"])["rm_scores"]
            chosen = widest_groups(keys, [float(score.sum()) for score in scores], batch_size)
            if len(chosen) == batch_size:  # fewer, where groups failed and hold no trajectory
                sampleable_keys = chosen
        return super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)

    def _materialize_batch(self, partition_id, selected_prompt_uids, partition_snapshot):
        """In the order in which prompts were asked, not that in which answers came: sums depend on their order."""
        selected = set(selected_prompt_uids)
        places = {uid: place for place, uid in enumerate(self.prompt_global_steps[partition_id]) if uid in selected}
        members = [key for key in partition_snapshot if key.split("_")[0] in selected]
        members.sort(key=lambda key: place_of(key, places))
        return super()._materialize_batch(
            partition_id, selected_prompt_uids, {key: partition_snapshot[key] for key in members}
        )


def place_of(key: str, places: dict[str, int]) -> tuple[float, ...]:
    """Where a trajectory, ``<prompt uid>_<session>_<index>``, stands in its batch; after all, if its prompt is gone."""
    uid, *rest = key.split("_")
    return places.get(uid, math.inf), *map(int, rest)


def widest_groups(keys: Sequence[str], scores: Sequence[float], count: int) -> set[str]:
    """Uids of the groups whose scores have the largest standard deviations; of equal ones the first.

    Args:
        keys: of the trajectories, ``<prompt uid>_<session>_<index>``.
        scores: of each trajectory.
        count: most groups that are returned.
    """
    groups = defaultdict(list)
    for key, score in zip(keys, scores, strict=True):
        groups[key.split("_")[0]].append(score)
    return set(sorted(groups, key=lambda uid: -np.std(groups[uid]))[:count])


def check_filtering(config) -> None:
    """Raise ValueError where `PollingReplayBuffer` does not know of the group filtering that is asked for."""
    sampler = config.trainer.v1.sampler
    if "verl_stvg" not in str((sampler.get("custom_sampler") or {}).get("path")):
        return
    asked = bool((config.algorithm.get("filter_groups") or {}).get("enable"))
    if asked != bool((sampler.sampler_kwargs.get("filter_groups") or {}).get("enable")):
        raise ValueError(
            "algorithm.filter_groups and trainer.v1.sampler.sampler_kwargs.filter_groups differ; set the latter to "
            "${algorithm.filter_groups}, and sampler_kwargs.train_batch_size to ${data.train_batch_size}"
        )
