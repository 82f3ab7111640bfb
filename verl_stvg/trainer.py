"""What verl's V1 trainer lacks here: reward parts and video costs in the training metrics, a shorter wait for rollouts.

verl logs the parts a reward function returns only in validation. The manager is where verl lets a plugin into the
trainer's process (``rollout.agent.agent_loop_manager_class``), so it brings the metrics along, and the workers whose
trajectories carry keys instead of pixels.
"""

from collections import defaultdict
from pathlib import Path
from uuid import uuid4

import numpy as np
import ray
import transfer_queue as tq
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_stvg.dataset import frame_store, switch_cache_off
from verl_stvg.rollout import STATS
from verl_stvg.worker import VideoGroundingWorker

_NODE_SECONDS = 60


class PollingReplayBuffer(ReplayBuffer):
    """verl's replay buffer with the poll interval as a setting (``trainer.v1.sampler.sampler_kwargs.poll_interval``).

    verl looks every 2 s whether a batch is complete, which rounds the generation of a small model up to that. As a
    ``trainer.v1.sampler.custom_sampler`` it takes no part in verl's own group filtering.
    """

    def __init__(self, *, sampler_kwargs, **kwargs):
        poll_interval = float(sampler_kwargs.get("poll_interval", 2.0))
        super().__init__(sampler_kwargs=sampler_kwargs, poll_interval=poll_interval, **kwargs)


class VideoGroundingLoopManager(AgentLoopManagerTQ):
    """verl's manager with `VideoGroundingWorker`, in a trainer that logs ``reward/<part>/mean`` and `video_metrics`.

    Where a node of the cluster cannot read the frame cache, or the rollout is not vLLM's, the cache is switched off
    for the run, with a warning: pixels then travel as in verl.
    """

    def __init__(self, config, *args, **kwargs):
        log_metrics()
        reason = why_pixels_must_travel(config)
        if reason:
            switch_cache_off(config, reason)
        super().__init__(config, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(VideoGroundingWorker)


def why_pixels_must_travel(config) -> str | None:
    """What keeps this run from sending keys instead of pixels; None if nothing does."""
    store = frame_store(config.data)
    if store is None:
        return "data.video_cache.enabled is false"
    if config.actor_rollout_ref.rollout.name != "vllm":
        return f"rollout.name={config.actor_rollout_ref.rollout.name} is not vllm"
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return None
    Path(store.folder).mkdir(parents=True, exist_ok=True)
    mark = Path(store.folder, f".reachable-{uuid4().hex}")
    mark.touch()
    looks = ray.remote(num_cpus=0)(lambda: mark.is_file())
    asked = {
        looks.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in nodes
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=_NODE_SECONDS)
    blind = [
        node["NodeManagerAddress"]
        for answer, node in asked.items()
        if not (ray.wait([answer], timeout=0)[0] and ray.get(answer))
    ]
    mark.unlink()
    if blind:
        return f"{store.folder} is not shared with {', '.join(blind)}; set data.video_cache.folder to a shared folder"
    return None


def log_metrics() -> None:
    """Let the trainer of this process log the parts of every training reward and the videos' costs; idempotent."""
    stock = trainer_base.PPOTrainer._compute_metrics
    if hasattr(stock, "__wrapped__"):
        return

    def _compute_metrics(self, batch, metrics, *args, **kwargs):
        result = stock(self, batch, metrics, *args, **kwargs)
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        if keys:
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
            extras = data.pop("extra_fields").tolist()
            metrics.update(reward_metrics(keys, [fields["reward_extra_info"] for fields in extras]))
            metrics.update(video_metrics([fields.get(STATS) or {} for fields in extras]))
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


def video_metrics(stats: list[dict]) -> dict[str, float]:
    """Sums of what the videos of a step cost the agent loops: ``video/decodes``, ``video/queue_bytes`` and so on.

    Args:
        stats: of each trajectory, as `verl_stvg.rollout` records them; missing entries count as nothing.
    """
    totals = defaultdict(float)
    for one in stats:
        for name, value in one.items():
            totals[f"video/{name}"] += float(value)
    return dict(totals)
