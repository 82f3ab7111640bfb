"""The time and the memory that a decoder may take: the limit grows with the work, and both sides keep to it."""

import json
import os
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import fuzz
from verl_stvg.data_builders import show
from verl_stvg.eval.report import clips
from verl_stvg.video import child, serve, thumbnails
from verl_stvg.video import limit as kept
from verl_stvg.video.child import Decoder
from verl_stvg.video.decode import VideoError, probe
from verl_stvg.video.limit import Limit, decoding_rate
from verl_stvg.video.plan import SamplingPlan, plan_video

RATE = 30


def write_video(path: Path, frames: int, width: int, height: int, grain: int = 1, **options: str) -> Path:
    """An H.264 file of one still picture and one keyframe."""
    shape = (height // grain, width // grain, 3)
    picture = np.random.default_rng(0).integers(0, 255, shape, np.uint8).repeat(grain, axis=0).repeat(grain, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "g": "100000", "sc_threshold": "0", "threads": "1", **options}
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        for k in range(frames):
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def first(frames: int, width: int = 16, height: int = 16, fps: float = 1.0) -> SamplingPlan:
    """A plan over so many pictures at the beginning."""
    return plan_video(frames, RATE, width, height, fps=fps, min_pixels=28 * 28, max_pixels=56 * 56)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """20,000 pictures in a quarter of a megabyte: 11 minutes."""
    path = write_video(tmp_path_factory.mktemp("long") / "long.mp4", 20_000, 16, 16)
    probe(path)  # and what it holds is known from now on, also to children
    return path


FAKES = """
import ctypes, time
import av
import numpy as np

def still(path, indices):
    with av.open(path) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return (picture for _ in indices)

def hang(path, indices, times, threads):
    ctypes.PyDLL(None).sleep(1000)  # with the interpreter's lock
    yield

def slow(path, indices, times, threads):
    time.sleep(6)
    yield from still(path, indices)

def greedy(path, indices, times, threads):
    space = np.empty(2**31, np.uint8)  # as a decoder on a GPU reserves it
    assert space.nbytes
    yield from still(path, indices)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    (tmp_path / "fake_limits.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)


# --- how long it is ---------------------------------------------------------------------------------------------------

WORK = {"size": 10**12, "pictures": 10**7, "area": 2**27}


@given(
    limit=st.builds(
        Limit,
        st.floats(0.1, 1e4),
        *(st.integers(0, most) for most in WORK.values()),
        st.floats(1e6, 1e10),
    ),
    name=st.sampled_from(list(WORK)),
    more=st.integers(0, 10**6),
)
def test_the_limit_grows_with_the_work(limit, name, more):
    larger = replace(limit, **{name: getattr(limit, name) + more})
    assert larger.seconds >= limit.seconds >= limit.timeout
    assert larger.seconds <= limit.timeout + larger.size / 20e6 + kept._LONGEST
    assert str(limit).startswith(kept._seconds(limit.seconds))
    assert Limit(**json.loads(json.dumps(child.asdict(limit)))) == limit


def test_the_formula():
    assert Limit(60.0).seconds == 60
    assert Limit(60.0, size=10**9).seconds == 60 + 50
    hour = Limit(60.0, 0, 108_000, 1280 * 720, 160e6)
    assert hour.seconds == 60 + 108_000 * 1280 * 720 / (160e6 / 4)
    assert str(hour) == "2,548 s (60 s, 2,488 s to decode 108,000 pictures of 0.92 megapixels)"
    assert str(Limit(60.0, 1000)) == "60 s"


def test_a_short_clip_is_not_worth_a_measurement(monkeypatch):
    monkeypatch.setattr(kept, "decoding_rate", lambda: 100e6)
    assert Limit(60.0).for_work(900, 640 * 360) == Limit(60.0)
    assert Limit(60.0).for_work(9000, 640 * 360) == Limit(60.0, 0, 9000, 640 * 360, 100e6)


def test_the_rate_of_this_machine():
    assert 1e6 < decoding_rate() < 1e11
    assert decoding_rate() == decoding_rate()


# --- who keeps to it --------------------------------------------------------------------------------------------------


def test_a_slow_decoder_is_not_killed_while_there_is_much_to_decode(fakes, long_video):
    with Decoder("fake_limits:slow", timeout=2.0) as decoder:
        assert decoder.read(long_video, first(20_000)).any()
        with pytest.raises(VideoError, match="gives no answer within 2 s; if the file plays, raise the limit"):
            decoder.read(long_video, first(60))


def test_a_decoder_that_hangs_is_killed_at_the_limit_that_is_said(fakes, long_video):
    with Decoder("fake_limits:hang", timeout=2.0) as decoder:
        begin = time.monotonic()
        with pytest.raises(VideoError) as caught:
            decoder.read(long_video, first(1500))
        took = time.monotonic() - begin
    found = re.fullmatch(
        rf"{long_video}: the decoder gives no answer within ([\d.,]+) s "
        r"\(2 s, ([\d.,]+) s to decode 1,[45]\d\d pictures of 0.00026 megapixels\); if the file plays, raise the limit "
        r"\(data.video_cache.timeout in training, --timeout of `verl-stvg cache build`\), else encode the video again",
        str(caught.value),
    )
    assert found, caught.value
    limit, decoding = (float(number.replace(",", "")) for number in found.groups())
    assert limit == pytest.approx(2 + decoding, abs=0.6)
    assert 0.9 * limit <= took <= 10 * (limit + 1)  # a busy machine is late to kill it


def test_the_child_sets_its_alarm_to_what_it_tells_its_parent(long_video, tmp_path, monkeypatch):
    alarms, plan = [], first(1500)
    monkeypatch.setattr(child.signal, "setitimer", lambda _, seconds: alarms.append(seconds))
    (tmp_path / "frames").write_bytes(bytes(plan.num_frames * plan.height * plan.width * 3))
    request = {"path": str(long_video), "plan": vars(plan), "needs": None, "out": str(tmp_path / "frames"), "offset": 0}
    told, says = os.pipe()
    given_first = Limit(1.0, 10**8)
    worker = serve._Worker("pyav", 1, None, -1, says)
    answer = worker.handle({**request, "limit": child.asdict(given_first)})
    assert answer == {}
    limit = Limit(**json.loads(os.read(told, 1 << 16))["limit"])
    assert alarms == [given_first.seconds + serve._GRACE, limit.seconds + serve._GRACE]
    assert limit.seconds > given_first.seconds == 6 and limit.rate == decoding_rate()
    for end in (told, says):
        os.close(end)


def test_reading_is_limited_by_the_size_of_the_file(long_video, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(child._Child, "ask", lambda self, request, limit: limits.append(limit) or {"notes": []})
    with Decoder(timeout=5.0) as decoder:
        for path in (long_video, tmp_path / "missing.mp4"):
            decoder._call({"path": str(path)})
    assert limits == [Limit(5.0, long_video.stat().st_size), Limit(5.0)]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_video(tmp_path_factory) -> Path:
    """20 pictures of 4K, eight of which the decoder keeps to predict others."""
    return write_video(tmp_path_factory.mktemp("large") / "large.mp4", 20, 3840, 2160, grain=8, refs="8")


@pytest.fixture
def tight(monkeypatch) -> Iterator[Decoder]:
    """What pages decode with, under a bound that is far too low for large pictures."""
    with Decoder(threads=1, memory=48 * 2**20) as decoder:
        for page in (thumbnails, show, clips):
            monkeypatch.setattr(page, "shared_decoder", lambda: decoder)
        yield decoder


def page_rows(folder: Path, *videos: Path) -> Path:
    """A file of rows, each about one of the videos."""
    rows = [fuzz.good_row(k, "time_r1") for k in range(len(videos))]
    for row, video in zip(rows, videos, strict=True):
        row["videos"][0] |= {"video": str(video), "fps": 10.0}
        row["extra_info"] |= {"duration": None}
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_a_page_of_rows_goes_on_past_a_video_over_the_limits(tight, large_video, tmp_path):
    second = write_video(tmp_path / "second.mp4", 60, 16, 16)
    reason = f"{large_video}: needs more memory to decode than 0.047 GiB"
    with pytest.raises(VideoError, match=reason):
        thumbnails.thumbnails(large_video, 8, 200, 10_000)
    assert len(thumbnails.thumbnails(second, 8, 200, 10_000)[0]) == 8
    file = page_rows(tmp_path, large_video, second)
    assert show.write([file], tmp_path / "rows.html") == 2
    page = (tmp_path / "rows.html").read_text(encoding="utf-8")
    assert reason in page and page.count("data:image/jpeg") == 8


def test_a_page_of_clips_goes_on_past_a_video_over_the_limits(tight, large_video, tmp_path):
    second = write_video(tmp_path / "second.mp4", 60, 16, 16)
    rows = clips.Rows([page_rows(tmp_path, large_video, second)])
    found = [clips.Clip(f"fuzz/train/{k}", "", 2.0, None, {}, (), 0.0, None) for k in range(2)]
    (large, small), notices = clips.draw(found, (), rows, 10_000)
    assert large["frames"] == [] and small["frames"][0]["source"].startswith("data:image/jpeg")
    assert "The frames of 1 of 2 clips cannot be shown" in notices[0] and "needs more memory" in notices[0]


def test_frames_are_tried_out_without_taking_them(long_video, tmp_path, monkeypatch):
    monkeypatch.setattr(child.tempfile, "tempdir", str(tmp_path))
    with Decoder() as decoder:
        assert decoder.try_out(long_video, first(60)) is None
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        with pytest.raises(VideoError, match="broken.mp4"):
            decoder.try_out(tmp_path / "broken.mp4", first(60))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.mp4"]


def child_pid(decoder: Decoder) -> int:
    """Process of a decoder with one idle child."""
    idle = decoder._idle.get()
    decoder._idle.put(idle)
    return idle.process.pid


def test_a_video_that_needs_too_much_memory_is_refused(large_video, long_video):
    """With a bound that is far too low, whatever FFmpeg makes of it."""
    reason = f"{large_video}: needs more memory to decode than 0.047 GiB; encode the video again, smaller"
    with Decoder(threads=1, memory=48 * 2**20) as decoder:
        for _ in range(2):
            assert decoder.read(long_video, first(60)).any()
            with pytest.raises(VideoError, match=reason):
                decoder.read(large_video, first(20, 3840, 2160, fps=10))


def test_what_counts_as_a_lack_of_memory(monkeypatch):
    size = 1000 * 2**20
    monkeypatch.setattr(serve, "_address_space", lambda: (size, size))
    bounds = serve._Memory(child.MEMORY)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with bounds:
        assert resource.getrlimit(resource.RLIMIT_AS) == (size + child.MEMORY, before[1])
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    missing = av.error.MemoryError(12, "Cannot allocate memory")
    assert bounds.ran_out(missing) and bounds.ran_out(MemoryError())
    assert bounds.ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert bounds.ran_out(caused(MemoryError())) and bounds.ran_out(caused(OSError("Cannot allocate memory")))
    assert not bounds.ran_out(caused(missing)) and not bounds.ran_out(caused(ValueError()))
    assert not bounds.ran_out(VideoError("bad_alloc.mp4: is damaged"))
    monkeypatch.setattr(serve, "_address_space", lambda: (size, size + child.MEMORY - 2**20))
    assert bounds.ran_out(caused(missing)) and bounds.ran_out(VideoError("clip.mp4: is damaged"))


def caused(cause: Exception) -> VideoError:
    """The error that reading a video ends in."""
    error = VideoError("clip.mp4: cannot be used")
    error.__cause__ = cause
    return error


def test_damage_is_no_lack_of_memory(long_video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(long_video.read_bytes()[:1000])
    with Decoder(threads=1, memory=2**26) as decoder:
        decoder.probe(long_video)
        pid = child_pid(decoder)
        with pytest.raises(VideoError, match="its index, moov, is missing"):
            decoder.probe(tmp_path / "broken.mp4")
        assert child_pid(decoder) == pid


def test_large_pictures_and_long_plans_need_a_fraction_of_the_bound(large_video, long_video):
    assert child.MEMORY >= 4 * 2**30
    with Decoder(threads=1, memory=child.MEMORY // 4) as decoder:
        assert decoder.probe(large_video).num_frames == 20
        assert decoder.read(large_video, first(20, 3840, 2160, fps=10)).any()
        assert decoder.read(long_video, first(20_000)).any()


def test_a_decoder_of_ones_own_is_not_bound(fakes, long_video):
    with Decoder("fake_limits:greedy", memory=2**20) as decoder:
        assert decoder.read(long_video, first(60)).any()
