"""Rewards for video grounding as plain functions; standard library only, importable with nothing else installed.

`RECIPES` maps the name of a composition to its `Recipe`; the parts are functions of a completion and a ground truth.
"""

from reward_fns import stvg_r1
from reward_fns.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (stvg_r1.RECIPE,)}

__all__ = ["RECIPES", "Recipe", "stvg_r1"]
