"""Object IDs drawn onto frames: what an STVG-R1 model reads to name an object.

STVG-R1 decodes every mask of every frame to an array, looks for its centre there and encodes a second video. Here the
IDs go onto the decoded frames that a plan has chosen, at native size, before the resize, and the centre comes straight
from the runs of the mask's RLE. Training, evaluation and preview draw with this one function, so that they show the
same picture.

The style ``stvg_r1`` keeps what follows from the paper's code and hardly anybody would choose: the centre is the text's
lower left corner, so that the number stands to the right of and above it; it may lie beside the object, where the
object has a gap; and a number may leave the frame. The style ``centred`` is for people and for new recipes.
"""

import functools
import itertools
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from verl_stvg.video.rle import RLE, lengths_of, size_of
from verl_stvg.video.rle import pixels as rle_area  # noqa: F401

REFERENCE_SIDE = 336
"""Long side of a frame, pixels, for which a style's `size` is meant (STVG-R1)."""
FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_SIZE = 30
"""Pixels taken for the height of `FONT` at scale 1 (STVG-R1; its digits measure 22)."""


@dataclass(frozen=True)
class MarkerStyle:
    """How an ID looks.

    Attributes:
        size: height of the text, nominal pixels in a frame whose long side is `REFERENCE_SIDE`.
        colour: RGB.
        edge: RGB of an outline, or None for none.
        centred: whether the object's centre is the middle of the text, moved inside the frame; if not, it is the
            text's lower left corner, wherever that leads.
    """

    size: float = 20.0
    colour: tuple[int, int, int] = (255, 0, 0)
    edge: tuple[int, int, int] | None = None
    centred: bool = False

    def font(self, height: int, width: int) -> tuple[float, int]:
        """OpenCV's font scale and thickness in a frame of that size (STVG-R1, ``preprocess/mask2marker.py``)."""
        scale = self.size / FONT_SIZE * (max(height, width) / REFERENCE_SIDE)
        return scale, max(2, int(2 * scale))


STYLES = {"stvg_r1": MarkerStyle(), "centred": MarkerStyle(edge=(255, 255, 255), centred=True)}
"""``stvg_r1`` is the paper's; ``centred`` is ours: red with a white edge, on the object's centre, inside the frame."""


def draw_ids(frame: np.ndarray, objects: Mapping[int, RLE], style: str | MarkerStyle = "stvg_r1") -> None:
    """Draw the ID of each object onto a frame, in the mapping's order: later ones lie on top.

    An object whose mask is empty is not in this frame and gets no number.

    Args:
        frame: uint8 (H, W, 3), RGB, at the size of the masks; changed in place.
        objects: object ID to its mask in this frame.
        style: a key of `STYLES`, or your own.

    Raises:
        ValueError: an unknown style, a negative ID, a malformed mask or one of another size than the frame; nothing is
            drawn then.
        TypeError: a frame that is no such array, or an ID that is no integer.

    Example:
        >>> frame = np.zeros((720, 1280, 3), np.uint8)
        >>> mask = {"size": [720, 1280], "counts": [640 * 720 + 360, 1, 639 * 720 + 359]}
        >>> draw_ids(frame, {7: mask})
        >>> rle_centre(mask), frame.max(axis=(0, 1)).tolist()
        ((640, 360), [255, 0, 0])
    """
    if isinstance(style, str) and style not in STYLES:
        raise ValueError(f"marker style {style!r} is unknown; choose one of {', '.join(STYLES)}, or pass a MarkerStyle")
    look = STYLES[style] if isinstance(style, str) else style
    height, width = _check_frame(frame)
    texts = [_text(number) for number in objects]
    for number, rle in objects.items():
        if size_of(rle) != (height, width):
            raise ValueError(
                f"the mask of object {number} is {rle['size'][1]}x{rle['size'][0]} and the frame {width}x{height}; "
                "draw IDs before the frame is resized, on the video that the masks were made from"
            )
    centres = _centres(_runs(list(objects.values()), height, width)) if objects else []
    scale, thickness = look.font(height, width)
    strokes = (
        [(look.colour, thickness)] if look.edge is None else [(look.edge, 2 * thickness), (look.colour, thickness)]
    )
    for text, centre in zip(texts, centres, strict=True):
        if centre is None:
            continue
        origin = _centred(text, scale, strokes[0][1], centre, height, width) if look.centred else centre
        for colour, stroke in strokes:
            cv2.putText(frame, text, origin, FONT, scale, colour, stroke, cv2.LINE_AA)


def rle_centre(rle: RLE) -> tuple[int, int] | None:
    """Centre (x, y) of a mask in STVG-R1's sense, pixels; None for an empty mask.

    The row is the middle of the mask's rows; the column is the mean of the mask's columns in that row, or the middle of
    the mask's columns if it has none there. All are rounded down. It may lie beside the mask.

    Raises:
        ValueError: malformed RLE.

    Source: STVG-R1, ``preprocess/mask2marker.py``.
    """
    return _centres(_runs([rle], *size_of(rle)))[0]


def rle_box(rle: RLE) -> tuple[int, int, int, int] | None:
    """Smallest box xyxy around a mask, pixel edges (the last row and column plus one); None for an empty mask.

    STVG-R1's own boxes end one pixel earlier, at the last row and column.

    Raises:
        ValueError: malformed RLE.
    """
    height, width = size_of(rle)
    lengths, ends, _ = lengths_of([rle], height, width)
    length, end = lengths[1::2], ends[1::2]
    if not length.all():  # runs without pixels are nowhere
        end, length = end[length > 0], length[length > 0]
    if not len(length):
        return None
    column, row = np.divmod(end - length, height)
    bottom = int((row + length).max())
    left, right = int(column[0]), int((end[-1] - 1) // height) + 1
    if bottom > height:  # a run goes on in the next column: from the last row to the first
        return left, 0, right, height
    return left, int(row.min()), right, bottom


def rle_boxes(rles: Sequence[RLE]) -> list[tuple[int, int, int, int] | None]:
    """`rle_box` of several masks of one size, for less than one by one.

    Raises:
        ValueError: malformed RLE, or masks of different sizes.
    """
    if not rles:
        return []
    runs = _runs(rles, *size_of(rles[0]))
    full, kept = _nonempty(runs)
    boxes: list[tuple[int, int, int, int] | None] = [None] * len(rles)
    if len(full):
        left, top, right, bottom = (side.tolist() for side in _extents(kept))
        for k, mask in enumerate(full.tolist()):
            boxes[mask] = left[k], top[k], right[k] + 1, bottom[k] + 1
    return boxes


class _Runs(NamedTuple):
    """Vertical runs of the pixels of several masks of one size: column, first row and last row of each.

    Mask k has runs ``first[k]`` to ``first[k + 1]``; its columns begin at ``offset[k]``, as if masks lay side by side.
    """

    first: np.ndarray
    offset: np.ndarray
    column: np.ndarray
    row: np.ndarray
    last: np.ndarray


def _check_frame(frame: np.ndarray) -> tuple[int, int]:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise TypeError(f"a frame is a numpy array uint8 (H, W, 3) in RGB, got {found}; convert it first")
    if not (frame.flags.c_contiguous and frame.flags.writeable):
        raise TypeError("the frame is drawn on in place and must be contiguous and writeable; pass frame.copy()")
    return frame.shape[:2]


def _text(number: int) -> str:
    if not isinstance(number, numbers.Integral):
        raise TypeError(f"object IDs are integers, got {number!r}; JSON has them as text, convert with int()")
    if number < 0:
        raise ValueError(f"object IDs are not negative, got {number}; number the objects from 1")
    return str(int(number))


def _runs(rles: Sequence[RLE], height: int, width: int) -> _Runs:
    """Runs of masks of one size, of all at once because numpy costs more per call than per number."""
    lengths, ends, bounds = lengths_of(rles, height, width)
    spans = list(zip(bounds[:-1], bounds[1:], strict=True))
    first = np.array([0, *itertools.accumulate((end - begin) // 2 for begin, end in spans)])
    length = np.concatenate([lengths[begin + 1 : end : 2] for begin, end in spans])
    start = np.concatenate([ends[begin : end - 1 : 2] for begin, end in spans])
    column = start // height
    row = start - column * height
    last = row + length - 1
    if len(last) and (last.max() >= height or not length.min()):  # cut runs at the columns' ends, drop empty ones
        pieces = np.where(length > 0, last // height + 1, 0)
        done = np.concatenate([[0], pieces.cumsum()])
        piece = np.arange(done[-1]) - np.repeat(done[:-1], pieces)
        first, column = done[first], np.repeat(column, pieces) + piece
        row = np.where(piece > 0, 0, np.repeat(row, pieces))
        last = np.minimum(np.repeat(last, pieces) - piece * height, height - 1)
    return _Runs(first, width * np.arange(len(rles)), column, row, last)


def _extents(runs: _Runs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First column, first row, last column, last row of each mask; none may be empty."""
    begin, end = runs.first[:-1], runs.first[1:]
    return (
        runs.column[begin] - runs.offset,
        np.minimum.reduceat(runs.row, begin),
        runs.column[end - 1] - runs.offset,
        np.maximum.reduceat(runs.last, begin),
    )


def _nonempty(runs: _Runs) -> tuple[np.ndarray, _Runs]:
    """Which masks have pixels, and the runs of those."""
    full = np.diff(runs.first).nonzero()[0]
    return full, runs._replace(first=np.append(runs.first[:-1][full], len(runs.row)), offset=runs.offset[full])


def _centres(runs: _Runs) -> list[tuple[int, int] | None]:
    begin = runs.first[:-1]
    sizes = runs.first[1:] - begin
    if not sizes.all():
        full, kept = _nonempty(runs)
        centres = iter(_centres(kept) if len(full) else ())
        return [next(centres) if size else None for size in sizes]
    left, top, right, bottom = _extents(runs)
    y = (top + bottom) // 2
    rows = y.repeat(sizes)
    met = (runs.row <= rows) & (rows <= runs.last)
    number = np.add.reduceat(met, begin, dtype=np.int64)
    total = np.add.reduceat(runs.column * met, begin)
    x = np.where(number > 0, total // np.maximum(number, 1) - runs.offset, (left + right) // 2)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _centred(text: str, scale: float, stroke: int, centre: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Text origin that puts the middle of the ink on the centre, or as near to it as the frame allows."""
    left, top, right, bottom = _ink(text, scale, stroke)
    x = min(max(centre[0] - (right - left) // 2, 0), max(width - 1 - (right - left), 0)) - left
    y = min(max(centre[1] - (bottom - top) // 2, 0), max(height - 1 - (bottom - top), 0)) - top
    return x, y


@functools.lru_cache(maxsize=4096)
def _ink(text: str, scale: float, stroke: int) -> tuple[int, int, int, int]:
    """First column, first row, last column, last row of the drawn pixels, from the text's origin."""
    (width, height), _ = cv2.getTextSize(text, FONT, scale, stroke)
    margin = height + 2 * stroke
    canvas = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
    cv2.putText(canvas, text, (margin, height + margin), FONT, scale, 255, stroke, cv2.LINE_AA)
    left, top, ink_width, ink_height = cv2.boundingRect(canvas)
    left, top = left - margin, top - height - margin
    return left, top, left + ink_width - 1, top + ink_height - 1
