"""The command `verl-stvg eval`: a model's answers to the rows of a benchmark, and their scores."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_stvg.cli.asking import REQUIRED, asking
from verl_stvg.cli.options import Benchmark, Rows, VideoRoot
from verl_stvg.cli.score import judge

if TYPE_CHECKING:
    from verl_stvg.inference.settings import Settings

logger = logging.getLogger(__name__)


@asking(model=REQUIRED)
def eval_(
    rows: Rows,
    out: Annotated[Path, typer.Option(help="Folder of answers and scores; a stopped run goes on in it.")],
    settings: "Settings",
    benchmark: Benchmark = None,
    video_root: VideoRoot = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows, for a try.")] = None,
) -> None:
    """Answer rows with a model, greedily by default, with prompts, frames and clock of training, and score the answers.
    May be stopped at any moment and called again. Exit status 1 if a row could not be answered.
    """
    from verl_stvg.eval.run import run

    counts = run(rows, out, dataclasses.replace(settings, video_root=video_root, limit=limit), benchmark)["counts"]
    logger.info("answers, scores and items: %s", out)
    judge(counts)
