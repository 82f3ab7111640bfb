"""DiDeMo: descriptions of moments in Flickr videos, annotated by several people in steps of five seconds."""

from collections import Counter
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import json_items
from verl_stvg.data_builders.records import Entries, Problem, chosen, fault, record
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.data_builders.sets.activitynet import known_durations

SEGMENT = 5
"""Seconds."""


def read(files: tuple[Path, Path | None], split: str) -> Entries:
    """A JSON list of ``{video, description, times: [[first, last], ...], annotation_id, ...}``; durations beside it.

    Pitfalls: ``times`` are numbers of segments of five seconds, from 0, last included, one pair for each annotator; the
    interval is their mean, from the start of the mean first to the end of the mean last segment, and may end after the
    video, whose last segment is seldom full. VideoMind rounds it to whole seconds and shifts it by up to 2 s at random
    in training; neither happens here. Videos are published as ``<stem>.mp4``, ``<stem>`` being what stands before the
    first dot of ``video``, which also is their name in ``durations.json``.
    """
    path, durations = files
    known = known_durations(durations)
    counts: Counter[str] = Counter()
    for number, entry in json_items(path):
        if wrong := fault(entry, {"video": str, "description": str, "times": list}):
            yield Problem(f"entry {number}", wrong)
            continue
        stem = entry["video"].partition(".")[0]
        where = f"entry {number} ({entry['video']})"
        counts[stem] += 1
        times = entry["times"]
        if not stem:
            yield Problem(where, "video: has nothing before its first dot")
            continue
        if not times or not all(map(_is_pair, times)):
            yield Problem(where, f"times: should be pairs of segment numbers, found {times!r:.60}")
            continue
        first, last = (sum(column) / len(times) for column in zip(*times, strict=True))
        yield record(
            where,
            {"query": "description"},
            key=f"{stem}/{counts[stem] - 1}",
            video=f"{stem}.mp4",
            query=entry["description"],
            intervals=((first * SEGMENT, (last + 1) * SEGMENT),),
            duration=known.get(stem),
            extra=chosen(entry, "annotation_id", "num_segments") | {"annotators": len(times)},
        )


def _is_pair(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(type(n) is int and 0 <= n < 1000 for n in found)


SETS = (
    AnnotationSet(
        "didemo",
        "DiDeMo: 33,005 training, 4,180 validation and 4,021 test descriptions on videos of half a minute",
        "LisaAnne/LocalizingMoments; videos and durations: yeliudev/VideoMind-Dataset",
        {
            split: (Source((f"{split}_data.json",)), Source(("durations.json",), required=False))
            for split in ("train", "val", "test")
        },
        read,
        "videotg_r1",
    ),
)
