"""verl 0.9.1 ends in a traceback on a Qwen2.5-VL micro batch without pixels; this mends it.

verl sends such a micro batch through the vision tower with an empty picture, because all ranks of FSDP must run the
same layers. It then takes the mean of what the tower returns, which is an object since transformers 5. The rows with
which verl fills up a batch are text alone, so such micro batches are not rare. Test:
``tests/patches/test_text_alone.py`` says when upstream has mended it.
"""

import torch

_SIDE = 4
"""Patches per side of the empty picture; verl's own choice."""


def mend(qwen2_vl) -> None:
    """Replace the function of verl's that makes a Qwen2.5-VL's input, for input without pixels."""
    from verl.utils.transformers_compat import unpack_visual_output

    stock = qwen2_vl._get_input_embeds

    def _get_input_embeds(
        model, input_ids, attention_mask=None, pixel_values=None, pixel_values_videos=None, *grids, **named
    ):
        if pixel_values is not None or pixel_values_videos is not None:
            return stock(model, input_ids, attention_mask, pixel_values, pixel_values_videos, *grids, **named)
        embeddings, vision = model.get_input_embeddings()(input_ids), model.config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, _SIDE, _SIDE]], device=embeddings.device)
        features, _ = unpack_visual_output(model.visual(embeddings.new_zeros(_SIDE**2, width), grid_thw=grid))
        return embeddings + 0.0 * features.mean(), attention_mask

    qwen2_vl._get_input_embeds = _get_input_embeds
