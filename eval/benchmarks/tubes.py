"""Spatio-temporal grounding: from an answered ID, or answered boxes, to a tube, and what the tube is worth.

An ID becomes a tube through the tracks of its video, unfiltered if they are given, because an object keeps its tube
where its number was hidden. Plain, a frame in which the object is not seen counts as answered without a box; repaired,
it gets the box that STVG-R1's evaluation would take. Frames that are answered outside of the video count as well.

Answered boxes have numbers of frames in what is shown, or whole seconds as OneThinker's have; `prediction` turns
both into frames of the file. All frames of the answered time and all frames with a box count as answered, and boxes are
compared within the answered time. Boxes without a time answer the frames that they name, and no others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeGuard

import numpy as np

from reward_fns import parsing, stvg_boxes
from verl_stvg.data_builders.objects.boxes import Size, TurnedBoxes, annotated_size, scales
from verl_stvg.data_builders.objects.boxes import out_of_reach as out_of_reach_boxes
from verl_stvg.eval.benchmarks.base import Interval, Item, Prediction, Predictions, Values, only
from verl_stvg.eval.benchmarks.temporal import read_leniently
from verl_stvg.eval.benchmarks.tracked import Library, Sources, Tracked, identity, tubes_of
from verl_stvg.eval.metrics.temporal import exceeds, iou_hull, reaches
from verl_stvg.eval.metrics.tubes import THRESHOLDS, Box, as_arrays, common, from_seconds
from verl_stvg.moved import names_of

Frames = tuple[int, int]
Arrays = tuple[np.ndarray, np.ndarray]

_PAPERS = ("challenge", "tubedetr", "tubedetr_hcstvg", "cgstvg", "stvg_r1", "st_align")
__getattr__ = names_of(
    __name__,
    dict.fromkeys(_PAPERS, "verl_stvg.eval.benchmarks.tube_papers")
    | {"HELD_MASKS": "verl_stvg.eval.benchmarks.tracked"},
)

_NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Tube(Tracked):
    """A row that asks where something is, and when.

    Attributes:
        first_frame: of the annotated tube, zero-based, of the file, whatever the row counts in.
        boxes: (T, 4) float32 xyxy of the annotated tube; None if there is none, or its first frame is not known.
        picture: (width, height) that answered thousandths are of; None: the annotation's, else the file's.
    """

    main: ClassVar[str] = "m_vIoU"

    first_frame: int | None = None
    boxes: np.ndarray | None = None
    picture: tuple[float, float] | None = None

    @classmethod
    def own(cls, truth: Mapping[str, Any]) -> tuple:
        first, boxes = truth.get("first_frame"), truth.get("boxes")
        known = first is not None and boxes is not None and len(boxes)
        return (
            *super().own(truth),
            None if first is None else int(first),  # Arrow returns whole numbers of some columns as doubles
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4) if known else None,
            tuple(truth["picture"]) if truth.get("picture") else None,
        )

    def counted_in_file(self, first_frame_of: str | None) -> "Tube":
        if self.first_frame is None or not self.shown or self.clock is None:
            return self
        return replace(self, first_frame=self.clock.in_file(self.first_frame, self.shown, first_frame_of))

    def answered_size(self) -> Size | None:
        return self.picture or super().answered_size()

    def known_frames(self) -> int:
        return self.num_frames or self.true_frames[1] + 1

    @property
    def true_frames(self) -> Frames:
        """First and last frame of the annotated tube; the last is before the first if there is none."""
        first = self.first_frame or 0
        return first, first + (0 if self.boxes is None else len(self.boxes)) - 1

    @classmethod
    def measure(cls, items: Sequence[Item], said: Predictions, sources: Sources) -> tuple[Values, list[str]]:
        return measure(only(cls, items), said, sources.library)

    @classmethod
    def variants(cls, items: Sequence[Item], said: Predictions, sources: Sources, values: Values) -> Values:
        scored = sources.scripts and "m_vIoU" in values
        tubes = only(cls, items)
        by_scripts = variants(tubes, said, sources.library, sources.scripts) if scored else {}
        return by_scripts | lenient(tubes, said, sources.texts)

    @classmethod
    def unseen(cls, items: Sequence[Item], times: np.ndarray) -> tuple[str, Values]:
        values, _ = measure(only(cls, items), [Prediction(((start, end),)) for start, end in times.tolist()], Library())
        return "", {"m_tIoU": values["m_tIoU"]}

    @classmethod
    def notes(cls, items: Sequence[Item], told: dict[str, int]) -> list[str]:
        lost, of_rows = out_of_reach(only(cls, items))
        if not lost:
            return super().notes(items, told)
        told["boxes_out_of_reach"] = lost
        said = (
            f"{lost:,} annotated boxes of {of_rows:,} rows lie outside of the picture or have no area, and no "
            "answer can meet them."
        )
        return [said, *super().notes(items, told)]


# --- answers ----------------------------------------------------------------------------------------------------------


def prediction(item: Item, span: Interval, said: Mapping[int, object]) -> Prediction:
    """Answered boxes by frame of the file, in pixels of the annotation.

    Keys are frames of what is shown or whole seconds (`_is_by_second`); the boxes of `stvg_boxes_seconds` are
    thousandths of the picture.

    Args:
        item: that was answered.
        span: answered time, seconds of what is shown.
        said: boxes as they were written, by key; see `Reading`.

    Raises:
        ValueError: thousandths of a picture whose size the row does not say.
    """
    boxes: Mapping[int, Box]
    if _all_boxes(said):
        boxes = said
    else:  # what is no box counts as a frame without overlap, as in the reward
        boxes = {frame: parsing.box(box) or _NO_BOX for frame, box in said.items()}
    if "boxes_by_second" in item.reward.asks:
        picture = item.answered_size()
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
    first = item.known_clock.first_shown(item.shown)
    start, end = (bound - first for bound in item.frames(span))
    low, high = stvg_boxes.whole_seconds(span)
    by_second = "boxes_by_second" in item.reward.asks
    as_frames = sum(start <= key <= end for key in boxes)
    as_seconds = sum(low <= key <= high for key in boxes)
    if as_frames == len(boxes) == end - start + 1 and not by_second:  # one for each frame
        return False
    if as_frames != as_seconds:
        return as_seconds > as_frames
    return by_second or 0 < len(boxes) == as_seconds == high - low + 1


def _by_frame(item: Item, span: Interval, boxes: Mapping[int, Box]) -> dict[int, Box]:
    """Boxes by frame of the file from boxes by whole second; one outside of the stated time is a frame there."""
    start, end = item.frames(span)
    frames = np.arange(max(start, 0), min(end, item.known_frames() - 1) + 1)
    times = [item.known_clock.seconds(frame) - item.shown for frame in frames.tolist()]
    low, high = stvg_boxes.whole_seconds(span)
    inside = {key: box for key, box in boxes.items() if low <= key <= high}
    there, sides = from_seconds(inside, times, span)
    outside = {item.frames((key, key))[0]: box for key, box in boxes.items() if key not in inside}
    return outside | dict(zip(frames[there].tolist(), sides[there].tolist(), strict=True))


def _all_boxes(boxes: Mapping[int, object]) -> TypeGuard[Mapping[int, Box]]:
    """Whether all values are boxes that `parsing.box` reads, seen at once."""
    try:
        sides = np.array(list(boxes.values()), dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return False
    return sides.shape == (len(boxes), 4) and bool(np.isfinite(sides).all())


# --- clean ------------------------------------------------------------------------------------------------------------


def measure(
    items: Sequence[Tube], said: Predictions, library: Library, repair: bool = True
) -> tuple[Values, list[str]]:
    """Return the table per item, (N,), and what could not be measured.

    m_tIoU is of frames where the annotated tube and the rate are known, of seconds otherwise; m_vIoU never exceeds it.
    m_vIoU and its recalls (strictly above) are plain, and with `_repaired`, unless `repair` is off, as STVG-R1 repairs
    IDs. ID accuracy counts an unknown true ID as missed; for several IDs it is their F1.

    Args:
        items: with their annotated tubes.
        said: what was read from each answer; None for nothing.
        library: of track files, which make a tube of an ID.
        repair: also the metrics with ``_repaired``.
    """
    framed = all(item.boxes is not None and item.fps for item in items)
    table = {"m_tIoU": np.zeros(len(items))}
    notes = []
    ends = ("", "_repaired") if repair else ("",)
    tubes = framed and any(one is not None and (one.tube or one.object_ids) for one in said)
    if not framed:
        notes.append(
            "m_tIoU is of seconds, and m_vIoU is not scored: rows lack annotated boxes or the rate of the video."
        )
    elif not tubes:
        notes.append("m_vIoU is not scored: no answer names an object or boxes.")
    elif any(
        one is not None and one.object_ids and not library.knows(item) for item, one in zip(items, said, strict=True)
    ):
        tubes = False
        notes.append(
            "m_vIoU is not scored: answers are IDs, and rows name no track files; give their folder (--tracks)."
        )
    if tubes:
        table |= {f"m_vIoU{end}": np.zeros(len(items)) for end in ends}
    for k, (item, one) in enumerate(zip(items, said, strict=True)):
        if one is None:
            continue
        if not framed:
            if one.interval is not None:
                table["m_tIoU"][k] = iou_hull([one.interval], [item.intervals[0]])[0]
            continue
        span = frames_of(item, one)
        table["m_tIoU"][k] = _tiou(item, one, span)
        if tubes:
            for end, value in zip(ends, _viou(item, one, span, library, repair), strict=True):
                table[f"m_vIoU{end}"][k] = value
    if tubes:
        for end in ends:
            values = table[f"m_vIoU{end}"]
            table |= {f"vIoU@{r:g}{end}": exceeds(values, r).astype(float) for r in THRESHOLDS}
    if seconds := sum(one is not None and one.by_second for one in said):
        notes.append(f"{seconds:,} answers give boxes by whole second; they are scored in all frames of their time.")
    if any(item.object_id is not None or item.object_ids for item in items):
        table["ID accuracy"] = identity(items, said)
    return table, notes


def lenient(items: Sequence[Tube], said: Predictions, texts: Sequence[str | None]) -> Values:
    """Return m_tIoU of what `lenient.read_time` reads, per item; nothing where it reads what was read.

    Args:
        items: with their annotated tubes.
        said: what was read from each answer; None for nothing.
        texts: replies; None for what is no text.
    """
    times = read_leniently(said, texts)
    if times is None:
        return {}
    strict = zip(said, texts, times, strict=True)
    found = [one if text is None else Prediction((time,)) if time is not None else None for one, text, time in strict]
    return {"m_tIoU (lenient)": measure(items, found, Library())[0]["m_tIoU"]}


def out_of_reach(items: Sequence[Tube]) -> tuple[int, int]:
    """How many annotated boxes no answer can meet, and of how many rows.

    `verl_stvg.data_builders.objects.boxes.out_of_reach` says which these are.

    Rows whose picture has no known size count boxes without an area only.
    """
    counts = [
        out_of_reach_boxes(item.boxes, annotated_size(item.extra) or item.size)
        for item in items
        if item.boxes is not None
    ]
    return sum(counts), sum(count > 0 for count in counts)


def frames_of(item: Tube, one: Prediction) -> Frames | None:
    """First and last frame of the file that an answer covers; None if it says no time.

    Boxes without a time cover those from the first to the last: scripts of papers know no other answer.
    """
    return _stated(item, one) or ((min(one.tube), max(one.tube)) if one.tube else None)


def _stated(item: Tube, one: Prediction) -> Frames | None:
    """First and last frame of the time that an answer states; None if it states none."""
    if one.span is not None:
        return one.span
    return item.frames(one.interval) if one.interval is not None else None


def _states_time(one: Prediction) -> bool:
    return one.span is not None or one.interval is not None


def _tiou(item: Tube, one: Prediction, span: Frames | None) -> float:
    """IoU of the answered frames and those of the annotated tube."""
    if span is None:
        return 0.0
    true = item.true_frames
    if one.tube and not _states_time(one):
        both = sum(true[0] <= frame <= true[1] for frame in one.tube)
        return both / (len(one.tube) + true[1] + 1 - true[0] - both)
    return _frames_iou(span, true)


def _viou(item: Tube, one: Prediction, span: Frames | None, library: Library, repair: bool) -> tuple[float, ...]:
    """vIoU of a tube as it is, and if wanted repaired."""
    true = true_tube(item, one)
    if one.tube:
        frames, ious, either = common(one.arrays, true)
        if span is not None and _states_time(one):
            ious = ious[(span[0] <= frames) & (frames <= span[1])]
            either = _frames_either(span, item.true_frames) + _astray(one.arrays[0], span, item.true_frames)
        return (float(ious.sum()) / either,) * (1 + repair)
    if not one.object_ids or span is None or span[1] < span[0]:
        return (0.0,) * (1 + repair)
    objects = library.objects(item)
    either = _frames_either(span, item.true_frames)
    found = tubes_of(objects, one.object_ids[0], span, repair)
    return tuple(float(common(tube, true)[1].sum()) / either for tube in found)


def _frames_common(a: Frames, b: Frames) -> int:
    return max(0, min(a[1], b[1]) - max(a[0], b[0]) + 1)


def _frames_either(a: Frames, b: Frames) -> int:
    return max(0, a[1] - a[0] + 1) + max(0, b[1] - b[0] + 1) - _frames_common(a, b)


def _astray(frames: np.ndarray, a: Frames, b: Frames) -> int:
    """How many frames are in neither of two ranges."""
    return int(np.count_nonzero(((frames < a[0]) | (frames > a[1])) & ((frames < b[0]) | (frames > b[1]))))


def _frames_iou(a: Frames, b: Frames) -> float:
    return _frames_common(a, b) / _frames_either(a, b)


def true_tube(item: Tube, one: Prediction) -> Arrays:
    """The annotated tube in an answer's pixels: boxes are answered in the annotation's, objects are the file's (it may
    be a smaller copy).

    Raises:
        ValueError: the annotation is of a turned picture; the message names the row.
    """
    boxes = np.zeros((0, 4), np.float32) if item.boxes is None else item.boxes
    if not one.tube and item.size:
        try:
            factors = scales(annotated_size(item.extra), item.size)
        except TurnedBoxes as error:
            raise ValueError(f"row {item.uid}: {error}") from error
        if factors != (1, 1):
            boxes = boxes * np.array(factors * 2, np.float32)
    return np.arange(item.true_frames[0], item.true_frames[1] + 1), boxes


# --- scripts of papers ------------------------------------------------------------------------------------------------

Script = Callable[[Tube, Prediction, Frames, Arrays, Library], tuple[float, float]]


def variants(items: Sequence[Tube], said: Predictions, library: Library, scripts: Mapping[str, Script]) -> Values:
    """Return m_tIoU, m_vIoU and vIoU@R of scripts of papers, under their names, per item; IDs are repaired.

    A script that knows IDs only is left out where no answer has one.

    Args:
        items: with their annotated tubes.
        said: what was read from each answer; None for nothing.
        library: of track files, which make a tube of an ID.
        scripts: by name.
    """
    table: Values = {}
    with_ids = any(one is not None and one.object_ids for one in said)
    scripts = {name: one for name, one in scripts.items() if with_ids or name != "STVG-R1"}
    values = {name: np.zeros((len(items), 2)) for name in scripts}
    for k, (item, one) in enumerate(zip(items, said, strict=True)):
        span = frames_of(item, one) if one is not None else None
        if one is None or span is None or span[1] < span[0] or not (one.tube or one.object_ids):
            continue
        by_id = None if one.tube else tubes_of(library.objects(item), one.object_ids[0], span)[1]
        tube = one.arrays if by_id is None else as_arrays(by_id)
        for name, script in scripts.items():
            values[name][k] = script(item, one, span, tube, library)
    for name, found in values.items():
        counts = reaches if name in ("STVG-R1", "ST-Align") else exceeds
        table |= {f"m_tIoU ({name})": found[:, 0], f"m_vIoU ({name})": found[:, 1]}
        table |= {f"vIoU@{r:g} ({name})": counts(found[:, 1], r).astype(float) for r in THRESHOLDS}
    return table
