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
from reward_fns.recipe import (
    Reading,
    Recipe,
    reading_of,
    said_option,
    said_span,
    said_time,
)
from reward_fns.thinking import optional_parts
from reward_fns.time_r1 import write


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> Interval | None:
    """Return (start, end), the last `NUM to|and NUM` of the last answer block, or None; a reversed pair is None."""
    answer = parsing.last_block(completion, "answer")
    pair = parsing.last_pair(answer) if answer is not None else None
    return pair if pair is not None and pair[0] <= pair[1] else None


def read(completion: str) -> Reading | None:
    """Return the interval that is answered, or None."""
    return reading_of(parse(completion))


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


def parse_letter(completion: str) -> str | None:
    """Return the letter A-G that the first answer block reads as, "" if as none, or None without a block."""
    block = parsing.first_block(completion, "answer")
    return parsing.option_letter(block) if block is not None else None


def gqa_read(completion: str) -> Reading | None:
    """Return the option and the evidence intervals, or None if neither can be read."""
    evidence, letter = parse_glue(completion), parse_letter(completion)
    return Reading(evidence, option=letter or None) if evidence is not None or letter else None


def gqa_write(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the right option and all annotated intervals."""
    spans = ", ".join(f"({said_time(s)}, {said_time(e)})" for s, e in ground_truth.get("intervals") or ())
    return f"<answer>{said_option(ground_truth)}</answer><glue>[{spans}]</glue>"


def gqa_answer(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return 1.0 if the first answer block reads as the letter of `answer`, else 0.0."""
    letter = parse_letter(completion)
    return 1.0 if letter is not None and letter == parsing.option_letter(ground_truth["answer"]) else 0.0


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


def parse_1_5(completion: str) -> list[Interval] | None:
    """Return the tuples of the first answer block, or None if it is no valid list."""
    block = parsing.first_block(completion, "answer")
    return parsing.interval_list(block) if block is not None else None


def read_1_5(completion: str) -> Reading | None:
    """Return the intervals of the first answer block, however many, or None if it is no valid list."""
    intervals = parse_1_5(completion)
    return Reading(tuple(intervals)) if intervals is not None else None


def write_1_5(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the true span as one tuple."""
    start, end = said_span(ground_truth)
    return f"<answer>[({start}, {end})]</answer>"


def iou_1_5(completion: str, ground_truth: Mapping[str, Any], most: int = 3) -> float:
    """Return the IoU of the united tuples of the first answer block with the one true span; 0 beyond `most` tuples.

    Args:
        completion: of the policy.
        ground_truth: with ``start`` and ``end``, seconds.
        most: tuples that are still paid for.
    """
    intervals = parse_1_5(completion)
    if intervals is None or len(intervals) > most:
        return 0.0
    return measures.intervals_iou(intervals, [(ground_truth["start"], ground_truth["end"])])


def format_1_5(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 if the stripped completion is one answer block, else 0.0; its content is not looked at."""
    return answer_only(completion)


_GROUNDED_QA = Recipe(
    name="videochat_r1_gqa",
    parts={"temporal_iou": (gqa_iou, 1.0), "option": (gqa_answer, 1.0), "format": (gqa_format, 1.0)},
    check=check_gqa,
    read=gqa_read,
    answer=gqa_write,
    asks=frozenset({"thinking", "option", "times"}),
)

RECIPES = (
    Recipe(
        name="videochat_r1",
        parts={"temporal_iou": (iou, 1.0), "format": (format, 1.0)},
        check=truths.check_span,
        read=read,
        answer=write,
        asks=frozenset({"thinking", "time"}),
        optional=optional_parts(parse),
    ),
    _GROUNDED_QA,
    _GROUNDED_QA.without_thinking(
        {"temporal_iou": (gqa_iou, 1.0), "option": (gqa_answer, 1.0), "format": (gqa_format_nothink, 1.0)}
    ),
    Recipe(
        name="videochat_r1_5",
        parts={"temporal_iou": (iou_1_5, 1.0), "format": (format_1_5, 1.0)},
        check=truths.check_span,
        read=read_1_5,
        answer=write_1_5,
        asks=frozenset({"times"}),
    ),
)
