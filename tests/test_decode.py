"""Reading real mp4 files: the right frames, and an error that names the file where there are none."""

import av
import numpy as np
import pytest

from verl_stvg.video.decode import VideoError, probe, read_frames
from verl_stvg.video.plan import plan_video

BUDGET = {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}


def write_counting_video(path, frames=60, rate=30, size=56):
    """Each frame's grey level tells its index."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1"}
        for k in range(frames):
            image = np.full((size, size, 3), 20 + 3 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("rate", [12, 24, 30])
def test_frames_are_those_on_show_at_the_grid_times(tmp_path, rate):
    path = write_counting_video(tmp_path / "count.mp4", rate=rate)
    info = probe(path)
    assert (info.num_frames, info.fps, info.width, info.height) == (60, rate, 56, 56)
    plan = plan_video(info.num_frames, info.fps, info.width, info.height, **BUDGET)
    frames = read_frames(path, plan)
    assert frames.shape == (plan.num_frames, 56, 56, 3) and frames.dtype == np.uint8
    seen = np.rint((frames.mean(axis=(1, 2, 3)) - 20) / 3).astype(int)
    assert seen.tolist() == list(plan.frame_indices)


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
