"""How long decoding a video may take: the limit grows with the work, and is measured in what this machine decodes."""

import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import av
import numpy as np

from verl_stvg.video.film import MAX_AREA

_DISK_RATE = 20e6  # bytes per second that the slowest disk or network reads
_SLOW_RATE = 64e6  # pixels per second that any machine decodes
_LEAST_AREA = 2**16  # pixels; smaller pictures take as long, for the calls around them
_LONGEST = 12 * 3600.0  # seconds that decoding may take, whatever the packets claim


@dataclass(frozen=True)
class Limit:
    """How long a request may take, and why; `str` gives both.

    >>> str(Limit(60.0, 100_000_000, 27_000, 1280 * 720, 160e6))
    '687 s (60 s, 5 s to read 100 MB, 622 s to decode 27,000 pictures of 0.92 megapixels)'

    Attributes:
        timeout: seconds that any request may take.
        size: bytes of the video; a slow disk is no hang.
        pictures: how many have to be decoded; 0 where ``timeout`` is enough for them on any machine.
        area: of a picture, pixels.
        rate: pixels per second that this machine decodes; a quarter of it is enough.
    """

    timeout: float
    size: int = 0
    pictures: int = 0
    area: int = 0
    rate: float = _SLOW_RATE

    @property
    def reading(self) -> float:
        """Seconds to read the video."""
        return self.size / _DISK_RATE

    @property
    def decoding(self) -> float:
        """Seconds to decode the pictures."""
        pixels = self.pictures * min(max(self.area, _LEAST_AREA), MAX_AREA)
        return min(4 * pixels / self.rate, _LONGEST)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.timeout + self.reading + self.decoding

    def for_work(self, pictures: int, area: int) -> "Limit":
        """The limit for so many pictures of that area. Measures this machine, unless there is little to do."""
        work = replace(self, pictures=pictures, area=area)
        return self if work.decoding <= self.timeout else replace(work, rate=decoding_rate())

    def __str__(self) -> str:
        parts = [_seconds(self.timeout)]
        if self.reading >= 1:
            parts.append(f"{_seconds(self.reading)} to read {self.size / 1e6:,.0f} MB")
        if self.pictures:
            area = f"{self.area / 1e6:.2g} megapixels"
            parts.append(f"{_seconds(self.decoding)} to decode {self.pictures:,} pictures of {area}")
        return _seconds(self.seconds) + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


@cache
def decoding_rate() -> float:
    """Pixels per second of H.264 that one thread of this machine decodes; measured once per process, in 0.2 s.

    The clip is one that is hard to decode. x264's ``superfast`` spends 0.4 bits per pixel on it, as a camera does, with
    arithmetic coding and deblocking, which ``ultrafast`` leaves out (1.4 times as fast to decode). Slower presets
    predict a picture that only moves so well that little is left to decode (2.2 times as fast).
    """
    if "libx264" not in av.codecs_available:
        return _SLOW_RATE
    width, height, count = 640, 360, 24
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", Fraction(1, 30)
    encoder.options, encoder.thread_count = {"preset": "superfast"}, 1
    shape = (height // 4 + count, width // 4 + count, 3)
    texture = np.random.default_rng(0).integers(0, 255, shape, np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    packets = []
    for k in range(count):
        picture = np.ascontiguousarray(texture[k : k + height, 2 * k : 2 * k + width])
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = k
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    begin = time.perf_counter()
    decoded = sum(len(decoder.decode(packet)) for packet in [*packets, None])
    return decoded * width * height / (time.perf_counter() - begin)
