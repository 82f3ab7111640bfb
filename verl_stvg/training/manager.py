"""What verl's V1 trainer lacks here: reward parts, held-out means over all prompts and video costs in its metrics,
rollouts by bin, a shorter wait.

verl logs the parts a reward function returns only in validation. The manager is where verl lets a plugin into the
trainer's process (``rollout.agent.agent_loop_manager_class``), so it brings the metrics along, and the workers whose
trajectories carry keys instead of pixels.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import ray
import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_stvg.patches import equal_rewards
from verl_stvg.training import held_out, parity
from verl_stvg.training.agent_loop import MASK, STATS
from verl_stvg.training.dataset import frame_store, switch_cache_off
from verl_stvg.training.sampler import FEWEST, bins_of, rollout_counts, rollouts_of
from verl_stvg.training.worker import VideoGroundingWorker

ROLLOUTS = "__rollout_n__"
"""Column of a batch from which verl's agent loop takes a prompt's number of rollouts."""


class PollingReplayBuffer(ReplayBuffer):
    """verl's synchronous replay buffer with more settings, under ``trainer.v1.sampler.sampler_kwargs``.

    poll_interval: seconds between two looks whether a batch is complete. verl's are 2.0, which rounds the generation
        of a small model up to that.
    filter_groups, train_batch_size: give them as ``${algorithm.filter_groups}`` and ``${data.train_batch_size}``, and
        verl's filtering of groups whose rewards are all the same works here too; verl keeps it from custom samplers.
    prefer: ``spread`` trains on the groups whose scores spread most, where filtering has left more than a batch.

    Nothing is remembered from step to step: what a resumed run needs is in verl's own checkpoint.
    """

    def __init__(self, *, sampler_kwargs, **kwargs):
        known = {"poll_interval", "filter_groups", "train_batch_size", "prefer"}
        if unknown := sorted(set(sampler_kwargs) - known):
            raise ValueError(
                f"trainer.v1.sampler.sampler_kwargs knows no {', '.join(unknown)}; its keys are "
                f"{', '.join(sorted(known))}"
            )
        self.prefer = sampler_kwargs.get("prefer")
        if self.prefer not in (None, "spread"):
            raise ValueError(f"sampler_kwargs.prefer={self.prefer} is unknown; use spread, or leave it out")
        groups, batch_size = sampler_kwargs.get("filter_groups"), sampler_kwargs.get("train_batch_size")
        if groups and groups.enable:
            if not groups.metric or not batch_size:
                raise ValueError(
                    "group filtering needs algorithm.filter_groups.metric and "
                    "sampler_kwargs.train_batch_size=${data.train_batch_size}"
                )
            kwargs |= {
                "filter_groups_metric": groups.metric,
                "max_inflight_gen_batches": groups.max_inflight_gen_batches,
                "train_batch_size": batch_size,
                "gen_batch_size": 1,  # verl's data loader has it where algorithm.filter_groups is on
            }
        elif self.prefer:
            raise ValueError(
                "sampler_kwargs.prefer chooses among what filtering leaves; enable algorithm.filter_groups"
            )
        super().__init__(
            sampler_kwargs=sampler_kwargs, poll_interval=float(sampler_kwargs.get("poll_interval", 2.0)), **kwargs
        )

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
    """Uids of the groups whose scores have the largest standard deviations; of equal ones the first."""
    groups = defaultdict(list)
    for key, score in zip(keys, scores, strict=True):
        groups[key.split("_")[0]].append(score)
    return set(sorted(groups, key=lambda uid: -np.std(groups[uid]))[:count])


class VideoGroundingLoopManager(AgentLoopManagerTQ):
    """verl's manager with `VideoGroundingWorker`, in a trainer that logs ``reward/<part>/mean`` and `video_metrics`.

    Where the rollout is not vLLM's, the cache is switched off, with a warning, and pixels travel as in verl.

    ``data.rollouts`` gives the prompts of each bin a number of rollouts of their own (`rollout_counts`).
    """

    def __init__(self, config, *args, **kwargs):
        log_metrics()
        equal_rewards.mend(config)
        check_filtering(config)
        self.rollouts = checked_rollouts(config)
        reason = why_pixels_must_travel(config)
        if reason:
            switch_cache_off(config, reason)
        super().__init__(config, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(VideoGroundingWorker)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch a batch, of training prompts those with a number of rollouts of their own where it is asked for."""
        if self.rollouts and "validate" not in prompts:
            share_rollouts(prompts, self.rollouts, self.config.actor_rollout_ref.rollout.n)
        super().generate_sequences(prompts)

    @classmethod
    def create(cls, *args, config, **kwargs):
        """The manager of a run; with ``trainer.use_v1=false`` a `verl_stvg.training.legacy.LegacyLoopManager`."""
        if config.trainer.use_v1:
            return super().create(*args, config=config, **kwargs)
        from verl_stvg.training.legacy import LegacyLoopManager  # loads the older trainer

        return LegacyLoopManager.create(*args, config=config, **kwargs)


def share_rollouts(prompts: TensorDict, asked: dict[str, int], n: int) -> None:
    """Give the prompts of a training batch numbers of rollouts by bin, ``n`` on average, where verl looks for them."""
    counts = rollout_counts(bins_of(list(prompts["extra_info"]), "data.rollouts"), asked, n)
    prompts[ROLLOUTS] = NonTensorStack(*counts)


def checked_rollouts(config) -> dict[str, int] | None:
    """Rollouts by bin that ``data.rollouts`` asks for, None where it does not.

    Raises:
        ValueError: the trainer would dispatch prompts one by one, so that their rollouts cannot change hands.
    """
    asked = rollouts_of(config.data)
    if asked is None:
        return None
    mode = config.trainer.v1.trainer_mode
    if mode != "sync" or (config.algorithm.get("filter_groups") or {}).get("enable"):
        raise ValueError(
            f"data.rollouts shares out the rollouts of a whole batch, and with trainer.v1.trainer_mode={mode} or "
            "algorithm.filter_groups.enable=true verl sends prompts out one by one; use trainer_mode=sync without "
            "filtering, or leave data.rollouts out"
        )
    if config.actor_rollout_ref.rollout.n < FEWEST:
        raise ValueError(f"data.rollouts needs actor_rollout_ref.rollout.n of at least {FEWEST}")
    return asked


def why_pixels_must_travel(config) -> str | None:
    """What keeps this run from sending keys instead of pixels; None if nothing does."""
    if frame_store(config.data) is None:
        return "data.video_cache.enabled is false"
    if config.actor_rollout_ref.rollout.name != "vllm":
        return f"rollout.name={config.actor_rollout_ref.rollout.name} is not vllm"
    return None


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


def log_metrics() -> None:
    """Let the trainer of this process log the parts of every training reward, the videos' costs, and in validation
    means over all prompts that were asked (`verl_stvg.training.held_out`); idempotent.
    """
    stock = trainer_base.PPOTrainer._compute_metrics
    if hasattr(stock, "__wrapped__"):
        return
    validated = trainer_base.PPOTrainer._val_metrics_update

    def _compute_metrics(self, batch, metrics, *args, **kwargs):
        result = stock(self, batch, metrics, *args, **kwargs)
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        if keys:
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
            extras = data.pop("extra_fields").tolist()
            infos = [fields["reward_extra_info"] for fields in extras]
            masks, stats = ([fields.get(name) or {} for fields in extras] for name in (MASK, STATS))
            metrics.update(step_metrics(keys, infos, masks, stats))
        found = parity.step_metrics(self.config, metrics)
        metrics.update(found)
        if found.get("parity/outside_gate"):
            fields = ["extra_info", "responses", "response_mask", "old_log_probs", "rollout_log_probs"]
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
            uids = [(info or {}).get("uid") for info in data.pop("extra_info").tolist()]
            answers = data.to_padded_tensor()
            tokens = parity.worst_tokens(uids, *(answers[name] for name in fields[1:]), self.tokenizer)
            parity.keep(self.config, metrics["training/global_step"], tokens)
        rollout = self.config.actor_rollout_ref.rollout
        # verl pads a batch whose prompts failed and goes on; here it is at least a number
        metrics["rollout/missing"] = max(0, self.config.data.train_batch_size * rollout.n - len(keys))
        return result

    def _val_metrics_update(self, data_sources, sample_uids, infos, sample_turns, expected_acc_counts=None):
        result = validated(self, data_sources, sample_uids, infos, sample_turns, expected_acc_counts)
        return {**result, **held_out.metrics(data_sources, sample_uids, infos, expected_acc_counts)}

    _compute_metrics.__wrapped__ = stock
    trainer_base.PPOTrainer._compute_metrics = _compute_metrics
    trainer_base.PPOTrainer._val_metrics_update = _val_metrics_update


def step_metrics(keys: list[str], infos: list[dict], masks: list[dict], stats: list[dict]) -> dict[str, float]:
    """All that a training step logs beyond verl's own: `reward_metrics`, `curriculum_metrics` and `video_metrics`."""
    return {**reward_metrics(keys, infos), **curriculum_metrics(keys, infos, masks), **video_metrics(stats)}


def reward_metrics(keys: list[str], infos: list[dict]) -> dict[str, float]:
    """Means and spreads of every reward part, and the shares of prompts that teach nothing, or what they should not.

    ``reward/zero_variance_groups``: prompts whose rollouts, two or more, all score the same: no advantage.
    ``reward/groups_of_one``: prompts with one rollout, whose score verl takes as its advantage.

    Args:
        keys: of the trajectories, ``<prompt uid>_<session>_<index>``.
        infos: the reward function's result for each trajectory.
    """
    metrics = {}
    for name, values in _parts(infos).items():
        metrics[f"reward/{name}/mean"] = float(np.mean(values))
        metrics[f"reward/{name}/std"] = float(np.std(values))
    metrics["reward/zero_variance_groups"], metrics["reward/groups_of_one"] = _idle_groups(keys, infos)
    return metrics


def curriculum_metrics(keys: list[str], infos: list[dict], masks: list[dict]) -> dict[str, float]:
    """Rewards by the bin of their rows, and what the masks take; empty where rows have no bin.

    ``curriculum/<bin>/<part>`` is a mean, ``curriculum/<bin>/zero_variance_groups`` a share, and
    ``curriculum/<bin>/prompts`` and ``curriculum/<bin>/trajectories`` are counts. ``curriculum/<bin>/mask_ratio`` is
    what the schedule asks for, ``curriculum/<bin>/masked_share`` the part of all temporal units that it comes to; both
    without the bin's name are means over the whole step.

    Args:
        keys: of the trajectories.
        infos: the reward function's result for each.
        masks: bin and mask of each, as `verl_stvg.training.agent_loop` records them.
    """
    members = defaultdict(list)
    for key, info, mask in zip(keys, infos, masks, strict=True):
        if mask.get("bin"):
            members[mask["bin"]].append((key, info, mask))
    metrics = {}
    for bin_, found in members.items():
        bin_keys, bin_infos, bin_masks = zip(*found, strict=True)
        for name, values in {**_parts(bin_infos), **_taken(bin_masks)}.items():
            metrics[f"curriculum/{bin_}/{name}"] = float(np.mean(values))
        metrics[f"curriculum/{bin_}/zero_variance_groups"] = _idle_groups(bin_keys, bin_infos)[0]
        metrics[f"curriculum/{bin_}/prompts"] = len({key.split("_")[0] for key in bin_keys})
        metrics[f"curriculum/{bin_}/trajectories"] = len(found)
    metrics.update({f"curriculum/{name}": float(np.mean(values)) for name, values in _taken(masks).items()})
    return metrics


def _parts(infos: Sequence[dict]) -> dict[str, list[float]]:
    parts = defaultdict(list)
    for info in infos:
        for name, value in info.items():
            parts[name].append(float(value))
    return parts


def _taken(masks: Sequence[dict]) -> dict[str, list[float]]:
    return _parts([{name: value for name, value in mask.items() if name != "bin"} for mask in masks])


def _idle_groups(keys: Sequence[str], infos: Sequence[dict]) -> tuple[float, float]:
    """Shares of the prompts whose rollouts, two or more, all score the same, and of those with a single rollout."""
    groups = defaultdict(list)
    for key, info in zip(keys, infos, strict=True):
        groups[key.split("_")[0]].append(
            np.float32(info["score"])
        )  # as verl has it (`verl_stvg.patches.equal_rewards`)
    same = sum(len(scores) > 1 and np.ptp(scores) == 0.0 for scores in groups.values())
    return same / len(groups), sum(len(scores) == 1 for scores in groups.values()) / len(groups)


def video_metrics(stats: list[dict]) -> dict[str, float]:
    """Sums of what the videos of a step cost the agent loops: ``video/decodes``, ``video/queue_bytes`` and so on.

    Args:
        stats: of each trajectory, as `verl_stvg.training.agent_loop` records them; missing entries count as nothing.
    """
    totals = defaultdict(float)
    for one in stats:
        for name, value in one.items():
            totals[f"video/{name}"] += float(value)
    return dict(totals)
