"""Recipes and their answers: what is written is read again and earns everything, and nobody cuts names for it."""

import pickle
import re
from pathlib import Path

import pytest

from benchmarks.rewards import TYPICAL, hostile_texts
from reward_fns import RECIPES
from reward_fns.perfect import perfect_answer
from reward_fns.recipe import Reading

ROOT = Path(__file__).resolve().parent.parent.parent
EVERY = pytest.mark.parametrize("name", RECIPES)


@EVERY
def test_what_is_written_is_read_again_and_earns_everything(name):
    recipe, truth = RECIPES[name], TYPICAL[name][0]
    text = recipe.write(truth)
    assert text == perfect_answer(name, truth)
    best = sum(weight for _, weight in recipe.parts.values())
    assert recipe.score(text, truth)["score"] == pytest.approx(best, abs=1e-5)
    found = recipe.read(text)
    timed = bool(recipe.asks & {"time", "times"})
    assert found.intervals == (((5.0, 11.0),) if timed else None)
    assert found.object_ids == ((2,) if "object" in recipe.asks else (2, 5) if "objects" in recipe.asks else ())
    assert (found.option or "").strip("()") == ("B" if "option" in recipe.asks else "")
    assert (found.boxes is not None) == ("boxes" in recipe.asks)
    assert ("<think>" in text) == ("thinking" in recipe.asks)


@EVERY
def test_a_variant_shares_the_form_of_the_papers_recipe(name):
    recipe = RECIPES[name]
    whole = RECIPES[recipe.form]
    assert whole.variant_of is None and recipe.read is whole.read and recipe.answer is whole.answer
    assert recipe.asks | {"thinking"} == whole.asks | {"thinking"}
    assert ("thinking" in recipe.asks) != (name.endswith("_nothink") or name == "videochat_r1_5")


@EVERY
def test_every_part_of_an_answer_is_read_for_itself_where_the_reward_does(name):
    recipe = RECIPES[name]
    assert recipe.read("") is None
    for _, text in hostile_texts(2_000):
        found = recipe.read(text)
        assert found is None or (isinstance(found, Reading) and found != Reading())


def test_options_and_times_are_read_apart_and_an_empty_list_is_an_answer():
    grounded = RECIPES["videochat_r1_gqa"].read
    assert grounded("<answer>B</answer>") == Reading(option="B")
    assert grounded("<glue>[]</glue>") == Reading(())
    assert grounded("<answer>none</answer><glue>[(3, 1)]</glue>") is None
    assert RECIPES["temporal_r1_gqa"].read('<answer>{"option": "C"}</answer>') == Reading(option="C")
    assert RECIPES["videochat_r1_5"].read("<answer>[]</answer>") == Reading(())
    assert RECIPES["r1v"].read(" one half ") == Reading(option="one half")
    assert RECIPES["stvg_r1"].read("<answer>Target ID: 2</answer>") is None  # an unreadable time costs the ID


@EVERY
def test_recipes_travel_to_other_processes(name):
    recipe = RECIPES[name]
    copied = pickle.loads(pickle.dumps(recipe))
    text, truth = recipe.write(TYPICAL[name][0]), TYPICAL[name][0]
    weights = dict.fromkeys(recipe.optional, 1.0)
    assert copied.read(text) == recipe.read(text)
    assert copied.with_weights(weights).score(text, truth) == recipe.with_weights(weights).score(text, truth)


def test_an_unknown_name_has_no_perfect_answer():
    with pytest.raises(ValueError, match="no reward 'stvg'; choose one of r1v, stvg_boxes"):
        perfect_answer("stvg", {})


def test_nobody_finds_the_form_of_an_answer_by_cutting_a_name():
    cut = re.compile(
        r"""(?:removesuffix|removeprefix|endswith|startswith|rpartition|split)\(\(?["'][^"']*_?(?:nothink|strict|visible|r1_5|r1|boxes)["']"""
    )
    files = [
        file
        for room in ("reward_fns", "verl_stvg", "data_builders", "eval", "benchmarks")
        for file in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 150
    assert [str(file.relative_to(ROOT)) for file in files if cut.search(file.read_text(encoding="utf-8"))] == []
