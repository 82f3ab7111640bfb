"""What a row is at the least, looked at once where rows are read, so that nothing behind that has to ask again.

Rows come from many hands: a column of another type, a time that is missing within an interval, a number that no clock
knows. What is wrong with a row's video says `verl_stvg.rows.row.entry_of`, and what is wrong with a ground truth
says its reward; here is only what both, and whoever draws a row, take for granted.
"""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pyarrow as pa
from annotated_types import MaxLen, MinLen
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from verl_stvg.base import nesting

FAR = 1e9
"""Largest size of a time (seconds) or a coordinate (pixels) of a row: 30 years."""
_LONGEST = 4096  # characters of a uid: it stands in messages and names
_RECKONED = ("fps", "width", "height", "num_frames", "frame_count", "img_num", "split_first", "split_last", "entry")
"""Names of what an annotation brought along and is reckoned with."""
_LEAST, _MOST = 1e-9, 1e100  # size of such a number, unless it is 0


def _as_annotated(text: str) -> str:
    found = nesting.loads(text)
    if not isinstance(found, dict):
        raise ValueError("should be a JSON object")
    for name, value in found.items():
        if name in _RECKONED and type(value) in (int, float) and value and not _LEAST <= abs(value) <= _MOST:
            raise ValueError(f"{name} should be 0 or of a size from {_LEAST:g} to {_MOST:g}")
    return text


def _is_ascending(times: list[float]) -> list[float]:
    if not all(a <= b for a, b in pairwise(times)):
        raise ValueError("should ascend")
    return times


def _is_name(uid: object) -> object:
    if uid is not None and type(uid) not in (str, int):
        raise ValueError("should be a text or a whole number")
    if isinstance(uid, str) and len(uid) > _LONGEST:
        raise ValueError(f"should have at most {_LONGEST} characters")
    return uid


def _whole(number: object) -> object:
    """Arrow returns whole numbers as doubles where a column has an empty place or was one of doubles."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


_Int = Annotated[int, BeforeValidator(_whole)]
_Number = Annotated[float, Field(ge=-FAR, le=FAR, allow_inf_nan=False)]
_Pair = Annotated[list[_Number], Field(min_length=2, max_length=2)]
_Box = Annotated[list[_Number], Field(min_length=4, max_length=4)]
_Size = Annotated[list[Annotated[_Number, Field(ge=1)]], Field(min_length=2, max_length=2)]
_Length = Annotated[_Number, Field(ge=1e-3)]
_Side = Annotated[_Int, Field(ge=1, le=10**6)]
_Name = Annotated[Any, AfterValidator(_is_name)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Turn(_Shape):
    role: str
    content: str


class _Truth(_Shape):
    duration: _Length | None = None
    start: _Number | None = None
    end: _Number | None = None
    intervals: list[_Pair] | None = None
    visible: list[_Pair] | None = None
    object_id: _Int | None = None
    object_ids: list[_Int] | None = None
    first_frame: Annotated[_Int, Field(ge=-FAR, le=FAR)] | None = None
    boxes: list[_Box] | None = None
    picture: _Size | None = None
    answer: str | None = None
    option: str | None = None

    @model_validator(mode="after")
    def _both_ends(self) -> "_Truth":
        if (self.start is None) != (self.end is None):
            raise ValueError("start and end need each other")
        return self


class _Extra(_Shape):
    uid: _Name = None
    index: _Name = None
    dataset: str | None = None
    split: str | None = None
    template: str | None = None
    annotation: str | None = None
    query: str | None = None
    sentence: str | None = None
    options: list[str] | None = None
    duration: _Length | None = None
    num_frames: Annotated[_Int, Field(ge=1, le=10**7)] | None = None
    source_fps: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    width: _Side | None = None
    height: _Side | None = None
    constant_rate: bool | None = None
    first_frame_of: str | None = None
    frame_times: Annotated[list[_Number], AfterValidator(_is_ascending)] | None = None
    file_end: _Number | None = None
    annotated: Annotated[str, AfterValidator(_as_annotated)] | None = None

    @model_validator(mode="after")
    def _one_time_each(self) -> "_Extra":
        if self.frame_times and self.num_frames and len(self.frame_times) != self.num_frames:
            raise ValueError(f"{len(self.frame_times)} frame_times of {self.num_frames} frames")
        return self


class _RewardModel(_Shape):
    ground_truth: Annotated[_Truth | None, BeforeValidator(lambda found: found if isinstance(found, dict) else None)]


class _Row(_Shape):
    data_source: str
    prompt: list[_Turn]
    reward_model: _RewardModel | None
    extra_info: _Extra


def row_shape_problems(row: Mapping[str, Any]) -> list[str]:
    """What keeps a row from being looked at, one problem for each of its fields; nothing: all may be relied on.

    A row has a data source (text), a prompt (a list of turns, ``role`` and ``content``, both text) and ``extra_info``.
    What else it has of `verl_stvg.data_builders.row_schema.ROW_SCHEMA` has the type given there, and numbers are finite
    and no larger than `FAR`. A ground truth that is no object is none, which is said elsewhere.

    Args:
        row: as a parquet file has it.
    """
    try:
        _Row.model_validate(dict(row) if isinstance(row, Mapping) else row)
    except ValidationError as error:
        found: dict[tuple[str, ...], str] = {}
        for one in error.errors():
            field = tuple(part for part in one["loc"] if isinstance(part, str))
            found.setdefault(field, f"{'.'.join(map(str, one['loc']))}: {_said(one)}")
        return list(found.values())
    return []


_WORDS = {
    "missing": "is missing",
    "model_type": "should be an object",
    "list_type": "should be a list",
    "string_type": "should be a text",
    "float_type": "should be a number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "bool_type": "should be true or false",
}
"""In our words what pydantic finds most often."""


def _said(one: Mapping[str, Any]) -> str:
    what = one["msg"].removeprefix("Value error, ").removeprefix("Input ")
    what = _WORDS.get(one["type"], what[:1].lower() + what[1:])
    return f"{what}, found {one['input']!r:.60}; correct the row or build it again"


# --- many rows at once ------------------------------------------------------------------------------------------------


def columns_are_sound(sources: pa.Array, truths: Mapping[str, pa.Array], extras: Mapping[str, pa.Array]) -> bool:
    """Whether `row_shape_problems` finds nothing in any row of a batch, seen by column; False: look at each row.

    It is strict where columns are of a kind that builders do not write, so False does not mean that a row is at fault.

    Args:
        sources: the column ``data_source``.
        truths: the fields of ``reward_model.ground_truth``, by name.
        extras: the fields of ``extra_info``, by name.
    """
    sound = _fits(str, sources) and all(
        _fits(field, columns[name])
        for model, columns in ((_Truth, truths), (_Extra, extras))
        for name, field in _annotations(model)
        if name in columns
    )
    return sound and _have_both_ends(truths) and _have_one_time_each(extras)


@cache
def _annotations(model: type[BaseModel]) -> list[tuple[str, Any]]:
    return [
        (name, Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
        for name, field in model.model_fields.items()
    ]


def _fits(kind: Any, values: pa.Array) -> bool:
    """Whether all values of a column are of a field's type, within its bounds."""
    parts = get_args(kind)
    if NoneType in parts:
        known = values.drop_null()
        return not len(known) or _fits(next(part for part in parts if part is not NoneType), known)
    limits: list[Any] = []
    if get_origin(kind) is Annotated:
        kind, limits = parts[0], [limit for part in parts[1:] for limit in _limits(part)]
        parts = get_args(kind)
    if kind is not Any and values.null_count:
        return False
    if get_origin(kind) is list:
        fits = _are_lists(parts[0], values, limits)
    elif kind in (int, float):
        fits = _are_numbers(kind, values, limits)
    else:
        fits = _TYPES[kind](values.type)
    return fits and all(_accepts(limit.func, values) for limit in limits if isinstance(limit, AfterValidator))


def _limits(part: Any) -> list[Any]:
    return part.metadata if isinstance(part, FieldInfo) else [part]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_TYPES = {str: _is_text, bool: pa.types.is_boolean, Any: lambda kind: True}


def _are_lists(element: Any, values: pa.Array, limits: list[Any]) -> bool:
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return False
    lengths = np.from_dlpack(values.value_lengths())
    within = all(
        (lengths >= limit.min_length if isinstance(limit, MinLen) else lengths <= limit.max_length).all()
        for limit in limits
        if isinstance(limit, MinLen | MaxLen)
    )
    return bool(within) and _fits(element, values.flatten())


def _are_numbers(kind: type, values: pa.Array, limits: list[Any]) -> bool:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return False
    numbers = np.from_dlpack(values)
    bounds = [(getattr(limit, "ge", -np.inf), getattr(limit, "le", np.inf)) for limit in limits]
    within = all(((low <= numbers) & (numbers <= high)).all() for low, high in bounds)
    whole = kind is float or pa.types.is_integer(values.type) or (numbers == np.floor(numbers)).all()
    return bool(within and whole and np.isfinite(numbers).all())


def _accepts(validator: Any, values: pa.Array) -> bool:
    try:
        for value in values.to_pylist():
            validator(value)
    except ValueError:
        return False
    return True


def _have_both_ends(truths: Mapping[str, pa.Array]) -> bool:
    ends = [truths[name].is_valid() for name in ("start", "end") if name in truths]
    return len(ends) == 2 and ends[0].equals(ends[1]) or not any(known.true_count for known in ends)


def _have_one_time_each(extras: Mapping[str, pa.Array]) -> bool:
    times, counts = extras.get("frame_times"), extras.get("num_frames")
    if times is None or counts is None or times.null_count == len(times) or counts.null_count == len(counts):
        return True
    lengths = times.value_lengths().cast(pa.int64()).fill_null(0)
    numbers = np.from_dlpack(counts.cast(pa.int64()).fill_null(lengths))  # a count that is not there agrees
    lengths = np.from_dlpack(lengths)
    return bool(((lengths == 0) | (lengths == numbers)).all())
