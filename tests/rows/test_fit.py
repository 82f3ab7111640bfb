"""Rows of one model on another: the plan is fitted where it is made, and by every command alike."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from typer.testing import CliRunner

from tests.data_builders.test_build import write_video
from verl_stvg.base import recipe_names
from verl_stvg.cli.data import build_app
from verl_stvg.cli.select import app as select_app
from verl_stvg.data_builders import build
from verl_stvg.data_builders.check_videos import remember
from verl_stvg.data_builders.selection import difficulty, folder, subset
from verl_stvg.data_builders.sets import find
from verl_stvg.data_builders.testing.tiny_parts import TinyConfig, make_processor, make_untrained
from verl_stvg.inference.settings import read_rows
from verl_stvg.launch import preflight, row_checks, row_sizes
from verl_stvg.launch.config_checks import too_few_rows
from verl_stvg.rows import files as row_files
from verl_stvg.rows import fit
from verl_stvg.rows.cache_fill import read_jobs
from verl_stvg.rows.row import Row, RowError, entries_of, entry_of, plan_of, refit
from verl_stvg.rows.settings import frame_source
from verl_stvg.training.dataset import VideoGroundingDataset
from verl_stvg.video.frame_rules import TEMPORAL_PATCH
from verl_stvg.video.plan import plan_video

TINY = OmegaConf.to_container(OmegaConf.load(recipe_names.FOLDER / "variant/tiny.yaml"))
TOKEN = 28 * 28


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Folder of two own videos of 12 and 40 s, and of rows of them as a 7B would train on them."""
    root = tmp_path_factory.mktemp("own")
    lines = []
    for seed, (name, seconds) in enumerate((("short.mp4", 12), ("long.mp4", 40))):
        write_video(root / "videos" / name, seconds, seed, (320, 180))
        lines.append({"video": name, "query": "It moves.", "start": 1.0, "end": 6.5})
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build.build(build.Job(find("generic"), root, root / "rows", root / "videos"))
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Folder of a model of the tiny one's limits, with random weights."""
    path = tmp_path_factory.mktemp("model")
    processor = make_processor()
    processor.save_pretrained(path)
    make_untrained(TinyConfig(), processor.tokenizer, 0).save_pretrained(path)
    return path


# --- the rule ---------------------------------------------------------------------------------------------------------


@given(
    st.floats(1.5, 4000),
    st.sampled_from([(640, 360), (360, 640), (112, 112), (1920, 1080)]),
    st.integers(16, 4000),
    st.sampled_from([(1, 6), (1, 16), (1, 768), (4, 16), (4, 768)]),
    st.sampled_from([16, 64, 768]),
)
def test_the_adaptive_grid_is_the_fastest_grid_within_the_limits(seconds, size, tokens, limits, frames):
    least, most = limits
    options = {"min_pixels": least * TOKEN, "max_pixels": most * TOKEN, "total_pixels": tokens * TOKEN}
    video = (max(1, round(seconds * 25)), 25, *size)
    plan = plan_video(*video, rule="adaptive_grid", fps=2.0, max_frames=frames, **options)
    slower = 2.0 / plan.fps
    assert slower == pytest.approx(round(slower))
    assert plan.num_frames <= frames and plan.num_tokens <= tokens
    assert least * TOKEN <= plan.height * plan.width <= most * TOKEN
    if round(slower) > 1:  # at the next faster rate some limit is broken: the frames, or the budget in allowed sizes
        fps = 2.0 / (round(slower) - 1)
        count = int(video[0] / 25 * fps + 1e-6) // TEMPORAL_PATCH * TEMPORAL_PATCH
        too_dear = count // TEMPORAL_PATCH * least > tokens
        forced = least > 1 and count // TEMPORAL_PATCH * 9 > tokens  # 3 x 3: sides rounded up
        assert count > frames or too_dear or forced


def test_the_adaptive_grid_is_the_grid_where_that_fits():
    given = {"fps": 2.0, "min_pixels": TOKEN, "max_pixels": 6 * TOKEN, "total_pixels": 128 * TOKEN}
    assert plan_video(200, 25, 336, 224, rule="adaptive_grid", **given) == plan_video(200, 25, 336, 224, **given)


def test_a_number_of_frames_is_refused_by_the_adaptive_grid():
    with pytest.raises(ValueError, match="rule 'adaptive_grid' fixes their distance"):
        plan_video(200, 25, 336, 224, rule="adaptive_grid", nframes=8)


# --- a fit ------------------------------------------------------------------------------------------------------------


def test_the_tiny_variant_leaves_synthetic_rows_as_they_are(rows):
    keys = fit.checked(TINY["data"]["fit"])
    for row in pq.read_table(rows / "train.parquet").to_pylist()[:8]:
        entry, info = entry_of(row["videos"][0]), Row.of(row).info
        assert plan_of(refit(entry, keys), info) == plan_of(entry, info)


def test_a_fit_keeps_the_part_and_the_marks_and_nothing_else_of_the_plan():
    entry = {
        "video": "a.mp4",
        "rule": "qwen_vl_utils",
        "nframes": 8,
        "video_start": 1.0,
        "tracks": "t",
        "min_pixels": 9,
    }
    found = refit(entry, fit.checked({"max_pixels": 5000}))
    assert found == {
        "video": "a.mp4",
        "video_start": 1.0,
        "tracks": "t",
        "rule": "adaptive_grid",
        "fps": 2.0,
        "max_pixels": 5000,
    }
    assert refit(entry, {}) == entry


def test_masks_of_a_row_count_in_its_own_plan():
    with pytest.raises(ValueError, match="hidden of the row count the temporal units of its own plan"):
        entries_of([{"video": "a.mp4", "hidden": [[0, 1]]}], fit={"fps": 1.0})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_pixel": 1}, "a fit has no key 'max_pixel'; did you mean max_pixels?"),
        ({"video_start": 1.0}, "no key 'video_start'"),
        ({"fps": "two"}, "fps must be a positive number, got 'two'; correct the value"),
        ({"fps": 1, "rule": "fast"}, "'fast' is unknown; choose one of grid, qwen_vl_utils, adaptive_grid"),
        ({"fps": 1, "nframes": 8, "rule": "qwen_vl_utils"}, "exclude each other"),
    ],
)
def test_a_fit_that_is_none(given, said):
    with pytest.raises(ValueError) as caught:
        fit.checked(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("fps", "not of the form KEY=VALUE"), ("fps=2x", "write a number"), ("fps=true", "write a number")],
)
def test_a_fit_of_a_command_line_that_is_none(text, said):
    with pytest.raises(ValueError, match=said):
        fit.parse([text])


@pytest.mark.parametrize("side", [28, 32])
def test_the_fit_to_limits_keeps_to_them(side):
    """Qwen3-VL's limits count all frames together; a plan within the fit is one that its processor leaves alone."""
    whole, low, high = side == 32, 4096, 10**7 if side == 32 else 4 * 10**5
    keys = fit.to_limits(low, high, side, whole, positions=8192, budget=700)
    for seconds in (1.2, 30, 500, 4000):
        plan = plan_of({**keys, "patch": side // 2}, Row(facts(seconds)).info)
        pixels = (plan.num_frames if whole else 1) * plan.height * plan.width
        assert low <= pixels <= high and plan.num_tokens <= 700


def facts(seconds: float) -> dict:
    """A row that records a file of 640x360."""
    extra = {"num_frames": round(seconds * 25), "source_fps": 25.0, "width": 640, "height": 360, "constant_rate": True}
    return {"videos": [{"video": "a.mp4"}], "extra_info": extra}


def test_a_model_says_its_limits(tiny):
    keys = fit.of_model(str(tiny))
    assert keys["min_pixels"] == TOKEN and keys["max_pixels"] == 16 * TOKEN and keys["total_pixels"] == 1024 * TOKEN
    assert fit.parse([f"model={tiny}", "fps=1"]) == {**keys, "fps": 1}
    assert fit.of_model(str(tiny), 100)["total_pixels"] == 100 * TOKEN


# --- training ---------------------------------------------------------------------------------------------------------


def data_of(own: Path, **more: object):
    """The part of a run's configuration that the dataset reads, under ``+variant=tiny``."""
    tiny = {key: TINY["data"][key] for key in ("fit", "max_prompt_length")}
    usual = {"check_videos": "probe", "filter_overlong_prompts": False, "video_cache": {"enabled": False}}
    return OmegaConf.create({**tiny, **usual, **more})


def made(own: Path, config) -> VideoGroundingDataset:
    processor = make_processor("time_r1")
    return VideoGroundingDataset(str(own / "rows/train.parquet"), processor.tokenizer, config, processor)


def test_own_rows_fit_the_tiny_model_as_they_are(own):
    """Rows that were built for a 7B, without a rebuild: all prompts are within the length that the run then has."""
    with pytest.raises(RowError, match="outside the limits of the model's processor.*data.fit.max_pixels"):
        made(own, data_of(own, fit=None))
    config = data_of(own)
    dataset = made(own, config)
    lengths = [dataset._check_row(row, "probe", frame_source(config))[1] for row in dataset.dataframe]
    assert max(lengths) <= dataset.max_prompt_length == config.max_prompt_length
    assert config.max_prompt_length == max(lengths) or config.max_prompt_length == TINY["data"]["max_prompt_length"]
    for row in dataset:
        (part,) = [part for part in row["raw_prompt"][0]["content"] if part["type"] == "video"]
        assert part["rule"] == "adaptive_grid" and part["total_pixels"] == 128 * TOKEN


def test_a_fit_of_a_run_that_is_none_is_refused(own):
    with pytest.raises(RowError, match="data.fit: a fit has no key 'frames'"):
        made(own, data_of(own, fit={"frames": 3}))


def test_every_reader_of_rows_makes_the_same_plan(own, tmp_path):
    """Training, the planner, `check`, `cache build`, evaluation and selection."""
    keys, file = fit.checked(TINY["data"]["fit"]), own / "rows/train.parquet"
    asked = [entry_of(row["videos"][0]) for row in pq.read_table(file).to_pylist()]
    wanted = [{**entry, **keys} for entry in ({"video": one["video"]} for one in asked)]
    parts = [part for row in made(own, data_of(own)) for part in row["raw_prompt"][0]["content"] if "video" in part]
    root = str(own / "videos")
    assert [{**part, "video": Path(part["video"]).name} for part in parts] == [{"type": "video", **w} for w in wanted]
    for found in (
        [dict(job.options) | {"video": job.video} for job in read_jobs([file], fit=keys)],
        [
            {**row["videos"][0], "video": str(Path(row["video_root"], row["videos"][0]["video"]))}
            for row in read_rows([file], None, keys)
        ],
    ):
        assert found == [{**one, "video": f"{root}/{one['video']}"} for one in wanted]
    seen = list(remember(next(row_files.read_rows(file, own / "videos", fit=keys)), 0, 0))
    assert dict(seen[0].plan) == keys
    folder.prepare(difficulty.stage(difficulty.Rules()), [file], tmp_path / "stage", fit=keys)
    frozen = [entry_of(row["videos"][0]) for row in row_files.read_rows(tmp_path / "stage/rows.parquet")]
    assert [{**one, "video": Path(one["video"]).name} for one in frozen] == wanted
    folder.prepare(difficulty.stage(difficulty.Rules()), [file], tmp_path / "stage")  # judged again without a model
    units = row_sizes.read_rows([file], fit=keys).most_units
    assert units == max(
        plan_of(one, Row.of(row).info).num_units for one, row in zip(wanted, row_files.read_rows(file), strict=True)
    )


def composed(**data: object):
    """The keys of a configuration that the checks of lengths and batches read."""
    return OmegaConf.create(
        {
            "data": {"max_prompt_length": 400, "max_response_length": 48, "train_batch_size": 16, **data},
            "algorithm": {},
            "trainer": {"n_gpus_per_node": 1, "nnodes": 1, "use_v1": False, "total_training_steps": None},
            "actor_rollout_ref": {
                "model": {"path": None},
                "actor": {"use_dynamic_bsz": False, "ppo_mini_batch_size": 16, "ppo_micro_batch_size_per_gpu": 32},
                "ref": {"log_prob_micro_batch_size_per_gpu": 64},
                "rollout": {"n": 8, "log_prob_micro_batch_size_per_gpu": 64, "max_model_len": 256},
            },
        }
    )


def test_the_rollout_has_room_for_longer_prompts(tiny):
    config = composed(fit={"fps": 2.0})
    config.actor_rollout_ref.model.path = str(tiny)
    assert row_checks.wider_rollout(config) == {"actor_rollout_ref.rollout.max_model_len": 448}
    preflight.settle(config, row_checks.wider_rollout(config))
    assert config.actor_rollout_ref.rollout.max_model_len == 448 and not preflight.longer_than_the_rollout(config)
    config.data.max_prompt_length = 5000
    with pytest.raises(preflight.PreflightError, match="reads 4096 tokens: lower data.fit.total_pixels"):
        row_checks.wider_rollout(config)
    without = composed()
    assert row_checks.wider_rollout(without) == {}
    assert without.actor_rollout_ref.rollout.max_model_len == 256


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 10, 15])
def test_too_few_rows_name_batches_that_divide(rows):
    config = composed()
    (said,) = too_few_rows(config, rows)
    settings = said.partition("(")[2].partition(")")[0].split()
    changed = OmegaConf.merge(config, OmegaConf.from_dotlist(settings))
    assert not too_few_rows(changed, rows) and not preflight.indivisible_batches(changed)


def test_the_fit_of_a_run_is_that_of_its_evaluation(tmp_path, monkeypatch):
    config = composed(fit={"max_pixels": 4704})
    record = {"arguments": ["a=b"], "status": None}
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    preflight.record_fit(config)
    keys = {"rule": "adaptive_grid", "fps": 2.0, "max_pixels": 4704}
    assert json.loads((tmp_path / "run.json").read_text()) == {**record, "fit": keys}
    actor = tmp_path / "checkpoints/global_step_2/actor"
    actor.mkdir(parents=True)
    assert fit.fit_for(str(actor)) == keys
    assert fit.fit_for(str(actor), ["fps=1", "max_frames=64"]) == {**keys, "fps": 1.0, "max_frames": 64}
    preflight.record_fit(composed())  # an earlier start had one, this one has none
    assert json.loads((tmp_path / "run.json").read_text()) == record


# --- building ---------------------------------------------------------------------------------------------------------


def built(own: Path, out: Path, *options: str):
    """Rows of `build generic` with options, and what it says."""
    arguments = ["generic", "--annotations", str(own), "--videos", str(own / "videos"), "--out", str(out), *options]
    done = CliRunner().invoke(build_app, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    entries = [entry_of(row["videos"][0]) for row in pq.read_table(out / "train.parquet").to_pylist()]
    return [{key: entry[key] for key in entry if key != "video"} for entry in entries], done.output


def test_build_takes_the_keys_of_a_plan(own, tmp_path):
    options = [
        "--fps",
        "1",
        "--min-pixels",
        "784",
        "--max-pixels",
        "50000",
        "--max-frames",
        "32",
        "--total-pixels",
        "600000",
    ]
    entries, _ = built(own, tmp_path / "rows", *options, "--rule", "adaptive_grid")
    keys = {"fps": 1.0, "min_pixels": 784, "max_pixels": 50000, "max_frames": 32, "total_pixels": 600000}
    assert entries == [{"rule": "adaptive_grid", **keys}] * 2
    assert json.loads((tmp_path / "rows/manifest.json").read_text())["shown"] == keys
    with pytest.raises(ValueError, match="built from something else .*shown"):
        built(own, tmp_path / "rows", "--rule", "adaptive_grid")
    with pytest.raises(
        ValueError, match="min_pixels=12544 is over max_pixels=784, and one of the two is the template's"
    ):
        built(own, tmp_path / "other", "--max-pixels", "784")
    with pytest.raises(ValueError, match="--tokens is the budget of a model"):
        built(own, tmp_path / "other", "--tokens", "10")


def test_build_fits_rows_to_a_model(own, tiny, tmp_path):
    entries, _ = built(own, tmp_path / "rows", "--model", str(tiny), "--tokens", "96")
    assert entries == [fit.of_model(str(tiny), 96)] * 2
    dataset = VideoGroundingDataset(
        str(tmp_path / "rows/train.parquet"),
        make_processor().tokenizer,
        data_of(own, fit=None, max_prompt_length=1024),
        make_processor(),
    )
    assert len(dataset) == 2


# --- selection --------------------------------------------------------------------------------------------------------


def test_a_stage_that_can_ask_about_no_row_says_so(own, tiny, tmp_path):
    """Rows of a 7B on the tiny model, without a fit: every prompt is refused."""
    arguments = [str(own / "rows/train.parquet"), "--out", str(tmp_path / "out"), "--model", str(tiny)]
    done = CliRunner().invoke(select_app, ["difficulty", *arguments, "--engine", "transformers", "--max-tokens", "4"])
    said = str(done.exception)
    assert isinstance(done.exception, ValueError)
    assert (
        "could be asked about none of the 2 rows" in said
        and "the first is generic/train/short.mp4/0: frames of" in said
    )
    assert "  2 x frames of NxN lie outside the limits" in said
    assert not (tmp_path / "out/judged.jsonl").exists()
    arguments[2] = str(tmp_path / "fitted")
    options = ["--engine", "transformers", "--max-tokens", "4", "--dtype", "float32"]
    options += ["--fit", f"model={tiny}", "--fit", "total_pixels=100352", "--cache", str(tmp_path / "frames")]
    done = CliRunner().invoke(select_app, ["difficulty", *arguments, *options])
    assert not done.exception, done.exception
    run = json.loads((tmp_path / "fitted/answers/all/run.json").read_text())
    assert "fit" not in run  # the frozen rows have it
    assert json.loads((tmp_path / "fitted/manifest.json").read_text())["fit"]["total_pixels"] == 100352


def test_a_choice_names_what_it_lacks(own, tmp_path):
    file = own / "rows/train.parquet"
    found = dataclasses.replace(subset.Judgements(), difficulty=tmp_path / "nothing")
    with pytest.raises(folder.SelectionError, match="nothing: no such file, .*run that stage"):
        subset.select([file], tmp_path / "out", found)
    (tmp_path / "stage").mkdir()
    found = dataclasses.replace(found, difficulty=tmp_path / "stage")
    with pytest.raises(folder.SelectionError, match="stage/judged.jsonl: no such file, .* has no judgements yet"):
        subset.select([file], tmp_path / "out", found)
    (tmp_path / "stage/judged.jsonl").write_text('{"uid": "a"}\n')
    with pytest.raises(folder.SelectionError, match="judged.jsonl: line 1 lacks iou, difficulty, bin, drop_reason"):
        subset.select([file], tmp_path / "out", found)
    with pytest.raises(folder.SelectionError, match="uids.txt: no such file; --uids is a file with one uid per line"):
        subset.select([file], tmp_path / "out", subset.Judgements(uids=tmp_path / "uids.txt"))
    table = pq.read_table(file)
    pq.write_table(table.drop(["prompt"]), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="rows.parquet: has no column prompt"):
        subset.select([tmp_path / "rows.parquet"], tmp_path / "out", subset.Judgements())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"total_pixels": 1000}, "total_pixels=1000 has no room for 2 frames of min_pixels="),
        ({"max_pixels": 784, "min_pixels": 3136}, "min_pixels=3136 is over max_pixels=784"),
    ],
)
def test_a_budget_without_room_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        fit.checked(given)
    with pytest.raises(ValueError, match=said):
        plan_video(2500, 25.0, 640, 480, rule="adaptive_grid", **given)


def test_the_largest_frame_counts_where_no_smallest_is_given():
    """The example of docs/data.md: frames are no larger than it says, and the budget is used."""
    assert fit.checked({"max_pixels": 50_000})["max_pixels"] == 50_000
    plan = plan_video(2500, 25.0, 640, 480, rule="adaptive_grid", max_pixels=50_176, total_pixels=802_816)
    assert plan.height * plan.width <= 50_176 and plan.num_tokens <= 1024 and len(plan.frame_indices) > 14
