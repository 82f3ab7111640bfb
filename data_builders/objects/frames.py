"""Videos read block by block, forwards and backwards, for what walks through all of their frames.

Frame k is the k-th picture that is shown, at whatever time: what track files, annotated tubes and sampling plans count.
`verl_stvg.video.decode` decides which picture that is, how it is turned, and what to do about damage. It does so in a
process of its own, within the limits of `verl_stvg.video.child`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from verl_stvg.video.child import shared_decoder
from verl_stvg.video.clock import FrameClock


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
    """`Frames` of a video file, decoded in a child process. Blocks that follow one another are decoded in one pass.

    Args:
        path: of the video.
        threads: of the decoder; 0 for as many as it likes.

    Raises:
        VideoError: missing, unreadable or empty file; `read` raises it for damaged ones, and both for a video that goes
            beyond the limits of `verl_stvg.video.child`.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        self._decoder = shared_decoder(threads)
        info = self._decoder.probe(path)
        self.path, self.clock = Path(path), info.clock
        self.height, self.width, self.num_frames, self.fps = info.height, info.width, info.num_frames, info.fps

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode a block of frames."""
        return self._decoder.block(self.path, start, stop, (self.height, self.width))


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
