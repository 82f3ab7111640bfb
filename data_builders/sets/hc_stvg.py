"""HC-STVG v1 and v2: one sentence about a person in a 20 s film clip, with the times and a box for every frame."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import json_entries
from verl_stvg.data_builders.records import Entries, Problem, Record, boxes_xyxy, is_number, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

SECONDS = 20.0
"""Of every clip: the release says so, and its ``img_num`` is the frame rate times 20."""


def read(files: tuple[Path], split: str) -> Entries:
    """JSON ``{file name: {bbox, st_frame, st_time, ed_time, img_num, ...}}``; queries alone: ``{file name: sentence}``.

    Pitfalls: ``st_frame`` counts from 1, times start with the clip; boxes are x, y, width, height and may overshoot the
    image; the sentence is ``English`` in v2 and ``caption`` in v1; the size is ``img_size`` [height, width, ...] or
    ``width`` and ``height``; many names end in ``.mkv``, and none has its part folder.
    The test split of v2 has sentences and nothing else.

    Left to what comes behind: the number of boxes need not agree with the times; others leave out
    ``10__Gvp-cj3bmIY.mp4`` and ``1_aMYcLyh9OhU.mkv`` as broken; v2 contains v1, re-annotated and split anew, so that a
    mixture of the two must be cleared of both evaluation splits. Our assumption: a clip lasts exactly 20 s.
    """
    for video, entry in json_entries(files[0]):
        where = f"entry {video!r}"
        if isinstance(entry, str) and split == "test":
            yield record(where, key=video, video=video, query=entry, duration=SECONDS)
        elif isinstance(entry, dict):
            yield _annotated(where, video, entry)
        else:
            yield Problem(where, f"is not an object, found {entry!r:.60}")


def _annotated(where: str, video: str, entry: Mapping[str, Any]) -> Record | Problem:
    if missing := [name for name in ("bbox", "st_frame", "st_time", "ed_time", "img_num") if name not in entry]:
        return Problem(where, f"{', '.join(missing)}: missing")
    if "English" not in entry and "caption" not in entry:
        return Problem(where, "English, caption: neither is there")
    if type(entry["st_frame"]) is not int or entry["st_frame"] < 1:
        return Problem(where, f"st_frame: no frame counted from 1, found {entry['st_frame']!r:.60}")
    if not is_number(entry["img_num"]) or entry["img_num"] <= 0:
        return Problem(where, f"img_num: no number of frames, found {entry['img_num']!r:.60}")
    size = entry.get("img_size", [entry.get("height"), entry.get("width")])
    if not isinstance(size, list) or len(size) < 2:
        return Problem(where, f"img_size: not [height, width, ...], found {size!r:.60}")
    return record(
        where,
        {
            "query": "English" if "English" in entry else "caption",
            "intervals.0.0": "st_time",
            "intervals.0.1": "ed_time",
            "tube.boxes": "bbox",
        },
        key=video,
        video=video,
        query=entry.get("English", entry.get("caption")),
        intervals=((entry["st_time"], entry["ed_time"]),),
        duration=SECONDS,
        tube={"first_frame": entry["st_frame"] - 1, "boxes": boxes_xyxy(entry["bbox"])},
        extra={"fps": entry["img_num"] / SECONDS, "img_num": entry["img_num"], "width": size[1], "height": size[0]},
    )


SETS = (
    AnnotationSet(
        "hc_stvg_v1",
        "HC-STVG v1: 4,500 training and 1,160 test sentences, one tube each, on film clips of 20 s",
        "OneDrive links in tzhhhh123/HC-STVG; mirror k-nick/HC-STVG (Hugging Face), anno_v1",
        {
            "train": (Source(("anno_v1/train.json", "train_v1.json", "train.json")),),
            "test": (Source(("anno_v1/test.json", "test_v1.json", "test.json")),),
        },
        read,
        "stvg_r1",
    ),
    AnnotationSet(
        "hc_stvg_v2",
        "HC-STVG v2: 10,131 training and 2,000 val sentences, one tube each, on film clips of 20 s; test without truth",
        "OneDrive links in tzhhhh123/HC-STVG; mirror k-nick/HC-STVG (Hugging Face), anno_v2",
        {
            "train": (Source(("anno_v2/train_v2.json", "train_v2.json", "trainv2.json")),),
            "val": (Source(("anno_v2/val_v2.json", "val_v2.json", "valv2.json")),),
            "test": (Source(("anno_v2/query_v2.json", "query_v2.json")),),
        },
        read,
        "stvg_r1",
    ),
)
