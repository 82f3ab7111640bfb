"""Videos read block by block, forwards and backwards, for what walks through all of their frames.

`verl_stvg.video.decode.read_frames` decides which picture is which frame, and what to do about damage. It decodes from
the start of the file, which is right for the few frames that training wants, but a walk in blocks would decode the
start again and again: the longer the video, the more often. So it is given a decoder of its own here, which starts at
the keyframe before the block. Where that one fails, the usual way is taken.

Frame k of a video is the one on show at ``k / fps`` seconds, which is what sampling plans count in. Where the rate is
constant it is the k-th frame.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from verl_stvg.video.decode import VideoError, probe, read_frames
from verl_stvg.video.plan import SamplingPlan

_EARLIER = (0.0, 1.0, 5.0)  # seconds; containers look keyframes up by decoding time, which is before they are shown


class Frames(Protocol):
    """A video that can be read in pieces."""

    height: int
    width: int
    num_frames: int
    fps: float

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames ``start`` to ``stop - 1``, uint8 RGB (stop - start, H, W, 3); not written to."""
        ...


class VideoFrames:
    """`Frames` of a video file.

    Args:
        path: of the video.
        threads: of the decoder; 0 for as many as it likes.

    Raises:
        VideoError: missing, unreadable or empty file; `read` raises it for damaged ones.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        info = probe(path)
        self.path, self.threads = Path(path), threads
        self.height, self.width, self.num_frames, self.fps = info.height, info.width, info.num_frames, info.fps

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode a block of frames."""
        indices = tuple(range(start, stop))
        times = tuple(k / self.fps for k in indices)
        plan = SamplingPlan(indices, times, self.height, self.width, self.fps)
        try:
            return read_frames(self.path, plan, decoder=f"{__name__}:fetch_from_keyframe", threads=self.threads)
        except VideoError:  # damaged, or a container that cannot seek
            return read_frames(self.path, plan, threads=self.threads)


class ArrayFrames:
    """`Frames` that are in memory already.

    Args:
        array: uint8 RGB (T, H, W, 3).
        fps: frames per second.

    Raises:
        ValueError: no such array, or an empty one.
    """

    def __init__(self, array: np.ndarray, fps: float):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
            raise ValueError(f"frames must be uint8 (T, H, W, 3) and not empty, got {array.dtype} {array.shape}")
        self.array, self.fps = array, fps
        self.num_frames, self.height, self.width = array.shape[:3]

    def read(self, start: int, stop: int) -> np.ndarray:
        """A view of the frames."""
        return self.array[start:stop]


def walk(frames: Frames, buffer: int, back_from: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Every frame with its index, forwards; or backwards, from a frame to the first.

    Args:
        frames: of the video.
        buffer: bytes of frames to hold at once; at least one frame is.
        back_from: where to begin backwards; None for forwards.
    """
    size = max(1, buffer // (frames.height * frames.width * 3))
    count = frames.num_frames if back_from is None else back_from + 1
    turn = iter if back_from is None else reversed
    for start in turn(range(0, count, size)):
        block = frames.read(start, min(start + size, count))
        for k in turn(range(len(block))):
            yield start + k, block[k].copy()  # a view would keep this block while the next one is read
        del block


def fetch_from_keyframe(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    """A decoder for `read_frames` that begins at the keyframe before the first frame that is wanted.

    Raises:
        VideoError: any irregularity.
    """
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        origin = _first_stamp(container)
        wanted = [origin + round(time / stream.time_base) for time in times]
        begin, left, last = _seek(container, wanted[0], origin), wanted[::-1], origin - 1
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts < begin:
                continue  # shown before the keyframe, and perhaps predicted from frames that were passed over
            if frame.is_corrupt or frame.pts is None or frame.pts <= last:
                raise VideoError(f"{path}: is damaged near {times[0]:.3f} s; download or encode it again")
            last = frame.pts
            if left and last == left[-1]:
                left.pop()
                yield frame.to_ndarray(format="rgb24")
            elif not left:  # one more was decoded: frames before it may have been predicted from it
                return


def _first_stamp(container: av.container.InputContainer) -> int:
    """Time stamp of the frame that is shown first, even if it does not decode."""
    stamps = []
    for packet in container.demux(container.streams.video[0]):
        if packet.size and not packet.is_discard:
            stamps.append(packet.dts if packet.pts is None else packet.pts)
        if packet.decode():
            break
    return min(stamps)


def _seek(container: av.container.InputContainer, wanted: int, origin: int) -> int:
    """Go to a keyframe that is shown no later than a frame; the time stamp of the keyframe."""
    stream = container.streams.video[0]
    for seconds in _EARLIER:
        target = max(origin, wanted - round(seconds / stream.time_base))
        container.seek(target, stream=stream)
        for frame in container.decode(stream):
            if frame.key_frame and frame.pts is not None:
                if frame.pts <= wanted:
                    container.seek(target, stream=stream)
                    return frame.pts
                break
            if frame.pts is not None and frame.pts > wanted:
                break
    container.seek(origin, stream=stream)
    return origin
