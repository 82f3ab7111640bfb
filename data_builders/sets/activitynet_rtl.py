"""ActivityNet-RTL: questions on ActivityNet videos that take reasoning, answered by a time span and an explanation."""

import re
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import json_entries, json_items, json_start
from verl_stvg.data_builders.records import Entries, Problem, Record, flaw, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

TIME = re.compile(r"<(\d*\.\d+|\d+\.?)>", re.ASCII)


def read(files: tuple[Path], split: str) -> Entries:
    """Training: ``{video: {duration, QA: [{q, a}]}}``; val: a list of ``vid, question, answer, duration, question_id``.

    Pitfalls: the span is in the answer's text, the first two numbers in angle brackets (``times`` counts them all, the
    text stays in ``answer_text``); some generated training answers have fewer than two, and such an entry is a problem
    and no record, since a training row without an interval would pass for one whose truth is secret; val names videos
    without the ``v_`` that files and training have, and by length this is added (the 11 characters may begin with it).
    """
    (path,) = files
    yield from _annotated(path) if json_start(path) == "[" else _generated(path)


def _generated(path: Path) -> Entries:
    for video, entry in json_entries(path):
        where = f"entry {video!r}"
        if problem := flaw(entry, ("QA",)):
            yield Problem(where, problem)
        elif not isinstance(entry["QA"], list):
            yield Problem(where, f"QA: is not a list, found {entry['QA']!r:.60}")
        else:
            for k, pair in enumerate(entry["QA"]):
                place = f"{where}, question {k}"
                if problem := flaw(pair, ("q", "a")):
                    yield Problem(place, problem)
                else:
                    yield _answered(place, f"{video}/{k}", video, pair["q"], pair["a"], entry.get("duration"), {}, "q")


def _annotated(path: Path) -> Entries:
    counts: dict[str, int] = {}
    for number, entry in json_items(path):
        if problem := flaw(entry, ("vid", "question", "answer")):
            yield Problem(f"entry {number}", problem)
            continue
        vid = entry["vid"]
        video = f"v_{vid}" if isinstance(vid, str) and len(vid) == 11 else vid
        count = counts.get(str(video), 0)
        counts[str(video)] = count + 1
        yield _answered(
            f"entry {number} ({vid})",
            f"{video}/{count}",
            video,
            entry["question"],
            entry["answer"],
            entry.get("duration"),
            {"question_id": entry["question_id"]} if "question_id" in entry else {},
        )


def _answered(
    where: str,
    key: str,
    video: Any,
    question: Any,
    answer: Any,
    duration: Any,
    extra: dict[str, Any],
    name: str = "question",
) -> Record | Problem:
    times = TIME.findall(answer) if isinstance(answer, str) else []
    if len(times) < 2:
        return Problem(where, f"answer: needs two times in angle brackets, has {len(times)}, found {answer!r:.60}")
    return record(
        where,
        {"query": name},
        key=key,
        video=video,
        query=question,
        intervals=(tuple(map(float, times[:2])),),
        duration=duration,
        extra={**extra, "answer_text": answer, "times": len(times)},
    )


SETS = (
    AnnotationSet(
        "activitynet_rtl",
        "ActivityNet-RTL: 33,557 generated training questions on 10,009 videos, some without times, and 229 for val",
        "NVlabs/LITA (LITA-Datasets, temporal_reasoning); also in yeliudev/VideoMind-Dataset; videos: ActivityNet",
        {
            "train": (Source(("activitynet_train_gpt-4-0613_temp_6_f10009.json", "train.json")),),
            "val": (Source(("annot_val_1_q229.json", "val.json")),),
        },
        read,
        "videotg_r1",
    ),
)
