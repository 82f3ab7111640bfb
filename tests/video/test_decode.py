"""The right frames of real files, by every decoder and past damage; errors name the file where there are none."""

import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_stvg.video.clock import FrameClock
from verl_stvg.video.decode import (
    HOLD_SECONDS,
    DecoderError,
    VideoError,
    _hold,
    load_decoder,
    needed_frames,
    probe,
    read_frames,
)
from verl_stvg.video.plan import SamplingPlan, plan_video

BUDGET = {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}


def loads(name: str) -> bool:
    """Whether a decoder is installed and finds its libraries."""
    try:
        load_decoder(name)
    except DecoderError:
        return False
    return True


INSTALLED = [name for name in ("pyav", "decord", "torchcodec") if loads(name)]


def write_counting_video(path, frames=60, rate=30, size=56, stamps=None, **options):
    """Each frame's grey level tells its index; `stamps` are presentation times in milliseconds, `options` x264's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", **options}
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(frames):
            image = np.full((size, size, 3), 20 + 3 * k, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def indices(frames):
    """Which frames of a counting video these are."""
    return np.rint((frames.mean(axis=(1, 2, 3)) - 20) / 3).astype(int).tolist()


@pytest.mark.parametrize("rate", [12, 24, 30])
def test_frames_are_those_on_show_at_the_grid_times(tmp_path, rate):
    path = write_counting_video(tmp_path / "count.mp4", rate=rate)
    info = probe(path)
    assert (info.num_frames, info.fps, info.width, info.height) == (60, rate, 56, 56)
    plan = plan_video(info.num_frames, info.fps, info.width, info.height, **BUDGET)
    frames = read_frames(path, plan)
    assert frames.shape == (plan.num_frames, 56, 56, 3) and frames.dtype == np.uint8
    assert indices(frames) == list(plan.frame_indices)


def test_resized_to_the_plan(tmp_path):
    path = write_counting_video(tmp_path / "count.mp4", size=112)
    plan = plan_video(60, 30.0, 112, 112, **BUDGET)
    assert read_frames(path, plan).shape[1:] == (56, 56, 3)


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>"])
def test_no_video_names_the_file(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match="clip.mp4"):
        probe(path)


def test_truncated_video_is_refused_and_never_filled_up(tmp_path):
    path = write_counting_video(tmp_path / "whole.mp4", frames=59)
    plan = plan_video(120, 30.0, 56, 56, **BUDGET)  # the row says 4 s, the file has 2
    with pytest.raises(VideoError, match="decodes up to .* only"):
        read_frames(path, plan)


def test_audio_only(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


# --- one policy for all decoders --------------------------------------------------------------------------------------

UNEVEN = np.cumsum(np.random.default_rng(2).integers(5, 150, 60)).tolist()
KINDS = {
    "even": {},
    "open groups": {"x264-params": "open-gop=1", "g": "12", "bf": "3"},
    "uneven": {"stamps": UNEVEN},
    "uneven, late start": {"stamps": [stamp + 5000 for stamp in UNEVEN]},
}


@pytest.mark.parametrize("decoder", INSTALLED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_gives_the_frames_on_show(tmp_path, kind, decoder):
    path = write_counting_video(tmp_path / "count.mp4", **KINDS[kind])
    info = probe(path)
    plan = plan_video(info.num_frames, info.fps, info.width, info.height, fps=6.0, **BUDGET)
    frames = read_frames(path, plan, decoder=decoder)
    if "stamps" in KINDS[kind]:
        times = (np.array(UNEVEN) - UNEVEN[0]) / 1000
        on_show = [int(np.flatnonzero(times <= time + 1e-3)[-1]) for time in plan.timestamps]
    else:
        on_show = list(plan.frame_indices)
    assert indices(frames) == on_show
    assert np.abs(frames.astype(int) - read_frames(path, plan)).max() <= 2


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=40), start=st.integers(0, 3000), fps=st.floats(0.5, 30.0)
)
def test_any_frame_times(tmp_path_factory, gaps, start, fps):
    stamps = np.cumsum([start, *gaps]).tolist()
    path = tmp_path_factory.mktemp("times") / "count.mp4"
    write_counting_video(path, len(stamps), size=28, stamps=stamps, preset="ultrafast", bf="2")
    times, slack = (np.array(stamps) - start) / 1000, 1e-3
    grid = np.arange(0, times[-1] + slack, 1 / fps)
    near = np.abs((times - slack)[:, None] - grid).min(axis=0) < 2e-3  # either neighbour is right
    grid = tuple(grid[~near].tolist()) or (times[-1],)
    frames = read_frames(path, SamplingPlan((0,) * len(grid), grid, 28, 28, fps))
    assert indices(frames) == [int(np.flatnonzero(times - slack <= time)[-1]) for time in grid]


def test_a_decoder_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_decoder.py").write_text(
        "import numpy as np\n"
        "def read(path, indices, times, threads):\n"
        "    assert path.endswith('count.mp4') and times[:2] == [0.0, 0.5] and threads == 1\n"
        "    return [np.full((56, 56, 3), 20 + 3 * k, np.uint8) for k in indices]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write_counting_video(tmp_path / "count.mp4")
    plan = plan_video(60, 30.0, 56, 56, **BUDGET)
    out = np.zeros((plan.num_frames, 56, 56, 3), np.uint8)
    assert read_frames(path, plan, decoder="own_decoder:read", threads=1, out=out) is out
    assert indices(out) == list(plan.frame_indices)
    with pytest.raises(DecoderError, match="own_decoder.py defines no write"):
        read_frames(path, plan, decoder="own_decoder:write")
    with pytest.raises(ValueError, match="out must be uint8"):
        read_frames(path, plan, out=out[:1])


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_a_decoder_that_is_not_installed(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DecoderError, match=f"`pip install {name}` or use decoder=pyav"):
        read_frames(write_counting_video(tmp_path / "count.mp4"), plan_video(60, 30.0, 56, 56), decoder=name)


# --- damage -----------------------------------------------------------------------------------------------------------


def broken_video(path, frame, rate=30):
    """Four seconds with a keyframe every second; the packet of one frame is zeroed."""
    path = write_counting_video(path, frames=78, rate=rate, g=str(rate), keyint_min=str(rate), sc_threshold="0")
    with av.open(str(path)) as container:
        packets = sorted((packet for packet in container.demux(video=0) if packet.size), key=lambda packet: packet.pts)
        start, size = packets[frame].pos, packets[frame].size
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes(size) + data[start + size :])
    return path


def test_frames_predicted_from_a_broken_packet_are_lost_up_to_the_next_keyframe(tmp_path, caplog):
    path = broken_video(tmp_path / "broken.mp4", frame=30)  # the keyframe of the second second
    plan = plan_video(78, 30.0, 56, 56, fps=4.0, **BUDGET)
    with pytest.raises(VideoError, match="broken.mp4: is damaged, .* the row needs are lost, from 1.750 to 1.750 s"):
        read_frames(path, plan)
    frames = read_frames(path, plan, needs=(0.0, 1.2))
    held = [29, 29, 29]  # at 1.0 s, where it should have left, 1.25 and 1.5 s, and no longer
    assert indices(frames[:7]) == [0, 7, 15, 22, *held]
    assert not frames[7].any()
    assert indices(frames[8:]) == [60, 67]
    assert "3 of 10 frames stand in for lost ones" in caplog.text
    assert "1 of 10 frames are lost, outside the span needed, and black" in caplog.text


def test_a_broken_packet_that_no_frame_on_show_needs(tmp_path, caplog):
    path = broken_video(tmp_path / "broken.mp4", frame=59)  # the last before a keyframe
    plan = plan_video(78, 30.0, 56, 56, **BUDGET)
    assert indices(read_frames(path, plan)) == list(plan.frame_indices)
    assert not caplog.text


@given(
    gaps=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20),
    lost=st.sets(st.integers(0, 20)),
    grid=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=20).map(sorted),
)
def test_a_frame_stands_in_for_half_a_second_at_most(gaps, lost, grid):
    times = np.cumsum([0.0, *gaps])
    clock = FrameClock(len(times), len(times) / (times[-1] + 0.01), tuple(times.tolist()), float(times[-1] + 0.01))
    sound = np.array([k not in lost for k in range(len(times))])
    shown = np.where(np.array(grid) <= clock.duration, clock.on_show(grid), -1)
    for time, right, held in zip(grid, shown, _hold(grid, shown, clock, sound), strict=True):
        before = [k for k in range(right) if sound[k]]
        if right < 0 or sound[right]:
            assert held == right
        elif before:
            assert held == (before[-1] if time - times[before[-1] + 1] <= HOLD_SECONDS else -1)
        else:
            first = [k for k in range(len(times)) if sound[k]][:1]
            assert held == (first[0] if first and times[first[0]] - time <= HOLD_SECONDS else -1)


@given(start=st.floats(0.0, 9.9), length=st.floats(0.0, 20.0))
def test_a_span_needs_the_frames_on_show_in_it(start, length):
    plan = plan_video(300, 30.0, 56, 56, **BUDGET)
    needed = needed_frames(plan, (start, start + length))
    assert needed.tolist() == [time + 0.5 > start and time <= start + length for time in plan.timestamps]
    with pytest.raises(ValueError, match="no frame lies in the span needed"):
        needed_frames(plan, (10.5, 20.0))


def test_a_title_that_is_no_text(tmp_path):
    path = tmp_path / "count.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 56
        for _ in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((56, 56, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfe\xff\xfe\xff"))
    assert probe(path).num_frames == 60
