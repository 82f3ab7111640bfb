"""The VideoTG-R1 reward: temporal IoU plus format, with the contract of VideoChat-R1 grounding (range 0 to 2).

The authors' reward code is not public; that it is VideoChat-R1's is inferred from their acknowledgement, so
`videotg_r1` shares its functions. `videotg_r1_nothink` wants only the answer block, for prompts without reasoning.
`_strict` is mended: each tag exactly once, and an answer that leaves [0, duration] earns no IoU. Ground truth:
`start`, `end`, `duration` (seconds). Source: VideoTG-R1 notes, 4.1 and open question 4.
"""

from collections.abc import Mapping
from typing import Any

from reward_fns.formats import answer_only, strict_think_answer
from reward_fns.ground_truth import check_span
from reward_fns.recipe import Recipe
from reward_fns.thinking import optional_parts
from reward_fns.videochat_r1 import format, iou, parse, read, write


def format_nothink(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 if the stripped completion is an answer block, else 0.0. Ours."""
    return answer_only(completion)


def iou_strict(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return `iou`, but 0 for an answer that ends after the duration. Ours."""
    answer = parse(completion)
    if answer is None or answer[1] > max(ground_truth["duration"], ground_truth["end"]):
        return 0.0
    return iou(completion, ground_truth)


def format_strict(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for the think-then-answer layout with each tag exactly once, else 0.0. Ours."""
    return strict_think_answer(completion)


_PAPER = Recipe(
    name="videotg_r1",
    parts={"temporal_iou": (iou, 1.0), "format": (format, 1.0)},
    check=check_span,
    read=read,
    answer=write,
    asks=frozenset({"thinking", "time"}),
    optional=optional_parts(parse),
)

RECIPES = (
    _PAPER,
    _PAPER.without_thinking({"temporal_iou": (iou, 1.0), "format": (format_nothink, 1.0)}),
    _PAPER.variant("videotg_r1_strict", {"temporal_iou": (iou_strict, 1.0), "format": (format_strict, 1.0)}),
)
