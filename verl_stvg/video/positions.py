"""One clock for actor and rollout, mended where the pinned versions break it.

Qwen2.5-VL reads time from three-axis positions, Qwen3-VL from text before each temporal unit (``<3.2 seconds>``).

Qwen2.5-VL: four faults stand in transformers 5.9.0 and vLLM 0.24.0, and each changes what the model reads:

1. transformers lets the text after a video start at ``start + max(h, w) / merge``, inside the video's own time span,
   where the model was trained with the largest position so far plus one;
2. transformers casts the seconds per temporal unit to an integer, so 0.99 s becomes a clock that stands still;
3. vLLM drops the video's metadata, the processor then assumes 24 fps, and the temporal axis collapses to 0 and 1;
4. transformers rounds the seconds per unit to float32, and vLLM to the type of the weights: 0.667969 in bfloat16 for
   the 2 / 3 s of 3 fps, so that every fourth unit stands elsewhere than for the actor. Here both have float64.

Qwen3-VL: both count positions alike, but not the tokens around a video.

5. verl sends vLLM a prompt in which the units are written out, each cut down to one placeholder; vLLM writes the whole
   video out again at the first of them, so the rollout reads every time twice, and placeholders without a video;
6. transformers turns the first time into tokens together with the text before it, vLLM by itself, so that
   ``</answer><0.2 seconds>`` is read in two ways.

`mend_transformers` runs in every process that builds positions (trainer, evaluation, supervised warm start),
`mend_vllm` in every vLLM process, `mend_server` in verl's servers of vLLM, and `fit` on every prompt. All are
idempotent, and leave an already mended version alone; ``tests/patches/test_positions.py`` and
``tests/long/test_qwen3.py`` say when that day has come.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from verl_stvg.video.plan import PATCH, TEMPORAL_PATCH, SamplingPlan

_TIME = re.compile(r"<\d+\.\d seconds>")
_LONGEST_TIME = 24
"""Tokens; a byte is at most one."""


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


def seconds_per_unit(metadata: Sequence, temporal_patch: int) -> torch.Tensor:
    """Seconds of each video's temporal unit, (number of videos,) float64: one source for the actor and the rollout.

    Args:
        metadata: transformers' ``VideoMetadata`` of each video.
        temporal_patch: frames of a unit.
    """
    return torch.tensor([temporal_patch / video.sampled_fps for video in metadata], dtype=torch.float64)


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


def vllm_forwards_metadata() -> bool:
    """Whether this vLLM hands a video's metadata to Qwen2.5-VL's processor by itself (vLLM pull request 47736)."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLProcessingInfo
    from vllm.model_executor.models.qwen2_vl import Qwen2VLProcessingInfo

    return Qwen2_5_VLProcessingInfo.get_data_parser is not Qwen2VLProcessingInfo.get_data_parser


def mend_vllm() -> None:
    """Let vLLM hand a video's metadata to Qwen2.5-VL's processor, and keep its seconds unrounded, in this process.

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
        result = stock_call(self, prompt, mm_data, mm_kwargs, tok_kwargs)
        if "video_metadata" in mm_data:  # vLLM has rounded the seconds to the type of the weights
            patch = self.info.get_hf_config().vision_config.temporal_patch_size
            result["second_per_grid_ts"] = seconds_per_unit(mm_data["video_metadata"], patch)
        return result

    qwen2_5_vl.Qwen2_5_VLProcessingInfo.get_data_parser = get_data_parser
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._call_hf_processor = _call_hf_processor


def writes_times(processor) -> bool:
    """Whether a Hugging Face processor writes a video's times into the prompt, as Qwen3-VL's does."""
    return type(processor).__name__ == "Qwen3VLProcessor"


def patch_of(processor) -> int:
    """Side of a patch of a model's videos, pixels; `PATCH` without a processor."""
    return getattr(getattr(processor, "video_processor", None), "patch_size", PATCH)


def fit(messages: Sequence[Mapping], processor) -> list[dict]:
    """Messages as a model needs them: its patch in every video, and a Qwen3-VL's times on a line of their own.

    A line break is the one thing that no tokenizer of Qwen's joins with what follows, so actor and rollout read the
    same tokens.
    """
    patch, apart = patch_of(processor), writes_times(processor)
    if patch == PATCH and not apart:
        return list(messages)
    fitted = []
    for message in messages:
        if isinstance(message["content"], str):
            fitted.append(message)
            continue
        parts: list[dict] = []
        for part in message["content"]:
            if part["type"] != "video":
                parts.append(part)
                continue
            if apart and parts and not parts[-1].get("text", "").endswith("\n"):
                parts.append({"type": "text", "text": "\n"})
            parts.append({**part, "patch": patch})
        fitted.append({**message, "content": parts})
    return fitted


def times_of(plan: SamplingPlan) -> list[str]:
    """What Qwen3-VL's processor writes before each temporal unit: the mean time of its frames, to a tenth of a second,
    on the clock that the plan's metadata give.
    """
    times = [k / plan.fps for k in range(plan.num_frames)]
    pairs = zip(times[::TEMPORAL_PATCH], times[TEMPORAL_PATCH - 1 :: TEMPORAL_PATCH], strict=True)
    return [f"<{(first + last) / TEMPORAL_PATCH:.1f} seconds>" for first, last in pairs]


def added_tokens(plan: SamplingPlan, processor) -> int:
    """How many tokens the prompt grows by when a video takes the place of its placeholder token."""
    if not writes_times(processor):
        return plan.num_tokens - 1
    times = processor.tokenizer(times_of(plan), add_special_tokens=False)["input_ids"]
    marks = 2 * (plan.num_units - 1)  # the template has one pair
    return plan.num_tokens - 1 + marks + sum(map(len, times))


def folded(prompt_ids: Sequence[int], processor) -> list[int]:
    """A prompt of Qwen3-VL in which each video is one placeholder again, between its marks, as vLLM wants it.

    Args:
        prompt_ids: as the processor makes them, runs of placeholders whole or cut down to one.
        processor: a ``Qwen3VLProcessor``.

    Raises:
        ValueError: a video whose first time was made into tokens together with the text before it.
    """
    start, end, video = processor.vision_start_token_id, processor.vision_end_token_id, processor.video_token_id
    ids, kept, last = list(prompt_ids), [], 0
    place = 0
    while place < len(ids):
        if ids[place] != start or ids[place + 1 : place + 2] != [video]:
            kept.append(ids[place])
            place += 1
            continue
        before = kept[last:]  # since the last unit
        length = _time_at_the_end(before, processor.tokenizer)
        if length is None:
            raise ValueError(
                f"before a video the prompt has no time of its own, but "
                f"{processor.tokenizer.decode(before[-_LONGEST_TIME:])!r}; put a line break before <video>"
            )
        del kept[len(kept) - length :]
        place = ids.index(end, place) + 1
        if not last or len(kept) > last:  # not the next unit of the same video
            kept += [start, video, end]
        last = len(kept)
    return kept


def _time_at_the_end(ids: list[int], tokenizer) -> int | None:
    """Tokens of the time that a text ends with."""
    tail = ids[-_LONGEST_TIME:]
    for length in range(len(tail), 0, -1):  # between two units there is nothing else
        if _TIME.fullmatch(tokenizer.decode(tail[-length:])):
            return length
    return None


def mend_server(vllm_async_server) -> None:
    """Let verl's server of vLLM fold the videos of Qwen3-VL's prompts; other prompts are verl's business."""
    stock = vllm_async_server.qwen2_5_vl_dedup_image_tokens

    def dedup(prompt_ids, processor):
        ids = stock(prompt_ids, processor)
        return folded(ids, processor) if writes_times(processor) else ids

    vllm_async_server.qwen2_5_vl_dedup_image_tokens = dedup
