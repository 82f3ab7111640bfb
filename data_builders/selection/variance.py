"""Variance: keep the rows on which a model's own answers differ, because equal rewards in a group teach nothing.

The model answers every row several times, each answer is scored by the row's reward, and rows are kept whose scores
vary, the most varied first, up to a quota for each task. Source: Temporal-R1 notes, 3; the number of runs, thresholds
and ranks are ours, the authors' are not public.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reward_fns import get_recipe
from verl_stvg.data_builders.selection.folder import SelectionError, Stage
from verl_stvg.data_builders.selection.samples import Sample, read_intervals
from verl_stvg.rows.answers import Answer

NAME = "variance"
_OVERLAPS = ("temporal_iou", "temporal_iou_v2", "tube_iou")
TASKS = ("tvg", "mcq", "gqa", "stvg")
"""When; which option; both; when and who."""


@dataclass(frozen=True)
class Rules:
    """What is kept. All numbers are ours.

    Attributes:
        min_std: least standard deviation of an overlap (temporal, tube) over the answers.
        quotas: most rows of a task that are kept, by task; tasks that are not named have none.
        good: mean from which on answers that do not vary are called good.
    """

    min_std: float = 0.1
    quotas: Mapping[str, int] = field(default_factory=dict)
    good: float = 0.5

    def __post_init__(self):
        if unknown := sorted(set(self.quotas) - set(TASKS)):
            raise ValueError(f"quota for unknown task {', '.join(unknown)}; tasks are {', '.join(TASKS)}")


def stage(rules: Rules | None = None) -> Stage:
    """The stage."""
    rules = rules or Rules()
    return Stage(
        name=NAME,
        asking={},
        rules=asdict(rules),
        ask=lambda row: row,
        judge=lambda sample, answer: judged(sample, answer, rules),
        finish=lambda lines: keep(lines, rules),
        notes=notes,
    )


def judged(sample: Sample, answer: Answer, rules: Rules) -> dict[str, Any]:
    """Statistics of the answers to a row.

    Keys: ``task``, ``parse_ok`` (all times could be read), ``rewards`` (of every answer, by part, without the format),
    ``mean`` and ``std`` of their sums, ``rank`` (the higher, the sooner kept), ``drop_reason`` (``low variance, good``,
    ``low variance, poor``, ``video_error`` or None; `keep` adds ``quota``) and ``kept``.

    Args:
        sample: the row.
        answer: its texts, two or more, unless there was an error.
        rules: what counts as varying and as good.

    Raises:
        SelectionError: fewer than two answers.
    """
    recipe = get_recipe(sample.recipe)
    parts = {name: part for name, (part, _) in recipe.parts.items() if name != "format"}
    task = task_of(recipe.asks)
    if answer.error:
        nothing = {"task": task, "parse_ok": False, "rewards": {}, "mean": None, "std": None, "rank": None}
        return nothing | {"drop_reason": "video_error", "kept": False}
    if len(answer.texts) < 2:
        raise SelectionError(f"{sample.uid}: one answer does not vary; ask with --samples 2 or more (8 is usual)")
    rewards = {name: [float(part(text, sample.truth)) for text in answer.texts] for name, part in parts.items()}
    sums = [sum(values) for values in zip(*rewards.values(), strict=True)]
    mean, std = statistics.fmean(sums), statistics.pstdev(sums)
    varies = any(_varies(name, values, rules) for name, values in rewards.items())
    quality = "good" if mean >= rules.good * len(parts) else "poor"
    return {
        "task": task,
        "parse_ok": task == "mcq" or all(read_intervals(text, sample.recipe) is not None for text in answer.texts),
        "rewards": rewards,
        "mean": mean,
        "std": std,
        "rank": std * std if task == "mcq" else std,
        "drop_reason": None if varies else f"low variance, {quality}",
        "kept": varies,
    }


def task_of(asks: Collection[str]) -> str:
    """The task of a prompt that asks for these (`Recipe.asks`), one of `TASKS`."""
    if not {"object", "objects", "boxes"}.isdisjoint(asks):
        return "stvg"
    timed = not {"time", "times"}.isdisjoint(asks)
    return "mcq" if not timed else "gqa" if "option" in asks else "tvg"


def _varies(part: str, values: Sequence[float], rules: Rules) -> bool:
    """Whether an overlap has enough spread and is not 0 throughout, or anything else is not the same throughout."""
    if part in _OVERLAPS:
        return max(values) > 0.0 and statistics.pstdev(values) >= rules.min_std
    return len(set(values)) > 1


def keep(lines: Sequence[dict], rules: Rules) -> None:
    """Set ``kept`` of every line, and ``drop_reason`` where a quota is full: by rank, then by uid."""
    by_task: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        if line["kept"]:
            by_task[line["task"]].append(line)
    for task, quota in rules.quotas.items():
        by_task[task].sort(key=lambda line: (-line["rank"], line["uid"]))
        for line in by_task[task][quota:]:
            line.update(kept=False, drop_reason="quota")


def notes(lines: list[dict]) -> list[str]:
    """A sentence for each task: how many rows are kept, and why others are not."""
    said = []
    for task in sorted({line["task"] for line in lines}):
        members = [line for line in lines if line["task"] == task]
        reasons = Counter(line["drop_reason"] for line in members if line["drop_reason"])
        left = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none left out"
        said.append(f"{task}: {sum(line['kept'] for line in members)} of {len(members)} rows kept; {left}")
    return said
