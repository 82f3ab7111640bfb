"""Every kind of file: what is shown, when and how, by every decoder; the truth is how the file was made."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.video_kinds import KINDS, has_encoder, number_of, shown
from tests.video.test_decode import INSTALLED
from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.video.decode import VideoError, probe, read_frames
from verl_stvg.video.plan import plan_video

USABLE = [name for name, kind in KINDS.items() if kind.times is not None and len(kind.times) > 1]
AS_FFMPEG = {"edits_two_preroll", "slides_cut_mp4"}
"""What players that stand on FFmpeg show counts, though the file asks for something else; see `Kind.referee`."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Path of a kind's file, made once."""
    folder, made = tmp_path_factory.mktemp("kinds"), {}

    def file(name):
        kind = KINDS[name]
        if kind.needs and not has_encoder(kind.needs):
            pytest.skip(f"this ffmpeg has no {kind.needs}")
        if name not in made:
            made[name] = folder / f"{name}{kind.ending}"
            kind.write(made[name])
        return made[name]

    return file


def truth(path, name):
    """The kind, or what FFmpeg shows of it where that counts."""
    kind = KINDS[name]
    if name not in AS_FFMPEG:
        return kind
    seen = shown(path, kind.stream)
    codes, times = [number_of(image) for _, image in seen], [time - seen[0][0] for time, _ in seen]
    return replace(kind, codes=codes, times=times, duration=None)


@pytest.mark.parametrize("name", USABLE)
def test_what_is_shown_and_when(files, name):
    path, kind = files(name), truth(files(name), name)
    info = probe(path)
    assert info.num_frames == len(kind.codes)
    times = [info.clock.seconds(k) for k in range(info.num_frames)]
    np.testing.assert_allclose(times, kind.times, atol=kind.slack + 1e-3)
    if kind.duration is not None:
        assert info.duration == pytest.approx(kind.duration, abs=kind.slack + 1e-3)
    width, height = kind.size
    assert (info.width, info.height) == (width, height) or kind.aspect != 1
    frames = VideoFrames(path)
    assert [number_of(image) for image in frames.read(0, info.num_frames)] == list(kind.codes)


@pytest.mark.parametrize("decoder", INSTALLED)
@pytest.mark.parametrize("name", USABLE)
def test_every_decoder_gives_the_same_frames(files, name, decoder):
    path, kind = files(name), truth(files(name), name)
    info = probe(path)
    size = {"min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28, "clock": info.clock}
    for rule, fps in (("grid", 8.0), ("qwen_vl_utils", 4.0)):
        plan = plan_video(info.num_frames, info.fps, info.width, info.height, rule=rule, fps=fps, **size)
        frames = read_frames(path, plan, decoder=decoder)
        got = [number_of(image) for image in frames]
        if rule == "qwen_vl_utils":
            assert got == [kind.codes[index] for index in plan.frame_indices]
        for time, code in zip(plan.timestamps, got, strict=True):
            first, last = (place_of(kind, time + apart) for apart in (-kind.slack - 1e-3, kind.slack + 1e-3))
            assert code in kind.codes[first : last + 1]
        assert np.abs(frames.astype(int) - read_frames(path, plan)).max() <= 6


def place_of(kind, time):
    """Which picture is on show at a time; the first one stands for what comes before it."""
    return max(0, int(np.searchsorted(kind.times, time, side="right")) - 1)


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(USABLE)))
def test_a_file_whose_times_cannot_be_had_is_named(files, name):
    path = files(name)
    with pytest.raises(VideoError, match=path.name):
        probe(path)
