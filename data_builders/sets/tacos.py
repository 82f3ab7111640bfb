"""TACoS: sentences on cooking videos of several minutes, recorded by a fixed camera."""

from collections import Counter
from pathlib import Path

from data_builders.read import json_lines
from data_builders.records import NUMBER, Entries, Problem, chosen, fault, record
from data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path | None, ...], split: str) -> Entries:
    """JSON lines ``{vid, query, duration, relevant_windows: [[s, e]]}``, the form of QVHighlights.

    Pitfalls: the video of ``vid`` is that of one camera of several, ``<vid>-cam-002.mp4``; there is exactly one
    window; sentences occur more than once in a video, with other times.
    """
    (path,) = files
    wanted = {"vid": str, "query": str, "duration": NUMBER, "relevant_windows": list}
    counts: Counter[str] = Counter()
    for number, entry in json_lines(path):
        if wrong := fault(entry, wanted):
            yield Problem(f"line {number}", wrong)
            continue
        vid, windows = entry["vid"], entry["relevant_windows"]
        where = f"line {number} ({vid})"
        counts[vid] += 1
        if len(windows) != 1:
            yield Problem(where, f"relevant_windows: should be one window, found {len(windows)}")
            continue
        yield record(
            where,
            key=f"{vid}/{counts[vid] - 1}",
            video=f"{vid}-cam-002.mp4",
            query=entry["query"],
            intervals=windows,
            duration=entry["duration"],
            extra=chosen(entry, "qid"),
        )


SETS = (
    AnnotationSet(
        "tacos",
        "TACoS: 10,146 training, 4,589 validation and 4,083 test sentences on 127 cooking videos",
        "yeliudev/VideoMind-Dataset",
        {split: (Source((f"{split}.jsonl",)),) for split in ("train", "val", "test")},
        read,
        "videotg_r1",
    ),
)
