"""Curriculum masks: the tables of the specification, their laws, and the same pixels for everyone who reads them."""

import asyncio
import copy
import json
import math
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.utils import hf_processor
from verl.utils.model import extract_multi_modal_inputs

from tests.training.test_agent_loop import rolled_out
from verl_stvg.data_builders.testing.tiny_parts import make_processor
from verl_stvg.rows.masks import BINS, REGIONS, CurriculumError, Mask, RowFacts, crop_truth, visible_units
from verl_stvg.rows.prompts import plan_video_part
from verl_stvg.rows.row import RowError
from verl_stvg.rows.settings import frame_store
from verl_stvg.training.agent_loop import MASK, RolloutError, video_parts
from verl_stvg.training.curriculum import SCHEDULES, Curriculum
from verl_stvg.training.dataset import VideoGroundingDataset
from verl_stvg.training.metrics import curriculum_metrics
from verl_stvg.training.replay_buffer import PollingReplayBuffer, check_filtering, widest_groups
from verl_stvg.training.reward import compute_score
from verl_stvg.training.worker import StockWorker, VideoGroundingWorker, total_steps
from verl_stvg.video.decode import read_frames
from verl_stvg.video.keys import CachedFrames, view
from verl_stvg.video.plan import SamplingPlan, plan_video

HARD = RowFacts("set/train/1", "hard", 1.0, ((24.0, 30.0),))


def plan_of_units(units: int, fps: float = 2.0) -> SamplingPlan:
    return SamplingPlan(tuple(range(2 * units)), tuple(k / fps for k in range(2 * units)), 28, 28, fps)


# --- tables of the specification --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step, ratio, window, visible",
    [
        (0, 1.0, (24, 30), 6),
        (25, 0.75, (18, 37.5), 20),
        (50, 0.5, (12, 45), 33),
        (75, 0.25, (6, 52.5), 47),
        (100, 0.0, (0, 60), 60),
    ],
)
def test_worked_example(step, ratio, window, visible):
    """60 s, annotated from 24 to 30, 100 steps, one second per unit."""
    curriculum = Curriculum()
    assert curriculum.ratio(step, 100) == ratio
    units = visible_units(60, 1.0, HARD.intervals, ratio)
    assert units == list(range(math.floor(window[0]), math.ceil(window[1]))) and len(units) == visible
    mask = curriculum.mask(plan_of_units(60), HARD, step, 100)
    assert sum(last - first for first, last in mask.hidden) == 60 - visible
    assert mask.share == pytest.approx(1 - visible / 60) and mask.ratio == ratio and mask.shown is None


@pytest.mark.parametrize(
    "schedule, progress, ratio",
    [
        ("linear", 0.25, 0.75),
        ("cosine", 0.25, (1 + math.sqrt(0.5)) / 2),
        ("cosine", 0.5, 0.5),
        ("step", 0.24, 1.0),
        ("step", 0.25, 0.75),
        ("step", 0.99, 0.25),
        ("exp", 0.5, (math.exp(-2.5) - math.exp(-5)) / (1 - math.exp(-5))),
        ("difficulty", 0.25, 0.6 * 0.75),
    ],
)
def test_schedules(schedule, progress, ratio):
    curriculum = Curriculum(schedule=schedule)
    assert curriculum.ratio(round(progress * 1000), 1000, difficulty=0.6) == pytest.approx(ratio, abs=1e-12)
    halved = Curriculum(schedule=schedule, hidden_at_start=0.5, all_shown_after=0.5)
    assert halved.ratio(round(progress * 500), 1000, difficulty=0.6) == pytest.approx(ratio / 2, abs=1e-12)


def test_arithmetic_of_units():
    """n frames over D seconds: a unit lasts 2 D / n; above 384 s the cap of 768 frames stretches it."""
    assert plan_video(600, 10, 280, 280).seconds_per_unit == 1.0
    long = plan_video(8000, 10, 28, 28, rule="qwen_vl_utils", min_pixels=784)
    assert long.num_frames == 768 and long.seconds_per_unit == pytest.approx(2 * 800 / 768)
    assert visible_units(10, 0.5, [(1.0, 2.0)], 1.0) == [2, 3]
    assert visible_units(10, 0.5, [(1.2, 2.1)], 1.0) == [2, 3, 4], "expanded to whole units"
    assert visible_units(10, 1.0, [(4.0, 4.0)], 1.0) == [4], "a point"
    assert visible_units(10, 1.0, [(8.0, 11.0)], 1.0) == [8, 9], "past the end"
    assert visible_units(10, 1.0, [(0.0, 10.0)], 1.0) == list(range(10)), "nothing to hide"


def test_several_intervals():
    """The union is protected; the window is built on its hull, the other regions hide what lies between."""
    several = [(7.0, 8.0), (2.0, 3.0)]
    assert visible_units(10, 1.0, several, 1.0, "window") == [2, 3, 4, 5, 6, 7]
    assert visible_units(10, 1.0, several, 1.0, "far_first") == [2, 7]
    assert visible_units(10, 1.0, several, 0.5, "far_first") == [1, 2, 3, 6, 7, 8]
    assert visible_units(10, 1.0, several, 0.25, "far_first") == [0, 1, 2, 3, 4, 6, 7, 8]
    assert len(visible_units(10, 1.0, several, 0.5, "random", "a")) == 6


# --- laws -------------------------------------------------------------------------------------------------------------


@st.composite
def scenes(draw):
    units, fps = draw(st.integers(1, 80)), draw(st.sampled_from([0.5, 1.0, 1.9, 2.0, 2.0 / 3, 4.0]))
    plan = plan_of_units(units, fps)
    length = units * plan.seconds_per_unit
    intervals = []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.floats(0, 0.999)) * length
        intervals.append((start, start + draw(st.floats(0, 1.2)) * (length - start)))
    return plan, RowFacts(draw(st.text(max_size=8)), "hard", draw(st.floats(0, 1)), tuple(intervals))


@st.composite
def curricula(draw):
    op = draw(st.sampled_from(["blank", "crop"]))
    return Curriculum(
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        hidden_at_start=draw(st.floats(0, 1)),
        all_shown_after=draw(st.floats(0.01, 1)),
        stages=draw(st.integers(1, 9)),
        decay_rate=draw(st.floats(0.01, 100)),
        region=draw(st.sampled_from([region for region in REGIONS if op == "blank" or region != "random"])),
        op=op,
        seed=draw(st.integers(0, 9)),
    )


def seen(plan: SamplingPlan, mask: Mask) -> set[int]:
    units = set(range(plan.num_units)) if mask.shown is None else set(range(*mask.shown))
    return units.difference(*(range(*run) for run in mask.hidden))


@given(curricula(), scenes(), st.integers(1, 40))
def test_what_is_visible_only_grows(curriculum, scene, total):
    plan, row = scene
    steps = [seen(plan, curriculum.mask(plan, row, step, total)) for step in range(total + 1)]
    assert all(before <= after for before, after in zip(steps, steps[1:], strict=False))
    assert steps[-1] == set(range(plan.num_units)), "at the end nothing is hidden"


@given(curricula(), scenes(), st.integers(0, 40))
def test_the_annotation_is_never_masked(curriculum, scene, step):
    plan, row = scene
    visible, seconds = seen(plan, curriculum.mask(plan, row, step, 40)), plan.seconds_per_unit
    for u in range(plan.num_units):
        if any(u * seconds < end - 1e-9 and (u + 1) * seconds > start + 1e-9 for start, end in row.intervals):
            assert u in visible
    mask = curriculum.mask(plan, row, step, 40)
    assert mask.share == pytest.approx(1 - len(visible) / plan.num_units)


@given(curricula(), scenes(), st.integers(0, 40), st.integers(0, 255))
def test_no_mask_is_the_identity_to_the_bit(curriculum, scene, step, grey):
    plan, row = scene
    frames = np.full((plan.num_frames, 28, 28, 3), grey, np.uint8)
    for made, facts in (
        (curriculum, RowFacts(row.uid, "easy", 1.0, row.intervals)),
        (Curriculum(hidden_at_start=0.0), row),
    ):
        mask = made.mask(plan, facts, step, 40)
        assert mask.keys == {} and mask.share == 0.0 and mask.ratio == 0.0
        assert plan.masked(**mask.keys) == plan and view(frames, plan.masked(**mask.keys)) is frames
        truth = {"start": 1.0, "end": 2.0, "duration": 3.0}
        assert crop_truth(truth, mask, plan) == truth


def test_the_same_mask_on_any_worker(run_python):
    """Another process, with another hash seed, and without torch or verl."""
    code = (
        "import json, sys\n"
        "from verl_stvg.training.curriculum import Curriculum, visible_units\n"
        "assert not {'torch', 'verl'} & set(sys.modules)\n"
        "print(json.dumps(visible_units(60, 1.0, [(24.0, 30.0)], 0.5, 'random', '42/set/train/1')))"
    )
    there = [
        json.loads(run_python(code, PYTHONHASHSEED=seed, VERL_USE_EXTERNAL_PLUGINS="none").stdout) for seed in "12"
    ]
    here = Curriculum(region="random").mask(plan_of_units(60), HARD, 50, 100)
    assert there[0] == there[1] == sorted(seen(plan_of_units(60), here))
    other = Curriculum(region="random", seed=43).mask(plan_of_units(60), HARD, 50, 100)
    assert seen(plan_of_units(60), other) != seen(plan_of_units(60), here)


@given(scenes(), st.integers(0, 40))
def test_a_crop_moves_clock_and_annotation_together(scene, step):
    plan, row = scene
    truth = {"intervals": [list(one) for one in row.intervals], "duration": 1e9, "object_id": 3, "boxes": None}
    truth |= {"start": row.intervals[0][0], "end": row.intervals[0][1], "visible": truth["intervals"]}
    kept = copy.deepcopy(truth)
    mask = Curriculum(op="crop").mask(plan, row, step, 40)
    moved, cropped = crop_truth(truth, mask, plan), plan.masked(**mask.keys)
    assert truth == kept
    if mask.shown is None:
        assert moved == truth
        return
    assert moved["crop_start"] == mask.crop_start == mask.shown[0] * plan.seconds_per_unit
    assert moved["duration"] == cropped.num_units * cropped.seconds_per_unit and moved["object_id"] == 3
    assert cropped.fps == plan.fps and cropped.metadata()["total_num_frames"] == cropped.num_frames
    for (start, end), (old_start, old_end) in zip(moved["intervals"], row.intervals, strict=True):
        assert start == pytest.approx(old_start - mask.crop_start, abs=1e-9)
        assert end == pytest.approx(old_end - mask.crop_start, abs=1e-9)
        assert 0 <= start <= moved["duration"]
    frames = np.arange(plan.num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert np.array_equal(view(frames, cropped)[0], frames[2 * mask.shown[0]])
    assert len(view(frames, cropped)) == cropped.num_frames


def test_a_crop_earns_the_reward_that_the_whole_video_would():
    truth = {"start": 24.0, "end": 30.0, "duration": 60.0, "intervals": [[24.0, 30.0]]}
    mask = Curriculum(op="crop").mask(plan_of_units(60), HARD, 50, 100)
    moved = crop_truth(truth, mask, plan_of_units(60))
    assert mask.shown == (12, 45) and moved["start"] == 12.0 and moved["duration"] == 33.0
    said = "<think>x</think><answer>{:.2f} to {:.2f}</answer>"
    before = compute_score("videotg_r1/set", said.format(25, 31), truth)
    assert compute_score("videotg_r1/set", said.format(25 - 12, 31 - 12), moved) == before
    with pytest.raises(CurriculumError, match="crop cannot move a ground truth with boxes"):
        crop_truth({**truth, "boxes": [[0, 0, 1, 1]]}, mask, plan_of_units(60))


# --- settings and rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"schedul": "linear"}, "data.curriculum knows no schedul; its keys are enabled, schedule, hidden_at_start"),
        ({"schedule": "lineal"}, "data.curriculum.schedule=lineal is unknown; choose one of linear, cosine"),
        ({"region": "all"}, "data.curriculum.region=all is unknown"),
        ({"op": "blur"}, "data.curriculum.op=blur is unknown; choose one of blank, crop"),
        ({"op": "crop", "region": "random"}, "op=crop leaves one piece"),
        ({"bins": ["difficult"]}, "data.curriculum.bins=.'difficult'. must name some of hard, normal, easy"),
        ({"bins": "hard"}, "data.curriculum.bins=hard must be a list"),
        ({"bins": []}, "must name some of"),
        ({"hidden_at_start": 1.5}, "data.curriculum.hidden_at_start=1.5 must be from 0 to 1"),
        ({"all_shown_after": 0}, "data.curriculum.all_shown_after=0 must be over 0"),
        ({"stages": 2.5}, "data.curriculum.stages=2.5 must be a whole number"),
        ({"decay_rate": "fast"}, "data.curriculum.decay_rate=fast must be over 0"),
        ({"seed": None}, "data.curriculum.seed=None must be a whole number"),
        ({"enabled": "yes"}, "data.curriculum.enabled=yes must be true or false"),
    ],
)
def test_settings_that_are_wrong_name_themselves(given_, message):
    config = OmegaConf.create({"curriculum": {"enabled": True, **given_}})
    with pytest.raises(CurriculumError, match=message):
        Curriculum.of(config)


def test_settings():
    assert Curriculum.of({}) is None and Curriculum.of({"curriculum": None}) is None
    assert Curriculum.of({"curriculum": {"enabled": False, "hidden_at_start": 0.5}}) is None
    made = Curriculum.of(
        OmegaConf.create({"curriculum": {"enabled": True, "bins": ["hard", "normal"], "hidden_at_start": 0.5}})
    )
    assert made == Curriculum(bins=("hard", "normal"), hidden_at_start=0.5)


def test_old_names_of_keys_still_work_with_a_warning(caplog):
    stated = {"hidden_at_start": 1.0, "all_shown_after": 1.0, "decay_rate": 5.0}  # as the recipes state them
    old = OmegaConf.create({"curriculum": {"enabled": True, **stated, "r0": 0.5, "rho": 0.25, "k": 3}})
    made = Curriculum.of(old)
    assert made == Curriculum(hidden_at_start=0.5, all_shown_after=0.25, decay_rate=3)
    said = "data.curriculum.r0 is called data.curriculum.hidden_at_start now; the old name goes with the next release"
    assert said in caplog.messages and len(caplog.messages) == 3
    assert Curriculum.of(old) is made and len(caplog.messages) == 3  # once per process


class Halved(Curriculum):
    """A curriculum of the user's own."""

    def ratio(self, step, total, difficulty=1.0):
        return super().ratio(step, total, difficulty) / 2


def test_a_subclass_may_be_named():
    given_ = {"enabled": True, "_target_": f"{__name__}.Halved"}
    assert Curriculum.of({"curriculum": given_}).ratio(0, 10) == 0.5
    with pytest.raises(CurriculumError, match="data.curriculum._target_=builtins.dict is no Curriculum; leave it out"):
        Curriculum.of({"curriculum": {**given_, "_target_": "builtins.dict"}})


@pytest.mark.parametrize(
    "extra, truth, message",
    [
        ({"bin": None}, {}, "needs extra_info.bin, one of hard, normal, easy, and finds None; select data first"),
        ({"bin": "tough"}, {}, "and finds tough"),
        ({"difficulty": None}, {}, "needs extra_info.difficulty from 0 to 1, and finds None"),
        ({"difficulty": 1.5}, {}, "and finds 1.5"),
        ({"uid": None}, {}, "needs extra_info.uid"),
        ({}, {"start": None}, "cannot be kept visible"),
        ({}, {"start": 7.0, "end": 3.0}, "cannot be kept visible"),
        ({}, {"intervals": [[1.0, math.inf]]}, "cannot be kept visible"),
    ],
)
def test_rows_that_no_mask_can_be_made_from(extra, truth, message):
    row = {
        "extra_info": {"uid": "a", "bin": "hard", "difficulty": 0.5, **extra},
        "reward_model": {"ground_truth": {"start": 1.0, "end": 2.0, "intervals": None, **truth}},
    }
    with pytest.raises(CurriculumError, match=message):
        RowFacts.of(row)


def test_masks_of_a_plan_are_checked():
    plan = plan_of_units(5)
    assert plan.masked([[0, 1], [3, 5]]).hidden == ((0, 1), (3, 5)) and plan.masked(shown=[1, 4]).grid_thw == (3, 2, 2)
    assert plan.masked([[0, 1]]).whole is not plan and plan.masked([[0, 1]]).whole == plan and plan.whole is plan
    assert plan.masked([[0, 1]]).identity == plan.masked(shown=(0, 2)).identity == plan.identity
    for hidden in ([[0, 6]], [[-1, 2]], [[2, 2]], [[3, 4], [0, 1]], [[0, 3], [2, 4]]):
        with pytest.raises(ValueError, match="no runs of the 5 temporal units"):
            plan.masked(hidden)
    for shown in ([2, 2], [0, 6], [-1, 3]):
        with pytest.raises(ValueError, match="is no run of the 5 temporal units"):
            plan.masked(shown=shown)


# --- in the rollout worker --------------------------------------------------------------------------------------------

TOTAL = 4


@pytest.fixture
def binned(rows, tmp_path):
    """Held-out clips with bins: hard, normal and easy in turn."""
    table = pq.read_table(rows / "val.parquet").to_pylist()[:6]
    for k, row in enumerate(table):
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
        row["extra_info"] |= {"bin": BINS[k % 3], "difficulty": 1 - k % 3 / 2}
    write(table, tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def write(table: list[dict], path) -> None:
    import datasets

    datasets.Dataset.from_list(table).to_parquet(path)


@pytest.fixture
def made(binned, tmp_path):
    """A function that makes the dataset over binned clips under a curriculum."""

    def make(cache=True, train=True, path=binned, **curriculum):
        processor = make_processor()
        config = OmegaConf.create(
            {
                "train_files": str(path if train else "elsewhere.parquet"),
                "max_prompt_length": 512,
                "check_videos": "exist",
                "video_cache": {"enabled": cache, "folder": str(tmp_path / "frames")},
                "curriculum": {"enabled": True, **curriculum},
            }
        )
        return VideoGroundingDataset(str(path), processor.tokenizer, config, processor)

    return make


def worker_of(dataset, total=TOTAL):
    worker = object.__new__(VideoGroundingWorker)
    worker.curriculum, worker.total_steps = Curriculum.of(dataset.config), total
    worker.config = OmegaConf.create({"data": dataset.config})
    return worker


def prompt_of(dataset, k, step, n=0):
    return {**dataset[k], "global_steps": step, "session_id": n, "uid": "of-verl"}


def test_everybody_sees_the_same_masked_frames(made, model):
    """vLLM's frames and the actor's pixels under a mask, with the cache and without, of one rollout and of another."""
    for cache, kind in ((False, StockWorker), (True, VideoGroundingWorker)):
        results, dataset = [], made(cache)
        for n in range(2):
            dataset.processor = hf_processor(str(model))
            row = worker_of(dataset)._masked(prompt_of(dataset, 0, step=2, n=n))
            results.append(rolled_out(dataset, row, kind))
        row_plan = plan_video_part(next(video_parts(row["raw_prompt"])))
        whole = read_frames(next(video_parts(row["raw_prompt"]))["video"], row_plan.whole)
        wanted = view(whole, row_plan)
        assert row_plan.hidden and not np.array_equal(wanted, whole)
        truth = row["reward_model"]["ground_truth"]
        first, last = math.floor(truth["start"]) * 2, math.ceil(truth["end"]) * 2
        assert (
            np.array_equal(wanted[first:last], whole[first:last]) and (wanted[: 2 * row_plan.hidden[0][1]] == 0).all()
        )
        pixels = [extract_multi_modal_inputs([result.inputs])["pixel_values_videos"] for result in results]
        assert torch.equal(pixels[0], pixels[1])
        processor = make_processor().video_processor
        frames = torch.from_numpy(wanted).permute(0, 3, 1, 2)
        assert torch.equal(pixels[0], processor(videos=[frames], return_tensors="pt")["pixel_values_videos"])
        for result in results:
            ((sent, metadata),) = pickle.loads(pickle.dumps(result.videos))
            assert torch.equal(sent.permute(0, 2, 3, 1), torch.from_numpy(wanted))
            assert metadata == row_plan.whole.metadata(), "the clock goes on"
            assert result.prompt == results[0].prompt


def test_a_mask_costs_no_decoding(made):
    dataset = made()
    store = frame_store(dataset.config)
    for step in range(1, TOTAL + 1):
        row = worker_of(dataset)._masked(prompt_of(dataset, 0, step))
        asyncio.run(dataset.process_multi_modal_info(row["raw_prompt"], 14, dataset.config))[1][0][0].tensor()
    assert store.cache.decodes <= 1


def test_steps_bins_and_resume(made):
    """Only hard rows; less at each step; the same after a resume, which is another worker at the same step."""
    dataset = made(region="random")
    shares = {}
    for k, bin_ in enumerate(BINS):
        for step in range(1, TOTAL + 1):
            row = prompt_of(dataset, k, step)
            before = copy.deepcopy(row["raw_prompt"])
            masked = worker_of(dataset)._masked(row)
            assert row["raw_prompt"] == before, "the row itself is left as it is"
            assert (
                worker_of(made(region="random"))._masked(prompt_of(dataset, k, step))["raw_prompt"]
                == masked["raw_prompt"]
            )
            assert masked["reward_model"] == row["reward_model"], "the answer stays where it was"
            assert masked["extra_info"][MASK]["bin"] == bin_
            assert masked["extra_info"][MASK]["mask_ratio"] == (1 - (step - 1) / TOTAL if bin_ == "hard" else 0)
            shares.setdefault(bin_, []).append(masked["extra_info"][MASK]["masked_share"])
    assert shares["hard"] == sorted(shares["hard"], reverse=True) and shares["hard"][0] > shares["hard"][-1]
    assert set(shares["normal"] + shares["easy"]) == {0.0}


def test_crops_in_the_rollout(made, model):
    dataset = made(op="crop")
    dataset.processor = hf_processor(str(model))
    row = prompt_of(dataset, 0, step=1)
    masked = worker_of(dataset)._masked(row)
    result = rolled_out(dataset, masked, VideoGroundingWorker)
    ((frames, metadata),) = result.videos
    truth, moved = row["reward_model"]["ground_truth"], masked["reward_model"]["ground_truth"]
    assert moved["end"] - moved["start"] == pytest.approx(truth["end"] - truth["start"])
    assert moved["start"] + moved["crop_start"] == pytest.approx(truth["start"])
    assert frames.plan.num_units == moved["duration"] < truth["duration"]
    assert metadata["total_num_frames"] == frames.plan.num_frames == len(frames.tensor())
    units, height, width = frames.plan.grid_thw
    assert result.inputs["pixel_values_videos"].shape[0] == units * height * width
    assert torch.cat([result.inputs["pixel_values_videos"]]).shape[0] == units * height * width
    assert result.prompt.count(dataset.tokenizer.convert_tokens_to_ids("<|video_pad|>")) == frames.plan.num_tokens


def test_validation_is_never_masked(made, monkeypatch):
    dataset, asked = made(), []

    async def run(self, sampling_params, trajectory, **prompt):
        asked.append(prompt)

    monkeypatch.setattr(StockWorker, "_run_agent_loop", run)
    for validate in (True, False):
        asyncio.run(
            worker_of(dataset)._run_agent_loop({}, {"validate": validate}, trace=False, **prompt_of(dataset, 0, 1))
        )
    validated, trained = asked
    assert "hidden" not in next(video_parts(validated["raw_prompt"])) and MASK not in validated["extra_info"]
    assert next(video_parts(trained["raw_prompt"]))["hidden"] and trained["extra_info"][MASK]["mask_ratio"] == 1.0
    assert trained["trace"] is False and trained["session_id"] == 0


def test_rows_without_bins_are_refused_at_once(made, binned, tmp_path, rows):
    with pytest.raises(RowError, match="row 0 .*needs extra_info.bin.*select data first"):
        made(path=rows / "val.parquet")
    assert len(made(path=rows / "val.parquet", train=False)) == 48, "rows that are not trained on need none"
    table = pq.read_table(binned).to_pylist()
    table[0]["reward_model"]["ground_truth"] |= {"start": 100.0, "end": 101.0, "intervals": None}
    write(table, tmp_path / "outside.parquet")
    with pytest.raises(RowError, match="1 of 6 rows .*\n.*outside of the 8 s that the model sees"):
        made(path=tmp_path / "outside.parquet")
    dataset = made()
    broken = {**prompt_of(dataset, 0, 1), "extra_info": {"uid": "somebody", "bin": "hard"}}
    with pytest.raises(RolloutError, match="sample somebody cannot be masked: .*difficulty"):
        worker_of(dataset)._masked(broken)


def test_entries_of_a_row_may_hide_units(made):
    """What data selection uses: a video whose annotated time is black."""
    dataset = made()
    part = dict(next(video_parts(dataset[0]["raw_prompt"])), hidden=[[2, 4]])
    store = frame_store(dataset.config)
    plan = plan_video_part(part, store)
    frames = CachedFrames(part["video"], plan, store).tensor()
    assert (frames[4:8] == 0).all() and frames[:4].any() and frames[8:].any()


def test_number_of_steps():
    def config(updates, mode):
        v1 = {"trainer_mode": mode, "separate_async": {"parameter_sync_step": 4}}
        optim = {"total_training_steps": updates}
        return OmegaConf.create({"trainer": {"v1": v1}, "actor_rollout_ref": {"actor": {"optim": optim}}})

    assert total_steps(config(40, "sync")) == 40 and total_steps(config(40, "separate_async")) == 10
    with pytest.raises(ValueError, match="set trainer.total_training_steps"):
        total_steps(config(-1, "sync"))


# --- metrics, group filtering -----------------------------------------------------------------------------------------


def test_metrics_by_bin():
    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "c_0_0", "c_1_0"]
    infos = [{"score": s, "iou": s / 2} for s in (1.0, 1.0, 0.0, 1.0, 2.0, 2.0)]
    hard = {"bin": "hard", "mask_ratio": 0.5, "masked_share": 0.25}
    easy = {"bin": "easy", "mask_ratio": 0.0, "masked_share": 0.0}
    found = curriculum_metrics(keys, infos, [hard] * 4 + [easy] * 2)
    assert found == {
        "curriculum/hard/score": 0.75,
        "curriculum/hard/iou": 0.375,
        "curriculum/hard/mask_ratio": 0.5,
        "curriculum/hard/masked_share": 0.25,
        "curriculum/hard/zero_variance_groups": 0.5,
        "curriculum/hard/prompts": 2,
        "curriculum/hard/trajectories": 4,
        "curriculum/easy/score": 2.0,
        "curriculum/easy/iou": 1.0,
        "curriculum/easy/mask_ratio": 0.0,
        "curriculum/easy/masked_share": 0.0,
        "curriculum/easy/zero_variance_groups": 1.0,
        "curriculum/easy/prompts": 1,
        "curriculum/easy/trajectories": 2,
        "curriculum/mask_ratio": pytest.approx(1 / 3),
        "curriculum/masked_share": pytest.approx(1 / 6),
    }
    without = curriculum_metrics(keys, infos, [{"bin": "hard"}] * 4 + [{"bin": None}] * 2)
    assert set(without) == {
        f"curriculum/hard/{name}" for name in ("score", "iou", "zero_variance_groups", "prompts", "trajectories")
    }
    assert curriculum_metrics(keys, infos, [{}] * 6) == {}


FILTER = {"enable": True, "metric": "reward", "max_inflight_gen_batches": 2}


def buffer_of(**sampler_kwargs):
    return PollingReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        refill_fn=lambda count: None,
        sampler_kwargs=OmegaConf.create(sampler_kwargs),
    )


def test_group_filtering_is_verls_own():
    made = buffer_of(poll_interval=0.2, filter_groups=FILTER, train_batch_size=16, prefer="spread")
    assert (made.filter_groups_metric, made.train_batch_size, made.gen_batch_size) == ("reward", 16, 1)
    assert made.max_inflight_gen_batches == 2 and made.poll_interval == 0.2
    assert buffer_of().filter_groups_metric is None and buffer_of().poll_interval == 2.0
    assert buffer_of(filter_groups={"enable": False}).filter_groups_metric is None
    for wrong, message in (
        ({"pol_interval": 1}, "knows no pol_interval"),
        ({"filter_groups": FILTER}, "train_batch_size="),
        ({"prefer": "spread"}, "enable algorithm.filter_groups"),
        ({"prefer": "luck"}, "prefer=luck is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer_of(**wrong)


def test_filtering_that_would_be_ignored_is_refused():
    def config(asked, told):
        sampler = {"custom_sampler": {"path": "pkg://verl_stvg.training.replay_buffer"}, "sampler_kwargs": told}
        return OmegaConf.create({"algorithm": {"filter_groups": asked}, "trainer": {"v1": {"sampler": sampler}}})

    check_filtering(config(None, {}))
    check_filtering(config(FILTER, {"filter_groups": FILTER}))
    check_filtering(config({"enable": False}, {"filter_groups": {"enable": False}}))
    for asked, told in ((FILTER, {}), (None, {"filter_groups": FILTER})):
        with pytest.raises(ValueError, match="sampler_kwargs.filter_groups differ"):
            check_filtering(config(asked, told))


@given(st.lists(st.lists(st.floats(0, 3), min_size=2, max_size=2), min_size=1, max_size=8), st.integers(1, 4))
def test_the_groups_with_the_widest_spread(groups, count):
    keys = [f"g{g}_{n}_0" for g in range(len(groups)) for n in range(2)]
    chosen = widest_groups(keys, [score for group in groups for score in group], count)
    assert len(chosen) == min(count, len(groups))
    spread = {f"g{g}": float(np.std(group)) for g, group in enumerate(groups)}
    rest = [spread[uid] for uid in spread if uid not in chosen]
    assert min(spread[uid] for uid in chosen) >= max(rest, default=0.0)
