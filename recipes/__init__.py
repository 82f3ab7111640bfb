"""Recipes: one folder each, a yaml over verl's defaults. `python -m verl.trainer.main_ppo --config-path pkg://verl_stvg.recipes.NAME`."""

if __name__ == "recipes":  # the old name, see `verl_stvg.moved`
    from verl_stvg.moved import stand_for

    stand_for(__name__)
