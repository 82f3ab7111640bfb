"""Which number is the target: an annotated tube, or masks, matched with tracked objects.

STVG-R1 lets every frame of the annotated tube vote for the object whose box overlaps most, and takes the winner however
narrowly it won. Its file is one frame late, because HC-STVG counts frames from 1. Here frames are right, and share,
overlap and fragments of the target are recorded, so that doubtful targets can be seen and, if wanted, left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pycocotools import mask as coco

from reward_fns.measures import box_iou
from verl_stvg.data_builders.objects.boxes import Box as Corners
from verl_stvg.video.markers import rle_area
from verl_stvg.video.rle import RLE, AnyRLE, MaskError, encoded
from verl_stvg.video.tracks import Track, Tracks

Box = Sequence[float]


class Boxed(Protocol):
    """Objects with boxes by frame, as `Tracks` are."""

    def boxes(self, frame: int) -> Mapping[int, Corners]:
        """Boxes of a frame by object ID."""
        ...


@dataclass(frozen=True)
class Match:
    """The object that an annotated tube is about.

    Attributes:
        object_id: the winner.
        share: of the tube's frames that voted for it.
        mean_iou: of its box with the annotated one, over the tube's frames, 0 where it is not seen.
        votes: by object ID, in the order of the first vote.
        fragments: runs of frames of the tube that voted for one object: (object ID, first, last), zero-based.
    """

    object_id: int
    share: float
    mean_iou: float
    votes: Mapping[int, int]
    fragments: tuple[tuple[int, int, int], ...]


def match_tube(
    tracks: Tracks,
    first_frame: int,
    boxes: Sequence[Box],
    min_share: float = 0.0,
    min_iou: float = 0.0,
    faithful: bool = False,
) -> Match | None:
    """The object that most frames of an annotated tube overlap best; None if none overlaps any, or under a threshold.

    The first of equally good objects of a frame gets its vote, and of equally many votes the object that had one first
    (STVG-R1, ``preprocess/trainjson.py``).

    Args:
        tracks: of the video; those that are displayed, if the model is to see them.
        first_frame: zero-based, of the tube; of the file, as in a `Record` and unlike in a row.
        boxes: xyxy, of consecutive frames.
        min_share: least share of the winner; the paper has no threshold.
        min_iou: least mean IoU of the winner; the paper has no threshold.
        faithful: as released: one frame late, and with a pixel added to every width and height.
    """
    overlaps = []
    for k, box in enumerate(boxes):
        found = tracks.boxes(first_frame + k + faithful)
        overlaps.append({number: tube_iou(box, other, faithful) for number, other in found.items()})
    voted = [max(ious, key=ious.__getitem__) if ious and max(ious.values()) > 0 else None for ious in overlaps]
    votes: dict[int, int] = {}
    for number in voted:
        if number is not None:
            votes[number] = votes.get(number, 0) + 1
    if not votes:
        return None
    winner = max(votes, key=votes.__getitem__)
    share = votes[winner] / len(boxes)
    mean_iou = sum(ious.get(winner, 0.0) for ious in overlaps) / len(boxes)
    if share < min_share or mean_iou < min_iou:
        return None
    return Match(winner, share, mean_iou, votes, tuple(_runs(voted, first_frame)))


def tube_iou(annotated: Box, found: Box, faithful: bool = False) -> float:
    """IoU of an annotated box with an object's, both xyxy with continuous corners.

    Args:
        annotated: as the set says it.
        found: of `Tracks.boxes`.
        faithful: STVG-R1's way: the object's last pixel instead of its far edge, and 1 added to all widths and heights.
    """
    if faithful:  # one pixel is taken off the object's far edge, and 1 is added to it again
        annotated = (annotated[0], annotated[1], annotated[2] + 1, annotated[3] + 1)
    return box_iou(annotated, found)


def match_masks(
    tracks: Tracks, masks: Sequence[AnyRLE | None], first_frame: int = 0, share: float = 0.5
) -> dict[int, float]:
    """The objects that annotated masks are about, which may be several: those that lie within them. By ID, their share.

    Args:
        tracks: of the video.
        masks: of consecutive frames, of all targets together (MeViS); None where there is none.
        first_frame: zero-based, of the masks.
        share: least part of an object's pixels, over all its frames, that lies within the masks. Ours.

    Raises:
        MaskError: an annotated mask is malformed, or of another size than the video; the message says in which frame.
    """
    wanted: dict[int, RLE] = {}
    for frame, mask in enumerate(masks, first_frame):
        if mask is None:
            continue
        try:
            wanted[frame] = encoded(mask)
        except MaskError as error:
            raise MaskError(f"annotated mask of frame {frame}: {error}") from error
        if wanted[frame]["size"] != [tracks.height, tracks.width]:
            height, width = wanted[frame]["size"]
            size = f"{width}x{height}, and the tracked video {tracks.width}x{tracks.height}"
            raise MaskError(f"annotated mask of frame {frame} is {size}; track the video at the size of its masks")
    found = {}
    for track in tracks.tracks:
        inside = sum(_common(mask, wanted[frame]) for frame, mask in track.masks.items() if frame in wanted)
        part = inside / sum(map(rle_area, track.masks.values()))
        if part >= share and part > 0:
            found[track.object_id] = part
    return found


def size_filter(tracks: Tracks, ratio: float = 1 / 3, per_label: bool = False, hysteresis: float = 0.0) -> Tracks:
    """Hide objects in frames in which they are small beside the largest one.

    STVG-R1 keeps an object of a frame if it has at least a third of the largest one's pixels, whatever their classes;
    its paper says per class. Sizes that change around the limit make numbers flicker.

    Args:
        tracks: of the video.
        ratio: of the largest object's pixels.
        per_label: beside the largest object of the same class only.
        hysteresis: 0 to 1; an object that is shown stays until it falls below ``ratio * (1 - hysteresis)``.

    Returns:
        the tracks without the hidden masks; objects that are never shown are left out.
    """
    frames = sorted({frame for track in tracks.tracks for frame in track.masks})
    labels = {track.object_id: track.label if per_label else None for track in tracks.tracks}
    shown: dict[int, set[int]] = {}
    for frame in frames:
        found = {number: rle_area(mask) for number, mask in tracks.at(frame).items()}
        largest: dict[str | None, int] = {}
        for number, area in found.items():
            largest[labels[number]] = max(area, largest.get(labels[number], 0))
        before = shown.get(frame - 1, set())
        limits = {number: ratio * (1 - hysteresis) if number in before else ratio for number in found}
        shown[frame] = {n for n, area in found.items() if area >= limits[n] * largest[labels[n]] - 1e-9}
    kept = []
    for track in tracks.tracks:
        masks = {frame: mask for frame, mask in track.masks.items() if track.object_id in shown[frame]}
        if masks:
            kept.append(Track(track.object_id, track.label, track.score, masks))
    filtered = {"ratio": ratio, "per_label": per_label, "hysteresis": hysteresis}
    return replace(tracks, tracks=tuple(kept), made_by={**tracks.made_by, "filter": filtered})


def tube_of(tracks: Boxed, object_id: int, first: int, last: int, repair: bool = False) -> dict[int, Corners]:
    """Boxes of an object by frame, xyxy: from its ID back to a tube.

    Args:
        tracks: of the video; unfiltered, so that an object keeps its tube where its number was hidden.
        object_id: as the model answered; there need not be such an object.
        first: zero-based frame.
        last: zero-based frame, included.
        repair: where the object is not seen, take what STVG-R1's evaluation takes: of the frame's objects the one that
            overlaps the last box most, else the largest; in a frame without objects the last box; before it is first
            seen, by the nearest frame in which it is; and the largest object of each frame if it never is. Without,
            frames in which it is not seen are left out.
    """
    by_frame = {frame: tracks.boxes(frame) for frame in range(first, last + 1)}
    own = {frame: boxes[object_id] for frame, boxes in by_frame.items() if object_id in boxes}
    if not repair:
        return own
    tube: dict[int, Corners] = {}
    current = seen = None
    for frame, boxes in by_frame.items():
        if frame in own:
            tube[frame] = current = seen = own[frame]
        elif current is not None:
            tube[frame] = _nearest(current, boxes) or (_largest(boxes) if boxes else seen or current)
        elif own:
            reference = own[min(own, key=lambda other: abs(other - frame))]
            tube[frame] = current = _nearest(reference, boxes) or reference
        elif boxes:
            tube[frame] = _largest(boxes)
    return tube


def _nearest(reference: Corners, boxes: Mapping[int, Corners]) -> Corners | None:
    """The box that overlaps a reference most; None if none does."""
    ious = {number: tube_iou(reference, box) for number, box in boxes.items()}
    best = max(ious, key=ious.__getitem__, default=None)
    return boxes[best] if best is not None and ious[best] > 0 else None


def _largest(boxes: Mapping[int, Corners]) -> Corners:
    return max(boxes.values(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))


def _common(a: RLE, b: RLE) -> int:
    """Pixels that two masks share."""
    return int(coco.area(coco.merge([a, b], intersect=True)))


def _runs(voted: Sequence[int | None], first_frame: int) -> Iterator[tuple[int, int, int]]:
    start = 0
    for k in range(1, len(voted) + 1):
        if k == len(voted) or voted[k] != voted[start]:
            if (number := voted[start]) is not None:
                yield number, first_frame + start, first_frame + k - 1
            start = k
