"""QVHighlights: moments of vlogs and news clips of two and a half minutes; a query may have many."""

from pathlib import Path

from data_builders.read import json_lines
from data_builders.records import NUMBER, Entries, Problem, fault, record
from data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path | None, ...], split: str) -> Entries:
    """JSON lines ``{qid, query, duration, vid, relevant_windows: [[s, e], ...]}``.

    Pitfalls: a query has 1 to 25 windows, and every one is kept, in the order of the file; the test split has no
    windows, or an empty or invented placeholder, which is not read; the numbers at the end of ``vid`` say which part of
    a YouTube video the published file is, so there is no clip left to cut. Clip ids and saliency scores are not kept.
    """
    (path,) = files
    for number, entry in json_lines(path):
        wanted = {"qid": (int, str), "vid": str, "query": str, "duration": NUMBER}
        if wrong := fault(entry, wanted if split == "test" else wanted | {"relevant_windows": list}):
            yield Problem(f"line {number}", wrong)
            continue
        where = f"line {number} (qid {entry['qid']})"
        windows = () if split == "test" else entry["relevant_windows"]
        if split != "test" and not windows:
            yield Problem(where, "relevant_windows: has no window")
            continue
        yield record(
            where,
            key=f"{entry['vid']}/{entry['qid']}",
            video=f"{entry['vid']}.mp4",
            query=entry["query"],
            intervals=windows,
            duration=entry["duration"],
            extra={"qid": entry["qid"]},
        )


SETS = (
    AnnotationSet(
        "qvhighlights",
        "QVHighlights: 7,218 training, 1,550 validation and 1,542 test queries, the last without ground truth",
        "jayleicn/moment_detr; videos also in yeliudev/VideoMind-Dataset",
        {
            "train": (Source(("highlight_train_release.jsonl",)),),
            "val": (Source(("highlight_val_release.jsonl",)),),
            "test": (Source(("highlight_test_release.jsonl",)),),
        },
        read,
        "videotg_r1",
    ),
)
