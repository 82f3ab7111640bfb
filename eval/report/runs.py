"""The folder of a training run, read and summed up: metrics by step, held-out answers by step, and what made them.

It serves runs of any reward: the parts are those that the run logged and dumped. Where the reward is a recipe of
`reward_fns`, its own check looks at the ground truth.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from reward_fns import RECIPES, Recipe
from verl_stvg.base.recipe_names import FOLDER, VARIANTS, values
from verl_stvg.eval.metrics.intervals import bootstrap
from verl_stvg.rows.chat_template import of_dump
from verl_stvg.training import held_out
from verl_stvg.training.held_out import HeldOut
from verl_stvg.training.reward import find_recipe

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
_UPDATES = {
    "data.train_batch_size": 1024,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
    "actor_rollout_ref.actor.ppo_epochs": 1,
}
"""Keys that say how often a batch is trained on, with verl's defaults."""
_NO_PARTS = {"score", "reward", "step", "num_turns"}  # numbers of verl's log and dumps beside the parts
_TOLERANCE = 1e-3
_NAMED_STEPS = 5


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
        name = _logged_name(part)
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
        name = _logged_name(part)
        sets = self.logged.get(step, {}).values()
        return sum(one.counts.get("unanswered", 0) for one in sets if name in one.means)

    @cached_property
    def _held_out(self) -> dict[str, dict[int, float]]:
        found = {}
        for part in ("score", *self.parts):
            logged = {step: held_out.overall(sets, _logged_name(part)) for step, sets in self.logged.items()}
            means = {step: value for step, value in logged.items() if value is not None}
            for step in self.validations:
                if (mean := _dumped_mean(self, step, part)) is not None:
                    means[step] = mean
            found[part] = dict(sorted(means.items()))
        return found


def _logged_name(part: str) -> str:
    return "reward" if part == "score" else part


def _dumped_mean(run: Run, step: int, part: str) -> float | None:
    """Mean of a part over the clips of a dump, those without an answer with it, which are worth 0."""
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


def read_run(run_dir: Path) -> Run:
    """Read `metrics.jsonl`, `validation/<step>.jsonl` and `run.json` of a run's folder.

    Raises:
        ValueError: `metrics.jsonl` missing or empty, or a line of it or of a dump that cannot be read; names file, line
            and remedy. A half-written last line or a missing `run.json` is a notice instead.
    """
    notices: list[str] = []
    metrics = _read_metrics(run_dir / "metrics.jsonl", notices)
    columns: dict[str, dict[int, float]] = defaultdict(dict)
    for step, data in metrics.items():
        for key, value in data.items():
            columns[key][step] = value
    logged = {step: sets for step, data in metrics.items() if (sets := held_out.read(data))}
    record = read_record(run_dir / "run.json")
    if record is None:
        notices.append("There is no run.json in the run's folder, so its arguments and videos are not known.")
    sources = sorted({source for sets in logged.values() for source in sets})
    recipes = _recipes(values((record or {}).get("arguments") or ()), sources)
    composition = RECIPES[recipes[0]] if len(recipes) == 1 else None
    validations: dict[int, dict[str, Answer]] = {}
    for path in sorted(run_dir.glob("validation/*.jsonl"), key=lambda path: (len(path.stem), path.stem)):
        if not path.stem.isdecimal():
            raise ValueError(f"{path}: dumps are named <step>.jsonl; move other files out of the folder")
        answers, told = _read_answers(path, composition, several=len(sources) > 1)
        notices += told
        if answers:
            validations[int(path.stem)] = answers
    if not validations:
        notices.append(
            "There are no held-out answers (validation/<step>.jsonl), so no intervals and no clips are shown; "
            "train with trainer.validation_data_dir set."
        )
    parts = _parts(columns, logged, validations, recipes)
    run = Run(dict(columns), logged, validations, record or {}, parts, recipes, notices)
    notices += [*_missing(run), *_other_clips(run), *_lost_answers(run), *_disagreements(run)]
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
    folder = options.get("--config-path", "").removeprefix("pkg://verl_stvg.recipes.")
    recipe = FOLDER / folder / f"{options.get('--config-name')}.yaml"
    if not folder or not recipe.is_file():
        return None
    variants = [name.strip(" '\"") for name in run.arguments.get(VARIANTS, "").strip("[]").split(",")]
    files = [recipe, *(path for name in variants if (path := FOLDER / VARIANTS / f"{name}.yaml").is_file())]
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
        values = metrics.setdefault(step, {})
        for key, value in data.items():
            if is_number(value):
                values[key] = float(value)
            elif value is None or isinstance(value, float):  # verl's logger writes null for what is not a number
                values[key] = math.nan
    return dict(sorted(metrics.items()))


def _recipes(arguments: Mapping[str, str], sources: list[str]) -> tuple[str, ...]:
    """Recipes of the run's held-out rows: the one it was told to use, else those of its data sources."""
    if (told := arguments.get(_RECIPE_KEY)) is not None:
        return (told,) if told in RECIPES else ()
    names = {recipe_of(source) for source in sources}
    return tuple(sorted(names)) if None not in names else ()


def _read_answers(path: Path, recipe: Recipe | None, several: bool) -> tuple[dict[str, Answer], list[str]]:
    """Answers of a dump by row, and notices.

    Args:
        several: the rows are of several data sources. A part that one of them lacks is null in its answers; else null
            is a rollout that failed.
    """
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
        if parts is None:
            parts = ["score", *_dumped_parts(record)]
        if absent := [key for key in parts if key not in record]:
            raise ValueError(f"{where}: no {', '.join(absent)}; every answer of a run carries the same reward parts")
        values = {key: float(record[key]) for key in parts if is_number(record[key])}
        if len(values) < len(parts) and not (several and len(values) > 1 and "score" in values):
            failed += 1
            continue
        drawn[str(truth["uid"])].append((of_dump(record), str(record.get("input", "")), truth, values))
    if failed:
        notices.append(f"{failed} answers of {name} have no reward (the rollout failed) and are left out.")
    answers = {}
    for uid, samples in drawn.items():
        samples.sort(key=lambda sample: sample[0])  # lines come in random order; the page should not change with it
        text, prompt, truth, _ = samples[0]
        known = {key: [values[key] for *_, values in samples if key in values] for key in parts}
        means = {key: math.fsum(values) / len(values) for key, values in known.items() if values}
        answers[uid] = Answer(uid, prompt, text, truth, means, len(samples))
    return dict(sorted(answers.items())), notices


def _dumped_parts(record: Mapping) -> list[str]:
    return [key for key, value in record.items() if key not in _NO_PARTS and (value is None or is_number(value))]


def _parts(
    columns: Iterable[str], logged: Mapping[int, Mapping[str, HeldOut]], validations: Mapping, recipes: Sequence[str]
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for answers in validations.values():
        for answer in answers.values():
            found.update(dict.fromkeys(answer.values))
    named = {part for sets in logged.values() for one in sets.values() for part in one.means}
    named |= {key.split("/")[1] for key in columns if key.startswith("reward/") and key.endswith("/mean")}
    found |= dict.fromkeys(sorted(named - found.keys()))
    if len(recipes) == 1:  # the recipe's order
        found = dict.fromkeys([part for part in RECIPES[recipes[0]].parts if part in found]) | found
    return tuple(part for part in found if part not in _NO_PARTS)


# --- notices ----------------------------------------------------------------------------------------------------------


def steps_in_words(steps: Sequence[int]) -> str:
    """``step 4``, or ``steps 4, 8, 12``; of many the first few and how many more."""
    few = ", ".join(map(str, steps[:_NAMED_STEPS]))
    more = f" and {len(steps) - _NAMED_STEPS} more" if len(steps) > _NAMED_STEPS else ""
    return f"step{'s' if len(steps) > 1 else ''} {few}{more}"


def _missing(run: Run) -> list[str]:
    """Answers that were asked for and are not there, by data source."""
    notices = []
    for source in run.sources:
        counts = {step: sets[source].counts for step, sets in run.logged.items() if source in sets}
        found = [
            f"{one['missing']} of {one['asked']} at step {step} (all of {one['unanswered']} of {one['prompts']} clips)"
            for step, one in counts.items()
            if one.get("missing")
        ]
        if found:
            more = f"; and at {len(found) - _NAMED_STEPS} more steps" if len(found) > _NAMED_STEPS else ""
            notices.append(
                f"Held-out answers of {source} are missing; their rollouts failed, and train.log says why: "
                f"{'; '.join(found[:_NAMED_STEPS])}{more}. A clip without any counts as 0, as in `verl-stvg eval`."
            )
    return notices


def _other_clips(run: Run) -> list[str]:
    """A notice if the held-out means of the steps are not over the same clips."""
    if len(run.validations) < 2:
        return []
    sizes = {step: len(answers) + run.unanswered(step, "score") for step, answers in run.validations.items()}
    union = {uid for answers in run.validations.values() for uid in answers}
    known = all(run.counted(step) for step in run.validations)
    if (
        len(set(sizes.values())) == 1
        and (known or len(union) == max(sizes.values()))
        and len(union) <= max(sizes.values())
    ):
        return []
    listed = [f"{size} at step {step}" for step, size in sizes.items()]
    few = ", ".join(listed[:_NAMED_STEPS]) + (", …" if len(listed) > _NAMED_STEPS else "")
    told = "" if known else " The log does not say how many were asked."
    return [
        f"Not all validations are of the same clips: {few}; {len(union)} in all.{told} A point of a held-out curve is "
        "the mean over the clips of its step; before and after are compared on the clips of both."
    ]


def _lost_answers(run: Run) -> list[str]:
    """A notice where verl's means, all that there is, leave out clips that lost some of their answers."""
    if run.validations:
        return []
    steps = [step for step, sets in run.logged.items() if any(one.apart for one in sets.values())]
    if not steps:
        return []
    return [
        f"Some clips lost answers at {steps_in_words(steps)}: verl logs their means apart, without their number, so "
        "the held-out means are those of the clips that lost none."
    ]


def _disagreements(run: Run) -> list[str]:
    """A notice for every part whose logged held-out mean is not that of the dumped answers at some step."""
    notices = []
    for part in run.parts:
        off = [step for step in run.validations if _disagrees(run, step, part)]
        if off:
            notices.append(
                f"{title(part)}: the mean in metrics.jsonl is not that of the answers in validation/ at "
                f"{steps_in_words(off)}; the answers are shown."
            )
    return notices


def _disagrees(run: Run, step: int, part: str) -> bool:
    """Whether a dump's mean cannot be the one that was logged: it differs or, where the log does not say how many clips
    each of its means is over, lies outside of them.
    """
    dumped, name = _dumped_mean(run, step, part), _logged_name(part)
    sets = run.logged.get(step, {})
    logged = held_out.overall(sets, name)
    if dumped is None or logged is None:
        return False
    if run.counted(step):
        return abs(dumped - logged) > _TOLERANCE
    means = [value for one in sets.values() for value in (one.means.get(name), *one.apart.get(name, {}).values())]
    means = [value for value in means if value is not None and math.isfinite(value)]
    return not min(means) - _TOLERANCE <= dumped <= max(means) + _TOLERANCE
