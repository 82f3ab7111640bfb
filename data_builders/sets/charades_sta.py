"""Charades-STA: sentences with times in Charades videos, as the published text or in Time-R1's JSON form."""

from pathlib import Path

from verl_stvg.data_builders.read import AnnotationError, csv_rows, json_entries, text_lines
from verl_stvg.data_builders.records import Entries, Problem, record
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.data_builders.sets.activitynet import known_durations, sentences


def read(files: tuple[Path, Path | None], split: str) -> Entries:
    """Text lines ``VIDEO start end##sentence``, or JSON ``{video: {duration, timestamps: [[s, e], ...], sentences}}``.

    Pitfalls: 14 % of the training intervals end after the video, 4 are reversed; the text form has no durations: a
    ``durations.json`` beside it says them, or the list of videos that Charades is published with
    (``Charades_v1_train.csv``), or else the video; the OOD and IID files say ``video_duration``.
    """
    path, durations = files
    known = _lengths(durations) if durations and durations.suffix == ".csv" else known_durations(durations)
    if path.suffix == ".json":
        yield from sentences(json_entries(path), "video_duration", known)
        return
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
            {"query": "sentence", "intervals.0.0": "start", "intervals.0.1": "end"},
            key=f"{video}/{counts[video] - 1}",
            video=video,
            query=sentence,
            intervals=(interval,),
            duration=known.get(video),
        )


def _lengths(path: Path) -> dict[str, float]:
    """Seconds of each video of Charades, from columns ``id`` and ``length`` of its list of videos.

    Raises:
        AnnotationError: no such columns, or a length that is no number.
    """
    found: dict[str, float] = {}
    for number, row in csv_rows(path, ("id", "length")):
        try:
            found[row["id"]] = float(row["length"])
        except (TypeError, ValueError) as error:
            raise AnnotationError(
                f"{path}: line {number}: length is no number of seconds, found {row['length']!r:.60}; download it again"
            ) from error
    return found


def _durations(part: str) -> Source:
    table = f"Charades_v1_{part}.csv"
    return Source(("durations.json", table, f"Charades/{table}"), required=False)


SETS = (
    AnnotationSet(
        "charades_sta",
        "Charades-STA: 12,408 training and 3,720 test sentences on indoor videos of half a minute",
        "text: TALL project (jiyanggao/TALL); JSON: www-Ye/Time-R1; videos: Charades v1, 480p",
        {
            "train": (
                Source(("charades_sta_train.txt", "charades_train.json", "train.json")),
                _durations("train"),
            ),
            "test": (
                Source(("charades_sta_test.txt", "charades_test.json", "test.json", "val.json")),
                _durations("test"),
            ),
        },
        read,
        "time_r1",
    ),
)
