"""A prompt computed once gives what verl's own engine gives: log-probabilities, entropy, loss, gradients, weights."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensordict import NonTensorStack
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from tests.support import shared_prompts as small
from tests.support.shared_prompts import KINDS, LIMITS, Engines, Prompt
from verl_stvg.patches import banned_tokens
from verl_stvg.training import groups, shared_attention, shared_prompt, sharing

ROOT = Path(__file__).resolve().parent.parent.parent
UNEQUAL = [Prompt([9, 4, 0, 12]), Prompt([5, 6], videos=((3, 8, 8),))]
MIXED = [
    Prompt([7, 7, 7], videos=((2, 4, 8), (3, 4, 4))),
    Prompt([8, 3], images=((1, 8, 8),)),
    Prompt([6, 2], videos=()),
    Prompt([4], videos=()),
]
DAPO = {"loss_agg_mode": "token-mean", "use_kl_loss": False, "clip_ratio_high": 0.28, "entropy_coeff": 0}
GSPO = {"policy_loss": {"loss_mode": "gspo"}, "use_kl_loss": False}


@pytest.fixture(scope="module", autouse=True)
def world():
    """A process group of this process alone."""
    with small.alone():
        yield


@pytest.fixture(scope="module")
def engines(world, tmp_path_factory):
    return Engines({kind: small.make_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS})


@pytest.fixture
def tower():
    """Counts calls of a vision tower: `with` its engine."""

    class Calls:
        def __init__(self):
            self.count = 0

        def __call__(self, engine):
            visual = next(module for name, module in engine.module.named_modules() if name.endswith("visual"))
            self.hook = visual.register_forward_pre_hook(lambda *_: setattr(self, "count", self.count + 1))
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.hook.remove()

    return Calls()


def sized(batch, **settings):
    """A copy of a batch with other settings."""
    batch = batch.clone()
    tu.assign_non_tensor(batch, **settings)
    return batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prompts, loss, sizes, settings",
    [
        pytest.param(UNEQUAL, {}, {}, {}, id="unequal and an empty answer"),
        pytest.param(UNEQUAL, DAPO, {}, {"checkpointing": False}, id="without checkpointing, DAPO"),
        pytest.param(UNEQUAL, GSPO, {}, {"lora": 4}, id="adapters, GSPO"),
        pytest.param(MIXED, {}, {"beyond_longest": 8}, {}, id="videos, an image, text alone, cut groups"),
        pytest.param(MIXED, {}, {"beyond_longest": 1, "use_dynamic_bsz": True}, {}, id="use_dynamic_bsz"),
    ],
)
def test_nothing_but_the_cost_changes(engines, monkeypatch, kind, prompts, loss, sizes, settings):
    monkeypatch.setattr(shared_prompt, "CHUNK", 16)
    batch, found = small.make_batch(kind, prompts), {}
    longest = int(batch["input_ids"].offsets().diff().max())
    sizes = {"max_token_len_per_gpu": longest + sizes.get("beyond_longest", 1000), **sizes}
    for shared in (False, True):
        engine = engines.get(shared, kind, **settings)
        mine = sized(batch, **(sizes if shared else {"micro_batch_size_per_gpu": len(batch)}))
        found[shared] = small.read(engine, mine) | small.step(engine, mine, small.loss_of(**loss))
    distances = small.apart(found[False], found[True])
    assert all(distances[name] <= limit for name, limit in LIMITS.items()), distances
    assert found[True]["metrics"]["shared_prompt/computed_share"][0] < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_sees_no_other(engines, tower, kind):
    engine, batch = engines.get(True, kind), small.make_batch(kind, [Prompt([9, 4, 12])], micro_batch_size_per_gpu=3)
    with tower(engine):
        before = small.read(engine, batch)["log_probs"]
    assert tower.count == 1
    ids, prompt = batch["input_ids"].unbind(), len(batch["prompts"][0])
    ids[0][prompt:] = ids[0][prompt:].roll(1) + 1
    batch["input_ids"] = torch.nested.as_nested_tensor(list(ids), layout=torch.jagged)
    after = small.read(engine, batch)["log_probs"]
    assert torch.equal(before[9:], after[9:]) and not torch.equal(before[:9], after[:9])


def test_one_answer_goes_verls_own_way(engines, monkeypatch):
    kind = "qwen3_vl"
    batch = small.make_batch(kind, [Prompt([5]), Prompt([7])], micro_batch_size_per_gpu=2)
    asked, stock = [], transformer_impl.FSDPEngineWithLMHead.prepare_model_inputs

    def prepare_model_inputs(self, micro_batch):
        asked.append(len(micro_batch))
        return stock(self, micro_batch)

    monkeypatch.setattr(transformer_impl.FSDPEngineWithLMHead, "prepare_model_inputs", prepare_model_inputs)
    before = shared_attention.Calls.count
    mine, theirs = (small.read(engines.get(shared, kind), batch) for shared in (True, False))
    assert asked == [2, 2] and shared_attention.Calls.count == before
    assert torch.equal(mine["log_probs"], theirs["log_probs"])


def test_banned_tokens_are_banned_in_the_shared_output_layer(engines, monkeypatch):
    kind = "qwen3_vl"
    batch = small.make_batch(kind, [Prompt([5, 9])], micro_batch_size_per_gpu=2)
    free = small.read(engines.get(True, kind), batch)["log_probs"]
    monkeypatch.setattr(banned_tokens, "_rollout", "vllm")
    monkeypatch.setattr(banned_tokens, "_banned", None)
    banned = banned_tokens.Banned(200, (small.IMAGE, small.VIDEO))
    monkeypatch.setattr(banned_tokens.Banned, "of", lambda tokenizer, processor: banned)
    found = [small.read(engines.get(shared, kind), batch) for shared in (True, False)]  # ours asks first
    for name in ("log_probs", "entropy"):
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-5, rtol=0)
    assert (found[0]["log_probs"] - free).abs().max() > 1e-3


def test_bfloat16_is_no_further_from_float32_than_verls_own(engines):
    kind = "qwen3_vl"
    batch = small.make_batch(kind, [Prompt([40, 40, 40]), Prompt([40, 40, 40])], micro_batch_size_per_gpu=3)
    right = small.read(engines.get(False, kind), batch)["log_probs"]
    off = {
        shared: (small.read(engines.get(shared, kind, dtype="bf16"), batch)["log_probs"] - right).abs().mean().item()
        for shared in (False, True)
    }
    assert 0 < off[True] <= 1.1 * off[False], off


def test_two_ranks_with_unequal_groups(tmp_path):
    small.make_model("qwen3_vl", tmp_path / "model")
    command = [sys.executable, "-m", "tests.support.shared_prompts"]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": ROOT}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], **said) for rank in range(2)]
    for rank in ranks:
        text, _ = rank.communicate()
        assert rank.returncode == 0, text.decode()[-5000:]
    for rank in range(2):
        distances = torch.load(tmp_path / f"apart-{rank}.pt")
        assert all(distances[name] <= limit for name, limit in LIMITS.items()), distances


def test_an_answer_that_no_micro_batch_holds_is_named(engines):
    batch = small.make_batch("qwen3_vl", [Prompt([5, 9])], use_dynamic_bsz=True, max_token_len_per_gpu=30)
    with pytest.raises(ValueError, match=r"the prompt row-0 and one of its answers have \d+ tokens.*holds 30; raise"):
        small.read(engines.get(True, "qwen3_vl"), batch)
    before = shared_attention.Calls.count
    small.read(engines.get(True, "qwen3_vl"), sized(batch, use_dynamic_bsz=False))  # verl's own has no such bound
    assert shared_attention.Calls.count == before


@pytest.mark.parametrize("what", ["prompts", "positions", "pixels"])
def test_prompts_that_differ_under_one_uid_are_told_and_not_shared(engines, caplog, monkeypatch, what):
    monkeypatch.setattr(groups, "_told", set())
    batch = small.make_batch("qwen3_vl", [Prompt([5, 9, 5])])
    assert groups.by_prompt(batch) == [("row-0", [0, 1, 2])]
    if what == "pixels":
        other = {**batch["multi_modal_inputs"][1], "pixel_values_videos": torch.zeros(3, 3)}
        usual = batch["multi_modal_inputs"][0]
        batch["multi_modal_inputs"] = NonTensorStack(usual, other, usual)
    else:
        name = {"prompts": "prompts", "positions": "position_ids"}[what]
        batch[name].unbind()[1][..., 0] += 1
    assert groups.by_prompt(batch) == [("row-0", [0, 2]), ("row-0", [1])]
    assert "share the uid row-0" in caplog.text


def test_without_uids_every_trajectory_goes_verls_way(engines, caplog, monkeypatch):
    """Also where verl's micro batch holds rows of several prompts, which are then not one sequence."""
    monkeypatch.setattr(groups, "_told", set())
    batch = small.make_batch("qwen3_vl", [Prompt([5, 9]), Prompt([4])], micro_batch_size_per_gpu=3)
    usual = small.read(engines.get(False, "qwen3_vl"), batch)
    del batch["uid"]
    engine = engines.get(True, "qwen3_vl")  # made here, it tries its attention
    before = shared_attention.Calls.count
    found = small.read(engine, batch)
    assert shared_attention.Calls.count == before and "batches carry no uid" in caplog.text
    torch.testing.assert_close(found["log_probs"], usual["log_probs"], atol=1e-6, rtol=0)


def test_it_does_not_start_where_another_attention_runs(engines, monkeypatch):
    """As with verl's packed attention of Qwen2.5-VL, if transformers' own could not be put back."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention

    def packed(self, hidden_states, **kwargs):
        return hidden_states, None

    monkeypatch.setattr(Qwen2_5_VLAttention, "forward", packed)
    engine = small.make_engine(True, engines._folders["qwen2_5_vl"])  # transformers' own is put back
    assert engine._shares
    monkeypatch.setattr(Qwen2_5_VLAttention, "forward", packed)
    monkeypatch.setattr(shared_prompt, "let_in", lambda attention: None)
    with pytest.raises(RuntimeError, match="answers would see each other"):
        small.make_engine(True, engines._folders["qwen2_5_vl"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffers", ["cpu", "meta"])
def test_the_attention_is_tried_before_the_weights_are_there(kind, buffers):
    """As on verl's ranks but the first, where embeddings are not tied."""
    with torch.device("meta"):
        language = small.random_model(kind).model.language_model
    language.rotary_emb.inv_freq = torch.empty_like(language.rotary_emb.inv_freq, device=buffers)
    shared_attention.register()
    assert shared_attention.runs_in(language)


def test_the_key_chooses_the_engine(monkeypatch):
    usual = EngineRegistry.get_engine_cls("language_model", "fsdp2")
    assert not issubclass(usual, shared_prompt.SharedPromptEngine)
    monkeypatch.setattr(sharing, "_wanted", True)
    chosen = EngineRegistry.get_engine_cls("language_model", "fsdp2")
    assert issubclass(chosen, shared_prompt.SharedPromptEngine) and issubclass(chosen, usual)


@pytest.mark.parametrize(
    "text, kind, reason",
    [
        ({}, "qwen3_5", "type qwen3_5 are not known"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "qwen2_5_vl", "do not see the whole prompt"),
        ({"attention_dropout": 0.1}, "qwen3_vl", "attention_dropout is 0.1"),
        ({}, "qwen3_vl", None),
    ],
)
def test_models_that_cannot_share_are_named(text, kind, reason):
    text = SimpleNamespace(**{"attention_dropout": 0.0, **text})
    module = SimpleNamespace(config=SimpleNamespace(model_type=kind, get_text_config=lambda: text))
    found = shared_prompt.why_not(module)
    assert found is None if reason is None else reason in found
