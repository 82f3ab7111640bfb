"""Decoding: processor seconds for the frames of a plan beside raw ffmpeg, decord and torchcodec, one thread each.

Raw ffmpeg is the program, decoding every frame and throwing it away: no frame is converted, scaled or copied, which is
less than anybody needs. A second row has it deliver as many frames of the same size. What it takes to start is not
counted, as imports are not on our side. The program is looked for on the path and in `imageio-ffmpeg`; where there is
none, the same library decodes every frame through PyAV instead, and the row says so.

Clips are made on the spot: H.264 with B-frames at 30 fps, a textured picture that pans under a little noise, so that
packets have the size of real ones.
"""

import importlib.util
import math
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np

from benchmarks import Options, Row
from verl_stvg.video.child import Decoder
from verl_stvg.video.decode import probe, read_frames
from verl_stvg.video.plan import SamplingPlan, plan_video

CLIPS = {"480x360, 30 s": (480, 360, 30), "1280x720, 20 s": (1280, 720, 20)}
SOURCE_FPS = 30
PIXELS = 3584 * 28 * 28  # of a whole video: Time-R1's budget
ROUNDS = 3
GOAL = 1.3


def write_clip(path: Path, width: int, height: int, seconds: int, seed: int = 0) -> None:
    """Write a clip with x264's defaults."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = picture.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    noise = rng.integers(0, 12, (height, 2 * width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SOURCE_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(seconds * SOURCE_FPS):
            at = int(rng.integers(width))
            image = np.roll(picture, 3 * k, axis=1) // 2 + noise[:, at : at + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def plan_of(path: Path) -> SamplingPlan:
    """Return the plan of a clip: 2 fps, as for training."""
    info = probe(path)
    return plan_video(info.num_frames, info.fps, info.width, info.height, min_pixels=16 * 28 * 28, total_pixels=PIXELS)


def ffmpeg_program() -> str | None:
    """Return the path of an ffmpeg program, None if there is none."""
    if program := shutil.which("ffmpeg"):
        return program
    if importlib.util.find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    return None


def own_seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds that this process spends on something."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def child_seconds(command: list[str]) -> float:
    """Return the processor seconds of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def best(works: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the least of what each gives in several rounds, taken in turn."""
    least = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            least[name] = min(least[name], work())
    return least


def decode_every_frame(path: Path) -> None:
    """Decode as ffmpeg does, through PyAV, and throw the frames away."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


def against(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of one clip."""
    plan, program = plan_of(path), ffmpeg_program()
    works = {"ours": lambda: own_seconds(lambda: read_frames(path, plan, threads=1))}
    labels = {}
    if program:
        start = [program, "-nostdin", "-v", "error", "-threads", "1", "-filter_threads", "1"]
        filters = f"fps={plan.fps:g},scale={plan.width}:{plan.height}:flags=area,format=rgb24"
        works["start"] = lambda: child_seconds([*start, "-version"])
        works["raw"] = lambda: child_seconds([*start, "-i", str(path), "-an", "-f", "null", "-"])
        works["same"] = lambda: child_seconds([*start, "-i", str(path), "-an", "-vf", filters, "-f", "rawvideo", "-"])
        labels = {"raw": "ffmpeg decoding every frame, no output", "same": "ffmpeg giving as many frames of this size"}
    else:
        works["raw"] = lambda: own_seconds(lambda: decode_every_frame(path))
        labels = {
            "raw": "its library decoding every frame through PyAV (no ffmpeg program: pip install imageio-ffmpeg)"
        }
    for decoder in ("decord", "torchcodec"):
        if importlib.util.find_spec(decoder):
            works[decoder] = lambda decoder=decoder: own_seconds(
                lambda: read_frames(path, plan, decoder=decoder, threads=1)
            )
            labels[decoder] = f"read_frames with decoder={decoder}"
    took = best(works)
    what = f"{plan.num_frames} frames of {plan.width}x{plan.height} from {name}"
    for key, label in labels.items():
        other = took[key] - (took["start"] if key in ("raw", "same") and program else 0.0)
        ratio = took["ours"] / other
        goal = f"ours <= {GOAL}x" if key == "raw" else ""
        yield Row(f"s, {what}, vs {label}", took["ours"], other, ratio, goal, ratio <= GOAL if goal else None)


def safety(path: Path, name: str) -> Iterator[Row]:
    """Yield what the child process adds to a clip, in seconds on the wall clock, which a busy machine stretches."""
    plan = plan_of(path)

    def wall(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    with Decoder(threads=1) as decoder, tempfile.TemporaryDirectory() as folder:
        decoder.probe(path)
        out = Path(folder, "frames")
        took = best(
            {
                "child": lambda: wall(lambda: decoder.read_into(path, plan, out)),
                "here": lambda: wall(lambda: read_frames(path, plan, threads=1)),
            }
        )
    ratio = took["child"] / took["here"]
    yield Row(f"s of wall time in a child with a time limit, {name}, vs in this process", *took.values(), ratio)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows: each clip against the other decoders, then the child process."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (width, height, seconds)) in enumerate(CLIPS.items()):
            path = Path(folder, f"{number}.mp4")
            write_clip(path, width, height, seconds, options.seed)
            yield from against(path, name)
            yield from safety(path, name)
