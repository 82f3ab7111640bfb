"""What is scored: a row as a question with its truth, and an answer as the values that were read from it.

Rows are read column by column, because a benchmark's prompts and boxes as Python objects take a hundred times their
size in the file. Answers are read with the parsers of `reward_fns`, so that training and evaluation read alike; only
option letters are read with `verl_stvg.eval.metrics.answers.read_option`, which does not take the D of "Definitely A"
for one.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reward_fns import parsing, stvg_boxes, stvg_r1, temporal_r1, time_r1, videochat_r1
from verl_stvg.data_builders.objects.boxes import annotated_size
from verl_stvg.eval.metrics.answers import read_option
from verl_stvg.eval.metrics.tubes import as_arrays, from_seconds
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.cache_fill import are_plain, entries_of, root_of
from verl_stvg.rows.files import batches_in, open_rows
from verl_stvg.rows.shape import FAR, columns_are_sound, row_shape_problems
from verl_stvg.training.reward import find_recipe
from verl_stvg.video.clock import FrameClock

Interval = tuple[float, float]
Box = tuple[float, float, float, float]

_NO_BOX = (0.0, 0.0, 0.0, 0.0)
_BY_SECOND = "stvg_boxes_seconds"
_BOXED = ("stvg_boxes", _BY_SECOND)
_FAR = 1e12  # frames; far beyond any video it does not matter which
_BATCH = 4000
_TRUTH = "reward_model.ground_truth"
_INFO = (
    *("uid", "dataset", "split", "query", "options", "duration", "num_frames", "source_fps", "width", "height"),
    *("frame_times", "file_end", "first_frame_of"),
)
_VIDEO = ("video", "tracks", "video_start")
_COLUMNS = (
    "data_source",
    *(f"videos.list.element.{name}" for name in _VIDEO),
    _TRUTH,
    *(f"extra_info.{name}" for name in (*_INFO, "annotated")),
)


@dataclass(frozen=True)
class Item:
    """A row of a benchmark.

    Attributes:
        uid: of the row.
        dataset: name of the annotation set.
        split: of the set.
        recipe: reward that reads the answers, which the prompt goes with.
        video: path as the row has it; rows of one video succeed and fail together.
        query: sentence or question.
        duration: of what is shown, seconds.
        intervals: annotated, seconds of what is shown; empty where the split has no public truth.
        object_id: true ID; None if it is not known.
        object_ids: true IDs, where several may be meant.
        first_frame: of the annotated tube, zero-based, of the file, whatever the row counts in.
        boxes: (T, 4) float32 xyxy of the annotated tube; None if there is none.
        num_options: of a question.
        answer: letter of the right option.
        fps: of the video; None if neither the video nor the annotation said it.
        shown: first second of the file that is shown.
        num_frames: of the file; None if it was not looked into.
        size: (width, height) of the file, likewise.
        tracks: absolute path of the track file whose IDs the model saw.
        annotated: the row's JSON text of further fields.
        times: seconds at which the frames of the file appear; None at a constant rate.
        file_end: seconds at which the last one goes, likewise.
        picture: (width, height) that answered thousandths are of; None: the annotation's, else the file's.
    """

    uid: str
    dataset: str
    split: str
    recipe: str
    video: str
    query: str
    duration: float
    intervals: tuple[Interval, ...] = ()
    object_id: int | None = None
    object_ids: tuple[int, ...] = ()
    first_frame: int | None = None
    boxes: np.ndarray | None = None
    num_options: int = 0
    answer: str | None = None
    fps: float | None = None
    shown: float = 0.0
    num_frames: int | None = None
    size: tuple[int, int] | None = None
    tracks: Path | None = None
    annotated: str | None = None
    times: tuple[float, ...] | None = field(default=None, repr=False)
    file_end: float | None = None
    picture: tuple[float, float] | None = None

    @cached_property
    def extra(self) -> Mapping[str, Any]:
        """Further fields of the annotation."""
        return json.loads(self.annotated) if self.annotated else {}

    @cached_property
    def clock(self) -> FrameClock | None:
        """Frame numbers and seconds of the file; None without a rate."""
        return FrameClock(self.num_frames or 0, self.fps, self.times, self.file_end) if self.fps else None

    def frames(self, interval: Interval) -> tuple[int, int]:
        """First and last frame of the file in an interval of what is shown; the last is before the first if none is.

        Bounds are rounded to the nearest beginning of a frame, so that two decimals name a frame.
        """
        return self._nearest(interval[0]), self._nearest(interval[1]) - 1

    def span(self, seconds: float) -> float:
        """How many frames the first seconds of what is shown are."""
        if self.times is None:
            return seconds * self.fps
        return self.clock.place(self.shown + seconds) - self.clock.place(self.shown)

    def _nearest(self, seconds: float) -> int:
        far = _FAR / self.fps
        return self.clock.nearest(min(max(self.shown + seconds, -far), far))

    @property
    def true_frames(self) -> tuple[int, int]:
        """First and last frame of the annotated tube."""
        return self.first_frame, self.first_frame + len(self.boxes) - 1


@dataclass(frozen=True)
class Prediction:
    """What was read from an answer, or what another program predicted.

    Attributes:
        intervals: seconds of what is shown, the best first; the first is scored.
        object_ids: answered.
        option: capital letter.
        tube: boxes xyxy in pixels by zero-based frame of the file.
        by_second: the answer gave the boxes by whole second; see `verl_stvg.eval.metrics.tubes.from_seconds`.
        span: first and last frame that the tube is said to cover; None takes it from the interval. Without either the
            tube covers the frames that it names.
        ranked: whether several intervals are guesses at one moment, the best first, as programs with scores give them;
            otherwise they belong together, as in an answer of several periods.
        text: the file's own text for it, where a script reads that (lmms-eval).
        first: the first interval as the file has it, where it is not finite and so none of `intervals`; scripts that
            take the first score this one.
        reply: to a question, as the file has it, where a script reads the option from it (VideoMind).
    """

    intervals: tuple[Interval, ...] = ()
    object_ids: tuple[int, ...] = ()
    option: str | None = None
    tube: Mapping[int, Box] | None = field(default=None, hash=False)
    span: tuple[int, int] | None = None
    ranked: bool = False
    text: str | None = None
    by_second: bool = False
    first: Interval | None = None
    reply: str | None = None

    @property
    def periods(self) -> tuple[Interval, ...]:
        """The intervals that are answered together."""
        return self.intervals[:1] if self.ranked else self.intervals

    @property
    def interval(self) -> Interval | None:
        """The interval that is scored."""
        return self.intervals[0] if self.intervals else None

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The tube as frames (T,), ascending, and boxes (T, 4)."""
        return as_arrays(self.tube)

    def finite(self) -> "Prediction | None":
        """Without what is not finite; None if nothing is there, or left."""
        intervals = tuple(one for one in self.intervals if all(map(math.isfinite, one)))
        tube = self.tube and {k: box for k, box in self.tube.items() if all(map(math.isfinite, box))}
        if not (intervals or self.object_ids or self.option or tube):
            return None
        if len(intervals) == len(self.intervals) and (not self.tube or len(tube) == len(self.tube)):
            return self
        lost = self.intervals[0] if self.intervals and self.intervals[0] not in intervals else self.first
        return replace(self, intervals=intervals, tube=tube or None, first=lost)


@dataclass(frozen=True)
class Stored(Answer):
    """A reply of another program, which its script reads as it stands in the file (lmms-eval)."""


# --- rows -------------------------------------------------------------------------------------------------------------


def read_rows(files: Iterable[Path], video_root: str | Path | None = None) -> Iterator[dict]:
    """Rows of parquet files with what scoring needs of them: boxes as arrays, paths of track files absolute.

    Args:
        files: of rows.
        video_root: folder that paths in the rows start from; see `verl_stvg.rows.cache_fill.root_of`.

    Raises:
        ValueError: a file that is missing, or one that holds no rows of ours.
    """
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file of rows; build the rows first, or correct the path")
        root = root_of(file.resolve(), video_root)
        with open_rows(file, ("data_source", "reward_model", "extra_info")) as table:
            names = table.schema_arrow.names
            _check_types(table.schema_arrow, file)
            columns = list(_COLUMNS)
            paths = {table.schema.column(place).path for place in range(len(table.schema))}
            if "videos" in names and "videos.list.element.video" not in paths:
                columns.append("videos")  # of another form, or written with another name of what is in a list
            number = 0
            for batch in batches_in(table, file, columns, _BATCH):
                yield from _rows(batch, root, file, number)
                number += len(batch)


def _check_types(schema: pa.Schema, file: Path) -> None:
    """See that columns that are taken apart hold objects."""
    reward, info = schema.field("reward_model").type, schema.field("extra_info").type
    truth = reward.field("ground_truth").type if _has(reward, "ground_truth") else pa.null()
    for name, kind in (("reward_model.ground_truth", truth), ("extra_info", info)):
        if not pa.types.is_struct(kind):
            raise ValueError(f"{file}: {name} holds no objects ({kind}); give a file that `verl-stvg build` wrote")


def _has(kind: pa.DataType, name: str) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index(name) >= 0


class _Row(dict):
    """A row of `read_rows`: the entries of its ``videos`` are as `entries_of` gives them."""


def _rows(batch: pa.RecordBatch, root: Path, file: Path, number: int) -> Iterator[dict]:
    """Rows of a batch, the first of which has this number in its file."""
    truths, infos = _columns(batch.column("reward_model").field("ground_truth")), _columns(batch.column("extra_info"))
    looked = {name: values for name, values in truths.items() if name != "boxes" or not _are_boxes(values)}  # sound
    sound = columns_are_sound(batch.column("data_source"), looked, infos)
    sources, videos = batch.column("data_source").to_pylist(), _videos(batch, root, file, number)
    rows = zip(sources, videos, _values(truths), _values(infos), strict=True)
    for place, (source, entries, truth, info) in enumerate(rows, number):
        if not sound:
            _check(source, truth, info, f"{file}: row {place}")
        yield _Row(data_source=source, videos=entries, reward_model={"ground_truth": truth}, extra_info=info)


def _videos(batch: pa.RecordBatch, root: Path, file: Path, number: int) -> Iterator[list[dict]]:
    """Entries of the videos of each row, paths of track files absolute."""
    column = batch.column("videos") if "videos" in batch.schema.names else pa.nulls(len(batch))
    if (names := _only_names(column)) is not None and are_plain(names):
        yield from ([{"video": name}] for name in names)
        return
    for place, videos in enumerate(column.to_pylist(), number):
        entries = entries_of(videos, where=f"{file}: row {place}")
        for entry in entries:
            if "tracks" in entry:
                entry["tracks"] = str(root / entry["tracks"])
        yield entries


def _only_names(videos: pa.Array) -> list[str] | None:
    """Names of videos where each row has one video, and nothing more of it is known; else None."""
    if not pa.types.is_list(videos.type) or not pa.types.is_struct(videos.type.value_type) or videos.null_count:
        return None
    entries = videos.flatten()
    if entries.null_count or videos.value_lengths().unique().to_pylist() != [1]:
        return None
    known = [name for name, values in _columns(entries).items() if values.null_count < len(values)]
    return entries.field("video").to_pylist() if known == ["video"] else None


def _check(source: object, truth: dict, info: dict, where: str) -> None:
    known = truth if isinstance(truth.get("boxes"), list) else {**truth, "boxes": None}  # arrays are sound
    asked = {"data_source": source, "prompt": [], "reward_model": {"ground_truth": known}, "extra_info": info}
    if wrong := row_shape_problems(asked):
        raise ValueError(f"{where}: {wrong[0]}")


def _columns(structs: pa.StructArray) -> dict[str, pa.Array]:
    return {kind.name: structs.field(index) for index, kind in enumerate(structs.type)}


def _values(columns: Mapping[str, pa.Array]) -> Iterator[dict]:
    """Rows of columns as dictionaries, boxes as arrays (T, 4)."""
    found = {}
    for name, values in columns.items():
        if values.null_count == len(values):  # half of the columns of most sets
            found[name] = [None] * len(values)
        else:
            found[name] = _boxes(values) if name == "boxes" and _are_boxes(values) else values.to_pylist()
    return (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))


def _are_boxes(values: pa.Array) -> bool:
    """Whether a column is the boxes of tubes as `verl-stvg build` writes them, four finite numbers each."""
    if values.type != pa.list_(pa.list_(pa.float32())):
        return False
    sides = values.values.values
    lengths = np.diff(_numbers(values.values.offsets, np.int32))
    whole = not values.values.null_count and not sides.null_count and bool((lengths == 4).all())
    return whole and bool((np.abs(_numbers(sides, np.float32)) <= FAR).all())


def _boxes(column: pa.ListArray) -> list[np.ndarray | None]:
    sides = _numbers(column.values.values, np.float32)
    inner, offsets = _numbers(column.values.offsets, np.int32), _numbers(column.offsets, np.int32)
    return [
        sides[inner[start] : inner[end]].reshape(-1, 4) if known else None
        for start, end, known in zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    ]


def _numbers(values: pa.Array, kind: type) -> np.ndarray:
    """Numbers of an array without nulls; `to_numpy` would import pandas, which takes a second."""
    if not len(values):
        return np.zeros(0, dtype=kind)
    return np.frombuffer(values.buffers()[1], dtype=kind, count=len(values), offset=values.offset * kind().itemsize)


def _int(number: float | None) -> int | None:
    """Arrow returns whole numbers of some columns as doubles."""
    return None if number is None else int(number)


def item_of(row: Mapping[str, Any]) -> Item:
    """The item that a row is; see `read_rows` and `verl_stvg.data_builders.make_row.ROW_SCHEMA` for its keys.

    Raises:
        ValueError: the row lacks what every row has, or its data source names no reward.
    """
    info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
    uid = info.get("uid") or truth.get("uid")
    if not uid or not info.get("duration"):
        raise ValueError(f"row {uid or info.get('index')!r} has no uid or no duration; build the rows again")
    entries = row["videos"] if type(row) is _Row else entries_of(row.get("videos"), where=f"row {uid}")
    video = entries[0] if entries else {}
    source = row["data_source"]
    boxes, size = truth.get("boxes"), (info.get("width"), info.get("height"))
    item = Item(
        uid,
        info.get("dataset") or source.rpartition("/")[2],
        info.get("split") or "",
        _recipe(source, uid),
        video.get("video") or "",
        info.get("query") or "",
        info["duration"],
        _intervals(truth),
        truth.get("object_id"),
        tuple(truth.get("object_ids") or ()),
        _int(truth.get("first_frame")),
        None if boxes is None or not len(boxes) else np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        len(info.get("options") or ()),
        truth.get("answer"),
        info.get("source_fps"),
        video.get("video_start") or 0.0,
        _int(info.get("num_frames")),
        size if all(size) else None,
        Path(video["tracks"]) if video.get("tracks") else None,
        info.get("annotated"),
        _times(info),
        info.get("file_end"),
    )
    if truth.get("picture"):
        item = replace(item, picture=tuple(truth["picture"]))
    if not item.fps and item.annotated:
        item = replace(item, fps=item.extra.get("fps"))
    if item.first_frame is None or not item.shown or item.clock is None:
        return item
    first = item.clock.in_file(item.first_frame, item.shown, info.get("first_frame_of"))
    return replace(item, first_frame=first)


def _recipe(source: str, uid: str) -> str:
    try:
        return find_recipe(source).name
    except ValueError as error:
        raise ValueError(f"row {uid}: {error}") from error


def _intervals(truth: Mapping[str, Any]) -> tuple[Interval, ...]:
    if found := truth.get("intervals"):
        return tuple(map(tuple, found))
    return ((truth["start"], truth["end"]),) if truth.get("start") is not None else ()


def _times(info: Mapping[str, Any]) -> tuple[float, ...] | None:
    found = info.get("frame_times")
    return None if found is None or not len(found) else tuple(map(float, found))


# --- answers ----------------------------------------------------------------------------------------------------------


def read_answer(item: Item, text: str) -> Prediction | None:
    """What an answer says, read as the reward of the item's prompt reads it; None if nothing can be read.

    An answer that lacks a part (a letter, say) keeps the others where its reward keeps them. Times that are not finite
    are not read.
    """
    form = item.recipe.removesuffix("_nothink").removesuffix("_strict").removesuffix("_visible")
    found = _tube(item, text) if form in _BOXED else _READERS[form](text, item.num_options)
    return found if found is None or found.tube is not None else found.finite()  # boxes are read as finite ones


def _target(text: str, _: int) -> Prediction | None:
    found = stvg_r1.parse(text)
    return Prediction((found[1:],), (found[0],)) if found is not None else None


def _targets(text: str, _: int) -> Prediction | None:
    found = stvg_r1.parse_set(text)
    return Prediction((found[1],), tuple(sorted(found[0]))) if found is not None else None


def _tube(item: Item, text: str) -> Prediction | None:
    """Answered boxes by frame of the file, in pixels of the annotation.

    Keys are frames of what is shown or whole seconds (`_is_by_second`); the boxes of `stvg_boxes_seconds` are
    thousandths of the picture.

    Raises:
        ValueError: thousandths of a picture whose size the row does not say.
    """
    found = stvg_boxes.parse(text)
    if found is None:
        return None
    span, boxes = found
    if not _all_boxes(boxes):  # what is no box counts as a frame without overlap, as in the reward
        boxes = {frame: parsing.box(box) or _NO_BOX for frame, box in boxes.items()}
    if item.recipe == _BY_SECOND:
        picture = item.picture or annotated_size(item.extra) or item.size
        if picture is None:
            raise ValueError(f"row {item.uid}: boxes are thousandths of the picture, whose size the row does not say")
        frames, sides = as_arrays(boxes)
        boxes = dict(zip(frames.tolist(), (sides * np.array(picture * 2) / 1000).tolist(), strict=True))
    if item.clock is None:
        return Prediction((span,), tube=boxes)
    if _is_by_second(item, span, boxes):
        return Prediction((span,), tube=_by_frame(item, span, boxes), by_second=True)
    first = item.clock.first_shown(item.shown)
    return Prediction((span,), tube={frame + first: box for frame, box in boxes.items()} if first else boxes)


def _is_by_second(item: Item, span: Interval, boxes: Mapping[int, Box]) -> bool:
    """Whether the keys of answered boxes are whole seconds, as OneThinker's are, and not frames.

    They are what more of them lie within the stated time as. Where that is equal they are what the prompt asks for,
    or seconds, if there is exactly one for each whole second of the stated time.
    """
    first = item.clock.first_shown(item.shown)
    start, end = (bound - first for bound in item.frames(span))
    low, high = stvg_boxes.whole_seconds(span)
    as_frames = sum(start <= key <= end for key in boxes)
    as_seconds = sum(low <= key <= high for key in boxes)
    if as_frames == len(boxes) == end - start + 1 and item.recipe != _BY_SECOND:  # one for each frame
        return False
    if as_frames != as_seconds:
        return as_seconds > as_frames
    return item.recipe == _BY_SECOND or 0 < len(boxes) == as_seconds == high - low + 1


def _by_frame(item: Item, span: Interval, boxes: Mapping[int, Box]) -> dict[int, Box]:
    """Boxes by frame of the file from boxes by whole second; one outside of the stated time is a frame there."""
    start, end = item.frames(span)
    known = item.num_frames or (item.first_frame + len(item.boxes) if item.boxes is not None else 0)
    frames = np.arange(max(start, 0), min(end, known - 1) + 1)
    times = [item.clock.seconds(frame) - item.shown for frame in frames.tolist()]
    low, high = stvg_boxes.whole_seconds(span)
    inside = {key: box for key, box in boxes.items() if low <= key <= high}
    there, sides = from_seconds(inside, times, span)
    outside = {item.frames((key, key))[0]: box for key, box in boxes.items() if key not in inside}
    return outside | dict(zip(frames[there].tolist(), sides[there].tolist(), strict=True))


def _all_boxes(boxes: Mapping[int, object]) -> bool:
    """Whether all values are boxes that `parsing.box` reads, seen at once."""
    try:
        sides = np.array(list(boxes.values()), dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return False
    return sides.shape == (len(boxes), 4) and bool(np.isfinite(sides).all())


def _span(parse: Callable[[str], Interval | None]) -> Callable[[str, int], Prediction | None]:
    def read(text: str, _: int) -> Prediction | None:
        found = parse(text)
        return Prediction((found,)) if found is not None else None

    return read


def _spans(text: str, _: int) -> Prediction | None:
    answer = parsing.first_block(text, "answer")
    found = parsing.interval_list(answer) if answer is not None else None
    return Prediction(tuple(found)) if found else None


def _option(text: str, num_options: int) -> Prediction | None:
    letter = read_option(text, num_options)
    return Prediction(option=letter) if letter is not None else None


def _option_and(parse: Callable[[str], tuple | None], several: bool) -> Callable[[str, int], Prediction | None]:
    def read(text: str, num_options: int) -> Prediction | None:
        letter, found = read_option(text, num_options), parse(text)
        if letter is None and not found:
            return None
        return Prediction((found if several else (found,)) if found else (), option=letter)

    return read


_READERS: dict[str, Callable[[str, int], Prediction | None]] = {
    "stvg_r1": _target,
    "stvg_r1_multi": _targets,
    "timezero": _span(time_r1.parse),
    "time_r1": _span(time_r1.parse),
    "temporal_r1": _span(temporal_r1.parse),
    "temporal_r1_mcq": _option,
    "temporal_r1_gqa": _option_and(temporal_r1.parse, several=False),
    "r1v": _option,
    "videochat_r1": _span(videochat_r1.parse),
    "videochat_r1_gqa": _option_and(videochat_r1.parse_glue, several=True),
    "videochat_r1_5": _spans,
    "videotg_r1": _span(videochat_r1.parse),
}
