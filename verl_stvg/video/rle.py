"""Masks as COCO run lengths: the one reader of both spellings, and what is checked before native code sees a mask.

pycocotools trusts its input. Masks come from files of many hands, so whatever goes there comes through here: `encoded`
for a mask of unknown origin, `flaw` for many at once, as a track file holds them. Checked are the size, the characters
or numbers of the counts, that no run is negative, and that the runs add up to height times width. All of it takes time
in proportion to the counts.
"""

import itertools
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco

from verl_stvg.video.film import MAX_AREA

_ZERO, _MORE = 48, 32
"""COCO's compressed counts: the character of digit 0, and the flag of a digit that more follow."""
_DIGITS = np.concatenate([np.arange(16), np.arange(-16, 0), np.arange(32)])
"""Value of each digit: five bits, signed in the last one of a count, which is the one without the flag."""
_MOST_DIGITS = 6
"""Of a number; so many hold any run of a picture of `MAX_AREA` pixels, and any difference of two."""

_AT_ONCE = 256  # masks that are checked together: what is held for them fits into a processor's cache


class RLE(TypedDict):
    """A mask as pycocotools writes it: ``size`` [height, width], and ``counts``, the lengths of alternating runs of
    background and object down the columns, compressed.
    """

    size: list[int]
    counts: str | bytes


AnyRLE = Mapping[str, Any]
"""A mask of unknown origin: `RLE` if all is well, also with plain ``counts`` (integers) or another sequence as size."""


class MaskError(ValueError):
    """Run lengths that are no mask; the message says what is wrong with them."""


def malformed(what: str) -> MaskError:
    """The error about a mask that ``what`` is wrong with."""
    return MaskError(f"malformed RLE: {what}; write masks with pycocotools.mask.encode on a Fortran-ordered array")


def size_of(rle: AnyRLE) -> tuple[int, int]:
    """(height, width) of a mask.

    Raises:
        MaskError: no mask, or a size that is not two integers from 0 on with a product of at most `MAX_AREA`.
    """
    size = rle["size"] if isinstance(rle, Mapping) and "size" in rle and "counts" in rle else None
    if size is None or isinstance(size, str | bytes | Mapping) or not hasattr(size, "__len__") or len(size) != 2:
        raise MaskError(f"a mask is a mapping with size [height, width] and counts, got {reprlib.repr(rle):.80}")
    if not all(isinstance(side, Integral) and not isinstance(side, bool) and side >= 0 for side in size):
        raise malformed(f"size is not two integers from 0 on, got {reprlib.repr(size):.80}")
    height, width = int(size[0]), int(size[1])
    if height * width > MAX_AREA:
        raise malformed(f"size {width}x{height} is over {MAX_AREA} pixels")
    return height, width


def lengths_of(rles: Sequence[AnyRLE], height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Run lengths of background and object in turn, mask after mask; their running sum; and where each mask begins.

    Args:
        rles: at least one.
        height: of all of them, pixels.
        width: of all of them, pixels.

    Raises:
        MaskError: runs that do not make a mask of that size.
    """
    counts = [rle["counts"] for rle in rles]
    texts = [_bytes(each) for each in counts if isinstance(each, str | bytes)]
    if len(texts) == len(counts):
        lengths, bounds = _uncompressed(texts)
    elif len(counts) == 1:
        lengths = _plain(counts[0])
        bounds = [0, len(lengths)]
    else:
        parts = [lengths_of([rle], height, width)[0] for rle in rles]
        lengths, bounds = np.concatenate(parts), [0, *itertools.accumulate(map(len, parts))]
    if lengths.min() < 0:
        raise malformed("a run has a negative length")
    if lengths.max() > MAX_AREA:  # sums of such may wrap around
        raise malformed(f"the runs of a {width}x{height} mask add up to {lengths.max()} pixels or more")
    ends = lengths.cumsum()
    for k, end in enumerate(bounds[1:]):
        if ends[end - 1] != (k + 1) * height * width:
            found = ends[end - 1] - k * height * width
            raise malformed(f"the runs of a {width}x{height} mask add up to {found} pixels")
    return lengths, ends, bounds


def pixels(rle: AnyRLE) -> int:
    """Pixels of a mask.

    Raises:
        MaskError: it is none.
    """
    return int(lengths_of([rle], *size_of(rle))[0][1::2].sum())


def encoded(rle: AnyRLE) -> RLE:
    """A mask of unknown origin as pycocotools may have it: compressed text, without runs of no pixels in between.

    Raises:
        MaskError: it is none.

    Example:
        >>> encoded({"size": [4, 4], "counts": [4, 4, 8]})
        {'size': [4, 4], 'counts': '448'}
    """
    height, width = size_of(rle)
    if not height * width:
        raise malformed(f"size {width}x{height} has no pixels")
    lengths, _, _ = lengths_of([rle], height, width)
    counts = rle["counts"]
    if not lengths[1:].all():
        lengths = _joined(lengths)
    elif isinstance(counts, str | bytes):
        return {"size": [height, width], "counts": _bytes(counts).decode("ascii")}
    return {"size": [height, width], "counts": compressed(lengths.tolist())}


def encode(mask: np.ndarray) -> RLE:
    """Run lengths of a mask, bool or of 0 and 1, (H, W)."""
    found = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(found["size"]), "counts": found["counts"].decode("ascii")}


def compressed(lengths: Sequence[int]) -> str:
    """COCO's text of run lengths."""
    text = bytearray()
    for k, length in enumerate(lengths):
        rest = length - lengths[k - 2] if k > 2 else length
        while True:
            digit, rest = rest & 31, rest >> 5
            if rest == (-1 if digit & 16 else 0):
                break
            text.append(_ZERO + (digit | _MORE))
        text.append(_ZERO + digit)
    return text.decode("ascii")


def flaw(rles: Sequence[AnyRLE], height: int, width: int, empty: bool = False) -> tuple[int, str] | None:
    """Place of the first of many masks that is no mask of that size, and what is wrong with it; None if all are right.

    Args:
        rles: whose ``size`` is not looked at.
        height: of all of them, pixels.
        width: of all of them, pixels.
        empty: whether a mask may be without pixels.
    """
    texts = [each for rle in rles if isinstance(each := rle["counts"], str | bytes) and each]
    if len(texts) == len(rles):
        parts = (texts[k : k + _AT_ONCE] for k in range(0, len(texts), _AT_ONCE))
        if all(_sound(part, height * width, empty) for part in parts):
            return None
    for k, rle in enumerate(rles):
        try:
            lengths, _, _ = lengths_of([rle], height, width)
        except MaskError as error:
            return k, str(error)
        if not empty and not lengths[1::2].any():
            return k, "a mask without pixels"
    return None


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts


def _plain(counts: object) -> np.ndarray:
    if isinstance(counts, Sequence | np.ndarray) and len(counts):
        if isinstance(counts, np.ndarray) or all(type(each) is int or isinstance(each, np.integer) for each in counts):
            lengths = np.asarray(counts)
            if lengths.ndim == 1 and lengths.dtype.kind in "iu" and lengths.max() < 2**62:
                return lengths.astype(np.int64)
    raise malformed("counts are neither text nor a list of integers")


def _joined(lengths: np.ndarray) -> np.ndarray:
    """The same mask without runs of no pixels, except in front."""
    values = np.arange(len(lengths)) % 2
    values, lengths = values[lengths > 0], lengths[lengths > 0]
    first = np.flatnonzero(np.diff(values, prepend=-1))
    together = np.add.reduceat(lengths, first)
    return np.concatenate([[0], together]) if values[0] else together


def _uncompressed(texts: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
    """Run lengths from COCO's texts: little-endian digits of 5 bits and a flag that more follow, the last digit signed;
    from the fourth on each number is the difference to the last but one.
    """
    if any(not text or text[-1] - _ZERO & _MORE for text in texts):
        raise malformed("counts are cut off")
    digits = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(_ZERO)  # characters before it wrap around
    if digits.max() >= len(_DIGITS):
        raise malformed("counts have characters that the format does not use")
    ended = digits < _MORE
    final = ended.nonzero()[0]
    before = np.empty_like(final)
    before[0], before[1:] = -1, final[:-1]
    if (final - before).max() > _MOST_DIGITS:
        raise malformed("counts have a number beyond what the runs of any picture add up to")
    place = np.arange(-1, len(digits) - 1) - np.repeat(before, final - before)
    lengths = (_DIGITS[digits] << 5 * place).cumsum()[final]
    lengths[1:] -= lengths[:-1].copy()
    bounds, read = [0], 0
    for text in texts:
        bounds.append(bounds[-1] + int(np.count_nonzero(ended[read : read + len(text)])))
        read += len(text)
        each = lengths[bounds[-2] : bounds[-1]]
        each[1::2] = each[1::2].cumsum()  # faster than in place
        each[2::2] = each[2::2].cumsum()
    return lengths, bounds


def _sound(texts: Sequence[str | bytes], area: int, empty: bool) -> bool:
    """Whether every text is a mask of a picture of that area; all at once, as masks of a track file are many and small.

    Run lengths are not made one by one. Runs of an object, and those of background after the first, are sums of the
    numbers that stand two apart; these sums run through all masks, and what they were before a mask is taken off.
    """
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) == len(texts) and (joined := "".join(strings)).isascii():
        whole = joined.encode()
    else:
        texts = raw = list(map(_bytes, texts))
        whole = b"".join(raw)
    digits = np.frombuffer(whole, np.uint8) - np.uint8(_ZERO)
    if digits.max() >= len(_DIGITS):
        return False
    start = np.fromiter(itertools.accumulate(map(len, texts), initial=0), np.int64, len(texts) + 1)
    flagged = (digits >= _MORE).nonzero()[0]  # few: most runs differ little from the last but one
    if (digits[start[1:] - 1] >= _MORE).any():
        return False
    values = ((digits ^ np.uint8(16)) - np.uint8(16)).view(np.int8)  # as in `_DIGITS`, where no more follow
    if len(flagged):
        numbers = values[digits < _MORE].astype(np.int32)
        last = np.flatnonzero(np.diff(flagged, append=len(digits) + 1) > 1)  # of each row; a number ends behind it
        more, at = np.diff(last, prepend=-1), flagged[last] + 1
        if more.max() >= _MOST_DIGITS:
            return False
        found = values[at].astype(np.int32) << 5 * more
        for k in range(1, int(more.max()) + 1):
            there = more >= k
            found[there] += (digits[at[there] - k] & 31).astype(np.int32) << 5 * (more[there] - k)
        numbers[at - last - 1] = found
        start -= np.searchsorted(flagged, start)
    else:
        numbers = values
    start = start[:-1]
    total = numbers[start].astype(np.int64)  # of the run in front, which is no sum
    if total.min() < 0 or total.max() > area:
        return False
    object_pixels = np.zeros(len(texts), np.int64)
    for parity in (0, 1):
        sums = numbers[parity::2].cumsum(dtype=np.int64)
        if not len(sums):
            continue
        first = (start - parity + 1) // 2
        count = np.diff(first, append=len(sums))
        here = count.nonzero()[0]
        first, count = first[here], count[here]
        front = (start[here] - parity) % 2 == 0  # whether the first of these is the run in front
        base = np.where(front, sums[first], np.where(first > 0, sums[first - 1], 0))
        if (np.minimum.reduceat(sums, first) < base).any() or (np.maximum.reduceat(sums, first) - base > area).any():
            return False
        added = np.add.reduceat(sums, first) - base * count
        total[here] += added
        object_pixels[here[~front]] = added[~front]
    return bool((total == area).all()) and (empty or bool(object_pixels.all()))
