"""NExT-GQA: multiple-choice questions on everyday videos, each with all the segments that show the answer."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import AnnotationError, csv_rows, json_items, json_whole
from verl_stvg.data_builders.records import Entries, Problem, flaw, letters, once, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

OPTIONS = ("a0", "a1", "a2", "a3", "a4")
COLUMNS = ("video_id", "qid", "question", "answer", *OPTIONS, "type")
LISTED = ("video", "question", "options", "glue", "answer")


def read(files: tuple[Path, Path | None, Path | None], split: str) -> Entries:
    """Questions of a CSV file (``video_id, qid, question, answer, a0`` to ``a4, type``) with segments and video names
    beside it, or VideoChat-R1's JSON list of both (``video, question, options, glue, answer``).

    Pitfalls: the CSV gives the answer as text, and the first equal option is taken (``matching_options`` counts them:
    2 for one test question); 36 test segments start at -0.1 or -0.2 and 3 of val end after the duration, which is in
    whole seconds; a file name is the mapped one (VidOR's folder and id), not ``video_id``; ``qid`` is unique within a
    video only; there are no segments for the training questions, VideoChat-R1 trains on val.
    """
    path, segments, names = files
    if path.suffix == ".json":
        yield from _listed(json_items(path))
        return
    if segments is None or names is None:
        name = f"gsub_{split}.json" if segments is None else "map_vid_vidorID.json"
        raise AnnotationError(f"{path}: needs {name} beside it; download it from where the questions are")
    yield from once(_questions(path, segments, names))


def _questions(path: Path, segments: Path, names: Path) -> Entries:
    located, mapped = _table(segments), _table(names)
    for number, row in csv_rows(path, COLUMNS):
        video, qid = row["video_id"], row["qid"]
        where = f"line {number} ({video}), question {qid}"
        if None in row:
            yield Problem(where, f"more fields than the header: {row[None]!r:.60}")
        elif problem := flaw(row, COLUMNS):
            yield Problem(where, problem)
        elif not isinstance(mapped.get(video), str):
            yield Problem(where, f"video_id: {names.name} has no video for it, found {mapped.get(video)!r:.60}")
        elif problem := flaw(located.get(video), ("location",)):
            yield Problem(where, f"{segments.name}: entry of the video: {problem}")
        elif not (intervals := _segments(located[video]["location"], qid)):
            yield Problem(where, f"{segments.name}: no segments of the question")
        else:
            options = [row[name].strip() for name in OPTIONS]
            answer = row["answer"].strip()
            if answer not in options:
                yield Problem(where, f"answer: is none of the options, found {answer!r:.60}")
                continue
            yield record(
                where,
                {
                    "video": f"{names.name}: {video}",
                    "query": "question",
                    "intervals": f"{segments.name}: location",
                    "duration": f"{segments.name}: duration",
                    **{f"options.{k}": name for k, name in enumerate(OPTIONS)},
                },
                key=f"{video}/{qid}",
                video=mapped[video],
                query=row["question"],
                intervals=intervals,
                duration=located[video].get("duration"),
                options=options,
                answer=letters(options)[options.index(answer)],
                extra={
                    "type": row["type"],
                    "answer_text": row["answer"],
                    "matching_options": options.count(answer),
                    "fps": located[video].get("fps"),
                },
            )


def _listed(items: Iterator[tuple[int, Any]]) -> Entries:
    counts: dict[str, int] = {}
    for number, item in items:
        if problem := flaw(item, LISTED):
            yield Problem(f"entry {number}", problem)
            continue
        where = f"entry {number} ({item['video']})"
        count = counts.get(str(item["video"]), 0)
        counts[str(item["video"])] = count + 1
        options, answer = item["options"], re.fullmatch(r"\(([A-Z])\)", str(item["answer"]).strip())
        if not answer or answer[1] not in letters(options):
            yield Problem(where, f"answer: is not the letter of an option in brackets, found {item['answer']!r:.60}")
        elif unmarked := [
            option
            for option, letter in zip(options, letters(options), strict=False)
            if not isinstance(option, str) or not option.startswith(f"({letter})")
        ]:
            yield Problem(where, f"options: is not marked with its letter, found {unmarked[0]!r:.60}")
        elif not item["glue"]:
            yield Problem(where, "glue: no segments of the question")
        else:
            yield record(
                where,
                {"query": "question", "intervals": "glue"},
                key=f"{item['video']}/{count}",
                video=item["video"],
                query=item["question"],
                intervals=item["glue"],
                duration=item.get("duration"),
                options=[option[3:] for option in options],
                answer=answer[1],
                extra={name: item[name] for name in ("id", "type") if name in item},
            )


def _table(path: Path) -> dict[str, Any]:
    found = json_whole(path)
    if not isinstance(found, dict):
        raise AnnotationError(f"{path}: holds no JSON object; download the file again")
    return found


def _segments(location: Any, qid: str) -> Any:
    return location.get(qid) if isinstance(location, dict) else None


SETS = (
    AnnotationSet(
        "nextgqa",
        "NExT-GQA: 3,358 val and 5,553 test questions with five options, 3,931 and 6,600 segments; none for training",
        "doc-doc/NExT-GQA (datasets/nextgqa); JSON list: OpenGVLab/VideoChat-R1; videos: VidOR, as NExT-QA packs them",
        {
            split: (
                Source((f"{split}.csv", f"nextgqa_{split}.json")),
                Source((f"gsub_{split}.json",), required=False),
                Source(("map_vid_vidorID.json",), required=False),
            )
            for split in ("val", "test")
        },
        read,
        "videochat_r1_gqa",
    ),
)
