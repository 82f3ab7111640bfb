"""Videos that are made of the pictures of another one: H.264 of native size, each picture at its own time."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath

import av
import numpy as np
from av.container import OutputContainer

from verl_stvg.base.lock import replacing
from verl_stvg.video.identity import ENDINGS

_TICK = Fraction(1, 90_000)  # seconds


def find_numbered(folder: Path, video: str, root: Path) -> Path:
    """Where the copy of a video with IDs drawn is, or is to be written: ``a.mp4`` and ``a.mkv`` have one each.

    Older versions left the video's ending out of the name; such a file is taken where it can only be this video's.

    Args:
        folder: of the copies.
        video: relative to the root of the videos.
        root: of the videos.
    """
    name = PurePosixPath(video)
    path = folder / (video if name.suffix.lower() == ".mp4" else f"{video}.mp4")
    old = folder / name.with_suffix(".mp4")
    if path.is_file() or not old.is_file():
        return path
    others = {str(name.with_suffix(ending)) for lower in ENDINGS for ending in (lower, lower.upper())} - {video}
    return path if any((root / other).is_file() for other in others) else old


def write_video(
    out: Path,
    pictures: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: float,
    times: tuple[float, ...] | None = None,
    end: float | None = None,
) -> None:
    """Write an mp4 file, which is there whole or not at all; several processes may write one file at a time.

    Args:
        out: mp4 file.
        pictures: uint8 RGB (H, W, 3).
        size: (width, height).
        fps: pictures per second, on average.
        times: seconds at which the pictures appear, one for each; None: at a constant rate. The first one is on show
            from 0 on whatever its time, because a file without sound starts with its first picture.
        end: seconds at which the last picture goes; None: after the mean time of a picture.
    """
    with replacing(out) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        stamps = [] if times is None else _stamps(times, times[-1] + 1 / fps if end is None else end)
        lasting = {a: b - a for a, b in pairwise(stamps)}
        if stamps:
            stream.codec_context.time_base = _TICK
            stream.options |= {"bf": "0"}  # the file ends with the last packet, which has to be the last picture
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps:
                frame.pts, frame.time_base = stamps[k], _TICK
            _mux(container, stream.encode(frame), lasting)
        _mux(container, stream.encode(), lasting)


def _stamps(times: tuple[float, ...], end: float) -> list[int]:
    """Times of pictures and of their end in ticks, from 0 on, each later than the one before."""
    stamps = [0]
    for time in (*times[1:], end):
        stamps.append(max(round(time / _TICK), stamps[-1] + 1))
    return stamps


def _mux(container: OutputContainer, packets: list[av.Packet], lasting: dict[int, int]) -> None:
    for packet in packets:
        if packet.pts in lasting:  # the muxer would give the last picture the time of the one before
            packet.duration = lasting[packet.pts]
        container.mux(packet)
