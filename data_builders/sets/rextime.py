"""ReXTime: multiple-choice questions on cause and effect across time, each with the span that shows the answer."""

from pathlib import Path

from verl_stvg.data_builders.read import json_items, json_lines
from verl_stvg.data_builders.records import Entries, Problem, flaw, letters, once, record
from verl_stvg.data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path], split: str) -> Entries:
    """A JSON list of ``{qid, vid, question, options, span: [s, e], ans, duration, ...}``, ``ans`` being a letter; or
    the JSON lines of ReXTime's script, ``{qid, query, duration, vid, relevant_windows: [[s, e]], ans}``.

    ``rextime_val.jsonl``, the truth that the benchmark's script takes, has the questions without their options: its
    rows ask for times (``--template videotg_r1``), and keep the letter for submissions that have one. Pitfalls of
    the list: test is scored by a server, and what its ``span`` and ``ans`` hold is at best a placeholder, so both are
    left out for this split; videos come from two collections, told apart by the length of the id (ActivityNet's has 13
    characters) and kept in ``collection``; ``answer`` is a template ("From <s0> to <e0>, ...") and kept as it is in
    ``answer_text``; 4 val spans end after the video and 2 are empty.
    """
    (path,) = files
    yield from once(_truths(path) if path.suffix == ".jsonl" else _questions(path, split))


def _truths(path: Path) -> Entries:
    """``{qid, query, duration, vid, relevant_windows: [[s, e]], ans}``."""
    for number, entry in json_lines(path):
        if problem := flaw(entry, ("qid", "vid", "query", "relevant_windows", "ans")):
            yield Problem(f"line {number}", problem)
            continue
        yield record(
            f"line {number} ({entry['qid']})",
            {"key": "qid", "video": "vid", "intervals": "relevant_windows", "answer": "ans"},
            key=entry["qid"],
            video=entry["vid"],
            query=entry["query"],
            intervals=entry["relevant_windows"],
            duration=entry.get("duration"),
            answer=entry["ans"],
            extra={"collection": _collection(entry["vid"])},
        )


def _questions(path: Path, split: str) -> Entries:
    known = split != "test"
    required = ("qid", "vid", "question", "options", *(("span", "ans") if known else ()))
    for number, entry in json_items(path):
        if problem := flaw(entry, required):
            yield Problem(f"entry {number}", problem)
            continue
        where = f"entry {number} ({entry['qid']})"
        if known and entry["ans"] not in letters(entry["options"]):
            yield Problem(where, f"ans: is not the letter of an option, found {entry['ans']!r:.60}")
            continue
        yield record(
            where,
            {"key": "qid", "video": "vid", "query": "question", "intervals.0": "span", "answer": "ans"},
            key=entry["qid"],
            video=entry["vid"],
            query=entry["question"],
            intervals=(entry["span"],) if known else (),
            duration=entry.get("duration"),
            options=entry["options"],
            answer=entry["ans"] if known else None,
            extra={
                "collection": _collection(entry["vid"]),
                "answer_text": entry.get("answer"),
                "category": entry.get("category"),
                "source": entry.get("source"),
            },
        )


def _collection(vid: object) -> str:
    return "activitynet" if len(str(vid)) == 13 else "qvhighlights"


SETS = (
    AnnotationSet(
        "rextime",
        "ReXTime: training, 921 val and 2,143 test questions with four options on ActivityNet and QVHighlights videos",
        "ReXTime project (ReXTime/ReXTime); also in yeliudev/VideoMind-Dataset; the truth of test is not public",
        {
            "train": (Source(("rextime_train.json",)),),
            "val": (Source(("rextime_val.json", "rextime_val.jsonl")),),
            "test": (Source(("rextime_test_release.json",)),),
        },
        read,
        "videochat_r1_gqa",
    ),
)
