"""The VideoChat-R1 rewards: temporal grounding (IoU and format) and grounded QA (IoU, answer and format).

`videochat_r1` differs from TimeZero in two points: a reversed answer is unreadable, and an answer that is the same
point as the truth earns 1. `videochat_r1_gqa` reads an option letter and a list of evidence intervals; its `_nothink`
form wants no reasoning. `videochat_r1_5` is the later grounding reward: up to three tuples in the answer block, no
reasoning needed. All sums are without weights. Ground truth in seconds: `start`, `end`, `duration` for grounding;
`answer` (a letter A-G, bare or in round brackets) and `intervals` for grounded QA. Source: VideoTG-R1 notes, 4.1 and
4.2.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from reward_fns import ground_truth as truths
from reward_fns import measures, parsing
from reward_fns.formats import answer_glue, answer_only, think_answer, think_answer_glue
from reward_fns.parsing import Interval
from reward_fns.recipe import Recipe
from reward_fns.thinking import optional_parts


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> Interval | None:
    """Return (start, end), the last `NUM to|and NUM` of the last answer block, or None; a reversed pair is None."""
    answer = parsing.last_block(completion, "answer")
    pair = parsing.last_pair(answer) if answer is not None else None
    return pair if pair is not None and pair[0] <= pair[1] else None


def iou(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU (over the hull) of the answer, in [0, 1]; 1 for the same point, 0 if unreadable."""
    answer = parse(completion)
    if answer is None:
        return 0.0
    start, end = ground_truth["start"], ground_truth["end"]
    if max(answer[1], end) - min(answer[0], start) <= 0.0:
        return 1.0
    return measures.temporal_iou(*answer, start, end)


def format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for the think-then-answer layout, else 0.0."""
    return think_answer(completion)


@lru_cache(maxsize=8)
def parse_glue(completion: str) -> tuple[Interval, ...] | None:
    """Return the evidence intervals of the first `<glue>` block, or None if it is no valid list."""
    glue = parsing.first_block(completion, "glue")
    intervals = parsing.interval_list(glue) if glue is not None else None
    return tuple(intervals) if intervals is not None else None


def gqa_iou(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the IoU of the united evidence intervals with `intervals`, in [0, 1]; 1 if both are empty."""
    evidence = parse_glue(completion)
    return measures.intervals_iou(evidence, ground_truth["intervals"]) if evidence is not None else 0.0


def gqa_answer(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return 1.0 if the first answer block reads as the letter of `answer`, else 0.0."""
    answer = parsing.first_block(completion, "answer")
    if answer is None:
        return 0.0
    return 1.0 if parsing.option_letter(answer) == parsing.option_letter(ground_truth["answer"]) else 0.0


def gqa_format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for think, answer and glue in this order with a valid glue list, else 0.0."""
    return think_answer_glue(completion) if parse_glue(completion) is not None else 0.0


def gqa_format_nothink(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for answer and glue in this order with a valid glue list, else 0.0."""
    return answer_glue(completion) if parse_glue(completion) is not None else 0.0


def check_gqa(ground_truth: Any, row: object = None) -> None:
    """Check `answer`, a letter A-G, and `intervals`, a list of (start, end); raise ValueError otherwise."""
    truths.check_letter(ground_truth, "answer", row, letters="ABCDEFG")
    truths.check_intervals(ground_truth, "intervals", row)


def iou_1_5(completion: str, ground_truth: Mapping[str, Any], most: int = 3) -> float:
    """Return the IoU of the united tuples of the first answer block with the one true span; 0 beyond `most` tuples."""
    answer = parsing.first_block(completion, "answer")
    intervals = parsing.interval_list(answer) if answer is not None else None
    if intervals is None or len(intervals) > most:
        return 0.0
    return measures.intervals_iou(intervals, [(ground_truth["start"], ground_truth["end"])])


def format_1_5(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 if the stripped completion is one answer block, else 0.0; its content is not looked at."""
    return answer_only(completion)


RECIPES = (
    Recipe(
        name="videochat_r1",
        parts={"temporal_iou": (iou, 1.0), "format": (format, 1.0)},
        check=truths.check_span,
        optional=optional_parts(parse),
    ),
    Recipe(
        name="videochat_r1_gqa",
        parts={"temporal_iou": (gqa_iou, 1.0), "option": (gqa_answer, 1.0), "format": (gqa_format, 1.0)},
        check=check_gqa,
    ),
    Recipe(
        name="videochat_r1_gqa_nothink",
        parts={"temporal_iou": (gqa_iou, 1.0), "option": (gqa_answer, 1.0), "format": (gqa_format_nothink, 1.0)},
        check=check_gqa,
    ),
    Recipe(
        name="videochat_r1_5",
        parts={"temporal_iou": (iou_1_5, 1.0), "format": (format_1_5, 1.0)},
        check=truths.check_span,
    ),
)
