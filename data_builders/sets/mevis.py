"""MeViS: expressions about the motion of one or several objects, with their masks in every frame."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from pycocotools import mask as coco

from verl_stvg.data_builders.read import AnnotationError, json_entries, json_whole
from verl_stvg.data_builders.records import Entries, Problem, Record, record
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.video.rle import RLE, MaskError, encoded


def read(files: tuple[Path, Path | None], split: str) -> Entries:
    """``meta_expressions.json`` with videos and expressions, and ``mask_dict.json`` with the masks of every object.

    Pitfalls: an expression may mean several objects, whose masks are joined here in each frame, or, in the second
    release, none; masks are by ``anno_id``, which the expressions have as numbers and the masks as text; frames without
    the object are null. There are no times: the interval reaches from the first mask to the last, in frames. A video is
    a folder of JPEGs ``<vid>/<frame>.jpg`` without frame rate or duration. ``val`` is the release's ``valid_u``, the
    split for scoring at home; ``test`` is its ``valid``, which has expressions only.

    ``mask_dict.json`` is as large as all masks together and in an order of its own: it is read once, and the masks
    that some expression asks for lie in a temporary file until they are needed. Mask k belongs to the k-th frame in the
    order of the names, as in the authors' loader.
    """
    path, masks = files
    videos = json_whole(path)
    videos = videos.get("videos") if isinstance(videos, dict) else None
    if not isinstance(videos, dict):
        raise AnnotationError(f"{path}: has no object 'videos'; download it again")
    if masks is None:
        for video, entry in videos.items():
            yield from _video(video, entry, None)
        return
    with tempfile.TemporaryFile() as store:
        places = _spilled(masks, _asked_for(videos), store)
        for video, entry in videos.items():
            yield from _video(video, entry, lambda one: _fetched(store, places.get(one)))


_NAMES = {"query": "exp"}


def _video(video: str, entry: Any, fetch: Callable[[str], Any] | None) -> Entries:
    where = f"video {video!r}"
    if not isinstance(entry, dict):
        yield Problem(where, f"is not an object, found {entry!r:.60}")
        return
    frames, expressions = entry.get("frames"), entry.get("expressions")
    if not isinstance(frames, list) or not frames:
        yield Problem(where, f"frames: no list of names, found {frames!r:.60}")
        return
    if not isinstance(expressions, dict):
        yield Problem(where, f"expressions: not an object, found {expressions!r:.60}")
        return
    for number, expression in expressions.items():
        at = f"{where}, expression {number!r}"
        if isinstance(expression, dict):
            yield _record(at, video, number, frames, expression, fetch)
        else:
            yield Problem(at, f"is not an object, found {expression!r:.60}")


def _record(
    where: str, video: str, number: str, frames: list, expression: Mapping[str, Any], fetch: Callable[[str], Any] | None
) -> Record | Problem:
    fields: dict[str, Any] = {"key": f"{video}/{number}", "video": video, "query": expression.get("exp")}
    extra: dict[str, Any] = {"expression": number, "num_frames": len(frames)}
    if not fetch:
        return record(where, _NAMES, **fields, extra=extra)
    for name in ("obj_id", "anno_id"):
        if (ids := _ids(expression.get(name))) is None:
            return Problem(where, f"{name}: no list of numbers, found {expression.get(name)!r:.60}")
        extra[name] = ",".join(ids)
    tracks = {one: fetch(one) for one in ids}
    for one, track in tracks.items():
        tracks[one] = track = _read(track, len(frames))
        if isinstance(track, str):
            return Problem(where, f"anno_id {one}: {track}")
    sizes = {tuple(mask["size"]) for track in tracks.values() for mask in track if mask}
    if len(sizes) > 1:
        return Problem(where, f"anno_id: masks of {len(sizes)} sizes, {sorted(sizes)!r:.60}")
    masks = tuple(map(_joined, zip(*tracks.values(), strict=True))) if tracks else (None,) * len(frames)
    seen = [frame for frame, mask in enumerate(masks) if mask]
    times = ((seen[0], seen[-1] + 1),) if seen else ()
    return record(where, _NAMES, **fields, unit="frames", intervals=times, masks=masks, extra=extra)


def _joined(masks: tuple[RLE | None, ...]) -> RLE | None:
    """Union of the masks of one frame."""
    there = [mask for mask in masks if mask]
    if len(there) < 2:
        return there[0] if there else None
    return encoded(coco.merge(there))


def _read(track: Any, num_frames: int) -> list[RLE | None] | str:
    """Masks of an object, compressed, whatever their spelling in the file; or what is wrong with them."""
    if not isinstance(track, list):
        return f"no list of masks in the mask file, found {track!r:.60}"
    if len(track) != num_frames:
        return f"{len(track)} masks for {num_frames} frames"
    masks: list[RLE | None] = []
    for k, mask in enumerate(track):
        size = mask.get("size") if isinstance(mask, dict) else None
        if mask is not None and (not isinstance(size, list) or any(type(side) is not int for side in size)):
            return f"mask {k}: no object with size [height, width], found {mask!r:.60}"
        if mask is not None and not isinstance(mask.get("counts"), str | list):
            return f"mask {k}: counts are no text, found {mask.get('counts')!r:.60}"
        try:
            masks.append(None if mask is None else encoded(mask))
        except MaskError as error:
            return f"mask {k}: {error}"
    return masks


def _ids(found: Any) -> list[str] | None:
    if not isinstance(found, list) or any(type(one) not in (int, str) for one in found):
        return None
    return [str(one) for one in found]


def _asked_for(videos: Mapping[str, Any]) -> set[str]:
    """Every ``anno_id`` that occurs; malformed entries are passed over here and reported where they are read."""
    asked: set[str] = set()
    for entry in videos.values():
        expressions = entry.get("expressions") if isinstance(entry, dict) else None
        for expression in expressions.values() if isinstance(expressions, dict) else ():
            asked.update((_ids(expression.get("anno_id")) if isinstance(expression, dict) else None) or ())
    return asked


def _spilled(path: Path, asked: set[str], store: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Writes masks to a file; returns place and length of each ``anno_id`` there."""
    places = {}
    for one, track in json_entries(path):
        if one in asked:
            text = json.dumps(track).encode()
            places[one] = (store.tell(), len(text))
            store.write(text)
    return places


def _fetched(store: IO[bytes], place: tuple[int, int] | None) -> Any:
    if place is None:
        return None
    store.seek(place[0])
    return json.loads(store.read(place[1]))


SETS = (
    AnnotationSet(
        "mevis",
        "MeViS: 23,051 training, 793 val (valid_u) and 2,236 test (valid, without truth) expressions about motion",
        "henghuiding/MeViS; test is scored by the authors' server",
        {
            "train": (Source(("train/meta_expressions.json",)), Source(("train/mask_dict.json",))),
            "val": (Source(("valid_u/meta_expressions.json",)), Source(("valid_u/mask_dict.json",))),
            "test": (Source(("valid/meta_expressions.json",)), Source(("valid/mask_dict.json",), required=False)),
        },
        read,
        "stvg_r1_multi",
    ),
)
