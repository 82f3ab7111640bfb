"""Synthetic grounding clips, so that training can be tried, tested and understood without downloading a data set.

A clip is eight seconds of video in which two to four coloured shapes enter, cross the frame and leave. Each carries its
ID as a red number at its centre, the marker style of STVG-R1, and a sentence describes one of them. Everything that can
be known about a clip (masks, boxes, visible spans) is written beside the video.

`verl_stvg.data_builders.sets.synthetic_world` draws the clips; here they become a data set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from verl_stvg.base.lock import finished, whole
from verl_stvg.data_builders.sets.synthetic_world import (
    COLORS,
    DURATION,
    FRAME_PIXELS,
    FRAMES_PER_TICK,
    GRID_FPS,
    HEIGHT,
    IDS,
    MARKER_COLOR,
    MAX_OBJECTS,
    MODEL_SCALE,
    MOTIONS,
    NUM_FRAMES,
    NUM_TICKS,
    SHAPE_SIZE,
    SHAPES,
    SOURCE_FPS,
    SPLITS,
    WIDTH,
    ClipSpec,
    Track,
    make_clip,
    mask_box,
    object_mask,
    render_frames,
    write_video,
)
from verl_stvg.video.rle import encode

__all__ = [
    "COLORS",
    "COMMON_COLORS",
    "DURATION",
    "FRAMES_PER_TICK",
    "FRAME_PIXELS",
    "GRID_FPS",
    "HEIGHT",
    "IDS",
    "MARKER_COLOR",
    "MAX_OBJECTS",
    "MODEL_SCALE",
    "MOTIONS",
    "NUM_FRAMES",
    "NUM_TICKS",
    "ROW_SCHEMA",
    "SHAPES",
    "SHAPE_SIZE",
    "SOURCE_FPS",
    "SPLITS",
    "TASKS",
    "WIDTH",
    "ClipSpec",
    "Task",
    "Track",
    "annotation",
    "build",
    "make_clip",
    "mask_box",
    "object_mask",
    "render_frames",
    "row",
    "write_video",
]

FORMAT_VERSION = 5  # raise it whenever the same arguments would give other files
COMMON_COLORS = 3  # the first of them are common words of a tiny model's supervised pass, the others are rare


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
        """The canonical completion: a thought, then the answer, seconds with two decimals.

        Args:
            object_id: of the target; left out where the task asks for a time only.
            start: seconds.
            end: seconds.
            thought: text between the thinking tags.
        """
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

    Files: `videos/<split>_<k>.mp4`, `tracks/<split>_<k>.json` (masks as COCO RLE, boxes xyxy, of every shape),
    `annotations_<split>.json` (keys as in HC-STVG v2, STVG-R1 section 5.2, plus `target_id`), `<split>.parquet`
    (verl's rows) and `dataset.json` (the arguments). The folder appears only when all of it is written.

    Args:
        out_dir: the folder.
        num_train: clips of the training split.
        num_val: clips of the held-out split.
        seed: of all clips.
        min_objects: fewest shapes of a clip.
        max_objects: most shapes of a clip.
        task: one of `TASKS`.
        twice: share of the training clips whose event happens twice; one of the two passages is annotated, and
            `extra_info.again` has the other.
        progress: whether a bar is shown.

    Raises:
        ValueError: impossible arguments, or a folder that holds anything else or is damaged.
    """
    out_dir = Path(out_dir)
    counts = {"train": num_train, "val": num_val}
    manifest = {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "counts": counts,
        "min_objects": min_objects,
        "max_objects": max_objects,
        "task": task,
        "twice": twice,
    }
    _check_arguments(manifest)
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


def _check_arguments(manifest: Mapping[str, Any]) -> None:
    for split, count in manifest["counts"].items():
        if count < 1:
            raise ValueError(f"num_{split} must be at least 1, got {count}")
    if manifest["task"] not in TASKS:
        raise ValueError(f"unknown task {manifest['task']!r}: use one of {', '.join(TASKS)}")
    if not 0 <= manifest["twice"] <= 1:
        raise ValueError(f"twice is a share between 0 and 1, got {manifest['twice']}")
    make_clip(manifest["seed"], "train", 0, manifest["min_objects"], manifest["max_objects"])  # checks the others


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
    """verl's row of a clip; the video path is relative to the parquet file.

    Args:
        clip: what is shown.
        seed: of the set, part of the uid.
        split: of the set.
        index: number of the clip in its split.
        task: one of `TASKS`.
    """
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


def _share(seed: int, index: int) -> float:
    """A number in [0, 1) of a training clip: which shares of the set it belongs to."""
    return float(np.random.default_rng([seed, SPLITS["train"], index, 1]).random())


def _write_clip(folder: Path, split: str, index: int, clip: ClipSpec) -> None:
    stem = f"{split}_{index:05d}"
    write_video(folder / "videos" / f"{stem}.mp4", render_frames(clip, range(NUM_FRAMES)))
    _write_json(folder / "tracks" / f"{stem}.json", _tracks_record(clip, f"{stem}.mp4"))


def _tracks_record(clip: ClipSpec, video: str) -> dict:
    objects = []
    for track in clip.tracks:
        frames = [f for f, left in enumerate(track.lefts) if left is not None]
        masks = [object_mask(track, f) for f in frames]
        boxes = [mask_box(m) for m in masks]
        record = {k: v for k, v in asdict(track).items() if k not in ("lefts", "top", "first", "last")}
        objects.append(
            record
            | {
                "sentence": track.sentence,
                "visible_frames": [track.first, track.last],
                "frames": frames,
                "boxes_xyxy": [[x, y, x + w, y + h] for x, y, w, h in boxes],
                "masks": list(map(encode, masks)),
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
