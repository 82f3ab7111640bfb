"""`actor.freeze_vision_tower` freezes; that it does so in the engine, tests/engine/test_training.py shows."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from verl_stvg.patches import frozen_tower


def engines(visual=True):
    """A module with the two classes that are mended, around a model of two layers."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()
            if visual:
                self.model.visual = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("blocks", "merger")})
            self.model.language_model = torch.nn.Linear(2, 2)

    class Engine:
        def __init__(self, forward_only):
            self.engine_config = SimpleNamespace(forward_only=forward_only)

        def _build_module(self):
            return Model()

    class Worker:
        def __init__(self, config):
            self.config = config

    module = SimpleNamespace(FSDPEngine=Engine, ActorRolloutRefWorker=Worker)
    frozen_tower.mend_engine(module)
    frozen_tower.mend_worker(module)
    return module


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("forward_only", [True, False])
def test_the_actors_tower_is_frozen_when_asked(asked, forward_only):
    module = engines()
    module.ActorRolloutRefWorker(OmegaConf.create({"actor": {"freeze_vision_tower": asked}}))
    model = module.FSDPEngine(forward_only)._build_module().model
    assert all(p.requires_grad is not (asked and not forward_only) for p in model.visual.parameters())
    assert all(p.requires_grad for p in model.language_model.parameters())


def test_the_merger_can_be_left_out():
    module = engines()
    module.ActorRolloutRefWorker(OmegaConf.create({"actor": {"freeze_vision_tower": "keep_merger"}}))
    visual = module.FSDPEngine(False)._build_module().model.visual
    trained = {name: all(p.requires_grad for p in part.parameters()) for name, part in visual.items()}
    assert trained == {"blocks": False, "merger": True}
    with pytest.raises(ValueError, match="choose true, false or keep_merger"):
        module.ActorRolloutRefWorker(OmegaConf.create({"actor": {"freeze_vision_tower": "merger"}}))


def test_a_model_without_vision_is_refused():
    module = engines(visual=False)
    module.ActorRolloutRefWorker(OmegaConf.create({"actor": {"freeze_vision_tower": True}}))
    with pytest.raises(ValueError, match="has no vision tower; set it to false"):
        module.FSDPEngine(False)._build_module()
    module.ActorRolloutRefWorker(OmegaConf.create({"actor": {}}))
    module.FSDPEngine(False)._build_module()


def test_verl_still_reads_the_key_nowhere():
    """Remove `verl_stvg.patches.frozen_tower` when this fails."""
    from pathlib import Path

    import verl

    found = [
        path.name
        for path in Path(verl.__file__).parent.rglob("*.py")
        if "freeze_vision_tower" in path.read_text(encoding="utf-8")
    ]
    assert found == ["actor.py"]
