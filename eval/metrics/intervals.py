"""Confidence intervals of means by the bootstrap: how far a table's numbers would move with other items of the kind.

Every mean of this package is one of per-item values: an IoU, or whether it reaches a threshold. The items are drawn
anew with replacement many times, and the interval is what the middle of the means spans (percentile bootstrap). Queries
about one video succeed and fail together; with `groups` whole videos are drawn, which gives wider, more honest bounds.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

CELLS = 1_000_000  # draws that are held in memory at once


def bootstrap(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.float64]:
    """Return the mean and the bounds of its confidence interval.

    Ours; the papers give no intervals. Deterministic for a seed.

    Args:
        values: (N,) of one metric, or (N, M) of M metrics, which then share their draws.
        confidence: of the interval, between 0 and 1.
        resamples: how often the items are drawn anew.
        seed: of the draws.
        groups: (N,), such as the video of each item; groups are drawn instead of items.

    Returns:
        (3,) or (3, M): mean, lower bound, upper bound.

    Raises:
        ValueError: no items, a value that is not finite, as many groups as not items, or parameters out of range.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or not table.size:
        raise ValueError(f"values have the shape (N,) or (N, M) and at least one item, found {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("a value is not finite; score what cannot be read as 0")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1, or resamples {resamples} below 1")
    flat = table.reshape(len(table), -1)
    sums, sizes = flat, np.ones(len(flat))
    if groups is not None:
        if len(groups) != len(flat):
            raise ValueError(f"{len(groups)} groups for {len(flat)} items")
        place: dict[Hashable, int] = {}
        owner = np.array([place.setdefault(group, len(place)) for group in groups])
        sums = np.zeros((len(place), flat.shape[1]))
        np.add.at(sums, owner, flat)
        sizes = np.bincount(owner).astype(np.float64)
    drawn = _drawn_means(sums, sizes, resamples, np.random.default_rng(seed))
    tail = 100 * (1 - confidence) / 2
    bounds = np.percentile(drawn, [tail, 100 - tail], axis=0)
    return np.vstack([flat.mean(axis=0), bounds]).reshape(3, *table.shape[1:])


def _drawn_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means (resamples, M) of units drawn with replacement, from their sums (U, M) and sizes (U,)."""
    units = len(sums)
    at_once = max(1, CELLS // units)
    means = []
    for done in range(0, resamples, at_once):
        count = min(at_once, resamples - done)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)
        means.append(times @ sums / (times @ sizes)[:, None])
    return np.concatenate(means)
