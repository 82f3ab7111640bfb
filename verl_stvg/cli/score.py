"""``verl-stvg score``: predictions of any program against the rows they answer."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from verl_stvg.base import status
from verl_stvg.cli.options import Benchmark, warn_of_old

logger = logging.getLogger(__name__)

LOST = ("missing", "errors", "extra", "duplicates", "half_written", "not_finite")
"""Counts of `verl_stvg.eval.score` of what is no answer to a row; a reply that cannot be read is one, and is wrong."""


def judge(counts: Mapping[str, int]) -> None:
    """End with `status.FINDINGS` where answers are missing, or where there are some that answer nothing."""
    if any(counts.get(name) for name in LOST):
        told = ", ".join(f"{name} {counts[name]}" for name in LOST if counts.get(name))
        logger.warning("not all rows have one answer: %s", told)
        raise typer.Exit(status.FINDINGS)


Tracks = Annotated[
    Path | None,
    typer.Option(help="Unfiltered track files, which make a tube of an ID; default: those that the rows name."),
]
Format = Literal[
    "auto", "answers", "verl", "lines", "by_uid", "annotation", "hc_stvg", "stvg_r1", "time_r1", "temporal_r1",
    "videomind", "moment_detr", "timechat", "lmms_eval",
]  # fmt: skip
_ROWS = "Rows that were answered; not for a folder of `verl-stvg eval`, which names them."
_PREDICTIONS = "File of predictions, several times for several, such as shards; or one folder of `verl-stvg eval`."


def score(
    rows: Annotated[list[Path] | None, typer.Argument(metavar="ROWS.parquet...", help=_ROWS)] = None,
    predictions: Annotated[list[Path] | None, typer.Option(help=_PREDICTIONS)] = None,
    benchmark: Benchmark = None,
    form: Annotated[Format, typer.Option("--format", help="Of the predictions.")] = "auto",
    tracks: Tracks = None,
    masks: Annotated[Path | None, typer.Option(help="Annotation folder with the true masks (MeViS).")] = None,
    train: Annotated[
        list[Path] | None, typer.Option(help="Rows that the constant window is fitted on; default: those scored.")
    ] = None,
    rewards: Annotated[
        bool, typer.Option("--rewards", help="Also the means of the training reward, as verl's validation logs them.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the scores; default: beside the predictions, with -scores added.")
    ] = None,
    answered: Annotated[list[Path] | None, typer.Option("--rows", hidden=True)] = None,
) -> None:
    """Score predictions: table, intervals, groups and baselines (scores.json), and every row (items.jsonl). Exit status
    1 if rows have no prediction, or predictions no row.
    """
    from verl_stvg.eval.benchmarks.items import item_of, read_rows
    from verl_stvg.eval.importers import foreign
    from verl_stvg.eval.score import score_files, score_run

    if answered or (rows and not predictions and rows[0].is_dir()):
        rows, predictions = answered, predictions or rows
        warn_of_old("PREDICTIONS --rows ROWS.parquet", "ROWS.parquet --predictions PREDICTIONS")
    if predictions and len(predictions) == 1 and predictions[0].is_dir():
        if rows or form != "auto" or out or rewards:
            raise ValueError(f"{predictions[0]}: a folder of answers knows rows, format and place; leave them out")
        judge(score_run(predictions[0], benchmark, tracks, masks, tuple(train or ()))["counts"])
        return
    if not rows or not predictions:
        raise ValueError("predictions are scored against the rows they answer: give ROWS.parquet --predictions FILE")
    found = foreign.read(predictions, [item_of(row) for row in read_rows(rows)], form)
    scores = score_files(rows, found.answers, benchmark, tracks, masks, tuple(train or ()), found.counts, found.notes)
    scores.made_by.update(predictions=[str(file) for file in predictions], format=list(found.forms))
    folder = out or predictions[0].with_name(f"{predictions[0].stem}-scores")
    scores.write(folder)
    logger.info("%s", scores.table())
    if rewards:
        _log_rewards(read_rows(rows), found.answers)
    logger.info("scores and items: %s", folder)
    judge(scores.counts)


def _log_rewards(rows: Iterable[Mapping[str, Any]], answers: Mapping[str, Any]) -> None:
    from verl_stvg.eval.score import rewards
    from verl_stvg.rows.answers import Answer

    texts = {uid: said for uid, said in answers.items() if isinstance(said, Answer)}
    for source, parts in rewards(rows, texts).items():
        logger.info("%s: %s", source, ", ".join(f"{part} {value:.4f}" for part, value in parts.items()))
