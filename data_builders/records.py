"""What every annotation set is turned into at the door: seconds, zero-based frames, boxes xyxy, one query per record.

Sets differ in units, in where they count from and in how they say that something is missing. A reader of a set settles
all of that once, so that nothing behind it has to know where a record came from.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard

import xxhash
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

Seconds = Annotated[float, Field(allow_inf_nan=False)]
Interval = tuple[Seconds, Seconds]
"""Start and end of what the model is shown, as annotated, reversed ones included; see `Record.unit`."""
Box = tuple[Seconds, Seconds, Seconds, Seconds]
"""xyxy in pixels of the original video."""
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Tube(_Strict):
    """One box per frame, without gaps.

    Attributes:
        first_frame: zero-based frame of the video file, also where only a part of it is shown.
        boxes: xyxy pixels, of consecutive frames.
    """

    first_frame: Annotated[int, Field(ge=0)]
    boxes: Annotated[tuple[Box, ...], Field(min_length=1)]


class Record(_Strict):
    """One annotated query.

    Attributes:
        where: the place in the annotation file, for messages ("entry 17, sentence 2").
        key: unique within set and split, and the same whenever the set is read: the row's uid is made of it.
        video: path relative to the video root as the set names it; its ending may be missing or another.
        query: the sentence as annotated.
        unit: of `intervals` and `clip`: seconds; for sets that say neither seconds nor a rate, zero-based frames, the
            second one not included; or fractions of the duration. The builder turns them into seconds by the times and
            the duration of the file.
        intervals: of what is shown (of `clip`, if there is one); empty where the split has no ground truth.
        duration: of what is shown, as annotated, seconds.
        clip: the part of the file that is shown, counted from the file's start; None: all of it.
        tube: of the target.
        masks: of the target, COCO run lengths (size, counts) or None for each frame, from the first frame on.
        options: of a multiple-choice question, without letters.
        answer: letter of the right option.
        prompt: the whole user text, for sets that bring it; replaces the template's.
        extra: further fields worth keeping, by name.
    """

    where: str
    key: Text
    video: Text
    query: Text
    unit: Literal["seconds", "frames", "fractions"] = "seconds"
    intervals: tuple[Interval, ...] = ()
    duration: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    clip: Interval | None = None
    tube: Tube | None = None
    masks: tuple[dict[str, Any] | None, ...] | None = None
    options: tuple[Text, ...] = ()
    answer: Annotated[str, StringConstraints(pattern="^[A-Z]$")] | None = None
    prompt: Text | None = None
    extra: dict[str, str | int | float | bool | None] = {}


@dataclass(frozen=True)
class Problem:
    """An entry of an annotation file that cannot be turned into a record.

    Attributes:
        where: the place in the file.
        what: is wrong with it.
    """

    where: str
    what: str


Entries = Iterator[Record | Problem]


def record(where: str, names: Mapping[str, str] | None = None, **fields: Any) -> Record | Problem:
    """A `Record`, or the `Problem` that one of the fields is; lists, as JSON has them, may stand for tuples.

    Args:
        where: see `Record`.
        names: what the annotation calls a field, or a part of one (``intervals.0.1``), where it is called otherwise.
        fields: of the record.
    """
    try:
        return Record(where=where, **{name: _tuples(value) for name, value in fields.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = _in_the_file(first["loc"], names or {})
        return Problem(where, f"{name}: {first['msg'].lower()}, found {first['input']!r:.60}")


def _in_the_file(place: Sequence[str | int], names: Mapping[str, str]) -> str:
    """The place of a value in words of the annotation, such as ``timestamps[1]``."""
    for length in range(len(place), 0, -1):
        said = names.get(".".join(map(str, place[:length])))
        if said is not None or length == 1:
            rest = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place[length:])
            return "".join((str(place[0]) if said is None else said, *rest))
    return ""


def boxes_xyxy(boxes_xywh: Any) -> Any:
    """Boxes as (x1, y1, x2, y2) from boxes as (x, y, width, height); what is no box stays, for `record` to refuse."""
    if not isinstance(boxes_xywh, list | tuple):
        return boxes_xywh
    return tuple((x[0], x[1], x[0] + x[2], x[1] + x[3]) if _is_box(x) else x for x in boxes_xywh)


def _tuples(found: Any) -> Any:
    return tuple(map(_tuples, found)) if isinstance(found, list | tuple) else found


def _is_box(found: Any) -> bool:
    return isinstance(found, list | tuple) and len(found) == 4 and all(type(v) in (int, float) for v in found)


# --- what readers say about entries -----------------------------------------------------------------------------------

NUMBER = (int, float)
_NAMES = {str: "text", int: "an integer", float: "a number", list: "a list", dict: "an object", bool: "true or false"}


def fault(entry: Any, wanted: Mapping[str, type | tuple[type, ...]]) -> str | None:
    """What first is wrong with the fields that a reader works with before `record` sees them; None: nothing.

    Args:
        entry: of an annotation file, of any type.
        wanted: fields by name with the type that each has to have; `object` for one that may be anything, null too.
    """
    if not isinstance(entry, dict):
        return f"is not an object, found {entry!r:.60}"
    for name, kind in wanted.items():
        if name not in entry:
            return f"{name}: missing"
        if not isinstance(entry[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            return f"{name}: should be {' or '.join(_NAMES[kind] for kind in kinds)}, found {entry[name]!r:.60}"
        if isinstance(entry[name], str) and not entry[name].strip():
            return f"{name}: is blank"
    return None


def flaw(entry: Any, fields: tuple[str, ...]) -> str | None:
    """What keeps an entry from being an object in which none of the fields is missing, or None."""
    if not isinstance(entry, dict):
        return f"is not an object, found {entry!r:.60}"
    missing = [name for name in fields if entry.get(name) is None]
    return f"{', '.join(missing)}: missing or null" if missing else None


def is_number(found: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a number; true and false are none."""
    return type(found) in (int, float)


def chosen(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of the named fields that an entry has."""
    return {name: entry[name] for name in names if name in entry}


def letters(options: Any) -> list[str]:
    """Letters that the options of a question go by."""
    return list(string.ascii_uppercase[: len(options)]) if isinstance(options, list | tuple) else []


def once(entries: Entries) -> Entries:
    """The entries, with a problem in place of every record whose key an earlier one has."""
    seen: set[int] = set()  # hashes: a million of them take less than the keys
    for entry in entries:
        if not isinstance(entry, Record):
            yield entry
        elif (mark := xxhash.xxh3_64_intdigest(entry.key.encode())) in seen:
            yield Problem(entry.where, f"names the same row as an earlier entry: {entry.key!r:.60}")
        else:
            seen.add(mark)
            yield entry
