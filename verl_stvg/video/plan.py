"""Which frames of a video the model sees, and at which size: arithmetic only, so that prompt lengths are known unread.

The default grid is exact: frame k is the one shown at k / fps seconds, starting at 0, and the number of frames is a
multiple of the temporal patch (2). At 2 fps one temporal unit is then one second (``second_per_grid == 1.0``), which is
what Qwen2.5-VL was trained with and the only rate at which the stock actor and rollout can agree on a clock.

Papers whose code reads videos with qwen-vl-utils trained on other frames: spread over the whole video, first and last
included, and therefore at a rate near 2 fps that differs from video to video. ``rule="qwen_vl_utils"`` gives exactly
those frames and sizes, and says their true rate.

A model whose limits are narrower than those that rows were built for needs a plan for videos of any length.
``rule="adaptive_grid"`` is the grid at the rate, of ``fps``, ``fps / 2``, ``fps / 3`` and so on, that is low enough.

A model's token is a square of 28 pixels (Qwen2-VL, Qwen2.5-VL) or of 32 (Qwen3-VL). Rows do not say for which; the side
of a patch, half of it, comes from the model's processor (`verl_stvg.video.positions.fit`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from verl_stvg import moved
from verl_stvg.video.clock import ROUNDING, FrameClock
from verl_stvg.video.frame_rules import (
    MAX_PIXELS,
    MERGE,
    MIN_FRAMES,
    MIN_PIXELS,
    PATCH,
    PROCESSOR_MAX_PIXELS,
    PROCESSOR_MIN_PIXELS,
    TEMPORAL_PATCH,
    TOTAL_PIXELS,
    Options,
    frame_budget,
    pixels_of,
    refuse_contradictions,
    smart_nframes,
    smart_resize,
    spread,
)

__getattr__ = moved.names_of(
    __name__,
    dict.fromkeys(("FACTOR", "MAX_FRAMES", "QWEN3_PATCH", "MAX_RATIO", "RULES"), "verl_stvg.video.frame_rules"),
)

MAX_TOKENS = 2**20
"""Visual tokens of a video: as many as the longest context of any of these models, or 5 GB of frames."""

_MANY = 1e15  # frames of a grid: more are as good as any number of them, and none of them is planned


@dataclass(frozen=True)
class SamplingPlan:
    """The frames to decode and the size to give them.

    Attributes:
        frame_indices: (T,) zero-based indices into the source video, never decreasing.
        timestamps: (T,) seconds of the file: of the grid points, ``k / fps`` after the first, or under
            ``qwen_vl_utils`` of the chosen frames.
        height: of every frame, pixels, a multiple of twice `patch`.
        width: of every frame, pixels, a multiple of twice `patch`.
        fps: frames per second: of the grid, or under ``qwen_vl_utils`` T over the video's duration (its
            ``sample_fps``; with both ends included the frames lie a hair further apart than ``1 / fps``).
        marks: what is drawn on the frames before they are resized: track file, hash of its bytes, style of
            `verl_stvg.video.markers`; None for nothing.
        hidden: runs of temporal units, each from its first to before its last, that the model sees black.
        shown: run of temporal units that is all the model sees, on a clock from 0; None for all.
        patch: side of a patch of the model, pixels.
        by_index: the frames are those of `frame_indices`, whenever they are on show; else those of `timestamps`.
    """

    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    height: int
    width: int
    fps: float
    marks: tuple[str, str, str] | None = None
    hidden: tuple[tuple[int, int], ...] = ()
    shown: tuple[int, int] | None = None
    patch: int = PATCH
    by_index: bool = False

    @property
    def identity(self) -> dict:
        """All that decides about the pixels in the cache, whatever the track file is called; masks come after it."""
        later = ("marks", "hidden", "shown", "patch")
        kept = {name: value for name, value in vars(self).items() if name not in later}
        kept |= {"by_index": True} if kept.pop("by_index") else {}
        return kept | {"marks": self.marks[1:]} if self.marks else kept

    @property
    def whole(self) -> "SamplingPlan":
        """The plan without its mask: what is decoded and kept."""
        return replace(self, hidden=(), shown=None) if self.hidden or self.shown else self

    def masked(
        self, hidden: Iterable[Sequence[int]] | None = None, shown: Sequence[int] | None = None
    ) -> "SamplingPlan":
        """The plan with other units hidden and shown; numbers count the units of `whole`.

        Raises:
            ValueError: a run that is empty, out of order or outside of the video.
        """
        whole = self.whole
        runs = tuple((int(first), int(last)) for first, last in hidden or ())
        part = None if shown is None else (int(shown[0]), int(shown[1]))
        ends = [0, *(end for run in runs for end in run), whole.num_units]
        if ends != sorted(ends) or any(first >= last for first, last in runs):
            raise ValueError(f"hidden={list(runs)} are no runs of the {whole.num_units} temporal units of this video")
        if part and not 0 <= part[0] < part[1] <= whole.num_units:
            raise ValueError(f"shown={list(part)} is no run of the {whole.num_units} temporal units of this video")
        return replace(whole, hidden=runs, shown=part)

    @property
    def num_frames(self) -> int:
        """Frames the model is given (T)."""
        return TEMPORAL_PATCH * (self.shown[1] - self.shown[0]) if self.shown else len(self.frame_indices)

    @property
    def num_units(self) -> int:
        """Temporal units the model is given."""
        return self.num_frames // TEMPORAL_PATCH

    @property
    def seconds_per_unit(self) -> float:
        """Seconds of the model's clock from one temporal unit to the next."""
        return TEMPORAL_PATCH / self.fps

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Temporal units, patch rows and patch columns: the processor's ``video_grid_thw``."""
        return self.num_units, self.height // self.patch, self.width // self.patch

    @property
    def num_tokens(self) -> int:
        """Visual tokens the language model reads, without the text and the marks around them."""
        t, h, w = self.grid_thw
        return t * h * w // MERGE**2

    def metadata(self) -> dict:
        """Video metadata for a Hugging Face processor or vLLM: the decoded frames *are* the video, at ``fps``.

        The three fields together give ``sampled_fps == fps`` exactly; indices into the source file would give a hair
        more or less after rounding, and both engines truncate positions.
        """
        return {"fps": self.fps, "total_num_frames": self.num_frames, "frames_indices": list(range(self.num_frames))}


def plan_video(
    num_frames: int,
    source_fps: float,
    width: int,
    height: int,
    *,
    patch: int = PATCH,
    clock: FrameClock | None = None,
    **options: Any,
) -> SamplingPlan:
    """Plan one video: by the exact grid, or as qwen-vl-utils 0.0.10 to 0.0.14 and then the model's processor do.

    Under ``qwen_vl_utils`` frames smaller than `PROCESSOR_MIN_PIXELS` get the size to which Qwen2.5-VL's processor
    enlarges them, so a long video may cost more tokens than `frame_budget` says: up to 8 per temporal unit.

    Args:
        num_frames: frames in the source.
        source_fps: frames per second of the source.
        width: of the source, pixels.
        height: of the source, pixels.
        patch: side of a patch of the model, pixels: `PATCH` or `QWEN3_PATCH`.
        clock: when the frames are on show; None: at a constant rate of ``source_fps``.
        options: see `Options`.

    Raises:
        ValueError: options that contradict each other (`refuse_contradictions`), an empty video, a part that is empty
            or outside of the video, a video with fewer than two grid points, one whose grid needs more than
            ``max_frames`` or fewer than ``min_frames`` frames, one with fewer frames than ``nframes``, or a plan of
            more than `MAX_TOKENS`.
    """
    asked = Options(**options)
    refuse_contradictions(**options)
    if num_frames < 1 or not source_fps > 0:
        raise ValueError(f"video has {num_frames} frames at {source_fps} fps; it is empty or its header is damaged")
    size = _frame_size(asked, height, width, patch * MERGE)
    clock = clock or FrameClock(num_frames, source_fps)
    start, first = 0.0, 0
    if asked.video_start or asked.video_end is not None:
        start, first, clock = _part(clock, asked.video_start, asked.video_end)
        num_frames, source_fps = clock.num_frames, clock.fps
    if asked.rule == "qwen_vl_utils":
        plan = _as_qwen_vl_utils(asked, num_frames, source_fps, size, clock, patch)
    else:
        plan = _on_grid(asked, size, clock, patch)
    if not start and not first:
        return plan
    return replace(
        plan,
        frame_indices=tuple(first + k for k in plan.frame_indices),
        timestamps=tuple(start + time for time in plan.timestamps),
    )


@dataclass(frozen=True)
class _FrameSize:
    """How large frames are: arguments of `plan_video`, whether the row fixes the size (``sized``), and whether
    ``min_pixels`` always holds (``enlarged``).
    """

    height: int
    width: int
    min_pixels: float
    max_pixels: float
    total_pixels: float | None
    factor: int
    sized: bool
    enlarged: bool

    def of(self, count: int) -> tuple[int, int]:
        """Height and width of each of so many frames of the grid."""
        most = self.max_pixels
        if self.total_pixels is not None:
            most = max(min(most, self.total_pixels * TEMPORAL_PATCH // count), int(self.min_pixels * 1.05))
        h, w = smart_resize(self.height, self.width, self.min_pixels, most, self.factor)
        if self.enlarged and h * w < self.min_pixels:  # rounded down to whole tokens
            h, w = smart_resize(h, w, self.min_pixels, math.inf, self.factor)
        return h, w

    def keeps(self, count: int) -> bool:
        """Whether so many frames keep to ``total_pixels``."""
        h, w = self.of(count)
        return self.total_pixels is None or count * h * w <= self.total_pixels * TEMPORAL_PATCH


def _frame_size(asked: Options, height: int, width: int, factor: int) -> _FrameSize:
    """Sizes that the options allow.

    Raises:
        ValueError: more pixels at least than at most.
    """
    adaptive, most = asked.rule == "adaptive_grid", asked.max_pixels
    most = pixels_of(MAX_PIXELS, factor) if most is None else most
    least = asked.min_pixels
    if least is None:
        usual = pixels_of(MIN_PIXELS, factor)
        least = max(factor**2, most // 2) if adaptive and usual > most else usual
    if adaptive and least > most:
        raise ValueError(f"min_pixels={least} is over max_pixels={most}; correct one of them")
    if asked.resized_height is not None and asked.resized_width is not None:
        least, most = pixels_of(PROCESSOR_MIN_PIXELS, factor), pixels_of(PROCESSOR_MAX_PIXELS, factor)
        return _FrameSize(asked.resized_height, asked.resized_width, least, most, None, factor, True, adaptive)
    return _FrameSize(height, width, least, most, asked.total_pixels, factor, False, adaptive)


def _as_qwen_vl_utils(
    asked: Options, num_frames: int, source_fps: float, size: _FrameSize, clock: FrameClock, patch: int
) -> SamplingPlan:
    fps = 2.0 if asked.fps is None else asked.fps
    least = MIN_FRAMES if asked.min_frames is None else asked.min_frames
    count = smart_nframes(num_frames, source_fps, fps, least, asked.max_frames, asked.nframes)
    most = size.max_pixels
    if not size.sized:
        total = pixels_of(TOTAL_PIXELS, size.factor) if size.total_pixels is None else size.total_pixels
        most = frame_budget(count, size.min_pixels, most, total, size.factor)
    h, w = smart_resize(size.height, size.width, size.min_pixels, most, size.factor)
    if patch == PATCH and h * w < PROCESSOR_MIN_PIXELS:
        h, w = smart_resize(h, w, PROCESSOR_MIN_PIXELS, PROCESSOR_MAX_PIXELS)
    _refuse_excess(count, h, w, size.factor)
    indices = spread(num_frames, count)
    times = tuple(clock.seconds(i) for i in indices)
    return SamplingPlan(indices, times, h, w, count / num_frames * source_fps, patch=patch, by_index=True)


def _on_grid(asked: Options, size: _FrameSize, clock: FrameClock, patch: int) -> SamplingPlan:
    fps = 2.0 if asked.fps is None else asked.fps
    if asked.rule == "adaptive_grid":
        fps /= _slowing(min(clock.duration * fps, _MANY), asked.max_frames, size)
    count = _whole_units(min(clock.duration * fps, _MANY))
    if count < TEMPORAL_PATCH:
        raise ValueError(
            f"video lasts {clock.duration:.2f} s, which is less than {TEMPORAL_PATCH} frames at {fps} fps; "
            "raise fps for this row or drop it"
        )
    if asked.min_frames is not None and count < asked.min_frames:
        raise ValueError(
            f"video lasts {clock.duration:.2f} s, which is {count} frames at {fps} fps and under "
            f"min_frames={asked.min_frames}; raise fps, lower min_frames, or drop the row"
        )
    if count > asked.max_frames:
        raise ValueError(
            f"video lasts {clock.duration:.1f} s, which is {count} frames at {fps} fps and over "
            f"max_frames={asked.max_frames}; lower fps, raise max_frames, or cut the video"
        )
    h, w = size.of(count)
    _refuse_excess(count, h, w, size.factor)
    times = tuple(k / fps for k in range(count))
    return SamplingPlan(tuple(clock.on_show(times).tolist()), times, h, w, float(fps), patch=patch)


def _slowing(frames: float, max_frames: int, size: _FrameSize) -> int:
    """The smallest whole k for which a k-th of the frames keeps to both bounds; 1 where no k leaves two frames.

    Raises:
        ValueError: ``total_pixels`` has no room for two frames.
    """
    bound = (
        max_frames
        if size.total_pixels is None
        else min(max_frames, TEMPORAL_PATCH * size.total_pixels / size.min_pixels)
    )
    k = max(1, math.floor(frames / (bound + TEMPORAL_PATCH)))
    while (count := _whole_units(frames / k)) >= TEMPORAL_PATCH:
        if count <= max_frames and size.keeps(count):
            return k
        k = max(k, math.floor(frames / count)) + 1
    if not size.keeps(TEMPORAL_PATCH):
        raise ValueError(
            f"total_pixels={size.total_pixels} has no room for {TEMPORAL_PATCH} frames of min_pixels="
            f"{size.min_pixels}; raise total_pixels or lower min_pixels"
        )
    return 1


def _whole_units(frames: float) -> int:
    """Frames of whole temporal units."""
    count = math.floor(frames + 1e-6)
    return count - count % TEMPORAL_PATCH


def _refuse_excess(count: int, height: int, width: int, factor: int) -> None:
    """Refuse a plan before its lists of frames are made: what a row asks for may be anything."""
    tokens = count // TEMPORAL_PATCH * (height // factor) * (width // factor)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"{count:,} frames of {width}x{height} are {tokens:,} visual tokens, more than {MAX_TOKENS:,}, which no "
            "model reads; lower fps, max_frames, min_pixels or the size of the row's video"
        )


def _part(clock: FrameClock, start: float, end: float | None) -> tuple[float, int, FrameClock]:
    """Seconds at which a part of a video starts, its first frame, and its own clock, which starts from 0."""
    duration = clock.duration
    if clock.times is None:
        last = clock.num_frames if end is None else min(clock.num_frames, round(end * clock.fps))
    else:
        last = clock.num_frames if end is None else int(np.searchsorted(clock.times, end - ROUNDING))
    first = clock.first_shown(start)
    if start < 0 or first >= last or (end is not None and end > duration + 1):
        raise ValueError(
            f"the part from {start} to {end} s is empty or outside of the video, which lasts {duration:.2f} s; correct "
            "video_start and video_end of the row"
        )
    if clock.times is None:
        return first / clock.fps, first, FrameClock(last - first, clock.fps)
    length = min(duration, duration if end is None else end) - start
    times = tuple(max(0.0, time - start) for time in clock.times[first:last])
    return start, first, FrameClock(last - first, (last - first) / length, times, length)
