"""Synthetic grounding clips, so that training can be tried, tested and understood without downloading a data set.

A clip is eight seconds of video in which two to four coloured shapes enter, cross the frame and leave. Each carries its
ID as a red number at its centre, the marker style of STVG-R1, and a sentence describes one of them. Everything that can
be known about a clip (masks, boxes, visible spans) is written beside the video.

The world is kept small on purpose. Frames are four times the size of a tiny model's input, entrances and exits fall
between two frames of the 2 fps grid on which the model looks, and no two shapes of a clip share a colour or touch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask
from tqdm import tqdm

from verl_stvg.base.lock import finished, whole

FORMAT_VERSION = 5  # raise it whenever the same arguments would give other files

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
COMMON_COLORS = 3  # the first of them are common words of a tiny model's supervised pass, the others are rare
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
class Task:
    """What is asked about a clip, in the contract of one paper but in few words.

    Attributes:
        data_source: of the rows; selects the reward.
        instruction: the user's words around ``{query}``.
        answer: what stands in the answer's tags, with ``{id}``, ``{start}`` and ``{end}``.
        ability: of the rows.
    """

    data_source: str
    instruction: str
    answer: str
    ability: str = "temporal grounding"

    def prompt(self, query: str) -> str:
        """The user's words about a sentence, without the video."""
        return self.instruction.replace("{query}", query)

    def completion(self, object_id: int, start: float, end: float, thought: str) -> str:
        """The canonical completion: a thought, then the answer, seconds with two decimals."""
        answer = self.answer.replace("{id}", str(object_id))
        answer = answer.replace("{start}", f"{start:.2f}").replace("{end}", f"{end:.2f}")
        return f"<think>{thought}</think>\n<answer>{answer}</answer>"


_WHEN = 'Find when this happens: "{query}". Format: <think> </think> <answer>'
TASKS = {
    "stvg_r1": Task(
        "verl_stvg/synthetic",
        'Each object\'s red number is its ID. Find when this happens, and the ID: "{query}". '
        "Format: <think> </think> <answer>Target ID: id, Time range: start to end</answer>",
        "Target ID: {id}, Time range: {start} to {end}",
        "spatio-temporal grounding",
    ),
    "temporal_r1": Task(
        "temporal_r1/synthetic",
        _WHEN + '{"start_time": "start", "end_time": "end"}</answer>',
        '{"start_time": "{start}", "end_time": "{end}"}',
    ),
    "time_r1": Task("time_r1/synthetic", _WHEN + "start to end</answer>", "{start} to {end}"),
    "videotg_r1": Task("videotg_r1/synthetic", _WHEN + "start to end</answer>", "{start} to {end}"),
}
"""By paper. The text comes before the video: a model of four causal layers must know what it looks for."""


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

    With `twice` the target passes a second time, a second or more before or after the first.

    Raises ValueError for an unknown split, a negative seed or index, or an object count outside 1 to MAX_OBJECTS.
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


def build(
    out_dir: str | os.PathLike,
    num_train: int,
    num_val: int,
    seed: int,
    min_objects: int = 2,
    max_objects: int = MAX_OBJECTS,
    task: str = "stvg_r1",
    twice: float = 0.0,
    progress: bool = True,
) -> Path:
    """Write a whole data set and return its folder; an identical, complete one that is already there is kept.

    `task` is one of `TASKS`. In a share `twice` of the training clips the event happens twice and one of the two
    passages is annotated; `extra_info.again` has the other.

    Files: `videos/<split>_<k>.mp4`, `tracks/<split>_<k>.json` (masks as COCO RLE, boxes xyxy, of every shape),
    `annotations_<split>.json` (keys as in HC-STVG v2, STVG-R1 section 5.2, plus `target_id`), `<split>.parquet`
    (verl's rows) and `dataset.json` (the arguments). The folder appears only when all of it is written.

    Raises ValueError for impossible arguments and for a folder that holds anything else or is damaged.
    """
    counts = {"train": num_train, "val": num_val}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"num_{split} must be at least 1, got {count}")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: use one of {', '.join(TASKS)}")
    if not 0 <= twice <= 1:
        raise ValueError(f"twice is a share between 0 and 1, got {twice}")
    make_clip(seed, "train", 0, min_objects, max_objects)  # checks the other arguments
    out_dir = Path(out_dir)
    manifest = {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "counts": counts,
        "min_objects": min_objects,
        "max_objects": max_objects,
        "task": task,
        "twice": twice,
    }
    if finished(out_dir):
        _check_existing(out_dir, manifest)
        return out_dir

    with whole(out_dir, wait=True) as work:
        if out_dir.exists():  # another process has just finished it
            _check_existing(out_dir, manifest)
            return out_dir
        (work / "videos").mkdir()
        (work / "tracks").mkdir()
        with (
            tqdm(total=num_train + num_val, desc="synthetic clips", unit="clip", disable=not progress) as bar,
            ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
        ):
            for split, count in counts.items():
                second = [split == "train" and _share(seed, k) < twice for k in range(count)]
                clips = [make_clip(seed, split, k, min_objects, max_objects, second[k]) for k in range(count)]
                for _ in pool.map(lambda job: _write_clip(work, *job), ((split, k, c) for k, c in enumerate(clips))):
                    bar.update()
                annotations = {f"{split}_{k:05d}.mp4": annotation(clip) for k, clip in enumerate(clips)}
                _write_json(work / f"annotations_{split}.json", annotations)
                rows = [row(clip, seed, split, k, task) for k, clip in enumerate(clips)]
                pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), work / f"{split}.parquet")
        _write_json(work / "dataset.json", manifest)
    return out_dir


def annotation(clip: ClipSpec) -> dict:
    """HC-STVG-like record of a clip: boxes xywh per visible frame, `st_frame` counted from 1, times in seconds."""
    track = clip.target_track
    return {
        "bbox": [list(mask_box(object_mask(track, f))) for f in range(track.first, track.last + 1)],
        "st_frame": track.first + 1,
        "st_time": track.start,
        "ed_time": track.end,
        "img_num": NUM_FRAMES,
        "img_size": [HEIGHT, WIDTH],
        "English": track.sentence,
        "target_id": track.object_id,
    }


def row(clip: ClipSpec, seed: int, split: str, index: int, task: str = "stvg_r1") -> dict:
    """verl's row of a clip; the video path is relative to the parquet file."""
    track, asked = clip.target_track, TASKS[task]
    stem = f"{split}_{index:05d}"
    uid = f"synthetic-{seed}-{stem}"
    common = track.color in tuple(COLORS)[:COMMON_COLORS]
    video = {"video": f"videos/{stem}.mp4", "fps": float(GRID_FPS)}
    return {
        "data_source": asked.data_source,
        "prompt": [{"role": "user", "content": asked.prompt(track.sentence) + "<video>"}],
        "videos": [video | {"min_pixels": FRAME_PIXELS, "max_pixels": FRAME_PIXELS}],
        "ability": asked.ability,
        "reward_model": {
            "style": "rule",
            "ground_truth": {
                "object_id": track.object_id,
                "start": track.start,
                "end": track.end,
                "duration": DURATION,
                "uid": uid,  # verl's dumps of answers carry the ground truth and nothing else of the row
            },
        },
        "extra_info": {
            "uid": uid,
            "split": split,
            "index": index,
            "query": track.sentence,
            "duration": DURATION,
            "num_frames": NUM_FRAMES,
            "source_fps": float(SOURCE_FPS),
            "width": WIDTH,
            "height": HEIGHT,
            "constant_rate": True,
            "again": [clip.again.start, clip.again.end] if clip.again else None,
            "annotated": json.dumps({"words": "common" if common else "rare"}),
        },
    }


ROW_SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "videos": pa.list_(
            pa.struct({"video": pa.string(), "fps": pa.float64(), "min_pixels": pa.int64(), "max_pixels": pa.int64()})
        ),
        "ability": pa.string(),
        "reward_model": pa.struct(
            {
                "style": pa.string(),
                "ground_truth": pa.struct(
                    {
                        "object_id": pa.int64(),
                        "start": pa.float64(),
                        "end": pa.float64(),
                        "duration": pa.float64(),
                        "uid": pa.string(),
                    }
                ),
            }
        ),
        "extra_info": pa.struct(
            {
                "uid": pa.string(),
                "split": pa.string(),
                "index": pa.int64(),
                "query": pa.string(),
                "duration": pa.float64(),
                "num_frames": pa.int64(),
                "source_fps": pa.float64(),
                "width": pa.int64(),
                "height": pa.int64(),
                "constant_rate": pa.bool_(),
                "again": pa.list_(pa.float64()),
                "annotated": pa.string(),
            }
        ),
    }
)


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


def _share(seed: int, index: int) -> float:
    """A number in [0, 1) of a training clip: which shares of the set it belongs to."""
    return float(np.random.default_rng([seed, SPLITS["train"], index, 1]).random())


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


def _write_clip(folder: Path, split: str, index: int, clip: ClipSpec) -> None:
    stem = f"{split}_{index:05d}"
    write_video(folder / "videos" / f"{stem}.mp4", render_frames(clip, range(NUM_FRAMES)))
    _write_json(folder / "tracks" / f"{stem}.json", _tracks_record(clip, f"{stem}.mp4"))


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


def _tracks_record(clip: ClipSpec, video: str) -> dict:
    objects = []
    for track in clip.tracks:
        frames = [f for f, left in enumerate(track.lefts) if left is not None]
        masks = [object_mask(track, f) for f in frames]
        boxes = [mask_box(m) for m in masks]
        encoded = [coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for m in masks]
        record = {k: v for k, v in asdict(track).items() if k not in ("lefts", "top", "first", "last")}
        objects.append(
            record
            | {
                "sentence": track.sentence,
                "visible_frames": [track.first, track.last],
                "frames": frames,
                "boxes_xyxy": [[x, y, x + w, y + h] for x, y, w, h in boxes],
                "masks": [{"size": m["size"], "counts": m["counts"].decode("ascii")} for m in encoded],
            }
        )
    return {
        "video": video,
        "fps": SOURCE_FPS,
        "num_frames": NUM_FRAMES,
        "size": [HEIGHT, WIDTH],
        "target_id": clip.target_track.object_id,
        "objects": objects,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


def _check_existing(out_dir: Path, manifest: dict) -> None:
    remedy = "Remove it, or choose another folder."
    if not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file, not a folder. {remedy}")
    path = out_dir / "dataset.json"
    if not path.is_file():
        raise ValueError(f"{out_dir} exists but is no complete synthetic data set (no dataset.json). {remedy}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{out_dir} is damaged: dataset.json cannot be read ({error}). {remedy}") from error
    if found != manifest:
        raise ValueError(f"{out_dir} holds a data set made with other arguments ({found}, asked {manifest}). {remedy}")
    needed = [
        out_dir / f"{name}.{ext}"
        for s in manifest["counts"]
        for name, ext in ((f"annotations_{s}", "json"), (s, "parquet"))
    ]
    for split, count in manifest["counts"].items():
        for k in range(count):
            needed += [out_dir / "videos" / f"{split}_{k:05d}.mp4", out_dir / "tracks" / f"{split}_{k:05d}.json"]
    for file in needed:
        if not file.is_file() or file.stat().st_size == 0:
            raise ValueError(f"{out_dir} is damaged: {file.relative_to(out_dir)} is missing or empty. {remedy}")
