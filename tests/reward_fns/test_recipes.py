"""Recipes as a trainer meets them: totals, parts, refused ground truths, the bridge to verl, fuzz, advantages."""

import copy
import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.rewards import TYPICAL, fuzz, hostile_texts, mutated, typical
from reward_fns import RECIPES, get_recipe, stvg_boxes, stvg_r1, thinking, time_r1, videochat_r1
from reward_fns.perfect import perfect_answer
from reward_fns.registry import DATA_SOURCES, find_recipe
from verl_stvg.training.reward import compute_score

ROOT = Path(__file__).resolve().parent.parent.parent
REASON = "<think>It happens from <timestep>5 to 11</timestep>, first 5.00 to 11.00.</think>\n"
BOXES = ", ".join(f'"{10 + frame}": [10, 20, 60, 120]' for frame in range(8))
BOXES_BY_SECOND = ", ".join(f'"{second}": [50, 50, 300, 300]' for second in range(5, 12))
QUOTED = '"start_time": "5.00", "end_time": "11.00"'

# recipe -> (a completion that earns everything, its score)
PERFECT = {
    "stvg_r1": (REASON + "<answer>Target ID: 2, Time range: 5.00 to 11.00</answer>", 3.0),
    "stvg_r1_nothink": ("<answer>Target ID: 2, Time range: 5.00 to 11.00</answer>", 3.0),
    "stvg_r1_visible": (REASON + "<answer>Target ID: 2, Time range: 5.00 to 11.00</answer>", 3.0),
    "stvg_r1_multi": (REASON + "<answer>Target ID: 2 and 5, Time range: 5.00 to 11.00</answer>", 3.0),
    "stvg_boxes": (REASON + f'<answer>{{"time": [5, 11], "boxes": {{{BOXES}}}}}</answer>', 3.0),
    "stvg_boxes_seconds": (REASON + f'<answer>{{"time": [5, 11], "boxes": {{{BOXES_BY_SECOND}}}}}</answer>', 3.0),
    "temporal_r1": (REASON + f"<answer>{{{QUOTED}}}</answer>", 1.0),
    "temporal_r1_nothink": (f"<answer>{{{QUOTED}}}</answer>\n", 1.0),
    "temporal_r1_strict": (REASON + f"<answer>{{{QUOTED}}}</answer>", 1.0),
    "r1v": (REASON + "<answer>b</answer>", 1.0),
    "temporal_r1_mcq": (REASON + '<answer>{"option": "B"}</answer>', 1.0),
    "temporal_r1_gqa": (REASON + f'<answer>{{"option": "B", {QUOTED}}}</answer>', 1.0),
    "videotg_r1": (REASON + "<answer>5.00 to 11.00</answer>", 2.0),
    "videotg_r1_nothink": ("<answer>5.00 to 11.00</answer>", 2.0),
    "videotg_r1_strict": (REASON + "<answer>5.00 to 11.00</answer>", 2.0),
    "time_r1": (REASON + "<answer>5.00 to 11.00</answer>", 2.0),
    "time_r1_nothink": (" <answer>5.00 to 11.00</answer>", 2.0),
    "timezero": (REASON + "<answer>5.00 to 11.00</answer>", 2.0),
    "videochat_r1": (REASON + "<answer>5.00 to 11.00</answer>", 2.0),
    "videochat_r1_gqa": (REASON + "<answer>(B)</answer>\n<glue>[(5, 11)]</glue>", 3.0),
    "videochat_r1_gqa_nothink": ("<answer>B</answer><glue>[(5.0, 8), (8, 11)]</glue>", 3.0),
    "videochat_r1_5": ("<answer>[(5.0, 11.0)]</answer>", 2.0),
}
EVERY = pytest.mark.parametrize("name", RECIPES)


@EVERY
def test_a_perfect_completion_earns_everything(name):
    completion, best = PERFECT[name]
    result = RECIPES[name].score(completion, TYPICAL[name][0])
    assert result.pop("score") == pytest.approx(best)
    assert all(part == pytest.approx(1.0) for part in result.values())


@EVERY
def test_nothing_earns_nothing(name):
    for text in ("", " \n\t ", "no tags", "<answer>", "</answer><answer>"):
        assert set(RECIPES[name].score(text, TYPICAL[name][0]).values()) == {0.0}


@EVERY
def test_no_completion_earns_more_than_the_perfect_one(name):
    rng = random.Random(name)
    seeds = [PERFECT[name][0], *typical(name, 5, 0)]
    for _ in range(300):
        result = RECIPES[name].score(mutated(seeds, rng), TYPICAL[name][0])
        assert result["score"] <= PERFECT[name][1] + 1e-9
        assert all(-1e-9 <= part <= 1.0 for key, part in result.items() if key not in ("score", "temporal_iou_v2"))


@EVERY
@given(before=st.text(st.characters(exclude_characters="<>"), max_size=30), after=st.text("ab \n.<", max_size=9))
@settings(max_examples=40)
def test_text_outside_the_blocks_costs_the_format_and_nothing_else(name, before, after):
    completion, truth = PERFECT[name][0], TYPICAL[name][0]
    result, padded = (RECIPES[name].score(text, truth) for text in (completion, before + completion + after))
    for part in result.keys() - {"score", "format"}:
        assert padded[part] == result[part], part
    if (before + after).strip():
        assert padded["format"] == 0.0


@EVERY
def test_optional_parts_are_off_and_can_be_switched_on(name):
    recipe = RECIPES[name]
    completion, truth = PERFECT[name][0], TYPICAL[name][0]
    assert not recipe.optional.keys() & recipe.score(completion, truth).keys()
    logged = recipe.with_weights(dict.fromkeys(recipe.optional, 0.0)).score(completion, truth)
    assert logged["score"] == pytest.approx(PERFECT[name][1])
    if "think_consistency" in recipe.optional:
        assert logged["think_consistency"] == pytest.approx(1.0) and logged["think_timestamps"] == 1.0
        assert recipe.with_weights({"think_consistency": 2.0}).score(completion, truth)["score"] == pytest.approx(
            PERFECT[name][1] + 2.0
        )
    with pytest.raises(ValueError, match=f"recipe '{name}' has no part 'colour'; its parts are .*format"):
        recipe.with_weights({"colour": 1.0})


BROKEN = {
    "start": [None, "5", True, math.nan, -math.inf, [5.0], 10**400],
    "end": [4.0, None, math.inf],
    "duration": [-1.0, 0, "20"],
    "object_id": [2.5, -1, "2", None],
    "object_ids": [[], 2, ["2"], [2.5], "25"],
    "visible": [None, [5.0], [[5.0, 4.0]], [["a", "b"]], ["ab"], [{"a": 1, "b": 2}]],
    "first_frame": [-1, 1.5, None],
    "boxes": [[], None, [[1, 2, 3]], [[5, 0, 1, 1]], [None]],
    "picture": [None, [320], [320, 0], ["a", 180], [320, math.nan]],
    "option": ["BC", "", None, 2, "b"],
    "answer": [None, 7, "  "],
    "intervals": [None, "[(1, 2)]", [[2, 1]], [[1, 2, 3]], [[1, math.nan]]],
}


@EVERY
def test_a_malformed_ground_truth_names_row_and_key(name):
    recipe, truth = RECIPES[name], TYPICAL[name][0]
    recipe.check(truth, "row-7")
    needed = {key for key in truth if _raises(recipe, {k: v for k, v in truth.items() if k != key})}
    assert needed, "a recipe without a ground truth"
    for key in needed:
        missing = {k: v for k, v in truth.items() if k != key}
        with pytest.raises(ValueError, match=f"row 'row-7': key '{key}' is missing"):
            compute_score(f"{name}/set", "x", missing, {"uid": "row-7", "index": 3})
        for broken in BROKEN[key]:
            with pytest.raises(ValueError, match=f"row 3: key '{key}' "):
                compute_score(f"{name}/set", "x", {**truth, key: broken}, {"index": 3})
    for nothing in (None, "text", [5.0, 11.0]):
        with pytest.raises(ValueError, match="a mapping is needed"):
            compute_score(f"{name}/set", "x", nothing)


def _raises(recipe, truth):
    try:
        recipe.check(truth)
    except ValueError:
        return True
    return False


@EVERY
def test_ground_truths_may_come_back_from_arrow(name):
    numpy = pytest.importorskip("numpy")

    def arrow(value):
        if isinstance(value, list):
            return numpy.array([arrow(entry) for entry in value])
        return value if isinstance(value, str) else numpy.float64(value)

    truth = {key: arrow(value) for key, value in TYPICAL[name][0].items()}
    result = compute_score(f"{name}/set", PERFECT[name][0], {**truth, "other": None})
    assert result["score"] == pytest.approx(PERFECT[name][1])
    assert all(type(value) is float for value in result.values())
    integers = {"start": numpy.int64(5), "end": numpy.float32(11), "object_id": numpy.int32(2), "duration": 20}
    assert compute_score("stvg_r1/set", PERFECT["stvg_r1"][0], integers)["score"] == 3.0


def test_every_recipe_has_a_perfect_and_a_typical_completion():
    assert RECIPES.keys() == PERFECT.keys() == TYPICAL.keys()


def test_data_sources_select_recipes():
    for name in RECIPES:
        assert find_recipe(name).name == find_recipe(f"{name}/some/set").name == name
    assert find_recipe("verl_stvg/synthetic").name == find_recipe("verl_stvg/synthetic/train").name == "stvg_r1"
    assert find_recipe("videotg/tacos").name == "videotg_r1"
    assert find_recipe("anything", "timezero").name == "timezero"
    for source in (None, "", "verl_stvg", "hcstvg/v2", "stvg_r1x/a"):
        with pytest.raises(
            ValueError, match=f"no reward for data_source {source!r}.*stvg_r1.*{next(iter(DATA_SOURCES))}"
        ):
            compute_score(source, "x", TYPICAL["stvg_r1"][0])
    with pytest.raises(ValueError, match="recipe 'grpo'.*stvg_r1"):
        compute_score("stvg_r1", "x", TYPICAL["stvg_r1"][0], recipe="grpo")
    with pytest.raises(ValueError, match="'grpo'.*stvg_r1"):
        get_recipe("grpo")


def test_bridge_options():
    completion, truth = PERFECT["stvg_r1"][0], TYPICAL["stvg_r1"][0]
    doubled = compute_score("stvg_r1/x", completion, truth, weights={"temporal_iou": 2.0, "think_length": 0.0})
    assert doubled["score"] == 4.0 and doubled["think_length"] == pytest.approx(60 / 500, abs=0.02)
    parts = ["temporal_iou", "id_match", "format", "option"]
    padded = compute_score("stvg_r1/x", completion, truth, parts=parts)
    assert padded == {"score": 3.0, "temporal_iou": 1.0, "id_match": 1.0, "format": 1.0, "option": 0.0}
    choice = compute_score("temporal_r1_mcq/x", PERFECT["temporal_r1_mcq"][0], {"option": "B"}, parts=parts)
    assert choice.keys() == padded.keys()
    with pytest.raises(ValueError, match="lacks .'id_match'"):
        compute_score("stvg_r1/x", completion, truth, parts=["temporal_iou", "format"])
    with pytest.raises(ValueError, match="unknown options .'wieghts'"):
        compute_score("stvg_r1/x", completion, truth, wieghts={})
    with pytest.raises(ValueError, match="no part 'colour'"):
        compute_score("stvg_r1/x", completion, truth, weights={"colour": 1.0})
    routed = {"reward_router_address": None, "reward_model_tokenizer": None}
    assert compute_score("stvg_r1/x", completion, truth, None, **routed)["score"] == 3.0


def test_inputs_are_left_alone():
    for name, (truth, _) in TYPICAL.items():
        before = copy.deepcopy(truth)
        compute_score(name, PERFECT[name][0], truth, {"index": 1})
        assert truth == before


def test_verl_loads_the_bridge_by_package_path():
    reward = pytest.importorskip("verl.trainer.ppo.reward")
    config = pytest.importorskip("omegaconf").OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://verl_stvg.training.reward",
                    "name": "compute_score",
                    "reward_kwargs": {"recipe": "stvg_r1", "weights": {"format": 0.5}},
                }
            }
        }
    )
    function = reward.get_custom_reward_fn(config)
    result = function(
        data_source="x", solution_str=PERFECT["stvg_r1"][0], ground_truth=TYPICAL["stvg_r1"][0], extra_info={"index": 0}
    )
    assert result == {"score": 2.5, "temporal_iou": 1.0, "id_match": 1.0, "format": 1.0}


def test_rewards_import_in_a_bare_interpreter():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); "
        "import reward_fns.adapters, reward_fns; "
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(tops - set(sys.stdlib_module_names) - {'reward_fns'}), len(reward_fns.RECIPES))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.stdout.strip() == f"[] {len(RECIPES)}", done.stderr


def test_fuzz_short():
    evaluations, exceptions, strange = fuzz(2500, seed=1)
    assert (evaluations, exceptions, strange) == (2500 * len(RECIPES), 0, 0)


@given(st.text(max_size=300))
@settings(max_examples=100)
def test_any_text_scores_finitely(text):
    for name, recipe in RECIPES.items():
        everything = recipe.with_weights(dict.fromkeys(recipe.optional, 1.0))
        for framed in (text, f"<think>{text}</think><answer>{text}</answer><glue>{text}</glue>"):
            assert all(map(math.isfinite, everything.score(framed, TYPICAL[name][0]).values()))


def test_hostile_text_scores_finitely():
    for what, text in hostile_texts(1 << 12):
        for name, recipe in RECIPES.items():
            everything = recipe.with_weights(dict.fromkeys(recipe.optional, 1.0))
            assert all(map(math.isfinite, everything.score(text, TYPICAL[name][0]).values())), what


SEVENTY_PERCENT_OFF = "<think>a</think><answer>Target ID: {}, Time range: {}</answer>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("2", "4.00 to 8.00"), (3 / 7, 1.0)),
        (("3", "5.00 to 11.00"), (1.0, 0.0)),
        (("2", "11.00 to 5.00"), (0.0, 1.0)),
        (("2", "unknown"), (0.0, 0.0)),  # an unreadable time costs a correct ID
        (("[2]", "5.00 to 11.00"), (0.0, 0.0)),
        (("2", "5.00 to 400.00"), (6 / 395, 1.0)),
    ],
)
def test_stvg_r1_surprises(answer, expected):
    completion = SEVENTY_PERCENT_OFF.format(*answer)
    truth = TYPICAL["stvg_r1"][0]
    assert (stvg_r1.temporal(completion, truth), stvg_r1.spatial(completion, truth)) == pytest.approx(expected)
    empty_last = completion + "<answer></answer>"
    assert stvg_r1.accuracy(empty_last, truth) == 0.0 and stvg_r1.format(empty_last) == 1.0


def test_stvg_r1_visible_wants_the_target_in_the_answered_span():
    completion = "<answer>Target ID: 2, Time range: 15.00 to 18.00</answer>"
    truth = TYPICAL["stvg_r1_visible"][0]
    assert stvg_r1.spatial(completion, truth) == 1.0 and stvg_r1.spatial_visible(completion, truth) == 0.0
    assert stvg_r1.spatial_visible(completion, {**truth, "visible": [[0, 1], [18, 20]]}) == 1.0


def test_several_ids():
    truth = TYPICAL["stvg_r1_multi"][0]
    completion = "<answer>Target ID: 2, Time range: 5 to 11</answer>"
    assert stvg_r1.spatial_set(completion, truth) == pytest.approx(2 / 3)
    assert stvg_r1.temporal_set(completion, truth) == 1.0
    assert stvg_r1.spatial_set("<answer>Target ID: 2</answer>", truth) == 0.0


def test_an_easy_frame_does_not_earn_the_tube():
    completion = '<answer>{"time": [5, 11], "boxes": {"10": [10, 20, 60, 120], "11": "x", "99": [0, 0, 1, 1]}}</answer>'
    result = RECIPES["stvg_boxes"].score(completion, TYPICAL["stvg_boxes"][0])
    assert result["tube_iou"] == pytest.approx(1 / 9) and result["temporal_iou"] == 1.0


@pytest.mark.parametrize(
    ("time", "truth", "tube"),
    [  # annotated are 5 to 11 s, frames 10 to 17; so a frame lasts 0.75 s
        ([5, 11], {}, 1.0),
        ([5, 8], {}, 4 / 8),
        ([2, 14], {}, 8 / 16),
        ([5.37, 11.37], {}, 1.0),  # nearer to frame 10 than to frame 11
        ([5.38, 11.38], {}, 7 / 9),
        ([0, 1e300], {}, 0.0),
        ([-1e308, 1e308], {"start": -1e308, "end": 1e308}, 0.0),
        ([0, 20], {"start": 5.0, "end": 5.0}, 1.0),  # an annotated time of no length: the named frames count
        ([11, 5], {}, 0.0),
    ],
)
def test_answered_boxes_last_as_long_as_the_answered_time(time, truth, tube):
    completion = f'<answer>{{"time": {time}, "boxes": {{{BOXES}}}}}</answer>'
    found = stvg_boxes.spatial(completion, {**TYPICAL["stvg_boxes"][0], **truth})
    assert found == pytest.approx(tube, abs=1e-9)


PIXELS = [10.0, 20.0, 60.0, 120.0]  # of a picture of 200x400; in thousandths [50, 50, 300, 300]


@pytest.mark.parametrize(
    ("time", "seconds", "truth", "tube"),
    [  # annotated are 5 to 11 s: seven whole seconds, both ends included
        ([5, 11], range(5, 12), {}, 1.0),
        ([4.3, 11.7], range(5, 12), {}, 1.0),  # the whole seconds of both times are the same
        ([5, 11], range(5, 9), {}, 4 / 7),  # seconds without a box are answered
        ([5, 8], range(5, 9), {}, 4 / 7),
        ([5, 8], range(5, 12), {}, 4 / 7),  # boxes outside of the answered time earn nothing
        ([2, 14], range(2, 15), {}, 7 / 13),
        ([5, 11], (*range(5, 12), 90, 91), {}, 7 / 9),  # and count as answered
        ([5, 11], range(50, 57), {}, 0.0),
        ([5, 11], (), {}, 0.0),
        ([11, 5], range(5, 12), {}, 0.0),
        ([5.3, 5.6], (5,), {"start": 5.3, "end": 5.6}, 1.0),  # no whole second: the nearest one to the middle
        ([5.4, 5.6], (6,), {"start": 5.4, "end": 5.6}, 1.0),
        ([5.0, 5.9], (5,), {"start": 5.003, "end": 5.9}, 1.0),  # times are answered with two decimals
        ([5, 5], (5,), {"start": 5.0, "end": 5.0}, 1.0),
        ([-1e308, 1e308], range(5, 12), {}, 0.0),
    ],
)
def test_boxes_by_whole_second_in_thousandths(time, seconds, truth, tube):
    boxes = {str(second): [50, 50, 300, 300] for second in seconds}
    completion = f"<answer>{json.dumps({'time': time, 'boxes': boxes})}</answer>"
    truth = {**TYPICAL["stvg_boxes_seconds"][0], **truth}
    assert stvg_boxes.spatial_seconds(completion, truth) == pytest.approx(tube, abs=1e-9)
    in_pixels = f"<answer>{json.dumps({'time': time, 'boxes': dict.fromkeys(boxes, PIXELS)})}</answer>"
    assert stvg_boxes.spatial_seconds(in_pixels, truth) < 0.02


def test_the_true_box_of_a_second_is_that_of_the_nearest_frame():
    boxes = [[10.0 + k, 20.0, 60.0 + k, 120.0] for k in range(60)]  # 10 frames per second, 5 to 11 s
    truth = TYPICAL["stvg_boxes_seconds"][0] | {"boxes": boxes, "first_frame": 50}
    found = stvg_boxes.boxes_by_second(truth)
    assert list(found) == [str(second) for second in range(5, 12)]
    assert found["6"] == pytest.approx([100, 50, 350, 300]) and found["11"][0] == pytest.approx(5 * (10 + 59))


@settings(max_examples=100)
@given(
    st.floats(0, 50).map(lambda x: round(x, 3)),
    st.floats(0, 20).map(lambda x: round(x, 3)),
    st.integers(1, 300),
)
def test_the_perfect_answer_of_each_unit_earns_everything(start, length, count):
    boxes = [[0.5 * k, 20.0, 40 + 0.5 * k, 90.0] for k in range(count)]
    span = {"start": start, "end": start + length, "duration": 100.0}
    truth = span | {"first_frame": 7, "boxes": boxes, "picture": [320, 240]}
    for name in ("stvg_boxes", "stvg_boxes_seconds"):
        scores = RECIPES[name].score(perfect_answer(name, truth), truth)
        assert scores["tube_iou"] == pytest.approx(1.0) and (length == 0 or scores["temporal_iou"] > 0.99)


def test_time_r1_batch_repeats_what_was_left_over():
    texts = [f"<answer>{span}</answer>" for span in ("4 to 4", "3 to 9", "none", "4 to 4", "9 to 3")]
    spans = [(4, 4), (2, 10), (4, 4), (4, 4), (10, 2)]
    assert time_r1.iou_batch(texts, spans) == [0.0, 0.75, 0.0, 0.75, 0.75]
    assert [time_r1.iou(text, {"start": s, "end": e}) for text, (s, e) in zip(texts, spans, strict=True)][3] == 0.0


def test_videochat_r1_pays_for_the_same_point_and_refuses_reversed_answers():
    truth = {"start": 5.0, "end": 5.0, "duration": 40.0}
    assert videochat_r1.iou("<answer>5 to 5</answer>", truth) == 1.0
    assert videochat_r1.iou("<answer>6 to 6</answer>", truth) == 0.0
    assert videochat_r1.iou("<answer>6 to 5</answer>", truth) == 0.0
    assert videochat_r1.iou_1_5("<answer>[(1, 2), (3, 4), (5, 6), (7, 8)]</answer>", {"start": 1, "end": 8}) == 0.0


def test_thinking_shares():
    completion = (
        "<think>draft</think><think>\n one  because\n\ntwo <timestep>1 to 2</timestep>\n</think><answer>3 to 4</answer>"
    )
    assert thinking.reasoning(completion).startswith("one")
    assert thinking.length(completion) == len(thinking.reasoning(completion)) / 500
    assert thinking.timestamps(completion) == 1.0 and thinking.timestamps(completion, limit=2) == 0.5
    assert thinking.paragraphs(completion) == 1.0 and thinking.paragraphs(completion, limit=4) == 0.5
    assert thinking.keywords(completion, ("because", "wait")) == 0.5
    assert thinking.consistency(time_r1.parse)(completion) == 0.0


@pytest.mark.parametrize(
    ("rewards", "epsilon", "expected"),
    [
        (
            [3, 2.43, 2, 2, 1, 1, 0, 2.7],
            1e-4,
            [1.213195, 0.652691, 0.229856, 0.229856, -0.753484, -0.753484, -1.736823, 0.918193],
        ),
        (
            [0.973, 0.8375, 0.943, 0.5, 0.5, 0.0, 0.25, 1.0],
            1e-6,
            [0.9334, 0.5695, 0.8529, -0.3369, -0.3369, -1.6797, -1.0083, 1.0059],
        ),
    ],
)
def test_group_advantages_of_the_papers(rewards, epsilon, expected):
    mean, spread = statistics.mean(rewards), statistics.stdev(rewards)
    assert [(reward - mean) / (spread + epsilon) for reward in rewards] == pytest.approx(expected, abs=1e-4)
    torch, verl = pytest.importorskip("torch"), pytest.importorskip("verl.trainer.ppo.core_algos")
    numpy = pytest.importorskip("numpy")
    tokens = torch.zeros(len(rewards), 3)
    tokens[:, -1] = torch.tensor(rewards)
    groups = numpy.array(["prompt"] * len(rewards), dtype=object)
    advantages, _ = verl.compute_grpo_outcome_advantage(tokens, torch.ones_like(tokens), groups, epsilon=epsilon)
    assert advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
