"""No pass for old log-probabilities that the update knows: with one update per batch they are the update's own.

verl computes the log-probabilities of the weights before the update in a pass of their own, and the update, whose
first and only forward has the same weights, computes them again. Here the engine takes its own, detached, so that the
ratio is exactly 1, and sends them to the trainer with its metrics. The trainer puts them into verl's queue and derives
from them what it would have derived from the pass: ``actor/entropy``, ``training/rollout_probs_diff_*`` (the parity
gate) and ``rollout_corr/*``. It comes with `verl_stvg.training.sharing.KEY`; ``algorithm.own_old_log_probs=false``
keeps the pass.
"""

import logging

import torch
from tensordict import TensorDict

from verl_stvg.training import sharing

logger = logging.getLogger(__name__)

OWN = "own_old_log_probs"
"""Tells the engine to use its own; also the metric with which it returns them, and the key under ``algorithm``."""


def why_kept(config, rows: int) -> str | None:
    """Why the pass is needed, None where the update's own log-probabilities do.

    Args:
        config: of the run.
        rows: trajectories of the batch, with those that fill it up.
    """
    section, algorithm = config.actor_rollout_ref, config.algorithm
    correction = algorithm.get("rollout_correction") or {}
    mini_batch = section.actor.ppo_mini_batch_size * section.rollout.n
    reasons = {
        f"{sharing.KEY} is not in use": not sharing.asked(section, config.get("distillation")),
        f"algorithm.{OWN} is false": not algorithm.get(OWN, True),
        f"actor.ppo_epochs is {section.actor.ppo_epochs}": section.actor.ppo_epochs != 1,
        f"a batch of {rows} trajectories is {rows / mini_batch:g} mini-batches": rows != mini_batch,
        "algorithm.use_kl_in_reward reads them": algorithm.use_kl_in_reward,
        "algorithm.rollout_correction reads them": any(
            correction.get(name) for name in ("rollout_is", "rollout_rs", "bypass_mode")
        ),
        f"algorithm.adv_estimator={algorithm.adv_estimator} reads them": "token_baseline" in algorithm.adv_estimator,
        "trainer.critic_warmup leaves out updates": config.trainer.critic_warmup > 0,
        "trainer.v1.trainer_mode is not sync": config.trainer.v1.trainer_mode != "sync",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def mend_trainer(trainer_base) -> None:
    """Let verl's V1 trainer leave the pass out where `why_kept` has no reason; its metrics come after the update."""
    trainer = trainer_base.PPOTrainer
    compute, update = trainer._compute_old_log_prob, trainer._update_actor
    correct, reduce = trainer_base.compute_rollout_correction_and_add_to_batch, trainer_base.reduce_metrics
    returned = []

    def _compute_old_log_prob(self, batch, metrics):
        reason = why_kept(self.config, len(batch))
        if reason is None:
            return batch
        logger.info("old log-probabilities are computed in a pass of their own: %s", reason)
        return compute(self, batch, metrics)

    def correct_with_known(data, settings):
        return correct(data, settings) if "old_log_probs" in data.batch else (data, {})

    def reduce_metrics(metrics):
        returned[:] = metrics.pop(f"actor/{OWN}", returned)
        return reduce(metrics)

    def _update_actor(self, batch, metrics):
        if why_kept(self.config, len(batch)) is not None:
            return update(self, batch, metrics)
        batch.extra_info[OWN] = True
        batch = update(self, batch, metrics)
        metrics.update(_metrics_of_the_pass(trainer_base, self.config, batch, returned, correct))
        returned.clear()
        return batch

    trainer._compute_old_log_prob, trainer._update_actor = _compute_old_log_prob, _update_actor
    trainer_base.compute_rollout_correction_and_add_to_batch = correct_with_known
    trainer_base.reduce_metrics = reduce_metrics


def _metrics_of_the_pass(trainer_base, config, batch, returned, correct) -> dict:
    """Put what the engines returned into verl's queue, and make of it what verl makes of its pass.

    Args:
        trainer_base: verl's module.
        config: of the run.
        batch: of verl's queue, in the order of the ranks.
        returned: for each rank, log-probabilities and entropies of its rows.
        correct: verl's function that computes ``rollout_corr/*``.
    """
    queue, actor = trainer_base.tq, config.actor_rollout_ref.actor
    columns = {
        name: torch.nested.as_nested_tensor([row for rank in returned for row in rank[name]], layout=torch.jagged)
        for name in ("old_log_probs", "entropy")
    }
    fields = TensorDict(columns, batch_size=len(batch))
    queue.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
    names = ["response_mask", "responses", "rollout_log_probs"]
    found = queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    data = trainer_base.DataProto(batch=found.update(fields).to_padded_tensor())
    entropy = trainer_base.agg_loss(
        loss_mat=data.batch["entropy"],
        loss_mask=data.batch["response_mask"],
        loss_agg_mode=actor.loss_agg_mode,
        loss_scale_factor=actor.loss_scale_factor,
    )
    metrics = {"actor/entropy": entropy.item()}
    if config.actor_rollout_ref.rollout.calculate_log_probs:
        metrics |= trainer_base.calculate_debug_metrics(data)
    settings = config.algorithm.get("rollout_correction")
    if settings is not None and "rollout_log_probs" in data.batch:
        metrics |= correct(data, settings)[1]
    return metrics
