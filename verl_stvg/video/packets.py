"""The walk over a file's packets.

Headers guess. They count pictures that an edit list hides, name a rate that a recorder only intended, and leave lengths
out. So every packet of the film is looked at once, and no picture but one is decoded.

Packets are numbered in the order of the file. A decoder hands the number of a packet on to its picture, in place of a
time stamp: so pictures are told apart even where time stamps are missing, come twice, start again or are wrong.

What is shown follows the players:

- The film is the container's best video stream that is no attached picture.
- Packets that an edit list cuts off, and alternate reference frames, are decoded and not shown. Pictures after the
  first keyframe that come before it on screen are shown only if the decoder gives them: they may lean on what is gone.
- The clock starts with the file: with the first picture, or with the sound where that starts well before it.
- Time stamps of transport streams may start again; they are counted on. AVI has none for B-frames; there, pictures are
  shown in the order in which the decoder gives them, each in the place of one packet. GIFs whose delay is 10 ms or less
  are shown at 100 ms.
- Width and height are those on screen: stretched by the pixel aspect, then turned and mirrored by the display matrix.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition

from verl_stvg.video.clock import ROUNDING
from verl_stvg.video.film import MAX_AREA, NO_STAMP, TimelessVideo, Timeline, Turn, VideoError, VideoInfo, in_order

Begins = Callable[[int, int], None]
"""Is told how many pictures are about to be decoded, and the area of each, pixels."""
TOGETHER = 0.1
"""Seconds by which the picture may start after the sound and still count as starting with it."""
_UNREADABLE = 100  # packets in a row that cannot be read: the rest of the file is missing
_BACK = 0.5  # seconds: time stamps of a transport stream that go back further start again
_AHEAD, _OFTEN = 60.0, 100  # or jump ahead further: seconds, times the usual step
_LEAST_DELAY, _USUAL_DELAY = 0.01, 0.1  # seconds, of a GIF's pictures: what players do
_SHORT = 1.0  # seconds by which a file may end before its index says, and not count as truncated
_SAME = 1.1 * ROUNDING  # seconds: two times are rounded
_VP8, _VP9 = ("vp8", "libvpx"), ("vp9", "libvpx-vp9")
_WAY = (b"moov", b"trak", b"edts")  # boxes of an MP4 around an edit list
_EARLY = 64  # packets that are decoded to see whether pictures come in the order of their packets
_REMUX = "ffmpeg -framerate RATE -i IN OUT.mp4"
_NO_PICTURES = (
    f"holds no pictures with time stamps; run {_REMUX}",
    "holds one picture, and times need two; if it is a still, make a video of it: "
    "ffmpeg -loop 1 -t SECONDS -i IN -pix_fmt yuv420p OUT.mp4",
)


def nothing_begins(pictures: int, area: int) -> None:
    """A `Begins` that does not want to know."""


@contextlib.contextmanager
def opened(path: Path, file: BinaryIO | None = None) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and the film in it.

    Args:
        path: of the file.
        file: of that path if it is open already; it stays open.

    Raises:
        VideoError: not readable, without a film, or with pictures over `MAX_AREA`.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        if file is not None:
            file.seek(0)
        container = av.open(str(path) if file is None else _Unclosed(file), metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise _unreadable(path, error) from error
    with container:
        stream = _film(path, container)
        context = stream.codec_context
        if context is None:
            raise VideoError(f"{path}: its pictures are coded in a way that nobody knows; download or encode it again")
        if context.width * context.height > MAX_AREA:
            raise VideoError(
                f"{path}: pictures of {context.width}x{context.height} are over {MAX_AREA} pixels; make a smaller copy"
            )
        context.options = {"max_pixels": str(MAX_AREA)}
        yield container, stream


class _Unclosed:
    """An open file as PyAV reads one, which would close it with the container."""

    def __init__(self, file: BinaryIO):
        self.name, self.read, self.tell = os.fspath(file.name), file.read, file.tell
        self._seek = file.seek

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's; where FFmpeg asks for a place that no file has, a negative number says so to it."""
        try:
            return self._seek(offset, whence)
        except OSError as error:
            return -error.errno


def _missing(path: Path) -> VideoError:
    return VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")


def _unreadable(path: Path, error: av.error.FFmpegError | OSError) -> VideoError:
    """What is wrong with a file that cannot be opened."""
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(512)
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip"):
        return TimelessVideo(
            f"{path}: not a readable video (its index, moov, is missing: the download or the recording was cut off); "
            "download it again, or mend it with untrunc and a whole file of the same device"
        )
    reason = error.strerror or error
    if head.lstrip()[:1] in (b"<", b"{"):
        reason = "it holds text, perhaps the message of a server"
    if not head and path.stat().st_size == 0:
        reason = "it is empty"
    return VideoError(f"{path}: not a readable video ({reason}); download or encode it again")


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


@dataclass
class _Packets:
    """What is known of the packets of a film, in the order of the file.

    Attributes:
        stamps: (P,) order of presentation, see `Timeline`.
        dts: (P,) time stamps of decoding.
        durations: (P,) in units of the time stamps.
        keys: (P,) bool, keyframes.
        shown: (P,) bool, whether a packet holds a picture that is shown.
        picture: one that decodes, with the number of its packet for its time.
        as_decoded: the decoder's order counts, and not that of the time stamps.
    """

    stamps: np.ndarray
    dts: np.ndarray
    durations: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    picture: av.VideoFrame | None
    as_decoded: bool = False


def walk(path: Path, begins: Begins = nothing_begins, file: BinaryIO | None = None) -> Timeline:
    """Look at every packet of a file.

    Args:
        path: of the file.
        begins: called before pictures are decoded, where the order of the packets does not tell that of the pictures.
        file: of that path if it is open already; it stays open. The walk opens the file once at most.

    Raises:
        TimelessVideo: its times cannot be had.
        VideoError: missing, unreadable or empty file.
    """
    if file is None:
        with open_file(path) as file:
            return walk(path, begins, file)
    with opened(path, file) as (container, stream):
        form, base = container.format.name, stream.time_base
        if container.format.flags & Flags.no_timestamps.value:
            raise TimelessVideo(f"{path}: holds no times, only pictures ({form}); run {_REMUX}")
        found = _look(container, stream)
        notes = _streams_note(container, stream)
        notes += _put_in_order(path, file, container, stream, found, begins)
        picture = _begin(path, file, found)
        if found.shown.sum() < 2:
            raise TimelessVideo(f"{path}: {_NO_PICTURES[min(1, int(found.shown.sum()))]}")
        order, last = _ticks(form, found, base)
        late, length = _late(container, order[0] * base), int(order[-1] - order[0] + last)
        if late:
            notes.append(f"its picture starts {float(late):.3f} s after the file does, from where times count")
        notes += _cut_off_note(container, float(length) * float(base) + float(late))
        promised = _promised(container, stream, len(found.keys), float(length * base))
        stored, turn = (picture.width, picture.height), _turn(path, picture, stream.sample_aspect_ratio)
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
        times, size = _times(order, last, base, late, rates), _size(path, stored, turn)
        info = VideoInfo(len(order), **times, **size, notes=tuple(notes))
        return Timeline(
            info, stream.index, stored, turn, found.stamps, found.shown, found.keys, promised, found.as_decoded
        )


def open_file(path: Path) -> BinaryIO:
    """A file to read, unbuffered.

    Raises:
        VideoError: missing or unreadable.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error


def _look(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    """Go through the packets, and decode one keyframe."""
    context = stream.codec_context
    context.thread_count = 1
    found, hidden, picture = [], [], None
    may_hide = context.name in _VP8 + _VP9
    for number, packet in packets(container, stream):
        if isinstance(packet, av.FFmpegError):
            continue
        found.append((packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.is_discard))
        if may_hide and _is_hidden(context.name, packet):
            hidden.append(number)
        if number == 0 or (picture is None and packet.is_keyframe):
            picture = _alone(context, number, packet)
    pts, dts, durations, keys, cut = _columns(found)
    shown = ~cut
    shown[hidden] = False
    return _Packets(np.where(pts == NO_STAMP, dts, pts), dts, durations, keys, shown, picture)


def _put_in_order(
    path: Path, file: BinaryIO, container, stream: av.VideoStream, found: _Packets, begins: Begins
) -> list[str]:
    """Find the order of presentation where time stamps do not tell it, and what is not shown; notes about it."""
    context, form, notes = stream.codec_context, container.format.name, []
    moves, area = bool(context.has_b_frames), context.width * context.height
    if form == "avi":  # knows only when packets are decoded
        found.stamps = found.dts
        if moves:
            begins(len(found.keys), area)
            given, lost = _given(path, file)
            found.stamps, held = _in_chunks(found.dts, given, lost)
            found.shown, found.as_decoded = found.shown & held, True
        return notes
    if "mp4" not in form:
        jumps = bool(container.format.flags & Flags.ts_discont.value)
        found.stamps, count = _counted_on(found.stamps, found.dts, found.durations, stream.time_base, jumps)
        notes += [f"its times start again {count} times; they are counted on"] if count else []
    elif len(found.keys) > stream.frames:
        found.shown &= ~_in_gaps(file, stream.id, found.stamps, stream.time_base)
    if _is_doubtful(path, file, found, moves, "mp4" in form):
        begins(len(found.keys), area)
        given, lost = _given(path, file)
        if given != _timed(found.stamps, found.shown, given):  # else as the time stamps say
            found.stamps, held = _in_turn(path, found.stamps, given, lost)
            found.shown, found.as_decoded = found.shown & held, True
            notes.append("its times contradict the order of its pictures, which counts")
    return notes


def _begin(path: Path, file: BinaryIO, found: _Packets) -> av.VideoFrame:
    """The first picture that is shown; what comes before it is not."""
    picture = found.picture
    if found.as_decoded:
        return _first_picture(path, file)
    if picture is None or not _begins_with(picture.pts, found.stamps, found.shown):
        picture = _first_picture(path, file)
        found.shown &= _from(picture.pts, found.stamps, found.keys, found.shown)
    return picture


def _ticks(form: str, found: _Packets, base: Fraction) -> tuple[np.ndarray, int]:
    """Stamps of the pictures in order of presentation, and how long the last one stays."""
    numbers = in_order(found.stamps, found.shown)
    order, last = found.stamps[numbers], int(found.durations[numbers[-1]])
    if form == "avi":  # chunks that only delay the decoder count, too
        last = max(1, int(np.ptp(found.dts[found.dts != NO_STAMP]) + 1 - (order[-1] - order[0])))
    elif form == "gif":
        order, last = _as_played(order, last, base)
    return order, last


def _columns(found: list[tuple]) -> tuple[np.ndarray, ...]:
    """(P,) time stamps of presentation and of decoding, durations, keyframes, and what an edit list cuts off."""
    columns = list(zip(*found, strict=True)) or [()] * 5
    for k in (0, 1):
        if None in columns[k]:
            columns[k] = [NO_STAMP if stamp is None else stamp for stamp in columns[k]]
    columns[2] = [duration or 0 for duration in columns[2]]
    kinds = (np.int64, np.int64, np.int64, bool, bool)
    return tuple(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))


def _alone(context, number: int, packet: av.Packet) -> av.VideoFrame | None:
    """The picture of a packet by itself, if the decoder gives it, with the packet's number for its time."""
    packet.pts, packet.dts = number, None
    try:
        found = next(iter([*context.decode(packet), *context.decode(None)]), None)
    except av.error.FFmpegError:
        found = None
    context.flush_buffers()
    return found


def _begins_with(first: int, stamps: np.ndarray, shown: np.ndarray) -> bool:
    """Whether what is shown begins with that packet, and all of it has times."""
    return bool(shown[first] and stamps[first] != NO_STAMP and stamps[shown].min() == stamps[first])


def _first_picture(path: Path, file: BinaryIO) -> av.VideoFrame:
    """The first picture that a player shows, with the number of its packet for its time."""
    reason: object = "it holds no packets"
    with opened(path, file) as (container, stream):
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in chain(packets(container, stream), [(-1, None)]):
            if isinstance(packet, av.FFmpegError):
                reason = packet
                continue
            if packet is not None:
                packet.pts, packet.dts = number, None
            try:
                if found := context.decode(packet):
                    return found[0]
            except av.error.FFmpegError as error:
                reason = error
    raise VideoError(f"{path}: no frame decodes ({reason}); download or encode it again")


def _from(first: int, stamps: np.ndarray, keys: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(P,) packets whose pictures come not before the first one that decodes, and have a time.

    Where the first keyframe itself does not decode, it is damaged, and what follows is missing rather than not shown.
    """
    starts = np.flatnonzero(keys & shown & (stamps != NO_STAMP))
    begin = min(stamps[first], stamps[starts[0]]) if len(starts) else stamps[first]
    return (stamps != NO_STAMP) & (stamps >= begin)


def _is_hidden(codec: str, packet: av.Packet) -> bool:
    """Whether a packet is a reference frame that is never shown (VP8, VP9)."""
    data = memoryview(packet)
    if codec in _VP8:
        return not data[0] & 0x10
    if data[-1] & 0xE0 == 0xC0:  # a superframe, which ends in a frame that is shown
        return False
    bits = data[0] << 8 | (data[1] if len(data) > 1 else 0)
    at = 11 if bits >> 12 & 3 == 3 else 12  # a profile of 3 has one reserved bit more
    shows_existing, shows = bits >> (at - 1) & 1, bits >> (at - 3) & 1
    return not (shows_existing or shows)


def _is_doubtful(path: Path, file: BinaryIO, found: _Packets, moves: bool, mp4: bool) -> bool:
    """Whether the time stamps may contradict the order in which the decoder gives the pictures.

    They are missing or come twice, or lie before the time of decoding, or rise from packet to packet although the
    decoder moves pictures.
    """
    stamps, dts, shown = found.stamps, found.dts, found.shown
    missing = np.flatnonzero(shown & (stamps == NO_STAMP))
    known = stamps[shown & (stamps != NO_STAMP)]
    if len(np.unique(known)) < len(known) or (not mp4 and (stamps < dts)[shown & (stamps != NO_STAMP)].any()):
        return True
    rising = moves and bool((np.diff(known) > 0).all())
    if len(missing) and missing[-1] >= _EARLY:
        return True
    if not len(missing) and not rising:
        return False
    early, _ = _given(path, file, _EARLY)
    return bool(set(missing.tolist()) & set(early)) or (rising and early != sorted(early))


def _given(path: Path, file: BinaryIO, count: int | None = None) -> tuple[list[int], list[int]]:
    """The packets whose pictures the decoder gives, in its order, and those that break; of the first ones or of all."""
    given: list[int] = []
    broken: list[int] = []
    with opened(path, file) as (container, stream):
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in chain(islice(packets(container, stream), count), [(-1, None)]):
            if isinstance(packet, av.FFmpegError):
                continue
            if packet is not None:
                packet.pts, packet.dts = number, None
            try:
                given += [frame.pts for frame in context.decode(packet)]
            except av.error.FFmpegError:
                broken.append(number)
    return given, [number for number in broken if number >= 0 and number not in given]


def _in_chunks(dts: np.ndarray, given: list[int], lost: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Order of presentation of an AVI's packets, and which hold a picture.

    Each packet with anything in it is the place of one picture, in the order in which the decoder gives them. One that
    breaks counts as a picture in its own place, so that it is known to be missing.
    """
    stamps, held = np.full(len(dts), NO_STAMP), np.zeros(len(dts), bool)
    slots = np.delete(dts, lost)[: len(given)]
    steps = np.diff(slots)
    if len(steps) > 1 and steps[0] > np.median(steps):  # empty chunks that only make up for the decoder's delay
        slots[0] = slots[1] - int(np.median(steps))
    stamps[given], held[given] = slots, True
    stamps[lost], held[lost] = dts[lost], True
    return stamps, held


def _in_turn(path: Path, stamps: np.ndarray, given: list[int], lost: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Time stamps in the order in which the decoder gives the pictures, and which packets hold one.

    Where all have stamps, these are put in order. Missing ones, and all but the first of equal ones, lie evenly between
    their neighbours.
    """
    order = np.array(_with_lost(given, lost))
    own = stamps[order]
    if (own != NO_STAMP).all():
        own = np.sort(own)
    known = np.flatnonzero((own != NO_STAMP) & (own > np.append(NO_STAMP, np.maximum.accumulate(own)[:-1])))
    if len(known) < 2:
        raise TimelessVideo(f"{path}: {_NO_PICTURES[0]}")
    places, steps = np.arange(len(order)), np.diff(own[known]) / np.diff(known)
    filled = np.interp(places, known, own[known])
    step = float(np.median(steps))
    filled = np.where(places < known[0], own[known[0]] + (places - known[0]) * step, filled)
    filled = np.where(places > known[-1], own[known[-1]] + (places - known[-1]) * step, filled)
    found, held = np.full(len(stamps), NO_STAMP), np.zeros(len(stamps), bool)
    found[order], held[order] = np.rint(filled).astype(np.int64), True
    return found, held


def _timed(stamps: np.ndarray, shown: np.ndarray, given: list[int]) -> list[int]:
    """The packets that the decoder gave pictures of, in the order of their time stamps; those without one left out."""
    numbers = in_order(stamps, shown & (stamps != NO_STAMP))
    return numbers[np.isin(numbers, given)].tolist()


def _with_lost(given: list[int], lost: list[int]) -> list[int]:
    """Packets in the order of their pictures, each lost one after the last that comes before it in the file."""
    found = list(given)
    for number in lost:
        before = [place for place, other in enumerate(found) if other < number]
        found.insert(before[-1] + 1 if before else 0, number)
    return found


def _counted_on(
    stamps: np.ndarray, dts: np.ndarray, durations: np.ndarray, base: Fraction, jumps: bool
) -> tuple[np.ndarray, int]:
    """The stamps, going on where time starts again in the order of decoding; how often it does.

    With `jumps` it also starts again where it jumps far ahead.
    """
    known = np.flatnonzero(dts != NO_STAMP)
    step = np.diff(dts[known])
    back, ahead = -int(_BACK / base), max(int(_AHEAD / base), _OFTEN * float(np.median(step)) if len(step) else 0)
    places = known[np.flatnonzero((step < back) | ((step > ahead) & jumps))] + 1
    counted, end = stamps.copy(), None
    for start, stop in pairwise([0, *places.tolist(), len(stamps)]):
        part = np.flatnonzero(stamps[start:stop] != NO_STAMP) + start
        if not len(part):
            continue
        if end is not None:
            counted[part] += end - counted[part].min()
        end = (counted[part] + durations[part]).max()
    return counted, len(places)


def _in_gaps(file: BinaryIO, track: int, stamps: np.ndarray, base: Fraction) -> np.ndarray:
    """(P,) packets that FFmpeg plays where the edit list of an MP4's track has a gap, but at its beginning.

    FFmpeg plays the beginning of the film there; nothing new is shown.
    """
    inside = np.zeros(len(stamps), bool)
    with contextlib.suppress(struct.error):  # cut off: there is no such list
        for start, end in _gaps(file, track, 0, file.seek(0, os.SEEK_END), {}):
            inside |= (stamps >= start / base) & (stamps < end / base)
    return inside


def _gaps(
    file: BinaryIO, track: int, start: int, end: int, seen: dict[bytes, int], level: int = 0
) -> Iterator[tuple[Fraction, Fraction]]:
    """Gaps between the edits of a track, seconds, in the boxes between two places of an MP4.

    `seen` becomes the movie's units per second (``mvhd``) and the number of the track (``tkhd``) one is in.
    """
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", file.read(8))[0], start + 16
        size = size or end - start
        if size < body - start:
            return
        if level < len(_WAY) and name == _WAY[level]:
            yield from _gaps(file, track, body, min(end, start + size), seen, level + 1)
        elif name in (b"mvhd", b"tkhd"):
            header = file.read(24)
            seen[name] = struct.unpack_from(">I", header, 20 if header[:1] == b"\1" else 12)[0]
        elif name == b"elst" and seen.get(b"tkhd") == track and seen.get(b"mvhd"):
            version, count = struct.unpack(">B3xI", file.read(8))
            form, at = struct.Struct(">Qq4x" if version else ">Ii4x"), 0
            for k, (length, media) in enumerate(form.iter_unpack(file.read(min(count * form.size, size)))):
                if media == -1 and k:
                    yield Fraction(at, seen[b"mvhd"]), Fraction(at + length, seen[b"mvhd"])
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


def _cut_off_note(container, end: float) -> list[str]:
    """A note where a header names a length that the pictures do not reach; some formats only guess one."""
    if container.duration is None or container.format.flags & Flags.ts_discont.value:
        return []
    said = container.duration / av.time_base
    if said - end < max(_SHORT, 0.05 * said):
        return []
    return [f"its pictures end at {end:.3f} s, and its header says {said:.3f} s: cut off, or its sound is longer"]


def _streams_note(container, stream) -> list[str]:
    count = len(container.streams.video)
    size = f"{stream.codec_context.width}x{stream.codec_context.height}"
    return [f"it has {count} video streams; the film is taken to be stream {stream.index}, {size}"] * (count > 1)


def _size(path: Path, stored: tuple[int, int], turn: Turn) -> dict[str, int]:
    """Width and height on screen, pixels."""
    sides = (turn.width or stored[0], stored[1])
    width, height = sides[::-1] if turn.transposed else sides
    if width * height > MAX_AREA:
        raise VideoError(f"{path}: pictures of {width}x{height} are over {MAX_AREA} pixels; make a smaller copy")
    return {"width": width, "height": height}


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


def _times(order: np.ndarray, last: int, base: Fraction, late: Fraction | int, rates: list[Fraction]) -> dict:
    """Rate, and where it is not constant times and end; see `VideoInfo`."""
    count = len(order)
    since = (order - order[0]) * base.numerator / base.denominator
    own = float(last * base) if last > 0 else float(np.median(np.diff(since)))
    length = float(since[-1]) + own
    if since[-1] > 0:
        rates = [*rates, Fraction(float((count - 1) / since[-1])).limit_denominator(1001)]
    for rate in map(float, rates):
        if rate > 0 and not late and np.abs(since - np.arange(count) / rate).max() <= _SAME:
            if own <= 1.5 / rate:  # a shorter one is a header's, or nobody's
                return {"fps": rate}
            break
    end = float(late) + length
    return {"fps": count / end, "times": tuple((float(late) + since).tolist()), "end": end}
