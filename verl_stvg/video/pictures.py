"""Pictures of a video one after another, by PyAV: which packets a decoder is given, and what comes out."""

from collections.abc import Container, Iterator
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from verl_stvg.video.container import opened, packets
from verl_stvg.video.film import Timeline, VideoError
from verl_stvg.video.timeline import timeline

PASS, FEED, SKIP = range(3)
"""What is done with a packet: passed over, after which the decoder starts anew; decoded; left out within a group."""


def pictures(path: str | Path, start: int, stop: int, threads: int = 0) -> Iterator[np.ndarray]:
    """Frames ``start`` to ``stop - 1`` of a video one after another, as shown: uint8 (H, W, 3), RGB.

    Args:
        path: of the video.
        start: frame of the video, from 0.
        stop: the frame after the last one.
        threads: of the decoder; 0 for as many as it likes.

    Raises:
        VideoError: missing, unreadable or damaged file.
    """
    path = Path(path)
    line = timeline(path)
    expected = start
    for number, frame in decode_packets(path, line, threads, fed_for(line, np.arange(start, stop))):
        index = -1 if frame is None else int(line.places[number])
        if frame is None or start <= index != expected:
            break
        if index == expected:
            yield line.as_shown(frame.to_ndarray(format="rgb24"))
            expected += 1
    if expected < stop:
        at = line.info.clock.seconds(expected)
        raise VideoError(f"{path}: is damaged near {at:.3f} s; download or encode it again")


def decode_packets(
    path: Path, line: Timeline, threads: int, fed: np.ndarray | None = None, keep: Container[int] | None = None
) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Pictures in order of presentation, each with the number of its packet.

    None in place of a picture: a packet that is broken, or a picture that the decoder calls corrupt or that comes out
    of order.

    Args:
        path: of the video.
        line: of the video.
        threads: of the decoder.
        fed: (P,) what is done with each packet, see `fed_for`; None: all are decoded.
        keep: packets whose pictures are wanted; others may be left out if no picture depends on them.
    """
    last = -1
    with opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        context = stream.codec_context
        context.thread_count = threads
        kept = keep if context.name == "h264" else None  # elsewhere layers blur what depends on what
        left = -1 if fed is None else int((fed == FEED).sum())
        running = fed is None
        for number, packet in chain(packets(container, stream), [(len(line.stamps), None)]):  # at last, what it holds
            end = packet is None
            if isinstance(packet, FFmpegError):
                if running:
                    yield number, None
                continue
            what = FEED if fed is None or end else fed[number] if number < len(fed) else PASS
            if what == SKIP or (what == PASS and not running):
                if not left:
                    return
                continue
            if what == PASS:
                packet = None
            elif packet is not None:
                packet.pts, packet.dts = number, None
                left -= 1
                if kept is not None:
                    context.skip_frame = "DEFAULT" if number in kept else "NONREF"
            try:
                frames = context.decode(packet)
            except FFmpegError:
                frames = []
                yield number, None
            for frame in frames:
                given = frame.pts
                place = line.places[given] if given is not None and given < len(line.places) else -1
                if given is None or frame.is_corrupt or place <= last:
                    yield number, None
                else:
                    last = place
                    yield given, frame
            running = packet is not None
            if not running and not end:
                context.flush_buffers()


def fed_for(line: Timeline, shown: np.ndarray) -> np.ndarray:
    """(P,) what is done with each packet to get some frames: `PASS`, `FEED` from a keyframe to each of them, `SKIP`.

    Skipped are pictures after a keyframe that come before it on screen: they lean on the group before.
    """
    fed = np.full(len(line.stamps), PASS, np.uint8)
    for number in line.numbers[np.unique(shown[shown >= 0])].tolist():
        start = line.start_of(number)
        part = fed[start : number + 1]
        leading = line.shown[start : number + 1] & (line.stamps[start : number + 1] < line.stamps[start])
        part[:] = np.where(leading & (part != FEED), SKIP, FEED)
        part[-1] = FEED
    return fed
