"""The folder of a training run, read and summed up: metrics by step, held-out answers by step, and what made them.

It serves runs of any reward: the parts are those that the run logged and dumped. Where the reward is a recipe of
`reward_fns`, its own check looks at the ground truth.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.metrics.intervals import bootstrap
from reward_fns import RECIPES, Recipe
from verl_stvg.reward import find_recipe

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

_RECIPE_KEY = "reward.custom_reward_function.reward_kwargs.recipe"
_NO_PARTS = {"score", "reward", "step", "num_turns"}  # numbers of verl's log and dumps beside the parts


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
        metrics: name to value by step.
        validations: answers by step and row uid.
        record: `run.json`.
        parts: of the reward, those of the held-out answers first.
        recipes: of `reward_fns`, that the held-out rows are scored by.
        notices: what is missing or wrong, in sentences.
    """

    metrics: dict[int, dict[str, float]]
    validations: dict[int, dict[str, Answer]]
    record: dict
    parts: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    notices: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, str]:
        """The run's KEY=VALUE arguments."""
        pairs = (str(argument).lstrip("+").split("=", 1) for argument in self.record.get("arguments") or ())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    @property
    def full_score(self) -> float | None:
        """The highest reward: the sum of the recipe's weights; None if the recipe is not known."""
        sums = {sum(weight for _, weight in RECIPES[name].parts.values()) for name in self.recipes}
        return round(sums.pop(), 9) if len(sums) == 1 else None

    def series(self, key: str) -> dict[int, float]:
        """Values of one metric by step."""
        return {step: data[key] for step, data in self.metrics.items() if key in data}

    def held_out(self, part: str) -> dict[int, float]:
        """Held-out means by step: over the clips of a dump where there is one, else as verl logged them.

        verl's key is `val-core|val-aux/<data source>/<part>/mean@<n>`; several data sources count equally.
        """
        name = "reward" if part == "score" else part
        logged = defaultdict(list)
        for step, data in self.metrics.items():
            for key, value in data.items():
                found = _held_out_key(key)
                if found is not None and found[1] == name:
                    logged[step].append(value)
        means = {step: float(np.mean(values)) for step, values in logged.items()}
        for step, answers in self.validations.items():
            values = [answer.values[part] for answer in answers.values() if part in answer.values]
            if values:
                means[step] = float(np.mean(values))
        return dict(sorted(means.items()))


def recipe_of(data_source: str) -> str | None:
    """Recipe that rows of a data source are scored by; None for a reward of the user's own."""
    try:
        return find_recipe(data_source).name
    except ValueError:  # no such recipe
        return None


def title(part: str) -> str:
    """Heading of a reward part."""
    return TITLES.get(part, part.replace("_", " ").capitalize())


def read_run(run_dir: Path) -> Run:
    """Read `metrics.jsonl`, `validation/<step>.jsonl` and `run.json` of a run's folder.

    Raises:
        ValueError: `metrics.jsonl` missing or empty, or a line of it or of a dump that cannot be read; names file, line
            and remedy. A half-written last line or a missing `run.json` is a notice instead.
    """
    notices = []
    metrics = _read_metrics(run_dir / "metrics.jsonl", notices)
    record = read_record(run_dir / "run.json")
    if record is None:
        notices.append("There is no run.json in the run's folder, so its arguments and videos are not known.")
    run = Run(metrics, {}, record or {}, notices=notices)
    sources = sorted({found[0] for data in metrics.values() for key in data if (found := _held_out_key(key))})
    run = replace(run, recipes=_recipes(run, sources))
    composition = RECIPES[run.recipes[0]] if len(run.recipes) == 1 else None
    for path in sorted(run_dir.glob("validation/*.jsonl"), key=lambda path: (len(path.stem), path.stem)):
        if not path.stem.isdecimal():
            raise ValueError(f"{path}: dumps are named <step>.jsonl; move other files out of the folder")
        answers, told = _read_answers(path, composition)
        notices += told
        if answers:
            run.validations[int(path.stem)] = answers
    if not run.validations:
        notices.append(
            "There are no held-out answers (validation/<step>.jsonl), so no intervals and no clips are shown; "
            "train with trainer.validation_data_dir set."
        )
    run = replace(run, parts=_parts(run))
    notices += _disagreements(run)
    return run


def summarise(run_dir: Path) -> dict:
    """Numbers of a run's headline, see `headline`.

    Raises:
        ValueError: as `read_run`.
    """
    return headline(read_run(Path(run_dir)))


def headline(run: Run) -> dict:
    """Numbers of a run's headline, as plain floats and ints; None for what the run does not hold.

    Returns:
        `steps`, `first_validation`, `last_validation` (steps; None without one, and None for a last that is the first),
        `clips`, `group_size`, `seconds_per_step` (median), `rollout_probs_diff` (largest of all steps), and for each
        reward part: `before`, `after`, `gain`, each with `_low` and `_high`, the bounds of a 95 % percentile bootstrap
        over clips (paired for the gain).
    """
    before, after = ends(run)
    steps = sorted({step for part in run.parts for step in run.held_out(part)})
    group_size = run.arguments.get("actor_rollout_ref.rollout.n", "")
    seconds = list(run.series("timing_s/step").values())
    parity = list(run.series("training/rollout_probs_diff_mean").values())
    numbers = {
        "steps": max(run.metrics),
        "first_validation": steps[0] if steps else None,
        "last_validation": steps[-1] if len(steps) > 1 else None,
        "clips": len(before),
        "group_size": int(group_size) if group_size.isdecimal() else None,
        "seconds_per_step": float(np.median(seconds)) if seconds else None,
        "rollout_probs_diff": max(parity) if parity else None,
    }
    if run.validations:
        numbers["first_validation"] = min(run.validations)
        numbers["last_validation"] = max(run.validations) if after else None
    for part in run.parts:
        row = dict.fromkeys(f"{name}{end}" for name in ("before", "after", "gain") for end in ("", "_low", "_high"))
        then = {uid: answer.values[part] for uid, answer in before.items() if part in answer.values}
        if then:
            now = {uid: answer.values[part] for uid, answer in after.items()}
            samples = {"before": then, "after": now, "gain": {uid: now[uid] - then[uid] for uid in now}}
            for name, values in samples.items():
                if values:
                    bounds = bootstrap(list(values.values()), resamples=RESAMPLES).tolist()
                    row[name], row[f"{name}_low"], row[f"{name}_high"] = bounds
        else:  # means only
            logged = run.held_out(part)
            known = sorted(logged)
            row["before"] = logged[known[0]] if known else None
            if len(known) > 1:
                row["after"], row["gain"] = logged[known[-1]], logged[known[-1]] - logged[known[0]]
        numbers[part] = row
    return numbers


def ends(run: Run) -> tuple[dict[str, Answer], dict[str, Answer]]:
    """Answers of the first and of the last validation, on the clips of both; the last is empty if it is the first."""
    if not run.validations:
        return {}, {}
    first, last = run.validations[min(run.validations)], run.validations[max(run.validations)]
    if first is last:
        return first, {}
    common = [uid for uid in first if uid in last]
    return {uid: first[uid] for uid in common}, {uid: last[uid] for uid in common}


# --- files ------------------------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict | None:
    """A JSON object of a folder; None if there is no such file.

    Raises:
        ValueError: the file holds anything else.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove the file, or make it again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: not a JSON object; remove the file, or make it again")
    return record


def read_lines(path: Path) -> tuple[list[tuple[int, dict]], bool]:
    """Numbered JSON objects of a file, and whether its last line is half-written (no line feed, and no JSON).

    Raises:
        ValueError: another line that is no JSON object.
    """
    lines = path.read_bytes().split(b"\n")
    records = []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            if place == len(lines):
                return records, True
            raise ValueError(f"{path}, line {place}: not JSON ({error}); remove the line or run again") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {place}: not a JSON object; remove the line or run again")
        records.append((place, record))
    return records, False


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_metrics(path: Path, notices: list[str]) -> dict[int, dict[str, float]]:
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; give the folder that `verl-stvg train --run-dir` wrote to, or one with the "
            "scores.json that `verl-stvg eval` and `verl-stvg score` write"
        )
    records, torn = read_lines(path)
    if torn:
        notices.append("The last line of metrics.jsonl is half-written and left out: the run goes on, or was ended.")
    if not records:
        raise ValueError(f"{path}: holds no complete line; wait for the first step, or see train.log why there is none")
    metrics: dict[int, dict[str, float]] = {}
    for place, record in records:
        step, data = record.get("step"), record.get("data")
        if not isinstance(step, int) or not isinstance(data, dict):
            raise ValueError(
                f'{path}, line {place}: not of the form {{"step": int, "data": {{...}}}}; '
                "the file must come from verl's file logger (trainer.logger=[console,file])"
            )
        metrics.setdefault(step, {}).update((key, float(value)) for key, value in data.items() if is_number(value))
    return dict(sorted(metrics.items()))


def _held_out_key(key: str) -> tuple[str, str] | None:
    """Data source and part of a held-out mean; None for another metric."""
    found = re.fullmatch(r"val-(?:core|aux)/(.+)/([^/]+)/mean@\d+", key)
    return found.groups() if found else None


def _recipes(run: Run, sources: list[str]) -> tuple[str, ...]:
    """Recipes of the run's held-out rows: the one it was told to use, else those of its data sources."""
    if (told := run.arguments.get(_RECIPE_KEY)) is not None:
        return (told,) if told in RECIPES else ()
    names = {recipe_of(source) for source in sources}
    return tuple(sorted(names)) if None not in names else ()


def _read_answers(path: Path, recipe: Recipe | None) -> tuple[dict[str, Answer], list[str]]:
    records, torn = read_lines(path)
    name = f"validation/{path.name}"
    notices = [f"The last line of {name} is half-written and left out."] if torn else []
    drawn, failed, parts = defaultdict(list), 0, None
    for place, record in records:
        where = f"{path}, line {place}"
        truth = record.get("gts")
        if not isinstance(truth, dict) or "uid" not in truth:
            raise ValueError(f"{where}: key 'gts' holds no 'uid', the row's own; build the rows again and rerun")
        if recipe is not None:
            try:
                recipe.check(truth, truth["uid"])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        if not isinstance(record.get("output"), str):
            raise ValueError(f"{where}: output is missing or no text; dumps are those of verl's validation")
        parts = parts or ["score", *_dumped_parts(record)]
        if absent := [key for key in parts if key not in record]:
            raise ValueError(f"{where}: no {', '.join(absent)}; every answer of a run carries the same reward parts")
        if not all(is_number(record[key]) for key in parts):
            failed += 1  # verl writes null for a rollout that failed
            continue
        values = {key: float(record[key]) for key in parts}
        drawn[str(truth["uid"])].append((record["output"], str(record.get("input", "")), truth, values))
    if failed:
        notices.append(f"{failed} answers of {name} have no reward (the rollout failed) and are left out.")
    answers = {}
    for uid, samples in drawn.items():
        samples.sort(key=lambda sample: sample[0])  # lines come in random order; the page should not change with it
        text, prompt, truth, _ = samples[0]
        means = {key: float(np.mean([values[key] for *_, values in samples])) for key in parts}
        answers[uid] = Answer(uid, prompt, text, truth, means, len(samples))
    return dict(sorted(answers.items())), notices


def _dumped_parts(record: Mapping) -> list[str]:
    return [key for key, value in record.items() if key not in _NO_PARTS and (value is None or is_number(value))]


def _parts(run: Run) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for answers in run.validations.values():
        for answer in answers.values():
            found.update(dict.fromkeys(answer.values))
            break
    logged = sorted({key for data in run.metrics.values() for key in data})
    for key in logged:
        held_out, training = _held_out_key(key), re.fullmatch(r"reward/([^/]+)/mean", key)
        if held_out or training:
            found.setdefault(held_out[1] if held_out else training[1])
    if len(run.recipes) == 1:  # the recipe's order
        found = dict.fromkeys([part for part in RECIPES[run.recipes[0]].parts if part in found]) | found
    return tuple(part for part in found if part not in _NO_PARTS)


def _disagreements(run: Run) -> list[str]:
    """A notice for every part whose logged held-out mean is not that of the dumped answers at some step."""
    bare = replace(run, validations={})
    notices = []
    for part in run.parts:
        logged, dumped = bare.held_out(part), run.held_out(part)
        both = [step for step in run.validations if step in logged and step in dumped]
        off = [step for step in both if abs(logged[step] - dumped[step]) > 1e-3]
        if off:
            notices.append(
                f"{title(part)}: the mean in metrics.jsonl is not that of the answers in validation/ at "
                f"{'steps' if len(off) > 1 else 'step'} {', '.join(map(str, off))}; the answers are shown."
            )
    return notices
