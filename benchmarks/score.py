"""Scoring: seconds for benchmarks of full size, from files of rows and answers to the table with its intervals.

Each run is a process of its own. Counted are the processor seconds of its thread, without imports and without writing
the scores, and the memory that it takes beyond what its imports take. Videos, tubes and answers are made up; the sizes
are those of HC-STVG v1 test (1,160 tubes of 130 frames) and ActivityNet Captions val_2 (17,031 queries on 4,885
videos).
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

from benchmarks import Options, Row
from verl_stvg.data_builders.row_schema import ROW_SCHEMA
from verl_stvg.rows.answers import Answer, append
from verl_stvg.video.tracks import Track, Tracks, save, track_name

TUBES, QUERIES, VIDEOS = 1160, 17_031, 4_885
TRACKED = 116
FRAMES, FPS, SIZE = 130, 25.0, (640, 360)
OBJECTS = 4

_SCORE = """
import json, re, sys, time
from pathlib import Path
from verl_stvg.eval import score
from verl_stvg.rows import answers
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
before, begin = peak(), time.thread_time()
found = score.score_files([Path(sys.argv[1])], answers.read(Path(sys.argv[2])))
seconds = time.thread_time() - begin
print(json.dumps([seconds, peak() - before]))
"""


def cost(rows: Path, answers: Path) -> tuple[float, float]:
    """Processor seconds and megabytes of scoring a file of answers to a file of rows."""
    command = [sys.executable, "-c", _SCORE, str(rows), str(answers)]
    return tuple(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def row(dataset: str, split: str, recipe: str, key: str, video: str, duration: float, truth: dict, **info) -> dict:
    """A row as `verl-stvg build` writes it, as far as scoring reads it."""
    uid = f"{dataset}/{split}/{key}"
    entry = {"video": video, "tracks": info.pop("tracks", None)}
    start, end = truth["start"], truth["end"]
    return {
        "data_source": f"{recipe}/{dataset}",
        "prompt": [{"role": "user", "content": "When?<video>"}],
        "videos": [entry],
        "reward_model": {
            "style": "rule",
            "ground_truth": {"uid": uid, "duration": duration, "intervals": [[start, end]], **truth},
        },
        "extra_info": {"uid": uid, "dataset": dataset, "split": split, "query": "she waves", "duration": duration}
        | info,
    }


def write(folder: Path, rows: list[dict], texts: Iterable[str]) -> tuple[Path, Path]:
    """Write rows and answers; returns their files."""
    files = folder / "rows.parquet", folder / "predictions.jsonl"
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), files[0], compression="zstd")
    append(files[1], (Answer(one["extra_info"]["uid"], (text,)) for one, text in zip(rows, texts, strict=True)))
    return files


def queries(folder: Path, count: int, videos: int, seed: int) -> tuple[Path, Path]:
    """Write rows and answers of the size of ActivityNet Captions."""
    rng = random.Random(seed)
    durations = [rng.uniform(5, 240) for _ in range(videos)]
    rows, texts = [], []
    for k in range(count):
        duration = durations[k % videos]
        start, end = sorted(rng.uniform(0, duration) for _ in range(2))
        truth = {"start": start, "end": end}
        rows.append(row("activitynet", "test", "time_r1", str(k), f"v_{k % videos}.mp4", duration, truth))
        start, end = sorted(rng.uniform(0, duration) for _ in range(2))
        texts.append(f"<think>She begins to wave.</think>\n<answer>{start:.2f} to {end:.2f}</answer>")
    return write(folder, rows, texts)


def tubes(folder: Path, count: int, seed: int, tracked: bool) -> tuple[Path, Path]:
    """Write rows and answers of the size of HC-STVG: boxes, or IDs with a track file for each video."""
    rng = np.random.default_rng(seed)
    rows, texts = [], []
    for k in range(count):
        first = int(rng.integers(0, 300))
        left, top = rng.uniform(0, 400, FRAMES), rng.uniform(0, 150, FRAMES)
        boxes = np.stack([left, top, left + 120, top + 200], axis=1).round(1)
        truth = {"start": first / FPS, "end": (first + FRAMES) / FPS, "first_frame": first, "boxes": boxes.tolist()}
        video, shift = f"{k}.mp4", int(rng.integers(-20, 20))
        start, end = max(first + shift, 0) / FPS, (first + FRAMES + shift) / FPS
        info = {"source_fps": FPS, "num_frames": 500, "width": SIZE[0], "height": SIZE[1]}
        if tracked:
            save(_tracks(rng, first), folder / "tracks" / track_name(video))
            info["tracks"] = f"tracks/{track_name(video)}"
            text = f"Target ID: {rng.integers(1, OBJECTS + 1)}, Time range: {start:.2f} to {end:.2f}"
        else:
            answered = {str(max(first + shift, 0) + j): box for j, box in enumerate((boxes + 5).tolist())}
            text = json.dumps({"time": [start, end], "boxes": answered})
        recipe = "stvg_r1" if tracked else "stvg_boxes"
        rows.append(row("hc_stvg_v1", "test", recipe, video, video, 20.0, truth | {"object_id": 1}, **info))
        texts.append(f"<think>There she is.</think>\n<answer>{text}</answer>")
    return write(folder, rows, texts)


def _tracks(rng: np.random.Generator, first: int) -> Tracks:
    """Objects that move over 500 frames; one is not seen in some of those of the annotation."""
    found = []
    for number in range(1, OBJECTS + 1):
        left, top = rng.uniform(0, 400), rng.uniform(0, 150)
        boxes = np.array([[left + k * 0.2, top, 120, 200] for k in range(500)])
        encoded = coco.frPyObjects(boxes, SIZE[1], SIZE[0])
        gone = range(first + 40, first + 60) if number == 1 else ()
        masks = {
            k: {"size": [SIZE[1], SIZE[0]], "counts": one["counts"].decode()}
            for k, one in enumerate(encoded)
            if k not in gone
        }
        found.append(Track(number, "person", 0.9, masks))
    return Tracks(SIZE[1], SIZE[0], 500, FPS, tuple(found))


def measure(options: Options) -> Iterator[Row]:
    """Yield all rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many, boxes, ids = (folder / one for one in ("few", "many", "boxes", "ids"))
        for one in (few, many, boxes, ids):
            one.mkdir()
        files = queries(many, QUERIES, VIDEOS, options.seed)
        seconds, used = min(cost(*files) for _ in range(3))
        yield Row(f"s, {QUERIES:,} queries like ActivityNet", seconds, goal="< 1", met=seconds < 1)
        _, less = cost(*queries(few, QUERIES // 10, VIDEOS // 10, options.seed))
        yield Row(f"MB for {QUERIES:,} queries, beside {QUERIES // 10:,}", used, less, used / max(less, 1e-9))
        files = tubes(boxes, TUBES, options.seed, tracked=False)
        seconds, used = min(cost(*files) for _ in range(3))
        yield Row(f"s, {TUBES:,} tubes like HC-STVG, answered boxes", seconds, goal="< 2", met=seconds < 2)
        yield Row(f"MB for {TUBES:,} tubes", used)
        seconds, _ = cost(*tubes(ids, TRACKED, options.seed, tracked=True))
        yield Row(f"s, {TRACKED} tubes, answered IDs and track files of {OBJECTS} objects, baselines by ID", seconds)
