"""A Qwen2.5-VL reads text without pixels in verl's engine; see tests/training/test_shared_prompt.py for a whole one."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from verl_stvg.patches import text_alone


@pytest.fixture
def qwen2_vl():
    """verl's module as it is without the plugin."""
    found = importlib.util.find_spec("verl.models.transformers.qwen2_vl")
    spec = importlib.util.spec_from_file_location("stock_qwen2_vl", found.origin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Model:
    """Two tokens, a tower that answers as transformers' do."""

    config = SimpleNamespace(vision_config=SimpleNamespace(in_channels=3, temporal_patch_size=2, patch_size=14))

    def __init__(self):
        self.embeddings, self.layer = torch.nn.Embedding(2, 8), torch.nn.Linear(1176, 8)

    def get_input_embeddings(self):
        return self.embeddings

    def visual(self, pixels, grid_thw):
        assert grid_thw.tolist() == [[1, 4, 4]] and len(pixels) == 16
        features = self.layer(pixels)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features[::4])


def test_text_alone_is_its_embeddings_and_the_tower_takes_part(qwen2_vl):
    text_alone.mend(qwen2_vl)
    model, ids = Model(), torch.tensor([[0, 1, 1]])
    embeddings, mask = qwen2_vl._get_input_embeds(model, ids, None)
    assert torch.equal(embeddings, model.embeddings(ids)) and mask is None
    embeddings.sum().backward()
    assert model.layer.weight.grad.eq(0).all()  # there, so that all ranks exchange the same gradients


def test_verl_still_needs_the_mend(qwen2_vl):
    """When this fails, verl reads text alone: raise the pin, delete `patches/text_alone.py`."""
    with pytest.raises(AttributeError, match="mean"):
        qwen2_vl._get_input_embeds(Model(), torch.tensor([[0, 1, 1]]), None)
