"""Referred masks: region similarity J and boundary accuracy F, as MeViS and DAVIS measure them.

Masks are COCO run lengths (`size` (height, width), `counts`), because a video of them fits into memory that way. One
expression may refer to several objects, whose masks are united.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from verl_stvg.video.rle import AnyRLE, encoded

Mask = NDArray[np.bool_]

TOLERANCE = 0.008  # of the diagonal: how far boundaries may lie apart


def decode(masks: Sequence[AnyRLE | None], size: tuple[int, int]) -> Mask:
    """Return the union of the masks of a frame, (height, width) bool; all False if there are none.

    Raises:
        ValueError: a mask has another size, or is malformed.
    """
    found = [encoded(mask) for mask in masks if mask is not None]
    for mask in found:
        if tuple(mask["size"]) != tuple(size):
            raise ValueError(f"a mask has the size {tuple(mask['size'])} in a video of {tuple(size)} (height, width)")
    return coco.decode(coco.merge(found)).astype(bool) if found else np.zeros(size, dtype=bool)


def region_similarity(mask: ArrayLike, true_mask: ArrayLike) -> float:
    """Return J, the IoU of two masks (height, width), in [0, 1]; 1 where both are empty.

    Source: MeViS `tools/metrics.py`.

    Raises:
        ValueError: sizes differ.
    """
    found, true = _same_size(mask, true_mask)
    union = np.count_nonzero(found | true)
    return float(np.count_nonzero(found & true) / union) if union else 1.0


def boundary(mask: ArrayLike) -> Mask:
    """Return the pixels that differ from their neighbour to the right, below, or both; (height, width) bool.

    The last row is compared to the right only, the last column below only, and the corner is none.
    """
    found = np.asarray(mask, dtype=bool)
    edge = np.zeros_like(found)
    edge[:, :-1] |= found[:, :-1] ^ found[:, 1:]
    edge[:-1, :] |= found[:-1, :] ^ found[1:, :]
    edge[:-1, :-1] |= found[:-1, :-1] ^ found[1:, 1:]
    return edge


def boundary_accuracy(mask: ArrayLike, true_mask: ArrayLike, tolerance: float = TOLERANCE) -> float:
    """Return F, the F-measure of two boundaries, in [0, 1].

    A boundary pixel is met if the other boundary comes within `ceil(tolerance * diagonal)` pixels of it. 1 where both
    masks have no boundary, 0 where one has none. Source: MeViS `tools/metrics.py`.

    Args:
        mask: (height, width), predicted.
        true_mask: (height, width), annotated.
        tolerance: part of the picture's diagonal.

    Raises:
        ValueError: sizes differ.
    """
    edge, true_edge = map(boundary, _same_size(mask, true_mask))
    count, true_count = np.count_nonzero(edge), np.count_nonzero(true_edge)
    if not count or not true_count:
        return float(count == true_count)
    radius = math.ceil(tolerance * math.hypot(*edge.shape))
    # Boundaries are only looked for where there is one, so the rest of the picture is cut away.
    rows, columns = (np.flatnonzero((edge | true_edge).any(axis=axis)) for axis in (1, 0))
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    edge, true_edge = edge[part], true_edge[part]
    steps = np.arange(-radius, radius + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)
    precision = np.count_nonzero(edge & _dilated(true_edge, disk)) / count
    recall = np.count_nonzero(true_edge & _dilated(edge, disk)) / true_count
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def j_f(
    masks: Sequence[AnyRLE | None] | None, true_masks: Sequence[Sequence[AnyRLE | None]], size: tuple[int, int]
) -> tuple[float, float]:
    """Return (J, F) of one expression, the means over its frames.

    Args:
        masks: predicted, of each frame; None for an empty one. None instead of the list for a missing video, which
            gives (0, 0).
        true_masks: annotated, of each frame those of all objects that the expression refers to.
        size: (height, width).

    Raises:
        ValueError: no frames, as many predicted frames as not annotated ones, or a mask of another size.
    """
    if not true_masks:
        raise ValueError("an expression has no frames")
    if masks is None:
        return 0.0, 0.0
    if len(masks) != len(true_masks):
        raise ValueError(f"masks of {len(masks)} frames for {len(true_masks)} frames")
    values = []
    for frame, (mask, together) in enumerate(zip(masks, true_masks, strict=True)):
        try:
            found, true = decode([mask], size), decode(together, size)
        except ValueError as error:
            raise ValueError(f"frame {frame}: {error}") from error
        values.append((region_similarity(found, true), boundary_accuracy(found, true)))
    j, f = np.mean(values, axis=0)
    return float(j), float(f)


def summary(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the means of J, F and J&F over expressions, fractions. Source: MeViS `tools/eval_mevis.py`.

    Raises:
        ValueError: no expressions.
    """
    if not len(values):
        raise ValueError("there are no expressions, and so no mean")
    j, f = np.mean(np.asarray(values, dtype=np.float64), axis=0)
    return {"J": float(j), "F": float(f), "J&F": float((j + f) / 2)}


def _same_size(mask: ArrayLike, true_mask: ArrayLike) -> tuple[Mask, Mask]:
    found, true = np.asarray(mask, dtype=bool), np.asarray(true_mask, dtype=bool)
    if found.ndim != 2 or found.shape != true.shape:
        raise ValueError(f"masks are of one size (height, width), found {found.shape} and {true.shape}")
    return found, true


def _dilated(edge: Mask, disk: NDArray[np.uint8]) -> Mask:
    return cv2.dilate(edge.astype(np.uint8), disk).astype(bool)
