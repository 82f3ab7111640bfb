"""Mistakes in a run's configuration or rows end before anything starts, in a message that names cause and remedy."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import verl  # noqa: F401  (loads the plugin, as a run does)
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

from verl_stvg.data_builders.sets.synthetic import ROW_SCHEMA
from verl_stvg.data_builders.testing.tiny_parts import CHAT_TEMPLATE
from verl_stvg.launch import config_checks, machine_checks, nodes, preflight
from verl_stvg.launch.preflight import PreflightError
from verl_stvg.rows.files import read_rows
from verl_stvg.rows.row import RowError


@pytest.fixture
def config(rows, tmp_path, monkeypatch):
    """STVG-R1's recipe at tiny size, composed, on the synthetic rows; overrides as on the command line."""
    from verl_stvg.data_builders.testing.tiny_parts import make_processor

    monkeypatch.setattr(machine_checks, "CPU_RUN_BYTES", 0)  # nothing is started here
    folder = tmp_path / "model"
    make_processor().save_pretrained(folder)
    shutil.copyfile(_config_json(tmp_path), folder / "config.json")

    def make(*overrides):
        with initialize_config_module("verl_stvg.recipes.stvg_r1", version_base=None):
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
    found = preflight.check(made)
    assert found == {"data.check_videos": "exist"}  # rows are not decoded a second time
    preflight.settle(made, found)
    assert made.data.check_videos == "exist"


def test_checks_leave_the_configuration_as_it_is(config):
    """Also where a fit makes room; what a run then takes is set in one place."""
    made = config("data.max_prompt_length=64")
    before = OmegaConf.to_container(made, resolve=False)
    found = preflight.check(made)
    assert OmegaConf.to_container(made, resolve=False) == before
    assert found.keys() == {"data.check_videos", "data.max_prompt_length"}
    preflight.settle(made, found)
    after = OmegaConf.to_container(made, resolve=False)
    changed = {key for key in after["data"] if after["data"][key] != before["data"].get(key)}
    assert changed == {"check_videos", "max_prompt_length"}
    assert after | {"data": None} == before | {"data": None}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+actor_rollout_ref.rollout.temprature=0.5", ["rollout.temprature", "rollout.temperature"]),
        ("+data.max_promt_length=5", ["max_promt_length", "data.max_prompt_length"]),
        ("+trainer.nonsense_xyz=5", ["trainer.nonsense_xyz", "no such key"]),
        ("data.train_files=/nowhere/rows.parquet", ["/nowhere/rows.parquet", "build the rows"]),
        ("actor_rollout_ref.model.path=/nowhere/model", ["/nowhere/model: no such folder"]),
        (
            "data.train_batch_size=4",
            ["log_prob_micro_batch_size_per_gpu=64 does not divide the 32 sequences", "divisor"],
        ),
        ("ray_kwargs.ray_init.num_cpus=4", ["4 CPUs", "ray_kwargs.ray_init.num_cpus="]),
        ("data.max_response_length=100", ["max_model_len=256 is less than", "= 292; raise it to 292"]),
        ("+data.mm_processor_kwargs.max_pixels=784", ["data.mm_processor_kwargs", "follow from its row; remove it"]),
        ("data.tool_config_path=tools.yaml", ["data.tool_config_path: the agent loop video_grounding has one turn"]),
        ("+data.apply_chat_template_kwargs.tokenize=true", ["hold tokenize, which cannot be chosen; leave it out"]),
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
    monkeypatch.setattr(machine_checks, "CPU_RUN_BYTES", 2**60)
    with pytest.raises(PreflightError, match="GiB of memory are free"):
        preflight.check(config())


def test_more_gpus_than_there_are(config, monkeypatch):
    monkeypatch.setattr("verl_stvg.patches.cpu_platform.wanted", lambda: False)
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
    monkeypatch.setattr(machine_checks.importlib.util, "find_spec", lambda name: object() if installed else None)
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
    problems = machine_checks.too_few_gpus_on_nodes(
        made, [{"GPU": float(gpus), "CPU": float(cpus)} for gpus, cpus in offered]
    )
    assert bool(problems) != enough
    for problem in problems:
        assert (
            "need 8 GPUs and 24 CPUs on one node each" in problem and f"{len(offered)} nodes offer 8 and 24" in problem
        )


def test_the_address_of_a_cluster_is_the_one_that_ray_takes(config, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert machine_checks.cluster_address(config()) is None  # +variant=tiny says local
    assert machine_checks.cluster_address(config("ray_kwargs.ray_init.address=10.0.0.2:6379")) == "10.0.0.2:6379"
    for value in ("null", "auto"):
        assert machine_checks.cluster_address(config(f"ray_kwargs.ray_init.address={value}")) == "10.0.0.1:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert machine_checks.cluster_address(config("ray_kwargs.ray_init.address=null")) is None


def test_files_that_every_node_reads(config, rows):
    made = config()
    files = machine_checks.files_of_a_run(made)
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
        preflight.check(config("data.max_prompt_length=64", "data.fit=null"))
    made = config("data.max_prompt_length=64")
    preflight.settle(made, preflight.check(made))  # a fit, as the variant has one, makes room
    assert 64 < made.data.max_prompt_length == made.actor_rollout_ref.rollout.prompt_length < 192
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


@pytest.mark.parametrize(
    ("estimator", "grouped"),
    [
        *((name, True) for name in ("grpo", "grpo_passk", "rloo", "reinforce_plus_plus_baseline", "opo", "gpg")),
        *((name, False) for name in ("gae", "remax", "reinforce_plus_plus")),
    ],
)
def test_one_answer_is_no_group(config, estimator, grouped):
    made = config(f"algorithm.adv_estimator={estimator}", "actor_rollout_ref.rollout.n=1")
    problems = preflight.groups_of_one(made)
    assert len(problems) == grouped
    if grouped:
        assert f"rollout.n=1 with algorithm.adv_estimator={estimator}" in problems[0]
        assert "set rollout.n to at least 2" in problems[0]
    made.actor_rollout_ref.rollout.n = 2
    assert preflight.groups_of_one(made) == []


def test_one_answer_is_refused_before_a_run(config):
    with pytest.raises(PreflightError, match="rollout.n=1 with algorithm.adv_estimator=grpo"):
        preflight.check(config("actor_rollout_ref.rollout.n=1"))


THINKS = CHAT_TEMPLATE.removesuffix("{% endif %}") + (
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
RECIPE = "+reward.custom_reward_function.reward_kwargs.recipe"


def test_a_template_that_opens_a_thought_and_a_recipe_without_one(config):
    made = config(f"{RECIPE}=stvg_r1_nothink")
    made.actor_rollout_ref.model.custom_chat_template = THINKS
    with pytest.raises(RowError) as caught:
        preflight.check(made)
    for words in (
        "train.parquet: no answer can earn all of the reward",
        "row 0 (uid synthetic-7-train_00000): the chat template ends the prompt with '<think>\\n'",
        "recipe stvg_r1_nothink then pays at most 2 of 3 (format 0 of 1)",
        "+data.apply_chat_template_kwargs.enable_thinking=false",
        "a recipe with reasoning (such as stvg_r1)",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "options"), [("stvg_r1", {}), ("stvg_r1_nothink", {"enable_thinking": False}), ("stvg_r1", None)]
)
def test_what_answers_after_the_template_can_earn(config, recipe, options):
    """A recipe with reasoning under an open thought, and either under a thought that the template has closed."""
    made = config(f"{RECIPE}={recipe}")
    made.actor_rollout_ref.model.custom_chat_template = THINKS
    made.data.apply_chat_template_kwargs = {"enable_thinking": False} if options is None else options
    preflight.check(made)


def test_answers_that_do_not_fit(config):
    with pytest.raises(RowError) as caught:
        preflight.check(config("data.max_response_length=20"))
    said = str(caught.value)
    found = re.search(r"over data.max_response_length=20; raise it to (\d+) and what the reasoning takes", said)
    assert "train.parquet: a perfect answer, without any reasoning, is" in said
    assert re.search(rf"row \d+ \(uid synthetic-7-train_\d+\): {found[1]} tokens \(stvg_r1\)", said)
    assert 20 < int(found[1]) <= 48
    preflight.check(config(f"data.max_response_length={found[1]}"))


def test_an_evaluation_may_have_answers_that_do_not_fit(config, rows, tmp_path, caplog):
    def change(table):
        for row in table:
            row["reward_model"]["ground_truth"] |= {"start": 0.0, "end": 1e30}

    held_out = rewritten(rows, tmp_path, change)
    preflight.check(config(f"data.val_files={held_out}", "data.max_response_length=40"))
    assert (
        "changed.parquet: a perfect answer, without any reasoning, is over data.max_response_length=40" in caplog.text
    )


ACTOR, REWARD = "actor_rollout_ref.actor.", config_checks.REWARD_OPTIONS + "."


@pytest.fixture(scope="module")
def recipe():
    """STVG-R1's recipe, composed once; ``recipe(key, value)`` is a copy with one value changed."""
    with initialize_config_module("verl_stvg.recipes.stvg_r1", version_base=None):
        composed = compose("stvg_r1")

    def make(key=None, value=None):
        made = copy.deepcopy(composed)
        if key:
            with open_dict(made):
                OmegaConf.update(made, key, value)
        return made

    return make


def test_words_of_the_command_line_are_not_truth_values(config):
    """Hydra leaves them text, and all of these would be true."""
    with pytest.raises(PreflightError) as caught:
        preflight.check(
            config(
                f"{ACTOR}use_kl_loss=off",
                "trainer.val_before_train=no",
                "algorithm.filter_groups.enable=on",
                "data.video_cache.enabled=off",
                "+data.filter_unusable_videos=yes",
                "actor_rollout_ref.rollout.enable_sleep_mode=off",  # a key of verl's dataclass alone
            )
        )
    said = str(caught.value)
    for key, word in (
        (f"{ACTOR}use_kl_loss", "false"),
        ("trainer.val_before_train", "false"),
        ("algorithm.filter_groups.enable", "true"),
        ("data.video_cache.enabled", "false"),
        ("data.filter_unusable_videos", "true"),
        ("actor_rollout_ref.rollout.enable_sleep_mode", "false"),
    ):
        assert f"is text, and any text counts as true; write {key}={word}\n" in said + "\n"
    assert said.count("\n  - ") == 6


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (f"{ACTOR}optim.lr", "1e-6", "optim.lr='1e-6' is text where a number is expected; write {key}=1e-6, without"),
        (f"{ACTOR}optim.lr", "${oc.env:LEARNING_RATE}", "optim.lr='2e-6' is text where a number is expected"),
        ("data.train_batch_size", "eight", "write {key}=NUMBER, without quotes"),
        ("trainer.total_epochs", "None", "is text; write {key}=null"),
        ("trainer.max_actor_ckpt_to_keep", "None", "is text; write {key}=null"),  # a default of null has no type
        ("actor_rollout_ref.rollout.n", 8.5, "{key}=8.5 is no whole number to verl; write {key}=8"),
        ("data.curriculum.hidden_at_start", "1", "{key}='1' is text where a number is expected"),
        ("data.draw.steps", "many", "{key}='many' is text where a number is expected"),
        ("data.video_cache", "off", "is text, and this key holds further keys; set one of those: {key}.KEY=VALUE"),
        (f"{ACTOR}freeze_vision_tower", "yes", "any text counts as true; write {key}=true"),
        (f"{ACTOR}freeze_vision_tower", "merger", "write {key}=true or false or keep_merger"),
        (f"{ACTOR}freeze_vision_tower", "keep_merger", None),
        (f"{ACTOR}use_kl_loss", 1, None),
        ("actor_rollout_ref.rollout.temperature", 1, None),
        ("actor_rollout_ref.rollout.over_sample_rate", 0.5, None),  # 0 in verl's yaml, a float in its dataclass
        ("actor_rollout_ref.rollout.max_model_len", None, None),
        ("actor_rollout_ref.model.target_modules", ["q_proj"], None),
        ("algorithm.rollout_correction.rollout_is_threshold", "0.5_2.0", None),  # a number or a text
        ("trainer.experiment_name", "no", None),
        ("trainer.logger", "console", None),
    ],
)
def test_kinds_of_values(recipe, monkeypatch, key, value, words):
    monkeypatch.setenv("LEARNING_RATE", "2e-6")
    problems = config_checks.other_kinds(recipe(key, value))
    assert len(problems) == bool(words), problems
    if words:
        assert problems[0].startswith(f"{key}=") and words.format(key=key) in problems[0]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("algorithm.adv_estimator", "grop", "{key}=grop is unknown; did you mean grpo? Choose one of gae, grpo,"),
        ("algorithm.kl_penalty", "k4", "{key}=k4 is unknown; choose one of kl, k1, abs,"),
        (f"{ACTOR}kl_loss_type", "low_var", "did you mean low_var_kl?"),
        (f"{ACTOR}kl_loss_type", "low_var_kl+", None),
        (f"{ACTOR}policy_loss.loss_mode", "gsop", "did you mean gspo?"),
        ("actor_rollout_ref.rollout.name", "vlm", "did you mean vllm?"),
        ("actor_rollout_ref.rollout.agent.default_agent_loop", "video", "choose one of single_turn_agent, tool_agent"),
        ("trainer.logger", ["console", "wandbb"], "{key}=wandbb is unknown; did you mean wandb?"),
        ("trainer.logger", "wandb", None),
        (f"{REWARD}recipe", "stvgr1", "{key}=stvgr1 is unknown; did you mean stvg_r1?"),
        (f"{REWARD}weihgts", {"format": 0.5}, "weihgts: no such option; known are recipe, weights and parts"),
        (f"{REWARD}weights", {"fromat": 0.5}, "weights.fromat: part=fromat is unknown; did you mean format?"),
        (f"{REWARD}weights", {"format": "0.5"}, "weights.format='0.5' is no number"),
        (f"{REWARD}weights", "format", "weights=format: give each part a weight"),
        (f"{REWARD}weights", {"format": 0.5}, None),
        (f"{REWARD}parts", ["format", "tiou"], "parts: part=tiou is unknown"),
        (f"{REWARD}parts", "format", "parts=format: give a list, such as parts=[format]"),
        (f"{REWARD}parts", ["format", "id_match"], None),
    ],
)
def test_names(recipe, key, value, words):
    made = recipe(key, value)
    problems = [*config_checks.unknown_names(made), *config_checks.unknown_reward_options(made)]
    assert len(problems) == bool(words), problems
    if words:
        assert problems[0].startswith(key) and words.format(key=key) in problems[0]


def test_verl_computes_the_estimates_of_the_divergence_that_are_known():
    from verl.trainer.ppo.core_algos import kl_penalty

    for name in config_checks.KL_ESTIMATES:
        for suffix in ("", "+"):
            assert kl_penalty(torch.zeros(2), torch.zeros(2), name + suffix).tolist() == [0, 0]
    with pytest.raises(NotImplementedError):
        kl_penalty(torch.zeros(2), torch.zeros(2), "full")


def test_a_weight_that_the_recipe_of_a_row_has_no_part_for(config):
    with pytest.raises(
        RowError, match=r"train.parquet: row 0: reward\..*reward_kwargs: recipe 'stvg_r1' has no part 'opt"
    ):
        preflight.check(config(f"+{REWARD}weights.option=1.0"))


@pytest.mark.parametrize(
    ("clip", "low", "high", "warned"),
    [
        (0.2, 0.2, 0.2, False),
        (0.3, 0.2, 0.2, True),
        (0.3, 0.3, 0.3, False),
        (0.3, None, None, False),
        (0.1, 0.2, 0.28, True),
    ],
)
def test_a_clip_ratio_that_changes_nothing(recipe, clip, low, high, warned):
    made = recipe("actor_rollout_ref.actor", {"clip_ratio": clip, "clip_ratio_low": low, "clip_ratio_high": high})
    warnings = config_checks.clip_ratio_that_is_not_read(made)
    assert len(warnings) == warned
    if warned:
        assert (
            f"clip_ratio={clip} changes nothing: verl reads clip_ratio_low={low} and clip_ratio_high={high}"
            in warnings[0]
        )


def test_verl_still_reads_the_two_sides_first():
    """The day it does not, the warning goes."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import FSDPActorConfig

    def clipped(**ratios):
        actor = FSDPActorConfig(rollout_n=1, ppo_micro_batch_size_per_gpu=1, **ratios)
        ratio, mask = torch.tensor([[0.5]]), torch.ones(1, 1)
        return get_policy_loss_fn("vanilla")(torch.zeros(1, 1), ratio, torch.ones(1, 1), mask, "token-mean", actor)[
            0
        ].item()

    assert clipped(clip_ratio=0.4) == clipped(clip_ratio=0.2)
    assert clipped(clip_ratio_high=0.4) != clipped(clip_ratio=0.2)


@pytest.mark.parametrize(
    ("rows", "changes", "enough"),
    [
        (16, {}, True),
        (15, {}, False),
        (15, {"data.gen_batch_size": 1}, False),  # an epoch has no step, and steps are counted in epochs
        (15, {"data.gen_batch_size": 1, "trainer.total_training_steps": 3}, True),
        (15, {"trainer.total_training_steps": 3}, False),
        (15, {"algorithm.filter_groups.enable": True, "trainer.total_training_steps": 3}, True),  # drawn one by one
    ],
)
def test_rows_that_fill_no_batch(recipe, rows, changes, enough):
    made = recipe("data.train_batch_size", 16)
    for key, value in changes.items():
        OmegaConf.update(made, key, value)
    problems = config_checks.too_few_rows(made, rows)
    assert len(problems) == (not enough)
    assert all("data.train_batch_size=16 and there are 15 rows to train on" in problem for problem in problems)


def test_bounds_above_the_number_of_rows_and_batches_above_it(config, caplog):
    preflight.check(config("data.train_max_samples=33", "data.val_max_samples=49"))
    assert "data.train_max_samples=33: data.train_files has 32 rows, all of which are taken" in caplog.text
    assert "data.val_max_samples=49: data.val_files has 48 rows, all of which are taken" in caplog.text
    with pytest.raises(PreflightError, match="data.train_batch_size=16 and there are 15 rows to train on"):
        preflight.check(config("data.train_max_samples=15"))


def test_rows_that_fill_no_batch_once_some_are_left_out(config, rows, tmp_path):
    def change(table):
        table[3]["videos"][0]["video"] = str(tmp_path / "gone.mp4")

    path = rewritten(rows, tmp_path, change)
    with pytest.raises(RowError, match="changed.parquet: data.train_batch_size=32 and there are 31 rows to train on"):
        preflight.check(
            config(f"data.train_files={path}", "data.train_batch_size=32", "+data.filter_unusable_videos=true")
        )


def test_files_that_are_no_rows(config, rows, tmp_path):
    (tmp_path / "rows.parquet").write_text("video,query\n")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(PreflightError) as caught:
        preflight.check(
            config(f"data.train_files=[{tmp_path}/rows.parquet,{tmp_path}/other.parquet]", "data.val_files=null")
        )
    said = str(caught.value)
    assert f"data.train_files: {tmp_path}/rows.parquet: not a readable parquet file of rows (" in said
    assert f"data.train_files: {tmp_path}/other.parquet: has no column data_source, reward_model; build" in said
    assert "data.val_files=None: name a file of rows" in said
    assert said.count("\n  - ") == 3
    for name in ("rows.parquet", "other.parquet"):  # `verl-stvg check` says the same
        with pytest.raises(ValueError, match="not a readable parquet file of rows|has no column") as checked:
            list(read_rows(tmp_path / name))
        assert str(checked.value).split("(")[0].split(" column ")[0] in said


def test_files_of_two_schemas_are_one_message(config, rows, tmp_path):
    table = pq.read_table(rows / "train.parquet")
    table = table.set_column(table.schema.get_field_index("prompt"), "prompt", pa.array([1] * len(table)))
    pq.write_table(table, tmp_path / "older.parquet")
    with pytest.raises(RowError, match="older.parquet: the columns of these files do not fit together .*build all of"):
        preflight.check(config(f"data.train_files=[{rows}/train.parquet,{tmp_path}/older.parquet]"))


def test_a_cache_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (f"{tmp_path}/file", f"{tmp_path}/file/below", "/proc/frames"):
        (problem,) = config_checks.unusable_cache(config(f"data.video_cache.folder={folder}"))
        assert problem.startswith(f"data.video_cache.folder={folder} cannot be written into (")
    assert config_checks.unusable_cache(config(f"data.video_cache.folder={tmp_path}/frames")) == []


def test_a_machine_without_a_gpu(config, monkeypatch):
    monkeypatch.setattr("verl_stvg.patches.cpu_platform.wanted", lambda: True)
    assert preflight.too_few_gpus(config()) == []
    (problem,) = preflight.too_few_gpus(config("trainer.device=cuda"))
    assert "trainer.device=cuda and verl runs on the CPU here" in problem and "trainer.device=cpu" in problem
    (problem,) = preflight.too_few_gpus(config("trainer.n_gpus_per_node=2"))
    assert "= 2 workers and Ray is started with 1 GPUs" in problem and "set ray_kwargs.ray_init.num_gpus=2" in problem
    assert preflight.too_few_gpus(config("trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2")) == []


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
