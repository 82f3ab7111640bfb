"""verl 0.9.1 cannot train a batch of video sequences that all have one length; this mends it, on every device.

`torch.nested.as_nested_tensor` packs (4, S) position ids along the sequence when the lengths differ, but along the
first axis when they are all equal. verl's ``maybe_fix_3d_position_ids`` then relabels the packed axis without
looking, and the first split fails with "split_with_sizes expects split_sizes to sum exactly". Tests:
``tests/patches/test_packed_positions.py`` says when upstream has mended it.
"""

import torch

_MAX_AXES = 4
"""Rows of one sequence's position ids: text, time, height, width (three without text)."""


def fix_position_ids(data) -> None:
    """Bring a batch's nested (B, 4, S*) ``position_ids`` into the one layout verl reads: packed along the sequence.

    Args:
        data: a TensorDict; changed in place. Without nested 3-D position ids it is left alone.
    """
    if "position_ids" not in data.keys():
        return
    nested = data["position_ids"]
    if nested.dim() != 3 or not nested.is_nested:
        return
    values, offsets = nested._values, nested._offsets
    total = int(offsets[-1])
    along_axes = total == values.shape[0] and (total > _MAX_AXES or total != values.shape[-1])
    if not along_axes:
        nested._ragged_idx = 2
        return
    batch, length = len(offsets) - 1, values.shape[-1]
    axes = values.shape[0] // batch
    packed = values.view(batch, axes, length).transpose(0, 1).reshape(axes, batch * length)
    bounds = torch.arange(0, batch * length + 1, length, dtype=offsets.dtype, device=offsets.device)
    data["position_ids"] = torch.nested.nested_tensor_from_jagged(packed, offsets=bounds, jagged_dim=2)


def mend(tensordict_utils) -> None:
    """Replace verl's function by `fix_position_ids`, before verl's workers take it by name."""
    tensordict_utils.maybe_fix_3d_position_ids = fix_position_ids
