"""Makes ``actor.freeze_vision_tower`` do what it says: verl 0.9.1 declares the key and reads it nowhere.

``true`` freezes all that makes vectors of pixels; ``keep_merger`` goes on training the layers that hand them to the
language model, as Time-R1 does.

A vision tower that is trained along drifts under the noise of policy gradients, and the language model then misreads
what it read before; see docs/learning.md for what that costs.
"""

import logging

logger = logging.getLogger(__name__)

KEEP_MERGER = "keep_merger"

_wanted: bool | str = False


def mend_worker(engine_workers) -> None:
    """Note what the actor's configuration says, in the process that will build the actor."""
    worker = engine_workers.ActorRolloutRefWorker
    stock = worker.__init__

    def __init__(self, config, *args, **kwargs):
        global _wanted
        _wanted = config.actor.get("freeze_vision_tower", False)
        if _wanted not in (True, False, KEEP_MERGER):
            raise ValueError(f"actor.freeze_vision_tower={_wanted} is unknown; choose true, false or {KEEP_MERGER}")
        stock(self, config, *args, **kwargs)

    worker.__init__ = __init__


def mend_engine(transformer_impl) -> None:
    """Freeze the vision tower of a model that is built to be trained."""
    engine = transformer_impl.FSDPEngine
    stock = engine._build_module

    def _build_module(self):
        module = stock(self)
        if _wanted and not self.engine_config.forward_only:
            freeze(module, keep_merger=_wanted == KEEP_MERGER)
        return module

    engine._build_module = _build_module


def freeze(module, keep_merger: bool = False) -> None:
    """Take the vision tower of a Hugging Face video language model out of training.

    Args:
        module: the model.
        keep_merger: go on training its merger.

    Raises:
        ValueError: the model has none.
    """
    visual = getattr(getattr(module, "model", module), "visual", None)
    if visual is None:
        raise ValueError(
            f"actor.freeze_vision_tower is set and {type(module).__name__} has no vision tower; set it to false"
        )
    visual.requires_grad_(False)
    if keep_merger:
        visual.merger.requires_grad_(True)
        if hasattr(visual, "deepstack_merger_list"):  # Qwen3-VL has several
            visual.deepstack_merger_list.requires_grad_(True)
    frozen = sum(p.numel() for p in visual.parameters() if not p.requires_grad)
    logger.info("vision tower frozen: %d parameters", frozen)
