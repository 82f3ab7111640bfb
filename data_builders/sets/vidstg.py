"""VidSTG: declarative and interrogative sentences about things in VidOR videos, with the frames and boxes of a tube."""

import os
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from verl_stvg.data_builders.read import AnnotationError, json_items, json_whole
from verl_stvg.data_builders.records import Entries, Problem, Record, is_number, record
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.video.identity import identity

_KINDS = {"captions": "declarative", "questions": "interrogative"}


def read(files: tuple[Path, Path], split: str) -> Entries:
    """JSON list of ``{vid, fps, used_segment, temporal_gt, captions, questions, ...}``, spans being
    ``{begin_fid, end_fid}``; boxes from VidOR's ``<group>/<vid>.json``, a folder.

    Pitfalls: frames are those of the whole video, and the video is shown from ``used_segment.begin_fid`` to
    ``end_fid``, both included, so that times are counted from there; ``temporal_gt.end_fid`` is not included; the frame
    rate differs from video to video; questions do not name their object; an entry may have no question, two of them,
    or be there twice with other sentences. Training and validation use boxes of VidOR's training split, test those of
    its validation split.

    A record is a sentence, captions first; its video is ``<group>/<vid>``, as in VidOR, where the annotation says
    ``vid`` alone. Our assumption: frame k begins at k / fps.
    """
    path, folder = files
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: no such folder; put VidOR's box annotation there")
    boxes_of = {file.stem: file for file in sorted(folder.glob("*/*.json"))}
    counts: dict[str, int] = {}
    for number, entry in json_items(path):
        vid = entry.get("vid") if isinstance(entry, dict) else None
        if not isinstance(vid, str):
            yield Problem(f"entry {number}", f"vid: missing, or not a text: {entry!r:.60}")
            continue
        counts[vid] = counts.get(vid, 0) + 1
        where = f"entry {number} ({vid})"
        if what := _malformed(entry):
            yield Problem(where, what)
            continue
        if vid not in boxes_of:
            yield Problem(where, f"vid: {folder} has no */{vid}.json")
            continue
        for name, kind in _KINDS.items():
            for k, sentence in enumerate(entry[name]):
                yield _record(
                    f"{where}, {name} {k}",
                    f"{vid}/{counts[vid] - 1}/{kind}/{k}",
                    entry,
                    sentence,
                    kind,
                    boxes_of[vid],
                )


def _malformed(entry: Mapping[str, Any]) -> str | None:
    if not is_number(fps := entry.get("fps")) or fps <= 0:
        return f"fps: no frame rate, found {fps!r:.60}"
    for name in ("used_segment", "temporal_gt"):
        span = entry.get(name)
        if not isinstance(span, dict) or any(type(span.get(key)) is not int for key in ("begin_fid", "end_fid")):
            return f"{name}: no begin_fid and end_fid, whole numbers, found {span!r:.60}"
        if span["end_fid"] - span["begin_fid"] < (1 if name == "temporal_gt" else 0):
            return f"{name}: has no frame, {span['begin_fid']} to {span['end_fid']}"
    if missing := [name for name in _KINDS if not isinstance(entry.get(name), list)]:
        return f"{', '.join(missing)}: missing, or not a list"
    return None


def _record(where: str, key: str, entry: dict, sentence: Any, kind: str, file: Path) -> Record | Problem:
    if not isinstance(sentence, dict) or type(target := sentence.get("target_id")) is not int:
        return Problem(where, f"target_id: missing, or no whole number: {sentence!r:.60}")
    begin, end = entry["temporal_gt"]["begin_fid"], entry["temporal_gt"]["end_fid"]
    first, last = entry["used_segment"]["begin_fid"], entry["used_segment"]["end_fid"]
    found = _box_files().track(file, target)
    if isinstance(found, str):
        return Problem(where, found)
    frames, sides = found
    at, to = bisect_left(frames, begin), bisect_left(frames, end)
    there = set(frames[at:to])
    if missing := end - begin - len(there):
        first_missing = next(frame for frame in range(begin, end) if frame not in there)
        return Problem(
            where,
            f"temporal_gt: target_id {target} has no box in {missing} of {end - begin} frames, "
            f"the first of them {first_missing} ({file})",
        )
    if to - at > len(there):
        return Problem(where, f"temporal_gt: target_id {target} has two boxes in one frame ({file})")
    fps, relation = entry["fps"], entry.get("used_relation")
    return record(
        where,
        {"query": "description"},
        key=key,
        video=f"{file.parent.name}/{file.stem}",
        query=sentence.get("description"),
        intervals=(((begin - first) / fps, (end - first) / fps),),
        duration=(last + 1 - first) / fps,
        clip=(first / fps, (last + 1) / fps),
        tube={"first_frame": begin, "boxes": tuple(map(tuple, sides[at:to].tolist()))},
        extra={
            "kind": kind,
            "target_id": target,
            "target_type": sentence.get("type"),
            "category": _category(entry.get("subject/objects"), target),
            "predicate": relation.get("predicate") if isinstance(relation, dict) else None,
            "fps": fps,
            **{name: entry.get(name) for name in ("frame_count", "width", "height")},
        },
    )


def _category(things: Any, target: int) -> Any:
    if not isinstance(things, list):
        return None
    return next((one.get("category") for one in things if isinstance(one, dict) and one.get("tid") == target), None)


class _BoxFiles:
    """Tracks of VidOR's files, each of which is read once, however often and in which order it is asked for.

    The entries of one video are scattered over an annotation, which is read twice, and all tracks together are large.
    So they are kept in a temporary file: VidOR's training split takes about a gigabyte there.
    """

    def __init__(self):
        self._kept = tempfile.TemporaryFile(prefix="verl-stvg-")
        self._known: dict[tuple, dict[int, tuple[int, int]] | str] = {}

    def track(self, file: Path, target: int) -> tuple[list[int], np.ndarray] | str:
        """Frames and boxes xyxy (T, 4) of an object, none where it is not there; or what is wrong with the file.

        Raises:
            AnnotationError: it cannot be read.
        """
        key = (str(file), *identity(file))
        if key not in self._known:
            found = _tracks(file)
            self._known[key] = found if isinstance(found, str) else {k: self._keep(*one) for k, one in found.items()}
            self._kept.flush()
        places = self._known[key]
        if isinstance(places, str):
            return places
        place, count = places.get(target, (0, 0))
        data = os.pread(self._kept.fileno(), 40 * count, place)
        sides = np.frombuffer(data[8 * count :], np.float64)
        return np.frombuffer(data[: 8 * count], np.int64).tolist(), sides.reshape(-1, 4)

    def _keep(self, frames: array, sides: array) -> tuple[int, int]:
        place = self._kept.tell()
        self._kept.write(frames.tobytes() + sides.tobytes())
        return place, len(frames)


@cache
def _box_files() -> _BoxFiles:
    return _BoxFiles()


def _tracks(file: Path) -> dict[int, tuple[array, array]] | str:
    """Frames and sides (xyxy, one after the other) of each object of a VidOR file, or what is wrong with the file."""
    tracks: dict[int, tuple[array, array]] = {}
    found = json_whole(file)
    try:
        for frame, boxes in enumerate(found["trajectories"]):
            for box in boxes:
                frames, sides = tracks.setdefault(box["tid"], (array("q"), array("d")))
                frames.append(frame)
                sides.extend(box["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax"))
    except (KeyError, TypeError, OverflowError) as error:
        return f"{file}: trajectories are not lists of {{tid, bbox: {{xmin, ymin, xmax, ymax}}}} ({error!r})"
    return tracks


def _boxes(name: str) -> Source:
    return Source((f"vidor/{name}", name))


SETS = (
    AnnotationSet(
        "vidstg",
        "VidSTG: 80,684 training, 8,956 val and 10,303 test sentences, 45 % declarative, on user videos (VidOR)",
        "sentences: Guaranteer/VidSTG-Dataset; boxes and videos: VidOR (xdshang.github.io)",
        {
            "train": (Source(("train_annotations.json", "annotations/train_annotations.json")), _boxes("training")),
            "val": (Source(("val_annotations.json", "annotations/val_annotations.json")), _boxes("training")),
            "test": (Source(("test_annotations.json", "annotations/test_annotations.json")), _boxes("validation")),
        },
        read,
        "stvg_r1",
    ),
)
