"""Batches whose sequences all have one length: the layout verl needs, and whether upstream still gets it wrong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from verl_stvg.patches.packed_positions import fix_position_ids


def batch(lengths):
    rows = [torch.arange(4 * n).view(4, n) + 1000 * i for i, n in enumerate(lengths)]
    return rows, TensorDict(
        {"position_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=[len(lengths)]
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
def test_every_batch_unpacks_to_its_rows(lengths, equal):
    if equal:
        lengths = [lengths[0]] * len(lengths)
    rows, data = batch(lengths)
    fix_position_ids(data)
    nested = data["position_ids"]
    assert nested._ragged_idx == 2
    assert nested.values().shape == (4, sum(lengths))
    padded = torch.nested.to_padded_tensor(nested, padding=-1, output_size=(len(rows), 4, max(lengths)))
    for row, got in zip(rows, padded, strict=True):
        assert torch.equal(got[:, : row.shape[1]], row)
        assert (got[:, row.shape[1] :] == -1).all()


def test_other_batches_are_left_alone():
    flat = TensorDict({"position_ids": torch.arange(6).view(2, 3)}, batch_size=[2])
    fix_position_ids(flat)
    assert flat["position_ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    fix_position_ids(TensorDict({"x": torch.zeros(2)}, batch_size=[2]))


def test_upstream_still_needs_the_mend(run_python):
    """When this fails, verl packs equal lengths right: raise the pin, delete `patches/packed_positions.py`."""
    code = """
import torch
from tensordict import TensorDict
from verl.utils.tensordict_utils import maybe_fix_3d_position_ids
rows = [torch.arange(20).view(4, 5)] * 3
data = TensorDict({"position_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=[3])
maybe_fix_3d_position_ids(data)
try:
    torch.nested.to_padded_tensor(data["position_ids"], padding=0, output_size=(3, 4, 5))
    print("mended")
except RuntimeError:
    print("broken")
"""
    assert run_python(code, VERL_USE_EXTERNAL_PLUGINS="none").stdout.strip().splitlines()[-1] == "broken"


def test_the_plugin_reaches_the_workers(run_python):
    code = "import verl.workers.engine.base as base; print(base.maybe_fix_3d_position_ids.__module__)"
    assert run_python(code).stdout.strip().splitlines()[-1] == "verl_stvg.patches.packed_positions"


@pytest.mark.parametrize("count", [1, 4])
def test_batch_of_four_tokens_is_not_mistaken_for_the_axes(count):
    rows, data = batch([4] * count)
    fix_position_ids(data)
    assert data["position_ids"].values().shape == (4, 4 * count)
