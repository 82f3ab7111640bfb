"""Mistakes in a run's configuration or rows end before anything starts, in a message that names cause and remedy."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import verl  # noqa: F401  (loads the plugin, as a run does)
from hydra import compose, initialize_config_module

from data_builders.synthetic import ROW_SCHEMA
from verl_stvg import preflight
from verl_stvg.dataset import RowError
from verl_stvg.preflight import PreflightError


@pytest.fixture
def config(rows, tmp_path):
    """STVG-R1's recipe at tiny size, composed, on the synthetic rows; overrides as on the command line."""
    from data_builders.tiny_model import make_processor

    folder = tmp_path / "model"
    make_processor().save_pretrained(folder)
    shutil.copyfile(_config_json(tmp_path), folder / "config.json")

    def make(*overrides):
        with initialize_config_module("recipes.stvg_r1", version_base=None):
            return compose(
                "stvg_r1",
                [
                    "+variant=tiny",
                    f"data.train_files={rows}/train.parquet",
                    f"data.val_files={rows}/val.parquet",
                    f"actor_rollout_ref.model.path={folder}",
                    *overrides,
                ],
            )

    return make


def _config_json(folder):
    from transformers import Qwen2_5_VLConfig

    Qwen2_5_VLConfig().save_pretrained(folder / "config")
    return folder / "config" / "config.json"


def rewritten(rows, folder, change):
    """A copy of the training rows with absolute video paths, after `change(list of rows)`."""
    table = pq.read_table(rows / "train.parquet").to_pylist()
    for row in table:
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
    change(table)
    path = folder / "changed.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=ROW_SCHEMA), path)
    return path


def test_the_recipe_as_it_is_passes(config):
    made = config()
    preflight.check(made)
    assert made.data.check_videos == "exist"  # rows are not decoded a second time


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+actor_rollout_ref.rollout.temprature=0.5", ["rollout.temprature", "rollout.temperature"]),
        ("+data.max_promt_length=5", ["max_promt_length", "data.max_prompt_length"]),
        ("+trainer.nonsense_xyz=5", ["trainer.nonsense_xyz", "no such key"]),
        ("data.train_files=/nowhere/rows.parquet", ["/nowhere/rows.parquet", "build the rows"]),
        ("actor_rollout_ref.model.path=/nowhere/model", ["/nowhere/model", "config.json"]),
        (
            "data.train_batch_size=4",
            ["log_prob_micro_batch_size_per_gpu=64 does not divide the 32 sequences", "divisor"],
        ),
        ("ray_kwargs.ray_init.num_cpus=4", ["4 CPUs", "ray_kwargs.ray_init.num_cpus="]),
        ("data.max_response_length=100", ["max_model_len=256 is less than", "= 292; raise it to 292"]),
    ],
)
def test_mistakes_name_cause_and_remedy(config, override, words):
    with pytest.raises(PreflightError) as caught:
        preflight.check(config(override))
    for word in words:
        assert word in str(caught.value)


def test_several_mistakes_are_told_at_once(config):
    with pytest.raises(PreflightError) as caught:
        preflight.check(config("+trainer.nonsense=1", "ray_kwargs.ray_init.num_cpus=2"))
    assert str(caught.value).count("\n  - ") == 2


def test_keys_of_open_groups_are_free(config):
    preflight.check(
        config("+actor_rollout_ref.rollout.engine_kwargs.vllm.seed=1", "+ray_kwargs.ray_init.log_to_driver=false")
    )


def test_too_little_memory(config, monkeypatch):
    monkeypatch.setattr(preflight, "CPU_RUN_BYTES", 2**60)
    with pytest.raises(PreflightError, match="GiB of memory are free"):
        preflight.check(config())


def test_more_gpus_than_there_are(config, monkeypatch):
    monkeypatch.setattr("verl_stvg.cpu.wanted", lambda: False)
    with pytest.raises(PreflightError, match="= 8 GPUs and this machine has 0; lower them, or start a Ray cluster"):
        preflight.check(config("trainer.n_gpus_per_node=8", "ray_kwargs.ray_init.num_cpus=99"))


def test_models_with_other_patches(config):
    made = config()
    file = Path(made.actor_rollout_ref.model.path, "video_preprocessor_config.json")
    file = file if file.is_file() else Path(made.actor_rollout_ref.model.path, "processor_config.json")
    said = json.loads(file.read_text())
    (said.get("video_processor") or said)["patch_size"] = 16
    file.write_text(json.dumps(said))
    with pytest.raises(PreflightError, match="makes one token of 32x32 pixels, and sampling plans are for 28"):
        preflight.check(made)


def test_overlong_prompts(config):
    with pytest.raises(RowError, match="over data.max_prompt_length=64; raise it to"):
        preflight.check(config("data.max_prompt_length=64"))
    with pytest.raises(RowError, match="every prompt is over"):
        preflight.check(config("data.max_prompt_length=64", "data.filter_overlong_prompts=true"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such video"), (b"", "not a readable video"), (b"<html>404</html>", "not a readable video")],
)
def test_missing_and_broken_videos_are_listed(config, rows, tmp_path, content, words):
    def change(table):
        for k in (3, 5):
            path = tmp_path / f"bad{k}.mp4"
            if content is not None:
                path.write_bytes(content)
            table[k]["videos"][0]["video"] = str(path)

    path = rewritten(rows, tmp_path, change)
    with pytest.raises(RowError) as caught:
        preflight.check(config(f"data.train_files={path}"))
    message = str(caught.value)
    assert "2 of 32 rows cannot be used" in message and words in message
    assert "row 3 " in message and "bad5.mp4" in message and "synthetic-7-train_00003" in message


def test_video_damaged_in_the_middle_is_found_by_decoding(config, rows, tmp_path):
    def change(table):
        whole = open(table[0]["videos"][0]["video"], "rb").read()
        start = whole.index(b"mdat") + len(whole) // 3
        (tmp_path / "hole.mp4").write_bytes(whole[:start] + bytes(len(whole) // 3) + whole[start + len(whole) // 3 :])
        table[0]["videos"][0]["video"] = str(tmp_path / "hole.mp4")

    path = rewritten(rows, tmp_path, change)
    with pytest.raises(RowError, match="hole.mp4"):
        preflight.check(config(f"data.train_files={path}"))


def test_malformed_ground_truths_are_listed(config, rows, tmp_path):
    def change(table):
        table[2]["reward_model"]["ground_truth"]["end"] = -1.0

    path = rewritten(rows, tmp_path, change)
    with pytest.raises(RowError, match="1 of 32 rows have no usable ground truth") as caught:
        preflight.check(config(f"data.train_files={path}"))
    assert "'end'" in str(caught.value) and "train_00002" in str(caught.value)


def test_other_datasets_are_none_of_our_business():
    from omegaconf import OmegaConf

    assert not preflight.is_ours(OmegaConf.create({"data": {"custom_cls": {"path": None}}}))
