r"""Your own set: a JSON object per line, in seconds, zero-based frames and pixels, which ten lines of Python can write.

Say you have ``mine.csv`` with the columns file, sentence, from, to (seconds). In the annotation folder, run

    import csv, json
    from pathlib import Path

    rows = csv.DictReader(Path("mine.csv").open(encoding="utf-8", newline=""))
    with Path("train.jsonl").open("w", encoding="utf-8") as out:
        for row in rows:
            line = {"video": row["file"], "query": row["sentence"]}
            line["start"] = float(row["from"])
            line["end"] = float(row["to"])
            out.write(json.dumps(line) + "\n")

and ``train.jsonl`` is a set. Fields of a line, of which only the first two are required:

    video      path relative to the video root; the ending may be missing
    query      the sentence or question
    start, end seconds of what is shown: of the clip if there is one, else of the file
    intervals  [[start, end], ...], in place of start and end where there are several
    duration   of what is shown, in seconds
    id         text or whole number, unique in the file; without it, video and the count of its lines name the row
    clip       [start, end] in seconds of the file: the part that is shown
    tube       {"first_frame": zero-based frame of the file, "boxes": [[x1, y1, x2, y2], ...]}, a box per frame, in
               pixels; of the file also where there is a clip: rows count in the clip, and the builder subtracts
    masks      [{"size": [height, width], "counts": COCO run lengths} or null, ...], a mask per frame of the tube
    options    texts of a multiple-choice question, without letters
    answer     letter of the right option
    prompt     the whole user text, in place of the template's
    extra      {name: text, number, truth value or null}, to be carried along
"""

from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import json_lines
from verl_stvg.data_builders.records import Entries, Problem, flaw, letters, once, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

PASSED = ("video", "query", "intervals", "duration", "clip", "masks", "options", "answer", "prompt", "extra")
"""Fields of a line that are the record's own."""
KNOWN = (*PASSED, "start", "end", "id", "tube")


def read(files: tuple[Path], split: str) -> Entries:
    """Lines of the fields that are listed above.

    Pitfalls: a misspelt field would be an annotation lost, so an unknown one is a problem; no interval at all is read
    as a split without ground truth, and it is for the builder to refuse that where it trains.
    """
    (path,) = files
    yield from once(_lines(path))


def _lines(path: Path) -> Entries:
    counts: dict[str, int] = {}
    for number, line in json_lines(path):
        video = line.get("video")
        where = f"line {number} ({video})"
        count = counts.get(str(video), 0)
        counts[str(video)] = count + 1
        if problem := _flaw(line):
            yield Problem(where, problem)
            continue
        fields = {name: line[name] for name in PASSED if name in line}
        names = {}
        if "start" in line:
            fields["intervals"] = ((line["start"], line["end"]),)
            names = {"intervals.0.0": "start", "intervals.0.1": "end"}
        if "tube" in line:
            fields["tube"] = _tube(line["tube"])
        yield record(where, names, key=str(line["id"]) if "id" in line else f"{video}/{count}", **fields)


def _flaw(line: dict) -> str | None:
    if unknown := [name for name in line if name not in KNOWN]:
        return f"{', '.join(unknown):.60}: unknown; fields are {', '.join(sorted(KNOWN))}"
    if ("start" in line) != ("end" in line):
        return "start, end: one without the other"
    if "start" in line and "intervals" in line:
        return "intervals: beside start and end; give one of the two"
    if "id" in line and type(line["id"]) not in (str, int):
        return f"id: neither a text nor a whole number, found {line['id']!r:.60}"
    answer = line.get("answer")
    if answer is not None and answer not in letters(line.get("options")):
        return f"answer: is not the letter of an option, found {answer!r:.60}"
    return flaw(line, ("video", "query"))


def _tube(found: Any) -> Any:
    if not isinstance(found, dict) or not isinstance(found.get("boxes"), list):
        return found
    return {**found, "boxes": tuple(tuple(box) if isinstance(box, list) else box for box in found["boxes"])}


SETS = (
    AnnotationSet(
        "generic",
        "Your own set: JSON lines with video, query, start, end and more; its help lists the fields",
        "your own files",
        {split: (Source((f"{split}.jsonl",)),) for split in ("train", "val", "test")},
        read,
        "time_r1",
    ),
)
