"""Mistakes in a run's configuration or rows end before anything starts, in a message that names cause and remedy."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import verl  # noqa: F401  (loads the plugin, as a run does)
from hydra import compose, initialize_config_module

from data_builders.synthetic import ROW_SCHEMA
from verl_stvg import nodes, preflight
from verl_stvg.dataset import RowError
from verl_stvg.preflight import PreflightError


@pytest.fixture
def config(rows, tmp_path, monkeypatch):
    """STVG-R1's recipe at tiny size, composed, on the synthetic rows; overrides as on the command line."""
    from data_builders.tiny_model import make_processor

    monkeypatch.setattr(preflight, "CPU_RUN_BYTES", 0)  # nothing is started here
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


@pytest.mark.parametrize(
    ("installed", "overrides", "words"),
    [
        (False, [], None),  # +variant=tiny pads, with torch's own attention
        (False, ["actor_rollout_ref.model.use_remove_padding=true"], ["use_remove_padding=True", "+variant=sdpa"]),
        (
            False,
            ["actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2"],
            ["attn_implementation=flash_attention_2 needs flash-attn"],
        ),
        (
            True,
            ["actor_rollout_ref.model.use_remove_padding=true"],
            ["actor.fsdp_config.mixed_precision.param_dtype is 32 bits", "ref.fsdp_config"],
        ),
        (
            True,
            [
                "actor_rollout_ref.model.use_remove_padding=true",
                "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
                "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=bf16",
            ],
            None,
        ),
    ],
)
def test_attention_on_a_gpu(config, monkeypatch, installed, overrides, words):
    monkeypatch.setattr("verl.plugin.platform.get_platform", lambda: SimpleNamespace(device_name="cuda"))
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: object() if installed else None)
    problems = "\n".join(preflight.attention_that_cannot_run(config(*overrides)))
    assert bool(problems) == bool(words) and all(word in problems for word in words or ())


HERE = {
    "versions": {"verl-stvg": "0.1", "verl": "0.9.1", "torch": "2.11.0", "transformers": "5.9.0", "vllm": "0.24.0"},
    "code": "abc",
    "plugin": True,
    "vllm_plugin": True,
    "missing": [],
    "unshared": [],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        (
            {"versions": HERE["versions"] | {"vllm": None}},
            ["vllm not installed, this machine 0.24.0; install the same"],
        ),
        ({"versions": HERE["versions"] | {"torch": "2.10.0"}}, ["has torch 2.10.0, this machine 2.11.0"]),
        ({"code": "abd"}, ["other sources of verl_stvg (abd, here abc)"]),
        ({"plugin": False}, ["does not load the plugin into verl", "unset VERL_USE_EXTERNAL_PLUGINS"]),
        ({"vllm_plugin": False}, ["does not load the plugin into vLLM", "VLLM_PLUGINS"]),
        ({"missing": ["/a", "/b"]}, ["does not see /a, /b; mount the folder there under the same path"]),
    ],
)
def test_what_a_node_lacks(change, words):
    problems = nodes.different({"node": "node n", **HERE, **change}, HERE)
    assert len(problems) == bool(words) and all(word in problems[0] for word in words)


def test_a_node_that_does_not_answer():
    (problem,) = nodes.different({"node": "node n", "silent": "no answer within 60 s"}, HERE)
    assert problem.startswith("does not answer: no answer within 60 s; look at it with `ray status`")


@pytest.mark.parametrize(
    ("offered", "enough"),
    [
        ([(8, 24), (8, 24)], True),
        ([(16, 48)], True),
        ([(8, 24), (4, 24), (4, 24)], False),  # 16 GPUs, but Ray waits for eight on one node for ever
        ([(8, 24), (8, 8)], False),  # as many CPUs as there are cores
        ([(8, 24)], False),
    ],
)
def test_a_cluster_without_a_place_for_every_group(config, offered, enough):
    made = config("trainer.nnodes=2", "trainer.n_gpus_per_node=8")
    problems = preflight.too_few_gpus_on_nodes(
        made, [{"GPU": float(gpus), "CPU": float(cpus)} for gpus, cpus in offered]
    )
    assert bool(problems) != enough
    for problem in problems:
        assert (
            "need 8 GPUs and 24 CPUs on one node each" in problem and f"{len(offered)} nodes offer 8 and 24" in problem
        )


def test_the_address_of_a_cluster_is_the_one_that_ray_takes(config, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert preflight.cluster_address(config()) is None  # +variant=tiny says local
    assert preflight.cluster_address(config("ray_kwargs.ray_init.address=10.0.0.2:6379")) == "10.0.0.2:6379"
    for value in ("null", "auto"):
        assert preflight.cluster_address(config(f"ray_kwargs.ray_init.address={value}")) == "10.0.0.1:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert preflight.cluster_address(config("ray_kwargs.ray_init.address=null")) is None


def test_files_that_every_node_reads(config, rows):
    made = config()
    files = preflight.files_of_a_run(made)
    assert [files[0], files[2]] == [made.data.train_files, made.data.val_files]
    assert all(Path(files[k]).is_file() and files[k].endswith(".mp4") for k in (1, 3))
    assert files[4] == made.actor_rollout_ref.model.path


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
