"""One self-contained page of what selection found, because a threshold is chosen by looking at what it drops.

For each stage: counts by set, distributions, and examples of what was kept and dropped, each with its interval, what
the model answered, its reply and pictures of the video. All markup stands in `report.html`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from verl_stvg.base.lock import write_whole
from verl_stvg.data_builders.selection.difficulty import BINS
from verl_stvg.data_builders.selection.folder import JUDGED, MANIFEST, ROWS, SelectionError, read_judged, read_summary
from verl_stvg.rows.files import read_rows
from verl_stvg.rows.row import Row
from verl_stvg.video.decode import VideoError
from verl_stvg.video.thumbnails import thumbnails

PICTURES = 8
SIDE = 160
"""Longer side of a thumbnail, pixels."""
PAGE_BYTES = 6_000_000
"""JPEG bytes of the whole page; base64 makes a third more of it."""
_COLUMNS = 20
_REPLY = 2000  # characters of a reply that are shown

Series = tuple[str, str, list[float]]
"""Name, colour (a class of the page), values."""


def write(folders: Sequence[Path], out: Path, limit: int = 8, video_root: Path | None = None) -> int:
    """Write the page and return how many examples are on it.

    Args:
        folders: of stages that are judged, and of choices.
        out: the page.
        limit: of examples for each reason, spread evenly over the rows.
        video_root: see `verl_stvg.rows.files.root_of`.

    Raises:
        SelectionError: a folder that is neither.
    """
    stages = [folder for folder in folders if (folder / JUDGED).is_file()]
    lines = {folder: list(read_judged(folder, ("drop_reason", "dataset")).values()) for folder in stages}
    chosen = {folder: _examples(lines[folder], limit) for folder in stages}
    budget = PAGE_BYTES // max(1, PICTURES * sum(map(len, chosen.values())))
    sections = []
    for folder in folders:
        if folder in chosen:
            sections.append(_stage(folder, lines[folder], chosen[folder], budget, video_root))
        else:
            sections.append(_choice(folder))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    cards = [card for section in sections for card in section["cards"]]
    page = environment.get_template("report.html").render(
        sections=sections,
        sets=sorted({card["dataset"] for card in cards}),
        reasons=sorted({card["reason"] for card in cards}),
    )
    write_whole(out, page)
    return len(cards)


def _examples(lines: list[dict], limit: int) -> list[dict]:
    """Some lines of each reason, spread evenly."""
    by_reason: dict[str, list[dict]] = {}
    for line in lines:
        by_reason.setdefault(_reason(line), []).append(line)
    found = []
    for _, members in sorted(by_reason.items()):
        count = min(limit, len(members))
        found += [members[k * len(members) // count] for k in range(count)]
    return found


def _reason(line: dict) -> str:
    if line["drop_reason"]:
        return f"dropped: {line['drop_reason']}"
    return f"kept: {line['bin']}" if line.get("bin") else "kept"


# --- a stage ----------------------------------------------------------------------------------------------------------


def _stage(folder: Path, lines: list[dict], chosen: list[dict], budget: int, video_root: Path | None) -> dict:
    summary = read_summary(folder)
    asked = {line["uid"] for line in chosen}
    rows = {row.uid: row for row in read_rows(folder / ROWS, video_root) if row.uid in asked}
    return {
        "title": summary["stage"].replace("_", " ").capitalize(),
        "facts": _facts(summary),
        "notes": summary["notes"],
        **_table(summary["datasets"], ("rows", "unreadable")),
        "plots": [_plot(*one) for one in _DISTRIBUTIONS[summary["stage"]](lines)],
        "cards": [_card(line, rows.get(line["uid"]), budget) for line in chosen],
    }


def _facts(summary: dict) -> list[str]:
    made_by, asking = summary["made_by"], summary["asking"]
    sampling = made_by.get("sampling") or {}
    said = [f"{summary['rows']['count']:,} rows", f"model {made_by.get('model')}"]
    said += [f"{key.replace('_', ' ')} {value}" for key, value in asking.items() if value]
    said += [f"{key} {sampling[key]}" for key in ("engine", "samples", "temperature") if key in sampling]
    for key, value in summary["rules"].items():
        if value not in (None, {}) and value is not False:
            said.append(f"{key.replace('_', ' ')} {_plain(value)}")
    return said


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(counts: dict[str, dict], first: tuple[str, ...]) -> dict:
    names = [*first, *sorted({key for one in counts.values() for key in one} - set(first))]
    return {
        "columns": names,
        "table": [(name, [f"{one.get(key, 0):,}" for key in names]) for name, one in counts.items()],
    }


def _of_reflection(lines: list[dict]) -> list[tuple[str, str, list[Series], float, float]]:
    partial = [line for line in lines if line["is_partial"]]
    kept = [line for line in lines if not line["is_partial"]]
    named = [sum(one[-1] - one[0] for one in line["outside"]) / line["duration"] for line in partial]
    return [
        (
            "Annotated share of the video",
            "rows",
            [
                ("partly annotated", "bad", [_covered(line) for line in partial]),
                ("kept", "good", list(map(_covered, kept))),
            ],
            0.0,
            1.0,
        ),
        ("Share of the video named as evidence", "rows", [("partly annotated", "bad", named)], 0.0, 1.0),
    ]


def _covered(line: dict) -> float:
    return min(1.0, sum(end - start for start, end in line["span"]) / line["duration"])


def _of_difficulty(lines: list[dict]) -> list[tuple[str, str, list[Series], float, float]]:
    series = [(name, name, [line["iou"] for line in lines if line["bin"] == name]) for name in BINS]
    plots = [("IoU before training", "rows", series, 0.0, 1.0)]
    if any(line["n_samples"] > 1 for line in lines):
        spread = [(name, name, [line["iou_std"] for line in lines if line["bin"] == name]) for name in BINS]
        plots.append(("Standard deviation of the IoU of a row's answers", "rows", spread, 0.0, 0.5))
    return plots


def _of_variance(lines: list[dict]) -> list[tuple[str, str, list[Series], float, float]]:
    scored = [line for line in lines if line["mean"] is not None]
    top = max((len(line["rewards"]) for line in scored), default=1)
    parted = [("dropped", "bad", [line for line in scored if not line["kept"]])]
    parted.append(("kept", "good", [line for line in scored if line["kept"]]))
    return [
        (title, "rows", [(name, colour, [line[key] for line in some]) for name, colour, some in parted], 0.0, high)
        for title, key, high in (
            ("Standard deviation of a row's rewards", "std", top / 2),
            ("Mean of a row's rewards", "mean", float(top)),
        )
    ]


_DISTRIBUTIONS: dict[str, Callable[[list[dict]], list]] = {
    "boundary_reflection": _of_reflection,
    "difficulty": _of_difficulty,
    "variance": _of_variance,
}


def _plot(title: str, unit: str, series: list[Series], low: float, high: float) -> dict:
    """A histogram: bars stacked in the order of the series, in a picture of 100 x 100."""
    counts = [[0] * _COLUMNS for _ in series]
    for heights, (_, _, values) in zip(counts, series, strict=True):
        for value in values:
            column = int((value - low) / (high - low) * _COLUMNS)
            heights[min(max(column, 0), _COLUMNS - 1)] += 1
    tallest = max(1, *(sum(column) for column in zip(*counts, strict=True)))
    width, bars, base = 100 / _COLUMNS, [], [0] * _COLUMNS
    for (name, colour, _), heights in zip(series, counts, strict=True):
        for k, count in enumerate(heights):
            if count:
                begin = low + (high - low) * k / _COLUMNS
                text = f"{begin:.2f} to {begin + (high - low) / _COLUMNS:.2f}: {count} {name}"
                height = 100 * count / tallest
                bars.append(
                    {
                        "x": round(k * width + 0.3, 3),
                        "y": round(100 - 100 * base[k] / tallest - height, 3),
                        "width": round(width - 0.6, 3),
                        "height": round(height, 3),
                        "colour": colour,
                        "text": text,
                    }
                )
                base[k] += count
    ticks = [f"{low + (high - low) * k / 4:g}" for k in range(5)]
    names = [{"name": name, "colour": colour, "count": f"{len(values):,}"} for name, colour, values in series]
    return {"title": title, "unit": unit, "bars": bars, "ticks": ticks, "tallest": tallest, "names": names}


def _card(line: dict, row: Row | None, budget: int) -> dict:
    if row is None:
        raise SelectionError(f"{line['uid']}: is judged and no row of the folder; judge again")
    name, video = row.entries[0]["video"], row.videos[0]
    begin, duration, problem = video.get("video_start") or 0.0, line["duration"], line["error"]
    pictures, size = [], (3, 2)
    events = [(begin + since, begin + until) for since, until in line["span"]]
    try:
        pictures, size = thumbnails(Path(video["video"]), PICTURES, SIDE, budget, begin, begin + duration, events)
    except VideoError as error:
        problem = problem or str(error).replace(video["video"], name)
    reply = line["raw_response"] or ""
    outside = [tuple(one) for one in line.get("outside") or ()]
    return {
        "uid": line["uid"],
        "dataset": line["dataset"],
        "query": line["query"],
        "reason": _reason(line),
        "dropped": bool(line["drop_reason"]),
        "duration": duration,
        "truth": _bars(line["span"], duration),
        "pred": _bars(line.get("pred") or (), duration),
        "outside": _bars(outside, duration),
        "numbers": _numbers(line),
        "unread": not line["parse_ok"] and line["error"] is None,
        "problem": problem,
        "reply": reply[:_REPLY] + (" ..." if len(reply) > _REPLY else ""),
        "size": size,
        "pictures": [
            {
                "time": f"{one.time - begin:.1f}",
                "source": one.source,
                "inside": any(start <= one.time - begin <= end for start, end in line["span"]),
            }
            for one in pictures
        ],
    }


def _bars(items: Iterable[Sequence[float]], duration: float) -> list[dict]:
    """Intervals and moments in per cent of the video."""
    found = []
    for item in items:
        left, right = (100 * min(max(time / duration, 0.0), 1.0) for time in (min(item), max(item)))
        text = " to ".join(f"{time:.2f}" for time in item) + " s"
        found.append({"left": f"{left:.2f}", "width": f"{max(right - left, 0.5):.2f}", "text": text})
    return found


def _numbers(line: dict) -> str:
    said = []
    if line.get("iou") is not None:
        said.append(f"IoU {line['iou']:.2f}")
        said += [f"of {line['n_samples']}, std {line['iou_std']:.2f}"] if line["n_samples"] > 1 else []
    if line.get("std") is not None:
        said.append(f"rewards {line['mean']:.2f} +- {line['std']:.2f}")
        said += [f"{name} {', '.join(f'{value:.2f}' for value in values)}" for name, values in line["rewards"].items()]
    return "; ".join(said)


# --- a choice ---------------------------------------------------------------------------------------------------------


def _choice(folder: Path) -> dict:
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if manifest.get("stage") != "subset":
        raise SelectionError(
            f"{folder}: neither a judged stage nor a choice; run the stage to its end, or correct the path"
        )
    facts = [f"{manifest['chosen']:,} of {manifest['rows']:,} rows chosen", f"how: {manifest['how']}"]
    facts += [f"{key.replace('_', ' ')} {value}" for key, value in manifest["rules"].items() if value is not None]
    dropped = Counter(manifest.get("dropped") or {})
    return {
        "title": f"Choice: {folder.name}",
        "facts": facts,
        "notes": [f"{count:,} left out: {reason}" for reason, count in dropped.items()],
        **_table(manifest.get("strata") or {}, ("left", "chosen")),
        "plots": [],
        "cards": [],
    }
