"""How many frames of a video are shown, and how large: rules and constants of qwen-vl-utils and the models' processors.

And what a row may ask for instead (`Options`).
"""

import math
from dataclasses import dataclass

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
MIN_FRAMES = 4
"""qwen-vl-utils' FPS_MIN_FRAMES."""
TOTAL_PIXELS = 128_000 * FACTOR * FACTOR * 0.9
"""Over all frames, used by qwen-vl-utils when a row names no budget: nine tenths of its MODEL_SEQ_LEN in tokens."""
PROCESSOR_MIN_PIXELS = 4 * FACTOR * FACTOR
PROCESSOR_MAX_PIXELS = 16384 * FACTOR * FACTOR
"""Frames outside of these limits are resized again by Qwen2.5-VL's processor."""

RULES = ("grid", "qwen_vl_utils", "adaptive_grid")


def smart_resize(
    height: int, width: int, min_pixels: float, max_pixels: float, factor: int = FACTOR
) -> tuple[int, int]:
    """Size nearest to (height, width) with sides that are multiples of ``factor`` and an area within the budget.

    The rule of Qwen2-VL's processor (and of qwen-vl-utils), so its results are fixed points: resizing again changes
    nothing. A frame that is long and narrow keeps a side of ``factor`` where qwen-vl-utils rounds it down to 0; that is
    the only case in which a frame is shrunk to more than ``max_pixels``.

    Args:
        height: of the frame, pixels.
        width: likewise.
        min_pixels: least area.
        max_pixels: largest area.
        factor: sides are multiples of this many pixels.

    Returns:
        height and width, pixels.

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


def frame_budget(count: int, min_pixels: float, max_pixels: float, total_pixels: float, factor: int = FACTOR) -> float:
    """Largest area of a frame in qwen-vl-utils, pixels: a share of ``total_pixels``, within limits.

    Two frames share one temporal patch, so each may have twice its share. The least is 5 % over ``min_pixels``, even if
    ``count`` frames of that are over ``total_pixels``; the most is 768 tokens, or ``max_pixels`` if that is less.

    Args:
        count: frames of the video that are shown.
        min_pixels: least area of a frame, as asked for.
        max_pixels: largest area of a frame, as asked for.
        total_pixels: area of all frames together.
        factor: side of a token, pixels.
    """
    share = min(pixels_of(MAX_PIXELS, factor), total_pixels / count * TEMPORAL_PATCH)
    return min(max_pixels, max(share, int(min_pixels * 1.05)))


def pixels_of(area: float, factor: int) -> float:
    """Pixels of as many tokens as ``area`` has at `FACTOR`."""
    return area if factor == FACTOR else int(area / FACTOR**2 * factor**2)


@dataclass(frozen=True)
class Options:
    """Options of `verl_stvg.video.plan.plan_video`, which are keys of a row's video entry.

    Attributes:
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
    """

    fps: float | None = None
    max_frames: int = MAX_FRAMES
    min_pixels: float | None = None
    max_pixels: float | None = None
    total_pixels: float | None = None
    min_frames: int | None = None
    rule: str = "grid"
    nframes: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    video_start: float = 0.0
    video_end: float | None = None


def refuse_contradictions(
    rule: str = "grid",
    fps: float | None = None,
    nframes: float | None = None,
    resized_height: float | None = None,
    resized_width: float | None = None,
    **others: object,
) -> None:
    """See that the options of `plan_video` fit together, whatever the video; None: not given. See `Options` for each.

    Args:
        rule: one of `RULES`.
        fps: frames per second.
        nframes: frames of the plan.
        resized_height: of every frame, pixels.
        resized_width: likewise.
        others: contradict nothing.

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
