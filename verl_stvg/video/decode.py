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
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np

from verl_stvg.video.markers import draw_ids
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.video.timeline import VideoError, VideoInfo
from verl_stvg.video.tracks import TrackError, Tracks, load

logger = logging.getLogger(__name__)

HOLD_SECONDS = 0.5
"""A frame may stand in for lost ones for this long: one step of the 2 fps grid."""
_UNREADABLE = 100  # packets in a row that cannot be read: the rest of the file is missing
_SAME = 0.002  # seconds by which decoders may differ about the time of one frame: rounding, far below 1 / 240

Draw = Callable[[np.ndarray, int], np.ndarray]
"""Takes a frame, uint8 (H, W, 3), RGB, and its index in the video, and gives the frame with what is drawn on it."""
Fetch = Callable[[str, list[int], list[float], int], Iterable[np.ndarray]]
"""A decoder: ``fetch(path, indices, times, threads)`` yields some frames, uint8 (H, W, 3), RGB.

It is told which ones twice: by their zero-based indices in order of presentation, increasing, and by the times at which
they are presented, seconds after the first frame. 0 threads means as many as it likes.
"""


class DecoderError(RuntimeError):
    """A decoder that cannot be used, whatever the video: unknown, not installed, or it breaks the rules of `Fetch`."""


def probe(path: str | Path) -> VideoInfo:
    """Frames, rate and size of a video from its header, and proof that a frame decodes.

    Where the header does not say how many frames there are (Matroska), the packets are counted, not decoded.

    Raises:
        VideoError: missing, unreadable or empty file.
    """
    path = Path(path)
    with _open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 0)
        count = stream.frames or sum(1 for packet in _packets(container) if isinstance(packet, av.Packet))
        width, height = stream.codec_context.width, stream.codec_context.height
    if not (fps > 0 and count > 0 and width and height):
        raise VideoError(
            f"{path}: the header gives {count} frames of {width}x{height} at {fps} fps; encode the video again"
        )
    reason = "it holds no packets"
    for frame in _decode(path, threads=1):
        if isinstance(frame, av.VideoFrame):
            return VideoInfo(count, fps, width, height)
        reason = frame
    raise VideoError(f"{path}: no frame decodes ({reason}); download or encode it again")


def read_frames(
    path: str | Path,
    plan: SamplingPlan,
    needs: tuple[float, float] | None = None,
    decoder: str = "pyav",
    threads: int = 0,
    out: np.ndarray | None = None,
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
    draw = _drawing(path, plan)
    clock = _Clock.read(path)
    shown = clock.on_show(plan.timestamps)
    _refuse_gaps(path, plan, clock, needed, shown)
    if fetch is not None:
        _fetch_into(frames, fetch, path, clock, shown, draw, threads)
    elif not _decode_into(frames, path, clock, shown, draw, threads, skip=True):
        held = clock.hold(plan.timestamps, shown, clock.sound(_decode(path, threads=1)))
        _refuse_gaps(path, plan, clock, needed, held)
        if not _decode_into(frames, path, clock, held, draw, threads=1):
            raise VideoError(f"{path}: is damaged and decodes differently each time; download or encode it again")
        if count := ((held != shown) & (held >= 0)).sum():
            logger.warning("%s: damaged; %d of %d frames stand in for lost ones", path, count, len(held))
        shown = held
    frames[shown < 0] = 0
    if count := (shown < 0).sum():
        logger.warning("%s: %d of %d frames are lost, outside the span needed, and black", path, count, len(shown))
    return frames


def _drawing(path: Path, plan: SamplingPlan) -> Draw:
    """What is done to a frame, given its index in the video, before it is resized."""
    if plan.marks is None:
        return lambda image, index: image
    try:
        tracks, style = _tracks(*plan.marks[:2]), plan.marks[2]
    except TrackError as error:
        raise VideoError(f"{path}: its objects cannot be numbered: {error}") from error

    def draw(image: np.ndarray, index: int) -> np.ndarray:
        if image.shape[:2] != (tracks.height, tracks.width):
            raise VideoError(
                f"{path}: frames of {image.shape[1]}x{image.shape[0]}, and {plan.marks[0]} is about a video of "
                f"{tracks.width}x{tracks.height}; track this video"
            )
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


@dataclass(frozen=True)
class _Clock:
    """When the frames of a file are on show.

    Attributes:
        order: time stamp of each packet in decoding order, None for one that cannot be read.
        stamps: (N,) time stamps of all frames, increasing.
        times: (N,) the same in seconds after the first.
        slack: half a frame, seconds.
    """

    order: list[int | None]
    stamps: np.ndarray
    times: np.ndarray
    slack: float

    @classmethod
    def read(cls, path: Path) -> "_Clock":
        with _open(path) as container:
            stream = container.streams.video[0]
            order = [
                _stamp(packet) if isinstance(packet, av.Packet) else None
                for packet in _packets(container)
                if not (isinstance(packet, av.Packet) and packet.is_discard)  # cut off by the file's edit list
            ]
            base, rate = stream.time_base, float(stream.average_rate or 25)
        stamps = np.unique([stamp for stamp in order if stamp is not None])
        if not len(stamps):
            raise VideoError(f"{path}: holds no frames with time stamps; download or encode it again")
        seconds = stamps * base.numerator / base.denominator
        times = seconds - seconds[0]
        longest = np.diff(times).max(initial=0.0) or 1.0 / rate
        return cls(order, stamps, times, min(0.5 / rate, longest))  # a header may lie about the rate

    def on_show(self, grid: Sequence[float]) -> np.ndarray:
        """(T,) index of the frame on show at each grid time, -1 where there is none."""
        shown = np.searchsorted(self.times - self.slack, grid, side="right") - 1
        return np.where(np.asarray(grid) <= self.times[-1] + 3 * self.slack, shown, -1)

    def sound(self, frames: Iterable[av.VideoFrame | av.FFmpegError]) -> np.ndarray:
        """(N,) whether a frame, and all that it may be predicted from, decoded without error."""
        keys, sound, start = {}, set(), None
        for frame in _in_order(frames):
            if frame is not None:
                keys[frame.pts] = frame.key_frame
        for stamp in self.order:
            if stamp not in keys:
                start = None
            elif start is None and keys[stamp]:
                start = stamp
            if start is not None and stamp >= start:  # earlier ones may need frames before the keyframe
                sound.add(stamp)
        return np.array([stamp in sound for stamp in self.stamps.tolist()])

    def hold(self, grid: Sequence[float], shown: np.ndarray, sound: np.ndarray) -> np.ndarray:
        """`on_show` with sound frames only, -1 where none may stand in."""
        good, held = np.flatnonzero(sound), shown.copy()
        for k in np.flatnonzero((shown >= 0) & ~sound[shown]):
            after = np.searchsorted(good, shown[k])
            if after:
                held[k] = good[after - 1]
                wrong = grid[k] - self.times[held[k] + 1]
            else:
                held[k] = good[0] if len(good) else -1
                wrong = self.times[held[k]] - grid[k]
            if wrong > HOLD_SECONDS:
                held[k] = -1
        return held


def _refuse_gaps(path: Path, plan: SamplingPlan, clock: _Clock, needed: np.ndarray, shown: np.ndarray) -> None:
    lost = np.flatnonzero(needed & (shown < 0))
    if not len(lost):
        return
    first, last = (plan.timestamps[k] for k in lost[[0, -1]])
    end = float(clock.times[-1])
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


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video ({error}); download or encode it again") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video stream; download or encode it again")
    return container


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet | av.FFmpegError]:
    """Packets of the video in decoding order, an error in place of each that cannot be read."""
    failures = 0
    while failures < _UNREADABLE:
        try:
            for packet in container.demux(container.streams.video[0]):
                failures = 0
                if packet.size:  # an empty one would end decoding
                    yield packet
            return
        except av.error.FFmpegError as error:
            failures += 1
            yield error


def _stamp(packet: av.Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _decode(path: Path, threads: int, keep: Container[int] | None = None) -> Iterator[av.VideoFrame | av.FFmpegError]:
    """Frames in order of presentation, an error for each packet that is broken.

    Args:
        path: of the video.
        threads: of the decoder.
        keep: time stamps of the frames that are wanted; others may be left out if no frame depends on them.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        context = stream.codec_context
        context.thread_count = threads
        droppable = keep is not None and context.name == "h264"  # elsewhere layers blur what depends on what
        for packet in chain(_packets(container), [None]):  # at last, what the decoder still holds
            if isinstance(packet, av.FFmpegError):
                yield packet
                continue
            if droppable and packet is not None:
                context.skip_frame = "DEFAULT" if _stamp(packet) in keep else "NONREF"
            try:
                yield from context.decode(packet)
            except av.error.FFmpegError as error:
                yield error


def _in_order(frames: Iterable[av.VideoFrame | av.FFmpegError]) -> Iterator[av.VideoFrame | None]:
    """The frames, None in place of those that are broken or whose time contradicts the order they are shown in."""
    last = None
    for frame in frames:
        if not isinstance(frame, av.VideoFrame) or frame.is_corrupt or frame.pts is None:
            yield None
        elif last is not None and frame.pts <= last:
            yield None
        else:
            last = frame.pts
            yield frame


def _decode_into(
    frames: np.ndarray, path: Path, clock: _Clock, shown: np.ndarray, draw: Draw, threads: int, skip: bool = False
) -> bool:
    """Fill the frames that are on show; whether all are there. With ``skip`` any damage ends it."""
    wanted = set(clock.stamps[shown[shown >= 0]].tolist())
    left = wanted.copy()
    last = max(k for k, stamp in enumerate(clock.order) if stamp in wanted)
    until = max(stamp for stamp in clock.order[: last + 1] if stamp is not None)  # a B-frame needs a later frame whole
    for frame in _in_order(_decode(path, threads, wanted if skip else None)):
        if frame is None and skip:
            return False
        if frame is not None and frame.pts in left:
            left.remove(frame.pts)
            at = shown == np.searchsorted(clock.stamps, frame.pts)
            image = frame.to_ndarray(format="rgb24")
            frames[at] = _resize(draw(image, int(np.searchsorted(clock.stamps, frame.pts))), *frames.shape[1:3])
        if not left and frame is not None and frame.pts >= until:
            break
    return not left


# --- other decoders ---------------------------------------------------------------------------------------------------


def _fetch_into(
    frames: np.ndarray, fetch: Fetch, path: Path, clock: _Clock, shown: np.ndarray, draw: Draw, threads: int
) -> None:
    indices = np.unique(shown[shown >= 0])
    try:
        images = fetch(str(path), indices.tolist(), clock.times[indices].tolist(), threads)
        for index, image in zip(indices, images, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DecoderError(f"the decoder must give uint8 (H, W, 3), and gives {image.dtype} {image.shape}")
            frames[shown == index] = _resize(draw(image, int(index)), *frames.shape[1:3])
    except (VideoError, DecoderError):
        raise
    except Exception as error:  # foreign code: there is no list of what it raises
        raise VideoError(
            f"{path}: the decoder fails ({type(error).__name__}: {error}); encode the video again"
        ) from error


def _fetch_decord(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    import decord

    reader = decord.VideoReader(path, num_threads=threads)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(float)
    starts -= starts[0]
    frames = enumerate(reader.next() for _ in range(len(reader)))  # reader[k] gives others after an open GOP
    for time in times:
        index = int(np.abs(starts - time).argmin())
        _same_time(path, time, starts[index])
        yield next(frame for number, frame in frames if number == index).asnumpy()


def _fetch_torchcodec(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=threads)
    begin = video.metadata.begin_stream_seconds
    for index, time in zip(indices, times, strict=True):
        frame = video.get_frame_at(index)  # get_frame_played_at errs where the rate varies
        _same_time(path, time, frame.pts_seconds - begin)
        yield frame.data.numpy()


_FETCH: dict[str, Fetch] = {"decord": _fetch_decord, "torchcodec": _fetch_torchcodec}


def _same_time(path: str, wanted: float, got: float) -> None:
    if abs(wanted - got) > _SAME:
        raise VideoError(
            f"{path}: the decoder has no frame at {wanted:.3f} s, the nearest is at {got:.3f} s; use decoder=pyav"
        )


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    shrinking = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
