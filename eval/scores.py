"""The scores of a benchmark as they are told and written: a table with intervals, groups of rows, and every row.

Every value of the table is the mean of one value per row, which ``items.jsonl`` holds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_stvg.base.lock import turn, write_whole
from verl_stvg.eval.benchmarks import SORTS, Benchmark
from verl_stvg.eval.benchmarks.base import Item, Prediction
from verl_stvg.rows.answers import Answer

SCORES, ITEMS = "scores.json", "items.jsonl"
DURATIONS = (15, 30, 60, 120, 300)
"""Edges of the bins of video durations, seconds; a bin holds its lower edge. Ours, as the other edges."""
LENGTHS = (5, 10, 20, 30, 60)
"""Edges of the bins of annotated lengths, seconds."""


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Attributes:
        benchmark: name.
        split: of the rows.
        main: metric that people quote.
        counts: of rows by what became of their answers.
        metrics: by name, in the order of the table: value, and bounds of its 95 % interval; fractions.
        groups: by kind of group and group: means of all metrics, and ``count``.
        baselines: by name: metrics.
        items: one object per row, in the rows' order; see `score`.
        notes: what a reader has to know, in sentences.
        made_by: what the numbers depend on besides rows and answers.
    """

    benchmark: str
    split: str
    main: str
    counts: dict[str, int]
    metrics: dict[str, dict[str, float]]
    groups: dict[str, dict[str, dict[str, float]]]
    baselines: dict[str, dict[str, float]]
    items: list[dict[str, Any]] = field(repr=False)
    notes: list[str]
    made_by: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """All but the items, as ``scores.json`` holds it."""
        found = {name: getattr(self, name) for name in ("benchmark", "split", "main")}
        rest = ("counts", "metrics", "groups", "baselines", "notes", "made_by")
        return found | {"rows": len(self.items)} | {name: getattr(self, name) for name in rest}

    def write(self, folder: Path) -> None:
        """Write ``scores.json`` and ``items.jsonl``, both of one scoring however many processes do so."""
        lines = "".join(json.dumps(_rounded(item), ensure_ascii=False) + "\n" for item in self.items)
        with turn(folder):
            write_whole(folder / ITEMS, lines)
            write_whole(folder / SCORES, json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n")

    def table(self) -> str:
        """The table in plain text: percent, the interval, and the baselines."""
        names = ["metric", "%", "95 % interval", *self.baselines]
        lines = [names]
        for name, found in self.metrics.items():
            beside = [one.get(name) for one in self.baselines.values()]
            interval = f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"
            others = ["" if value is None else f"{100 * value:.2f}" for value in beside]
            lines.append([name, f"{100 * found['value']:.2f}", interval, *others])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in self.counts.items() if count)
        head = f"{self.benchmark} {self.split}: {len(self.items):,} rows ({counts})"
        return "\n".join([head, *self.notes, text])


def _rounded(item: dict[str, Any]) -> dict[str, Any]:
    """An item with answered boxes to a tenth of a pixel, which is all that can be drawn."""
    said = item["prediction"]
    if said is None or "tube" not in said:
        return item
    tube = {frame: [round(float(side), 1) for side in box] for frame, box in said["tube"].items()}
    return item | {"prediction": said | {"tube": tube}}


def groups(
    items: Sequence[Item], benchmark: Benchmark, names: Sequence[str], matrix: np.ndarray
) -> dict[str, dict[str, dict[str, float]]]:
    """Means of all metrics, and ``count``, by kind of group and group.

    Args:
        items: of the rows.
        benchmark: that the items are of.
        names: of the metrics.
        matrix: (items, metrics) values.
    """
    sorts = {"video duration": (_bins([item.duration for item in items], DURATIONS), _labels(DURATIONS))}
    if all(item.intervals for item in items):
        lengths = [item.intervals[0][1] - item.intervals[0][0] for item in items]
        sorts["interval length"] = (_bins(lengths, LENGTHS), _labels(LENGTHS))
    asked = {key: name for key, name in SORTS.items() if any(item.extra.get(key) for item in items)}
    for key, name in (asked | dict(benchmark.sorts)).items():
        kinds = [str(item.extra.get(key)) for item in items]
        sorts[name] = (kinds, sorted(set(kinds)))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (labels, order) in sorts.items():
        found[name] = {}
        owner = np.array(labels)
        for kind in order:
            chosen_rows = matrix[owner == kind]
            if len(chosen_rows):
                means = dict(zip(names, chosen_rows.mean(axis=0).tolist(), strict=True))
                found[name][kind] = {**means, "count": len(chosen_rows)}
    return found


def _bins(values: Sequence[float], edges: Sequence[float]) -> list[str]:
    labels = _labels(edges)
    return [labels[k] for k in np.searchsorted(edges, values, side="right").tolist()]


def _labels(edges: Sequence[float]) -> list[str]:
    return [
        f"under {edges[0]} s",
        *(f"{low} to {high} s" for low, high in zip(edges, edges[1:], strict=False)),
        f"{edges[-1]} s and more",
    ]


def items_of(
    items: Sequence[Item],
    said: Sequence[Prediction | None],
    answers: Mapping[str, Answer | Prediction],
    names: Sequence[str],
    matrix: np.ndarray,
) -> list[dict[str, Any]]:
    """What ``items.jsonl`` holds: of each row its values, what is wrong, what was read from the answer, and the truth.

    Args:
        items: of the rows.
        said: what was read from each answer; None for nothing.
        answers: by uid.
        names: of the metrics.
        matrix: (items, metrics) values.
    """
    found = []
    for item, one, row in zip(items, said, matrix.tolist(), strict=True):
        values = dict(zip(names, row, strict=True))
        found.append(
            {
                "uid": item.uid,
                "values": values,
                "error": _why_none(answers.get(item.uid)) if one is None else "+".join(item.wrong(one, values)) or None,
                "prediction": _shown(one) if one is not None else None,
                "truth": item.truth,
            }
        )
    return found


def _why_none(answer: Answer | Prediction | None) -> str:
    if answer is None:
        return "missing"
    return "video" if isinstance(answer, Answer) and (answer.error is not None or not answer.texts) else "format"


def _shown(one: Prediction) -> dict[str, Any]:
    ids = one.object_ids
    return {
        "intervals": [list(interval) for interval in one.intervals],
        "object_id": ids[0] if len(ids) == 1 else None,
        **({"object_ids": list(ids)} if len(ids) > 1 else {}),
        "option": one.option,
        **({"frames": [min(one.tube), max(one.tube)], "tube": one.tube} if one.tube else {}),
    }
