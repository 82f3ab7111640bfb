"""What every annotation set is turned into at the door: seconds, zero-based frames, boxes xyxy, one query per record.

Sets differ in units, in where they count from and in how they say that something is missing. A reader of a set settles
all of that once, so that nothing behind it has to know where a record came from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
        first_frame: zero-based frame of the video file.
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
        unit: of `intervals`: seconds; for sets that say neither seconds nor a rate, zero-based frames, the second one
            not included, or fractions of the duration. The builder turns them into seconds with the video's own rate.
        intervals: of what is shown (of `clip`, if there is one); empty where the split has no ground truth.
        duration: of what is shown, as annotated, seconds.
        clip: the part of the file that is shown, in seconds of the file; None: all of it.
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


def record(where: str, **fields: Any) -> Record | Problem:
    """A `Record`, or the `Problem` that one of the fields is; lists, as JSON has them, may stand for tuples."""
    try:
        return Record(where=where, **{name: _tuples(value) for name, value in fields.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        return Problem(where, f"{name}: {first['msg'].lower()}, found {first['input']!r:.60}")


def boxes_xyxy(boxes_xywh: Any) -> Any:
    """Boxes as (x1, y1, x2, y2) from boxes as (x, y, width, height); what is no box stays, for `record` to refuse."""
    if not isinstance(boxes_xywh, list | tuple):
        return boxes_xywh
    return tuple((x[0], x[1], x[0] + x[2], x[1] + x[3]) if _is_box(x) else x for x in boxes_xywh)


def _tuples(found: Any) -> Any:
    return tuple(map(_tuples, found)) if isinstance(found, list | tuple) else found


def _is_box(found: Any) -> bool:
    return isinstance(found, list | tuple) and len(found) == 4 and all(type(v) in (int, float) for v in found)
