"""A yaml of the user's own builds on what all recipes share, or lies over a recipe as a variant (docs/launch.md)."""

import pytest
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow
SEARCHPATH = "hydra.searchpath=[pkg://verl.trainer.config,pkg://verl_stvg.recipes"


def test_over_the_shared_values(composed, tmp_path):
    from hydra import compose, initialize_config_dir

    (tmp_path / "mine.yaml").write_text(
        "hydra: {searchpath: [pkg://verl.trainer.config, pkg://verl_stvg.recipes]}\n"
        "defaults: [ppo_trainer, _base, _self_]\n"
        "actor_rollout_ref: {rollout: {n: 4}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base=None):
        mine = compose("mine", ["+variant=no_format"])
    recipe = composed("stvg_r1", "no_format")
    for key in ("data.custom_cls", "data.video_cache", "reward", "algorithm", "actor_rollout_ref.rollout.agent"):
        assert OmegaConf.select(mine, key) == OmegaConf.select(recipe, key)
    assert mine.actor_rollout_ref.rollout.n == 4


def test_over_a_recipe(composed, compose_in, tmp_path):
    (tmp_path / "variant").mkdir()
    (tmp_path / "variant" / "mine.yaml").write_text("# @package _global_\ndata: {train_batch_size: 5}\n")
    mine = compose_in("verl_stvg.recipes.stvg_r1", "stvg_r1", "+variant=mine", f"{SEARCHPATH},file://{tmp_path}]")
    assert mine.data.train_batch_size == 5
    mine.data.train_batch_size = composed("stvg_r1").data.train_batch_size
    assert mine == composed("stvg_r1")
