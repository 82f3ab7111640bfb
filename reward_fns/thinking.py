"""Measure the reasoning: length, timestamps, paragraphs, keywords, and whether the answer follows from it.

None of these is part of a paper's trained reward: Time-R1 logs the first four, the fifth is ours. They pay for the look
of reasoning, so every recipe has them off; name one in `weights` to switch it on, with weight 0 to log it only. All
read the last `<think>` block, stripped, and return a share in [0, 1]; without one, or with an empty one, they return
0. Source: Time-R1 (STVG-R1 notes, 6.1), whose own weights are in `docs/rewards.md`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from reward_fns import measures, parsing
from reward_fns.parsing import Interval

_TIMESTEP = re.compile(r"<timestep>\s*(?:\d+(?:\.\d*)?)\s+to\s+(?:\d+(?:\.\d*)?)\s*</timestep>", re.IGNORECASE)


def reasoning(completion: str) -> str:
    """Return the content of the last `<think>` block, stripped, or ""."""
    return (parsing.last_block(completion, "think") or "").strip()


def length(completion: str, ground_truth: Mapping[str, Any] | None = None, limit: int = 500) -> float:
    """Return the number of characters of the reasoning, capped at `limit`, as a share of it.

    Args:
        completion: of the policy.
        ground_truth: not looked at; every part of a recipe is given it.
        limit: characters that earn everything, at least 1.
    """
    return min(len(reasoning(completion)), limit) / limit


def timestamps(completion: str, ground_truth: Mapping[str, Any] | None = None, limit: int = 1) -> float:
    """Return the number of `<timestep>a to b</timestep>` in the reasoning, capped at `limit`, as a share of it.

    Args:
        completion: of the policy.
        ground_truth: not looked at; every part of a recipe is given it.
        limit: steps that earn everything, at least 1.
    """
    found = 0
    for _ in _TIMESTEP.finditer(reasoning(completion)):
        found += 1
        if found == limit:
            break
    return found / limit


def paragraphs(completion: str, ground_truth: Mapping[str, Any] | None = None, limit: int = 2) -> float:
    """Return the number of lines of the reasoning that are not blank, capped at `limit`, as a share of it.

    Args:
        completion: of the policy.
        ground_truth: not looked at; every part of a recipe is given it.
        limit: lines that earn everything, at least 1.
    """
    return min(sum(1 for line in reasoning(completion).split("\n") if line.strip()), limit) / limit


def keywords(completion: str, words: Collection[str], limit: int = 2) -> float:
    """Return how many of the lower-case `words` occur in the reasoning, capped at `limit`, as a share of it.

    Args:
        completion: of the policy.
        words: looked for anywhere, also inside of other words.
        limit: of words that earn everything, at least 1.
    """
    text = reasoning(completion).lower()
    return min(sum(1 for word in words if word in text), limit) / limit


def consistency(read_answer: Callable[[str], Interval | None]) -> Callable[..., float]:
    """Return a part: the IoU of the last interval that the reasoning names with the one that is answered.

    `read_answer` reads the answered (start, end) from a completion or returns None. 0 where either is missing. The
    truth is not looked at, so a consistent wrong answer earns it in full. Ours.
    """
    return partial(_agreement, read_answer)


def _agreement(
    read_answer: Callable[[str], Interval | None], completion: str, ground_truth: Mapping[str, Any] | None = None
) -> float:
    answered, named = read_answer(completion), parsing.last_pair(reasoning(completion))
    return measures.temporal_iou(*answered, *named) if answered is not None and named is not None else 0.0


def optional_parts(read_answer: Callable[[str], Interval | None]) -> dict[str, Callable[..., float]]:
    """Return the optional parts of a grounding recipe by name, `read_answer` as for `consistency`."""
    return {
        "think_length": length,
        "think_timestamps": timestamps,
        "think_paragraphs": paragraphs,
        "think_consistency": consistency(read_answer),
    }
