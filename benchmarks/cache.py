"""The frame cache: what a hit costs beside decoding, disk space beside float32 frames per query, decodes per plan.

The set is made up after Charades-STA's training split: its numbers of queries and videos, half a minute each, and the
pixel budget that Time-R1 trains with. Plans are computed for every video; entries are made for a few and tell what a
file holds beyond its pixels. Files lie in the page cache: a disk that has to be read adds its own time.
"""

import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

from benchmarks import Options, Row
from verl_stvg.video.decode import probe, read_frames
from verl_stvg.video.plan import SamplingPlan, plan_video
from verl_stvg.video.store import FrameStore

QUERIES, VIDEOS = 12_408, 5_338
SECONDS, SPREAD, SHORTEST = 30.6, 5.0, 6.0  # of a video: mean, standard deviation, least
SOURCE_FPS, WIDTH, HEIGHT = 30.0, 480, 360
PIXELS = 3584 * 28 * 28  # of a whole video, in the sense of plan_video's total_pixels
SAMPLE = 4
_FILE_BYTES = 16 * 2**20
_LONG_AGO = 1_000_000_000  # a video that was changed just now is hashed again at every hit


def plan_of_seconds(seconds: float) -> SamplingPlan:
    """Return the plan of a video of the set."""
    frames = round(seconds * SOURCE_FPS)
    return plan_video(frames, SOURCE_FPS, WIDTH, HEIGHT, min_pixels=16 * 28 * 28, total_pixels=PIXELS)


def write_video(path: Path, seconds: float, seed: int, size: int = 0) -> Path:
    """Write a drifting picture with the set's rate and size, filled up to `size` bytes with an mp4 box of nothing."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((20, 20, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=int(SOURCE_FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for k in range(round(seconds * SOURCE_FPS)):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * k, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    missing = size - path.stat().st_size
    if missing > 8:
        with path.open("ab") as file:
            file.write(missing.to_bytes(4, "big") + b"free" + rng.bytes(missing - 8))
    os.utime(path, (_LONG_AGO, _LONG_AGO))
    return path


_COLD = """
import json, sys, time
from benchmarks import cache
from verl_stvg.video.cache import FrameCache
plan = cache.plan_of_seconds(cache.SECONDS)
frames = FrameCache(sys.argv[1])
begin = time.thread_time()
frames.get(sys.argv[2], plan, None)
print(json.dumps(1e3 * (time.thread_time() - begin)))
"""


def hits(options: Options, rounds: int = 5) -> Iterator[Row]:
    """Yield milliseconds of a hit in a process that knows neither video nor entry, and in one that does."""
    plan = plan_of_seconds(SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder, "video.mp4"), SECONDS, options.seed, _FILE_BYTES)
        store = FrameStore(str(Path(folder, "cache")))
        pixels = store.frames(video, plan).nbytes
        cold = warm = decoding = math.inf
        for _ in range(rounds):
            command = [sys.executable, "-c", _COLD, store.folder, video]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            cold = min(cold, json.loads(answer))
            begin = time.thread_time()
            store.frames(video, plan)
            warm = min(warm, 1e3 * (time.thread_time() - begin))
        for _ in range(2):
            begin = time.process_time()
            read_frames(video, plan)
            decoding = min(decoding, 1e3 * (time.process_time() - begin))
    what = f"{video.name} of {_FILE_BYTES / 1e6:.1f} MB, frames of {pixels / 1e6:.1f} MB"
    for name, took in (("new process, checksum read", cold), ("same process", warm)):
        yield Row(f"ms of a hit vs decoding, {what}, {name}", took, decoding, decoding / took, "<= 5", took <= 5.0)


def space(options: Options) -> Iterator[Row]:
    """Yield gigabytes of the whole set: one entry per video and plan, beside float32 frames per query."""
    rng = random.Random(options.seed)
    lengths = [max(SHORTEST, rng.gauss(SECONDS, SPREAD)) for _ in range(VIDEOS)]
    plans = [plan_of_seconds(seconds) for seconds in lengths]
    pixels = [plan.num_frames * plan.height * plan.width * 3 for plan in plans]
    per_query = [pixels[k % VIDEOS] for k in range(QUERIES)]
    with tempfile.TemporaryDirectory() as folder:
        store, beyond = FrameStore(str(Path(folder, "cache"))), 0
        for k in range(SAMPLE):
            video, before = write_video(Path(folder, f"{k}.mp4"), lengths[k], k), store.cache.stats().bytes
            store.frames(video, plans[k])
            beyond = max(beyond, store.cache.stats().bytes - before - pixels[k])
    ours, other = sum(pixels) + VIDEOS * beyond, 4 * sum(per_query)
    name = f"GB, {QUERIES:,} queries on {VIDEOS:,} videos, vs float32 per query ({beyond:,} bytes of header per entry)"
    yield Row(name, ours / 1e9, other / 1e9, other / ours, ">= 9x smaller", other >= 9 * ours)


def _read_queries(folder: Path, queries: list[Path]) -> int:
    store = FrameStore(str(folder))
    for video in queries:
        info = probe(video)
        plan = plan_video(info.num_frames, info.fps, info.width, info.height, min_pixels=784, max_pixels=28 * 784)
        store.frames(video, plan)
    return store.cache.decodes


def decodes(options: Options, processes: int = 3, videos: int = 4, queries: int = 3) -> Iterator[Row]:
    """Yield decodes per video and plan of processes that ask for every video several times, all at once."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_video(Path(folder, f"{k}.mp4"), 4.0, k) for k in range(videos)]
        orders = [rng.sample(paths * queries, videos * queries) for _ in range(processes)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            total = sum(pool.starmap(_read_queries, [(Path(folder, "cache"), order) for order in orders], chunksize=1))
    asked = processes * videos * queries
    name = f"decodes per video and plan, {asked} requests by {processes} processes, vs no cache"
    yield Row(name, total / videos, asked / videos, asked / total, "exactly 1", total == videos)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows: hits, space, decodes."""
    for part in (hits, space, decodes):
        yield from part(options)
