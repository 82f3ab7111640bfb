"""The frames of a plan from a video file, past damage, with what is drawn on them.

Which frame the model sees is decided from the file's timeline before anything is decoded: at each grid time the frame
on show, or the frames that the plan names. Every decoder is only asked for frames by their numbers and times, and they
are resized by the same code.

Damage (PyAV only; the other decoders refuse a damaged file at best, and decord may repeat frames in silence):

- Decoding goes on past a broken packet, but frames predicted from it are not used. Decoders fill what they cannot read
  with guesses, and such guesses spread until the next keyframe; so every frame from a broken packet to the next
  keyframe counts as lost, even where the decoder offers a picture. Damage that a decoder does not notice cannot be seen
  here either: some flipped bits change pixels and nothing else.
- A lost frame at a grid time is replaced by the last one before it, which stays on show at most `HOLD_SECONDS` longer
  than it should (at the very beginning by the first one after it, at most that much too early). This is logged.
- What lies further inside a lost stretch, or past the end of a truncated file, is never made up. If the caller needs
  it, the video is refused. If it does not (``needs``), the frame is black, and this is logged.
- Time stamps are believed unless they contradict the order in which the pictures come out. A header that lies about all
  of time consistently (its time scale) cannot be found out from the file; compare `probe` with what the row records.

OpenCV, markers and tracks are imported where they are used: the process that only probes files starts without them.
"""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from verl_stvg.video.clock import FrameClock
from verl_stvg.video.fetch import DECODERS, DecoderError, Differs, Fetch, Take, fetch_frames, load_decoder
from verl_stvg.video.film import Timeline, VideoError, VideoInfo
from verl_stvg.video.packets import Begins, nothing_begins
from verl_stvg.video.pictures import FEED, PASS, decode_packets, fed_for, pictures
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.timeline import probe, timeline

if TYPE_CHECKING:
    from verl_stvg.video.tracks import Tracks

__all__ = ["Blocks", "DecoderError", "VideoError", "VideoInfo", "load_decoder", "needed_frames", "probe", "read_frames"]

logger = logging.getLogger(__name__)

HOLD_SECONDS = 0.5
"""A frame may stand in for lost ones for this long: one step of the 2 fps grid."""
_SPARSE = 0.7  # of the packets: with fewer to decode, groups of pictures in between are passed over

Draw = Callable[[np.ndarray, int], np.ndarray]
"""Takes a frame, uint8 (H, W, 3), RGB, and its index in the video, and gives the frame with what is drawn on it."""


def read_frames(
    path: str | Path,
    plan: SamplingPlan,
    needs: tuple[float, float] | None = None,
    decoder: str = "pyav",
    threads: int = 0,
    out: np.ndarray | None = None,
    begins: Begins = nothing_begins,
) -> np.ndarray:
    """Decode the frames of a plan: at each grid time the frame on show (the last one presented at or before it).

    Times count from the first frame. Half a frame of slack absorbs rounding in time stamps, and the last frame stays on
    show for one frame interval. The module's description says what happens where a file is damaged.

    Args:
        path: of the video.
        plan: which frames, and their size.
        needs: start and end in seconds of what must be there, for example the annotated span; default: all of the
            plan. Frames outside of it that cannot be decoded are black. They are right for this span only: what is
            kept of them must be kept under plan *and* span.
        decoder: ``pyav``, ``decord``, ``torchcodec``, or ``package.module:function`` for a `Fetch` of your own.
        threads: of the decoder; 0 for as many as it likes.
        out: uint8 array (T, H, W, 3) that takes the frames; default: a new one.
        begins: called before each pass over the file.

    Returns:
        uint8 array (T, H, W, 3), RGB; ``out`` if it was given.

    Raises:
        VideoError: missing or unreadable file, or one without decodable frames where they are needed.
        DecoderError: the decoder is unknown or not installed.
        ValueError: no frame of the plan is on show in the span that is needed.
    """
    path = Path(path)
    shape = (plan.num_frames, plan.height, plan.width, 3)
    frames = np.empty(shape, np.uint8) if out is None else out
    if frames.shape != shape or frames.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {shape}, got {frames.dtype} {frames.shape}")
    needed = needed_frames(plan, needs)
    fetch = load_decoder(decoder)
    line = timeline(path, begins)
    draw = _drawing(path, plan, line.info)
    shown = _on_show(plan, line.info.clock)
    _refuse_gaps(path, plan, line, needed, shown)

    def take(index: int, picture: np.ndarray) -> None:
        frames[shown == index] = _resize(draw(picture, index), plan.height, plan.width)

    fetched = fetch is not None and _fetch_into(path, line, shown, take, fetch, decoder, threads, begins)
    if not fetched and not _decode_into(path, line, shown, take, threads, begins):
        begins(2 * len(line.stamps), line.stored[0] * line.stored[1])
        whole = shown
        shown = _hold(plan.timestamps, whole, line.info.clock, _sound(line, decode_packets(path, line, 1)))
        _refuse_gaps(path, plan, line, needed, shown)
        _decode_damaged(path, line, whole, shown, take)
    frames[shown < 0] = 0
    if count := (shown < 0).sum():
        logger.warning("%s: %d of %d frames are lost, outside the span needed, and black", path, count, len(shown))
    return frames


def _fetch_into(
    path: Path, line: Timeline, shown: np.ndarray, take: Take, fetch: Fetch, decoder: str, threads: int, begins: Begins
) -> bool:
    """Take the frames that are on show with another decoder; False where one of ours differs from PyAV."""
    begins(int(shown.max()) + 1, line.stored[0] * line.stored[1])
    try:
        fetch_frames(fetch, path, line, shown, take, threads, trusted=decoder not in DECODERS)
    except Differs as error:
        if decoder not in DECODERS:
            raise VideoError(f"{path}: {error}; use decoder=pyav, or encode the video again") from error
        logger.warning("%s: %s; PyAV reads this file instead", path, error)
        return False
    return True


def _decode_damaged(path: Path, line: Timeline, whole: np.ndarray, shown: np.ndarray, take: Take) -> None:
    """Decode the frames of a damaged file that can be had; see `read_frames`.

    Args:
        path: of the video.
        line: its timeline.
        whole: (T,) the frames that a whole file would show.
        shown: (T,) those that are shown instead; below 0 where none is.
        take: called with each frame and its picture.
    """
    if not _fill(line, shown, take, decode_packets(path, line, 1), tolerant=True):
        raise VideoError(f"{path}: is damaged and decodes differently each time; download or encode it again")
    if count := ((shown != whole) & (shown >= 0)).sum():
        logger.warning("%s: damaged; %d of %d frames stand in for lost ones", path, count, len(shown))


class Blocks:
    """Frames of a video in their own size, block by block; blocks that follow one another are one pass over the file.

    Args:
        path: of the video.
        threads: of the decoder; 0 for as many as it likes.

    Attributes:
        path: of the video.
        next: frame that the open pass goes on with; None where none is open.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        self.path, self.threads, self.next = Path(path), threads, None
        self._line: Timeline | None = None
        self._pictures: Iterator[np.ndarray] = iter(())

    def read(self, start: int, out: np.ndarray, begins: Begins = nothing_begins) -> None:
        """Decode the frames from ``start`` on.

        Args:
            start: frame of the video.
            out: uint8 array (T, H, W, 3) that takes them, RGB, in the size of the video as shown.
            begins: called before each pass over the file.

        Raises:
            VideoError: missing or unreadable file, one that is damaged there, or one without such frames.
        """
        line, stop = timeline(self.path, begins), start + len(out)
        if not 0 <= start < stop <= line.info.num_frames:
            held = line.info.num_frames
            raise VideoError(f"{self.path}: holds {held} frames, and {start} to {stop - 1} are asked for")
        first = int(line.numbers[start])
        if start != self.next or line is not self._line:  # another timeline: the file has changed
            self._line = line
            self._pictures = pictures(self.path, start, line.info.num_frames, self.threads)
            first = line.start_of(first)
        begins(max(len(out), int(line.numbers[start:stop].max()) + 1 - first), line.stored[0] * line.stored[1])
        self.next = None
        try:
            for k in range(len(out)):
                out[k] = next(self._pictures)
            if stop < line.info.num_frames:
                self.next = stop
            else:
                self._pictures = iter(())  # closes the file
        except VideoError:  # damaged
            clock, indices = line.info.clock, tuple(range(start, stop))
            times = tuple(map(clock.seconds, indices))
            _, height, width, _ = out.shape
            plan = SamplingPlan(indices, times, height, width, clock.fps, by_index=True)
            read_frames(self.path, plan, threads=self.threads, out=out, begins=begins)


def _drawing(path: Path, plan: SamplingPlan, info: VideoInfo) -> Draw:
    """What is done to a frame, given its index in the video, before it is resized."""
    if plan.marks is None:
        return lambda image, index: image
    from verl_stvg.video.markers import draw_ids
    from verl_stvg.video.tracks import TrackError

    try:
        tracks, style = _tracks(*plan.marks[:2]), plan.marks[2]
        tracks.check(info)
    except TrackError as error:
        raise VideoError(f"{path}: its objects cannot be numbered: {error}") from error

    def draw(image: np.ndarray, index: int) -> np.ndarray:
        image = np.require(image, requirements=["C", "W"])
        draw_ids(image, tracks.at(index), style)
        return image

    return draw


@lru_cache(maxsize=4)
def _tracks(path: str, content: str) -> "Tracks":
    from verl_stvg.video.tracks import load

    return load(Path(path))


def needed_frames(plan: SamplingPlan, needs: tuple[float, float] | None = None) -> np.ndarray:
    """Which frames of a plan a span needs: those whose time, up to that of the next, meets it.

    Args:
        plan: frames at grid times.
        needs: start and end in seconds; None for all of the plan.

    Returns:
        bool array (T,).

    Raises:
        ValueError: no frame is needed.
    """
    if needs is None:
        return np.ones(plan.num_frames, bool)
    grid = np.asarray(plan.timestamps)
    start, end = needs
    needed = (grid > start - 1 / plan.fps) & (grid <= end)
    if not needed.any():
        raise ValueError(f"no frame lies in the span needed, {start} to {end} s; the plan goes from 0 to {grid[-1]} s")
    return needed


# --- which frames -----------------------------------------------------------------------------------------------------


def _on_show(plan: SamplingPlan, clock: FrameClock) -> np.ndarray:
    """(T,) index of the frame of each time of the plan, -1 where the file has ended.

    Frames that a plan names by index are those; the others follow from its times and the file's clock.
    """
    grid, indices = np.asarray(plan.timestamps), np.asarray(plan.frame_indices)
    if plan.by_index:
        return np.where(indices < clock.num_frames, indices, -1)
    return np.where(grid <= clock.duration + 0.5 / clock.fps, clock.on_show(grid), -1)


def _sound(line: Timeline, pictures: Iterable[tuple[int, av.VideoFrame | None]]) -> np.ndarray:
    """(N,) whether a frame, and all that it may be predicted from, decoded without error.

    Frames predicted from a broken packet are not, up to the next keyframe, and those shown before that keyframe.
    """
    keys = {number: frame.key_frame for number, frame in pictures if frame is not None}
    sound, whole, since = np.zeros(len(line.stamps), bool), True, np.iinfo(np.int64).min
    for number in np.flatnonzero(line.shown | line.keys).tolist():
        if number not in keys:
            whole = whole and not line.shown[number]
        elif not whole and keys[number]:
            whole, since = True, line.stamps[number]
        sound[number] = whole and number in keys and line.stamps[number] >= since
    return sound[line.numbers]


def _hold(grid: Sequence[float], shown: np.ndarray, clock: FrameClock, sound: np.ndarray) -> np.ndarray:
    """The frames on show with sound ones only, -1 where none may stand in."""
    good, held = np.flatnonzero(sound), shown.copy()
    for k in np.flatnonzero((shown >= 0) & ~sound[shown]):
        after = np.searchsorted(good, shown[k])
        if after:
            held[k] = good[after - 1]
            wrong = grid[k] - clock.seconds(int(held[k]) + 1)
        else:
            held[k] = good[0] if len(good) else -1
            wrong = clock.seconds(int(held[k])) - grid[k]
        if wrong > HOLD_SECONDS:
            held[k] = -1
    return held


def _refuse_gaps(path: Path, plan: SamplingPlan, line: Timeline, needed: np.ndarray, shown: np.ndarray) -> None:
    lost = np.flatnonzero(needed & (shown < 0))
    if not len(lost):
        return
    first, last = (plan.timestamps[k] for k in lost[[0, -1]])
    end = line.info.duration
    if first > end:
        raise VideoError(
            f"{path}: decodes up to {end:.3f} s only, and the row needs {last:.3f} s; the file is truncated, "
            "download or encode it again"
        )
    raise VideoError(
        f"{path}: is damaged, or its time stamps contradict its pictures; {len(lost)} of {needed.sum()} frames that "
        f"the row needs are lost, from {first:.3f} to {last:.3f} s; download or encode it again"
    )


def _decode_into(path: Path, line: Timeline, shown: np.ndarray, take: Take, threads: int, begins: Begins) -> bool:
    """Take the frames that are on show; whether all are there and the decoder found nothing wrong.

    Groups of pictures that hold none of them are passed over, if that spares a good part.
    """
    area = line.stored[0] * line.stored[1]
    wanted = line.numbers[np.unique(shown[shown >= 0])]
    keep = set(wanted.tolist())
    last = int(wanted.max(initial=-1))
    fed = fed_for(line, shown)
    count = int((fed == FEED).sum())
    if count < _SPARSE * (last + 1):
        starts = set(np.flatnonzero((fed == FEED) & (np.append(PASS, fed[:-1]) == PASS)).tolist())
        begins(count, area)
        if _fill(line, shown, take, decode_packets(path, line, threads, fed, keep), starts=starts):
            return True  # else the file is damaged, or calls pictures keyframes that are none
    begins(last + 1, area)
    whole = np.where(np.arange(len(line.stamps)) <= last, FEED, PASS)
    return _fill(line, shown, take, decode_packets(path, line, threads, whole, keep))


def _fill(
    line: Timeline,
    shown: np.ndarray,
    take: Take,
    pictures: Iterable[tuple[int, av.VideoFrame | None]],
    tolerant: bool = False,
    starts: Container[int] = (),
) -> bool:
    """Take the pictures that are on show from a decoder; whether all are there and, unless tolerant, nothing is wrong.

    Pictures in `starts` have to be keyframes.
    """
    left = set(shown[shown >= 0].tolist())
    for number, frame in pictures:
        if frame is None:
            if tolerant:
                continue
            return False
        if number in starts and not frame.key_frame:
            return False
        index = int(line.places[number])
        if index in left:
            left.remove(index)
            take(index, line.as_shown(frame.to_ndarray(format="rgb24")))
    return not left


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrinking = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
