"""The frame cache: equal frames, one decode, nothing partial whatever kills its builders, clear words when full."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from verl_stvg import workers
from verl_stvg.cli.cache import app, parse_size, size_text
from verl_stvg.rows.cache_fill import QUARANTINE, Job, build, read_jobs
from verl_stvg.rows.row import plan_of
from verl_stvg.video import cache as module
from verl_stvg.video import cache_file
from verl_stvg.video.cache import CacheError, FrameCache
from verl_stvg.video.decode import VideoError, VideoInfo, probe, read_frames
from verl_stvg.video.plan import SamplingPlan, plan_video
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.store import FrameStore
from verl_stvg.workers import NoCluster

ROOT = Path(__file__).resolve().parent.parent.parent
LONG_AGO = 1_000_000_000
BUDGET = {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}


def write_video(path: Path, seed: int, frames: int = 24) -> Path:
    """Two seconds of moving noise, 84 x 56; another seed, other bytes."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (56, 84, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        stream.options = {"preset": "ultrafast", "threads": "1"}
        for k in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, k, axis=1), format="rgb24")))
        container.mux(stream.encode())
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def plan_for(path: Path) -> SamplingPlan:
    return plan_of(BUDGET, probe(path))


def small_plan(frames: int = 2, height: int = 28, width: int = 28) -> SamplingPlan:
    times = tuple(k / 2 for k in range(frames))
    return SamplingPlan(tuple(range(frames)), times, height, width, 2.0)


def noise_decoder(path, plan, out):
    """A decoder for any file: its pixels follow from the bytes of the file."""
    rng = np.random.default_rng(list(Path(path).read_bytes()))
    out[...] = rng.integers(0, 256, out.shape, dtype=np.uint8)


def no_decoder(path, plan, out):
    raise AssertionError("decoded although the frames were there")


def files_of(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"entries/*/*{suffix}"))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def clip(tmp_path) -> Path:
    """A file that `noise_decoder` reads."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"first")
    return path


# --- what is kept, and under which name


def test_frames_are_those_of_the_decoder_then_and_later(tmp_path, folder):
    path = write_video(tmp_path / "a.mp4", 1)
    plan = plan_for(path)
    cache = FrameCache(folder)
    frames = cache.get(path, plan, FrameStore(str(folder)).decode_into)
    assert (cache.hits, cache.misses, cache.decodes, cache.bytes) == (0, 1, 1, frames.nbytes) and cache.seconds > 0
    later = FrameCache(folder)
    for found in (frames, later.get(path, plan, no_decoder), later.find(later.key(path, plan))):
        assert isinstance(found, np.memmap) and found.dtype == np.uint8 and not found.flags.writeable
        np.testing.assert_array_equal(found, read_frames(path, plan))
    assert (later.hits, later.misses, later.decodes) == (2, 0, 0)
    (entry,) = files_of(folder, ".frames")
    assert (entry.stat().st_size - frames.nbytes) % cache_file.PAGE == 0
    assert later.find("0" * 32) is None and not files_of(folder, ".tmp")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 3), st.integers(1, 3), st.binary(min_size=1, max_size=40))
def test_any_plan_and_content(pairs, rows, columns, content):
    plan = small_plan(2 * pairs, 28 * rows, 28 * columns)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "clip")
        path.write_bytes(content)
        frames = FrameCache(Path(name, "cache")).get(path, plan, noise_decoder)
        again = FrameCache(Path(name, "cache")).get(path, plan, no_decoder)
        assert frames.shape == (2 * pairs, 28 * rows, 28 * columns, 3)
        np.testing.assert_array_equal(frames, again)


@given(st.data())
def test_every_field_of_the_plan_is_in_the_key(data):
    key = FrameCache("unused")._key
    plan = small_plan(4)
    other = replace(
        plan,
        frame_indices=data.draw(st.sampled_from([plan.frame_indices, (0, 1, 2, 2)])),
        timestamps=data.draw(st.sampled_from([plan.timestamps, (0.0, 0.5, 1.0, 1.5000000000000002)])),
        height=data.draw(st.sampled_from([28, 56])),
        width=data.draw(st.sampled_from([28, 56])),
        fps=data.draw(st.sampled_from([2.0, 2.0000000000000004])),
    )
    assert (key("content", plan) == key("content", other)) == (plan == other)


def test_the_name_is_the_content_not_the_path(tmp_path, folder, clip):
    cache, plan = FrameCache(folder), small_plan()
    copy = Path(shutil.copy(clip, tmp_path / "copy.mp4"))
    link = tmp_path / "link.mp4"
    link.symlink_to(clip)
    key = cache.key(clip, plan)
    assert cache.key(copy, plan) == cache.key(str(link), plan) == key
    assert FrameCache(folder, policy="other-1").key(clip, plan) != key
    with pytest.raises(FileNotFoundError):
        cache.key(tmp_path / "none.mp4", plan)


def test_a_changed_video_has_another_key_even_within_one_tick_of_its_time_stamp(clip, folder):
    cache, plan = FrameCache(folder), small_plan()
    before, status = cache.key(clip, plan), clip.stat()
    with clip.open("r+b") as file:
        file.write(b"other")
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.key(clip, plan) != before


def test_a_video_is_hashed_once_for_all_processes(clip, folder, monkeypatch):
    os.utime(clip, (LONG_AGO, LONG_AGO))
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0)
    cache, plan = FrameCache(folder), small_plan()
    key = cache.key(clip, plan)
    with monkeypatch.context() as unread:
        unread.setattr(module, "hash_file", no_decoder)
        assert cache.key(clip, plan) == FrameCache(folder).key(clip, plan) == key
    (record,) = (path for path in folder.glob("videos/*/*"))
    record.write_bytes(bytes(32))  # what a power cut may leave
    assert FrameCache(folder).key(clip, plan) == key


def test_a_video_that_changes_while_it_is_decoded(clip, folder):
    def decode(path, plan, out):
        clip.write_bytes(b"something else")

    with pytest.raises(VideoError, match="clip.mp4: changed while"):
        FrameCache(folder).get(clip, small_plan(), decode)
    assert not files_of(folder, "")


def test_another_process_can_write_the_frames(clip, folder):
    def decode(path, plan, out):
        code = f"f = open({str(out.filename)!r}, 'r+b'); f.seek({out.offset}); f.write(b'\\x07' * {out.nbytes})"
        subprocess.run([sys.executable, "-c", code], check=True)

    assert np.all(FrameCache(folder).get(clip, small_plan(), decode) == 7)
    assert FrameCache(folder).verify() == []


# --- one decode


def test_a_failure_passes_through_and_leaves_nothing(clip, folder):
    cache = FrameCache(folder)

    def fails(path, plan, out):
        out[...] = 1
        raise VideoError("clip.mp4: broken")

    for _ in range(2):
        with pytest.raises(VideoError, match="broken"):
            cache.get(clip, small_plan(), fails)
    assert not files_of(folder, "") and cache.decodes == 0
    cache.get(clip, small_plan(), noise_decoder)


def test_threads_share_one_decode(clip, folder):
    cache, calls = FrameCache(folder), []

    def slow(path, plan, out):
        calls.append(1)
        time.sleep(0.2)
        noise_decoder(path, plan, out)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: cache.get(clip, small_plan(), slow), range(8)))
    assert len(calls) == cache.decodes == 1 and all(np.array_equal(results[0], frames) for frames in results)
    assert cache.hits + cache.misses == 8 and not files_of(folder, ".tmp")


def _get_all(folder: Path, paths: list[Path], log: Path, start) -> None:
    def counted(path, plan, out):
        with log.open("a") as file:
            file.write(f"{path}\n")
        FrameStore(str(folder)).decode_into(path, plan, out)

    cache, plans = FrameCache(folder), [plan_for(path) for path in paths]
    start.wait()
    for path, plan in zip(paths, plans, strict=True):
        np.testing.assert_array_equal(cache.get(path, plan, counted), read_frames(path, plan))


def test_processes_decode_each_video_once(tmp_path, folder):
    paths = [write_video(tmp_path / f"{k}.mp4", k) for k in range(5)]
    context, log = multiprocessing.get_context("spawn"), tmp_path / "log"
    start = context.Barrier(4)
    processes = [context.Process(target=_get_all, args=(folder, paths, log, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == sorted(map(str, paths))
    assert len(files_of(folder, ".frames")) == len(files_of(folder, "")) == 5


def test_hosts_that_do_not_see_each_others_locks_agree(clip, folder, monkeypatch):
    seen = []

    def decode(path, plan, out):
        with monkeypatch.context() as elsewhere:
            for part in (module, cache_file):
                elsewhere.setattr(part, "host", lambda: "elsewhere")
            seen.append(FrameCache(folder).get(path, plan, noise_decoder))
        noise_decoder(path, plan, out)

    seen.append(FrameCache(folder).get(clip, small_plan(), decode))
    seen.append(FrameCache(folder).get(clip, small_plan(), no_decoder))
    assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], seen[2])
    assert len(files_of(folder, "")) == 1 and FrameCache(folder).verify() == []


# --- room


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=30), st.integers(1, 8))
def test_the_bound_holds_and_frames_are_right(requests, room):
    size = cache_file.PAGE + small_plan().num_frames * 28 * 28 * 3
    with tempfile.TemporaryDirectory() as name:
        cache = FrameCache(Path(name, "cache"), max_bytes=room * size + size // 2)
        for number in requests:
            path = Path(name, f"{number}")
            path.write_bytes(b"%d" % number)
            frames = cache.get(path, small_plan(), noise_decoder)
            expected = np.empty_like(frames)
            noise_decoder(path, small_plan(), expected)
            np.testing.assert_array_equal(frames, expected)
            held = sum(entry.stat().st_size for entry in files_of(cache.folder, ".frames"))
            assert size <= held <= cache.max_bytes
        assert cache.decodes == cache.misses >= min(1, len(requests))
        assert len(set(requests)) > room or cache.decodes == len(set(requests))


def test_the_least_recently_used_goes_and_a_reader_keeps_it(tmp_path, folder):
    cache, plan = FrameCache(folder), small_plan()
    paths = [tmp_path / name for name in "abc"]
    for age, path in enumerate(paths):
        path.write_text(path.name)
        cache.get(path, plan, noise_decoder)
        os.utime(cache._path(cache.key(path, plan)), (LONG_AGO + age, LONG_AGO + age))
    first = cache.get(paths[0], plan, no_decoder)  # a hit makes it the most recently used
    second = cache.find(cache.key(paths[1], plan))
    os.utime(cache._path(cache.key(paths[1], plan)), (LONG_AGO, LONG_AGO))
    removed = cache.gc(2 * files_of(folder, ".frames")[0].stat().st_size)
    assert removed.entries == 1 and cache.find(cache.key(paths[1], plan)) is None
    assert cache.gc(0).entries == 2 and cache.stats().entries == 0
    for path, frames in ((paths[0], first), (paths[1], second)):
        expected = np.empty_like(frames)
        noise_decoder(path, plan, expected)
        np.testing.assert_array_equal(frames, expected)


def test_an_entry_over_the_bound(clip, folder):
    with pytest.raises(CacheError, match="one entry takes .* over max_bytes=100; raise it"):
        FrameCache(folder, max_bytes=100).get(clip, small_plan(), no_decoder)
    assert not files_of(folder, "")


def test_temporary_files_that_nobody_writes_are_swept(clip, folder):
    cache, swept = FrameCache(folder), []

    def decode(path, plan, out):
        swept.append(cache.gc().temp_files)  # this builder's own is locked
        noise_decoder(path, plan, out)

    cache.get(clip, small_plan(), decode)
    parent = files_of(folder, ".frames")[0].parent
    mine, young, old = (parent / f"{'0' * 32}.{host}.tmp" for host in (cache_file.host(), "other", "third"))
    for path in (mine, young, old):
        path.write_bytes(b"partial")
    os.utime(old, (LONG_AGO, LONG_AGO))
    assert cache.stats().temp_files == 3
    assert swept == [0] and cache.gc().temp_files == 2 and files_of(folder, ".tmp") == [young]
    cache.get(clip, small_plan(), no_decoder)


# --- damage


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damaged_byte_and_any_cut_is_found_and_never_served(data):
    with tempfile.TemporaryDirectory() as name:
        path, folder, plan = Path(name, "clip"), Path(name, "cache"), small_plan()
        path.write_bytes(b"content")
        expected = np.array(FrameCache(folder).get(path, plan, noise_decoder))
        (entry,) = files_of(folder, ".frames")
        content = bytearray(entry.read_bytes())
        at = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(content) - 1)), label="at")
        if data.draw(st.booleans(), label="cut"):
            entry.write_bytes(content[:at])
        else:
            content[at] ^= data.draw(st.integers(1, 255), label="flip")
            entry.write_bytes(content)
        cache = FrameCache(folder)
        assert cache.find(cache.key(path, plan)) is None
        ((found, reason),) = cache.verify()
        assert found == entry and reason and cache.stats().entries == 1
        np.testing.assert_array_equal(cache.get(path, plan, noise_decoder), expected)
        assert FrameCache(folder).verify() == []


def test_verify_removes_on_request(clip, folder, caplog):
    cache = FrameCache(folder)
    key = cache.key(clip, small_plan())
    cache.get(clip, small_plan(), noise_decoder)
    (entry,) = files_of(folder, ".frames")
    os.truncate(entry, entry.stat().st_size - 1)
    with caplog.at_level(logging.WARNING):
        assert cache.find(key) is None  # checked on every open, also by a process that read it before
    assert "bytes long instead of" in caplog.text and str(entry) in caplog.text
    assert len(cache.verify()) == 1 and entry.exists()
    assert len(cache.verify(remove=True)) == 1 and not entry.exists() and cache.verify() == []


def test_an_entry_under_another_name(clip, folder):
    cache = FrameCache(folder)
    cache.get(clip, small_plan(), noise_decoder)
    (entry,) = files_of(folder, ".frames")
    entry.rename(entry.with_name("0" * 32 + ".frames"))
    ((_, reason),) = cache.verify()
    assert "under another name" in reason


# --- full and read-only disks


FULL = """
import resource, sys
from pathlib import Path
from tests.video.test_cache import *
folder, clip = map(Path, sys.argv[1:3])
cache = FrameCache(folder)
kept = cache.get(clip, small_plan(), noise_decoder)
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
try:
    cache.get(clip, small_plan(1000), no_decoder)
    raise SystemExit("no error")
except CacheError as error:
    assert str(folder) in str(error) and "free some space" in str(error), error
    print(error)
assert len(files_of(folder, "")) == 1
cache.get(clip, small_plan(), no_decoder)
if sys.argv[3] == "tmpfs":  # the same disk, now read-only
    import subprocess
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    other = FrameCache(folder)
    assert np.array_equal(other.get(clip, small_plan(), no_decoder), kept)
    try:
        other.get(clip, small_plan(4), no_decoder)
        raise SystemExit("no error")
    except CacheError as error:
        assert "Read-only" in str(error) and "make it writable" in str(error), error
assert FrameCache(folder).verify() == []
"""


def test_a_full_disk_loses_nothing_by_limit_on_file_size(clip, folder, run_python):
    assert "File too large" in run_python(FULL, folder, clip, "limit").stdout


def test_a_full_and_a_read_only_disk(clip, folder):
    folder.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1" || exit 77; exec "$0" -c "$3" "$1" "$2" tmpfs'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, folder, clip, FULL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("mounting a disk in a namespace is not permitted here")
    assert done.returncode == 0, done.stderr
    assert "No space left" in done.stdout


READ_ONLY = """
import mmap, os, sys  # mmap while the interpreter's folder can still be read
from pathlib import Path
from tests.video.test_cache import *
folder, clip = map(Path, sys.argv[1:3])
if os.getuid() == 0:  # for whom permissions do not count
    os.setgid(65534); os.setuid(65534)
cache = FrameCache(folder)
cache.get(clip, small_plan(), no_decoder)
try:
    cache.get(clip, small_plan(4), no_decoder)
    raise SystemExit("no error")
except CacheError as error:
    print(error)
"""


def test_a_read_only_folder_serves_what_it_holds(run_python):
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        clip, folder = Path(name, "clip"), Path(name, "cache")
        clip.write_bytes(b"content")
        FrameCache(folder).get(clip, small_plan(), noise_decoder)
        (entry,) = files_of(folder, ".frames")
        os.utime(entry, (LONG_AGO, LONG_AGO))
        made = [folder, *folder.rglob("*")]
        for path in made:
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH | (0o111 if path.is_dir() else 0))
        said = run_python(READ_ONLY, folder, clip).stdout
        for path in made:
            path.chmod(0o755)
        assert "Permission denied" in said and "make it writable" in said
        assert [path for path in folder.rglob("*") if path not in made] == []


# --- kill -9


def _in_child(function, *arguments) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(pid: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _prepare(folder: Path, count: int) -> None:
    for k in range(count):
        path = write_video(folder / f"{k}.mp4", k)
        np.save(folder / f"{k}.npy", read_frames(path, PLAN_OF_TWO_SECONDS))


PLAN_OF_TWO_SECONDS = plan_video(24, 12.0, 84, 56, fps=6.0, **BUDGET)


def decode_here(path, plan, out):
    """In the process that is killed, which has no time to start a child of its own."""
    out[...] = read_frames(path, plan)


def _build_all(folder: Path, paths: list[Path]) -> None:
    cache = FrameCache(folder)
    for path in paths:
        cache.get(path, PLAN_OF_TWO_SECONDS, decode_here)


def hammer(folder: Path, kills: int, seed: int) -> dict:
    """Kill pairs of builders at random moments until that many died; read meanwhile; say what was seen.

    Builders are forks of this process, which has read no video itself: no thread of a codec is lost in a fork.
    """
    rng, log = random.Random(seed), []
    handler = logging.Handler()
    handler.emit = log.append  # the cache logs what it refuses to serve
    module.logger.addHandler(handler)
    count = 6
    _wait(_in_child(_prepare, folder, count))
    paths = [folder / f"{k}.mp4" for k in range(count)]
    expected = [np.load(folder / f"{k}.npy") for k in range(count)]
    clean, hammered = folder / "clean", folder / "cache"
    begin = time.monotonic()
    _wait(_in_child(_build_all, clean, paths))
    whole = time.monotonic() - begin
    killed = reads = left = rounds = 0
    while killed < kills:
        rounds += 1
        for entry in files_of(hammered, ".frames"):
            if rng.random() < 0.7:
                entry.unlink()
        begin = time.monotonic()
        ends = {
            _in_child(_build_all, hammered, rng.sample(paths, count)): begin + rng.uniform(0, 1.2 * whole)
            for _ in range(2)
        }
        while ends:
            reader = FrameCache(hammered)
            for path, frames in zip(paths, expected, strict=True):
                found = reader.find(reader.key(path, PLAN_OF_TWO_SECONDS))
                if found is not None:
                    assert np.array_equal(found, frames)
                    reads += 1
            for pid in [pid for pid, end in ends.items() if time.monotonic() > end]:
                del ends[pid]
                os.kill(pid, signal.SIGKILL)
                killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        left += len(files_of(hammered, ".tmp"))
    assert FrameCache(hammered).verify() == []
    for _ in range(2):  # the second finds everything there
        _wait(_in_child(_build_all, hammered, paths))
    same = [entry.read_bytes() for entry in files_of(hammered, ".frames")] == [
        entry.read_bytes() for entry in files_of(clean, ".frames")
    ]
    FrameCache(hammered).gc()
    temporary = len(files_of(hammered, ".tmp"))
    return {
        "killed": killed,
        "rounds": rounds,
        "reads": reads,
        "left": left,
        "refused": [record.getMessage() for record in log],
        "same": same,
        "temporary": temporary,
    }


@pytest.mark.slow
def test_kill_9_at_200_random_moments(tmp_path, run_python):
    code = "import json, sys; from pathlib import Path; from tests.video.test_cache import hammer; "
    code += "print(json.dumps(hammer(Path(sys.argv[1]), 200, seed=0))); assert not {'torch', 'verl'} & set(sys.modules)"
    seen = json.loads(run_python(code, tmp_path, OMP_NUM_THREADS="1").stdout.splitlines()[-1])
    assert seen["killed"] >= 200 and seen["reads"] > 200 and seen["left"] > 20, seen
    assert seen["refused"] == [] and seen["same"] and seen["temporary"] == 0, seen


# --- filling it from rows, and the command line


def write_rows(path: Path, videos: list[dict | None]) -> Path:
    pq.write_table(pa.table({"prompt": ["?"] * len(videos), "videos": [[v] if v else [] for v in videos]}), path)
    return path


@pytest.fixture
def two_clips(tmp_path) -> Path:
    """Rows of two videos, four plans and queries more than once."""
    for k in range(2):
        write_video(tmp_path / f"{k}.mp4", k)
    rows = [{"video": f"{k}.mp4", "fps": fps, **BUDGET} for k in range(2) for fps in (2, 4)]
    return write_rows(tmp_path / "rows.parquet", [*rows, *rows, None])


def invoke(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_each_video_and_plan_is_one_job(two_clips, tmp_path):
    jobs = read_jobs([two_clips, two_clips])
    assert len(jobs) == 4
    assert jobs[0] == Job(str(tmp_path / "0.mp4"), (("fps", 2), ("min_pixels", 784), ("max_pixels", 3136)))
    assert read_jobs([two_clips], tmp_path / "elsewhere")[0].video == str(tmp_path / "elsewhere" / "0.mp4")
    with pytest.raises(ValueError, match="nothing.parquet: no such file; build the rows first"):
        read_jobs([tmp_path / "nothing.parquet"])
    pq.write_table(pa.table({"prompt": ["?"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="text.parquet: has no column videos"):
        read_jobs([tmp_path / "text.parquet"])


def states_of(outcomes) -> list[str]:
    return [outcome.state for done in outcomes for outcome in done]


@pytest.mark.parametrize("workers", [1, 2])
def test_built_once_with_the_plans_of_training(two_clips, folder, workers):
    jobs = read_jobs([two_clips])
    assert states_of(build(jobs, FrameStore(str(folder)), workers)) == ["built"] * 4
    cache = FrameCache(folder)
    for job in jobs:
        plan = plan_of(dict(job.options), probe(job.video))
        np.testing.assert_array_equal(cache.get(job.video, plan, no_decoder), read_frames(job.video, plan))
    assert [outcome.state for done in build(jobs, FrameStore(str(folder)), workers=1) for outcome in done] == [
        "present"
    ] * 4


def test_rows_are_planned_as_the_dataset_plans_them():
    from verl_stvg.training import dataset

    info = VideoInfo(90, 29.97, 640, 360)
    for video in ({}, {"fps": 4.0, "max_frames": None}, {"total_pixels": 200_000, "min_pixels": 784}, BUDGET):
        assert plan_of(video, info) == dataset.plan_of(video, info)


def test_a_broken_video_stops_nothing_and_is_listed(two_clips, folder, tmp_path):
    (tmp_path / "0.mp4").rename(tmp_path / "kept.mp4")
    (tmp_path / "0.mp4").write_bytes(b"<html>")
    status, said = invoke("build", two_clips, "--cache", folder, "--workers", "1")
    assert status == 1 and FrameCache(folder).stats().entries == 2
    [record] = Quarantine(folder / QUARANTINE).entries()
    assert record.path == str(tmp_path / "0.mp4") and record.size == len("<html>")
    assert "not a readable video" in record.reason
    (tmp_path / "kept.mp4").rename(tmp_path / "0.mp4")
    status, said = invoke("build", two_clips, "--cache", folder, "--workers", "1")
    assert status == 0 and Quarantine(folder / QUARANTINE).entries() == []
    assert FrameCache(folder).stats().entries == 4


def test_verify_stats_and_gc(two_clips, folder, caplog):
    assert invoke("build", two_clips, "--cache", folder, "--workers", "1")[0] == 0
    status, said = invoke("stats", "--cache", folder)
    assert status == 0 and "entries" in said and "videos" in said
    stats = FrameCache(folder).stats()
    assert (stats.entries, stats.videos, stats.temp_files) == (4, 2, 0) and stats.oldest <= stats.newest
    assert invoke("verify", "--cache", folder)[0] == 0
    entry = files_of(folder, ".frames")[0]
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    assert invoke("verify", "--cache", folder)[0] == 1 and entry.exists()
    assert invoke("verify", "--cache", folder, "--remove")[0] == 1 and not entry.exists()
    assert invoke("verify", "--cache", folder)[0] == 0
    assert invoke("gc", "--cache", folder, "--max-bytes", "0")[0] == 0
    assert FrameCache(folder).stats().entries == 0
    assert invoke("gc", "--cache", folder, "--max-bytes", "lots")[0] == 2
    assert invoke("stats", "--cache", folder / "nothing")[0] == 2


def test_sizes():
    assert [parse_size(text) for text in ("4096", "1K", "1.5M", "200G", "2 TiB", "3gb")] == [
        *(4096, 1024, 1572864, 200 * 2**30, 2 * 2**40, 3 * 2**30)
    ]
    assert [size_text(2**power) for power in (3, 10, 30, 43)] == ["8 B", "1.0 KiB", "1.0 GiB", "8.0 TiB"]


@pytest.mark.slow
def test_built_on_a_ray_cluster(two_clips, folder, monkeypatch):
    ray = Path(sys.executable).with_name("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:26479")
    command = [ray, "start", "--head", "--block", "--num-cpus=2", "--port=26479", "--include-dashboard=false"]
    command += ["--ray-client-server-port=26481", "--disable-usage-stats"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 1200
    try:
        while isinstance(answer := workers.cluster_cpus("auto"), str):
            assert server.poll() is None and time.monotonic() < deadline, answer
        states = states_of(build(read_jobs([two_clips]), FrameStore(str(folder)), on_ray=True))
    finally:
        server.terminate()
        server.wait(600)
    assert states == ["built"] * 4 and FrameCache(folder).verify() == []


@pytest.mark.slow
def test_no_ray_cluster(two_clips, folder, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(workers, "_CLUSTER_SECONDS", 15)
    with pytest.raises(NoCluster, match="no Ray cluster answers .* leave out --ray"):
        list(build(read_jobs([two_clips]), FrameStore(str(folder)), on_ray=True))
