"""What a training step logs beyond verl's own metrics: reward parts, bins and masks, costs of videos.

verl logs the parts a reward function returns only in validation.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import wraps

import numpy as np
import transfer_queue as tq
from verl.trainer.ppo.v1 import trainer_base

from verl_stvg.training import held_out, parity
from verl_stvg.training.agent_loop import MASK, STATS


def log_metrics() -> None:
    """Let the trainer of this process log the parts of every training reward, the videos' costs, and in validation
    means over all prompts that were asked (`verl_stvg.training.held_out`); idempotent.
    """
    stock = trainer_base.PPOTrainer._compute_metrics
    if hasattr(stock, "__wrapped__"):
        return
    validated = trainer_base.PPOTrainer._val_metrics_update

    @wraps(stock)
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
            tokens = parity.worst_tokens(uids, *(answers[name] for name in fields[1:]), tokenizer=self.tokenizer)
            parity.keep(self.config, metrics["training/global_step"], tokens)
        rollout = self.config.actor_rollout_ref.rollout
        # verl pads a batch whose prompts failed and goes on; here it is at least a number
        metrics["rollout/missing"] = max(0, self.config.data.train_batch_size * rollout.n - len(keys))
        return result

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ):
        infos = reward_extra_infos_dict
        result = validated(self, data_sources, sample_uids, infos, sample_turns, expected_acc_counts)
        answered = Counter(zip(map(str, data_sources), map(str, sample_uids), strict=True))  # all that is known then
        return {**result, **held_out.metrics(data_sources, sample_uids, infos, expected_acc_counts or answered)}

    trainer_base.PPOTrainer._compute_metrics = _compute_metrics
    trainer_base.PPOTrainer._val_metrics_update = _val_metrics_update


def step_metrics(keys: list[str], infos: list[dict], masks: list[dict], stats: list[dict]) -> dict[str, float]:
    """All that a training step logs beyond verl's own: `reward_metrics`, `curriculum_metrics` and `video_metrics`.

    Args:
        keys: of the trajectories, ``<prompt uid>_<session>_<index>``.
        infos: the reward function's result for each trajectory.
        masks: bin and mask of each, as `verl_stvg.training.agent_loop` records them; empty without a curriculum.
        stats: what the videos of each cost, as recorded there; empty where nothing is known.
    """
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
