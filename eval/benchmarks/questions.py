"""Grounded questions: the right option, for the right part of the video."""

from collections.abc import Sequence

import numpy as np

from eval.benchmarks.items import Item, Prediction
from eval.benchmarks.temporal import Values, intervals, truths
from eval.metrics.gqa import grounded_qa
from eval.metrics.temporal import reaches

THRESHOLDS = (0.3, 0.5)
_ASKING = ("videochat_r1_gqa", "temporal_r1_gqa", "temporal_r1_mcq", "r1v")


def measure(items: Sequence[Item], said: Sequence[Prediction | None]) -> Values:
    """Return IoU, IoP and accuracies per item, (N,), every question in the denominator and a point worth nothing.

    Acc@GQA asks for the right option and IoP of at least a half, Acc@IoU for IoU instead; see `gqa.grounded_qa`.
    Questions without annotated intervals have the accuracy alone, and prompts that ask for no option have no accuracy.
    """
    right = _right(items, said)
    if not all(item.intervals for item in items):
        return {"Acc@QA": right.astype(float)}
    values = grounded_qa(intervals(said), truths(items), right)
    table = {"mIoU": values["IoU"]} | {f"IoU@{m:g}": reaches(values["IoU"], m).astype(float) for m in THRESHOLDS}
    table |= _precision(values["IoP"])
    return table | ({name: values[name] for name in ("Acc@QA", "Acc@GQA", "Acc@IoU")} if asked(items, said) else {})


def asked(items: Sequence[Item], said: Sequence[Prediction | None]) -> bool:
    """Whether the prompt asks for an option, or an answer has one all the same."""
    return any(item.recipe.removesuffix("_nothink") in _ASKING for item in items) or any(
        one and one.option for one in said
    )


def variants(items: Sequence[Item], said: Sequence[Prediction | None]) -> Values:
    """Return what changes with NExT-GQA's rule, by which a point within the truth has full precision."""
    if not all(item.intervals for item in items):
        return {}
    values = grounded_qa(intervals(said), truths(items), _right(items, said), point_rule="nextgqa")
    table = _precision(values["IoP"]) | ({"Acc@GQA": values["Acc@GQA"]} if asked(items, said) else {})
    return {f"{name} (NExT-GQA)": found for name, found in table.items()}


def _precision(iop: np.ndarray) -> Values:
    return {"mIoP": iop} | {f"IoP@{m:g}": reaches(iop, m).astype(float) for m in THRESHOLDS}


def _right(items: Sequence[Item], said: Sequence[Prediction | None]) -> np.ndarray:
    pairs = zip(items, said, strict=True)
    return np.array([one is not None and one.option is not None and one.option == item.answer for item, one in pairs])
