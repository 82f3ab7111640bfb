"""Qwen2.5-VL's clock in transformers: positions, and seconds per temporal unit that are not rounded.

Versions: transformers 5.9.0. Three faults, each changes what the model reads:

1. the text after a video starts at ``start + max(h, w) / merge``, inside the video's own time span, where the model was
   trained with the largest position so far plus one;
2. the seconds per temporal unit are cast to an integer, so 0.99 s becomes a clock that stands still;
3. the seconds are rounded to float32; here actor and rollout both have float64.

`mend_transformers` runs in every process that builds positions (trainer, evaluation, supervised warm start). It is
idempotent; ``tests/patches/test_positions.py`` says when it is no longer needed.
"""

import functools
from collections.abc import Mapping

import torch

from verl_stvg.video.positions import get_rope_index, seconds_per_unit


def get_rope_index_kwargs(self, multi_modal_inputs: Mapping) -> dict:
    """What verl's agent loop should add to ``get_rope_index``: the seconds per temporal unit, which it drops
    otherwise.
    """
    seconds = multi_modal_inputs.get("second_per_grid_ts")
    return {} if seconds is None else {"second_per_grid_ts": seconds}


def mend_modeling(modeling_qwen2_5_vl) -> None:
    """Give transformers' Qwen2.5-VL model the positions of `get_rope_index`."""
    modeling_qwen2_5_vl.Qwen2_5_VLModel.get_rope_index = get_rope_index


def mend_processing(processing_qwen2_5_vl) -> None:
    """Let transformers' Qwen2.5-VL processor give the seconds per unit unrounded, and hand them to verl."""
    processor = processing_qwen2_5_vl.Qwen2_5_VLProcessor
    processor.get_rope_index_kwargs = get_rope_index_kwargs
    stock = processor.__call__
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def __call__(self, *args, **kwargs):
        asked = kwargs.get("return_metadata")
        result = stock(self, *args, **{**kwargs, "return_metadata": True})
        if "second_per_grid_ts" in result:
            metadata = result["video_metadata"] if asked else result.pop("video_metadata")
            if torch.is_tensor(result["second_per_grid_ts"]):
                result["second_per_grid_ts"] = seconds_per_unit(metadata, self.video_processor.temporal_patch_size)
        return result

    processor.__call__ = __call__


def mend_transformers() -> None:
    """Both of the above, now, in this process."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl, processing_qwen2_5_vl

    mend_modeling(modeling_qwen2_5_vl)
    mend_processing(processing_qwen2_5_vl)
