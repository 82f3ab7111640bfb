"""One self-contained page of rows, because a wrong annotation is seen in a second and computed never.

Each row is a time line with its interval, thumbnails with the target's box, the query, and what
`verl_stvg.data_builders.check` says about it; filters by set, split and problem. All markup stands in `show.html`.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2

from verl_stvg.base.lock import write_whole
from verl_stvg.data_builders.check_rows import row_problems
from verl_stvg.data_builders.objects.boxes import TurnedBoxes, annotated_size, scaled
from verl_stvg.data_builders.read import json_lines
from verl_stvg.rows.files import read_rows
from verl_stvg.rows.row import VIDEO_COLUMN, Row, read_entries
from verl_stvg.rows.shape import row_shape_problems
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.decode import VideoError, VideoInfo
from verl_stvg.video.thumbnails import thumbnails

logger = logging.getLogger(__name__)

PICTURES = 8
SIDE = 200
"""Longer side of a thumbnail, pixels."""
PAGE_BYTES = 8_000_000
"""JPEG bytes of the whole page; base64 makes a third more of it."""


@dataclass(frozen=True)
class _Place:
    file: Path
    row: int


def write(
    files: list[Path],
    out: Path,
    video_root: Path | None = None,
    limit: int = 100,
    findings: Path | None = None,
) -> int:
    """Write the page and return how many rows are on it.

    Rows with a problem come first, up to half of the limit; the rest is spread evenly over the files. A row or a video
    that cannot be shown is a card that says why.

    Args:
        files: parquet files of rows.
        out: the page.
        video_root: see `verl_stvg.rows.files.root_of`.
        limit: of rows on the page.
        findings: what `verl-stvg check --report` wrote, to be shown with the rows; without it only those problems are
            shown that need no video.

    Raises:
        ValueError: a file that is missing or has no rows of ours, findings that are none.
    """
    names, files = [str(file) for file in files], [file.resolve() for file in files]  # `check` may have said another
    problems: dict[_Place, list[str]] = defaultdict(list)
    places: list[_Place] = []
    for file in files:
        for number, row in enumerate(read_rows(file, video_root)):
            places.append(_Place(file, number))
            problems[places[-1]] += _problems(row)
    for file, number, text in _found(findings) if findings else ():
        if number is None:
            logger.warning("%s: %s", file, text)
        elif (place := _Place(file.resolve(), number)) in problems and text not in problems[place]:
            problems[place].append(text)
    chosen = _choose(places, problems, limit)
    budget = PAGE_BYTES // max(1, len(chosen) * PICTURES)
    cards = []
    for file in files:
        wanted = {place.row for place in chosen if place.file == file}
        cards += [
            _card(row, problems[_Place(file, number)], budget)
            for number, row in enumerate(read_rows(file, video_root))
            if number in wanted
        ]
    write_whole(out, _page(cards, len(places), names, sum(bool(found) for found in problems.values())))
    return len(cards)


def _page(cards: list[dict], total: int, files: list[str], trouble: int) -> str:
    """The page of some cards; ``total`` and ``trouble`` are numbers of rows: all of them, and those with a problem."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("show.html").render(
        cards=cards,
        total=total,
        files=files,
        sets=sorted({card["dataset"] for card in cards}),
        splits=sorted({card["split"] for card in cards}),
        kinds=sorted({text.partition(":")[0] for card in cards for text in card["problems"]}),
        trouble=trouble,
    )


def _problems(row: Row) -> list[str]:
    """What is wrong with a row, as far as it shows without its video."""
    if wrong := row_shape_problems(row):
        return [f"row: {text}" for text in wrong]
    found = [f"{problem}: {detail}" for problem, detail, _ in row_problems(row)]
    return found + [f"video entry: {beginning}{text}" for beginning, _, text in read_entries(row["videos"]) if text]


def _found(findings: Path) -> Iterator[tuple[Path, int | None, str]]:
    """File, row and text of every line that `verl_stvg.data_builders.check.write` wrote."""
    if not findings.is_file():
        raise ValueError(f"{findings}: no such file of findings; write it with check --report, or correct --findings")
    for number, line in json_lines(findings):
        try:
            yield Path(line["file"]), line["row"], f"{line['problem']}: {line['detail']}"
        except (KeyError, TypeError) as error:
            raise ValueError(f"{findings}: line {number} is no finding ({error!r}); run the check again") from error


def _choose(places: list[_Place], problems: dict[_Place, list[str]], limit: int) -> set[_Place]:
    if len(places) <= limit:
        return set(places)
    chosen = set([place for place in places if problems[place]][: limit // 2])
    rest = [place for place in places if place not in chosen]
    free = limit - len(chosen)
    return chosen | {rest[k * len(rest) // free] for k in range(free)}


def _card(row: Row, problems: list[str], budget: int) -> dict:
    if row_shape_problems(row):  # nothing of it can be relied on but its name
        row = Row({"extra_info": {"uid": row.name}}, row.root)
    extra, truth, duration = row.extra, row.truth, row.duration
    _, video, _ = (read_entries(row.get(VIDEO_COLUMN)) or [("", {}, "")])[0]
    name = video.get("video", "")
    begin = video.get("video_start") or 0.0
    path, pictures, size = Path(row.root or "", name), [], (3, 2)
    events = [(begin + since, begin + until) for since, until in row.intervals]
    try:
        if not name:
            raise VideoError("the row names none that can be shown")
        info = shared_decoder().probe(path)
        duration = duration or info.duration
        pictures, size = thumbnails(path, PICTURES, SIDE, budget, begin, begin + duration, events)
        shown = info.clock.on_show([one.time for one in pictures]).tolist()
        first = info.clock.in_file(truth.get("first_frame") or 0, begin, extra.get("first_frame_of"))
        boxes = _boxes(truth.get("boxes") or [], first, extra.get("annotated"), shown, info)
    except VideoError as error:
        problems = [*problems, f"video: {str(error).replace(str(path), name)}"]
        boxes = []
    except TurnedBoxes as error:
        problems = [*problems, f"turned boxes: {error}"]
        boxes = [None] * len(pictures)
    return {
        "uid": row.name,
        "dataset": row.dataset,
        "split": extra.get("split") or "",
        "template": extra.get("template") or "",
        "query": extra.get("sentence") or extra.get("query") or "",
        "options": extra.get("options") or [],
        "answer": truth.get("answer") or "",
        "target": truth.get("object_id"),
        "video": name,
        "where": extra.get("annotation") or "",
        "duration": duration,
        "size": size,
        "bars": [_bar(start, end, duration) for start, end in row.intervals] if duration else [],
        "problems": problems,
        "kinds": sorted({text.partition(":")[0] for text in problems}),
        "pictures": [
            {
                "time": f"{one.time - begin:.1f}",
                "source": one.source,
                "box": box,
                "inside": any(start <= one.time - begin <= end for start, end in row.intervals),
            }
            for one, box in zip(pictures, boxes, strict=True)
        ],
    }


def _boxes(found: list, first: int, annotated: str | None, frames: list[int], info: VideoInfo) -> list[dict | None]:
    """The target's box in each of some frames, in per cent of the picture and cut at its border.

    Args:
        found: boxes of the tube.
        first: frame of the file of the first of them.
        annotated: the row's JSON text of further fields.
        frames: of the file.
        info: of the file.

    Raises:
        TurnedBoxes: see `verl_stvg.data_builders.objects.boxes.scales`.
    """
    size = annotated_size(json.loads(annotated) if annotated else {})
    there = scaled(found, size, (info.width, info.height))
    return [_box(there[k - first], info) if first <= k < first + len(there) else None for k in frames]


def _box(box: tuple[float, ...], info: VideoInfo) -> dict:
    left, right = (min(max(x, 0), info.width) for x in box[::2])
    top, bottom = (min(max(y, 0), info.height) for y in box[1::2])
    return {
        "left": 100 * left / info.width,
        "top": 100 * top / info.height,
        "width": 100 * (right - left) / info.width,
        "height": 100 * (bottom - top) / info.height,
    }


def _bar(start: float, end: float, duration: float) -> dict:
    left, right = (100 * min(max(value / duration, 0.0), 1.0) for value in (start, end))
    return {"left": left, "width": max(right - left, 0.4), "text": f"{start:.2f} to {end:.2f} s"}
