"""The planner: shapes equal transformers', plans obey laws, warnings name cause and remedy, runs are reproduced."""

import copy
import importlib.util
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from verl_stvg.base.recipe_names import BASE, FOLDER
from verl_stvg.launch import capacity, model_shape, row_sizes
from verl_stvg.launch.capacity import Assumptions
from verl_stvg.launch.model_shape import SHAPES
from verl_stvg.launch.row_sizes import CLIPS

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULTS = OmegaConf.load(
    Path(importlib.util.find_spec("verl").origin).parent / "trainer/config/_generated_ppo_trainer.yaml"
)


def config(recipe: str = "stvg_r1", gpus: int = 8, **values):
    """A recipe over verl's defaults, without hydra and therefore without importing verl; ``a__b=1`` sets ``a.b``."""
    own = OmegaConf.merge(OmegaConf.load(BASE), OmegaConf.load(FOLDER / recipe / f"{recipe}.yaml"))
    made = OmegaConf.merge(DEFAULTS, {key: own[key] for key in own if key not in ("hydra", "defaults")})
    made.trainer.n_gpus_per_node, made.trainer.nnodes = gpus, 1
    for key, value in values.items():
        prefix = "actor_rollout_ref." if key.startswith(("actor__", "rollout__", "model__")) else ""
        OmegaConf.update(made, prefix + key.replace("__", "."), value)
    return made


STVG = config()
DATA = CLIPS["stvg_r1"].data()


def made(changed=STVG, data=DATA, hbm: float = 80, assumptions: Assumptions = Assumptions(), **more) -> capacity.Plan:  # noqa: B008
    return capacity.plan(changed, data, hbm, assumptions, **more)


def with_gpus(gpus: int):
    changed = copy.deepcopy(STVG)
    changed.trainer.n_gpus_per_node = gpus
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHAPES if "32B" not in name and "72B" not in name])
def test_parameters_of_published_models(name, tmp_path):
    import transformers

    shape, kind = SHAPES[name], "Qwen3VL" if "Qwen3" in name else "Qwen2_5_VL"
    text = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "out_hidden_size": shape.hidden,
    }
    if kind == "Qwen3VL":
        text["head_dim"], vision["deepstack_visual_indexes"] = shape.head_dim, [1, 2, 3]
    config = getattr(transformers, f"{kind}Config")
    made = config(text_config=text, vision_config=vision, tie_word_embeddings=shape.tied)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(made)
    assert sum(p.numel() for p in model.parameters()) == shape.params
    assert sum(p.numel() for p in model.model.visual.parameters()) == shape.vision_params
    made.save_pretrained(tmp_path)
    assert model_shape.shape_of(str(tmp_path)) == shape


def test_other_tokens_of_qwen3():
    """A token is a larger square there, and the times are text: 20 units of 9 tokens."""
    other = config(model__path="Qwen/Qwen3-VL-8B-Instruct")
    data = CLIPS["stvg_r1"].data(patch=16)
    assert data.tokens == 1320 and data.units == 20  # 40 frames of 192 x 352
    found = made(other, data)
    assert found.tokens["with text"] == 1320 + 20 * 9 + 250
    assert found.warnings == []


def test_clips_of_the_papers():
    assert DATA.tokens == 1820  # 40 frames of 196 x 364
    assert CLIPS["temporal_r1"].data().tokens == 1890  # 60 frames of 196 x 252
    assert made().epoch["steps of an epoch"] == 1266
    assert made(config("temporal_r1"), CLIPS["temporal_r1"].data()).epoch["steps of an epoch"] == 775


@pytest.mark.parametrize("recipe", ["stvg_r1", "time_r1", "temporal_r1", "videotg_r1"])
def test_the_papers_machine_is_enough(recipe):
    found = made(config(recipe), CLIPS[recipe].data())
    assert found.warnings == []
    assert all(value >= 0 for value in found.seconds.values())


def test_reported_hours_of_a_neighbour():
    """VideoChat-R1's users report 10 h on 8 A100 for one epoch of Charades-STA; the planner is cautious."""
    charades = replace(CLIPS["temporal_r1"], rows=12408, sampling=CLIPS["videotg_r1"].sampling).data()
    assert 10 <= made(config("videotg_r1"), charades).epoch["hours of an epoch"] <= 25


@settings(max_examples=10)
@given(gpus=st.sampled_from([1, 2, 4, 8, 16, 32, 64]), factor=st.integers(2, 5))
def test_laws(gpus, factor):
    here = made(with_gpus(gpus))
    more = made(with_gpus(2 * gpus))
    for stage, seconds in more.seconds.items():
        assert seconds <= here.seconds[stage] * (1 + 1e-9), stage
    rows = [made(config(gpus=each, actor__use_prefix_grouper=False)) for each in (gpus, 2 * gpus)]
    for plans in (rows, (here, more)) if gpus < 32 else (rows,):  # one answer alone has all of its logits at once
        assert sum(plans[1].memory["GPU, update"].values()) <= sum(plans[0].memory["GPU, update"].values())
    many = made(with_gpus(gpus), replace(DATA, rows=8 * factor * 1000))
    few = made(with_gpus(gpus), replace(DATA, rows=8 * 1000))
    assert many.epoch["hours of an epoch"] == pytest.approx(factor * few.epoch["hours of an epoch"])
    fast = made(with_gpus(gpus), assumptions=Assumptions.of({"peak_tflops": 312.0 * factor}))
    assert fast.seconds["update"] == pytest.approx(here.seconds["update"] / factor)


def test_what_a_setting_saves():
    full = made()
    lora = made(config(model__lora_rank=64))
    frozen = made(config(actor__freeze_vision_tower=True))
    no_kl = made(config(actor__use_kl_loss=False))
    streamed = made(config(actor__fsdp_config__offload_policy=True))
    assert lora.memory["GPU, update"]["optimizer"] < full.memory["GPU, update"]["optimizer"] / 20
    assert frozen.seconds["update"] < full.seconds["update"]
    assert no_kl.seconds["reference"] == 0
    assert streamed.memory["GPU, update"]["weights, 32 bits"] == 0
    main = [sum(plan.memory["main memory of a node"].values()) for plan in (streamed, full, no_kl)]
    assert main == sorted(main, reverse=True)


@pytest.mark.parametrize(
    ("changed", "hbm", "words"),
    [
        ({"gpus": 3}, 80, ["64 sequences", "3 GPUs", "data.train_batch_size"]),
        ({"actor__ppo_micro_batch_size_per_gpu": 3}, 80, ["ppo_micro_batch_size_per_gpu=3", "divisor"]),
        ({"actor__ppo_mini_batch_size": 16}, 80, ["ppo_mini_batch_size=16", "lower"]),
        ({"rollout__tensor_model_parallel_size": 3}, 80, ["parallel_size=3", "divisor"]),
        ({"data__max_prompt_length": 1024}, 80, ["about 2070 tokens", "data.max_prompt_length=1024", "3072"]),
        ({"rollout__max_model_len": 2048}, 80, ["rollout.max_model_len=2048", "raise"]),
        ({"gpus": 1}, 80, ["update takes about", "one_gpu"]),
        ({}, 24, ["does not hold the weights", "gpu_memory_utilization"]),
        ({"gpus": 1, "rollout__gpu_memory_utilization": 0.25}, 80, ["KV cache", "queue up"]),
        ({"rollout__gpu_memory_utilization": 0.97}, 80, ["meet on 80 GB", "param_offload"]),
        ({"data__video_cache__max_gb": 20}, 80, ["frame cache needs 87 GB", "max_gb is 20"]),
    ],
)  # fmt: skip
def test_warnings_name_cause_and_remedy(changed, hbm, words):
    warnings = made(config(**changed), hbm=hbm).warnings
    assert any(all(word in warning for word in words) for warning in warnings), warnings


def test_a_full_disk_and_too_few_rows():
    assert "has 1 GB free" in made(free_bytes=10**9).warnings[0]
    assert "5 rows do not fill one batch of 8" in made(data=replace(DATA, rows=5)).warnings[0]


def test_rows_as_built(rows):
    import pyarrow.parquet as pq

    found = row_sizes.read_rows([rows / "train.parquet"])
    infos = pq.read_table(rows / "train.parquet", columns=["extra_info"])["extra_info"].to_pylist()
    assert (found.rows, found.videos) == (32, 32)
    tokens = [info["visual_tokens"] for info in infos if info.get("visual_tokens")]
    assert not tokens or found.longest == max(tokens)
    assert found.frame_bytes == 32 * (3 * 16 * 56 * 84 + 4096)


def test_rows_without_a_look_into_videos_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"videos": [{"video": "a.mp4"}], "extra_info": {"uid": "1"}}]), path)
    with pytest.raises(ValueError, match=r"row 0 does not say size and rate of a.mp4; .* --no-probe"):
        row_sizes.read_rows([path])
    with pytest.raises(ValueError, match="build the rows first"):
        row_sizes.read_rows([tmp_path / "none.parquet"])


def test_a_run_is_reproduced_from_its_own_metrics():
    metrics = ROOT / "docs/learning/learn-seed0.jsonl"
    stages, tokens = capacity.measured_stages(metrics)
    records = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    steps = sorted(record["timing_s/step"] for record in records if "timing_s/step" in record)[1:]
    assert steps[0] <= sum(stages.values()) <= steps[-1]
    here = made()
    same = made(measured=(stages, here.tokens["tokens of a step"], 8))
    assert sum(same.seconds.values()) == pytest.approx(sum(stages.values()))
    half = made(with_gpus(4), measured=(stages, here.tokens["tokens of a step"] / 2, 8))
    assert sum(half.seconds.values()) == pytest.approx(4 * sum(stages.values()))


def test_metrics_that_are_not_there_or_too_short(tmp_path):
    with pytest.raises(ValueError, match="in the folder of a run"):
        capacity.measured_stages(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "data": {"timing_s/step": 1.0}}\n')
    with pytest.raises(ValueError, match="two steps or more"):
        capacity.measured_stages(tmp_path / "metrics.jsonl")


def test_assumptions_say_where_they_come_from_and_refuse_nonsense():
    for one in fields(Assumptions):
        assert one.metadata["unit"] and one.metadata["source"].startswith(("assumption", "measured"))
    for bad in ({"mfu": 0.0}, {"mfu": float("nan")}, {"speed": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Assumptions.of(bad)


def test_models_that_are_not_known():
    with pytest.raises(ValueError, match="config.json"):
        model_shape.shape_of("some/model")


def test_another_architecture(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="model_type is llama"):
        model_shape.shape_of(str(tmp_path))


@pytest.mark.slow
def test_the_command_prints_every_assumption(tmp_path):
    import typer
    from typer.testing import CliRunner

    from verl_stvg.cli.plan import plan

    app = typer.Typer()
    app.command()(plan)
    arguments = ["stvg_r1", "--gpus", "16", "--hbm", "40", "--assume", "mfu=0.3", "--out", str(tmp_path / "plan.json")]
    done = CliRunner().invoke(app, [*arguments, "+variant=qwen2_5_vl_3b", "data.max_prompt_length=1024"])
    assert done.exit_code == 1, done.output  # findings: a warning
    for one in fields(Assumptions):
        assert one.name in done.output
    assert "given" in done.output and "warning: the longest prompt has about 2070 tokens" in done.output
    assert "Qwen/Qwen2.5-VL-3B-Instruct, 2 x 8 GPUs of 40 GB" in done.output
    assert json.loads((tmp_path / "plan.json").read_text())["assumptions"]["mfu"] == 0.3
    for wrong, word in (
        (["nothing"], "no recipe"),
        (["stvg_r1", "--assume", "mfu=much"], "NAME=NUMBER"),
        (["stvg_r1", "+variant=none"], "none"),
    ):
        failed = CliRunner().invoke(app, wrong)
        assert isinstance(failed.exception, ValueError) and word in str(failed.exception)


def test_prompts_that_are_computed_once():
    """docs/shared_prompt.md: at most n, what a GPU has of a mini-batch, and what its tokens hold share a prompt."""
    name = "sequences that share a prompt in the update"
    plain, shared, four = made(config(actor__use_prefix_grouper=False)), made(), made(with_gpus(16))
    assert [one.tokens[name] for one in (plain, shared, four, made(with_gpus(64)))] == [1, 8, 4, 1]
    assert shared.seconds["old log-probabilities"] == 0 < plain.seconds["old log-probabilities"]
    for stage in ("reference", "update"):
        assert plain.seconds[stage] / 8 < shared.seconds[stage] < plain.seconds[stage] / 4
    assert made(config(actor__ppo_epochs=2)).seconds["old log-probabilities"] == shared.seconds["reference"]
    rows = made(config(actor__use_prefix_grouper=False, actor__ppo_micro_batch_size_per_gpu=8))
    for part in ("pixels", "activations", "logits"):
        assert shared.memory["GPU, update"][part] < rows.memory["GPU, update"][part]
    assert made(config(actor__ppo_max_token_len_per_gpu=3000)).tokens[name] < 8
    assert made(config(actor__shuffle=True)).seconds == plain.seconds
