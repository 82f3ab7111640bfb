"""The walk over a file's packets.

Headers guess. They count pictures that an edit list hides, name a rate that a recorder only intended, and leave lengths
out. So every packet of the film is looked at once, and no picture but one is decoded.

Packets are numbered in the order of the file. A decoder hands the number of a packet on to its picture, in place of a
time stamp: so pictures are told apart even where time stamps are missing, come twice, start again or are wrong.

What is shown follows the players:

- Packets that an edit list cuts off, and alternate reference frames, are decoded and not shown. Pictures after the
  first keyframe that come before it on screen are shown only if the decoder gives them: they may lean on what is gone.
- The clock starts with the file: with the first picture, or with the sound where that starts well before it.
- Time stamps of transport streams may start again; they are counted on. AVI has none for B-frames; there, pictures are
  shown in the order in which the decoder gives them, each in the place of one packet. GIFs whose delay is 10 ms or less
  are shown at 100 ms.
- Width and height are those on screen: stretched by the pixel aspect, then turned and mirrored by the display matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags

from verl_stvg.video.clock import ROUNDING
from verl_stvg.video.container import open_file, opened, packets
from verl_stvg.video.content import Opened
from verl_stvg.video.film import MAX_AREA, NO_STAMP, TimelessVideo, Timeline, Turn, VideoError, VideoInfo, in_order
from verl_stvg.video.packet_order import (
    NO_PICTURES,
    REMUX,
    counted_on,
    given_by_decoder,
    in_chunks,
    in_gaps,
    in_turn,
    is_doubtful,
    timed,
)

Begins = Callable[[int, int], None]
"""Is told how many pictures are about to be decoded, and the area of each, pixels."""
TOGETHER = 0.1
"""Seconds by which the picture may start after the sound and still count as starting with it."""
_LEAST_DELAY, _USUAL_DELAY = 0.01, 0.1  # seconds, of a GIF's pictures: what players do
_SHORT = 1.0  # seconds by which a file may end before its index says, and not count as truncated
_SAME = 1.1 * ROUNDING  # seconds: two times are rounded
_VP8, _VP9 = ("vp8", "libvpx"), ("vp9", "libvpx-vp9")


def nothing_begins(pictures: int, area: int) -> None:
    """A `Begins` that does not want to know."""


# --- the walk ---------------------------------------------------------------------------------------------------------


@dataclass
class _Packets:
    """What is known of the packets of a film, in the order of the file.

    Attributes:
        base: seconds of a unit of the time stamps.
        stamps: (P,) order of presentation, see `Timeline`.
        dts: (P,) time stamps of decoding.
        durations: (P,) in units of the time stamps.
        keys: (P,) bool, keyframes.
        shown: (P,) bool, whether a packet holds a picture that is shown.
        picture: one that decodes, with the number of its packet for its time.
        as_decoded: the decoder's order counts, and not that of the time stamps.
    """

    base: Fraction
    stamps: np.ndarray
    dts: np.ndarray
    durations: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    picture: av.VideoFrame | None
    as_decoded: bool = False


def walk(path: Path, begins: Begins = nothing_begins, file: Opened | None = None) -> Timeline:
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
        with open_file(path) as raw:
            return walk(path, begins, raw)
    with opened(path, file) as (container, stream):
        form, base = container.format.name, stream.time_base
        if container.format.flags & Flags.no_timestamps.value or base is None:
            raise TimelessVideo(f"{path}: holds no times, only pictures ({form}); run {REMUX}")
        found = _look(container, stream, base)
        notes = _streams_note(container, stream)
        notes += _put_in_order(path, file, container, stream, found, begins)
        picture = _begin(path, file, found)
        if found.shown.sum() < 2:
            raise TimelessVideo(f"{path}: {NO_PICTURES[min(1, int(found.shown.sum()))]}")
        order, last = _ticks(form, found)
        late, length = _late(container, order[0] * base), int(order[-1] - order[0] + last)
        if late:
            notes.append(f"its picture starts {float(late):.3f} s after the file does, from where times count")
        notes += _cut_off_note(container, float(length) * float(base) + float(late))
        promised = _promised(container, stream, len(found.keys), float(length * base))
        stored, turn = (picture.width, picture.height), _turn(path, picture, stream.sample_aspect_ratio)
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
        width, height = _size(path, stored, turn)
        info = VideoInfo(
            len(order), width=width, height=height, notes=tuple(notes), **_times(order, last, base, late, rates)
        )
        return Timeline(
            info, stream.index, stored, turn, found.stamps, found.shown, found.keys, promised, found.as_decoded
        )


def _look(container: InputContainer, stream: av.VideoStream, base: Fraction) -> _Packets:
    """Go through the packets, and decode one keyframe."""
    context = stream.codec_context
    context.thread_count = 1
    found, hidden, picture = [], [], None
    may_hide = context.name in _VP8 + _VP9
    for number, packet in packets(container, stream):
        if isinstance(packet, FFmpegError):
            continue
        found.append((packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.is_discard))
        if may_hide and _is_hidden(context.name, packet):
            hidden.append(number)
        if number == 0 or (picture is None and packet.is_keyframe):
            picture = _alone(context, number, packet)
    pts, dts, durations, keys, cut = _columns(found)
    shown = ~cut
    shown[hidden] = False
    return _Packets(base, np.where(pts == NO_STAMP, dts, pts), dts, durations, keys, shown, picture)


def _put_in_order(
    path: Path, file: Opened, container, stream: av.VideoStream, found: _Packets, begins: Begins
) -> list[str]:
    """Find the order of presentation where time stamps do not tell it, and what is not shown; notes about it."""
    context, form, notes = stream.codec_context, container.format.name, []
    moves, area = bool(context.has_b_frames), context.width * context.height
    if form == "avi":  # knows only when packets are decoded
        found.stamps = found.dts
        if moves:
            begins(len(found.keys), area)
            given, lost = given_by_decoder(path, file)
            found.stamps, held = in_chunks(found.dts, given, lost)
            found.shown, found.as_decoded = found.shown & held, True
        return notes
    if "mp4" not in form:
        jumps = bool(container.format.flags & Flags.ts_discont.value)
        found.stamps, count = counted_on(found.stamps, found.dts, found.durations, found.base, jumps)
        notes += [f"its times start again {count} times; they are counted on"] if count else []
    elif len(found.keys) > stream.frames:
        found.shown &= ~in_gaps(file, stream.id, found.stamps, found.base)
    if is_doubtful(path, file, found.stamps, found.dts, found.shown, moves, "mp4" in form):
        begins(len(found.keys), area)
        given, lost = given_by_decoder(path, file)
        if given != timed(found.stamps, found.shown, given):  # else as the time stamps say
            found.stamps, held = in_turn(path, found.stamps, given, lost)
            found.shown, found.as_decoded = found.shown & held, True
            notes.append("its times contradict the order of its pictures, which counts")
    return notes


def _begin(path: Path, file: Opened, found: _Packets) -> av.VideoFrame:
    """The first picture that is shown; what comes before it is not."""
    if found.picture is not None and not found.as_decoded and _begins_with(found.picture.pts, found):
        return found.picture
    first, picture = _first_picture(path, file)
    if not found.as_decoded:
        found.shown &= _from(first, found.stamps, found.keys, found.shown)
    return picture


def _ticks(form: str, found: _Packets) -> tuple[np.ndarray, int]:
    """Stamps of the pictures in order of presentation, and how long the last one stays."""
    numbers = in_order(found.stamps, found.shown)
    order, last = found.stamps[numbers], int(found.durations[numbers[-1]])
    if form == "avi":  # chunks that only delay the decoder count, too
        last = max(1, int(np.ptp(found.dts[found.dts != NO_STAMP]) + 1 - (order[-1] - order[0])))
    elif form == "gif":
        order, last = _as_played(order, last, found.base)
    return order, last


def _columns(found: list[tuple]) -> tuple[np.ndarray, ...]:
    """(P,) time stamps of presentation and of decoding, durations, keyframes, and what an edit list cuts off."""
    columns: list[Sequence[Any]] = list(zip(*found, strict=True)) or [()] * 5
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
    except FFmpegError:
        found = None
    context.flush_buffers()
    return found


def _begins_with(first: int | None, found: _Packets) -> bool:
    """Whether what is shown begins with that packet, and all of it has times."""
    stamps, shown = found.stamps, found.shown
    if first is None or not shown[first] or stamps[first] == NO_STAMP:
        return False
    return bool(stamps[shown].min() == stamps[first])


def _first_picture(path: Path, file: Opened) -> tuple[int, av.VideoFrame]:
    """The first picture that a player shows, after the number of its packet."""
    reason: object = "it holds no packets"
    with opened(path, file) as (container, stream):
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in chain(packets(container, stream), [(-1, None)]):
            if isinstance(packet, FFmpegError):
                reason = packet
                continue
            if packet is not None:
                packet.pts, packet.dts = number, None
            try:
                for picture in context.decode(packet):
                    if picture.pts is not None:
                        return picture.pts, picture
            except FFmpegError as error:
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


def _size(path: Path, stored: tuple[int, int], turn: Turn) -> tuple[int, int]:
    """Width and height on screen, pixels."""
    sides = (turn.width or stored[0], stored[1])
    width, height = sides[::-1] if turn.transposed else sides
    if width * height > MAX_AREA:
        raise VideoError(f"{path}: pictures of {width}x{height} are over {MAX_AREA} pixels; make a smaller copy")
    return width, height


def _turn(path: Path, frame: av.VideoFrame, aspect: Fraction | None) -> Turn:
    """What the display matrix and the pixel aspect ask for."""
    width = round(frame.width * aspect) if aspect else frame.width
    stretched = None if width == frame.width else max(1, width)
    matrix = frame.side_data.get("DISPLAYMATRIX")
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
