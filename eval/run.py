"""Evaluation of a model on rows: its answers, then their scores, in one folder that the report reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_stvg.inference.generate import generate
from verl_stvg.inference.settings import Settings


def run(rows: Sequence[str | Path], out: Path, settings: Settings, benchmark: str | None = None) -> dict[str, Any]:
    """Answer rows and score the answers; what is there of an earlier, stopped call is kept.

    Args:
        rows: parquet files, as training reads them.
        out: folder of `verl_stvg.inference.generate` (``run.json``, ``predictions.jsonl``) and of
        `verl_stvg.eval.score` (``scores.json``,
            ``items.jsonl``).
        settings: model and sampling.
        benchmark: name; default: what the rows say they are.

    Returns:
        the scores.

    Raises:
        ValueError: rows or model that cannot be used, or a folder with answers of something else.
    """
    from verl_stvg.eval.score import score_run

    generate(rows, out, settings)
    return score_run(out, benchmark)
