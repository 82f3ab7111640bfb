"""Linear decay of the learning rate, which verl 0.9.1 lacks and most papers here trained with (the default of TRL).

A recipe names it where verl takes the class of its optimizer settings, and then by verl's own key::

    actor_rollout_ref:
      actor:
        optim:
          _target_: verl_stvg.patches.linear_schedule.optimizer_config
          lr_scheduler_type: linear

verl builds those settings in every worker; the schedule itself is built by its FSDP engine, which `mend_engine` teaches
the one word more. Imports nothing of verl before it is needed: the plugin loads this module in every process.
"""

import logging

logger = logging.getLogger(__name__)

LINEAR = "linear"


def optimizer_config(**fields):
    """verl's ``FSDPOptimizerConfig``, whose ``lr_scheduler_type`` may also be ``linear``.

    Raises:
        ValueError: no schedule of that name.
    """
    from verl.workers.config import FSDPOptimizerConfig

    wanted = fields.pop("lr_scheduler_type", "constant")
    if wanted not in (LINEAR, "constant", "cosine"):
        raise ValueError(
            f"actor_rollout_ref.actor.optim.lr_scheduler_type={wanted} is unknown; choose linear, constant or cosine"
        )
    config = FSDPOptimizerConfig(**fields)
    config.lr_scheduler_type = wanted  # set afterwards: verl's constructor knows two names only
    return config


def mend_engine(transformer_impl) -> None:
    """Let verl's FSDP engines build a linear schedule; all others stay verl's."""
    engine = transformer_impl.FSDPEngine
    stock = engine._build_lr_scheduler

    def _build_lr_scheduler(self, optimizer):
        if self.optimizer_config.lr_scheduler_type != LINEAR:
            return stock(self, optimizer)
        return linear_schedule(optimizer, self.optimizer_config)

    engine._build_lr_scheduler = _build_lr_scheduler


def linear_schedule(optimizer, config):
    """A ``LambdaLR`` that rises from 0 over the warm-up and then falls by equal amounts, to its least at the last step.

    The first update runs at the full rate where there is no warm-up, the last of T at 1/T of it, as with transformers'
    ``get_linear_schedule_with_warmup``.

    Args:
        optimizer: of torch.
        config: verl's optimizer settings; read are ``total_training_steps``, ``lr_warmup_steps``,
            ``lr_warmup_steps_ratio``, ``min_lr_ratio`` and ``zero_indexed_step``, in verl's meaning.

    Raises:
        ValueError: the number of steps is not known, or the warm-up takes all of them.
    """
    from torch.optim.lr_scheduler import LambdaLR

    total = int(config.total_training_steps)
    warmup = int(config.lr_warmup_steps or 0)
    if warmup <= 0:
        warmup = int(config.lr_warmup_steps_ratio * total)
    if total <= warmup:
        raise ValueError(
            f"a linear schedule falls until the last step, and there are {total} with {warmup} of warm-up; set "
            "trainer.total_training_steps, or lower optim.lr_warmup_steps"
        )
    least, shift = float(config.min_lr_ratio or 0.0), 0 if config.zero_indexed_step else 1

    def factor(step: int) -> float:
        step += shift
        if step < warmup:
            return step / warmup
        return least + (1.0 - least) * max(0.0, (total - step) / (total - warmup))

    logger.info("learning rate: linear, %d steps, %d of them warm-up", total, warmup)
    return LambdaLR(optimizer, factor)
