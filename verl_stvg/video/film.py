"""What is known of a video once its packets were looked at: for whoever watches it, and for decoders."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from verl_stvg.video.clock import FrameClock

MAX_AREA = 2**26
"""Largest area of a picture, pixels: twice 8K. More is refused before anything is decoded."""
NO_STAMP = np.iinfo(np.int64).min
"""Stands for the time stamp of a packet that has none."""


class VideoError(ValueError):
    """A video that cannot be used; the message names the file, the reason and the remedy."""


class TimelessVideo(VideoError):
    """A video whose times cannot be had: without an index, without time stamps, or of one picture."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is to whoever watches it.

    Attributes:
        num_frames: pictures that are shown.
        fps: pictures per second of the whole duration.
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

    @classmethod
    def of(cls, record: dict) -> "VideoInfo":
        """The info that `dataclasses.asdict` made a record of, which may have been JSON since."""
        times = None if record["times"] is None else tuple(record["times"])
        return cls(**record | {"times": times, "notes": tuple(record["notes"])})


@dataclass(frozen=True)
class Turn:
    """From a stored picture to the one on screen.

    Attributes:
        width: of the stored picture after stretching, pixels; None: it has square pixels.
        transposed: rows become columns.
        flip_x: then mirrored left to right.
        flip_y: and top to bottom.
    """

    width: int | None = None
    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The picture as shown, uint8 (H, W, 3), of one as stored."""
        if self.width not in (None, image.shape[1]):
            import cv2

            image = cv2.resize(image, (self.width, image.shape[0]), interpolation=cv2.INTER_LINEAR)
        if self.transposed:
            image = image.transpose(1, 0, 2)
        image = image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.ascontiguousarray(image)

    @property
    def moves(self) -> bool:
        """Whether a picture is turned or mirrored."""
        return self.transposed or self.flip_x or self.flip_y


@dataclass(frozen=True, eq=False)
class Timeline:
    """The packets of a film and the pictures they hold.

    Attributes:
        info: what is shown.
        stream: index of the film in its container.
        stored: (width, height) of a decoded picture, pixels.
        turn: what is done to it.
        stamps: (P,) int64 order of presentation of each packet, increasing with time; `NO_STAMP` where there is none.
        shown: (P,) bool, whether a packet holds a picture that is shown.
        keys: (P,) bool, whether a decoder can start with it.
        promised: seconds that the file's index says, where pictures are missing at its end; None: all are there.
        as_decoded: the file's times contradict the order in which its pictures come out, which counts.
    """

    info: VideoInfo
    stream: int
    stored: tuple[int, int]
    turn: Turn
    stamps: np.ndarray
    shown: np.ndarray
    keys: np.ndarray
    promised: float | None = None
    as_decoded: bool = False

    @cached_property
    def numbers(self) -> np.ndarray:
        """(N,) the packet of each picture, in order of presentation."""
        return in_order(self.stamps, self.shown)

    @cached_property
    def places(self) -> np.ndarray:
        """(P,) the picture that each packet holds; -1 for none."""
        places = np.full(len(self.stamps), -1)
        places[self.numbers] = np.arange(len(self.numbers))
        return places

    def as_shown(self, image: np.ndarray) -> np.ndarray:
        """The picture on screen of a decoded one, both uint8 (H, W, 3); some films change their size on the way."""
        if image.shape[1::-1] != self.stored:
            import cv2

            image = cv2.resize(image, self.stored, interpolation=cv2.INTER_LINEAR)
        return self.turn(image)

    def start_of(self, number: int) -> int:
        """The packet that a decoder has to start with to give the picture of a packet whole."""
        keys = self._starts
        k = int(np.searchsorted(keys, number, side="right")) - 1
        if k > 0 and self.stamps[number] < self.stamps[keys[k]]:  # leans on the group before
            k -= 1
        return int(keys[k]) if k >= 0 else 0

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.flatnonzero(self.keys)


def in_order(stamps: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(N,) the packets of the pictures that are shown, in order of presentation."""
    numbers = np.flatnonzero(shown)
    return numbers[np.argsort(stamps[numbers], kind="stable")]
