"""The Temporal-R1 rewards: grounding with a JSON answer, and the tasks that the paper adds to it.

`temporal_r1` is the released reward, half IoU and half format, surprises included: the first answer block counts,
numbers have to be quoted for the format but not for the IoU, runs such as `1.2.3` pass the format.
`temporal_r1_strict` mends the last point. `r1v` is the tree's question-answering reward. `temporal_r1_mcq` and
`temporal_r1_gqa` are our reconstruction of the paper's unpublished rewards; their weights are ours. Ground truth in
seconds: `start`, `end`, `duration` for grounding, `option` (a letter) for multiple choice, all four for grounded QA,
`answer` (text) for `r1v`. Source: Temporal-R1, section 2.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from reward_fns import formats, grading, measures, parsing
from reward_fns import ground_truth as truths
from reward_fns.parsing import Interval
from reward_fns.recipe import Reading, Recipe, reading_of, said_option, said_span
from reward_fns.thinking import optional_parts


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> Interval | None:
    """Return (start, end) in seconds of the JSON object in the first answer block, or None."""
    answer = parsing.first_block(completion, "answer")
    return parsing.json_interval(answer) if answer is not None else None


def read(completion: str) -> Reading | None:
    """Return the interval of the first answer block, or None."""
    return reading_of(parse(completion))


def write(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the true span."""
    start, end = said_span(ground_truth)
    return _said(start_time=start, end_time=end)


def _said(**said: str) -> str:
    return f"<answer>{json.dumps(said)}</answer>"


def tvg_accuracy(completion: str, solution: Sequence[float], video_length: float) -> float:
    """Return the temporal IoU of the answer, divided by `video_length` seconds, with `solution`, two fractions.

    In [0, 1]; 0 if unreadable or if the length is 0. The form of the original, which checks none of its inputs.

    Args:
        completion: of the policy.
        solution: start and end as fractions of the video, 0 to 1.
        video_length: seconds.
    """
    answer = parse(completion)
    if answer is None or video_length == 0.0:
        return 0.0
    return measures.temporal_iou(answer[0] / video_length, answer[1] / video_length, solution[0], solution[1])


def temporal(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU (intersection over hull) of the answer, in [0, 1]; 0 if unreadable."""
    answer = parse(completion)
    return measures.temporal_iou(*answer, ground_truth["start"], ground_truth["end"]) if answer is not None else 0.0


def format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for think and the JSON answer with both numbers quoted, nothing around, else 0.0."""
    return formats.think_interval_json(completion)


def format_strict(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return `format`, but 0 unless both quoted runs are numbers. Ours."""
    return formats.think_interval_json_strict(completion)


def format_nothink(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 if the stripped completion is an answer block with the two times, else 0.0. Ours."""
    return formats.interval_json(completion)


def parse_option(completion: str) -> str | None:
    """Return the letter that the first answer block holds in double quotes, or None. Ours."""
    answer = parsing.first_block(completion, "answer")
    return parsing.quoted_option(answer) if answer is not None else None


def read_option(completion: str) -> Reading | None:
    """Return the option of the first answer block, or None. Ours."""
    letter = parse_option(completion)
    return Reading(option=letter) if letter is not None else None


def write_option(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the right option. Ours."""
    return _said(option=said_option(ground_truth))


def read_both(completion: str) -> Reading | None:
    """Return option and interval of the first answer block, or None if neither can be read. Ours."""
    letter, span = parse_option(completion), parse(completion)
    return Reading((span,) if span is not None else None, option=letter) if letter or span else None


def write_both(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the right option and the true span. Ours."""
    start, end = said_span(ground_truth)
    return _said(option=said_option(ground_truth), start_time=start, end_time=end)


def option(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return 1.0 if the first answer block holds the letter of `option` in double quotes, else 0.0. Ours."""
    letter = parse_option(completion)
    return 1.0 if letter is not None and letter == ground_truth["option"].strip().strip("()") else 0.0


def format_option(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for think and the answer `{"option": "X"}`, nothing around, else 0.0. Ours."""
    return formats.think_option_json(completion)


def format_option_interval(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for think and the answer with option, start and end, nothing around, else 0.0. Ours."""
    return formats.think_option_interval_json(completion)


def r1v_given(completion: str) -> str:
    """Return the first answer block that lies on one line, else the whole completion, stripped."""
    answer = parsing.first_line_block(completion, "answer")
    return (answer if answer is not None else completion).strip()


def r1v_read(completion: str) -> Reading | None:
    """Return the text that is given as the answer, or None if there is none."""
    given = r1v_given(completion)
    return Reading(option=given) if given else None


def r1v_write(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the right option, or the true text."""
    return f"<answer>{said_option(ground_truth)}</answer>"


def r1v_accuracy(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return 1.0 if the answer (`r1v_given`, so a multi-line answer fails) equals the text `answer`, else 0.0."""
    return 1.0 if grading.same_answer(r1v_given(completion), ground_truth["answer"].strip()) else 0.0


def r1v_format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for think then answer with nothing around, not even blanks, else 0.0."""
    return formats.think_answer_exact(completion)


def check_option(ground_truth: Any, row: object = None) -> None:
    """Check `option`, one letter, bare or in round brackets; raise ValueError otherwise."""
    truths.check_letter(ground_truth, "option", row)


def check_option_span(ground_truth: Any, row: object = None) -> None:
    """Check `option` and the span; raise ValueError otherwise."""
    check_option(ground_truth, row)
    truths.check_span(ground_truth, row)


def check_answer(ground_truth: Any, row: object = None) -> None:
    """Check `answer`, a text; raise ValueError otherwise."""
    truths.check_text(ground_truth, "answer", row)


_THIRD = 1.0 / 3.0  # ours, as all weights of the last two recipes

_PAPER = Recipe(
    name="temporal_r1",
    parts={"temporal_iou": (temporal, 0.5), "format": (format, 0.5)},
    check=truths.check_span,
    read=read,
    answer=write,
    asks=frozenset({"thinking", "time"}),
    optional=optional_parts(parse),
)

RECIPES = (
    _PAPER,
    _PAPER.variant("temporal_r1_strict", {"temporal_iou": (temporal, 0.5), "format": (format_strict, 0.5)}),
    _PAPER.without_thinking({"temporal_iou": (temporal, 0.5), "format": (format_nothink, 0.5)}),
    Recipe(
        name="r1v",
        parts={"accuracy": (r1v_accuracy, 0.5), "format": (r1v_format, 0.5)},
        check=check_answer,
        read=r1v_read,
        answer=r1v_write,
        asks=frozenset({"thinking", "option"}),
    ),
    Recipe(
        name="temporal_r1_mcq",
        parts={"option": (option, 0.5), "format": (format_option, 0.5)},
        check=check_option,
        read=read_option,
        answer=write_option,
        asks=frozenset({"thinking", "option"}),
    ),
    Recipe(
        name="temporal_r1_gqa",
        parts={
            "temporal_iou": (temporal, _THIRD),
            "option": (option, _THIRD),
            "format": (format_option_interval, _THIRD),
        },
        check=check_option_span,
        read=read_both,
        answer=write_both,
        asks=frozenset({"thinking", "time", "option"}),
        optional=optional_parts(parse),
    ),
)
