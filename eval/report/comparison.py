"""Evaluations set side by side: tables with intervals, differences, groups, kinds of errors, and facts.

Evaluations of one benchmark are compared item by item: the interval of a difference is that of the paired differences,
which is far narrower than two intervals of two means.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from verl_stvg.eval.metrics.intervals import bootstrap
from verl_stvg.eval.report import charts
from verl_stvg.eval.report.evaluations import ERRORS, Evaluation, model_name
from verl_stvg.eval.report.runs import is_number

RESAMPLES = 2000
DEFINITIONS = {
    "mIoU": "Mean of the temporal IoU: seconds in both the answered and the true span, over the seconds in either; the "
    "best of several annotated spans.",
    "m_tIoU": "Mean of the temporal IoU of tubes: frames in both the answered and the true span, over the frames in "
    "either.",
    "m_vIoU": "Mean of vIoU: the IoU of answered and true box, summed over the frames in both spans, over the number "
    "of frames in either.",
    "_repaired": "Where the tracker lost the answered object, the paper's repair follows it through the other boxes.",
    "R1@": "Share of rows whose first answer has at least that temporal IoU.",
    "vIoU@": "Share of rows whose vIoU is above that value.",
    "ID accuracy": "Share of rows whose answer names the right object.",
    "ID F1": "Mean of the F1 of the answered object IDs.",
    "IoU@": "Share of rows whose temporal IoU is at least that value.",
    "mIoP": "Mean of IoP: seconds in both spans, over the seconds in the answered one.",
    "IoP@": "Share of rows whose IoP is at least that value.",
    "Acc@QA": "Share of rows with the right option.",
    "Acc@GQA": "Share of rows with the right option and an IoP of at least a half.",
    "Acc@IoU": "Share of rows with the right option and a temporal IoU of at least a half.",
    "J&F": "Mean of region similarity (J) and contour accuracy (F) of the masks.",
}
"""What metrics are, by the beginning of their names (or, with a leading line, by a part of them)."""


def is_variant(metric: str) -> bool:
    """Whether it is a metric by the script of a paper, which is named in brackets."""
    return metric.endswith(")") and " (" in metric


def table(evaluations: Sequence[Evaluation], kinds: Sequence[str]) -> list[dict]:
    """Rows of the table of metrics: value and interval of each model, value of each baseline, and their places.

    Args:
        evaluations: of one benchmark.
        kinds: CSS class of each.
    """
    baselines = baseline_names(evaluations)
    rows = []
    for metric in dict.fromkeys(metric for one in evaluations for metric in one.scores["metrics"]):
        cells = []
        for one, kind in zip(evaluations, kinds, strict=True):
            found = one.scores["metrics"].get(metric) or {}
            value, low, high = (found.get(key) for key in ("value", "low", "high"))
            cell = {"kind": kind, "name": one.name, "value": value, "low": low, "high": high}
            if value is not None:
                cell["at"] = charts.percent(value)
            if low is not None and high is not None:
                cell |= {"left": charts.percent(low), "width": round(charts.percent(high) - charts.percent(low), 2)}
            cells.append(cell)
        floors = [{"name": name, "value": _baseline(evaluations, name, metric)} for name in baselines]
        rows.append(
            {
                "metric": metric,
                "variant": is_variant(metric),
                "cells": cells,
                "baselines": floors,
                "floors": [
                    charts.percent(floor["value"])
                    for floor in floors
                    if floor["value"] is not None and 0 <= floor["value"] <= 1
                ],
            }
        )
    return rows


def baseline_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Baselines of a benchmark, in the order of the scores."""
    return list(dict.fromkeys(name for one in evaluations for name in one.scores.get("baselines") or {}))


def _baseline(evaluations: Sequence[Evaluation], name: str, metric: str) -> float | None:
    """A baseline's value: it depends on the rows alone, so the first evaluation that has it serves all."""
    for one in evaluations:
        value = ((one.scores.get("baselines") or {}).get(name) or {}).get(metric)
        if is_number(value):
            return float(value)
    return None


def differences(evaluations: Sequence[Evaluation], kinds: Sequence[str], videos: Mapping[str, str]) -> list[dict]:
    """What every further evaluation has more than the first, by metric, with the paired 95 % bootstrap interval.

    Args:
        evaluations: of one benchmark, on the same rows.
        kinds: CSS class of each.
        videos: of each uid; rows of one video are drawn together. Empty draws rows.

    Returns:
        of each metric `metric`, `variant` and `cells`; a cell has the model's `kind` and `name`, `gain`, `low` and
        `high`, whether 0 is `clear` of the interval, and places around 0 in the middle. The bounds are None where the
        items' mean is not the metric's value, or not every item has one.
    """
    first = evaluations[0]
    uids = list(first.items)
    drawn = [videos.get(uid, uid) for uid in uids]
    rows: dict[str, list[dict]] = defaultdict(list)
    for other, kind in zip(evaluations[1:], kinds[1:], strict=True):
        bounds = {}
        shared = [m for m in first.scores["metrics"] if _is_mean(first, m) and _is_mean(other, m)]
        if shared:
            gains = [[other.items[uid].values[m] - first.items[uid].values[m] for m in shared] for uid in uids]
            found = bootstrap(gains, resamples=RESAMPLES, groups=drawn)
            bounds = {metric: found[:, k].tolist() for k, metric in enumerate(shared)}
        for metric in first.scores["metrics"]:
            here, there = first.value(metric), other.value(metric)
            plain = (there - here if there is not None and here is not None else None, None, None)
            gain, low, high = bounds.get(metric, plain)
            clear = low is not None and (low > 0 or high < 0)
            cell = {"kind": kind, "name": other.name, "gain": gain, "low": low, "high": high, "clear": clear}
            rows[metric].append(cell)
    reach = max((abs(side) for cells in rows.values() for cell in cells for side in _sides(cell)), default=0.0) or 1.0
    for cell in (cell for cells in rows.values() for cell in cells if cell["gain"] is not None):
        cell["at"], *bounds = (charts.percent(0.5 + 0.5 * side / reach) for side in _sides(cell))
        if bounds:
            cell |= {"left": bounds[0], "width": round(bounds[1] - bounds[0], 2)}
    return [{"metric": metric, "variant": is_variant(metric), "cells": cells} for metric, cells in rows.items()]


def _sides(cell: Mapping) -> list[float]:
    return [cell[key] for key in ("gain", "low", "high") if cell[key] is not None]


def _is_mean(one: Evaluation, metric: str) -> bool:
    values = [item.values[metric] for item in one.items.values() if metric in item.values]
    value = one.value(metric)
    return value is not None and len(values) == len(one.items) and abs(float(np.mean(values)) - value) < 1e-6


# --- groups and errors ------------------------------------------------------------------------------------------------


def groups(evaluations: Sequence[Evaluation], kinds: Sequence[str], metric: str) -> list[dict]:
    """Groupings of the scores (by duration, by length of the interval, by sentence): of each group the bars of all.

    Args:
        evaluations: of one benchmark.
        kinds: CSS class of each.
        metric: that the bars show.
    """
    found = []
    for family in dict.fromkeys(name for one in evaluations for name in one.scores.get("groups") or {}):
        tables = [(one.scores.get("groups") or {}).get(family) or {} for one in evaluations]
        bars = []
        for group in dict.fromkeys(group for each in tables for group in each):
            cells = []
            for one, kind, each in zip(evaluations, kinds, tables, strict=True):
                value = (each.get(group) or {}).get(metric)
                if is_number(value):
                    cells.append({"kind": kind, "name": one.name, "value": value, "width": charts.percent(value)})
            count = next((each[group]["count"] for each in tables if "count" in each.get(group, {})), None)
            bars.append({"label": group, "count": count, "cells": cells})
        full = [
            {
                "name": one.name,
                "groups": [(group, row.get("count")) for group, row in each.items()],
                "rows": [
                    {"metric": name, "cells": [row.get(name) for row in each.values()]}
                    for name in one.scores["metrics"]
                    if not is_variant(name)
                ],
            }
            for one, each in zip(evaluations, tables, strict=True)
        ]
        found.append({"name": family, "bars": bars, "full": full})
    return found


def errors(evaluations: Sequence[Evaluation], kinds: Sequence[str]) -> list[dict]:
    """Kinds of errors that occur, with the number and share of rows of each model."""
    rows = []
    for error, name in ERRORS.items():
        cells = []
        for one, kind in zip(evaluations, kinds, strict=True):
            found = sum(item.error == error for item in one.items.values())
            share = found / len(one.items)
            cells.append(
                {"kind": kind, "name": one.name, "count": found, "share": share, "width": charts.percent(share)}
            )
        if any(cell["count"] for cell in cells):
            rows.append({"name": name, "cells": cells})
    return rows


def sentences(evaluations: Sequence[Evaluation]) -> list[str]:
    """What went wrong with the answers, one plain sentence per model and count that is not zero; the scores' notes tell
    what is missing."""
    said = {
        "errors": "Rows whose video or prompt cannot be used, which count as 0: {n} of {rows}.",
        "unreadable": "Answers that cannot be read, which count as 0: {n} of {rows}.",
        "cut_off": "Answers that were cut off at the greatest length: {n} of {rows}.",
        "duplicates": "Answers to rows that had one already, which are left out: {n}.",
        "not_finite": "Predictions with numbers that are not finite: {n}.",
        "half_written": "Half-written last lines, which are left out: {n}.",
    }
    found = []
    for one in evaluations:
        who = f"{one.name}: " if len(evaluations) > 1 else ""
        counts = one.scores.get("counts") or {}
        rows = charts.thousands(len(one.items))
        for key, sentence in said.items():
            if counts.get(key):
                found.append(who + sentence.format(n=charts.thousands(counts[key]), rows=rows))
        found += [f"{who}{note}" for note in (*(one.scores.get("notes") or ()), *one.notices)]
    return found


def facts(one: Evaluation, alone: bool) -> list[dict]:
    """Name, value and note of what is known of an evaluation, besides its benchmark.

    Args:
        one: the evaluation.
        alone: on the page; if not, its name stands there already.
    """
    made = one.made_by
    rows = one.scores.get("rows", len(one.items))
    found = [("Rows", charts.thousands(rows), ", ".join(path.name for path in one.rows_files))]
    if made.get("model") and (alone or model_name(str(made["model"])) != one.name):
        found.append(("Model", model_name(str(made["model"])), str(made.get("weights") or "")))
    sampling = dict(made.get("sampling") or {})
    if sampling.get("engine"):
        found.append(("Engine", str(sampling.pop("engine")), ""))
    if sampling:
        found.append(("Sampling", *_sampling(sampling)))
    if options := made.get("template"):
        found.append(("Chat template", ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items()), ""))
    versions = dict(made.get("versions") or {})
    if versions:
        found.append(("verl-stvg", str(versions.pop("verl-stvg", "")), _pairs(versions)))
    return [dict(zip(("name", "value", "note"), fact, strict=True)) for fact in found]


def _sampling(sampling: Mapping) -> tuple[str, str]:
    """How was sampled, and what else was set: greedy answers depend on little."""
    temperature, samples = sampling.get("temperature"), sampling.get("samples") or 1
    said = {"temperature", "samples"} | ({"top_p", "top_k", "seed"} if temperature == 0 else set())
    rest = _pairs({key: value for key, value in sampling.items() if key not in said and value is not None})
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}" if temperature is not None else ""
    return (how if samples == 1 else f"{how}, {samples} samples"), rest


def _pairs(values: Mapping) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, dict | list))


def pretty(record: Mapping) -> str:
    """JSON to be read by people."""
    return json.dumps(record, indent=2, ensure_ascii=False, default=str)
