"""ActivityNet Captions: every event of a video with a sentence and its times; used for temporal grounding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import AnnotationError, json_entries, json_whole
from verl_stvg.data_builders.records import Entries, Problem, record
from verl_stvg.data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path, Path | None], split: str) -> Entries:
    """JSON ``{video: {duration, timestamps: [[s, e], ...], sentences: [...]}}``, times in seconds; durations within it
    or in ``durations.json``.

    Pitfalls: sentences carry leading blanks; times are partly integers; training has 2 reversed and 2 empty intervals
    and 29 ends past the duration; val_2 is what others call test.
    """
    path, durations = files
    yield from sentences(json_entries(path), durations=known_durations(durations))


def known_durations(path: Path | None) -> dict[str, Any]:
    """What a ``durations.json`` says, by video; nothing where there is none.

    Raises:
        AnnotationError: it cannot be read, or is no object.
    """
    found = json_whole(path) if path else {}
    if not isinstance(found, dict):
        raise AnnotationError(f"{path}: holds no JSON object of durations by video; download or export the file again")
    return found


def sentences(
    entries: Iterator[tuple[str, Any]], duration_key: str = "duration", durations: dict[str, Any] | None = None
) -> Entries:
    """Records of ``{video: {duration, timestamps: [[s, e], ...], sentences: [...]}}``, times in seconds.

    Args:
        entries: of the file.
        duration_key: read where an entry has no ``duration``.
        durations: by video, where an entry has neither.
    """
    for video, entry in entries:
        where = f"entry {video!r}"
        if not isinstance(entry, dict):
            yield Problem(where, "is not an object")
            continue
        if missing := [key for key in ("timestamps", "sentences") if not isinstance(entry.get(key), list)]:
            yield Problem(where, f"{', '.join(missing)}: missing, or not a list")
            continue
        if len(entry["timestamps"]) != len(entry["sentences"]):
            counts = f"{len(entry['timestamps'])} timestamps for {len(entry['sentences'])} sentences"
            yield Problem(where, counts)
            continue
        if nulls := [key for key in dict.fromkeys(("duration", duration_key)) if entry.get(key, 0) is None]:
            yield Problem(where, f"{', '.join(nulls)}: null, should be a number of seconds")
            continue
        duration = entry.get("duration", entry.get(duration_key, (durations or {}).get(video)))
        for k, (times, sentence) in enumerate(zip(entry["timestamps"], entry["sentences"], strict=True)):
            yield record(
                f"{where}, sentence {k}",
                {"query": f"sentences[{k}]", "intervals.0": f"timestamps[{k}]"},
                key=f"{video}/{k}",
                video=video,
                query=sentence,
                intervals=(times,),
                duration=duration,
            )


SETS = (
    AnnotationSet(
        "activitynet",
        "ActivityNet Captions: 37,421 training, 17,505 val_1 and 17,031 val_2 (test) sentences on YouTube videos",
        "ActivityNet Captions release; JSON also in www-Ye/Time-R1",
        {
            "train": (Source(("train.json",)), Source(("durations.json",), required=False)),
            "val": (Source(("val_1.json", "val.json")), Source(("durations.json",), required=False)),
            "test": (Source(("val_2.json", "test.json")), Source(("durations.json",), required=False)),
        },
        read,
        "time_r1",
    ),
)
