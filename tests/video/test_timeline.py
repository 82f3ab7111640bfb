"""One map between frames and seconds; what is kept of a walk over packets; sparse plans; rows without a video."""

import logging
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.video.test_decode import write_counting_video
from verl_stvg.data_builders.testing.tiny_parts import make_processor
from verl_stvg.rows.row import RowError
from verl_stvg.training.dataset import VideoGroundingDataset
from verl_stvg.video import decode, timeline
from verl_stvg.video.clock import ROUNDING, FrameClock
from verl_stvg.video.decode import VideoError, probe, read_frames
from verl_stvg.video.plan import plan_video

BUDGET = {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}


@st.composite
def clocks(draw):
    gaps = draw(st.lists(st.integers(2, 5000), min_size=2, max_size=40))
    times = np.cumsum([draw(st.sampled_from([0, 0, 2500])), *gaps]) / 1000
    return FrameClock(len(gaps), len(gaps) / float(times[-1]), tuple(times[:-1].tolist()), float(times[-1]))


@given(clocks(), st.floats(-5, 250))
def test_frames_and_seconds_are_one_map(clock, seconds):
    for frame in range(clock.num_frames + 1):
        assert clock.place(clock.seconds(frame)) == pytest.approx(frame, abs=1e-6)
    assert clock.seconds(clock.place(seconds)) == pytest.approx(seconds, abs=1e-6)
    begins = [clock.seconds(frame) for frame in range(-300, clock.num_frames + 2000)]
    assert abs(clock.seconds(clock.nearest(seconds)) - seconds) <= min(abs(b - seconds) for b in begins) + 1e-9
    shown = int(clock.on_show(seconds))
    assert shown == max([k for k, time in enumerate(clock.times) if time <= seconds + ROUNDING], default=0)


@given(st.integers(1, 5000), st.floats(1, 240), st.floats(0, 100))
def test_at_a_constant_rate_the_map_is_a_product(count, fps, seconds):
    clock = FrameClock(count, fps)
    assert clock.seconds(count) == count / fps and clock.place(seconds) == seconds * fps
    assert clock.nearest(seconds) == np.floor(seconds * fps + 0.5) and clock.duration == count / fps


# --- kept -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Folder of kept timelines, and a way to forget what the process remembers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(timeline, "_SETTLED", -1.0)
    monkeypatch.setattr(timeline, "_known", {})
    return tmp_path / "home/verl_stvg/timelines"


def again(monkeypatch, path):
    """The info of a file as a new process finds it; and how often it walked."""
    walks = []
    walk = timeline.walk
    monkeypatch.setattr(timeline, "_known", type(timeline._known)())
    monkeypatch.setattr(timeline, "walk", lambda *given: walks.append(given) or walk(*given))
    try:
        return probe(path), len(walks)
    finally:
        monkeypatch.setattr(timeline, "walk", walk)


def test_a_walk_is_kept_and_a_damaged_record_is_not_believed(tmp_path, kept, monkeypatch):
    path = write_counting_video(tmp_path / "a.mp4", stamps=np.cumsum(np.arange(60) % 7 * 10 + 20).tolist())
    info, walks = again(monkeypatch, path)
    assert walks == 1 and info.times is not None
    assert again(monkeypatch, path) == (info, 0)
    (record,) = kept.iterdir()
    whole = record.read_bytes()
    for bad in (b"", whole[: len(whole) // 2], whole.replace(b'"width": 56', b'"width": 57'), b"[]\n" + whole[-40:]):
        record.write_bytes(bad)
        assert again(monkeypatch, path) == (info, 1)
        assert record.read_bytes() == whole


def test_another_film_of_equal_size_and_time_is_looked_at(tmp_path, kept, monkeypatch):
    path, other = (write_counting_video(tmp_path / f"{n}.mp4", frames=n) for n in (60, 30))
    size = max(path.stat().st_size, other.stat().st_size)
    for one in (path, other):  # zeros after the last box are no box
        one.write_bytes(one.read_bytes() + bytes(size - one.stat().st_size))
    status = path.stat()
    assert again(monkeypatch, path)[0].num_frames == 60
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert again(monkeypatch, path)[0].num_frames == 30


def test_a_home_that_cannot_be_written(tmp_path, kept, monkeypatch):
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")  # no folder: even root cannot write below it
    path = write_counting_video(tmp_path / "a.mp4")
    assert again(monkeypatch, path)[0].num_frames == 60
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert again(monkeypatch, path)[0].num_frames == 60


# --- what is decoded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3"}, {"bf": "3", "x264-params": "open-gop=1"}])
def test_a_sparse_plan_gives_the_frames_of_a_whole_pass(tmp_path, monkeypatch, options):
    path = write_counting_video(tmp_path / "a.mp4", frames=78, g="6", keyint_min="6", sc_threshold="0", **options)
    plan = plan_video(78, 30.0, 56, 56, rule="qwen_vl_utils", fps=4.0, **BUDGET)
    frames, passes = [], []
    for sparse in (0.0, 0.99):
        monkeypatch.setattr(decode, "_SPARSE", sparse)
        frames.append(read_frames(path, plan, begins=lambda pictures, area: passes.append(pictures)))
    np.testing.assert_array_equal(*frames)
    assert len(passes) == 2 and passes[1] < passes[0]


def test_a_truncated_file_is_named(tmp_path):
    path = write_counting_video(tmp_path / "whole.mp4", movflags="faststart", frames=78, size=112)
    data = path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="cut.mp4: .*(is truncated|moov, is missing)"):
        probe(cut)


# --- training ---------------------------------------------------------------------------------------------------------


def test_rows_whose_video_cannot_be_used_are_refused_or_left_out_by_name(rows, tmp_path, caplog):
    table = pq.read_table(rows / "val.parquet").slice(0, 4).to_pylist()
    for row in table:
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
    write_counting_video(tmp_path / "still.mp4", frames=1)
    table[1]["videos"][0]["video"] = str(tmp_path / "still.mp4")
    table[2]["videos"][0]["video"] = str(tmp_path / "gone.mp4")
    pq.write_table(type(pq.read_table(rows / "val.parquet")).from_pylist(table), tmp_path / "val.parquet")
    processor = make_processor()
    config = {"max_prompt_length": 4096, "video_cache": {"folder": str(tmp_path / "frames")}}
    with pytest.raises(RowError, match=r"(?s)filter_unusable_videos=True.*row 2 .*gone.mp4: no such video"):
        VideoGroundingDataset(str(tmp_path / "val.parquet"), processor.tokenizer, OmegaConf.create(config), processor)
    config = OmegaConf.create(config | {"filter_unusable_videos": True})
    with caplog.at_level(logging.WARNING):
        kept = VideoGroundingDataset(str(tmp_path / "val.parquet"), processor.tokenizer, config, processor)
    assert len(kept) == 2
    assert "2 of 4 rows are left out" in caplog.text and "still.mp4: holds one picture" in caplog.text
