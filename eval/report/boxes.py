"""Boxes that a page draws on frames: of tracked objects, of the truth, and of answers."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from verl_stvg.data_builders.objects.boxes import Size
from verl_stvg.eval.report import charts
from verl_stvg.eval.report.replies import Reply
from verl_stvg.rows.row import Row
from verl_stvg.video import tracks as track_files
from verl_stvg.video.child import shared_decoder

SHOWN = (112.0, 150.0)
"""Greatest width and height of a frame on a wide page, CSS pixels (`page.html`); outlines are placed for it."""
_GAP, _STEP = 2.4, 3.4  # from an object to its first outline, and from one outline to the next, CSS pixels
_TAG = (6.5, 5.0, 12.0)  # of a label: width of a character, of its margins, and height, CSS pixels

Boxes = Mapping[int | None, Sequence[float]]
"""Boxes xyxy of a frame by object ID; None is the truth's own."""


@dataclass(frozen=True)
class Objects:
    """IDs of a video's objects (none if they are not known), and the boxes of a frame."""

    ids: frozenset[int]
    at: Callable[[int], Boxes]


def objects_of(row: Row, folder: Path) -> Objects | None:
    """Boxes of a clip's objects, from the track file that the row names or the synthetic set's; None without any.

    Args:
        row: with a video.
        folder: of the row's file, beside which the synthetic set's lie.

    Raises:
        TrackError: a track file that cannot be read.
        VideoError: the video of a tube in a part of it cannot be read.
    """
    at: Callable[[int], Mapping[int, Sequence[float]]] | None = None
    ids, entry = frozenset(), row.videos[0]
    beside = folder / "tracks" / f"{Path(entry['video']).stem}.json"
    if entry.get("tracks"):
        tracks = track_files.load(Path(entry["tracks"]))
        ids, at = frozenset(track.object_id for track in tracks.tracks), tracks.boxes
    elif beside.is_file():
        record = json.loads(beside.read_text(encoding="utf-8"))
        by_object = {
            int(found["object_id"]): dict(zip(found["frames"], found["boxes_xyxy"], strict=True))
            for found in record["objects"]
        }
        ids, at = frozenset(by_object), partial(_recorded, by_object)
    tube, first = row.truth.get("boxes") or [], row.truth.get("first_frame") or 0
    if not tube and at is None:
        return None
    if tube and (begin := entry.get("video_start")):
        first = shared_decoder().probe(entry["video"]).clock.in_file(first, begin, row.extra.get("first_frame_of"))
    return Objects(
        ids,
        lambda index: dict(
            [
                *(at(index).items() if at is not None else ()),
                *([(None, tube[index - first])] if first <= index < first + len(tube) else ()),
            ]
        ),
    )


def _recorded(by_object: Mapping[int, Mapping[int, Sequence[float]]], index: int) -> dict[int, Sequence[float]]:
    """Boxes of a frame by object ID, from boxes by frame of each object."""
    return {object_id: boxes[index] for object_id, boxes in by_object.items() if index in boxes}


@dataclass(frozen=True)
class Named:
    """A box that the truth or a voice names in a frame: xyxy, and the IDs of its object, none if it has none."""

    kind: str
    ids: tuple[int, ...]
    box: Sequence[float]


def named_boxes(
    index: int, inside: Sequence[str], replies: Mapping[str, Reply], boxes: Boxes, factors: Size | None
) -> list[Named]:
    """Boxes of a frame: the truth's in the true span, each voice's objects or own boxes in its own span; truth first,
    then the last voice.

    Args:
        index: of the frame, in the file.
        inside: kinds of the voices (and ``truth``) in whose span the frame lies.
        replies: by kind.
        boxes: of the frame.
        factors: in x and y from annotated pixels to the file's, for the truth's and the answers' own boxes; None where
            the two differ by a turn, and own boxes are left out.
    """
    order = [kind for kind in ("truth", *reversed([k for k in replies if k != "truth"])) if kind in inside]
    true_ids = replies["truth"].object_ids if "truth" in replies else ()
    found = []
    for kind in order:
        reply = replies[kind]
        own = boxes.get(None) if kind == "truth" else (reply.tube or {}).get(index)
        if own is not None:
            own = factors and [side * factor for side, factor in zip(own, factors * 2, strict=True)]
        if own is not None:
            found.append(Named(kind, tuple(true_ids[:1]), own))
        else:
            found += [Named(kind, (number,), boxes[number]) for number in reply.object_ids if number in boxes]
    return found


def outlines(named: Sequence[Named], size: tuple[int, int]) -> list[dict]:
    """Outlines of boxes, outside of them so that the object and the number on it are seen, in pixels of the video.

    Those of one object lie one around the other, the truth outermost. At the picture's edge they are moved inside it.
    """
    unit = _pixels(size)
    totals, depth, found = Counter(one.ids for one in named), defaultdict(int), []
    for one in named:
        level = depth[one.ids]
        depth[one.ids] += 1
        out = unit * (_GAP + _STEP * (totals[one.ids] - 1 - level))
        room = (level + 0.5) / (2 * totals[one.ids] + 2)  # of a side that is too short for so many
        across, down = (min(unit * (1.2 + _STEP * level), side * room) for side in size)
        left, right = _cut(one.box[0] - out, one.box[2] + out, across, size[0] - across)
        top, bottom = _cut(one.box[1] - out, one.box[3] + out, down, size[1] - down)
        found.append(
            {
                "kind": one.kind,
                "x": round(left, 1),
                "y": round(top, 1),
                "width": round(right - left, 1),
                "height": round(bottom - top, 1),
            }
        )
    return found


def tags(
    named: Sequence[Named], outlines: Sequence[dict], boxes: Sequence[Sequence[float]], size: tuple[int, int]
) -> list[dict]:
    """The number of each object beside its outlines, where it covers neither an object nor another outline; places in
    per cent of the picture. Where there is no such place it is left out.

    Args:
        named: boxes of the frame.
        outlines: of each of them, in pixels of the video.
        boxes: xyxy of all objects of the frame, which no number may cover.
        size: (width, height) of the video, pixels.
    """
    unit = _pixels(size)
    taken = [tuple(map(float, box)) for box in boxes]
    taken += [(one["x"], one["y"], one["x"] + one["width"], one["y"] + one["height"]) for one in outlines]
    found: dict[tuple[int, ...], dict] = {}
    for one, outline in zip(named, outlines, strict=True):
        if not one.ids or one.ids in found:
            continue
        text = str(one.ids[0])
        width, height = unit * (_TAG[0] * len(text) + _TAG[1]), unit * _TAG[2]
        left, top = outline["x"], outline["y"]
        right, bottom = left + outline["width"], top + outline["height"]
        gap = 1.5 * unit
        for x, y in (
            (min(left, size[0] - width), top - height - gap),
            (min(left, size[0] - width), bottom + gap),
            (right + gap, min(top, size[1] - height)),
            (left - width - gap, min(top, size[1] - height)),
        ):
            place = (x, y, x + width, y + height)
            if min(x, y) >= 0 and place[2] <= size[0] and place[3] <= size[1] and not _meets(place, taken):
                taken.append(place)
                left, top = (charts.percent(at / side) for at, side in zip((x, y), size, strict=True))
                found[one.ids] = {"text": text, "left": left, "top": top}
                break
    return list(found.values())


def _pixels(size: tuple[int, int]) -> float:
    """Pixels of the video under one CSS pixel of the page."""
    return max(side / shown for side, shown in zip(size, SHOWN, strict=True))


def _cut(low: float, high: float, least: float, most: float) -> tuple[float, float]:
    """A side of a box inside its limits, with a length of at least nothing."""
    low = min(max(low, least), most)
    return low, max(min(high, most), low)


def _meets(place: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    return any(
        place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3] for other in others
    )
