"""Spatio-temporal grounding: from an answered ID, or answered boxes, to a tube, and what the tube is worth.

An ID becomes a tube through the tracks of its video, unfiltered if they are given, because an object keeps its tube
where its number was hidden. Plain, a frame in which the object is not seen counts as answered without a box; repaired,
it gets the box that STVG-R1's evaluation would take. Frames that are answered outside of the video count as well.

Answered boxes have numbers of frames in what is shown, or whole seconds as OneThinker's have; `items.read_answer` turns
both into frames of the file. All frames of the answered time and all frames with a box count as answered, and boxes are
compared within the answered time. Boxes without a time answer the frames that they name, and no others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from reward_fns.measures import set_f1
from verl_stvg.data_builders.objects.boxes import TurnedBoxes, annotated_size, scales
from verl_stvg.data_builders.objects.boxes import out_of_reach as out_of_reach_boxes
from verl_stvg.data_builders.objects.target import tube_of
from verl_stvg.eval.benchmarks.items import Interval, Item, Prediction
from verl_stvg.eval.benchmarks.temporal import Values, read_leniently
from verl_stvg.eval.metrics import tube_scripts
from verl_stvg.eval.metrics.temporal import exceeds, iou_hull, reaches
from verl_stvg.eval.metrics.tubes import THRESHOLDS, Box, as_arrays, common
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.tracks import TrackError, Tracks, find_track, load

HELD_MASKS = 500_000
"""Masks of track files that are held at once, about 0.3 GB."""
_FAR = 1e9  # seconds; beyond it only the number of digits grows

Frames = tuple[int, int]
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass
class Objects:
    """Objects of one video, their boxes made when they are asked for.

    Attributes:
        tracks: of the video.
    """

    tracks: Tracks
    _boxes: dict[int, dict[int, Box]] = field(default_factory=dict)

    @cached_property
    def num_masks(self) -> int:
        """Masks of all objects in all frames."""
        return sum(len(track.masks) for track in self.tracks.tracks)

    def of(self, object_id: int) -> dict[int, Box]:
        """Boxes of an object by frame; none if there is no such object."""
        if object_id not in self._boxes:
            track = next((one for one in self.tracks.tracks if one.object_id == object_id), None)
            self._boxes[object_id] = _boxes(track.masks) if track is not None else {}
        return self._boxes[object_id]

    def around(self, object_id: int) -> "_Around":
        """What `tube_of` needs to know of the video to follow an object."""
        return _Around(self, object_id)


@dataclass(frozen=True)
class _Around:
    """Boxes of a frame: the object's own where it is seen, else those of all others, which a repair chooses from."""

    objects: Objects
    object_id: int

    def boxes(self, frame: int) -> dict[int, Box]:
        own = self.objects.of(self.object_id)
        return {self.object_id: own[frame]} if frame in own else _boxes(self.objects.tracks.at(frame))


def _boxes(masks: Mapping[int, Mapping]) -> dict[int, Box]:
    """Boxes xyxy of masks that have a pixel, as `Tracks.boxes` gives them, many at a time."""
    if not masks:
        return {}
    found = coco.toBbox(list(masks.values()))
    found[:, 2:] += found[:, :2]
    return {key: tuple(box) for key, box in zip(masks, found.tolist(), strict=True) if box[2] > box[0]}


@dataclass
class Library:
    """Track files of a benchmark's videos. Scores are made in several passes over the rows, so those that were asked
    for last are held, as many as have `HELD_MASKS` masks together.

    Attributes:
        folder: of the track files; None takes those that the rows name.
    """

    folder: Path | None = None
    _held: dict[Path, Objects] = field(default_factory=dict)
    _masks: int = 0

    def knows(self, item: Item) -> bool:
        """Whether an item has a track file to look for."""
        return self.path(item) is not None

    def path(self, item: Item) -> Path | None:
        """Where an item's track file should be."""
        return find_track(self.folder, item.video) if self.folder is not None else item.tracks

    def objects(self, item: Item) -> Objects:
        """Objects of an item's video.

        Tracks have to fit what the row says of its file: size, number of frames and when they appear. Nothing is asked
        about the content, so that tracks of a copy serve, if its pictures are as large and as many.

        Raises:
            ValueError: the file cannot be read, or is of another video; the message names the row.
        """
        path = self.path(item)
        found = self._held.pop(path, None)
        if found is None:
            try:
                found = Objects(load(path))
            except ValueError as error:
                raise ValueError(f"row {item.uid}: {error}") from error
            self._masks += found.num_masks
        self._held[path] = found
        while len(self._held) > 1 and self._masks > HELD_MASKS:
            self._masks -= self._held.pop(next(iter(self._held))).num_masks
        tracks = found.tracks
        if item.size is not None and (tracks.width, tracks.height) != item.size:
            raise ValueError(
                f"row {item.uid}: {path} is of a video of {tracks.width}x{tracks.height}, the row's has "
                f"{item.size[0]}x{item.size[1]}; give the folder of the row's videos with --tracks"
            )
        if item.num_frames and item.size and item.fps:
            unknown = item.times is None and item.file_end is not None  # rows whose frames have no numbers leave it out
            times, end = (tracks.times, tracks.end) if unknown else (item.times, item.file_end)
            try:
                tracks.check(VideoInfo(item.num_frames, item.fps, *item.size, times, end))
            except TrackError as error:
                raise ValueError(
                    f"row {item.uid}: {path}: {error}, or, if the row is older than the video or this program, build "
                    "the rows again"
                ) from error
        return found


# --- clean ------------------------------------------------------------------------------------------------------------


def measure(
    items: Sequence[Item], said: Sequence[Prediction | None], library: Library, repair: bool = True
) -> tuple[Values, list[str]]:
    """Return the table per item, (N,), and what could not be measured.

    m_tIoU is of frames where the annotated tube and the rate are known, of seconds otherwise; m_vIoU never exceeds it.
    m_vIoU and its recalls (strictly above) are plain, and with `_repaired`, unless `repair` is off, as STVG-R1 repairs
    IDs. ID accuracy counts an unknown true ID as missed; for several IDs it is their F1.
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


def lenient(items: Sequence[Item], said: Sequence[Prediction | None], texts: Sequence[str | None]) -> Values:
    """Return m_tIoU of what `lenient.read_time` reads, per item; nothing where it reads what was read."""
    times = read_leniently(said, texts)
    if times is None:
        return {}
    strict = zip(said, texts, times, strict=True)
    found = [one if text is None else Prediction((time,)) if time is not None else None for one, text, time in strict]
    return {"m_tIoU (lenient)": measure(items, found, Library())[0]["m_tIoU"]}


def out_of_reach(items: Sequence[Item]) -> tuple[int, int]:
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


def identity(items: Sequence[Item], said: Sequence[Prediction | None]) -> np.ndarray:
    """Whether the answered ID is the true one, (N,), or the F1 of several."""
    found = np.zeros(len(items))
    for k, (item, one) in enumerate(zip(items, said, strict=True)):
        true = item.object_ids or ((item.object_id,) if item.object_id is not None else ())
        found[k] = set_f1(one.object_ids, true) if one is not None else 0.0
    return found


def frames_of(item: Item, one: Prediction) -> Frames | None:
    """First and last frame of the file that an answer covers; None if it says no time.

    Boxes without a time cover those from the first to the last: scripts of papers know no other answer.
    """
    return _stated(item, one) or ((min(one.tube), max(one.tube)) if one.tube else None)


def _stated(item: Item, one: Prediction) -> Frames | None:
    """First and last frame of the time that an answer states; None if it states none."""
    if one.span is not None:
        return one.span
    return item.frames(one.interval) if one.interval is not None else None


def _states_time(one: Prediction) -> bool:
    return one.span is not None or one.interval is not None


def _tiou(item: Item, one: Prediction, span: Frames | None) -> float:
    """IoU of the answered frames and those of the annotated tube."""
    if span is None:
        return 0.0
    true = item.true_frames
    if one.tube and not _states_time(one):
        both = sum(true[0] <= frame <= true[1] for frame in one.tube)
        return both / (len(one.tube) + len(item.boxes) - both)
    return _frames_iou(span, true)


def _viou(item: Item, one: Prediction, span: Frames | None, library: Library, repair: bool) -> tuple[float, ...]:
    """vIoU of a tube as it is, and if wanted repaired."""
    true = _true(item, one)
    if one.tube:
        frames, ious, either = common(one.arrays, true)
        if _states_time(one):
            ious = ious[(span[0] <= frames) & (frames <= span[1])]
            either = _frames_either(span, item.true_frames) + _astray(one.arrays[0], span, item.true_frames)
        return (float(ious.sum()) / either,) * (1 + repair)
    if not one.object_ids or span is None or span[1] < span[0]:
        return (0.0,) * (1 + repair)
    objects = library.objects(item)
    either = _frames_either(span, item.true_frames)
    found = tubes_of(objects, one.object_ids[0], span, repair)
    return tuple(float(common(tube, true)[1].sum()) / either for tube in found)


def tubes_of(objects: Objects, object_id: int, span: Frames, repair: bool = True) -> tuple[dict[int, Box], ...]:
    """Boxes of an object in frames of the video, as they are and if wanted repaired."""
    first, last = max(span[0], 0), min(span[1], objects.tracks.num_frames - 1)
    own = objects.of(object_id)
    plain = {frame: own[frame] for frame in range(first, last + 1) if frame in own}
    if not repair:
        return (plain,)
    if len(plain) == max(0, last - first + 1):
        return plain, plain
    return plain, tube_of(objects.around(object_id), object_id, first, last, repair=True)


def _frames_common(a: Frames, b: Frames) -> int:
    return max(0, min(a[1], b[1]) - max(a[0], b[0]) + 1)


def _frames_either(a: Frames, b: Frames) -> int:
    return max(0, a[1] - a[0] + 1) + max(0, b[1] - b[0] + 1) - _frames_common(a, b)


def _astray(frames: np.ndarray, a: Frames, b: Frames) -> int:
    """How many frames are in neither of two ranges."""
    return int(np.count_nonzero(((frames < a[0]) | (frames > a[1])) & ((frames < b[0]) | (frames > b[1]))))


def _frames_iou(a: Frames, b: Frames) -> float:
    return _frames_common(a, b) / _frames_either(a, b)


# --- scripts of papers ------------------------------------------------------------------------------------------------

Script = Callable[[Item, Prediction, Frames, Arrays, Library], tuple[float, float]]


def variants(
    items: Sequence[Item], said: Sequence[Prediction | None], library: Library, scripts: Mapping[str, Script]
) -> Values:
    """Return m_tIoU, m_vIoU and vIoU@R of scripts of papers, under their names, per item; IDs are repaired.

    A script that knows IDs only is left out where no answer has one.
    """
    table: Values = {}
    with_ids = any(one is not None and one.object_ids for one in said)
    scripts = {name: one for name, one in scripts.items() if with_ids or name != "STVG-R1"}
    values = {name: np.zeros((len(items), 2)) for name in scripts}
    for k, (item, one) in enumerate(zip(items, said, strict=True)):
        span = frames_of(item, one) if one is not None else None
        if span is None or span[1] < span[0] or not (one.tube or one.object_ids):
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


def challenge(item: Item, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """HC-STVG challenge."""
    return tube_scripts.hcstvg_challenge(tube, span, _true(item, one), item.true_frames)


def tubedetr(item: Item, one: Prediction, span: Frames, tube: Arrays, library: Library, shift: int = 0):
    """TubeDETR; `shift` of `tube_scripts.tubedetr`."""
    first, end = _nearest_frames(item)
    sampled = tube_scripts.sampled_frames(first, end - 1, item.fps, times=item.times)
    true_span = item.true_frames[0], item.true_frames[1] + 1
    return tube_scripts.tubedetr(tube, (span[0], span[1] + 1), _true(item, one), true_span, sampled, shift)[:2]


def tubedetr_hcstvg(item: Item, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """TubeDETR on HC-STVG, whose frames it takes for zero-based."""
    return tubedetr(item, one, span, tube, library, shift=1)


def cgstvg(item: Item, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """CG-STVG."""
    return tube_scripts.cgstvg(tube, (span[0], span[1] + 1), _true(item, one), item.true_frames)[:2]


def stvg_r1(item: Item, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """STVG-R1 on HC-STVG, whose frames it takes for zero-based; 0 for answers without an ID."""
    if not one.object_ids or one.interval is None:
        return 0.0, 0.0
    objects, true = library.objects(item), item.intervals[0]
    start, end = (min(time, _FAR) for time in one.interval)
    around = objects.around(one.object_ids[0])
    place = item.clock.place
    low = max(int(place(max(start, true[0]))), 0)
    high = min(int(place(min(end, true[1]))), objects.tracks.num_frames - 1)
    seen = {
        frame: {k: (box[0], box[1], box[2] - 1, box[3] - 1) for k, box in around.boxes(frame).items()}
        for frame in range(low, high + 1)
    }
    return tube_scripts.stvg_r1(one.object_ids[0], (start, end), _true(item, one), true, seen, item.fps, 1, place)


def st_align(item: Item, one: Prediction, span: Frames, tube: Arrays, library: Library):
    """ST-Align's STVG task: 100 frames of the clip; seconds become parts of the clip."""
    clip = item.extra["split_first"], item.extra["split_last"]
    sampled = tube_scripts.st_align_frames(*clip)
    there, true = (tuple(side[np.isin(boxes[0], sampled)] for side in boxes) for boxes in (tube, _true(item, one)))
    times: Interval = one.interval or tuple(item.clock.seconds(k) - item.shown for k in (span[0], span[1] + 1))
    parts = [item.span(time) / (clip[1] - clip[0]) for time in times]
    return tube_scripts.st_align(there, parts, true, item.true_frames, clip)[:2]


def _true(item: Item, one: Prediction) -> Arrays:
    """The annotated tube in an answer's pixels: boxes are answered in the annotation's, objects are the file's (it may
    be a smaller copy).

    Raises:
        ValueError: the annotation is of a turned picture; the message names the row.
    """
    boxes = item.boxes
    if not one.tube and item.size:
        try:
            factors = scales(annotated_size(item.extra), item.size)
        except TurnedBoxes as error:
            raise ValueError(f"row {item.uid}: {error}") from error
        if factors != (1, 1):
            boxes = boxes * np.array(factors * 2, np.float32)
    return np.arange(item.true_frames[0], item.true_frames[1] + 1), boxes


def _nearest_frames(item: Item) -> Frames:
    """Frames that are shown: the first, and the one after the last."""
    first, last = item.frames((0.0, item.duration))
    return first, last + 1
