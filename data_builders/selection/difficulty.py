"""Difficulty: how well a model answers before it is trained, and which rows are therefore hard, normal or easy.

The model is asked with the training prompt, once greedily or several times; what counts is the IoU of its answer with
the annotation, 0 where it cannot be read. Source: VideoTG-R1 notes, 2; thresholds are ours.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verl_stvg.data_builders.selection.boundary_reflection import clipped
from verl_stvg.data_builders.selection.folder import Stage
from verl_stvg.data_builders.selection.samples import Sample, first_two_numbers, overlap, read_intervals
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.masks import BINS

NAME = "difficulty"
MODES = ("threshold", "quantile")


@dataclass(frozen=True)
class Rules:
    """Where bins begin. All numbers are ours.

    Attributes:
        mode: ``threshold`` compares IoU, ``quantile`` the share of a set's rows with a lower one.
        hard: hard is what lies below.
        easy: easy is what reaches this.
        first_numbers: where a reply cannot be read, take its first two numbers, as Time-R1 does.
    """

    mode: str = "threshold"
    hard: float = 0.3
    easy: float = 0.7
    first_numbers: bool = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} of bins is unknown; choose one of {', '.join(MODES)}")
        if not 0 <= self.hard <= self.easy <= 1:
            raise ValueError(f"bins begin at hard={self.hard} and easy={self.easy}; need 0 <= hard <= easy <= 1")


def stage(rules: Rules | None = None) -> Stage:
    """The stage."""
    rules = rules or Rules()
    return Stage(
        name=NAME,
        asking={},
        rules=asdict(rules),
        ask=lambda row: row,
        judge=lambda sample, answer: judged(sample, answer, rules),
        finish=lambda lines: put_in_bins(lines, rules),
        notes=notes,
    )


def judged(sample: Sample, answer: Answer, rules: Rules) -> dict[str, Any]:
    """What the answers say about a row: ``pred`` of the first, ``ious``, their mean ``iou``, ``difficulty`` = 1 - iou.

    ``parse_ok`` says that all of them could be read. ``drop_reason`` is ``bad_gt`` (no annotated interval within the
    video), ``video_error`` or None; without an answer there is no IoU.

    Args:
        sample: the row.
        answer: each of its texts is compared with the annotation.
        rules: how replies are read.
    """
    said = [_read(text, sample.recipe, rules) for text in answer.texts]
    spans = [span for span in sample.spans if span[0] < span[1]]
    reason = "video_error" if answer.error else None if clipped(spans, sample.duration) else "bad_gt"
    ious = [overlap(one, tuple(spans)) if one is not None else 0.0 for one in said] if reason is None else []
    iou = statistics.fmean(ious) if ious else None
    return {
        "parse_ok": bool(said) and None not in said,
        "pred": [list(interval) for interval in (said[0] if said else None) or []],
        "n_samples": len(said),
        "ious": ious,
        "iou": iou,
        "iou_std": statistics.pstdev(ious) if ious else None,
        "difficulty": 1.0 - iou if iou is not None else None,
        "bin": None,
        "drop_reason": reason,
    }


def _read(text: str, recipe: str, rules: Rules):
    found = read_intervals(text, recipe)
    return first_two_numbers(text) if found is None and rules.first_numbers else found


def put_in_bins(lines: Sequence[dict], rules: Rules) -> None:
    """Set ``bin`` of every line that has an IoU.

    By quantile, the rows of a set are ordered by IoU, then uid, and parted at the shares `hard` and `easy`.
    """
    if rules.mode == "threshold":
        for line in lines:
            if line["iou"] is not None:
                line["bin"] = _bin(line["iou"], rules)
        return
    by_set: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        if line["iou"] is not None:
            by_set[line["dataset"]].append(line)
    for members in by_set.values():
        members.sort(key=lambda line: (line["iou"], line["uid"]))
        for rank, line in enumerate(members):
            line["bin"] = _bin(rank / len(members), rules)


def _bin(value: float, rules: Rules) -> str:
    return "hard" if value < rules.hard else "easy" if value >= rules.easy else "normal"


def notes(lines: list[dict]) -> list[str]:
    """A sentence for each set: its mean IoU and its bins."""
    by_set: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        if line["iou"] is not None:
            by_set[line["dataset"]].append(line)
    said = []
    for name, members in sorted(by_set.items()):
        counts = ", ".join(f"{sum(line['bin'] == one for line in members)} {one}" for one in BINS)
        said.append(f"{name}: mean IoU {statistics.fmean(line['iou'] for line in members):.3f}; {counts}")
    return said
