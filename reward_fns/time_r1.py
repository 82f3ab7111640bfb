"""The Time-R1 family: temporal IoU, plain (TimeZero) or with a boundary penalty (Time-R1), plus format.

`time_r1` sums `iou_v2` and format as in the post-training of Time-R1; `timezero` sums IoU and format as in TimeZero and
in Time-R1's fine-tuning. Faithful, surprises included: the last pair of the last answer block counts, signs and leading
dots are passed over, `iou_v2` is not clamped and may be negative. One accident of the originals, an IoU left over from
the completion before when the hull is zero, cannot exist in a function of one completion, which returns 0 there;
`iou_batch` reproduces it. Ground truth: `start`, `end`, `duration` (seconds). Source: STVG-R1 notes, 6.1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from reward_fns import measures, parsing
from reward_fns.formats import answer_only, think_answer
from reward_fns.ground_truth import check_span
from reward_fns.parsing import Interval
from reward_fns.recipe import Reading, Recipe, reading_of, said_span
from reward_fns.thinking import optional_parts


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> Interval | None:
    """Return (start, end), the last `NUM to|and NUM` of the last answer block, or None."""
    answer = parsing.last_block(completion, "answer")
    return parsing.last_pair(answer) if answer is not None else None


def read(completion: str) -> Reading | None:
    """Return the interval that is answered, or None."""
    return reading_of(parse(completion))


def write(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the true span."""
    start, end = said_span(ground_truth)
    return f"<answer>{start} to {end}</answer>"


def iou(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU (intersection over hull) of the answer, in [0, 1]; 0 if unreadable."""
    answer = parse(completion)
    return measures.temporal_iou(*answer, ground_truth["start"], ground_truth["end"]) if answer is not None else 0.0


def iou_v2(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU times the penalties of both boundaries, at most 1 and possibly negative."""
    answer = parse(completion)
    if answer is None:
        return 0.0
    start, end, duration = ground_truth["start"], ground_truth["end"], ground_truth["duration"]
    return measures.temporal_iou_v2(*answer, start, end, duration)


def format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for the think-then-answer layout, else 0.0."""
    return think_answer(completion)


def iou_batch(completions: Iterable[str], spans: Iterable[Sequence[float]]) -> list[float]:
    """Return the IoU of each completion with its (start, end), the original's accident included.

    Where answer and truth are the same point or both reversed (hull <= 0), the IoU of the last readable completion
    before it in the batch is repeated; with none before it the original raises, and this returns 0.
    """
    rewards, left_over = [], 0.0
    for completion, (start, end) in zip(completions, spans, strict=True):
        answer = parse(completion)
        if answer is None:
            rewards.append(0.0)
            continue
        if max(answer[1], end) - min(answer[0], start) > 0.0:
            left_over = measures.temporal_iou(*answer, start, end)
        rewards.append(left_over)
    return rewards


def format_nothink(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 if the stripped completion is an answer block, else 0.0. Ours, for prompts without reasoning."""
    return answer_only(completion)


_THINKING = optional_parts(parse)
_POST_TRAINING = Recipe(
    name="time_r1",
    parts={"temporal_iou_v2": (iou_v2, 1.0), "format": (format, 1.0)},
    check=check_span,
    read=read,
    answer=write,
    asks=frozenset({"thinking", "time"}),
    optional={"temporal_iou": iou, **_THINKING},
)

RECIPES = (
    _POST_TRAINING,
    _POST_TRAINING.without_thinking({"temporal_iou_v2": (iou_v2, 1.0), "format": (format_nothink, 1.0)}),
    replace(
        _POST_TRAINING,
        name="timezero",
        parts={"temporal_iou": (iou, 1.0), "format": (format, 1.0)},
        optional={"temporal_iou_v2": iou_v2, **_THINKING},
    ),
)
