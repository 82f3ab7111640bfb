"""Where a run keeps its frames and how it makes them: cache and decoder, in words that every process shares.

It imports neither torch nor verl: the commands that fill a cache start with it.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from verl_stvg.video.cache import DECODE_POLICY, FrameCache
from verl_stvg.video.child import Decoder
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.plan import SamplingPlan


def default_folder() -> str:
    """Where frames are kept if nothing is said: ``verl_stvg/frames`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(home, "verl_stvg", "frames").absolute())


@dataclass(frozen=True)
class FrameStore:
    """Where frames are kept and how they are made; the same words in every process give the same cache.

    Attributes:
        folder: of the `FrameCache`.
        max_bytes: bound of the cache, None for none.
        decoder: see `verl_stvg.video.decode.read_frames`.
        timeout: seconds after which a decoder is killed; long videos get more, see `verl_stvg.video.child.Limit`.
    """

    folder: str
    max_bytes: int | None = None
    decoder: str = "pyav"
    timeout: float = 60.0

    @property
    def cache(self) -> FrameCache:
        """This process's cache of that folder."""
        return _cache(self.folder, self.max_bytes, DECODE_POLICY if self.decoder == "pyav" else self.decoder)

    def probe(self, path: str | Path) -> VideoInfo:
        """What a video says about itself, asked in a child process, which a video may crash or hang.

        Raises:
            VideoError: the video cannot be used.
        """
        return decoder_of(self.decoder, self.timeout).probe(path)

    def frames(self, path: str | Path, plan: SamplingPlan) -> np.ndarray:
        """Frames of a video, from the cache or decoded into it: read-only uint8 (T, H, W, 3).

        Raises:
            VideoError: the video cannot be decoded.
            CacheError: the cache cannot be written.
        """
        return self.cache.get(path, plan.whole, self.decode_into)

    def decode_into(self, path: str | Path, plan: SamplingPlan, out: np.memmap) -> None:
        """Decode the frames of a plan into `out`, uint8 (T, H, W, 3), in a child process.

        Args:
            path: of the video.
            plan: which frames, and their size.
            out: map of a file, whose part from its offset on takes the frames.

        Raises:
            VideoError: the video cannot be used, crashes its decoder or takes too long.
        """
        decoder_of(self.decoder, self.timeout).read_into(path, plan, out.filename, out.offset)


@cache
def _cache(folder: str, max_bytes: int | None, policy: str) -> FrameCache:
    return FrameCache(Path(folder), max_bytes, policy)


@cache
def decoder_of(name: str = "pyav", timeout: float = 60.0) -> Decoder:
    """This process's decoder of that name for requests that run at once, see `FrameStore`."""
    return Decoder(name, timeout, workers=os.cpu_count() or 1, threads=1)
