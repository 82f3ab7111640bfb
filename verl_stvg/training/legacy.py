"""The same agent loop under verl's older trainer, ``trainer.use_v1=false``: whole batches, in a fixed order.

Where its samples are drawn from seeds (``rollout.full_determinism``), a run of this trainer is the same to the bit
every time, resumed or not (docs/resume.md). It has no queue, so its manager and its workers are other classes of
verl's.
"""

from collections import defaultdict
from functools import wraps
from typing import Any

import numpy as np
import ray
from verl.experimental.agent_loop import agent_loop
from verl.protocol import DataProto
from verl.trainer.ppo import ray_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug.metrics import calculate_debug_metrics

from verl_stvg.patches import equal_rewards
from verl_stvg.rows.settings import switch_cache_off, why_pixels_must_travel
from verl_stvg.training import held_out, parity
from verl_stvg.training.agent_loop import MASK, STATS
from verl_stvg.training.metrics import step_metrics
from verl_stvg.training.worker import KeysAndMasks

_step = 0
"""Of the batch that was answered last for training; what the trainer computes of it does not say its step."""


class KeyedOutput(agent_loop._InternalAgentLoopOutput):
    """verl's own record of a trajectory, which insists on tensors; keys that stand for pixels are none."""

    multi_modal_inputs: dict[str, Any] | None = None


class LegacyWorker(KeysAndMasks):
    """The older agent-loop worker, whose trajectories carry keys instead of pixels, and which masks training videos."""

    def __init__(self, *args, **kwargs):
        agent_loop._InternalAgentLoopOutput = KeyedOutput
        super().__init__(*args, **kwargs)


class LegacyLoopManager(agent_loop.AgentLoopManager):
    """The older manager with `LegacyWorker`; each prompt says its step and which of its group it is, as in V1."""

    def __init__(self, config, *args, **kwargs):
        log_metrics(config)
        equal_rewards.mend(config)
        reason = why_pixels_must_travel(config)
        if reason:
            switch_cache_off(config, reason)
        super().__init__(config, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(LegacyWorker)

    def generate_sequences(self, prompts: DataProto):
        """Answers of a batch, a `DataProto` in its order."""
        global _step
        if not prompts.meta_info.get("validate"):
            _step = int(prompts.meta_info["global_steps"])
        columns = prompts.non_tensor_batch
        columns["session_id"] = places_in_group(columns["uid"])
        columns["global_steps"] = np.full(len(prompts), prompts.meta_info["global_steps"])
        return super().generate_sequences(prompts)


def places_in_group(uids) -> np.ndarray:
    """Of each item, how many before it have the same uid."""
    seen = defaultdict(int)
    places = []
    for uid in uids:
        places.append(seen[uid])
        seen[uid] += 1
    return np.array(places)


def parity_metrics(config, batch: DataProto) -> dict[str, float]:
    """`verl_stvg.training.parity.step_metrics` of a step; one that leaves the gate also writes its worst tokens."""
    if not {"rollout_log_probs", "old_log_probs"} <= set(batch.batch.keys()):
        return {}
    found = parity.step_metrics(config, calculate_debug_metrics(batch))
    if found.get("parity/outside_gate"):
        uids = [(info or {}).get("uid") for info in batch.non_tensor_batch["extra_info"]]
        answers = [batch.batch[name] for name in ("responses", "response_mask", "old_log_probs", "rollout_log_probs")]
        tokenizer = omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer
        parity.keep(config, _step, parity.worst_tokens(uids, *answers, tokenizer=tokenizer))
    return found


def log_metrics(config) -> None:
    """Let the older trainer of this process log what `training.metrics.log_metrics` logs in V1; idempotent."""
    stock = ray_trainer.compute_data_metrics
    if hasattr(stock, "__wrapped__"):
        return
    validated = ray_trainer.RayPPOTrainer._val_metrics_update

    def _val_metrics_update(self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns):
        result = validated(self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns)
        n = self.config.actor_rollout_ref.rollout.val_kwargs.n  # here a rollout that fails ends the run
        expected = {key: n for key in zip(map(str, data_sources), map(str, sample_uids), strict=True)}
        return {**result, **held_out.metrics(data_sources, sample_uids, reward_extra_infos_dict, expected)}

    @wraps(stock)
    def compute_data_metrics(batch, *args, **kwargs):
        columns = batch.non_tensor_batch
        keys = [f"{uid}_{place}" for uid, place in zip(columns["uid"], places_in_group(columns["uid"]), strict=True)]
        parts = batch.meta_info["reward_extra_keys"]
        infos = [{name: columns[name][place] for name in parts} for place in range(len(keys))]
        masks, stats = ([one or {} for one in columns[name]] for name in (MASK, STATS))
        return {
            **stock(batch, *args, **kwargs),
            **step_metrics(keys, infos, masks, stats),
            **parity_metrics(config, batch),
        }

    ray_trainer.compute_data_metrics = compute_data_metrics
    ray_trainer.RayPPOTrainer._val_metrics_update = _val_metrics_update
