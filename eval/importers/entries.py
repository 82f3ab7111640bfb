"""One prediction of a file with what names its row, and the values that files of all programs write alike."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verl_stvg.eval.benchmarks.base import Interval, Prediction
from verl_stvg.rows.answers import Answer

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TIMES = ("intervals", "interval", "timestamps", "timestamp", "span", "relevant_windows")
_BOUNDS = (("start", "end"), ("start_time", "end_time"), ("start_s", "end_s"))

Said = Answer | Prediction
"""An answer to the row's prompt, or what another program predicted."""


@dataclass(frozen=True)
class Entry:
    """A prediction and what names its row.

    Attributes:
        said: what was predicted; an answer's uid is not used. `Prediction()` is one that cannot be read.
        names: IDs, any of which may be the row's.
        video: name of its video.
        query: its sentence.
        truth: its annotated interval, seconds.
        place: number of its row in the annotation, from 0.
        source: what the file holds, for messages.
        prompt: the text that was asked, which holds the query.

    Raises:
        TypeError: a reply that is no text.
    """

    said: Said
    names: tuple[str, ...] = ()
    video: str | None = None
    query: str | None = None
    truth: Interval | None = None
    place: int | None = None
    source: Any = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        texts = self.said.texts if isinstance(self.said, Answer) else ()
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"a reply should be text, found {wrong[0]!r:.60}")

    def __str__(self) -> str:
        """What it is called, for messages."""
        named = self.names[:1] or (self.video, self.query)
        place = () if any(named) else (f"number {self.place}",)
        return " ".join(str(one) for one in (*named, *place) if one is not None)


Reader = Callable[[Any, Counter], Iterator[Entry]]
"""Reads the entries of a file's content, and counts what is wrong with them."""


def said_of(line: Mapping[str, Any]) -> Said:
    """The prediction of an object; one that says nothing that can be read is empty."""
    text = next((line[key] for key in ("text", "output", "response") if isinstance(line.get(key), str)), None)
    if text is not None:
        return Answer("", (text,))
    times = next((line[key] for key in _TIMES if line.get(key) is not None), None)
    if times is None:
        times = next(
            ([line[a], line[b]] for a, b in _BOUNDS if line.get(a) is not None and line.get(b) is not None), None
        )
    if (ids := line.get("object_ids")) is None:
        ids = [line.get("object_id")]
    return replace(
        times_of(times if isinstance(times, list) else []),
        object_ids=tuple(one for one in ids if type(one) is int),
        option=letter_of(line.get("option", line.get("ans"))),
        tube=_tube(line.get("tube")),
    )


def times_of(found: Sequence[Any]) -> Prediction:
    """An interval, or several; what is none is left out, and NaN is kept for scoring to count."""
    if found and not isinstance(found[0], list | tuple):
        found = [found]
    intervals = []
    for one in found:
        times = [number for time in one if (number := number_of(time)) is not None]
        if len(times) == len(one) == 2:
            intervals.append((times[0], times[1]))
    return Prediction(tuple(intervals))


def _tube(found: Any) -> dict[int, tuple] | None:
    """Boxes by zero-based frame: an object of them, or their first frame and their list."""
    if isinstance(found, dict) and isinstance(found.get("boxes"), list):
        first = int(found["first_frame"])
        return {first + k: box_of(box) for k, box in enumerate(found["boxes"])} or None
    return {int(frame): box_of(box) for frame, box in found.items()} or None if isinstance(found, dict) else None


def box_of(found: Any) -> tuple[float, float, float, float]:
    """A box; one that is none overlaps nothing."""
    sides = found if isinstance(found, list | tuple) and len(found) == 4 else (None,) * 4
    x1, y1, x2, y2 = map(number_of, sides)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        return 0.0, 0.0, 0.0, 0.0
    return x1, y1, x2, y2


def number_of(found: Any) -> float | None:
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        return float(found)
    except (ValueError, OverflowError):
        return None


def letter_of(found: Any) -> str | None:
    """The letter of an option that is one, or its number from 0."""
    if type(found) is int and 0 <= found < len(_LETTERS):
        return _LETTERS[found]
    letter = found.strip().strip("()").upper() if isinstance(found, str) else ""
    return letter if len(letter) == 1 and letter in _LETTERS else None
