"""Recipes: one folder each, a yaml over verl's defaults. `python -m verl.trainer.main_ppo --config-path pkg://recipes.NAME`."""
