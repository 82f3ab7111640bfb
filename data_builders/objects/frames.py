"""Videos read block by block, forwards and backwards, for what walks through all of their frames.

Frame k is the k-th picture that is shown, at whatever time: what track files, annotated tubes and sampling plans count.
`verl_stvg.video.decode` decides which picture that is, how it is turned, and what to do about damage.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from verl_stvg.video.clock import FrameClock
from verl_stvg.video.decode import VideoError, read_frames
from verl_stvg.video.pictures import pictures
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.timeline import probe


class Frames(Protocol):
    """A video that can be read in pieces."""

    height: int
    width: int
    num_frames: int
    fps: float
    clock: FrameClock

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames ``start`` to ``stop - 1``, uint8 RGB (stop - start, H, W, 3); not written to."""
        ...


class VideoFrames:
    """`Frames` of a video file. Blocks that follow one another are decoded in one pass.

    Args:
        path: of the video.
        threads: of the decoder; 0 for as many as it likes.

    Raises:
        VideoError: missing, unreadable or empty file; `read` raises it for damaged ones.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        info = probe(path)
        self.path, self.threads, self.clock = Path(path), threads, info.clock
        self.height, self.width, self.num_frames, self.fps = info.height, info.width, info.num_frames, info.fps
        self._pass: tuple[int, Iterator[np.ndarray]] | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode a block of frames."""
        try:
            if self._pass is None or self._pass[0] != start:
                self._pass = start, pictures(self.path, start, self.num_frames, self.threads)
            block = np.stack(list(islice(self._pass[1], stop - start)))
            self._pass = stop, self._pass[1]
            return block
        except VideoError:  # damaged
            self._pass = None
            indices = tuple(range(start, stop))
            times = tuple(map(self.clock.seconds, indices))
            plan = SamplingPlan(indices, times, self.height, self.width, self.fps, by_index=True)
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
        self.clock = FrameClock(self.num_frames, fps)

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
