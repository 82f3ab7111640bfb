"""Which frames of a video the model sees, and at which size: arithmetic only, so that prompt lengths are known unread.

The default grid is exact: frame k is the one shown at k / fps seconds, starting at 0, and the number of frames is a
multiple of the temporal patch (2). At 2 fps one temporal unit is then one second (``second_per_grid == 1.0``), which is
what Qwen2.5-VL was trained with and the only rate at which the stock actor and rollout can agree on a clock.
"""

import math
from dataclasses import dataclass

PATCH = 14
"""Side of a vision patch in pixels (Qwen2.5-VL)."""
MERGE = 2
"""Patches merged per side into one token."""
TEMPORAL_PATCH = 2
"""Frames merged into one temporal unit."""
FACTOR = PATCH * MERGE
"""Frame sides are multiples of this many pixels."""

MIN_PIXELS = 128 * FACTOR * FACTOR
MAX_PIXELS = 768 * FACTOR * FACTOR
"""Per-frame budget used when a row names none: qwen-vl-utils' VIDEO_MIN_PIXELS and VIDEO_MAX_PIXELS."""
MAX_FRAMES = 768
MAX_RATIO = 200


@dataclass(frozen=True)
class SamplingPlan:
    """The frames to decode and the size to give them.

    Attributes:
        frame_indices: (T,) zero-based indices into the source video, one per grid point, never decreasing.
        timestamps: (T,) seconds of the grid points, ``k / fps``.
        height: of every frame, pixels, a multiple of 28.
        width: of every frame, pixels, a multiple of 28.
        fps: frames per second of the grid.
    """

    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    height: int
    width: int
    fps: float

    @property
    def num_frames(self) -> int:
        """Frames the model is given (T)."""
        return len(self.frame_indices)

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Temporal units, patch rows and patch columns: the processor's ``video_grid_thw``."""
        return self.num_frames // TEMPORAL_PATCH, self.height // PATCH, self.width // PATCH

    @property
    def num_tokens(self) -> int:
        """Visual tokens the language model reads, without ``<|vision_start|>`` and ``<|vision_end|>``."""
        t, h, w = self.grid_thw
        return t * h * w // MERGE**2

    def metadata(self) -> dict:
        """Video metadata for a Hugging Face processor or vLLM: the decoded frames *are* the video, at ``fps``.

        The three fields together give ``sampled_fps == fps`` exactly; indices into the source file would give a hair
        more or less after rounding, and both engines truncate positions.
        """
        return {"fps": self.fps, "total_num_frames": self.num_frames, "frames_indices": list(range(self.num_frames))}


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Size nearest to (height, width) with sides that are multiples of 28 and an area within the budget.

    The rule of Qwen2-VL's processor (and of qwen-vl-utils), so its results are fixed points: resizing again changes
    nothing.

    Raises:
        ValueError: sides below one pixel, aspect ratio over 200, or a budget that holds no 28 x 28 frame.
    """
    if min(height, width) < 1:
        raise ValueError(f"frame size {width}x{height} is empty; the video's header is damaged")
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(f"aspect ratio of {width}x{height} is over {MAX_RATIO}:1; crop the video first")
    if max_pixels < FACTOR * FACTOR or min_pixels > max_pixels:
        raise ValueError(
            f"pixel budget min_pixels={min_pixels}, max_pixels={max_pixels} is impossible; "
            f"max_pixels must be at least {FACTOR * FACTOR} and not below min_pixels"
        )
    h = max(FACTOR, round(height / FACTOR) * FACTOR)
    w = max(FACTOR, round(width / FACTOR) * FACTOR)
    if h * w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        h = max(FACTOR, math.floor(height / scale / FACTOR) * FACTOR)
        w = max(FACTOR, math.floor(width / scale / FACTOR) * FACTOR)
    elif h * w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * scale / FACTOR) * FACTOR
        w = math.ceil(width * scale / FACTOR) * FACTOR
    return h, w


def plan_video(
    num_frames: int,
    source_fps: float,
    width: int,
    height: int,
    *,
    fps: float = 2.0,
    max_frames: int = MAX_FRAMES,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    total_pixels: int | None = None,
) -> SamplingPlan:
    """Plan the exact grid for one video.

    Args:
        num_frames: frames in the source.
        source_fps: frames per second of the source.
        width: of the source, pixels.
        height: of the source, pixels.
        fps: grid rate; 2.0 keeps one temporal unit at one second.
        max_frames: upper bound on T; a longer video is cut off by an error, never silently.
        min_pixels: per frame.
        max_pixels: per frame.
        total_pixels: over all frames, counted as qwen-vl-utils does (two frames share one temporal patch).

    Raises:
        ValueError: an empty video, a non-positive rate, a video with fewer than two grid points, or one whose grid
            needs more than ``max_frames`` frames.
    """
    if num_frames < 1 or not source_fps > 0:
        raise ValueError(f"video has {num_frames} frames at {source_fps} fps; it is empty or its header is damaged")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    count = math.floor(num_frames / source_fps * fps + 1e-6)
    count -= count % TEMPORAL_PATCH
    if count < TEMPORAL_PATCH:
        raise ValueError(
            f"video lasts {num_frames / source_fps:.2f} s, which is less than {TEMPORAL_PATCH} frames at {fps} fps; "
            "raise fps for this row or drop it"
        )
    if count > max_frames:
        raise ValueError(
            f"video lasts {num_frames / source_fps:.1f} s, which is {count} frames at {fps} fps and over "
            f"max_frames={max_frames}; lower fps, raise max_frames, or cut the video"
        )
    if total_pixels is not None:
        max_pixels = max(min(max_pixels, total_pixels * TEMPORAL_PATCH // count), int(min_pixels * 1.05))
    h, w = smart_resize(height, width, min_pixels, max_pixels)
    times = tuple(k / fps for k in range(count))
    indices = tuple(min(round(t * source_fps), num_frames - 1) for t in times)
    return SamplingPlan(indices, times, h, w, float(fps))
