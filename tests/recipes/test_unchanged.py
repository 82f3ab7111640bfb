"""Recipes and variants compose to the values that they had before modules and files moved, key by key.

`before_the_move.json` was written before the move. It holds, by recipe, the values that differ from verl's own defaults
("recipe"), and by variant those that differ from the recipe. Keys are joined with dots.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_stvg.base import recipe_names

BEFORE: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "before_the_move.json").read_text(encoding="utf-8")
)
KEYS: dict[str, str] = recipe_names.RENAMED
"""Old key -> its new name."""
WEIGHTS = dict.fromkeys(("hard", "normal", "easy"), 1.0)
STATED: dict[str, Any] = {
    "data.video_cache._target_": "verl_stvg.rows.settings.VideoCache",
    "data.video_cache.decoder": "pyav",
    "data.video_cache.timeout": 60.0,
    "data.curriculum._target_": "verl_stvg.training.curriculum.Curriculum",
    "data.curriculum.enabled": False,
    "data.curriculum.schedule": "linear",
    "data.curriculum.hidden_at_start": 1.0,
    "data.curriculum.all_shown_after": 1.0,
    "data.curriculum.stages": 4,
    "data.curriculum.decay_rate": 5.0,
    "data.curriculum.region": "window",
    "data.curriculum.op": "blank",
    "data.curriculum.bins": ["hard"],
    "data.curriculum.seed": 42,
    "data.draw._target_": "verl_stvg.training.sampler.Draw",
    "data.draw.enabled": None,
    **{f"data.draw.{time}.{name}": weight for time in ("start", "end") for name, weight in WEIGHTS.items()},
    "data.draw.steps": 0,
    "data.draw.seed": 42,
    "data.rollouts._target_": "verl_stvg.training.sampler.Rollouts",
    **{f"data.rollouts.{name}": None for name in WEIGHTS},
}
"""Keys of all recipes that state what held before without a word: defaults (see `test_values`), and their types."""
CHANGED: dict[str, Any] = {"actor_rollout_ref.actor.use_prefix_grouper": True}
"""Keys of all recipes whose value is another since; each is in CHANGELOG.md."""
PATHS = {
    "verl_stvg.dataset": "verl_stvg.training.dataset",
    "verl_stvg.reward": "verl_stvg.training.reward",
    "verl_stvg.schedule.optimizer_config": "verl_stvg.patches.linear_schedule.optimizer_config",
    "verl_stvg.trainer.VideoGroundingLoopManager": "verl_stvg.training.manager.VideoGroundingLoopManager",
    "verl_stvg.trainer": "verl_stvg.training.replay_buffer",  # with the name PollingReplayBuffer
}
"""Old dotted path in a value, after ``pkg://`` if there is one -> its new path."""
GONE = "<gone>"


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    return {name: value for part in tree for name, value in flat(tree[part], f"{key}.{part}".strip(".")).items()}


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Values of `new` that `old` has not, and `GONE` for keys of `old` that `new` lacks."""
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    return changed | dict.fromkeys(old.keys() - new.keys(), GONE)


def old_path(value: Any) -> str | None:
    """The path in `PATHS` that a value names."""
    path = value.removeprefix("pkg://") if isinstance(value, str) else None
    return path if path in PATHS else None


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Old values under their new keys, with new paths."""
    return {
        KEYS.get(key, key): value.replace(path, PATHS[path]) if (path := old_path(value)) else value
        for key, value in values.items()
    }


@pytest.fixture(scope="module")
def values(composed, compose_in):
    """Values of a recipe with a variant by dotted key; those of verl's defaults without a recipe."""

    def make(*recipe_and_variant: str) -> dict[str, Any]:
        config = (
            composed(*recipe_and_variant) if recipe_and_variant else compose_in("verl.trainer.config", "ppo_trainer")
        )
        return flat(OmegaConf.to_container(config, resolve=False))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("recipe", BEFORE)
def test_every_value_is_what_it_was(values, recipe):
    whole = values(recipe)
    before = STATED | CHANGED | renamed(BEFORE[recipe]["recipe"])
    assert difference(values(), whole) == before
    for variant in BEFORE[recipe].keys() - {"recipe"}:
        changed = {
            key: value for key, value in renamed(BEFORE[recipe][variant]).items() if before.get(key, ...) != value
        }
        assert difference(whole, values(recipe, variant)) == changed, variant


def test_old_and_new_names_are_one_to_one_and_all_are_used():
    all_values = [values for by_variant in BEFORE.values() for values in by_variant.values()]
    old_keys = {key for values in all_values for key in values}
    assert len(set(KEYS.values())) == len(KEYS) and KEYS.keys() <= old_keys
    assert not set(KEYS.values()) & (old_keys - KEYS.keys())
    assert len(set(PATHS.values())) == len(PATHS)
    assert {old_path(value) for values in all_values for value in values.values()} - {None} == PATHS.keys()


def test_no_recipe_and_no_variant_is_left_out():
    assert set(BEFORE) == set(recipe_names.recipes())
    assert all(by_variant.keys() == {"recipe", *recipe_names.variants()} for by_variant in BEFORE.values())


@pytest.mark.slow
def test_the_old_name_of_the_package_still_composes_with_a_warning(composed, compose_in, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "recipes"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(FutureWarning, match=r"^recipes\.stvg_r1 is verl_stvg\.recipes\.stvg_r1 now"):
        assert compose_in("recipes.stvg_r1", "stvg_r1") == composed("stvg_r1")
    assert sys.modules["recipes.stvg_r1"] is sys.modules["verl_stvg.recipes.stvg_r1"]
