"""What README promises of the benchmarks: they are there, and say what they need."""

import importlib.util
import re

import pytest

from benchmarks.__main__ import MODULES
from tests.conftest import ROOT


def test_every_row_of_the_readme_names_a_benchmark():
    table = (ROOT / "README.md").read_text().partition("## What it saves")[2].partition("\n## ")[0]
    named = re.findall(r"\| `(\w+)` \|$", table, re.MULTILINE)
    assert len(named) >= 5 and set(named) <= set(MODULES)
    assert all(importlib.util.find_spec(module) for module in MODULES.values())


def test_verls_side_without_its_decoder_ends_with_the_extra_that_has_it(monkeypatch):
    """Before anything is measured; the module that torchvision no longer has is no longer what is said."""
    from benchmarks import data_plane, training_step

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "decord" else find(name, *rest)
    )
    for module in (data_plane, training_step):
        with pytest.raises(SystemExit, match=r"decodes with decord, which is not installed.*\.\[cpu,bench\]"):
            list(module.measure(None))
    assert re.search(r"^BENCH = \[.*\"decord\"", (ROOT / "setup.py").read_text(), re.MULTILINE)
