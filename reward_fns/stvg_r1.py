"""The STVG-R1 reward: temporal IoU, object-ID match and format, summed without weights (range 0 to 3).

Faithful to the released code, surprises included: the last answer block counts even if it is empty or was drafted
inside the reasoning; a time that cannot be read also costs a correct ID; an ID earns its reward however wrong the span
is.
Ground truth: `object_id`, `start`, `end`, `duration` (seconds; the duration is carried, not used).
Source: STVG-R1, sections 1.8 and 2.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from reward_fns import measures, parsing
from reward_fns.formats import think_answer
from reward_fns.ground_truth import check_object_span
from reward_fns.recipe import Recipe


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> tuple[int, float, float] | None:
    """Return (object ID, start, end) of the last answer block, or None if any of the three cannot be read."""
    answer = parsing.last_block(completion, "answer")
    if answer is None:
        return None
    object_id, span = parsing.target_id(answer), parsing.time_range(answer)
    return (object_id, *span) if object_id is not None and span is not None else None


def temporal(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU (intersection over hull) of the answered span, in [0, 1]; 0 if unreadable."""
    answer = parse(completion)
    if answer is None:
        return 0.0
    return measures.temporal_iou(answer[1], answer[2], ground_truth["start"], ground_truth["end"])


def spatial(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return 1.0 if the answered object ID is the true one, else 0.0; 0 if ID or time is unreadable."""
    answer = parse(completion)
    return 1.0 if answer is not None and answer[0] == ground_truth["object_id"] else 0.0


def accuracy(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return temporal plus spatial reward, in [0, 2]: the single function the original registers."""
    return temporal(completion, ground_truth) + spatial(completion, ground_truth)


def format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for the think-then-answer layout, else 0.0; the content of the answer is not looked at."""
    return think_answer(completion)


RECIPE = Recipe(
    name="stvg_r1",
    parts={"temporal_iou": (temporal, 1.0), "id_match": (spatial, 1.0), "format": (format, 1.0)},
    check=check_object_span,
)
