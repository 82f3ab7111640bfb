"""Hundreds of damaged files and decoders that hang, crash or raise: nothing worse than an error with a reason.

Files are made from small real ones, seeded. What is usable must be right: the frames of the whole file, or for at most
half a second the one before. What is not must be in the manifest.
"""

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_stvg.rows import cache_fill
from verl_stvg.video.cache import CacheError
from verl_stvg.video.child import Decoder
from verl_stvg.video.decode import HOLD_SECONDS, DecoderError, VideoError, needed_frames, probe, read_frames
from verl_stvg.video.plan import SamplingPlan, plan_video
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.store import FrameStore

SIZE, FRAMES, RATE, GOP = 84, 60, 20, 10
SPAN = (1.0, 1.4)  # seconds that a row is about
LIMIT = 10.0  # seconds per file
BUSY = 10  # a busy machine may take so many times as long to look, to kill, and to start again
CLEAN = 2.0  # mean difference of grey levels up to which frames count as equal: none in fact
UNSEEN = 0.05  # share of frames that may be wrong in files with flipped or zeroed bytes, because no decoder noticed


def draw(index: int) -> np.ndarray:
    """A picture with detail everywhere that differs from that of any other index."""
    coarse = np.random.default_rng(0).integers(0, 255, (2 * SIZE // 6, 2 * SIZE // 6, 3), dtype=np.uint8)
    picture = coarse.repeat(6, axis=0).repeat(6, axis=1)
    return np.ascontiguousarray(np.roll(picture, (index, 2 * index), (0, 1))[:SIZE, :SIZE])


def write_video(path: Path, stamps=None, frames: int = FRAMES, sound: bool = False, **options) -> Path:
    """An H.264 file with B-frames and a keyframe every half second; `stamps` are milliseconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(GOP), "crf": "20", "threads": "1"}
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        speech = container.add_stream("aac", rate=16000) if sound else None
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(k), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = int(stamps[k]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
            if speech and k % 2:
                noise = np.random.default_rng(k).normal(0, 0.1, (1, 1600)).astype(np.float32)
                samples = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
                samples.sample_rate = 16000
                container.mux(speech.encode(samples))
        container.mux(stream.encode())
        if speech:
            container.mux(speech.encode())
    return path


@dataclass(frozen=True)
class Whole:
    """An undamaged file, its plan, the plan's frames, all frames and when they are presented (seconds)."""

    path: Path
    plan: SamplingPlan
    frames: np.ndarray
    every: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, path: Path) -> "Whole":
        info = probe(path)
        budget = {"fps": 4.0, "min_pixels": SIZE * SIZE, "max_pixels": SIZE * SIZE}
        plan = plan_video(info.num_frames, info.fps, info.width, info.height, **budget)
        with av.open(str(path)) as container:
            every = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)]
        images, times = map(np.stack, zip(*every, strict=True))
        return cls(path, plan, read_frames(path, plan), images, times - times[0])


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> dict[str, Whole]:
    folder = tmp_path_factory.mktemp("whole")
    uneven = np.cumsum(np.random.default_rng(1).integers(10, 90, FRAMES))
    files = {
        "faststart": write_video(folder / "faststart.mp4", movflags="faststart"),
        "tail": write_video(folder / "tail.mp4"),
        "uneven": write_video(folder / "uneven.mp4", uneven, movflags="faststart"),
        "sound": write_video(folder / "sound.mp4", sound=True, movflags="faststart"),
        "fragments": write_video(folder / "fragments.mp4", movflags="frag_keyframe+empty_moov"),
        "matroska": write_video(folder / "matroska.mkv"),
    }
    return {name: Whole.of(path) for name, path in files.items()}


@dataclass(frozen=True)
class Case:
    """A damaged file: what was done to which, its bytes, its name's ending."""

    kind: str
    base: str
    data: bytes
    suffix: str = ".mp4"


def payload(data: bytes) -> tuple[int, int]:
    """First and last byte of an mp4's pictures."""
    start = data.index(b"mdat") + 4
    return start, start - 8 + int.from_bytes(data[start - 8 : start - 4], "big")


def header(data: bytes) -> tuple[int, int]:
    """First and last byte of an mp4's moov box."""
    start = data.index(b"moov") - 4
    return start, start + int.from_bytes(data[start : start + 4], "big")


def edited(data: bytes, box: bytes, offset: int, value: int, size: int = 4) -> bytes:
    """The first box of that name with another number at an offset behind its name."""
    at = data.index(box) + 4 + offset
    return data[:at] + value.to_bytes(size, "big") + data[at + size :]


# field of the header -> box, bytes behind its name
FIELDS = {
    "mvhd duration": (b"mvhd", 16),
    "mvhd time scale": (b"mvhd", 12),
    "tkhd duration": (b"tkhd", 20),
    "tkhd width": (b"tkhd", 76),
    "mdhd duration": (b"mdhd", 16),
    "mdhd time scale": (b"mdhd", 12),
    "stsz count": (b"stsz", 8),
    "stsz first size": (b"stsz", 12),
    "stsz tenth size": (b"stsz", 12 + 4 * 9),
    "stts entries": (b"stts", 4),
    "stts count": (b"stts", 8),
    "stts delta": (b"stts", 12),
    "ctts entries": (b"ctts", 4),
    "ctts count": (b"ctts", 8),
    "ctts offset": (b"ctts", 12),
    "stsc entries": (b"stsc", 4),
    "stsc per chunk": (b"stsc", 12),
    "stco entries": (b"stco", 4),
    "stco offset": (b"stco", 8),
    "stss entries": (b"stss", 4),
    "stss first": (b"stss", 8),
    "elst start": (b"elst", 12),
    "elst duration": (b"elst", 8),
}
VALUES = (0, 1, 7, 1000, 2**31 - 1, 2**32 - 1)


def damaged(wholes: dict[str, Whole], seed: int = 0) -> list[Case]:
    """Every damaged file, always the same ones."""
    rng = random.Random(seed)
    raw = {name: whole.path.read_bytes() for name, whole in wholes.items()}
    cases = [Case("unharmed", name, data, wholes[name].path.suffix) for name, data in raw.items()]
    for name, count in (("faststart", 40), ("uneven", 20), ("sound", 20), ("tail", 10), ("fragments", 20)):
        cases += [Case("truncated", name, raw[name][: len(raw[name]) * k // count]) for k in range(1, count)]
    for _ in range(140):
        name = rng.choice(["faststart", "tail", "uneven", "sound"])
        data = bytearray(raw[name])
        start, end = payload(raw[name])
        for _ in range(rng.choice([1, 3, 10, 40])):
            data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        cases.append(Case("flipped", name, bytes(data)))
    for _ in range(100):
        name = rng.choice(["faststart", "tail", "uneven", "sound"])
        start, end = payload(raw[name])
        length = rng.choice([16, 300, 4000])
        at = rng.randrange(start, max(start + 1, end - length))
        data = raw[name][:at] + bytes(min(length, end - at)) + raw[name][min(end, at + length) :]
        cases.append(Case("zeroed", name, data))
    for _ in range(120):
        name = rng.choice(["faststart", "tail", "uneven", "sound"])
        data = bytearray(raw[name])
        start, end = header(raw[name])
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        cases.append(Case("header flipped", name, bytes(data)))
    for box, offset in FIELDS.values():
        cases += [Case("header lies", "faststart", edited(raw["faststart"], box, offset, value)) for value in VALUES]
    for box in (b"stss", b"stts", b"ctts", b"stsz", b"stco", b"avcC", b"edts", b"trak", b"mdat"):
        cases.append(Case("header lies", "faststart", raw["faststart"].replace(box, b"free", 1)))
    cases += [Case("other ending", "faststart", raw["faststart"], ending) for ending in (".avi", ".txt", ".webm", "")]
    cases.append(Case("other ending", "matroska", raw["matroska"]))
    for _ in range(20):
        data = bytearray(raw["matroska"])
        data[rng.randrange(500, len(data))] ^= 1 << rng.randrange(8)
        cases.append(Case("matroska flipped", "matroska", bytes(data), ".mkv"))
    nothing = [b"", b"\0", b"<!DOCTYPE html><title>404</title>", b'{"error": "gone"}', bytes(5000), rng.randbytes(5000)]
    cases += [Case("no video", "faststart", data) for data in nothing]
    return cases


def others(folder: Path) -> list[Path]:
    """Files that are in order and yet hold no clip."""
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(stream.encode(samples))
        container.mux(stream.encode())
    write_video(folder / "one.mp4", frames=1)
    write_video(folder / "none.mp4", frames=0)
    (folder / "folder.mp4").mkdir()
    return [folder / name for name in ("sound.mp4", "one.mp4", "none.mp4", "folder.mp4", "missing.mp4")]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean difference per frame."""
    return np.abs(a.astype(np.int16) - b).mean(axis=(-3, -2, -1))


def check_frames(case: Case, whole: Whole, frames: np.ndarray, given: np.ndarray) -> tuple[int, int]:
    """Assert what can be asserted about the frames that were given; how many, and how many are wrong unnoticed."""
    unseen = 0
    for time_, frame, right in zip(
        np.array(whole.plan.timestamps)[given], frames[given], whole.frames[given], strict=True
    ):
        if difference(frame, right) <= CLEAN:
            continue
        differences = difference(whole.every, frame)
        if differences.min() > CLEAN:
            unseen += 1
        elif "header" not in case.kind:  # a header that lies consistently is believed
            shown = whole.times[differences.argmin()]
            assert abs(shown - time_) <= HOLD_SECONDS + 2 / RATE, f"{case.kind}: the frame of {shown} s at {time_} s"
    if case.kind in ("unharmed", "truncated", "other ending"):
        assert not unseen
    return int(given.sum()), unseen


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_damaged_files_give_right_frames_or_a_reason(wholes, tmp_path, step):
    cases = damaged(wholes)
    assert len(cases) >= 500
    quarantine, used, refused, total, unseen = Quarantine(tmp_path / "quarantine.jsonl"), [], [], 0, 0
    with Decoder(timeout=LIMIT, threads=1) as decoder:
        decoder.probe(wholes["tail"].path)
        pids = {child_pid(decoder)}
        for number, case in list(enumerate(cases))[::step]:
            path, whole = tmp_path / f"{number}{case.suffix}", wholes[case.base]
            path.write_bytes(case.data)
            begin = time.monotonic()
            try:
                frames, needs = decoder.read(path, whole.plan), None
                used.append((case, path))
            except VideoError as error:
                assert str(path) in str(error)
                quarantine.add(path, error, "decode")
                refused.append(path)
                frames, needs = read_span(decoder, path, whole.plan), SPAN
            assert time.monotonic() - begin <= BUSY * (LIMIT + 1)
            pids.add(child_pid(decoder))
            if frames is not None:
                given = frames.any(axis=(1, 2, 3))
                assert given[needed_frames(whole.plan, needs)].all()
                counts = check_frames(case, whole, frames, given)
                total, unseen = total + counts[0], unseen + counts[1]
    assert len(pids) == 1, "the child died"
    assert unseen <= UNSEEN * total, f"{unseen} of {total} frames are wrong"
    assert {case.kind for case, _ in used} >= {"unharmed", "other ending", "flipped", "zeroed"}
    entries = Quarantine(tmp_path / "quarantine.jsonl").entries()
    assert [entry.path for entry in entries] == [str(path) for path in refused]
    assert all(entry.reason and entry.size == Path(entry.path).stat().st_size for entry in entries)
    assert not any(quarantine.reason(path) for _, path in used)


def test_threads_of_a_decoder_change_nothing(wholes, tmp_path):
    with Decoder(timeout=LIMIT, threads=1) as one, Decoder(timeout=LIMIT, threads=4) as four:
        for number, case in list(enumerate(damaged(wholes)))[3::10]:
            path, plan = tmp_path / f"{number}{case.suffix}", wholes[case.base].plan
            path.write_bytes(case.data)
            np.testing.assert_array_equal(outcome(one, path, plan), outcome(four, path, plan))


def outcome(decoder: Decoder, path: Path, plan: SamplingPlan) -> np.ndarray | str:
    """Frames, or why there are none."""
    try:
        return decoder.read(path, plan)
    except VideoError as error:
        return str(error)


def read_span(decoder: Decoder, path: Path, plan: SamplingPlan) -> np.ndarray | None:
    """Frames for a row that is about `SPAN` only, None if that is lost too."""
    try:
        return decoder.read(path, plan, SPAN)
    except VideoError:
        return None


def child_pid(decoder: Decoder) -> int:
    """Process of a decoder with one idle child."""
    child = decoder._idle.get()
    decoder._idle.put(child)
    return child.process.pid


def test_a_truncated_download_serves_the_rows_before_its_end(wholes, tmp_path, caplog):
    whole = wholes["faststart"]
    data = whole.path.read_bytes()
    path = tmp_path / "half.mp4"
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoError, match="decodes up to 1.* only, and the row needs 2.75"):
        read_frames(path, whole.plan)
    frames = read_frames(path, whole.plan, needs=SPAN)
    given = frames.any(axis=(1, 2, 3))
    end = np.flatnonzero(needed_frames(whole.plan, SPAN))[-1] + 1
    assert given[:end].all() and not given[-1]
    np.testing.assert_array_equal(frames[:end], whole.frames[:end])
    said = f"{(~given).sum()} of 12 frames are lost, outside the span needed, and black"
    assert said in caplog.text
    caplog.clear()
    with Decoder() as decoder:
        np.testing.assert_array_equal(decoder.read(path, whole.plan, SPAN), frames)
        assert said in caplog.text  # what the child logs, its parent says


def test_files_without_a_clip(tmp_path):
    with Decoder(timeout=LIMIT) as decoder:
        for path in others(tmp_path):
            with pytest.raises(VideoError, match=path.name):
                decoder.probe(path)


# --- decoders that misbehave ------------------------------------------------------------------------------------------

FAKES = """
import ctypes, os, sys, time
import numpy as np

def hang(path, indices, times, threads):
    ctypes.PyDLL(None).sleep(1000)  # with the interpreter's lock
    yield

def crash(path, indices, times, threads):
    ctypes.string_at(0)
    yield

def leave(path, indices, times, threads):
    os._exit(3)
    yield

def leak(path, indices, times, threads):
    raise KeyError("a bug")

def chat(path, indices, times, threads):
    print("a library that prints")
    os.write(1, b"{}\\n")
    for _ in indices:
        yield np.zeros((84, 84, 3), np.uint8)

def short(path, indices, times, threads):
    yield np.zeros((84, 84, 3), np.uint8)

def grey(path, indices, times, threads):
    for _ in indices:
        yield np.zeros((84, 84), np.uint8)

def modules(path, indices, times, threads):
    raise RuntimeError(f"imported {sorted({'torch', 'verl', 'ray', 'vllm'} & sys.modules.keys())}")
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    (tmp_path / "fake_decoders.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        ("hang", "no answer within 1 s"),
        ("crash", r"killed by signal 11 \(SIGSEGV\)"),
        ("leave", "exit status 3"),
        ("leak", "KeyError: 'a bug'"),
        ("short", "ValueError"),
        ("modules", r"imported \[\]"),
    ],
)
def test_a_decoder_that_misbehaves_costs_one_clip(wholes, fakes, fake, reason):
    whole = wholes["tail"]
    with Decoder(f"fake_decoders:{fake}", timeout=1.0) as decoder:
        for _ in range(2):
            decoder.probe(whole.path)  # works, before and after
            begin = time.monotonic()
            with pytest.raises(VideoError, match=f"{whole.path}: .*{reason}"):
                decoder.read(whole.path, whole.plan)
            assert time.monotonic() - begin <= BUSY * (1.0 + 1.0)


def test_what_a_library_prints_is_no_answer(wholes, fakes):
    with Decoder("fake_decoders:chat") as decoder:
        for _ in range(2):
            assert not decoder.read(wholes["tail"].path, wholes["tail"].plan).any()


def test_a_decoder_that_breaks_the_rules_is_no_fault_of_the_video(wholes, fakes):
    with Decoder("fake_decoders:grey") as decoder, pytest.raises(DecoderError, match=r"gives uint8 \(84, 84\)"):
        decoder.read(wholes["tail"].path, wholes["tail"].plan)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("ffmpeg", "unknown; choose pyav, decord, torchcodec"), ("no_such.module:read", "cannot be imported")],
)
def test_a_decoder_that_is_not_there_is_no_fault_of_the_video(wholes, name, reason):
    with Decoder(name) as decoder, pytest.raises(DecoderError, match=reason):
        decoder.read(wholes["tail"].path, wholes["tail"].plan)


PARENT = """
import sys, threading, time
from verl_stvg.rows import cache_fill as build
from verl_stvg.video.cache import CacheError
from verl_stvg.video.child import Decoder
from verl_stvg.video.decode import probe
from verl_stvg.video.plan import plan_video

decoder = Decoder(sys.argv[2], timeout=3.0)
info = decoder.probe(sys.argv[1])
child = decoder._idle.get()
decoder._idle.put(child)
plan = plan_video(info.num_frames, info.fps, info.width, info.height)
if sys.argv[2] != "pyav":
    threading.Thread(target=decoder.read, args=(sys.argv[1], plan)).start()
    time.sleep(0.5)
print(child.process.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(("name", "limit"), [("pyav", 1.0), ("fake_decoders:hang", 3.0 + 1.0)])
def test_a_child_does_not_outlive_its_parent(wholes, fakes, tmp_path, name, limit):
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT, str(wholes["tail"].path), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    deadline = time.monotonic() + BUSY * (limit + 1.0)
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pid)


def running(pid: int) -> bool:
    """Whether a process exists and is not only waiting to be buried."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# --- the child --------------------------------------------------------------------------------------------------------


def test_threads_share_children(wholes):
    jobs = [wholes[name] for name in ("tail", "uneven", "sound", "matroska")] * 6
    with Decoder(workers=2, threads=1) as decoder, ThreadPoolExecutor(6) as pool:
        results = pool.map(lambda whole: (decoder.probe(whole.path), decoder.read(whole.path, whole.plan)), jobs)
        for whole, (info, frames) in zip(jobs, results, strict=True):
            assert info == probe(whole.path)
            np.testing.assert_array_equal(frames, whole.frames)


def test_pixels_go_into_the_file_of_the_caller(wholes, tmp_path):
    whole, out = wholes["tail"], tmp_path / "frames"
    out.write_bytes(b"x" * 100)
    with Decoder() as decoder:
        decoder.read_into(whole.path, whole.plan, out, offset=64)
        with pytest.raises(FileNotFoundError):
            decoder.read_into(whole.path, whole.plan, tmp_path / "no folder" / "frames")
        with pytest.raises(ValueError, match="no frame lies in the span"):
            decoder.read_into(whole.path, whole.plan, out, needs=(50.0, 60.0))
    data = out.read_bytes()
    assert data[:64] == b"x" * 64 and data[64:] == whole.frames.tobytes()


def test_a_forked_process_starts_children_of_its_own(wholes):
    whole = wholes["tail"]
    with Decoder() as decoder:
        decoder.read(whole.path, whole.plan)
        mine = child_pid(decoder)
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=read_in_fork, args=(decoder, whole, sender))
        process.start()
        assert receiver.recv() not in (mine, None)
        process.join()
        np.testing.assert_array_equal(decoder.read(whole.path, whole.plan), whole.frames)
        assert child_pid(decoder) == mine


def read_in_fork(decoder, whole, sender):
    same = np.array_equal(decoder.read(whole.path, whole.plan), whole.frames)
    sender.send(child_pid(decoder) if same else None)
    decoder.close()


def test_a_child_that_died_idle_is_replaced(wholes):
    whole = wholes["tail"]
    with pickle.loads(pickle.dumps(Decoder(threads=1))) as decoder:
        decoder.probe(whole.path)
        os.kill(child_pid(decoder), signal.SIGKILL)
        time.sleep(0.1)
        np.testing.assert_array_equal(decoder.read(whole.path, whole.plan), whole.frames)
        decoder.close()
        assert decoder.probe(whole.path) == probe(whole.path)


# --- the manifest -----------------------------------------------------------------------------------------------------


def add_all(manifest: Path, videos: list[Path], seed: int) -> None:
    for video in random.Random(seed).sample(videos, len(videos)):
        Quarantine(manifest).add(video, f"reason of {video.name}", "decode")


def test_processes_write_one_line_per_video(tmp_path):
    videos = [tmp_path / f"{k}.mp4" for k in range(40)]
    for video in videos[:30]:
        video.write_bytes(video.name.encode())
    manifest = tmp_path / "folder" / "quarantine.jsonl"
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        list(pool.map(add_all, [manifest] * 4, [videos] * 4, range(4)))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == sorted(map(str, videos))
    assert all(line["reason"] == f"reason of {Path(line['path']).name}" for line in lines)
    assert {line["size"] for line in lines if Path(line["path"]) in videos[30:]} == {None}


def test_a_changed_video_is_tried_again(tmp_path):
    video, quarantine = tmp_path / "clip.mp4", Quarantine(tmp_path / "quarantine.jsonl")
    assert quarantine.reason(video) is None and quarantine.entries() == []
    quarantine.add(video, "no such video", "probe")
    assert quarantine.reason(video) == "no such video"
    video.write_bytes(b"downloaded at last")
    assert quarantine.reason(video) is None
    quarantine.add(video, "not a video", "probe")
    assert Quarantine(quarantine.path).reason(video) == "not a video"
    os.utime(video, ns=(0, 0))
    assert quarantine.reason(video) is None
    assert [entry.reason for entry in quarantine.entries()] == ["not a video"]


NO_RECORDS = (
    *(b"\0" * 100, b"\0\0{}", b"[1]", b"3", b"null", b'"text"', b"\xff\xfe\r{}", b"[" * 5000, b"{}"),
    b'{"path": "/a.mp4"}',
    b'{"path": 3, "reason": "x"}',
    b'{"path": ["a"], "reason": null}',
    b'{"path": "/a.mp4", "reason": 5, "stage": "x"}',
    b'{"path": "/a.mp4", "reason": "x", "stage": "x", "size": "large"}',
)


@settings(max_examples=50, deadline=None)
@given(lines=st.lists(st.sampled_from(NO_RECORDS) | st.binary(max_size=40), min_size=1, max_size=6), seed=st.integers())
def test_lines_that_are_no_records_hide_nothing(tmp_path_factory, lines, seed):
    """A machine that crashes leaves NUL bytes in place of what was written last."""
    folder, rng = tmp_path_factory.mktemp("quarantine"), random.Random(seed)
    manifest, reader, expected = folder / "quarantine.jsonl", Quarantine(folder / "quarantine.jsonl"), []
    for number, line in enumerate(lines):
        with manifest.open("ab") as file:
            file.write(line + b"\n" * rng.choice([0, 1]))
        expected.append(str(folder / f"{number}.mp4"))
        Quarantine(manifest).add(expected[-1], "reason", "decode")
        for one in (reader, Quarantine(manifest)):
            assert [entry.path for entry in one.entries()] == expected


def test_lines_that_are_no_records_are_said_once(tmp_path, caplog):
    manifest = tmp_path / "quarantine.jsonl"
    Quarantine(manifest).add(tmp_path / "a.mp4", "reason", "decode")
    assert not caplog.records
    with manifest.open("ab") as file:
        file.write(b"\0" * 4096)
    for name in ("b.mp4", "c.mp4"):
        Quarantine(manifest).add(tmp_path / name, "reason", "decode")
        assert Quarantine(manifest).reason(tmp_path / name) == "reason"
    assert [record.getMessage() for record in caplog.records] == [
        f"{manifest}: lines that are no records, as a kill or a crash of the machine leaves them, are skipped"
    ]


def test_a_manifest_that_is_removed_begins_anew(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    for name in ("a.mp4", "b.mp4"):
        quarantine.add(tmp_path / name, "before", "decode")
    quarantine.path.unlink()
    assert quarantine.entries() == []
    quarantine.add(tmp_path / "a.mp4", "after", "decode")
    assert [(Path(one.path).name, one.reason) for one in quarantine.entries()] == [("a.mp4", "after")]
    assert Quarantine(quarantine.path).entries() == quarantine.entries()


def test_a_cache_folder_that_is_removed_is_no_fault_of_its_videos(wholes, tmp_path, monkeypatch):
    """Somebody clears the folder while it is filled: the builder ends with an error that names it."""
    store, stock = FrameStore(str(tmp_path / "frames")), FrameStore.decode_into
    jobs = [cache_fill.Job(str(wholes[name].path), ()) for name in ("tail", "sound")]
    again = []

    def removing(self, *given):
        shutil.rmtree(self.folder)
        if again:  # and another builder makes it again
            Path(self.folder).mkdir()
        stock(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(FrameStore, "decode_into", removing)
        for _ in range(2):
            with pytest.raises(CacheError, match=f"{store.folder}: cannot take the frames of {jobs[0].video}"):
                list(cache_fill.build(jobs, store))
            again.append(True)
    missing = cache_fill.Job(str(tmp_path / "missing.mp4"), ())
    states = {one.job: one.state for part in cache_fill.build([missing, *jobs], store) for one in part}
    assert states == {missing: "failed", jobs[0]: "built", jobs[1]: "built"}


@settings(max_examples=50, deadline=None)
@given(reasons=st.lists(st.text(), min_size=1, max_size=5), torn=st.integers(0, 60))
def test_any_reason_is_kept_and_a_torn_line_is_skipped(tmp_path_factory, reasons, torn):
    folder = tmp_path_factory.mktemp("quarantine")
    manifest = folder / "quarantine.jsonl"
    line = b'{"path": "/other.mp4", "size": 1, "mtime_ns": 2, "reason": "}", "stage": "x", "time": 3}'
    manifest.write_bytes(line[:torn])
    for k, reason in enumerate(reasons):
        Quarantine(manifest).add(folder / f"{k}.mp4", reason, "decode")
    assert [entry.reason for entry in Quarantine(manifest).entries()] == reasons
