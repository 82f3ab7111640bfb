"""Which recipe scores a row: the one that is named, or the one that the row's ``data_source`` selects."""

from functools import lru_cache

from reward_fns import RECIPES, Recipe

# A row's `data_source` starts with the name of its recipe and a slash, or with one of these.
DATA_SOURCES = {"verl_stvg/synthetic": "stvg_r1", "videotg": "videotg_r1"}


@lru_cache(maxsize=256)
def find_recipe(data_source: str | None = None, recipe: str | None = None) -> Recipe:
    """Return the recipe of that name, else the one that `data_source` selects; ValueError names the known ones."""
    name = recipe
    prefix = data_source if recipe is None else None
    while prefix and name is None:
        name = DATA_SOURCES.get(prefix, prefix if prefix in RECIPES else None)
        prefix = prefix.rpartition("/")[0]
    if name not in RECIPES:
        asked = f"recipe {recipe!r}" if recipe is not None else f"data_source {data_source!r}"
        raise ValueError(
            f"compute_score: no reward for {asked}; start data_source with one of {', '.join(RECIPES)} and a slash, "
            f"use {', '.join(DATA_SOURCES)}, or set reward_kwargs.recipe"
        )
    return RECIPES[name]
