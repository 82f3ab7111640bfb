"""Objects of a whole video, numbered: found every few frames, followed in between, counted once.

A detector and a segmenter see single frames; what makes their masks an object with an ID is decided here. The rules are
those of STVG-R1's released code (``preprocess/dettrack.py``), whose paper promises more than the code does, so there
are two of everything. ``faithful=True`` is the released algorithm. The default is what we think was meant:

======================  ===================================================  ===========================================
what                    ``faithful=True``                                    default
======================  ===================================================  ===========================================
masks that overlap      one map of labels per frame: a later ID cuts its     every object keeps its own mask
                        pixels out of the earlier ones
new masks of a frame    never compared with each other                       compared like old ones, so that an object
                                                                             that is detected twice gets one ID
removed objects         gone from the keyframe only, and only if another     gone from the keyframe on for good (their
                        object begins there; back in the next frame          frames before it stay), and not followed
before the keyframe     nothing                                              followed backwards, where nothing else is
mask at the keyframe    the tracker's, a little smoother than the seed       the seed itself
masks without pixels    use up an ID                                         are dropped
======================  ===================================================  ===========================================

In both, an object that is lost and found again gets a new ID, and an ID is never used twice.

The released code starts the tracker anew, over the rest of the video, whenever something new appears. SAM 2 follows
every object by itself, so that one walk through the video, with objects joining and leaving on the way, gives the same
masks for a fraction of the work; a second walk, from the last keyframe to the first frame, does all that goes
backwards. Frames are read in blocks, and masks are kept as run lengths, so that memory hardly grows with the video.

One difference is in both: the released code looks at frames that went through JPEG files, and this one at the frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco

from verl_stvg.data_builders.objects.detector import Detection, Detector, wanted
from verl_stvg.data_builders.objects.frames import Frames, VideoFrames, walk
from verl_stvg.video.markers import RLE, rle_area
from verl_stvg.video.rle import encode
from verl_stvg.video.tracks import Track, Tracks

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Options:
    """How objects are found and followed; the numbers are those of STVG-R1's code.

    Attributes:
        step: frames from one keyframe to the next; the detector looks at keyframes only, frame 0 is one.
        iou: a new mask that overlaps an object by this much is that object.
        containment: of two masks of which one holds this share of the other, the smaller one goes.
        mode: classes that are wanted, see `detector.wanted`. STVG-R1's code has ``non-person`` if nothing is said,
            which its own main data set (HC-STVG, people only) cannot use; ``person`` is what it must be told there.
        bidirectional: follow an object backwards too, from the keyframe that it is first seen in (the paper says so,
            its code does not). Such masks keep off all objects of earlier keyframes, see `fill`.
        faithful: the released algorithm, as the module's table says; forwards only, whatever ``bidirectional`` says.
        buffer: bytes of decoded frames to hold at once (ours); the larger, the faster backwards.

    Raises:
        ValueError: a step or buffer below 1, or thresholds outside of 0 to 1.
    """

    step: int = 15
    iou: float = 0.4
    containment: float = 0.6
    mode: str | tuple[str, ...] = "person"
    bidirectional: bool = True
    faithful: bool = False
    buffer: int = 256 * 2**20

    def __post_init__(self):
        if self.step < 1 or self.buffer < 1:
            raise ValueError(f"step and buffer must be at least 1, got {self.step} and {self.buffer}")
        if not (0 < self.iou <= 1 and 0 < self.containment <= 1):
            raise ValueError(f"iou and containment must lie in (0, 1], got {self.iou} and {self.containment}")
        wanted([], self.mode)

    def as_json(self) -> dict[str, Any]:
        """What tracks depend on, as it stands in their file."""
        mode = self.mode if isinstance(self.mode, str) else list(self.mode)
        return {key: value for key, value in asdict(self).items() if key != "buffer"} | {"mode": mode}


class Tracker(Protocol):
    """Follows objects through one video, frame by frame, in the order it is given them."""

    def step(self, frame: np.ndarray) -> dict[int, RLE]:
        """Go on to the next frame, uint8 RGB (H, W, 3): masks of the objects seen in it, by ID."""
        ...

    def add(self, object_id: int, mask: RLE) -> RLE:
        """Follow an object from the present frame on, where it has that mask; what the tracker makes of the mask."""
        ...

    def remove(self, object_id: int) -> None:
        """Stop following an object."""
        ...


class Segmenter(Protocol):
    """Boxes to masks in a frame, and masks followed through a video.

    Objects must not influence each other's masks; SAM 2's do not, and the module's two walks rely on it.
    """

    name: str

    def segment(self, frame: np.ndarray, boxes: Sequence[Box]) -> list[RLE]:
        """A mask for each box of a frame, uint8 RGB (H, W, 3); boxes are xyxy in pixels, at least one."""
        ...

    def start(self, height: int, width: int, num_frames: int) -> Tracker:
        """A tracker for a video, before its first frame. It need not see all of its frames.

        Args:
            height: of the video, pixels.
            width: of the video, pixels.
            num_frames: of the video.
        """
        ...


# --- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merged:
    """What becomes of masks that meet.

    Attributes:
        kept: indices of the new masks that are new objects, ascending.
        removed: IDs of the existing objects that go, in the order in which they were found to.
    """

    kept: tuple[int, ...]
    removed: tuple[int, ...]


def merge(
    new: Sequence[RLE],
    existing: Mapping[int, RLE],
    iou: float = 0.4,
    containment: float = 0.6,
    mutual: bool = True,
) -> Merged:
    """Decide which new masks are new objects, and which existing ones they push out.

    One new mask after the other is held against every existing object, in the order given:

    - no pixel in common: nothing follows;
    - IoU at least ``iou``: it is that object, drop it and look no further;
    - else, if one of the two holds at least ``containment`` of the other: if the new one has more pixels, the object is
      to be removed and the search goes on; if not, the new one is dropped and it ends.

    What is to be removed goes even if the new mask was dropped afterwards, and later masks do not meet it any more.

    Args:
        new: masks of a frame.
        existing: masks of the same frame by object ID.
        iou: see above.
        containment: see above.
        mutual: whether a new mask that is kept counts as existing, after the others, for those that follow; it can be
            removed again. In STVG-R1's code it does not.

    Source: STVG-R1, ``preprocess/dettrack.py``.
    """
    present = {(True, number): mask for number, mask in existing.items()}  # whether it is an old one, ID or index
    removed, kept = [], []
    for index, mask in enumerate(new):
        dropped, leaving = _meet(mask, present, iou, containment)
        for old, number in leaving:
            del present[old, number]
            if old:
                removed.append(number)
            else:
                kept.remove(number)
        if not dropped:
            kept.append(index)
            if mutual:
                present[False, index] = mask
    return Merged(tuple(kept), tuple(removed))


def _meet(mask: RLE, present: Mapping, iou: float, containment: float) -> tuple[bool, list]:
    """Whether a new mask is dropped, and the keys of those that it removes."""
    leaving = []
    if not present:
        return False, leaving
    others = list(present.values())
    area, areas = rle_area(mask), [rle_area(other) for other in others]  # pycocotools stops at 255 at once
    union, of_it, of_them = _shares(mask, others)
    for k, key in enumerate(present):
        if union[k] >= iou:
            return True, leaving
        if of_it[k] >= containment or of_them[k] >= containment:
            if area <= areas[k]:
                return True, leaving
            leaving.append(key)
    return False, leaving


def _shares(mask: RLE, others: list[RLE]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The common pixels of a mask and each of the others, over their union, over the mask, and over the other; (N,)."""
    count = len(others)
    return (
        np.asarray(coco.iou([mask], others, [0] * count))[0],
        np.asarray(coco.iou([mask], others, [1] * count))[0],  # a "crowd": over the first one's area
        np.asarray(coco.iou(others, [mask], [1]))[:, 0],
    )


def fill(mask: RLE, existing: Sequence[RLE], iou: float = 0.4, containment: float = 0.6) -> RLE | None:
    """What a mask that was found backwards adds to a frame: its pixels that belong to no existing object.

    None if there are none, or if the mask is one of the existing objects (IoU at least ``iou``, or at least
    ``containment`` of it inside of one): an object that was lost and found again, followed back into its first life,
    would otherwise leave an edge of pixels there under its second ID.

    Args:
        mask: found backwards.
        existing: masks of the same frame; those without pixels do not count.
        iou: least IoU with one of them at which the mask is that object, 0 to 1.
        containment: least part of the mask inside of one of them at which it is that object, 0 to 1.
    """
    others = [other for other in existing if coco.area(other)]
    if others:
        union, of_it, _ = _shares(mask, others)
        if (union >= iou).any() or (of_it >= containment).any():
            return None
        if of_it.any():
            mask = _without(mask, others)
    return mask if coco.area(mask) else None


def paint(below: Mapping[int, RLE], above: Mapping[int, RLE]) -> dict[int, RLE]:
    """A map of labels: each mask without the pixels of those that come after it; what has none left is not in it.

    Args:
        below: by ID, painted first; they must not overlap each other.
        above: by ID, painted one after the other.
    """
    labels = dict(below)
    for number, mask in above.items():
        if coco.area(mask):
            hit = [k for k, other in labels.items() if np.any(coco.iou([mask], [other], [0]))]
            labels |= {k: _without(labels[k], [mask]) for k in hit}
            labels[number] = mask
    return {number: mask for number, mask in labels.items() if coco.area(mask)}


def _without(mask: RLE, others: list[RLE]) -> RLE:
    return encode(coco.decode(mask) & ~coco.decode(coco.merge(others)))


# --- tracking ---------------------------------------------------------------------------------------------------------


@dataclass
class _Object:
    """An object while it is being followed; ``seed`` is its mask in frame ``born``, a keyframe."""

    detection: Detection
    born: int
    seed: RLE
    masks: dict[int, RLE] = field(default_factory=dict)


def track(
    source: Frames | str | Path,
    detector: Detector,
    segmenter: Segmenter,
    options: Options | None = None,
) -> Tracks:
    """Find and follow the objects of a video.

    Args:
        source: path of a video file, or `Frames`.
        detector: boxes of the keyframes.
        segmenter: masks.
        options: default: `Options()`.

    Returns:
        All objects that are seen in some frame; none is no error.

    Raises:
        VideoError: a file that cannot be used.
        ValueError: an unknown class mode.
    """
    options = options or Options()
    frames = VideoFrames(source) if isinstance(source, str | Path) else source
    objects = _forwards(frames, detector, segmenter, options)
    if options.bidirectional and not options.faithful:
        _backwards(frames, segmenter, options, objects)
    tracks = tuple(
        Track(number, one.detection.label, one.detection.score, dict(sorted(one.masks.items())))
        for number, one in objects.items()
        if one.masks
    )
    made_by = {
        "detector": getattr(detector, "name", type(detector).__name__),
        "segmenter": segmenter.name,
        "options": options.as_json(),
    }
    clock = frames.clock
    return Tracks(
        frames.height, frames.width, frames.num_frames, frames.fps, tracks, made_by, times=clock.times, end=clock.end
    )


def _forwards(frames: Frames, detector: Detector, segmenter: Segmenter, options: Options) -> dict[int, _Object]:
    """All objects by ID, ascending, with their masks from the keyframe on."""
    objects: dict[int, _Object] = {}
    tracker = segmenter.start(frames.height, frames.width, frames.num_frames)
    look = _look_faithfully if options.faithful else _look
    for index, frame in walk(frames, options.buffer):
        masks = dict(sorted(tracker.step(frame).items()))
        if options.faithful:
            masks = paint({}, masks)
        if index % options.step == 0:
            found = wanted(detector.detect(frame), options.mode)
            new = segmenter.segment(frame, [one.box for one in found]) if found else []
            masks = look(index, found, new, masks, objects, tracker, options)
        for number, mask in masks.items():
            objects[number].masks[index] = mask
    return objects


def _look(
    index: int,
    found: list[Detection],
    new: list[RLE],
    masks: dict[int, RLE],
    objects: dict[int, _Object],
    tracker: Tracker,
    options: Options,
) -> dict[int, RLE]:
    """Masks of a keyframe once its detections have been taken up; our rules."""
    pairs = [(one, mask) for one, mask in zip(found, new, strict=True) if coco.area(mask)]
    merged = merge([mask for _, mask in pairs], masks, options.iou, options.containment)
    for number in merged.removed:
        tracker.remove(number)
        del masks[number]
    for k in merged.kept:
        number = len(objects) + 1
        objects[number] = _Object(pairs[k][0], index, pairs[k][1])
        tracker.add(number, pairs[k][1])
        masks[number] = pairs[k][1]
    return masks


def _look_faithfully(
    index: int,
    found: list[Detection],
    new: list[RLE],
    masks: dict[int, RLE],
    objects: dict[int, _Object],
    tracker: Tracker,
    options: Options,
) -> dict[int, RLE]:
    """Likewise, by the rules of STVG-R1's code."""
    merged = Merged(tuple(range(len(new))), ())
    if index:
        merged = merge(new, masks, options.iou, options.containment, mutual=False)
    if not merged.kept:
        return masks
    above = {}
    for k in merged.kept:
        number = len(objects) + 1
        objects[number] = _Object(found[k], index, new[k])
        above[number] = tracker.add(number, new[k])
    return paint({number: mask for number, mask in masks.items() if number not in merged.removed}, above)


def _backwards(frames: Frames, segmenter: Segmenter, options: Options, objects: dict[int, _Object]) -> None:
    """Add the masks of all objects before the keyframes that they were born in."""
    last = max((one.born for one in objects.values()), default=0)
    if not last:
        return
    tracker = segmenter.start(frames.height, frames.width, frames.num_frames)
    for index, frame in walk(frames, options.buffer, back_from=last):
        for number, mask in sorted(tracker.step(frame).items()):
            one = objects[number]
            existing = [
                other.masks[index] for other in objects.values() if other.born < one.born and index in other.masks
            ]
            free = fill(mask, existing, options.iou, options.containment)
            if free is not None:
                one.masks[index] = free
        for number, one in objects.items():
            if one.born == index > 0:
                tracker.add(number, one.seed)
