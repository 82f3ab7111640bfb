"""``verl-stvg select``: ask a model about rows, judge its answers, choose the rows to train on, look at all of it."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from verl_stvg.base import status
from verl_stvg.cli.asking import asking
from verl_stvg.cli.options import Rows, VideoRoot, in_folder

if TYPE_CHECKING:
    from verl_stvg.data_builders.selection.folder import Stage
    from verl_stvg.inference.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Choose the rows to train on.")
logger = logging.getLogger(__name__)
REPORT, PAGE = "report.html", "selection.html"
_PATHS, _NUMBERS = re.compile(r"\S*/\S*[^\s:;,.]"), re.compile(r"\d+(?:\.\d+)?")

Out = Annotated[Path, typer.Option(help="Folder that is made; a run that was stopped goes on in it.")]
Judged = Annotated[Path | None, typer.Option(help="Folder of that stage, or its judged.jsonl; default: not used.")]


@app.command()
@asking()
def reflect(
    rows: Rows,
    out: Out,
    settings: "Settings | None",
    mode: Annotated[
        Literal["prompted", "blanked"],
        typer.Option(help="prompted: the prompt names the annotated interval; blanked: it is black."),
    ] = "prompted",
    own_prompt: Annotated[
        bool, typer.Option("--own-prompt", help="With blanked: each row's own prompt, for models that know no other.")
    ] = False,
    guard: Annotated[float, typer.Option(min=0, help="Seconds around the annotation in which nothing counts.")] = 1.0,
    min_len: Annotated[float, typer.Option(min=0, help="Seconds that an interval must have to count.")] = 1.0,
    tau_out: Annotated[float, typer.Option(min=0, max=1, help="Least share of it outside of the annotation.")] = 0.5,
    min_items: Annotated[int, typer.Option(min=1, help="Pieces of evidence that leave a row out.")] = 1,
    drop_reversed: Annotated[
        bool, typer.Option("--drop-reversed", help="Ignore intervals that end before they start; default: swapped.")
    ] = False,
    video_root: VideoRoot = None,
) -> None:
    """Boundary reflection: find rows whose interval is not the only one that fits the query (VideoTG-R1)."""
    from verl_stvg.data_builders.selection import boundary_reflection as stage

    order = "drop" if drop_reversed else "swap"
    rules = stage.Rules(guard=guard, min_len=min_len, tau_out=tau_out, min_items=min_items, reversed=order)
    _run(stage.stage(mode, rules, own_prompt), rows, out, video_root, settings)


@app.command()
@asking()
def difficulty(
    rows: Rows,
    out: Out,
    settings: "Settings | None",
    bins: Annotated[
        Literal["threshold", "quantile"], typer.Option(help="threshold: by IoU; quantile: by rank within a set.")
    ] = "threshold",
    hard: Annotated[float, typer.Option(min=0, max=1, help="Below this value a sample is hard.")] = 0.3,
    easy: Annotated[float, typer.Option(min=0, max=1, help="From this value on a sample is easy.")] = 0.7,
    first_numbers: Annotated[
        bool, typer.Option("--first-numbers", help="Take the first two numbers of unreadable replies, as Time-R1.")
    ] = False,
    video_root: VideoRoot = None,
) -> None:
    """Difficulty: how well the model does before training, and which rows are hard, normal or easy."""
    from verl_stvg.data_builders.selection import difficulty as stage

    _run(stage.stage(stage.Rules(bins, hard, easy, first_numbers)), rows, out, video_root, settings)


@app.command()
@asking(samples=8, temperature=1.0)
def variance(
    rows: Rows,
    out: Out,
    settings: "Settings | None",
    min_std: Annotated[float, typer.Option(min=0, help="Least standard deviation of the overlap.")] = 0.1,
    quota: Annotated[list[str] | None, typer.Option(help="Most rows of a task: tvg=32000, mcq=, gqa=, stvg=.")] = None,
    video_root: VideoRoot = None,
) -> None:
    """Variance: keep rows on which the model's own answers differ (Temporal-R1)."""
    from verl_stvg.data_builders.selection import variance as stage

    _run(stage.stage(stage.Rules(min_std, _quotas(quota or []))), rows, out, video_root, settings)


@app.command()
def subset(
    rows: Rows,
    out: Annotated[Path, typer.Option(help="Folder that is made: train.parquet, uids.txt, manifest.json.")],
    reflection: Judged = None,
    difficulty: Judged = None,
    variance: Judged = None,
    uids: Annotated[Path | None, typer.Option(help="File of uids, one per line; all others are left out.")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of all rows, before anything is left out.")] = 0.10,
    size: Annotated[int | None, typer.Option(min=1, help="Number of rows, instead of a share.")] = None,
    easy_share: Annotated[float, typer.Option(min=0, max=1, help="Of the easy rows that may be chosen.")] = 1.0,
    seed: int = 42,
    video_root: VideoRoot = None,
) -> None:
    """The rows to train on: a share of what the stages left, spread over sets and difficulties as these are. Exit
    status 1 if fewer are left than --size.
    """
    from verl_stvg.data_builders.selection import subset as chooser

    found = chooser.Judgements(reflection, difficulty, variance, uids)
    manifest = chooser.select(rows, out, found, chooser.Rules(share, size, easy_share, seed), video_root)
    for reason, count in manifest["dropped"].items():
        logger.info("%d left out: %s", count, reason)
    if manifest["chosen"] < manifest["asked"]:
        logger.warning("%d rows were asked for and only %d are left", manifest["asked"], manifest["chosen"])
    logger.info("%d of %d rows: %s", manifest["chosen"], manifest["rows"], out / chooser.TRAIN)
    if size is not None and manifest["chosen"] < size:
        raise typer.Exit(status.FINDINGS)


@app.command("time-r1")
def time_r1(
    rows: Rows,
    out: Annotated[Path, typer.Option(help="Folder that is made: train.parquet, uids.txt, manifest.json.")],
    difficulty: Annotated[Path, typer.Option(help="Folder of that stage on these rows, or its judged.jsonl.")],
    round_: Annotated[int, typer.Option("--round", min=0, help="0: the cold start; later: the filter.")] = 0,
    size: Annotated[int, typer.Option(min=1, help="Rows that are kept.")] = 2500,
    seed: int = 42,
    video_root: VideoRoot = None,
) -> None:
    """Time-R1's choice: a draw around IoU 0.3 for the cold start, then, on the rows of the last round, a filter."""
    from verl_stvg.data_builders.selection import subset as chooser
    from verl_stvg.data_builders.selection import time_r1_filter

    manifest = time_r1_filter.select(rows, out, difficulty, round_, time_r1_filter.Rules(size=size), seed, video_root)
    logger.info("%d of %d rows: %s", manifest["chosen"], manifest["rows"], out / chooser.TRAIN)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Of stages and choices, on one page.")],
    out: Annotated[Path, typer.Option(help=f"Folder in which the page, {PAGE}, is made.")] = Path(),
    limit: Annotated[int, typer.Option(min=1, help="Examples for each reason.")] = 8,
    video_root: VideoRoot = None,
) -> None:
    """One self-contained page: distributions, and examples of what was kept and dropped, with the model's replies."""
    from verl_stvg.data_builders.selection import report as page

    path = in_folder(out, PAGE)
    logger.info("%d examples: %s", page.write(folders, path, limit, video_root), path)


def _run(stage: "Stage", rows: list[Path], out: Path, video_root: Path | None, settings: "Settings | None") -> None:
    from verl_stvg.data_builders.selection import folder
    from verl_stvg.data_builders.selection import report as page

    if settings:
        from verl_stvg.inference import checkpoint

        checkpoint.resolve(settings.model)  # a name that is wrong is found before the folder is made
    folder.prepare(stage, rows, out, video_root, settings.fit if settings else None)
    failed = 0
    if settings:
        from verl_stvg.inference.generate import generate

        name = "all" if settings.fold_size is None else f"fold{settings.fold_index}"
        asked = dataclasses.replace(settings, fit={})  # the frozen rows have it
        counts = generate([out / folder.ROWS], out / folder.ANSWERS / name, asked)
        failed = counts.errors
        if failed and failed == counts.rows:
            raise ValueError(_all_failed(out / folder.ANSWERS / name))
    try:
        folder.judge(stage, out)
    except folder.MissingAnswers as missing:
        if settings is None:
            raise ValueError(f"{missing}; without --model no model is asked") from missing
        if settings.fold_size is None:
            raise
        logger.info("fold %d is answered; %s", settings.fold_index, missing)
        _judge(failed)
        return
    page.write([out], out / REPORT)
    for note in folder.read_summary(out)["notes"]:
        logger.info(note)
    logger.info("judgements: %s; a page of them: %s", out / folder.JUDGED, out / REPORT)
    _judge(failed)


def _all_failed(answers: Path) -> str:
    """Why no row could be asked about: reasons with their counts, without numbers and paths, and the first row."""
    from collections import Counter

    from verl_stvg.inference.generate import ANSWERS
    from verl_stvg.rows.answers import read

    found = read(answers / ANSWERS)
    counts = Counter(_NUMBERS.sub("N", _PATHS.sub("FILE", answer.error or "")) for answer in found.values())
    first = next(answer for answer in found.values() if answer.error)
    reasons = "\n".join(f"  {count} x {reason}" for reason, count in counts.most_common(5))
    return (
        f"{answers / ANSWERS}: the model could be asked about none of the {len(found)} rows, so nothing is judged; the "
        f"first is {first.uid}: {first.error}\n{reasons}\nmend that, then remove {answers} or choose another --out"
    )


def _judge(failed: int) -> None:
    """Findings are rows that the model could not be asked about; the judgements leave them out."""
    if failed:
        raise typer.Exit(status.FINDINGS)


def _quotas(given: list[str]) -> dict[str, int]:
    found = {}
    for text in given:
        task, _, number = text.partition("=")
        if not number.isdecimal():
            raise ValueError(f"--quota {text} is not of the form task=number, for example tvg=32000")
        found[task] = int(number)
    return found
