"""Bring predictions and truths together by ID: a lost or doubled row must not pass for a bad or a good answer."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

Id = TypeVar("Id", bound=Hashable)
Value = TypeVar("Value")

SHOWN = 3  # IDs that a message lists


def by_id(rows: Iterable[Value], key: Callable[[Value], Id]) -> dict[Id, Value]:
    """Return rows by their ID.

    Raises:
        ValueError: two rows have one ID.
    """
    found: dict[Id, Value] = {}
    for row in rows:
        if key(row) in found:
            raise ValueError(f"two rows have the ID {key(row)!r}; remove one, or give the rows IDs of their own")
        found[key(row)] = row
    return found


def aligned(
    predictions: Mapping[Id, Any], truths: Mapping[Id, Value], missing: str = "none"
) -> tuple[list[Any], list[Value]]:
    """Return the predictions and the truths as lists of equal length, in the order of the truths.

    Args:
        predictions: by ID.
        truths: by ID.
        missing: what to do with a truth that has no prediction: `none` puts None in its place, which every metric here
            counts as 0, so that it stays in the denominator; `error` raises.

    Raises:
        ValueError: there are no truths, a prediction has no truth, or a prediction is missing and must not.
    """
    if missing not in ("none", "error"):
        raise ValueError(f"missing is 'none' or 'error', found {missing!r}")
    if not truths:
        raise ValueError("there are no truths to score against")
    extra = [found for found in predictions if found not in truths]
    if extra:
        raise ValueError(f"{len(extra)} predictions have no truth, such as {extra[:SHOWN]}; is it the right split?")
    lost = [found for found in truths if found not in predictions]
    if lost and missing == "error":
        raise ValueError(f"{len(lost)} of {len(truths)} predictions are missing, such as {lost[:SHOWN]}")
    return [predictions.get(found) for found in truths], list(truths.values())
