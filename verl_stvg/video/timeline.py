"""What a video file holds, found in its packets: which pictures are shown, when, how large, and for how long.

Headers guess. They count pictures that an edit list hides, name a rate that a recorder only intended, and leave lengths
out. So every packet of the film is looked at once, without decoding it, and that one answer, the `Timeline`, serves
rows, plans, decoders, tracks and scores alike. It is kept in the user's cache folder, under the file's identity.

Packets are numbered in the order of the file. A decoder hands the number of a packet on to its picture, in place of a
time stamp: so pictures are told apart even where time stamps are missing, come twice, start again or are wrong.

What is shown follows the players:

- The film is the container's best video stream that is no attached picture.
- Packets that an edit list cuts off, and alternate reference frames, are decoded and not shown. Pictures after the
  first keyframe that come before it on screen are shown only if the decoder gives them: they may lean on what is gone.
- The clock starts with the file: with the first picture, or with the sound where that starts well before it.
- Time stamps of transport streams may start again; they are counted on. AVI has none for B-frames; there, pictures are
  shown in the order in which the decoder gives them, each in the place of the packet that brought it out. GIFs whose
  delay is 10 ms or less are shown at 100 ms.
- Width and height are those on screen: stretched by the pixel aspect, then turned and mirrored by the display matrix.
"""

import contextlib
import errno
import json
import logging
import os
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
import xxhash
from av.format import Flags
from av.stream import Disposition

from verl_stvg.video.clock import ROUNDING, FrameClock
from verl_stvg.video.identity import identity

logger = logging.getLogger(__name__)

MAX_AREA = 2**26
"""Largest area of a picture, pixels: twice 8K. More is refused before anything is decoded."""
TOGETHER = 0.2
"""Seconds by which the picture may start after the sound and still count as starting with it."""
_NONE = np.iinfo(np.int64).min  # a packet without a time stamp
_UNREADABLE = 100  # packets in a row that cannot be read: the rest of the file is missing
_BACK = 0.5  # seconds: time stamps of a transport stream that go back further start again
_AHEAD, _OFTEN = 60.0, 100  # or jump ahead further: seconds, times the usual step
_LEAST_DELAY, _USUAL_DELAY = 0.01, 0.1  # seconds, of a GIF's pictures: what players do
_SHORT = 1.0  # seconds by which a file may end before its index says, and not count as truncated
_FORMAT = 1  # of the kept files; raise it when timelines of the same bytes would differ
_SETTLED = 2.0  # seconds: a file changed later than that may change again within one tick of its time stamps
_HELD = 64  # timelines that a process remembers
_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
_REMUX = "ffmpeg -framerate RATE -i IN -c copy OUT.mp4"


class VideoError(ValueError):
    """A video that cannot be used; the message names the file, the reason and the remedy."""


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
        stamps: (P,) int64 order of presentation of each packet, increasing with time; `_NONE` where there is none.
        shown: (P,) bool, whether a packet holds a picture that is shown.
        keys: (P,) bool, whether a decoder can start with it.
        promised: seconds that the file's index says, where pictures are missing at its end; None: all are there.
    """

    info: VideoInfo
    stream: int
    stored: tuple[int, int]
    turn: Turn
    stamps: np.ndarray
    shown: np.ndarray
    keys: np.ndarray
    promised: float | None = None

    @cached_property
    def numbers(self) -> np.ndarray:
        """(N,) the packet of each picture, in order of presentation."""
        shown = np.flatnonzero(self.shown)
        return shown[np.argsort(self.stamps[shown], kind="stable")]

    @cached_property
    def places(self) -> np.ndarray:
        """(P,) the picture that each packet holds; -1 for none."""
        places = np.full(len(self.stamps), -1)
        places[self.numbers] = np.arange(len(self.numbers))
        return places

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


def probe(path: str | Path) -> VideoInfo:
    """What a video is to whoever watches it, and proof that a picture decodes.

    Raises:
        VideoError: missing, unreadable or empty file; one whose times cannot be had; one that is cut off.
    """
    line = timeline(path)
    if line.promised is not None:
        raise VideoError(
            f"{path}: decodes up to {line.info.duration:.3f} s only, and its index says {line.promised:.3f} s; it is "
            "truncated, download or encode it again"
        )
    return line.info


def timeline(path: str | Path) -> Timeline:
    """The timeline of a file: from memory, from the user's cache folder, or from a walk over its packets.

    Raises:
        VideoError: see `probe`.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")
    key = (os.path.realpath(path), *identity(path))
    if key in _known:
        _known.move_to_end(key)
        return _known[key]
    kept = _folder() / f"{xxhash.xxh3_128_hexdigest(json.dumps(key).encode())}.timeline"
    found = _read(kept)
    if found is None:
        found = _walk(path)
        if time.time() - max(key[2], key[3]) / 1e9 > _SETTLED and identity(path) == list(key[1:]):
            _write(kept, found)
    _known[key] = found
    if len(_known) > _HELD:
        _known.popitem(last=False)
    return found


_known: OrderedDict[tuple, Timeline] = OrderedDict()


# --- packets ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and the film in it.

    Raises:
        VideoError: not readable, without a film, or with pictures over `MAX_AREA`.
    """
    if not path.is_file():
        raise VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video ({error}); download or encode it again") from error
    with container:
        stream = _film(path, container)
        context = stream.codec_context
        if context.width * context.height > MAX_AREA:
            raise VideoError(
                f"{path}: pictures of {context.width}x{context.height} are over {MAX_AREA} pixels; make a smaller copy"
            )
        context.options = {"max_pixels": str(MAX_AREA)}
        yield container, stream


def _film(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        what = "only a cover picture" if container.streams.video else "no video stream"
        raise VideoError(f"{path}: holds {what}; download or encode it again")
    best = container.streams.best("video")
    return best if best in films else films[0]


def packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[int, av.Packet | av.FFmpegError]]:
    """Packets of a film in the order of the file with their numbers; an error in place of each that cannot be read.

    An error has the number of the packet that comes next.
    """
    failures = number = 0
    while failures < _UNREADABLE:
        try:
            for packet in container.demux(stream):
                failures = 0
                if packet.size:  # an empty one would end decoding
                    yield number, packet
                    number += 1
            return
        except av.error.FFmpegError as error:
            failures += 1
            yield number, error


# --- the walk ---------------------------------------------------------------------------------------------------------


def _walk(path: Path) -> Timeline:
    with opened(path) as (container, stream):
        if container.format.flags & Flags.no_timestamps.value:
            raise VideoError(f"{path}: holds no times, only pictures ({container.format.name}); run {_REMUX}")
        context, base = stream.codec_context, stream.time_base
        context.thread_count = 1
        found: list[tuple[int, int, int, bool, bool, int | None]] = []
        first, reason = None, "it holds no packets"
        for number, packet in packets(container, stream):
            if not isinstance(packet, av.Packet):
                reason = packet
                continue
            shown = not packet.is_discard and not _is_hidden(context.name, packet)
            stamps = (_NONE if stamp is None else stamp for stamp in (packet.pts, packet.dts))
            found.append((*stamps, packet.duration or 0, packet.is_keyframe, shown, packet.pos))
            if first is None:
                first, reason = _first_picture(context, number, packet, reason)
        if first is None:
            with contextlib.suppress(av.error.FFmpegError):
                first = next(iter(context.decode(None)), None)
        if first is None:
            raise VideoError(f"{path}: no frame decodes ({reason}); download or encode it again")
        columns = list(zip(*found, strict=True))[:5]
        pts, dts, durations, keys, shown = (
            np.array(column, kind) for column, kind in zip(columns, (*[np.int64] * 3, bool, bool), strict=True)
        )
        notes = _streams_note(container, stream)
        if container.format.name == "avi":  # knows only when packets are decoded
            stamps, shown = _as_decoded(path, dts, shown) if context.has_b_frames else (dts, shown)
        else:
            stamps = np.where(pts == _NONE, dts, pts)
            if container.format.flags & Flags.ts_discont.value:
                shift, count = _counted_on(dts, durations, base)
                stamps = np.where(stamps == _NONE, stamps, stamps + shift)
                notes += [f"its times start again {count} times; they are counted on"] if count else []
            shown &= ~_leading(stamps, keys, shown, first.pts)
            if "mp4" in container.format.name and len({packet[5] for packet in found}) < len(found):
                shown &= ~_in_gaps(path, stamps, base)
        if not shown.any():
            raise VideoError(f"{path}: holds no frames with time stamps; run {_REMUX}")
        line = Timeline(VideoInfo(0, 0.0, 0, 0), stream.index, (0, 0), Turn(), stamps, shown, keys)
        order = stamps[line.numbers]
        last = durations[line.numbers[-1]]
        if container.format.name == "avi":  # chunks that only delay the decoder count, too
            last = max(1, np.ptp(dts[dts != _NONE]) + 1 - (order[-1] - order[0]))
        if container.format.name == "gif":
            order, last = _as_played(order, last, base)
        promised = _promised(container, stream, len(found), float((order[-1] - order[0] + last) * base))
        late = _late(container, order[0] * base)
        if late:
            notes.append(
                f"its picture starts {float(late):.3f} s after the file does; times count from the start of the file"
            )
        if len(order) == 1:
            raise VideoError(
                f"{path}: holds one picture, and times need two; if it is a still, make a video of it: "
                "ffmpeg -loop 1 -t SECONDS -i IN -pix_fmt yuv420p OUT.mp4"
            )
        stored = (first.width, first.height)
        turn = _turn(path, first, stream.sample_aspect_ratio)
        width, height = turn.width or stored[0], stored[1]
        if turn.transposed:
            width, height = height, width
        if width * height > MAX_AREA:
            raise VideoError(f"{path}: pictures of {width}x{height} are over {MAX_AREA} pixels; make a smaller copy")
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
        num, fps, times, end = _times(order, int(last), base, late, rates)
        info = VideoInfo(num, fps, width, height, times, end, tuple(notes))
        return Timeline(info, stream.index, stored, turn, stamps, shown, keys, promised)


def _first_picture(context, number: int, packet: av.Packet, reason) -> tuple[av.VideoFrame | None, object]:
    """The first picture that the decoder gives, if it gives one now, with the number of its packet for its time."""
    packet.pts, packet.dts = number, None
    try:
        return next(iter(context.decode(packet)), None), reason
    except av.error.FFmpegError as error:
        return None, error


def _is_hidden(codec: str, packet: av.Packet) -> bool:
    """Whether a packet is a reference frame that is never shown (VP8, VP9)."""
    if codec not in ("vp8", "libvpx", "vp9", "libvpx-vp9"):
        return False
    data = memoryview(packet)
    if codec in ("vp8", "libvpx"):
        return not data[0] & 0x10
    if data[-1] & 0xE0 == 0xC0:  # a superframe, which ends in a frame that is shown
        return False
    bits = data[0] << 8 | (data[1] if len(data) > 1 else 0)
    at = 11 if bits >> 12 & 3 == 3 else 12  # a profile of 3 has one reserved bit more
    shows_existing, shows = bits >> (at - 1) & 1, bits >> (at - 3) & 1
    return not (shows_existing or shows)


def _as_decoded(path: Path, dts: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of presentation where the container knows only that of decoding, and which packets hold a picture.

    Each packet with anything in it is the place of one picture, in the order in which the decoder gives them. One that
    breaks counts as a picture in its own place, so that it is known to be missing.
    """
    given: list[int] = []
    broken: list[int] = []
    with opened(path) as (container, stream):
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in [*packets(container, stream), (-1, None)]:
            if isinstance(packet, av.FFmpegError):
                continue
            if packet is not None:
                packet.pts = number
            try:
                given += [frame.pts for frame in context.decode(packet)]
            except av.error.FFmpegError:
                broken.append(number)
    stamps, held = np.full(len(dts), _NONE), np.zeros(len(dts), bool)
    lost = [number for number in broken if number not in given]
    slots = np.delete(dts, lost)[: len(given)]
    if len(slots) > 2 and slots[1] - slots[0] > 1:  # empty chunks that only make up for the decoder's delay
        slots[0] = slots[1] - 1
    stamps[given], held[given] = slots, True
    stamps[lost], held[lost] = dts[lost], True
    return stamps, shown & held


def _counted_on(dts: np.ndarray, durations: np.ndarray, base: Fraction) -> tuple[np.ndarray, int]:
    """What to add to the stamps of each packet so that time goes on where it starts again; how often it does."""
    known = np.flatnonzero(dts != _NONE)
    step = np.diff(dts[known])
    back, ahead = -int(_BACK / base), max(int(_AHEAD / base), _OFTEN * float(np.median(step)) if len(step) else 0)
    places = np.flatnonzero((step < back) | (step > ahead))
    shift = np.zeros(len(dts), np.int64)
    for place in places:
        before, after = known[place], known[place + 1]
        shift[after:] += dts[before] + durations[before] - dts[after] + shift[before] - shift[after]
    return shift, len(places)


def _leading(stamps: np.ndarray, keys: np.ndarray, shown: np.ndarray, first: int) -> np.ndarray:
    """(P,) packets whose pictures come before the first one that decodes, or have no time."""
    starts = np.flatnonzero(keys & shown & (stamps != _NONE))
    begin = stamps[first]
    if len(starts):
        begin = min(begin, stamps[starts[0]])
    return (stamps == _NONE) | (stamps < begin)


def _in_gaps(path: Path, stamps: np.ndarray, base: Fraction) -> np.ndarray:
    """(P,) packets that FFmpeg plays where an edit list of an MP4 has a gap, but at its beginning.

    FFmpeg plays the beginning of the film there, so this is looked up where packets come twice. Nothing new is shown.
    """
    inside = np.zeros(len(stamps), bool)
    with path.open("rb") as file:
        for start, end in _gaps(file, 0, path.stat().st_size, [1]):
            inside |= (stamps >= start / base) & (stamps < end / base)
    return inside


def _gaps(file: BinaryIO, start: int, end: int, scale: list[int]) -> Iterator[tuple[Fraction, Fraction]]:
    """Gaps between the edits of an MP4's boxes, seconds; `scale` becomes the movie's units per second."""
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", file.read(8))[0], start + 16
        size = size or end - start
        if size < body - start:
            return
        if name in (b"moov", b"trak", b"edts"):
            yield from _gaps(file, body, min(end, start + size), scale)
        elif name == b"mvhd":
            header = file.read(24)
            scale[0] = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
        elif name == b"elst":
            version, count = struct.unpack(">B3xI", file.read(8))
            form = struct.Struct(">Qq4x" if version else ">Ii4x")
            at = 0
            for k, (length, media) in enumerate(form.iter_unpack(file.read(count * form.size))):
                if media == -1 and k:
                    yield Fraction(at, scale[0]), Fraction(at + length, scale[0])
                at += length
        start += size


def _as_played(order: np.ndarray, last: int, base: Fraction) -> tuple[np.ndarray, int]:
    """Stamps of a GIF's pictures, and how long the last one stays, as players time them."""
    delays = np.append(np.diff(order), last)
    delays[delays * float(base) <= _LEAST_DELAY] = round(_USUAL_DELAY / base)
    return np.append(0, np.cumsum(delays[:-1])), int(delays[-1])


def _promised(container, stream, count: int, length: float) -> float | None:
    """Seconds that an MP4's index says, if it names pictures that are not there."""
    if "mp4" not in container.format.name or not stream.duration or count >= stream.frames:
        return None
    promised = float(stream.duration * stream.time_base)
    return promised if length < promised - _SHORT else None


def _late(container, start: Fraction) -> Fraction | int:
    """Seconds by which the picture starts after the file, 0 where they start together."""
    if container.start_time is None:
        return 0
    late = start - Fraction(container.start_time, av.time_base)
    return late if late > TOGETHER else 0


def _streams_note(container, stream) -> list[str]:
    count = len(container.streams.video)
    size = f"{stream.codec_context.width}x{stream.codec_context.height}"
    return [f"it has {count} video streams; the film is taken to be stream {stream.index}, {size}"] * (count > 1)


def _turn(path: Path, frame: av.VideoFrame, aspect: Fraction | None) -> Turn:
    """What the display matrix and the pixel aspect ask for."""
    width = round(frame.width * aspect) if aspect else frame.width
    stretched = None if width == frame.width else max(1, width)
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Turn(stretched)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).astype(float)  # (x, y) -> (a x + c y, b x + d y)
    upright, across = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(upright, across) > 0.02 * max(upright, across):
        raise VideoError(f"{path}: its pictures are to be turned by no multiple of 90 degrees; encode the video again")
    if across > upright:
        return Turn(stretched, True, bool(c < 0), bool(b < 0))
    return Turn(stretched, False, bool(a < 0), bool(d < 0))


def _times(
    order: np.ndarray, last: int, base: Fraction, late: Fraction | int, rates: list[Fraction]
) -> tuple[int, float, tuple[float, ...] | None, float | None]:
    """Pictures, rate, and where the rate is not constant, times and end; see `VideoInfo`."""
    count, tick = len(order), float(base)
    since = (order - order[0]) * base.numerator / base.denominator
    gaps = np.diff(since)
    own = last * tick if last > 0 else float(np.median(gaps))
    length = float(since[-1]) + own
    if length <= 0:
        return count, float(rates[0]) if rates else 25.0, None, None
    rates = [*rates, Fraction(float((count - 1) / since[-1])).limit_denominator(1001)] if since[-1] > 0 else rates
    slack = 1.1 * ROUNDING  # two times are rounded
    for rate in rates:
        if rate > 0 and np.abs(since - np.arange(count) / float(rate)).max() <= slack and not late:
            if own <= 1.5 / float(rate):  # a shorter one is a header's, or nobody's
                return count, float(rate), None, None
            break
    start = float(late)
    return count, count / (start + length), tuple((start + since).tolist()), start + length


# --- kept on disk: a line of JSON, then the packets -------------------------------------------------------------------


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "verl_stvg", "timelines")


def _write(path: Path, line: Timeline) -> None:
    times = np.asarray(line.info.times or (), np.float64)
    flags = line.shown.astype(np.uint8) | line.keys.astype(np.uint8) << 1
    raw = np.diff(line.stamps, prepend=0).tobytes() + flags.tobytes() + times.tobytes()
    head = {
        "format": _FORMAT,
        "packets": len(flags),
        "times": len(times),
        "sum": xxhash.xxh3_64_hexdigest(raw),
        "info": asdict(line.info) | {"times": None},
        "promised": line.promised,
        "stream": line.stream,
        "stored": line.stored,
        "turn": asdict(line.turn),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(json.dumps(head).encode() + b"\n" + zlib.compress(raw, 1))
        temporary.rename(path)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:  # the next process walks again
            raise


def _read(path: Path) -> Timeline | None:
    """What `_write` wrote; None if there is nothing, or something else."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        head, raw = json.loads(head), zlib.decompress(data)
    except (FileNotFoundError, PermissionError, ValueError, zlib.error):
        return None
    if head.get("format") != _FORMAT or head["sum"] != xxhash.xxh3_64_hexdigest(raw):
        return None
    count = head["packets"]
    stamps = np.cumsum(np.frombuffer(raw, np.int64, count))
    flags = np.frombuffer(raw, np.uint8, count, 8 * count)
    times = tuple(np.frombuffer(raw, np.float64, head["times"], 9 * count).tolist()) or None
    info = VideoInfo.of(head["info"] | {"times": times})
    turn, stored = Turn(**head["turn"]), tuple(head["stored"])
    return Timeline(info, head["stream"], stored, turn, stamps, (flags & 1) > 0, (flags & 2) > 0, head["promised"])
