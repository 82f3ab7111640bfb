"""CosMo-Cap: captions with times of web videos, as VideoMind trains on them."""

from collections import Counter
from pathlib import Path

from verl_stvg.data_builders.read import json_lines
from verl_stvg.data_builders.records import NUMBER, Entries, Problem, fault, record
from verl_stvg.data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path], split: str) -> Entries:
    """JSON lines ``{vid, query, span: [s, e], duration}``, whose videos are ``<vid>.mp4``.

    Pitfalls: the largest of the sets, whose rows share videos: they are told apart by their number within the video.
    """
    yield from spans(files[0])


def spans(path: Path) -> Entries:
    """Records of JSON lines ``{vid, query, span: [s, e], duration}``, whose videos are ``<vid>.mp4``."""
    counts: Counter[str] = Counter()
    for number, entry in json_lines(path):
        if wrong := fault(entry, {"vid": str, "query": str, "span": list, "duration": NUMBER}):
            yield Problem(f"line {number}", wrong)
            continue
        vid = entry["vid"]
        counts[vid] += 1
        yield record(
            f"line {number} ({vid})",
            {"video": "vid", "intervals.0": "span"},
            key=f"{vid}/{counts[vid] - 1}",
            video=f"{vid}.mp4",
            query=entry["query"],
            intervals=(entry["span"],),
            duration=entry["duration"],
        )


SETS = (
    AnnotationSet(
        "cosmo_cap",
        "CosMo-Cap: 87 thousand training captions in web videos",
        "yeliudev/VideoMind-Dataset",
        {"train": (Source(("anno_cosmo_cap.jsonl",)),)},
        read,
        "videotg_r1",
    ),
)
