"""One self-contained HTML page about training runs and evaluations, so that a number can be checked against clips.

A mean that rises says little by itself: it may come from fewer malformed answers, from answers that are all alike, or
from grounding. The page therefore sets numbers, with intervals, beside their spread over clips, the kinds of errors,
the curves of every reward part, and clips with truth and answers drawn on frames and on one time line. This module puts
the page together; the folders are read by `verl_stvg.eval.report.runs` and `verl_stvg.eval.report.evaluations`, clips
by `verl_stvg.eval.report.clips`; what is said of each is put together in `of_run` and `of_evaluation`; and all markup
stands in `*.html`, rendered by jinja2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2

from verl_stvg.base.lock import write_whole
from verl_stvg.eval.report import charts, clips, evaluations, of_evaluation, of_run
from verl_stvg.eval.report.clips import NUM_FRAMES, PICK, PICK_SEED
from verl_stvg.eval.report.evaluations import Evaluation
from verl_stvg.eval.report.runs import summarise

__all__ = ["summarise", "write"]

IMAGE_BYTES = 2_600_000
"""JPEG bytes of the whole page; base64 makes a third more of it."""
MAX_MODELS = 6
"""Evaluations of one benchmark that colours and columns can tell apart."""

_PICKED = {"improved": "Most improved", "worsened": "Most worsened", "random": "At random"}


def write(folders: Path | Sequence[Path], out: Path) -> Path:
    """Write the page of training runs and evaluations, and return its path.

    Evaluations of one benchmark are compared with the first of them. An evaluation in the folder of a run, or below it,
    brings the run's curves along.

    Args:
        folders: of runs (``metrics.jsonl``) and of evaluations (``scores.json``).
        out: the page.

    Raises:
        ValueError: a folder that is neither, files of it that cannot be read, evaluations on other rows, or too many of
            them; names file, line and remedy. Missing videos, tracks or rows are told on the page instead.
    """
    folders = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    out = Path(out)
    scored, trained = _told_apart(folders)
    compared = _compared(scored)
    pictured = len(compared) + len(trained)
    count = max(2, PICK // max(1, pictured))

    sections = [of_evaluation.section(found, count) for found in compared]
    sections += [of_run.section(folder, count) for folder in trained]
    known = {folder.resolve() for folder in trained}
    above = dict.fromkeys(found for folder in scored if (found := _run_above(folder)) is not None)
    sections += [of_run.curves_section(folder) for folder in above if folder not in known]

    budget = IMAGE_BYTES // max(1, sum(len(one["looked"].clips) for one in sections) * NUM_FRAMES)
    for section in sections:
        _draw(section, budget)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "signed", "fixed", "hundredths", "points", "thousands")
    environment.filters.update({name: getattr(charts, name) for name in names})
    page = environment.get_template("page.html").render(
        title=" · ".join(dict.fromkeys(section["title"] for section in sections)),
        sections=sections,
        plot={"width": charts.WIDTH, "height": charts.HEIGHT},
        pick_seed=PICK_SEED,
    )
    write_whole(out, page)
    return out


def _told_apart(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Folders of evaluations, and folders of runs."""
    scored, trained = [], []
    for folder in folders:
        if (folder / "scores.json").is_file():
            scored.append(folder)
        elif (folder / "predictions.jsonl").is_file():
            raise ValueError(f"{folder}: its answers are not scored; run `verl-stvg score` on it first")
        else:
            trained.append(folder)
    if not scored and not trained:
        raise ValueError("no folder; give one of a run or of an evaluation")
    return scored, trained


def _compared(folders: Sequence[Path]) -> list[list[Evaluation]]:
    """Evaluations by benchmark, with names that tell them apart."""
    found = [evaluations.read(folder) for folder in folders]
    names = evaluations.names([(one.made_by.get("model"), one.folder) for one in found])
    by_benchmark: dict[str, list[Evaluation]] = {}
    for one, name in zip(found, names, strict=True):
        by_benchmark.setdefault(one.benchmark, []).append(replace(one, name=name))
    for benchmark, group in by_benchmark.items():
        if len(group) > MAX_MODELS:
            raise ValueError(
                f"{len(group)} evaluations of {benchmark}, and a page compares {MAX_MODELS} at most; give fewer folders"
            )
        evaluations.check_same_rows(group)
    return list(by_benchmark.values())


def _run_above(folder: Path) -> Path | None:
    """The run that a folder is, or lies in."""
    folder = folder.resolve()
    return next((one for one in (folder, *folder.parents) if (one / "metrics.jsonl").is_file()), None)


def _draw(section: dict, budget: int) -> None:
    looked = section.pop("looked")
    drawn, notices = clips.draw(looked.clips, looked.voices, looked.rows, budget)
    section["clips"] = drawn
    section["voices"] = looked.voices
    if drawn:
        section["notices"] += [*looked.rows.notices, *notices]
    labels = {**_PICKED, "worst": section["worst"][0].upper() + section["worst"][1:], "all": "All shown"}
    if len(looked.voices) > 1:  # what the page shows at first: all, those that changed most before the others
        labels = {"all": labels["all"], **labels}
    counts = {name: sum(name == "all" or name in clip["picked"] for clip in drawn) for name in labels}
    section["labels"] = labels
    section["groups"] = [
        {"name": name, "label": label, "count": counts[name]} for name, label in labels.items() if counts[name]
    ]
