"""One clock for actor and rollout: where a video's tokens stand, and what stands around them. Arithmetic only.

Qwen2.5-VL reads time from three-axis positions, Qwen3-VL from text before each temporal unit (``<3.2 seconds>``).
`get_rope_index` and `seconds_per_unit` are the positions of Qwen2.5-VL, as it was trained. transformers and vLLM are
given them by `verl_stvg.patches.transformers_positions` and `verl_stvg.patches.vllm_positions`, which list what these
programs do otherwise.

Of Qwen3-VL both count positions alike, but not the tokens around a video: transformers turns the first time into tokens
together with the text before it, vLLM by itself, so that ``</answer><0.2 seconds>`` is read in two ways. `fit` on every
prompt keeps them apart, and `folded` is the prompt that vLLM wants.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch

from verl_stvg import moved
from verl_stvg.video.frame_rules import PATCH, TEMPORAL_PATCH
from verl_stvg.video.plan import SamplingPlan

_TIME = re.compile(r"<\d+\.\d seconds>")
_LONGEST_TIME = 24
"""Tokens; a byte is at most one."""
__getattr__ = moved.names_of(
    __name__,
    {
        **dict.fromkeys(("mend_vllm", "mend_server", "vllm_forwards_metadata"), "verl_stvg.patches.vllm_positions"),
        **dict.fromkeys(
            ("mend_modeling", "mend_processing", "mend_transformers", "get_rope_index_kwargs"),
            "verl_stvg.patches.transformers_positions",
        ),
    },
)


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
                sides, interval = tuple(next(images if kind == 1 else videos)), 1.0
                if kind == 2:
                    interval = tokens_per_second * (1.0 if seconds is None else next(seconds))
                chunk = _grid_positions(sides, merge, interval)
                length = chunk.shape[1]
                if not (types[done : done + length] == kind).all() or done + length > len(types):
                    raise ValueError(f"row {row}: {_TOO_FEW.format(('image', 'video')[kind - 1], sides, length)}")
            chunks.append(chunk + start)
            start = int(chunks[-1].max()) + 1
            done += length
        merged = torch.from_numpy(np.concatenate(chunks, axis=1)).to(positions)
        positions[:, row, real] = merged
        deltas.append(start - len(types))
    return positions, torch.tensor(deltas, device=input_ids.device).unsqueeze(1)


_TOO_FEW = (
    "the {} grid {} needs {} placeholder tokens in a row, and the prompt has fewer; prompt and pixels come from "
    "different processor calls"
)


def _grid_positions(sides: Sequence[int], merge: int, interval: float) -> np.ndarray:
    """(3, N) positions of an image or a video from 0 on: unit k stands at ``floor(k * interval)``."""
    t, h, w = sides
    grid = np.indices((t, h // merge, w // merge))
    grid[0] = (grid[0] * interval).astype(np.int64)
    return grid.reshape(3, -1)


def seconds_per_unit(metadata: Sequence, temporal_patch: int) -> torch.Tensor:
    """Seconds of each video's temporal unit, (number of videos,) float64: one source for the actor and the rollout.

    Args:
        metadata: transformers' ``VideoMetadata`` of each video.
        temporal_patch: frames of a unit.
    """
    return torch.tensor([temporal_patch / video.sampled_fps for video in metadata], dtype=torch.float64)


def writes_times(processor) -> bool:
    """Whether a Hugging Face processor writes a video's times into the prompt, as Qwen3-VL's does."""
    return type(processor).__name__ == "Qwen3VLProcessor"


def patch_of(processor) -> int:
    """Side of a patch of a model's videos, pixels; `PATCH` without a processor."""
    return getattr(getattr(processor, "video_processor", None), "patch_size", PATCH)


def fit(messages: Sequence[dict], processor) -> list[dict]:
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
