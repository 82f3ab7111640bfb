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

import numpy as np

from verl_stvg.video.clock import ROUNDING, FrameClock

PATCH = 14
"""Side of a vision patch in pixels, unless told (Qwen2-VL, Qwen2.5-VL)."""
QWEN3_PATCH = 16
"""The same of Qwen3-VL."""
MERGE = 2
"""Patches merged per side into one token."""
TEMPORAL_PATCH = 2
"""Frames merged into one temporal unit."""
FACTOR = PATCH * MERGE
"""Frame sides are multiples of this many pixels, with patches of `PATCH`."""

MIN_PIXELS = 128 * FACTOR * FACTOR
MAX_PIXELS = 768 * FACTOR * FACTOR
"""Per-frame budget used when a row names none: qwen-vl-utils' VIDEO_MIN_PIXELS and VIDEO_MAX_PIXELS. The constants are
pixels for patches of `PATCH`; other patches have as many tokens, and so more or fewer pixels."""
MAX_FRAMES = 768
MAX_RATIO = 200
MAX_TOKENS = 2**20
"""Visual tokens of a video: as many as the longest context of any of these models, or 5 GB of frames."""

RULES = ("grid", "qwen_vl_utils", "adaptive_grid")
MIN_FRAMES = 4
"""qwen-vl-utils' FPS_MIN_FRAMES."""
TOTAL_PIXELS = 128_000 * FACTOR * FACTOR * 0.9
"""Over all frames, used by qwen-vl-utils when a row names no budget: nine tenths of its MODEL_SEQ_LEN in tokens."""
PROCESSOR_MIN_PIXELS = 4 * FACTOR * FACTOR
PROCESSOR_MAX_PIXELS = 16384 * FACTOR * FACTOR
"""Frames outside of these limits are resized again by Qwen2.5-VL's processor."""
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


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: float, factor: int = FACTOR) -> tuple[int, int]:
    """Size nearest to (height, width) with sides that are multiples of ``factor`` and an area within the budget.

    The rule of Qwen2-VL's processor (and of qwen-vl-utils), so its results are fixed points: resizing again changes
    nothing. A frame that is long and narrow keeps a side of ``factor`` where qwen-vl-utils rounds it down to 0; that is
    the only case in which a frame is shrunk to more than ``max_pixels``.

    Raises:
        ValueError: sides below one pixel, aspect ratio over 200, or a budget that holds not one token.
    """
    if min(height, width) < 1:
        raise ValueError(f"frame size {width}x{height} is empty; the video's header is damaged")
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(f"aspect ratio of {width}x{height} is over {MAX_RATIO}:1; crop the video first")
    if max_pixels < factor * factor or min_pixels > max_pixels:
        raise ValueError(
            f"pixel budget min_pixels={min_pixels}, max_pixels={max_pixels} is impossible; "
            f"max_pixels must be at least {factor * factor} and not below min_pixels"
        )
    h = max(factor, round(height / factor) * factor)
    w = max(factor, round(width / factor) * factor)
    if h * w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / scale / factor) * factor)
        w = max(factor, math.floor(width / scale / factor) * factor)
    elif h * w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * scale / factor) * factor
        w = math.ceil(width * scale / factor) * factor
    return h, w


def smart_nframes(
    num_frames: int,
    source_fps: float,
    fps: float = 2.0,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
    nframes: int | None = None,
) -> int:
    """How many frames qwen-vl-utils (0.0.10 to 0.0.14) samples: the video's duration at ``fps``, clamped, rounded down
    to an even number; or ``nframes``, rounded to the nearest even number.

    Version 0.0.8 and VideoMind's copy of it round to the nearest even number instead.

    Args:
        num_frames: frames in the source.
        source_fps: frames per second of the source.
        fps: wanted rate.
        min_frames: rounded up to an even number; sampled even from a video too short for it at ``fps``.
        max_frames: rounded down to an even number; a longer video is sampled more thinly.
        nframes: this many frames instead, whatever ``fps``, ``min_frames`` and ``max_frames`` are. Halfway between two
            even numbers it becomes a multiple of 4, as Python rounds.

    Raises:
        ValueError: fewer than two frames to sample from, ``max_frames`` below 2, or ``nframes`` that is rounded to 0 or
            to more than the frames of the video.
    """
    if nframes is not None:
        count = round(nframes / TEMPORAL_PATCH) * TEMPORAL_PATCH
        if not TEMPORAL_PATCH <= count <= num_frames:
            raise ValueError(
                f"nframes={nframes} asks for {count} frames of a video of {num_frames}, and from {TEMPORAL_PATCH} to "
                "the number of its frames are needed; correct nframes of the row, or drop the row"
            )
        return count
    low = math.ceil(min_frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
    high = max_frames - max_frames % TEMPORAL_PATCH
    wanted = min(max(num_frames / source_fps * fps, low), high, num_frames)
    count = math.floor(wanted / TEMPORAL_PATCH) * TEMPORAL_PATCH
    if count < TEMPORAL_PATCH:
        raise ValueError(
            f"a video of {num_frames} frames gives {count} with max_frames={max_frames}, and {TEMPORAL_PATCH} are "
            "needed; raise max_frames or drop the row"
        )
    return count


def spread(num_frames: int, count: int) -> tuple[int, ...]:
    """Indices of ``count`` frames from the first to the last at equal distance, each rounded to the nearest.

    Exact in integers. qwen-vl-utils rounds ``torch.linspace`` in float32: the same up to 12,000 frames at least, and
    off by one at single frames of longer videos, at which ones depends on the processor's vector width.

    Raises:
        ValueError: fewer than two indices.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2 to include both ends, got {count}")
    last, gaps = num_frames - 1, count - 1
    return tuple((2 * k * last + gaps) // (2 * gaps) for k in range(count))


def frame_budget(count: int, min_pixels: int, max_pixels: float, total_pixels: float, factor: int = FACTOR) -> float:
    """Largest area of a frame in qwen-vl-utils, pixels: a share of ``total_pixels``, within limits.

    Two frames share one temporal patch, so each may have twice its share. The least is 5 % over ``min_pixels``, even if
    ``count`` frames of that are over ``total_pixels``; the most is 768 tokens, or ``max_pixels`` if that is less.
    """
    share = min(_pixels(MAX_PIXELS, factor), total_pixels / count * TEMPORAL_PATCH)
    return min(max_pixels, max(share, int(min_pixels * 1.05)))


def refuse_contradictions(
    rule: str = "grid",
    fps: float | None = None,
    nframes: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    **others: object,
) -> None:
    """See that the options of `plan_video` fit together, whatever the video.

    Raises:
        ValueError: an unknown rule, a rate that is not positive, ``nframes`` beside ``fps`` or in the grid, one side of
            a frame without the other.
    """
    if rule not in RULES:
        raise ValueError(f"sampling rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if nframes is not None and rule != "qwen_vl_utils":
        default = " (the default)" if rule == "grid" else ""
        raise ValueError(
            f"nframes={nframes} fixes the number of frames, and rule {rule!r}{default} fixes their distance; set "
            "rule to 'qwen_vl_utils', or fps in place of nframes"
        )
    if nframes is not None and fps is not None:
        raise ValueError(f"nframes={nframes} and fps={fps} exclude each other; leave one of them out")
    if (resized_height is None) != (resized_width is None):
        given, lacking = ("height", "width") if resized_width is None else ("width", "height")
        raise ValueError(f"resized_{given} needs resized_{lacking} beside it; give both, or neither")


def plan_video(
    num_frames: int,
    source_fps: float,
    width: int,
    height: int,
    *,
    fps: float | None = None,
    max_frames: int = MAX_FRAMES,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    total_pixels: int | None = None,
    min_frames: int | None = None,
    rule: str = "grid",
    nframes: int | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
    video_start: float = 0.0,
    video_end: float | None = None,
    patch: int = PATCH,
    clock: FrameClock | None = None,
) -> SamplingPlan:
    """Plan one video: by the exact grid, or as qwen-vl-utils 0.0.10 to 0.0.14 and then the model's processor do.

    Under ``qwen_vl_utils`` frames smaller than `PROCESSOR_MIN_PIXELS` get the size to which Qwen2.5-VL's processor
    enlarges them, so a long video may cost more tokens than `frame_budget` says: up to 8 per temporal unit.

    Args:
        num_frames: frames in the source.
        source_fps: frames per second of the source.
        width: of the source, pixels.
        height: of the source, pixels.
        fps: grid rate; 2.0, the default, keeps one temporal unit at one second. Under ``qwen_vl_utils`` the rate to
            come close to, and under ``adaptive_grid`` the highest one.
        max_frames: upper bound on T. A longer video is an error in the grid, and under the other rules sampled at a
            lower rate.
        min_pixels: per frame; default: 128 tokens, under ``adaptive_grid`` half of ``max_pixels`` (ours) where
            that is less than 128 tokens.
        max_pixels: per frame; default: 768 tokens.
        total_pixels: over all frames, counted as qwen-vl-utils does (two frames share one temporal patch).
        min_frames: lower bound on T. A shorter video is an error in the grid, which has none by default, and under
            ``qwen_vl_utils`` (default: `MIN_FRAMES`) sampled at a higher rate.
        rule: ``grid``, ``qwen_vl_utils`` or ``adaptive_grid``: the grid at ``fps / k`` with the smallest whole k at
            which a video keeps to ``max_frames`` and, in frames of ``min_pixels``, to ``total_pixels``.
        nframes: T under ``qwen_vl_utils``, see `smart_nframes`; ``min_frames`` and ``max_frames`` then say nothing. It
            excludes ``fps``.
        resized_height: of every frame, pixels, rounded to a multiple of twice ``patch`` and, together with the width,
            brought within 4 to 16,384 tokens. The budgets in pixels then say nothing.
        resized_width: likewise.
        video_start: seconds of the file at which what the model sees begins; its clock starts from 0 there.
        video_end: seconds of the file at which it ends, at most a second after the file does; None: with the file.
        patch: side of a patch of the model, pixels: `PATCH` or `QWEN3_PATCH`.
        clock: when the frames are on show; None: at a constant rate of ``source_fps``.

    Raises:
        ValueError: options that contradict each other (`refuse_contradictions`), an empty video, a part that is empty
            or outside of the video, a video with fewer than two grid points, one whose grid needs more than
            ``max_frames`` or fewer than ``min_frames`` frames, one with fewer frames than ``nframes``, or a plan of
            more than `MAX_TOKENS`.
    """
    refuse_contradictions(rule, fps, nframes, resized_height, resized_width)
    if num_frames < 1 or not source_fps > 0:
        raise ValueError(f"video has {num_frames} frames at {source_fps} fps; it is empty or its header is damaged")
    factor = patch * MERGE
    max_pixels = _pixels(MAX_PIXELS, factor) if max_pixels is None else max_pixels
    if min_pixels is None:
        usual = _pixels(MIN_PIXELS, factor)
        min_pixels = max(factor**2, max_pixels // 2) if rule == "adaptive_grid" and usual > max_pixels else usual
    if rule == "adaptive_grid" and min_pixels > max_pixels:
        raise ValueError(f"min_pixels={min_pixels} is over max_pixels={max_pixels}; correct one of them")
    clock = clock or FrameClock(num_frames, source_fps)
    if video_start or video_end is not None:
        offset, first, part = _part(clock, video_start, video_end)
        options = {
            "rule": rule,
            "fps": fps,
            "nframes": nframes,
            "max_frames": max_frames,
            "min_frames": min_frames,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "total_pixels": total_pixels,
            "resized_height": resized_height,
            "resized_width": resized_width,
            "patch": patch,
            "clock": part,
        }
        plan = plan_video(part.num_frames, part.fps, width, height, **options)
        return replace(
            plan,
            frame_indices=tuple(first + k for k in plan.frame_indices),
            timestamps=tuple(offset + time for time in plan.timestamps),
        )
    fps = 2.0 if fps is None else fps
    sized = resized_height is not None and resized_width is not None
    if sized:
        height, width, total_pixels = resized_height, resized_width, None
        min_pixels, max_pixels = _pixels(PROCESSOR_MIN_PIXELS, factor), _pixels(PROCESSOR_MAX_PIXELS, factor)
    if rule == "qwen_vl_utils":
        least = MIN_FRAMES if min_frames is None else min_frames
        count = smart_nframes(num_frames, source_fps, fps, least, max_frames, nframes)
        if not sized:
            total = _pixels(TOTAL_PIXELS, factor) if total_pixels is None else total_pixels
            max_pixels = frame_budget(count, min_pixels, max_pixels, total, factor)
        h, w = smart_resize(height, width, min_pixels, max_pixels, factor)
        if patch == PATCH and h * w < PROCESSOR_MIN_PIXELS:
            h, w = smart_resize(h, w, PROCESSOR_MIN_PIXELS, PROCESSOR_MAX_PIXELS)
        _refuse_excess(count, h, w, factor)
        indices = spread(num_frames, count)
        times = tuple(clock.seconds(i) for i in indices)
        return SamplingPlan(indices, times, h, w, count / num_frames * source_fps, patch=patch, by_index=True)
    size = _GridSize(height, width, min_pixels, max_pixels, total_pixels, factor, rule == "adaptive_grid")
    if rule == "adaptive_grid":
        fps /= _slowing(min(clock.duration * fps, _MANY), max_frames, size)
    count = _whole_units(min(clock.duration * fps, _MANY))
    if count < TEMPORAL_PATCH:
        raise ValueError(
            f"video lasts {clock.duration:.2f} s, which is less than {TEMPORAL_PATCH} frames at {fps} fps; "
            "raise fps for this row or drop it"
        )
    if min_frames is not None and count < min_frames:
        raise ValueError(
            f"video lasts {clock.duration:.2f} s, which is {count} frames at {fps} fps and under "
            f"min_frames={min_frames}; raise fps, lower min_frames, or drop the row"
        )
    if count > max_frames:
        raise ValueError(
            f"video lasts {clock.duration:.1f} s, which is {count} frames at {fps} fps and over "
            f"max_frames={max_frames}; lower fps, raise max_frames, or cut the video"
        )
    h, w = size.of(count)
    _refuse_excess(count, h, w, factor)
    times = tuple(k / fps for k in range(count))
    return SamplingPlan(tuple(clock.on_show(times).tolist()), times, h, w, float(fps), patch=patch)


@dataclass(frozen=True)
class _GridSize:
    """How large the frames of the grid are; arguments of `plan_video`, and whether ``min_pixels`` always holds."""

    height: int
    width: int
    min_pixels: int
    max_pixels: float
    total_pixels: int | None
    factor: int
    enlarged: bool

    def of(self, count: int) -> tuple[int, int]:
        """Height and width of each of so many frames."""
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


def _slowing(frames: float, max_frames: int, size: _GridSize) -> int:
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


def _pixels(area: float, factor: int) -> float:
    """Pixels of as many tokens as ``area`` has at `FACTOR`."""
    return area if factor == FACTOR else int(area / FACTOR**2 * factor**2)


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
