"""Composed recipes, which several files of tests look at; each is composed once."""

import functools
from collections.abc import Callable
from unittest import mock

import pytest
import yaml


@pytest.fixture(scope="session")
def compose_in() -> Callable:
    """Compose a configuration as `python -m verl.trainer.main_ppo --cfg job` does; verl is imported once."""
    import verl  # noqa: F401  (loads the plugin, as a run does)
    from hydra import compose, initialize_config_module

    def make(package: str, name: str, *overrides: str):
        quick = mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader)  # the same in C: a third of the time less
        with quick, initialize_config_module(package, version_base=None):
            return compose(name, list(overrides))

    return make


@pytest.fixture(scope="session")
def composed(compose_in) -> Callable:
    """Compose a recipe with some variants."""

    @functools.cache
    def make(recipe: str, *variants: str):
        overrides = [f"+variant=[{','.join(variants)}]"] if variants else []
        return compose_in(f"verl_stvg.recipes.{recipe}", recipe, *overrides)

    return make
