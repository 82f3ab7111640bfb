"""What verl's V1 trainer lacks here: the parts of a reward in the training metrics, and a shorter wait for rollouts.

verl logs the parts a reward function returns only in validation. The manager is where verl lets a plugin into the
trainer's process (``rollout.agent.agent_loop_manager_class``), so it brings the metrics along.
"""

from collections import defaultdict

import numpy as np
import transfer_queue as tq
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class PollingReplayBuffer(ReplayBuffer):
    """verl's replay buffer with the poll interval as a setting (``trainer.v1.sampler.sampler_kwargs.poll_interval``).

    verl looks every 2 s whether a batch is complete, which rounds the generation of a small model up to that. As a
    ``trainer.v1.sampler.custom_sampler`` it takes no part in verl's own group filtering.
    """

    def __init__(self, *, sampler_kwargs, **kwargs):
        poll_interval = float(sampler_kwargs.get("poll_interval", 2.0))
        super().__init__(sampler_kwargs=sampler_kwargs, poll_interval=poll_interval, **kwargs)


class VideoGroundingLoopManager(AgentLoopManagerTQ):
    """verl's manager, in a trainer that logs ``reward/<part>/mean`` and what `reward_metrics` adds."""

    def __init__(self, *args, **kwargs):
        log_reward_parts()
        super().__init__(*args, **kwargs)


def log_reward_parts() -> None:
    """Let the trainer of this process log the parts of every training reward; idempotent."""
    stock = trainer_base.PPOTrainer._compute_metrics
    if hasattr(stock, "__wrapped__"):
        return

    def _compute_metrics(self, batch, metrics, *args, **kwargs):
        result = stock(self, batch, metrics, *args, **kwargs)
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        if keys:
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
            infos = [fields["reward_extra_info"] for fields in data.pop("extra_fields").tolist()]
            metrics.update(reward_metrics(keys, infos))
        rollout = self.config.actor_rollout_ref.rollout
        # verl pads a batch whose prompts failed and goes on; here it is at least a number
        metrics["rollout/missing"] = max(0, self.config.data.train_batch_size * rollout.n - len(keys))
        return result

    _compute_metrics.__wrapped__ = stock
    trainer_base.PPOTrainer._compute_metrics = _compute_metrics


def reward_metrics(keys: list[str], infos: list[dict]) -> dict[str, float]:
    """Means and spreads of every reward part, and the share of groups that teach nothing.

    Args:
        keys: of the trajectories, ``<prompt uid>_<session>_<index>``.
        infos: the reward function's result for each trajectory.
    """
    parts, groups = defaultdict(list), defaultdict(list)
    for key, info in zip(keys, infos, strict=True):
        for name, value in info.items():
            parts[name].append(float(value))
        groups[key.split("_")[0]].append(float(info["score"]))
    metrics = {}
    for name, values in parts.items():
        metrics[f"reward/{name}/mean"] = float(np.mean(values))
        metrics[f"reward/{name}/std"] = float(np.std(values))
    metrics["reward/zero_variance_groups"] = float(np.mean([np.ptp(scores) == 0.0 for scores in groups.values()]))
    return metrics
