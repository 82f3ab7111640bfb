"""Reading video files: what a file holds, and the frames of a plan, by presentation time.

Which frame the model sees is decided here, once, from the time stamps of the packets, before anything is decoded: at
each grid time the frame on show. A decoder is then only asked for frames by their times, so PyAV, decord and
torchcodec give the same source frames, and they are resized by the same code. What variable rates, B-frames and a
start other than zero do to frame numbers does not matter.

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
"""

import importlib
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np

from verl_stvg.video.clock import FrameClock
from verl_stvg.video.film import Timeline, VideoError, VideoInfo
from verl_stvg.video.markers import draw_ids
from verl_stvg.video.packets import opened, packets
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.timeline import probe, timeline
from verl_stvg.video.tracks import TrackError, Tracks, load

__all__ = ["DecoderError", "VideoError", "VideoInfo", "load_decoder", "needed_frames", "probe", "read_frames"]

logger = logging.getLogger(__name__)

HOLD_SECONDS = 0.5
"""A frame may stand in for lost ones for this long: one step of the 2 fps grid."""
_SPARSE = 0.7  # of the packets: with fewer to decode, groups of pictures in between are passed over
_PASS, _FEED, _SKIP = range(3)  # what is done with a packet
_SAME = 0.002  # seconds by which decoders may differ about the time of one frame: rounding, far below 1 / 240

Draw = Callable[[np.ndarray, int], np.ndarray]
"""Takes a frame, uint8 (H, W, 3), RGB, and its index in the video, and gives the frame with what is drawn on it."""
Begins = Callable[[int, int], None]
"""Is told how many pictures are about to be decoded, and the area of each, pixels."""
Fetch = Callable[[str, list[int], list[float], int], Iterable[np.ndarray]]
"""A decoder: ``fetch(path, indices, times, threads)`` yields some frames, uint8 (H, W, 3), RGB.

It is told which ones twice: by their zero-based indices in order of presentation, increasing, and by the times at which
they are presented, seconds after the first frame. 0 threads means as many as it likes.
"""


class DecoderError(RuntimeError):
    """A decoder that cannot be used, whatever the video: unknown, not installed, or it breaks the rules of `Fetch`."""


def read_frames(
    path: str | Path,
    plan: SamplingPlan,
    needs: tuple[float, float] | None = None,
    decoder: str = "pyav",
    threads: int = 0,
    out: np.ndarray | None = None,
    begins: Begins = lambda pictures, area: None,
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
    line = timeline(path)
    draw = _drawing(path, plan, line.info)
    shown = _on_show(plan, line.info.clock)
    _refuse_gaps(path, plan, line, needed, shown)
    area = line.stored[0] * line.stored[1]
    if fetch is not None:
        begins(int(shown.max()) + 1, area)
        try:
            _fetch_into(frames, fetch, path, line, shown, draw, threads, trusted=decoder not in _FETCH)
        except _Differs as error:
            if decoder not in _FETCH:
                raise VideoError(f"{path}: {error}; use decoder=pyav, or encode the video again") from error
            logger.warning("%s: %s; PyAV reads this file instead", path, error)
            fetch = None
    if fetch is None and not _decode_into(frames, path, line, shown, draw, threads, begins):
        begins(2 * len(line.stamps), area)
        held = _hold(plan.timestamps, shown, line.info.clock, _sound(line, _decode(path, line, threads=1)))
        _refuse_gaps(path, plan, line, needed, held)
        if not _fill(frames, line, held, draw, _decode(path, line, threads=1), tolerant=True):
            raise VideoError(f"{path}: is damaged and decodes differently each time; download or encode it again")
        if count := ((held != shown) & (held >= 0)).sum():
            logger.warning("%s: damaged; %d of %d frames stand in for lost ones", path, count, len(held))
        shown = held
    frames[shown < 0] = 0
    if count := (shown < 0).sum():
        logger.warning("%s: %d of %d frames are lost, outside the span needed, and black", path, count, len(shown))
    return frames


def pictures(path: str | Path, start: int, stop: int, threads: int = 0) -> Iterator[np.ndarray]:
    """Frames ``start`` to ``stop - 1`` of a video one after another, as shown: uint8 (H, W, 3), RGB.

    Raises:
        VideoError: missing, unreadable or damaged file.
    """
    path = Path(path)
    line = timeline(path)
    expected = start
    for number, frame in _decode(path, line, threads, _fed(line, np.arange(start, stop))):
        index = -1 if frame is None else int(line.places[number])
        if frame is None or start <= index != expected:
            break
        if index == expected:
            yield line.turn(frame.to_ndarray(format="rgb24"))
            expected += 1
    if expected < stop:
        at = line.info.clock.seconds(expected)
        raise VideoError(f"{path}: is damaged near {at:.3f} s; download or encode it again")


def _drawing(path: Path, plan: SamplingPlan, info: VideoInfo) -> Draw:
    """What is done to a frame, given its index in the video, before it is resized."""
    if plan.marks is None:
        return lambda image, index: image
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
def _tracks(path: str, content: str) -> Tracks:
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


def load_decoder(name: str) -> Fetch | None:
    """The decoder of that name; None for PyAV, which is built in.

    Raises:
        DecoderError: unknown or not installed.
    """
    if name == "pyav":
        return None
    module, _, function = name.partition(":")
    if not function and name not in _FETCH:
        raise DecoderError(f"decoder {name!r} is unknown; choose pyav, {', '.join(_FETCH)} or package.module:function")
    try:
        loaded = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError where it finds no FFmpeg
        remedy = "correct the name" if function else f"`pip install {name}` or use decoder=pyav"
        reason = str(error).partition("\n")[0]
        raise DecoderError(f"decoder {name!r} cannot be imported ({reason}); {remedy}") from error
    if not function:
        return _FETCH[name]
    if not hasattr(loaded, function):
        raise DecoderError(f"decoder {name!r}: {loaded.__file__} defines no {function}; correct the name")
    return getattr(loaded, function)


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
            wrong = grid[k] - clock.seconds(held[k] + 1)
        else:
            held[k] = good[0] if len(good) else -1
            wrong = clock.seconds(held[k]) - grid[k]
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


# --- PyAV -------------------------------------------------------------------------------------------------------------


def _decode(
    path: Path, line: Timeline, threads: int, fed: np.ndarray | None = None, keep: Container[int] | None = None
) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Pictures in order of presentation, each with the number of its packet.

    None in place of a picture: a packet that is broken, or a picture that the decoder calls corrupt or that comes out
    of order.

    Args:
        path: of the video.
        line: of the video.
        threads: of the decoder.
        fed: (P,) what is done with each packet, see `_fed`; None: all are decoded. After some that are passed over, the
            decoder starts anew.
        keep: packets whose pictures are wanted; others may be left out if no picture depends on them.
    """
    last = -1
    with opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        context = stream.codec_context
        context.thread_count = threads
        droppable = keep is not None and context.name == "h264"  # elsewhere layers blur what depends on what
        left = -1 if fed is None else int((fed == _FEED).sum())
        running = fed is None
        for number, packet in chain(packets(container, stream), [(len(line.stamps), None)]):  # at last, what it holds
            end = packet is None
            if isinstance(packet, av.FFmpegError):
                if running:
                    yield number, None
                continue
            what = _FEED if fed is None or end else fed[number] if number < len(fed) else _PASS
            if what == _SKIP or (what == _PASS and not running):
                if not left:
                    return
                continue
            if what == _PASS:
                packet = None
            elif not end:
                packet.pts, packet.dts = number, None
                left -= 1
                if droppable:
                    context.skip_frame = "DEFAULT" if number in keep else "NONREF"
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError:
                frames = []
                yield number, None
            for frame in frames:
                place = line.places[frame.pts] if frame.pts is not None and frame.pts < len(line.places) else -1
                if frame.is_corrupt or place <= last:
                    yield number, None
                else:
                    last = place
                    yield frame.pts, frame
            running = packet is not None
            if not running and not end:
                context.flush_buffers()


def _fed(line: Timeline, shown: np.ndarray) -> np.ndarray:
    """(P,) what is done with each packet to get some frames: `_PASS`, `_FEED` from a keyframe to each of them, `_SKIP`.

    Skipped are pictures after a keyframe that come before it on screen: they lean on the group before.
    """
    fed = np.full(len(line.stamps), _PASS, np.uint8)
    for number in line.numbers[np.unique(shown[shown >= 0])].tolist():
        start = line.start_of(number)
        part = fed[start : number + 1]
        leading = line.shown[start : number + 1] & (line.stamps[start : number + 1] < line.stamps[start])
        part[:] = np.where(leading & (part != _FEED), _SKIP, _FEED)
        part[-1] = _FEED
    return fed


def _decode_into(
    frames: np.ndarray, path: Path, line: Timeline, shown: np.ndarray, draw: Draw, threads: int, begins: Begins
) -> bool:
    """Fill the frames that are on show; whether all are there and the decoder found nothing wrong.

    Groups of pictures that hold none of them are passed over, if that spares a good part.
    """
    area = line.stored[0] * line.stored[1]
    wanted = line.numbers[np.unique(shown[shown >= 0])]
    keep = set(wanted.tolist())
    last = int(wanted.max(initial=-1))
    fed = _fed(line, shown)
    count = int((fed == _FEED).sum())
    if count < _SPARSE * (last + 1):
        starts = set(np.flatnonzero((fed == _FEED) & (np.append(_PASS, fed[:-1]) == _PASS)).tolist())
        begins(count, area)
        if _fill(frames, line, shown, draw, _decode(path, line, threads, fed, keep), starts=starts):
            return True  # else the file is damaged, or calls pictures keyframes that are none
    begins(last + 1, area)
    whole = np.where(np.arange(len(line.stamps)) <= last, _FEED, _PASS)
    return _fill(frames, line, shown, draw, _decode(path, line, threads, whole, keep))


def _fill(
    frames: np.ndarray,
    line: Timeline,
    shown: np.ndarray,
    draw: Draw,
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
            image = line.turn(frame.to_ndarray(format="rgb24"))
            frames[shown == index] = _resize(draw(image, index), *frames.shape[1:3])
    return not left


# --- other decoders ---------------------------------------------------------------------------------------------------


class _Differs(Exception):
    """A decoder shows other pictures than PyAV, or at other times, or none; the message says how."""


def _fetch_into(
    frames: np.ndarray,
    fetch: Fetch,
    path: Path,
    line: Timeline,
    shown: np.ndarray,
    draw: Draw,
    threads: int,
    trusted: bool,
) -> None:
    """Fill the frames that are on show.

    Some of the decoder's pictures are compared with PyAV's, because one that counts other frames, times them otherwise
    or takes another stream says nothing of it. That also tells whether it turns pictures by itself; a decoder that is
    trusted is compared for this alone.

    Raises:
        _Differs: it shows other pictures.
    """
    compared = line.turn.moves or not trusted
    references = _references(path, line, np.unique(shown[shown >= 0])) if compared else {}
    indices = np.union1d(shown[shown >= 0], list(references)).astype(int).tolist()
    times = [line.info.clock.seconds(index) - line.info.clock.start for index in indices]
    for turned in (True, False) if line.turn.moves else (False,):
        try:
            images = zip(indices, fetch(str(path), indices, times, threads), strict=True)
            if _take(images, frames, shown, draw, line, references, turned):
                return
        except (VideoError, DecoderError, _Differs):
            raise
        except Exception as error:  # foreign code: there is no list of what it raises
            raise _Differs(f"the decoder fails ({type(error).__name__}: {error})") from error
    raise _Differs("the decoder shows other pictures than PyAV")


def _take(
    images: Iterable[tuple[int, np.ndarray]],
    frames: np.ndarray,
    shown: np.ndarray,
    draw: Draw,
    line: Timeline,
    references: Mapping[int, np.ndarray],
    turned: bool,
) -> bool:
    """Fill frames from a decoder's pictures, turned or as stored; False as soon as one is none of the references.

    Raises:
        _Differs: pictures that look the same turned and not.
    """
    size = line.info.width, line.info.height
    told = not turned
    for index, image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DecoderError(f"the decoder must give uint8 (H, W, 3), and gives {image.dtype} {image.shape}")
        picture = (image if image.shape[1::-1] == size else cv2.resize(image, size)) if turned else line.turn(image)
        if index in references:
            if not _alike(picture, references[index]):
                return False
            told = told or not _alike(line.turn(image), references[index])
        if index in shown:
            frames[shown == index] = _resize(draw(picture, index), *frames.shape[1:3])
    if not told:
        raise _Differs("its pictures look the same turned and not, and do not tell whether the decoder turns them")
    return True


def _references(path: Path, line: Timeline, wanted: np.ndarray) -> dict[int, np.ndarray]:
    """Pictures to compare a decoder's with, as shown, by index: up to three keyframes and three frames that are wanted.

    None where PyAV finds damage.
    """
    places = line.places[line.keys & line.shown]
    some = np.sort(places[places >= 0]) if len(places) else np.zeros(1, int)
    cost = [number - line.start_of(number) for number in line.numbers[wanted].tolist()]
    near = [
        part[np.argmin(of)] for part, of in zip(*(np.array_split(x, 3) for x in (wanted, cost)), strict=True) if len(of)
    ]
    chosen = np.unique([some[0], some[len(some) // 2], some[-1], *near])
    found = {}
    for number, frame in _decode(path, line, 1, _fed(line, chosen)):
        if frame is None:
            return {}
        index = int(line.places[number])
        if index in chosen:
            found[index] = line.turn(frame.to_ndarray(format="rgb24"))
    return found


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are the same one, give or take the arithmetic of colours."""
    if one.shape != other.shape:
        return False
    small = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(int) for image in (one, other)]
    apart = np.abs(small[0] - small[1]).max(axis=2)
    return apart.mean() <= 8 and apart.max() <= 40


def _fetch_decord(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    import decord

    reader = decord.VideoReader(path, num_threads=threads)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(float)
    starts -= starts[0]
    frames = enumerate(reader.next() for _ in range(len(reader)))  # reader[k] gives others after an open GOP
    for time in times:
        index = int(np.abs(starts - time).argmin())
        _same_time(time, starts[index])
        yield next(frame for number, frame in frames if number == index).asnumpy()


def _fetch_torchcodec(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    stream = timeline(path).stream
    video = VideoDecoder(path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=threads)
    begin = video.metadata.begin_stream_seconds
    for index, time in zip(indices, times, strict=True):
        frame = video.get_frame_at(index)  # get_frame_played_at errs where the rate varies
        _same_time(time, frame.pts_seconds - begin)
        yield frame.data.numpy()


_FETCH: dict[str, Fetch] = {"decord": _fetch_decord, "torchcodec": _fetch_torchcodec}


def _same_time(wanted: float, got: float) -> None:
    if abs(wanted - got) > _SAME:
        raise _Differs(f"the decoder has no frame at {wanted:.3f} s, the nearest is at {got:.3f} s")


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    shrinking = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
