"""Annotated boxes in pixels of the shown video, which may be a smaller copy of the annotated one, or a stretched one.

A copy keeps the aspect ratio, and a video whose pixels are not square is stretched along one side. Neither swaps the
sides. Where they are swapped, the boxes belong to the picture before (or after) it was turned. By how much it was
turned cannot be seen from two sizes, so such boxes are refused.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Size = tuple[float, float]
Box = tuple[float, float, float, float]

_SQUARE = 1.03
"""Ratio of the longer to the shorter side up to which a picture is as good as square: copies round their sides."""


class TurnedBoxes(ValueError):
    """Boxes that are annotated on a turned picture; the message names both sizes."""


def annotated_size(extra: Mapping[str, Any]) -> Size | None:
    """(width, height) of the pictures that were annotated, from the further fields of an annotation; None: unknown."""
    sides = extra.get("width"), extra.get("height")
    known = [side for side in sides if isinstance(side, int | float) and 0 < side < math.inf]
    return (known[0], known[1]) if len(known) == 2 else None


def scales(annotated: Size | None, shown: Size) -> Size:
    """Factors in x and y from annotated pixels to shown ones; 1 and 1 if the annotated size is unknown.

    Args:
        annotated: (width, height) of the pictures that were annotated.
        shown: (width, height) of the video as it is shown.

    Raises:
        TurnedBoxes: one of the two is upright and the other is not.
    """
    if annotated is None:
        return 1.0, 1.0
    if _swapped(annotated, shown):
        raise TurnedBoxes(
            f"boxes are annotated on pictures of {annotated[0]:g}x{annotated[1]:g}, but the video is shown as "
            f"{shown[0]:g}x{shown[1]:g}: one of them is turned. Files of phones hold the picture lying on its side and "
            "players turn it; correct width, height and boxes of the annotation to the picture that is shown"
        )
    return shown[0] / annotated[0], shown[1] / annotated[1]


def scaled(boxes: Iterable[Iterable[float]], annotated: Size | None, shown: Size) -> list[Box]:
    """Boxes xyxy in pixels of the shown video.

    Args:
        boxes: (T, 4) xyxy in pixels of the annotated pictures.
        annotated: (width, height) of those pictures; None: unknown, and taken to be `shown`.
        shown: (width, height) of the video as it is shown.

    Raises:
        TurnedBoxes: one of the two is upright and the other is not.
    """
    x, y = scales(annotated, shown)
    return [(x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in boxes]


def out_of_reach(boxes: ArrayLike, picture: Size | None) -> int:
    """How many boxes no answer can meet: those wholly outside of the picture, and those without an area.

    Args:
        boxes: (T, 4) xyxy, in pixels of the picture.
        picture: (width, height); None: unknown, and only boxes without an area are counted.
    """
    found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low, high = (np.zeros(2), np.array(picture)) if picture is not None else (-np.inf, np.inf)
    sides = np.minimum(found[:, 2:], high) - np.maximum(found[:, :2], low)
    return int(np.count_nonzero((sides <= 0).any(axis=1)))


def _swapped(annotated: Size, shown: Size) -> bool:
    """Whether the inverse of the annotated aspect ratio fits the shown one better, and not by rounding."""
    if annotated[0] == shown[1] and annotated[1] == shown[0]:
        return annotated[0] != annotated[1]
    (a, b), least = (math.log(size[0] / size[1]) for size in (annotated, shown)), math.log(_SQUARE)
    return a * b < 0 and min(abs(a), abs(b)) > least
