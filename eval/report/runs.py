"""Files of a training run's folder: the log by step, dumps of held-out answers, and ``run.json``."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from reward_fns import RECIPES, Recipe
from verl_stvg.base.recipe_names import values
from verl_stvg.eval.report import run_notices
from verl_stvg.eval.report.training import NO_PARTS, Answer, Run, headline, recipe_of
from verl_stvg.rows.chat_template import of_dump
from verl_stvg.training import held_out
from verl_stvg.training.held_out import HeldOut

_RECIPE_KEY = "reward.custom_reward_function.reward_kwargs.recipe"


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
    notices += run_notices.notices(run)
    return run


def summarise(run_dir: Path) -> dict:
    """Numbers of a run's headline, see `headline`.

    Raises:
        ValueError: as `read_run`.
    """
    return headline(read_run(Path(run_dir)))


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


def is_number(value: object) -> TypeGuard[float]:
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
    names = {recipe_of(source) or "" for source in sources}
    return tuple(sorted(names)) if "" not in names else ()


def _read_answers(path: Path, recipe: Recipe | None, several: bool) -> tuple[dict[str, Answer], list[str]]:
    """Answers of a dump by row, and notices.

    Args:
        several: the rows are of several data sources. A part that one of them lacks is null in its answers; else null
            is a rollout that failed.
    """
    records, torn = read_lines(path)
    name = f"validation/{path.name}"
    notices = [f"The last line of {name} is half-written and left out."] if torn else []
    drawn, failed, parts = defaultdict(list), 0, []
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
        if not parts:
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
    return [key for key, value in record.items() if key not in NO_PARTS and (value is None or is_number(value))]


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
    return tuple(part for part in found if part not in NO_PARTS)
