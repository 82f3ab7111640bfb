"""Refuse malformed ground truths, naming the row and the key.

A wrong annotation that scores 0 for every completion is silent: its group has no spread, so nothing is learned from
it and nothing is reported. Builders call these checks at load time; the bridge calls them again when it scores, as a
last resort. Numbers may be Python or numpy scalars (Arrow returns IDs as doubles); booleans, strings and None are not.
"""

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import Any


def fail(row: object, key: str, problem: str) -> None:
    """Raise the ValueError of a malformed ground truth."""
    where = "ground truth" if row is None else f"ground truth of row {row!r}"
    raise ValueError(f"{where}: key {key!r} {problem}; correct the annotation or drop the row when building the data")


def value(ground_truth: Any, key: str, row: object = None) -> Any:
    """Return `ground_truth[key]`; raise ValueError if it is not a mapping or lacks the key."""
    if not isinstance(ground_truth, Mapping):
        fail(row, key, f"cannot be read from a {type(ground_truth).__name__}, a mapping is needed")
    if key not in ground_truth:
        fail(row, key, f"is missing, present are {sorted(map(str, ground_truth))}")
    return ground_truth[key]


def number(ground_truth: Any, key: str, row: object = None) -> float:
    """Return a finite number as float; raise ValueError if it is missing, of another type, NaN or infinite."""
    found = value(ground_truth, key, row)
    if type(found) is not float and (isinstance(found, bool) or not isinstance(found, Real)):
        fail(row, key, f"is {found!r} of type {type(found).__name__}, a number is needed")
    if not isfinite(found):
        fail(row, key, f"is {found!r}, a finite number is needed")
    return float(found)


def check_span(ground_truth: Any, row: object = None) -> None:
    """Check `start` <= `end` and `duration` > 0, all in seconds; raise ValueError otherwise.

    An end past the duration is allowed: 14 % of Charades-STA is annotated so, and clipping belongs to the builder.
    """
    start, end = number(ground_truth, "start", row), number(ground_truth, "end", row)
    if end < start:
        fail(row, "end", f"is {end}, before 'start' {start}")
    duration = number(ground_truth, "duration", row)
    if duration <= 0.0:
        fail(row, "duration", f"is {duration}, a positive number of seconds is needed")


def check_object_span(ground_truth: Any, row: object = None) -> None:
    """Check a span and an integral, non-negative `object_id` (2 and 2.0 both pass); raise ValueError otherwise."""
    object_id = number(ground_truth, "object_id", row)
    if object_id < 0 or object_id != int(object_id):
        fail(row, "object_id", f"is {object_id}, a non-negative integer is needed")
    check_span(ground_truth, row)
