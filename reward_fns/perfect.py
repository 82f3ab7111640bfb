"""The answers that earn the most, by the name of a recipe; see `Recipe.write`."""

from collections.abc import Mapping
from typing import Any

from reward_fns import RECIPES
from reward_fns.recipe import THOUGHT

__all__ = ["THOUGHT", "perfect_answer"]


def perfect_answer(recipe: str, truth: Mapping[str, Any]) -> str:
    """A completion that says exactly the ground truth, in the form that a reward of `reward_fns` reads.

    Args:
        recipe: name of the reward.
        truth: ground truth of a row.

    Raises:
        ValueError: no such reward.
    """
    if recipe not in RECIPES:
        raise ValueError(f"no reward {recipe!r}; choose one of {', '.join(sorted(RECIPES))}")
    return RECIPES[recipe].write(truth)
