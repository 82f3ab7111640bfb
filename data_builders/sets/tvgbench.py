"""TVGBench: Time-R1's grounding benchmark of 800 queries, balanced over five sources and eleven kinds of query."""

from collections import Counter
from pathlib import Path

from verl_stvg.data_builders.read import json_items
from verl_stvg.data_builders.records import NUMBER, Entries, Problem, chosen, fault, record
from verl_stvg.data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path], split: str) -> Entries:
    """A JSON list of ``{path, question, answer: "s-e", start, end, duration, qsemtype, bins, ...}``.

    Pitfalls: the answer is one text, in seconds after ``start``; 27 answers end after ``duration``; ``dataset_name`` is
    missing in the 168 Ego4D rows, where ``bins.dataset`` still says egonlq; ``path`` begins with the folder of the
    Time-R1 code, and the part up to ``videos/`` is cut off; one query occurs twice in one video.

    252 rows have a ``start`` and an ``end``, and the record's clip is that part of the file. Assumed, because the file
    cannot be the part cut out already: one and the same path stands in rows with different parts (up to five, of
    different lengths), or beside rows that take it whole. Some parts of HiREST videos end after their video.
    Time-R1's own evaluation reads neither field and shows the whole file.
    """
    (path,) = files
    wanted = {"path": str, "question": str, "answer": str, "duration": NUMBER, "bins": dict}
    counts: Counter[str] = Counter()
    for number, entry in json_items(path):
        if wrong := fault(entry, wanted | {"start": object, "end": object}):
            yield Problem(f"entry {number}", wrong)
            continue
        video = below_videos(entry["path"])
        where = f"entry {number} ({video})"
        counts[video] += 1
        try:
            start, end = map(float, entry["answer"].split("-"))
        except ValueError:
            yield Problem(where, f"answer: not of the form start-end: {entry['answer']!r:.60}")
            continue
        part = (entry["start"], entry["end"])
        yield record(
            where,
            {"query": "question", "clip.0": "start", "clip.1": "end"},
            key=f"{video}/{counts[video] - 1}",
            video=video,
            query=entry["question"],
            intervals=((start, end),),
            duration=entry["duration"],
            clip=None if part == (None, None) else part,
            extra=chosen(entry, "start", "end", "dataset_name", "question_type", "qsemtype", "source")
            | {f"bins.{name}": value for name, value in entry["bins"].items()},
        )


def below_videos(path: str) -> str:
    """A path of the Time-R1 release without what leads to its ``videos`` folder; any other path as it is."""
    return path.rpartition("/videos/")[2]


SETS = (
    AnnotationSet(
        "tvgbench",
        "TVGBench: 800 test queries on 462 videos of Charades, ActivityNet, HiREST, Ego4D and TACoS",
        "xiaomi-research/time-r1; videos: Boshenxx/TimeR1-Dataset",
        {"test": (Source(("tvgbench.json",)),)},
        read,
        "time_r1",
    ),
)
