"""What a video file holds, found in its packets: which pictures are shown, when, how large, and for how long."""

from dataclasses import dataclass
from functools import cached_property

from verl_stvg.video.clock import FrameClock


class VideoError(ValueError):
    """A video that cannot be used; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is to whoever watches it.

    Attributes:
        num_frames: pictures that are shown.
        fps: pictures per second, from the first picture to the end of the last.
        width: as shown, pixels: turned, mirrored and stretched as the file asks for.
        height: the same.
        times: (N,) seconds at which the pictures appear, see `FrameClock`; None where the rate is constant.
        end: seconds at which the last picture goes; None where the rate is constant.
        notes: what is unusual about the file and changes what is seen, in words.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    times: tuple[float, ...] | None = None
    end: float | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def clock(self) -> FrameClock:
        """Frame numbers and seconds of the video."""
        return FrameClock(self.num_frames, self.fps, self.times, self.end)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.clock.duration
