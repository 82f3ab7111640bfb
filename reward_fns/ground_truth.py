"""Refuse malformed ground truths, naming the row and the key.

A wrong annotation that scores 0 for every completion is silent: its group has no spread, so nothing is learned from
it and nothing is reported. Builders call these checks at load time; the bridge calls them again when it scores, as a
last resort. Numbers may be Python or numpy scalars (Arrow returns IDs as doubles); booleans, strings and None are not.
Every check takes the ground truth and the name of its row, returns nothing and raises ValueError.
"""

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import Any, NoReturn

_INFINITE = float("inf")
_MISSING = object()


def fail(row: object, key: str, problem: str) -> NoReturn:
    """Raise the ValueError of a malformed ground truth.

    Args:
        row: its name, for the message; None: not known.
        key: that is wrong.
        problem: what is wrong with it, as the rest of a sentence.
    """
    where = "ground truth" if row is None else f"ground truth of row {row!r}"
    raise ValueError(f"{where}: key {key!r} {problem}; correct the annotation or drop the row when building the data")


def value(ground_truth: Any, key: str, row: object = None) -> Any:
    """Return `ground_truth[key]`; raise ValueError if it is not a mapping or lacks the key.

    Args:
        ground_truth: of any type.
        key: that is wanted; its value may be None.
        row: name of the row, for the message.
    """
    if not isinstance(ground_truth, Mapping):
        fail(row, key, f"cannot be read from a {type(ground_truth).__name__}, a mapping is needed")
    found = ground_truth.get(key, _MISSING)
    if found is _MISSING:
        fail(row, key, f"is missing, present are {sorted(map(str, ground_truth))}")
    return found


def number(ground_truth: Any, key: str, row: object = None) -> float:
    """Return a finite number as float; raise ValueError if it is missing, of another type, NaN or infinite.

    Args:
        ground_truth: of any type.
        key: of the number.
        row: name of the row, for the message.
    """
    return _number(value(ground_truth, key, row), key, row)


def _number(found: Any, key: str, row: object) -> float:
    kind = type(found)
    if kind is not float:
        if kind is not int and (kind is bool or not isinstance(found, Real)):
            fail(row, key, f"is {found!r} of type {type(found).__name__}, a number is needed")
        # An integer too large for a double cannot be converted; it is no more finite than an infinite one.
        found = float("inf") if isinstance(found, int) and found.bit_length() > 1023 else float(found)
    if not isfinite(found):
        fail(row, key, f"is {found!r}, a finite number is needed")
    return found


def check_span(ground_truth: Any, row: object = None) -> None:
    """Check `start` <= `end` and `duration` > 0, all in seconds.

    An end past the duration is allowed: 14 % of Charades-STA is annotated so, and clipping belongs to the builder.
    """
    if type(ground_truth) is dict:  # the usual case, met again for every completion: settle it in one expression
        start, end, duration = ground_truth.get("start"), ground_truth.get("end"), ground_truth.get("duration")
        if isinstance(start, float) and isinstance(end, float) and isinstance(duration, float):
            if -_INFINITE < start <= end < _INFINITE > duration > 0:
                return
    start, end = number(ground_truth, "start", row), number(ground_truth, "end", row)
    if end < start:
        fail(row, "end", f"is {end}, before 'start' {start}")
    duration = number(ground_truth, "duration", row)
    if duration <= 0.0:
        fail(row, "duration", f"is {duration}, a positive number of seconds is needed")


def check_object_span(ground_truth: Any, row: object = None) -> None:
    """Check a span and an integral, non-negative `object_id` (2 and 2.0 both pass)."""
    check_integer(ground_truth, "object_id", row)
    check_span(ground_truth, row)


def check_objects_span(ground_truth: Any, row: object = None) -> None:
    """Check a span and a non-empty list `object_ids` of integral, non-negative IDs."""
    ids = items(ground_truth, "object_ids", row)
    if not ids:
        fail(row, "object_ids", "is empty, at least one ID is needed")
    for found in ids:
        _check_integer(_number(found, "object_ids", row), "object_ids", row)
    check_span(ground_truth, row)


def check_visible_object_span(ground_truth: Any, row: object = None) -> None:
    """Check an object span and `visible`, the list of (start, end) in seconds at which the target is displayed."""
    check_intervals(ground_truth, "visible", row)
    check_object_span(ground_truth, row)


def check_intervals(ground_truth: Any, key: str, row: object = None) -> None:
    """Check that `key` holds a list of intervals, each two numbers with start <= end.

    Args:
        ground_truth: of any type.
        key: of the list, which may be empty.
        row: name of the row, for the message.
    """
    for interval in items(ground_truth, key, row):
        start, end = numbers(interval, 2, key, row)
        if end < start:
            fail(row, key, f"holds an interval that ends at {end}, before its start {start}")


def numbers(found: Any, count: int, key: str, row: object = None) -> list[float]:
    """Return an entry of the list under `key` as that many finite numbers; raise ValueError if it is none.

    Args:
        found: the entry, of any type.
        count: of numbers.
        key: of the list, for the message.
        row: name of the row, for the message.
    """
    if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__len__") or len(found) != count:
        fail(row, key, f"holds {found!r}, {count} numbers are needed")
    return [_number(entry, key, row) for entry in found]


def check_integer(ground_truth: Any, key: str, row: object = None) -> None:
    """Check that `key` holds an integral, non-negative number (2 and 2.0 both pass).

    Args:
        ground_truth: of any type.
        key: of the number.
        row: name of the row, for the message.
    """
    _check_integer(number(ground_truth, key, row), key, row)


def items(ground_truth: Any, key: str, row: object = None) -> Any:
    """Return a list, tuple or array under `key` as a list; raise ValueError for anything else.

    Args:
        ground_truth: of any type.
        key: of the list, whose entries are not looked at.
        row: name of the row, for the message.
    """
    found = value(ground_truth, key, row)
    if isinstance(found, str | bytes | Mapping) or not (hasattr(found, "__len__") and hasattr(found, "__iter__")):
        fail(row, key, f"is {found!r} of type {type(found).__name__}, a list is needed")
    return list(found)


def check_text(ground_truth: Any, key: str, row: object = None) -> None:
    """Check that `key` holds text that is not blank.

    Args:
        ground_truth: of any type.
        key: of the text.
        row: name of the row, for the message.
    """
    found = value(ground_truth, key, row)
    if not isinstance(found, str) or not found.strip():
        fail(row, key, f"is {found!r} of type {type(found).__name__}, a text that is not blank is needed")


def check_letter(ground_truth: Any, key: str, row: object = None, letters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> None:
    """Check that `key` holds one option letter, bare or in round brackets.

    Args:
        ground_truth: of any type.
        key: of the letter.
        row: name of the row, for the message.
        letters: that options may have, in order.
    """
    check_text(ground_truth, key, row)
    found = ground_truth[key].strip()
    bare = found[1:-1] if found.startswith("(") and found.endswith(")") else found
    if len(bare) != 1 or bare not in letters:
        fail(row, key, f"is {found!r}, one of the letters {letters[0]} to {letters[-1]} is needed")


def _check_integer(found: float, key: str, row: object) -> None:
    if found < 0.0 or not found.is_integer():
        fail(row, key, f"is {found}, a non-negative integer is needed")
