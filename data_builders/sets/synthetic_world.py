"""The world of synthetic clips: which shapes a clip has, where they are in each frame, and how they are drawn.

The world is kept small on purpose. Frames are four times the size of a tiny model's input, entrances and exits fall
between two frames of the 2 fps grid on which the model looks, and no two shapes of a clip share a colour or touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

MODEL_SCALE = 4  # native size over the size a tiny model sees
HEIGHT, WIDTH = 56 * MODEL_SCALE, 84 * MODEL_SCALE
SOURCE_FPS = 12
GRID_FPS = 2
FRAMES_PER_TICK = SOURCE_FPS // GRID_FPS  # a tick is one step of the 2 fps grid, 0.5 s
NUM_TICKS = 16
NUM_FRAMES = NUM_TICKS * FRAMES_PER_TICK
DURATION = NUM_FRAMES / SOURCE_FPS
LANE = 28 * MODEL_SCALE  # one row of merged visual tokens of Qwen2.5-VL (patch 14, merge 2)
NUM_LANES = HEIGHT // LANE
SHAPE_SIZE = 24 * MODEL_SCALE
LANE_GAP = 2 * MODEL_SCALE  # least distance between two shapes of one lane
MIN_TICKS, MAX_TICKS = 3, 8  # visible span, 1.5 s to 4 s
MAX_OBJECTS = 2 * NUM_LANES
ENTER = (12, 44)  # pixels of the shape inside the frame in the frames just before it counts as visible
LEAVE = (84, 52)  # the same for its last two visible frames; in the next one it is gone
COLORS = {
    "white": (240, 240, 240),
    "yellow": (250, 225, 60),
    "green": (110, 220, 110),
    "cyan": (90, 225, 235),
    "blue": (110, 150, 255),
    "pink": (255, 180, 225),
}
SHAPES = ("square", "circle", "diamond")
MOTIONS = ("moves right", "moves left")
MARKER_COLOR = (255, 0, 0)
IDS = tuple(range(1, 10))
SPLITS = {"train": 0, "val": 1, "warm": 2}  # part of every clip's seed, so the splits never share a clip
FRAME_PIXELS = (HEIGHT // MODEL_SCALE) * (WIDTH // MODEL_SCALE)
_GLYPHS = {  # 5 x 7 dots
    1: "00100 01100 00100 00100 00100 00100 01110",
    2: "01110 10001 00001 00110 01000 10000 11111",
    3: "01110 10001 00001 00110 00001 10001 01110",
    4: "00010 00110 01010 10010 11111 00010 00010",
    5: "11111 10000 11110 00001 00001 10001 01110",
    6: "01110 10000 11110 10001 10001 10001 01110",
    7: "11111 00001 00010 00100 01000 01000 01000",
    8: "01110 10001 10001 01110 10001 10001 01110",
    9: "01110 10001 10001 01111 00001 00001 01110",
}
_GLYPH_DOT = 7  # pixels per dot: digits are 35 x 49, about 9 x 12 in the model's input


@dataclass(frozen=True)
class Track:
    """One moving shape: its looks, and where its left edge is in every frame.

    `lefts` holds one integer x per frame of the clip, None where no pixel of the shape is inside. The shape counts as
    visible (at least half of its area inside) in frames `first` to `last`, both included and counted from 0.
    """

    object_id: int
    color: str
    shape: str
    motion: str
    top: int
    first: int
    last: int
    lefts: tuple[int | None, ...]

    @property
    def sentence(self) -> str:
        return f"the {self.color} {self.shape} {self.motion}"

    @property
    def start(self) -> float:
        """Seconds at which it becomes visible."""
        return self.first / SOURCE_FPS

    @property
    def end(self) -> float:
        """Seconds at which it stops being visible (the end of its last visible frame)."""
        return (self.last + 1) / SOURCE_FPS


@dataclass(frozen=True)
class ClipSpec:
    """Everything that determines a clip's pixels: the tracks, the one asked for, and two background colours.

    Where the event happens twice, the last track is the target's second passage, which no annotation mentions.
    """

    tracks: tuple[Track, ...]
    target: int
    background: tuple[tuple[int, int, int], tuple[int, int, int]]

    @property
    def target_track(self) -> Track:
        return self.tracks[self.target]

    @property
    def again(self) -> Track | None:
        """The second passage of the target."""
        last, target = self.tracks[-1], self.target_track
        return last if last is not target and last.object_id == target.object_id else None


def make_clip(
    seed: int,
    split: str,
    index: int,
    min_objects: int = 2,
    max_objects: int = MAX_OBJECTS,
    twice: bool = False,
) -> ClipSpec:
    """Draw clip `index` of a split; the same arguments always give the same clip, other arguments another one.

    Args:
        seed: of the whole set.
        split: one of `SPLITS`.
        index: number of the clip, from 0.
        min_objects: fewest shapes.
        max_objects: most shapes.
        twice: whether the target passes a second time, a second or more before or after the first.

    Raises:
        ValueError: an unknown split, a negative seed or index, or an object count outside 1 to MAX_OBJECTS.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed={seed}, index={index}")
    if not 1 <= min_objects <= max_objects <= MAX_OBJECTS:
        raise ValueError(f"need 1 <= min_objects <= max_objects <= {MAX_OBJECTS}, got {min_objects} and {max_objects}")
    rng = np.random.default_rng([seed, SPLITS[split], index])
    count = int(rng.integers(min_objects, max_objects + 1))
    colors = [str(c) for c in rng.permutation(list(COLORS))[:count]]
    ids = [int(i) for i in rng.permutation(IDS)[:count]]
    background = tuple(tuple(int(v) for v in rng.integers(15, 60, size=3)) for _ in range(2))
    while True:
        tracks = tuple(_draw_track(rng, object_id, color) for object_id, color in zip(ids, colors, strict=False))
        if any(_touch(a, b) for i, a in enumerate(tracks) for b in tracks[:i]):
            continue
        clip = ClipSpec(tracks, int(rng.integers(count)), background)
        if not twice:
            return clip
        if again := _draw_again(rng, clip):
            return replace(clip, tracks=(*tracks, again))


def render_frames(clip: ClipSpec, frame_indices: Sequence[int]) -> np.ndarray:
    """Draw the given frames (zero-based) of a clip: uint8 RGB of shape (len(frame_indices), HEIGHT, WIDTH, 3)."""
    top, bottom = (np.array(c, dtype=np.float64) for c in clip.background)
    ramp = np.linspace(0.0, 1.0, HEIGHT)[:, None]
    column = np.rint(top * (1 - ramp) + bottom * ramp).astype(np.uint8)[:, None, :]
    frames = np.empty((len(frame_indices), HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames[:] = np.repeat(column, WIDTH, axis=1)
    for track in clip.tracks:
        silhouette = _silhouette(track.shape)
        sprite = np.empty((SHAPE_SIZE, SHAPE_SIZE, 3), dtype=np.uint8)
        sprite[:] = COLORS[track.color]
        sprite[_marker(track.object_id)] = MARKER_COLOR
        for frame, index in zip(frames, frame_indices, strict=True):
            if (left := track.lefts[index]) is not None:
                x0, x1 = max(left, 0), min(left + SHAPE_SIZE, WIDTH)
                inside = silhouette[:, x0 - left : x1 - left]
                region = frame[track.top : track.top + SHAPE_SIZE, x0:x1]
                np.copyto(region, sprite[:, x0 - left : x1 - left], where=inside[..., None])
    return frames


def object_mask(track: Track, frame_index: int) -> np.ndarray | None:
    """Mask of one shape (marker included) in one frame: bool (HEIGHT, WIDTH), None where no pixel of it is inside."""
    left = track.lefts[frame_index]
    if left is None:
        return None
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    x0, x1 = max(left, 0), min(left + SHAPE_SIZE, WIDTH)
    mask[track.top : track.top + SHAPE_SIZE, x0:x1] = _silhouette(track.shape)[:, x0 - left : x1 - left]
    return mask


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box of a non-empty mask as (x, y, w, h) in pixels."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)


def write_video(path: Path, frames: np.ndarray) -> None:
    """Encode RGB frames (T, HEIGHT, WIDTH, 3) as H.264 in mp4; one version of the encoder always gives the same."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SOURCE_FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.time_base = Fraction(1, SOURCE_FPS)
        stream.options = {"preset": "superfast", "crf": "18", "threads": "1"}  # one thread, else bytes may vary
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def _draw_track(rng: np.random.Generator, object_id: int, color: str) -> Track:
    ticks = int(rng.integers(MIN_TICKS, MAX_TICKS + 1))
    tick = int(rng.integers(0, NUM_TICKS - ticks + 1))
    first, last = tick * FRAMES_PER_TICK, (tick + ticks) * FRAMES_PER_TICK - 1
    motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
    lane = int(rng.integers(NUM_LANES))
    lefts: list[int | None] = [None] * NUM_FRAMES
    span = WIDTH - SHAPE_SIZE
    enters, leaves = first > 0, last < NUM_FRAMES - 1
    start_x = 0 if enters else int(rng.integers(0, span // 3))  # a clip may begin with the shape on its way
    end_x = span if leaves else int(rng.integers(span - span // 3, span))
    for f, x in enumerate(np.linspace(start_x, end_x, last + 1 - first), start=first):
        lefts[f] = int(round(x))
    if enters:
        for back, inside in zip((2, 1), ENTER, strict=True):
            lefts[first - back] = inside - SHAPE_SIZE
    if leaves:
        for back, inside in zip((1, 0), LEAVE, strict=True):
            lefts[last - back] = WIDTH - inside
    if motion == "moves left":
        lefts = [None if x is None else span - x for x in lefts]
    return Track(
        object_id=object_id,
        color=color,
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        motion=motion,
        top=lane * LANE + (LANE - SHAPE_SIZE) // 2 + int(rng.integers(-4, 5)),
        first=first,
        last=last,
        lefts=tuple(lefts),
    )


def _draw_again(rng: np.random.Generator, clip: ClipSpec) -> Track | None:
    """A second passage of the target that fits into the clip; None if 50 draws give none."""
    target = clip.target_track
    gap = 2 * FRAMES_PER_TICK
    for _ in range(50):
        again = replace(_draw_track(rng, target.object_id, target.color), shape=target.shape)
        apart = again.first - target.last > gap or target.first - again.last > gap
        if apart and again.motion == target.motion and not any(_touch(again, track) for track in clip.tracks):
            return again
    return None


def _touch(a: Track, b: Track) -> bool:
    if abs(a.top - b.top) >= SHAPE_SIZE:
        return False
    pairs = zip(a.lefts, b.lefts, strict=True)
    return any(x is not None and y is not None and abs(x - y) < SHAPE_SIZE + LANE_GAP for x, y in pairs)


@lru_cache
def _silhouette(shape: str) -> np.ndarray:
    y, x = np.mgrid[:SHAPE_SIZE, :SHAPE_SIZE] - (SHAPE_SIZE - 1) / 2
    radius = SHAPE_SIZE / 2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= radius
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    return abs(x) + abs(y) <= radius


@lru_cache
def _marker(object_id: int) -> np.ndarray:
    dots = np.array([[int(d) for d in line] for line in _GLYPHS[object_id].split()])
    glyph = np.kron(dots, np.ones((_GLYPH_DOT, _GLYPH_DOT)))
    box = np.ones(_GLYPH_DOT) / _GLYPH_DOT  # a box blur and a threshold round the corners of the dots
    for axis in (0, 1):
        glyph = np.apply_along_axis(np.convolve, axis, glyph, box, mode="same")
    marker = np.zeros((SHAPE_SIZE, SHAPE_SIZE), dtype=bool)
    y, x = (SHAPE_SIZE - glyph.shape[0]) // 2, (SHAPE_SIZE - glyph.shape[1]) // 2
    marker[y : y + glyph.shape[0], x : x + glyph.shape[1]] = glyph > 0.45
    return marker
