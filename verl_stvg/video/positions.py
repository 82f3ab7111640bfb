"""One clock for actor and rollout: Qwen2.5-VL's three-axis positions, mended where the pinned versions break them.

Three faults stand in transformers 5.9.0 and vLLM 0.24.0, and each changes what the model reads:

1. transformers lets the text after a video start at ``start + max(h, w) / merge``, inside the video's own time span,
   where the model was trained with the largest position so far plus one;
2. transformers casts the seconds per temporal unit to an integer, so 0.99 s becomes a clock that stands still;
3. vLLM drops the video's metadata, the processor then assumes 24 fps, and the temporal axis collapses to 0 and 1.

`mend_transformers` runs in every process that builds positions (trainer, evaluation, supervised warm start),
`mend_vllm` in every vLLM process. Both are idempotent, and both leave an already mended version alone;
``tests/test_positions.py`` says when that day has come.
"""

from collections.abc import Mapping

import numpy as np
import torch


def get_rope_index(
    self,
    input_ids: torch.LongTensor,
    mm_token_type_ids: torch.IntTensor,
    image_grid_thw: torch.LongTensor | None = None,
    video_grid_thw: torch.LongTensor | None = None,
    second_per_grid_ts=None,
    attention_mask: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Temporal, height and width positions of a batch, as Qwen2.5-VL was trained and as vLLM computes them.

    A temporal unit k of a video stands at ``floor(k * second_per_grid * tokens_per_second)`` after the text before
    it; images have one unit; text continues at the largest position so far plus one.

    Args:
        self: a ``Qwen2_5_VLModel``, or a processor that carries its ``config`` (verl binds the method to one).
        input_ids: (B, S).
        mm_token_type_ids: (B, S), 0 text, 1 image, 2 video.
        image_grid_thw: (number of images, 3) patches.
        video_grid_thw: (number of videos, 3) patches.
        second_per_grid_ts: (number of videos,) seconds per temporal unit; 1.0 when absent.
        attention_mask: (B, S), 1 for real tokens; positions of padding are left at 0.

    Returns:
        positions (3, B, S) and deltas (B, 1): last position plus one minus the number of real tokens.
    """
    merge = self.config.vision_config.spatial_merge_size
    tokens_per_second = self.config.vision_config.tokens_per_second
    images = iter(() if image_grid_thw is None else image_grid_thw.tolist())
    videos = iter(() if video_grid_thw is None else video_grid_thw.tolist())
    seconds = None if second_per_grid_ts is None else iter([float(s) for s in second_per_grid_ts])

    positions = torch.zeros(3, *input_ids.shape, dtype=input_ids.dtype, device=input_ids.device)
    deltas = []
    for row in range(input_ids.shape[0]):
        real = slice(None) if attention_mask is None else attention_mask[row].bool()
        types = mm_token_type_ids[row][real].cpu().numpy()
        chunks, start, done = [], 0, 0
        while done < len(types):
            kind = types[done]
            if kind == 0:
                changes = np.flatnonzero(types[done:] != 0)
                length = int(changes[0]) if len(changes) else len(types) - done
                chunk = np.broadcast_to(np.arange(length), (3, length))
            else:
                t, h, w = next(images if kind == 1 else videos)
                grid = np.indices((t, h // merge, w // merge))
                if kind == 2:
                    interval = tokens_per_second * (1.0 if seconds is None else next(seconds))
                    grid[0] = (grid[0] * interval).astype(np.int64)
                chunk = grid.reshape(3, -1)
                length = chunk.shape[1]
                if not (types[done : done + length] == kind).all() or done + length > len(types):
                    raise ValueError(
                        f"row {row}: the {'image' if kind == 1 else 'video'} grid {(t, h, w)} needs {length} "
                        "placeholder tokens in a row, and the prompt has fewer; prompt and pixels come from different "
                        "processor calls"
                    )
            chunks.append(chunk + start)
            start = int(chunks[-1].max()) + 1
            done += length
        merged = torch.from_numpy(np.concatenate(chunks, axis=1)).to(positions)
        positions[:, row, real] = merged
        deltas.append(start - len(types))
    return positions, torch.tensor(deltas, device=input_ids.device).unsqueeze(1)


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
    """Give transformers' Qwen2.5-VL processor the hook through which verl asks for the seconds per unit."""
    processing_qwen2_5_vl.Qwen2_5_VLProcessor.get_rope_index_kwargs = get_rope_index_kwargs


def mend_transformers() -> None:
    """Both of the above, now, in this process."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl, processing_qwen2_5_vl

    mend_modeling(modeling_qwen2_5_vl)
    mend_processing(processing_qwen2_5_vl)


def vllm_forwards_metadata() -> bool:
    """Whether this vLLM hands a video's metadata to Qwen2.5-VL's processor by itself (vLLM pull request 47736)."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLProcessingInfo
    from vllm.model_executor.models.qwen2_vl import Qwen2VLProcessingInfo

    return Qwen2_5_VLProcessingInfo.get_data_parser is not Qwen2VLProcessingInfo.get_data_parser


def mend_vllm() -> None:
    """Let vLLM hand a video's metadata to Qwen2.5-VL's processor, in this process.

    Videos given as ``(frames, metadata)`` then get the clock of their own frame rate. Videos without metadata keep
    vLLM's stock behaviour.
    """
    if vllm_forwards_metadata():
        return
    from transformers.video_utils import VideoMetadata
    from vllm.model_executor.models import qwen2_5_vl, qwen2_vl

    class MetadataParser(qwen2_vl.Qwen2VLMultiModalDataParser):
        def _get_video_with_metadata(self, video):
            frames, metadata = super()._get_video_with_metadata(video)
            return frames, metadata or {}

    def get_data_parser(self):
        return MetadataParser(
            self.get_hf_config().vision_config.spatial_merge_size,
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
        )

    stock_call = qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._call_hf_processor

    def _call_hf_processor(self, prompt, mm_data, mm_kwargs, tok_kwargs):
        mm_data, mm_kwargs = dict(mm_data), dict(mm_kwargs)
        videos = mm_data.get("videos") or []
        pairs = [video if isinstance(video, tuple) else (video, {}) for video in videos]
        if pairs:
            mm_data["videos"] = [frames for frames, _ in pairs]
            known = [bool(metadata) for _, metadata in pairs]
            if all(known):
                mm_data["video_metadata"] = [
                    VideoMetadata(**{k: v for k, v in metadata.items() if k != "do_sample_frames"})
                    for _, metadata in pairs
                ]
                mm_kwargs["do_sample_frames"] = False
            elif any(known):
                raise ValueError(
                    "one video of this prompt has metadata and another has none; give it for all or for none"
                )
        return stock_call(self, prompt, mm_data, mm_kwargs, tok_kwargs)

    qwen2_5_vl.Qwen2_5_VLProcessingInfo.get_data_parser = get_data_parser
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._call_hf_processor = _call_hf_processor
