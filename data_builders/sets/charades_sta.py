"""Charades-STA: sentences with times in Charades videos, as the published text or in Time-R1's JSON form."""

from pathlib import Path

from data_builders.read import json_entries, text_lines
from data_builders.records import Entries, Problem, record
from data_builders.sets import AnnotationSet, Source
from data_builders.sets.activitynet import known_durations, sentences


def read(files: tuple[Path | None, ...], split: str) -> Entries:
    """Text lines ``VIDEO start end##sentence``, or JSON of the form that `activitynet.sentences` reads.

    Pitfalls: 14 % of the training intervals end after the video, 4 are reversed; the text form has no durations (a
    ``durations.json`` beside it, or else the video, says them); the OOD and IID files say ``video_duration``.
    """
    path, durations = files
    if path.suffix == ".json":
        yield from sentences(json_entries(path), "video_duration", known_durations(durations))
        return
    known = known_durations(durations)
    counts: dict[str, int] = {}
    for number, line in text_lines(path):
        where = f"line {number}"
        head, mark, sentence = line.partition("##")
        fields = head.split()
        if not mark or len(fields) != 3:
            yield Problem(where, f"not of the form VIDEO start end##sentence: {line!r:.60}")
            continue
        video, *times = fields
        counts[video] = counts.get(video, 0) + 1
        try:
            interval = tuple(map(float, times))
        except ValueError:
            yield Problem(where, f"times are no numbers: {line!r:.60}")
            continue
        yield record(
            f"{where} ({video})",
            key=f"{video}/{counts[video] - 1}",
            video=video,
            query=sentence,
            intervals=(interval,),
            duration=known.get(video),
        )


SETS = (
    AnnotationSet(
        "charades_sta",
        "Charades-STA: 12,408 training and 3,720 test sentences on indoor videos of half a minute",
        "text: TALL project (jiyanggao/TALL); JSON: www-Ye/Time-R1; videos: Charades v1, 480p",
        {
            "train": (
                Source(("charades_sta_train.txt", "charades_train.json", "train.json")),
                Source(("durations.json",), required=False),
            ),
            "test": (
                Source(("charades_sta_test.txt", "charades_test.json", "test.json", "val.json")),
                Source(("durations.json",), required=False),
            ),
        },
        read,
        "time_r1",
    ),
)
