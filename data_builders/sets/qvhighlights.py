"""QVHighlights: moments of vlogs and news clips of two and a half minutes; a query may have many."""

from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import json_lines
from verl_stvg.data_builders.records import NUMBER, Entries, Problem, fault, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

_TEST_WITH_TRUTH = "highlight_test_with_gt.jsonl"
_CLIP = 2  # seconds of an annotated clip


def read(files: tuple[Path], split: str) -> Entries:
    """JSON lines ``{qid, query, duration, vid, relevant_windows: [[s, e], ...]}``.

    Pitfalls: a query has 1 to 25 windows, and every one is kept, in the order of the file; the first file of the test
    split (``highlight_test_release.jsonl``) has no windows, and copies of it an empty or invented placeholder, which is
    not read; since March 2026 ``highlight_test_with_gt.jsonl`` has the true ones. In a test file of any other name
    windows are read where they are the runs of ``relevant_clip_ids``, clips of two seconds. The numbers at the end of
    ``vid`` say which part of a YouTube video the published file is, so there is no clip left to cut. Clip ids and
    saliency scores are not kept.
    """
    (path,) = files
    for number, entry in json_lines(path):
        wanted = {"qid": (int, str), "vid": str, "query": str, "duration": NUMBER}
        known = split != "test" or path.name == _TEST_WITH_TRUTH or _confirmed(entry)
        if wrong := fault(entry, wanted | {"relevant_windows": list} if known else wanted):
            yield Problem(f"line {number}", wrong)
            continue
        where = f"line {number} (qid {entry['qid']})"
        windows = entry["relevant_windows"] if known else ()
        if known and not windows:
            yield Problem(where, "relevant_windows: has no window")
            continue
        yield record(
            where,
            {"video": "vid", "intervals": "relevant_windows"},
            key=f"{entry['vid']}/{entry['qid']}",
            video=f"{entry['vid']}.mp4",
            query=entry["query"],
            intervals=windows,
            duration=entry["duration"],
            extra={"qid": entry["qid"]},
        )


def _confirmed(entry: dict[str, Any]) -> bool:
    """Whether the windows of a line are the runs of its clips, as in all published lines."""
    clips = entry.get("relevant_clip_ids")
    if not isinstance(clips, list) or not clips or any(type(clip) is not int for clip in clips):
        return False
    runs: list[list[int]] = []
    for clip in clips:
        if runs and runs[-1][1] == clip * _CLIP:
            runs[-1][1] += _CLIP
        else:
            runs.append([clip * _CLIP, (clip + 1) * _CLIP])
    return entry.get("relevant_windows") == runs


SETS = (
    AnnotationSet(
        "qvhighlights",
        "QVHighlights: 7,218 training, 1,550 validation and 1,542 test queries",
        "jayleicn/moment_detr; videos also in yeliudev/VideoMind-Dataset",
        {
            "train": (Source(("highlight_train_release.jsonl",)),),
            "val": (Source(("highlight_val_release.jsonl",)),),
            "test": (Source((_TEST_WITH_TRUTH, "highlight_test_release.jsonl")),),
        },
        read,
        "videotg_r1",
    ),
)
