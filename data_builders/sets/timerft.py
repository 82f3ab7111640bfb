"""TimeRFT: the 2,500 training queries of Time-R1, with the difficulty that selected them."""

from collections import Counter
from pathlib import Path

from verl_stvg.data_builders.read import json_items
from verl_stvg.data_builders.records import NUMBER, Entries, Problem, chosen, fault, record
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.data_builders.sets.tvgbench import below_videos


def read(files: tuple[Path], split: str) -> Entries:
    """A JSON list of ``{video, duration, timestamp, sentence, qid, video_start, video_end, difficulty, pred}``.

    Pitfalls: 665 rows have ``video_start`` and ``video_end``, the place of the file in a longer video that it was cut
    from, and count their times from the cut. These rows have no clip: most of the files have the times of the cut in
    their name, and no file stands in rows with different cuts; the two fields are kept as extras. 48 times end after
    ``duration``; file names have colons and @ in them. ``difficulty`` is 100 IoU of ``pred``, an early model's answer;
    files that were filtered anew may lack the two.
    """
    (path,) = files
    wanted = {"video": str, "sentence": str, "timestamp": list, "duration": NUMBER, "qid": str}
    counts: Counter[str] = Counter()
    for number, entry in json_items(path):
        if wrong := fault(entry, wanted):
            yield Problem(f"entry {number}", wrong)
            continue
        video = below_videos(entry["video"])
        where = f"entry {number} ({video})"
        counts[video] += 1
        pred = entry.get("pred")
        if pred is not None and not (isinstance(pred, list) and len(pred) == 2):
            yield Problem(where, f"pred: should be a start and an end, found {pred!r:.60}")
            continue
        yield record(
            where,
            {"query": "sentence", "intervals.0": "timestamp"},
            key=f"{video}/{counts[video] - 1}",
            video=video,
            query=entry["sentence"],
            intervals=(entry["timestamp"],),
            duration=entry["duration"],
            extra=chosen(entry, "qid", "video_start", "video_end", "difficulty")
            | dict(zip(("pred_start", "pred_end"), pred or (), strict=False)),
        )


SETS = (
    AnnotationSet(
        "timerft",
        "TimeRFT: 2,500 training queries on 2,475 videos of six web sources, with difficulty",
        "xiaomi-research/time-r1; videos: Boshenxx/TimeR1-Dataset",
        {"train": (Source(("train_2k5.json",)),)},
        read,
        "time_r1",
    ),
)
