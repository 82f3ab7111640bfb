"""A training run summed up: metrics by step, held-out answers by step, and what made them.

It serves runs of any reward: the parts are those that the run logged and dumped. Where the reward is a recipe of
`reward_fns`, its own check looks at the ground truth.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from omegaconf import OmegaConf

from reward_fns import RECIPES
from reward_fns.registry import find_recipe
from verl_stvg.base.recipe_names import BASE, FOLDER, VARIANTS, values
from verl_stvg.eval.metrics.intervals import bootstrap
from verl_stvg.training import held_out
from verl_stvg.training.held_out import HeldOut

RESAMPLES = 5000
TITLES = {
    "temporal_iou": "Temporal IoU",
    "temporal_iou_v2": "Temporal IoU, weighted by closeness",
    "id_match": "ID accuracy",
    "tube_iou": "Tube IoU",
    "option": "Option accuracy",
    "accuracy": "Accuracy",
    "format": "Format",
}
"""Headings of reward parts; others are called by their names."""

_UPDATES = {
    "data.train_batch_size": 1024,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
    "actor_rollout_ref.actor.ppo_epochs": 1,
}
"""Keys that say how often a batch is trained on, with verl's defaults."""
NO_PARTS = {"score", "reward", "step", "num_turns"}  # numbers of verl's log and dumps beside the parts


@dataclass(frozen=True)
class Answer:
    """One held-out answer: the text, the row's truth, and the reward with its parts (means of several answers)."""

    uid: str
    prompt: str
    text: str
    truth: Mapping
    values: Mapping[str, float]
    samples: int = 1


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
        columns: value by step of each metric; NaN where the log says that it was not a number.
        logged: held-out means and counts by step and data source, as they were logged.
        validations: answers by step and row uid.
        record: `run.json`.
        parts: of the reward, those of the held-out answers first.
        recipes: of `reward_fns`, that the held-out rows are scored by.
        notices: what is missing or wrong, in sentences.

    A held-out clip without an answer is worth 0, as in `verl-stvg eval`, where the log says how many were asked.
    """

    columns: dict[str, dict[int, float]]
    logged: dict[int, dict[str, HeldOut]]
    validations: dict[int, dict[str, Answer]]
    record: dict
    parts: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    notices: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, str]:
        """The run's KEY=VALUE arguments."""
        return values(self.record.get("arguments") or ())

    @property
    def full_score(self) -> float | None:
        """The highest reward: the sum of the recipe's weights; None if the recipe is not known."""
        sums = {sum(weight for _, weight in RECIPES[name].parts.values()) for name in self.recipes}
        return round(sums.pop(), 9) if len(sums) == 1 else None

    @cached_property
    def last_step(self) -> int:
        """The last step that has metrics."""
        return max(max(column) for column in self.columns.values()) if self.columns else 0

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Data sources of the held-out rows."""
        return tuple(sorted({source for sets in self.logged.values() for source in sets}))

    def series(self, key: str) -> dict[int, float]:
        """Values of one metric by step, where they are numbers."""
        return {step: value for step, value in self.curve(key).items() if not math.isnan(value)}

    def curve(self, key: str) -> dict[int, float]:
        """Values of one metric by step, NaN where it was not a number."""
        return self.columns.get(key, {})

    def held_out(self, part: str) -> dict[int, float]:
        """Held-out means by step: over the clips of a dump where there is one, else as they were logged.

        Every clip counts once, whatever data source it is of. Where the log does not say how many clips a data source
        has, and there is no dump, data sources count equally.
        """
        return self._held_out.get(part, {})

    def held_out_by_source(self, part: str) -> dict[str, dict[int, float]]:
        """Held-out means by data source and step, as they were logged."""
        name = logged_name(part)
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for step, sets in self.logged.items():
            for source, one in sets.items():
                if math.isfinite(value := one.means.get(name, math.nan)):
                    found[source][step] = value
        return dict(found)

    def counted(self, step: int) -> bool:
        """Whether the log says how many prompts a validation asked."""
        sets = self.logged.get(step)
        return bool(sets) and all(one.counts for one in sets.values())

    def unanswered(self, step: int, part: str) -> int:
        """Clips of a validation that have no answer, of the data sources that have this part of the reward."""
        name = logged_name(part)
        sets = self.logged.get(step, {}).values()
        return sum(one.counts.get("unanswered", 0) for one in sets if name in one.means)

    @cached_property
    def _held_out(self) -> dict[str, dict[int, float]]:
        found = {}
        for part in ("score", *self.parts):
            logged = {step: held_out.overall(sets, logged_name(part)) for step, sets in self.logged.items()}
            means = {step: value for step, value in logged.items() if value is not None}
            for step in self.validations:
                if (mean := dumped_mean(self, step, part)) is not None:
                    means[step] = mean
            found[part] = dict(sorted(means.items()))
        return found


def logged_name(part: str) -> str:
    return "reward" if part == "score" else part


def dumped_mean(run: Run, step: int, part: str) -> float | None:
    """Mean of a part over the clips of a dump, those without an answer with it, which are worth 0.

    Args:
        run: with the dump.
        step: of the validation.
        part: of the reward.

    Returns:
        None where no answer has the part.
    """
    values = [answer.values[part] for answer in run.validations[step].values() if part in answer.values]
    return math.fsum(values) / (len(values) + run.unanswered(step, part)) if values else None


def recipe_of(data_source: str) -> str | None:
    """Recipe that rows of a data source are scored by; None for a reward of the user's own."""
    try:
        return find_recipe(data_source).name
    except ValueError:  # no such recipe
        return None


def title(part: str) -> str:
    """Heading of a reward part."""
    return TITLES.get(part, part.replace("_", " ").capitalize())


def headline(run: Run) -> dict:
    """Numbers of a run's headline, as plain floats and ints; None for what the run does not hold.

    Returns:
        `steps`, `first_validation`, `last_validation` (steps; None without one, and None for a last that is the first),
        `clips` (those without an answer too, which are worth 0, if the log says how many were asked), `group_size`,
        `seconds_per_step` (median), `rollout_probs_diff` (largest of all steps), and for each reward part: `before`,
        `after`, `gain`, each with `_low` and `_high`, the bounds of a 95 % percentile bootstrap over clips (paired for
        the gain).
    """
    steps = sorted({step for part in run.parts for step in run.held_out(part)})
    group_size = run.arguments.get("actor_rollout_ref.rollout.n", "")
    seconds = list(run.series("timing_s/step").values())
    parity = list(run.series("training/rollout_probs_diff_mean").values())
    numbers = {
        "steps": run.last_step,
        "first_validation": steps[0] if steps else None,
        "last_validation": steps[-1] if len(steps) > 1 else None,
        "clips": len(paired(run, "score")[0]),
        "group_size": int(group_size) if group_size.isdecimal() else None,
        "seconds_per_step": float(np.median(seconds)) if seconds else None,
        "rollout_probs_diff": max(parity) if parity else None,
    }
    if run.validations:
        first, last = min(run.validations), max(run.validations)
        numbers["first_validation"] = first
        numbers["last_validation"] = last if last != first else None
    for part in run.parts:
        row = dict.fromkeys(f"{name}{end}" for name in ("before", "after", "gain") for end in ("", "_low", "_high"))
        then, now = paired(run, part)
        if then:
            gains = [after - before for before, after in zip(then, now, strict=bool(now))]
            for name, values in (("before", then), ("after", now), ("gain", gains)):
                if values:
                    bounds = bootstrap(values, resamples=RESAMPLES).tolist()
                    row[name], row[f"{name}_low"], row[f"{name}_high"] = bounds
        else:  # means only
            logged = run.held_out(part)
            known = sorted(logged)
            row["before"] = logged[known[0]] if known else None
            if len(known) > 1:
                row["after"], row["gain"] = logged[known[-1]], logged[known[-1]] - logged[known[0]]
        numbers[part] = row
    return numbers


def updates_per_batch(run: Run) -> float | None:
    """How many steps of the optimiser are made with one batch of answers, by the recipe, its variants and the arguments
    that ``run.json`` names; None where it names no recipe of ours.
    """
    arguments = [str(argument) for argument in run.record.get("arguments") or ()]
    options = dict(zip(arguments, arguments[1:], strict=False))
    # older runs have pkg://recipes.NAME
    folder = re.sub(r"^pkg://(verl_stvg\.)?recipes\.", "", options.get("--config-path", ""))
    recipe = FOLDER / folder / f"{options.get('--config-name')}.yaml"
    if not folder or not recipe.is_file():
        return None
    variants = [name.strip(" '\"") for name in run.arguments.get(VARIANTS, "").strip("[]").split(",")]
    files = [BASE, recipe, *(path for name in variants if (path := FOLDER / VARIANTS / f"{name}.yaml").is_file())]
    given = OmegaConf.from_dotlist([f"{key}={value}" for key, value in run.arguments.items() if key in _UPDATES])
    config = OmegaConf.merge(*map(OmegaConf.load, files), given)
    batch, mini_batch, epochs = (OmegaConf.select(config, key, default=value) for key, value in _UPDATES.items())
    return batch / mini_batch * epochs


def paired(run: Run, part: str) -> tuple[list[float], list[float]]:
    """Values of a part at the first and at the last validation, of the same clips in the same order; the last is empty
    if it is the first.

    These are all clips that were asked, if the log says how many; else those that both validations have answers to.
    """
    if not run.validations:
        return [], []
    first, last = min(run.validations), max(run.validations)
    then, now = (
        {uid: answer.values[part] for uid, answer in run.validations[step].items() if part in answer.values}
        for step in (first, last)
    )
    if first == last:
        return [*then.values(), *[0.0] * run.unanswered(first, part)], []
    asked = {len(values) + run.unanswered(step, part) for step, values in ((first, then), (last, now))}
    uids = sorted(then.keys() | now.keys())
    if run.counted(first) and run.counted(last) and len(asked) == 1 and len(uids) <= max(asked):
        nameless = [0.0] * (max(asked) - len(uids))  # neither validation has an answer
        return [then.get(uid, 0.0) for uid in uids] + nameless, [now.get(uid, 0.0) for uid in uids] + nameless
    common = [uid for uid in then if uid in now]
    return [then[uid] for uid in common], [now[uid] for uid in common]


def ends(run: Run) -> tuple[dict[str, Answer], dict[str, Answer]]:
    """Answers of the first and of the last validation, on the clips of both; the last is empty if it is the first."""
    if not run.validations:
        return {}, {}
    first, last = run.validations[min(run.validations)], run.validations[max(run.validations)]
    if first is last:
        return first, {}
    common = [uid for uid in first if uid in last]
    return {uid: first[uid] for uid in common}, {uid: last[uid] for uid in common}
