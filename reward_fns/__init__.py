"""Rewards for video grounding as plain functions; standard library only, importable with nothing else installed.

`RECIPES` maps the name of a composition to its `Recipe`: named parts, weights, and the check of the ground truth. The
parts are functions of a completion and a ground truth and live in one module per paper; what they share is in `parsing`
(text to values), `measures` (values to overlap), `formats` (layout) and `thinking` (reasoning, off by default).

    >>> from reward_fns import RECIPES
    >>> completion = "<think>x</think><answer>4.00 to 8.00</answer>"
    >>> RECIPES["timezero"].score(completion, {"start": 4.0, "end": 12.0, "duration": 30.0})
    {'score': 1.5, 'temporal_iou': 0.5, 'format': 1.0}
"""

from reward_fns import stvg_boxes, stvg_r1, temporal_r1, time_r1, videochat_r1, videotg_r1
from reward_fns.recipe import Recipe

_PAPERS = (stvg_r1, temporal_r1, videotg_r1, time_r1, videochat_r1, stvg_boxes)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for paper in _PAPERS for recipe in paper.RECIPES}


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name; raise ValueError naming the known ones."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = ["RECIPES", "Recipe", "get_recipe"]
