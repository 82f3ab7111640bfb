"""The order in which the pictures of packets are shown, where time stamps do not tell it.

Time stamps are missing, come twice, start again or contradict the decoder. Packets are numbered in the order of the
file; P is their number.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from verl_stvg.video.container import opened, packets
from verl_stvg.video.content import Opened
from verl_stvg.video.film import NO_STAMP, TimelessVideo, in_order

REMUX = "ffmpeg -framerate RATE -i IN OUT.mp4"
NO_PICTURES = (
    f"holds no pictures with time stamps; run {REMUX}",
    "holds one picture, and times need two; if it is a still, make a video of it: "
    "ffmpeg -loop 1 -t SECONDS -i IN -pix_fmt yuv420p OUT.mp4",
)

_BACK = 0.5  # seconds: time stamps of a transport stream that go back further start again
_AHEAD, _OFTEN = 60.0, 100  # or jump ahead further: seconds, times the usual step
_WAY = (b"moov", b"trak", b"edts")  # boxes of an MP4 around an edit list
_EARLY = 64  # packets that are decoded to see whether pictures come in the order of their packets


def is_doubtful(
    path: Path, file: Opened, stamps: np.ndarray, dts: np.ndarray, shown: np.ndarray, moves: bool, mp4: bool
) -> bool:
    """Whether the time stamps may contradict the order in which the decoder gives the pictures.

    They are missing or come twice, or lie before the time of decoding, or rise from packet to packet although the
    decoder moves pictures.

    Args:
        path: of the file.
        file: of that path, open.
        stamps: (P,) order of presentation.
        dts: (P,) time stamps of decoding.
        shown: (P,) bool, whether a packet holds a picture that is shown.
        moves: whether the decoder may give pictures in another order than that of their packets.
        mp4: whether the file is an MP4.
    """
    missing = np.flatnonzero(shown & (stamps == NO_STAMP))
    known = stamps[shown & (stamps != NO_STAMP)]
    if len(np.unique(known)) < len(known) or (not mp4 and (stamps < dts)[shown & (stamps != NO_STAMP)].any()):
        return True
    rising = moves and bool((np.diff(known) > 0).all())
    if len(missing) and missing[-1] >= _EARLY:
        return True
    if not len(missing) and not rising:
        return False
    early, _ = given_by_decoder(path, file, _EARLY)
    return bool(set(missing.tolist()) & set(early)) or (rising and early != sorted(early))


def given_by_decoder(path: Path, file: Opened, count: int | None = None) -> tuple[list[int], list[int]]:
    """The packets whose pictures the decoder gives, in its order, and those that break.

    Args:
        path: of the file.
        file: of that path, open.
        count: packets that are decoded, from the first one on; None: all.
    """
    given: list[int] = []
    broken: list[int] = []
    with opened(path, file) as (container, stream):
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in chain(islice(packets(container, stream), count), [(-1, None)]):
            if isinstance(packet, FFmpegError):
                continue
            if packet is not None:
                packet.pts, packet.dts = number, None
            try:
                given += [frame.pts for frame in context.decode(packet) if frame.pts is not None]
            except FFmpegError:
                broken.append(number)
    return given, [number for number in broken if number >= 0 and number not in given]


def in_chunks(dts: np.ndarray, given: list[int], lost: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Order of presentation of an AVI's packets, and which hold a picture.

    Each packet with anything in it is the place of one picture, in the order in which the decoder gives them. One that
    breaks counts as a picture in its own place, so that it is known to be missing.

    Args:
        dts: (P,) time stamps of decoding.
        given: packets whose pictures the decoder gives, in its order.
        lost: packets that break.

    Returns:
        (P,) stamps, `NO_STAMP` without a picture; (P,) bool, whether a packet holds one.
    """
    stamps, held = np.full(len(dts), NO_STAMP), np.zeros(len(dts), bool)
    slots = np.delete(dts, lost)[: len(given)]
    steps = np.diff(slots)
    if len(steps) > 1 and steps[0] > np.median(steps):  # empty chunks that only make up for the decoder's delay
        slots[0] = slots[1] - int(np.median(steps))
    stamps[given], held[given] = slots, True
    stamps[lost], held[lost] = dts[lost], True
    return stamps, held


def in_turn(path: Path, stamps: np.ndarray, given: list[int], lost: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Time stamps in the order in which the decoder gives the pictures, and which packets hold one.

    Where all have stamps, these are put in order. Missing ones, and all but the first of equal ones, lie evenly between
    their neighbours.

    Args:
        path: of the file, for the message.
        stamps: (P,) of the file, `NO_STAMP` where one is missing.
        given: packets whose pictures the decoder gives, in its order.
        lost: packets that break.

    Returns:
        (P,) stamps, `NO_STAMP` without a picture; (P,) bool, whether a packet holds one.

    Raises:
        TimelessVideo: fewer than two pictures have a time.
    """
    order = np.array(_with_lost(given, lost))
    own = stamps[order]
    if (own != NO_STAMP).all():
        own = np.sort(own)
    known = np.flatnonzero((own != NO_STAMP) & (own > np.append(NO_STAMP, np.maximum.accumulate(own)[:-1])))
    if len(known) < 2:
        raise TimelessVideo(f"{path}: {NO_PICTURES[0]}")
    places, steps = np.arange(len(order)), np.diff(own[known]) / np.diff(known)
    filled = np.interp(places, known, own[known])
    step = float(np.median(steps))
    filled = np.where(places < known[0], own[known[0]] + (places - known[0]) * step, filled)
    filled = np.where(places > known[-1], own[known[-1]] + (places - known[-1]) * step, filled)
    found, held = np.full(len(stamps), NO_STAMP), np.zeros(len(stamps), bool)
    found[order], held[order] = np.rint(filled).astype(np.int64), True
    return found, held


def timed(stamps: np.ndarray, shown: np.ndarray, given: list[int]) -> list[int]:
    """The packets that the decoder gave pictures of, in the order of their time stamps; those without one left out.

    Args:
        stamps: (P,) order of presentation, `NO_STAMP` where one is missing.
        shown: (P,) bool, whether a packet holds a picture that is shown.
        given: packets whose pictures the decoder gives.
    """
    numbers = in_order(stamps, shown & (stamps != NO_STAMP))
    return numbers[np.isin(numbers, given)].tolist()


def _with_lost(given: list[int], lost: list[int]) -> list[int]:
    """Packets in the order of their pictures, each lost one after the last that comes before it in the file."""
    found = list(given)
    for number in lost:
        before = [place for place, other in enumerate(found) if other < number]
        found.insert(before[-1] + 1 if before else 0, number)
    return found


def counted_on(
    stamps: np.ndarray, dts: np.ndarray, durations: np.ndarray, base: Fraction, jumps: bool
) -> tuple[np.ndarray, int]:
    """The stamps, going on where time starts again in the order of decoding; how often it does.

    Args:
        stamps: (P,) order of presentation, `NO_STAMP` where one is missing.
        dts: (P,) time stamps of decoding, likewise.
        durations: (P,) of the pictures, in units of the stamps.
        base: seconds of a unit.
        jumps: whether time also starts again where it jumps far ahead.
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


def in_gaps(file: Opened, track: int, stamps: np.ndarray, base: Fraction) -> np.ndarray:
    """(P,) packets that FFmpeg plays where the edit list of an MP4's track has a gap, but at its beginning.

    FFmpeg plays the beginning of the film there; nothing new is shown.

    Args:
        file: the MP4, open.
        track: its number in the file (``tkhd``).
        stamps: (P,) order of presentation.
        base: seconds of a unit of the stamps.
    """
    inside = np.zeros(len(stamps), bool)
    with contextlib.suppress(struct.error):  # cut off: there is no such list
        for start, end in _gaps(file, track, 0, file.seek(0, os.SEEK_END), {}):
            inside |= (stamps >= start / base) & (stamps < end / base)
    return inside


def _gaps(
    file: Opened, track: int, start: int, end: int, seen: dict[bytes, int], level: int = 0
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
