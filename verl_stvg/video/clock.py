"""When each picture of a video is on show: the one map between frame numbers and seconds.

The clock is the player's. It starts with the file, and where the sound starts well before the first picture, that is
before the first picture. Frame numbers count the pictures that are shown, from 0, in the order in which they are shown.

At a constant rate picture k appears at ``k / fps``. Phones, screen recorders and chat programs write files in which it
does not; then the map is the list of times that the file gives, and nothing here multiplies by a rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROUNDING = 1e-3
"""Seconds by which a picture may seem late: containers round times, Matroska to a thousandth of a second."""


@dataclass(frozen=True)
class FrameClock:
    """Frame numbers and seconds of one video.

    Attributes:
        num_frames: pictures that are shown.
        fps: pictures per second of the whole duration.
        times: (N,) seconds at which each picture appears, never decreasing; None: picture k appears at ``k / fps``.
        end: seconds at which the last picture goes; None: ``num_frames / fps``.
    """

    num_frames: int
    fps: float
    times: tuple[float, ...] | None = None
    end: float | None = None

    def __post_init__(self):
        if self.times is not None and len(self.times) != self.num_frames:
            raise ValueError(f"{len(self.times)} times for {self.num_frames} frames")

    @property
    def duration(self) -> float:
        """Seconds from the start of the clock to the end of the last picture."""
        return self.num_frames / self.fps if self.end is None else self.end

    @property
    def start(self) -> float:
        """Seconds at which the first picture appears."""
        return self.times[0] if self.times else 0.0

    def seconds(self, frame: float) -> float:
        """When a frame begins; between two frames, and beyond both ends, by proportion.

        Frame ``num_frames`` begins when the last picture goes, so that the end of a span of frames is a time, too.
        """
        if self.times is None:
            return frame / self.fps
        bounds, last = self._bounds, self.num_frames
        if frame >= last:
            return float(bounds[-1] + (frame - last) / self.fps)
        if frame < 0:
            return float(bounds[0] + frame / self.fps)
        k = int(frame)
        return float(bounds[k] + (frame - k) * (bounds[k + 1] - bounds[k]))

    def place(self, seconds: float) -> float:
        """The inverse of `seconds`: a frame number with a fraction."""
        if self.times is None:
            return seconds * self.fps
        bounds, last = self._bounds, self.num_frames
        if seconds >= bounds[-1]:
            return last + (seconds - float(bounds[-1])) * self.fps
        if seconds < bounds[0]:
            return (seconds - float(bounds[0])) * self.fps
        k = int(np.searchsorted(bounds, seconds, side="right")) - 1
        return k + (seconds - float(bounds[k])) / float(bounds[k + 1] - bounds[k])

    def nearest(self, seconds: float) -> int:
        """The frame whose beginning is nearest; there may be no such frame, beyond the ends."""
        if self.times is None:
            return math.floor(seconds * self.fps + 0.5)
        low = math.floor(self.place(seconds))
        return low if seconds - self.seconds(low) < self.seconds(low + 1) - seconds else low + 1

    def first_shown(self, begin: float | None) -> int:
        """The frame that is number 0 where only the part of the file from ``begin`` on is shown, in seconds."""
        if not begin:
            return 0
        return max(round(begin * self.fps), 0) if self.times is None else int(self.on_show(begin))

    def in_file(self, first_frame: int, begin: float | None, first_frame_of: str | None) -> int:
        """The number in the file of the first frame of a row's tube.

        Args:
            first_frame: of the row's ground truth.
            begin: seconds of the file at which what is shown begins.
            first_frame_of: of the row's ``extra_info``. ``shown``: frames count in what is shown. Rows of older
                versions lack it, and count in the file.
        """
        return first_frame + (self.first_shown(begin) if first_frame_of == "shown" else 0)

    def on_show(self, seconds: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """Frames on show at some times: the last one that appears at or before each, within `ROUNDING`.

        The first picture stands for what comes before it, the last one for what comes after it.

        Returns:
            int64 array, of the shape of `seconds`.
        """
        grid = np.asarray(seconds, dtype=np.float64) + ROUNDING
        if self.times is None:
            found = np.floor(grid * self.fps).astype(np.int64)
        else:
            found = np.searchsorted(np.asarray(self.times), grid, side="right") - 1
        return np.clip(found, 0, self.num_frames - 1)

    @cached_property
    def _bounds(self) -> np.ndarray:
        times = np.asarray(self.times, dtype=np.float64)
        return np.append(times, max(self.duration, times[-1]))
