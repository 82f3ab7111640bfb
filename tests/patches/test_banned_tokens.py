"""The policy that is trained is the policy that is sampled: the tokens verl bans in vLLM are banned everywhere, and a
step in which the two differ shows where."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from verl_stvg.launch import config_checks
from verl_stvg.launch import run as launch
from verl_stvg.patches import banned_tokens
from verl_stvg.patches.banned_tokens import Banned, BanningWorker
from verl_stvg.training import parity

WIDTH, VOCABULARY, IMAGE, VIDEO = 40, 33, 5, 11
"""Rows of the output layer, of which the tokenizer knows the first ones, and the placeholders among those."""
ALLOWED = [token for token in range(VOCABULARY) if token not in (IMAGE, VIDEO)]
TAKEN = [IMAGE, VIDEO, *range(VOCABULARY, WIDTH)]
LENGTHS = (4, 7)
MODEL = SimpleNamespace(
    tokenizer=range(VOCABULARY), processor=SimpleNamespace(image_token_id=IMAGE, video_token_id=VIDEO)
)


@pytest.fixture
def rollout(monkeypatch):
    """Say which program samples, as verl's worker does when it is built."""

    def say(name):
        monkeypatch.setattr(banned_tokens, "_rollout", name)
        monkeypatch.setattr(banned_tokens, "_banned", None)

    say("vllm")
    return say


def actor(logits, tokens, temperature=1.0, packed=True):
    """Log-probabilities of each next token and entropies, (N,) each, by verl's own FSDP engine.

    Args:
        logits: (N, WIDTH) of the sequences of `LENGTHS` one after the other.
        tokens: (N,).
    """
    from tensordict import TensorDict
    from verl.utils import tensordict_utils, torch_functional
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    engine = SimpleNamespace(
        engine_config=SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False),
        compute_entropy_from_logits=torch_functional.entropy_from_logits,
        _gather_and_unpad_packed=lambda values, pad_size: values,
        model_config=MODEL,
    )
    ids = torch.nested.nested_tensor(list(tokens.split(LENGTHS)), layout=torch.jagged)
    batch = TensorDict({"input_ids": ids}, batch_size=[len(LENGTHS)])
    tensordict_utils.assign_non_tensor(batch, use_remove_padding=packed, calculate_entropy=True)
    given = {"temperature_is_one": temperature == 1.0, "input_ids_rmpad_rolled": tokens.roll(-1), "pad_size": 0}
    if packed:
        given["temperature_rmpad"] = torch.full((len(tokens),), temperature)
        seen = logits.unsqueeze(0)
    else:
        given["temperature"] = torch.full((len(LENGTHS),), temperature)
        seen = torch.nn.utils.rnn.pad_sequence(logits.split(LENGTHS), batch_first=True)
    output = SimpleNamespace(logits=seen)
    found = FSDPEngineWithLMHead.prepare_model_outputs(engine, output, given, batch, None)
    return found["log_probs"].values(), found["entropy"].values()


def sampled_from(logits, temperature):
    """Log-probabilities of every token, (N, WIDTH), of the distribution that verl's vLLM samples from."""
    from verl.workers.rollout.vllm_rollout.utils import monkey_patch_compute_logits
    from vllm.v1.sample.sampler import Sampler

    model = SimpleNamespace(compute_logits=lambda: logits.clone())
    monkey_patch_compute_logits(model, VOCABULARY, [IMAGE, VIDEO])
    scaled = Sampler.apply_temperature(model.compute_logits().float(), torch.full((len(logits),), temperature), True)
    return Sampler.compute_logprobs(scaled)


def draw(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(sum(LENGTHS), WIDTH, generator=generator)
    logits[1, TAKEN] += 12  # nearly all of the probability
    tokens = torch.tensor(ALLOWED)[torch.randint(len(ALLOWED), (sum(LENGTHS),), generator=generator)]
    return logits.to(dtype), tokens


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 1.7])
@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_and_entropy_are_those_of_the_distribution_that_is_sampled(
    rollout, seed, temperature, packed
):
    logits, tokens = draw(seed)
    theirs = sampled_from(logits, temperature)
    found, entropy = actor(logits.clone(), tokens, temperature, packed)
    torch.testing.assert_close(found, theirs.gather(1, tokens.roll(-1)[:, None])[:, 0], atol=2e-5, rtol=1e-5)
    assert theirs[:, TAKEN].exp().eq(0).all()
    torch.testing.assert_close(entropy, -(theirs.exp() * theirs).nan_to_num(0).sum(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_a_model_without_these_tokens(rollout, dtype, packed):
    _, tokens = draw(0)
    hidden = torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(WIDTH, 16, generator=torch.Generator().manual_seed(2))

    ours = [one.clone().requires_grad_() for one in (hidden, weight)]
    log_probs, entropy = actor((ours[0] @ ours[1].T).to(dtype), tokens, 0.7, packed)
    (log_probs.float().mean() - 0.01 * entropy.float().mean()).backward()

    right = [one.clone().requires_grad_() for one in (hidden, weight[ALLOWED])]
    theirs = torch.log_softmax((right[0] @ right[1].T).to(dtype).float() / 0.7, 1)
    labels = torch.tensor([ALLOWED.index(token) for token in tokens.roll(-1).tolist()])
    entropies = -(theirs.exp() * theirs).sum(1)
    (theirs.gather(1, labels[:, None]).mean() - 0.01 * entropies.mean()).backward()

    assert ours[1].grad[TAKEN].eq(0).all() and entropy.isfinite().all()
    close = {"atol": 1e-6, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 5e-2}
    torch.testing.assert_close(ours[0].grad, right[0].grad, **close)
    torch.testing.assert_close(ours[1].grad[ALLOWED], right[1].grad, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_placeholders_of_the_prompt_stay_finite(rollout, dtype):
    """verl computes a log-probability for every token of the prompt, too, whose videos are placeholders."""
    logits, tokens = draw(3, dtype)
    tokens[2] = VIDEO
    found, entropy = actor(logits, tokens)
    assert found.isfinite().all() and entropy.isfinite().all()


def test_verl_still_bans_in_the_rollout_alone(rollout):
    """When this fails, verl bans in its actor, too: raise the pin, delete the mends of `patches/banned_tokens.py`."""
    rollout(None)
    tokens = torch.tensor([IMAGE, VIDEO, *ALLOWED[:9]])
    found, _ = actor(torch.zeros(len(tokens), WIDTH), tokens)
    torch.testing.assert_close(found, torch.full_like(found, -math.log(WIDTH)))
    assert sampled_from(torch.zeros(1, WIDTH), 1.0)[0, ALLOWED[0]] == pytest.approx(-math.log(len(ALLOWED)))


def test_nothing_is_banned_where_the_rollout_bans_nothing(rollout):
    logits, tokens = draw(4)
    rollout("sglang")
    found, _ = actor(logits.clone(), tokens)
    torch.testing.assert_close(found, torch.log_softmax(logits, 1).gather(1, tokens.roll(-1)[:, None])[:, 0])


def test_the_worker_says_which_program_samples(rollout):
    class Worker:
        def __init__(self, config, role):
            self.role = role

    module = SimpleNamespace(ActorRolloutRefWorker=Worker)
    banned_tokens.mend_worker(module)
    config = OmegaConf.create({"rollout": {"name": "sglang"}})
    assert module.ActorRolloutRefWorker(config, "actor").role == "actor" and banned_tokens._rollout == "sglang"


@given(st.integers(1, 30), st.integers(0, 10), st.sets(st.integers(0, 29)))
def test_all_that_is_banned(vocabulary, beyond, ids):
    ids = {one for one in ids if one < vocabulary}
    one = Banned(vocabulary, tuple(ids))
    width = vocabulary + beyond
    taken = set(one.all(width))
    assert taken == ids | set(range(vocabulary, width))
    logits = one.out_of(torch.zeros(2, 3, width), -math.inf)
    assert {int(k) for k in (logits[0, 0] < 0).nonzero()} == taken and (logits == logits[0, 0]).all()


def test_ids_of_a_real_processor(model):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    found = Banned.of(processor.tokenizer, processor)
    assert processor.tokenizer.convert_ids_to_tokens(list(found.ids)) == ["<|image_pad|>", "<|video_pad|>"]
    assert found.vocabulary == len(processor.tokenizer)
    assert Banned.of(processor.tokenizer, None).ids == ()


def test_vllm_of_an_evaluation_says_what_vllm_of_a_rollout_says():
    from verl.workers.rollout.vllm_rollout.utils import monkey_patch_compute_logits

    logits, _ = draw(5)
    ours, theirs = (SimpleNamespace(compute_logits=lambda: logits.clone()) for _ in range(2))
    worker = BanningWorker()
    worker.model_runner = SimpleNamespace(get_model=lambda: ours)
    worker.ban(VOCABULARY, [IMAGE, VIDEO])
    monkey_patch_compute_logits(theirs, VOCABULARY, [IMAGE, VIDEO])
    assert ours.compute_logits().equal(theirs.compute_logits())
    ours.compute_logits = lambda: None  # of a worker that holds no part of the output layer
    worker.ban(VOCABULARY, [IMAGE])
    assert ours.compute_logits() is None


@pytest.mark.slow
def test_transformers_of_an_evaluation_never_says_a_placeholder(model, rows, tmp_path):
    from verl_stvg.inference import engines
    from verl_stvg.inference.settings import Settings, read_rows
    from verl_stvg.video.store import FrameStore

    settings = Settings(
        str(model), "transformers", dtype="float32", max_tokens=3, batch=2, store=FrameStore(str(tmp_path))
    )
    engine = engines.start(settings)
    said = []

    def longs_for_placeholders(layer, inputs, logits):
        logits[..., [*engine.banned.ids]] += 1e4
        said.append(int(logits[0, -1].argmax()))

    engine.model.get_output_embeddings().register_forward_hook(longs_for_placeholders)
    generated = []
    stock = engine.model.generate
    engine.model.generate = lambda **kwargs: generated.append(stock(**kwargs)) or generated[-1]
    (answers,) = engine.answers(read_rows([rows / "val.parquet"])[:2])
    assert len(answers) == 2 and set(said) <= set(engine.banned.ids)
    assert not set(generated[0][:, -3:].flatten().tolist()) & set(engine.banned.ids)


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    """Configuration of a run of STVG-R1 with the tiny model; ``run(key=value)`` is a copy with values changed."""
    with initialize_config_module("verl_stvg.recipes.stvg_r1", version_base=None):
        composed = compose("stvg_r1", ["+variant=tiny"])

    def make(**changes):
        made = copy.deepcopy(composed)
        with open_dict(made):
            for key, value in changes.items():
                OmegaConf.update(made, key, value)
        return made

    return make


ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({}, parity.FLOAT32_GATE),
        ({"trainer.use_v1": False}, parity.FLOAT32_GATE),
        ({f"{ROLLOUT}.dtype": "bfloat16"}, parity.BFLOAT16_GATE),
        ({f"{ACTOR}.fsdp_config.mixed_precision": None}, parity.BFLOAT16_GATE),
        ({f"{ROLLOUT}.top_k": 50}, None),
        ({f"{ROLLOUT}.top_p": 0.95}, None),
        ({"trainer.v1.trainer_mode": "colocate_async"}, None),
        ({"algorithm.rollout_correction.bypass_mode": True}, None),
    ],
)
def test_the_gate_is_that_of_the_types_where_there_is_one(run, changes, gate):
    config = run(**changes)
    assert parity.gate(config) == gate
    assert parity.truncated(config) == (ROLLOUT in str(changes) and "top" in str(changes))
    for mean, outside in ((1e-7, 0), (1.0, 1), (math.nan, 1)):
        found = parity.step_metrics(config, {parity.MEAN: mean})
        if gate:
            assert found == {"parity/gate": gate, "parity/outside_gate": outside}
        else:
            assert found == ({"parity/truncated": 1} if parity.truncated(config) else {})
    assert parity.step_metrics(config, {}) == {}


class Letters:
    """A tokenizer."""

    def decode(self, ids):
        return "".join(chr(97 + one) for one in ids)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_worst_tokens_are_the_worst(answers, length, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.rand(2, answers, length, generator=generator).log()
    responses = torch.randint(26, (answers, length), generator=generator)
    mask = torch.rand(answers, length, generator=generator) < 0.7
    found = parity.worst_tokens([f"u{k}" for k in range(answers)], responses, mask, ours, theirs, Letters())
    apart = (ours.exp() - theirs.exp()).abs()
    assert [abs(one["actor"] - one["rollout"]) for one in found] == pytest.approx(
        sorted(apart[mask].tolist(), reverse=True)[: parity.WORST], abs=1e-6
    )
    for one in found:
        row, place = int(one["uid"][1:]), one["position"]
        assert mask[row, place] and one["token"] == responses[row, place] and ord(one["text"]) - 97 == one["token"]


def test_the_worst_tokens_lie_beside_the_metrics_and_a_resumed_run_redoes_its_own(run, tmp_path, monkeypatch):
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    config, file = run(), tmp_path / parity.FILE

    def kept():
        return [(one["step"], one["uid"]) for one in map(json.loads, file.read_text().splitlines())]

    monkeypatch.setattr(parity, "_begun", False)
    for step in (2, 3, 5):
        parity.keep(config, step, [{"uid": "a"}, {"uid": "b"}])
    assert kept() == [(step, uid) for step in (2, 3, 5) for uid in "ab"]
    file.write_text(file.read_text() + '{"step": 6, "u')  # killed while it wrote
    monkeypatch.setattr(parity, "_begun", False)
    parity.keep(config, 4, [{"uid": "c"}])
    assert kept() == [(2, "a"), (2, "b"), (3, "a"), (3, "b"), (4, "c")]
    launch.set_aside(tmp_path, None)  # the next start is another run
    assert not file.exists() and (tmp_path / "parity.1.jsonl").exists()
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH")
    config.trainer.default_local_dir = str(tmp_path / "checkpoints")
    monkeypatch.setattr(parity, "_begun", False)
    parity.keep(config, 1, [{"uid": "d"}])
    assert (tmp_path / "checkpoints" / parity.FILE).exists()


def test_the_older_trainer_keeps_the_worst_tokens_of_a_step(run, tmp_path, monkeypatch):
    """What it computes metrics of is another batch than the one that was answered, and does not say its step."""
    from tensordict import TensorDict
    from verl.experimental.agent_loop import agent_loop
    from verl.protocol import DataProto

    from verl_stvg.training import legacy

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setattr(parity, "_begun", False)
    monkeypatch.setattr(agent_loop.AgentLoopManager, "generate_sequences", lambda self, prompts: prompts)
    monkeypatch.setattr(
        legacy, "omega_conf_to_dataclass", lambda config: SimpleNamespace(tokenizer=SimpleNamespace(decode=str))
    )
    asked = DataProto(None, {"uid": np.array(["a", "b"], dtype=object)}, {"global_steps": 7})
    manager = object.__new__(legacy.LegacyLoopManager)
    manager.generate_sequences(asked)
    manager.generate_sequences(
        DataProto(None, {"uid": asked.non_tensor_batch["uid"]}, {"global_steps": 9, "validate": True})
    )
    ones = torch.ones(2, 3)
    answered = {"responses": ones.long(), "response_mask": ones.long(), "attention_mask": ones.long()}
    apart = {"old_log_probs": -ones, "rollout_log_probs": -2 * ones}
    infos = np.array([{"uid": "a"}, {"uid": "b"}], dtype=object)
    batch = DataProto(TensorDict({**answered, **apart}, 2), {"extra_info": infos}, {"reward_extra_keys": []})
    assert legacy.parity_metrics(run(), batch)["parity/outside_gate"] == 1
    kept = [json.loads(line) for line in (tmp_path / parity.FILE).read_text().splitlines()]
    assert len(kept) == 6 and {one["step"] for one in kept} == {7} and {one["uid"] for one in kept} == {"a", "b"}


def test_a_loss_may_weigh_entropy():
    """verl's entropy of banned logits has a gradient, whatever it is weighed by."""
    from verl.utils.torch_functional import entropy_from_logits

    for dtype in (torch.float32, torch.bfloat16):
        leaf = torch.randn(2, 8, dtype=dtype, requires_grad=True)
        logits = Banned(7, (3,)).out_of(leaf * 1.0)
        (1000 * entropy_from_logits(logits).sum()).backward()
        assert leaf.grad.isfinite().all() and not leaf.grad[:, [3, 7]].any()


def test_terminal_and_page_say_when_the_gate_is_left():
    from verl_stvg.eval.report import of_run
    from verl_stvg.eval.report.training import Run

    inside, outside = ({"parity/gate": 1e-4, "parity/outside_gate": value} for value in (0.0, 1.0))
    assert "gate" not in launch.summary(inside)
    assert launch.summary(outside).endswith("parity is over its gate of 0.0001, see parity.jsonl")

    def told(**columns):
        return of_run._parity(Run({f"parity/{name}": column for name, column in columns.items()}, {}, {}, {}))

    assert told() == told(gate={1: 1e-4}, outside_gate={1: 0.0}) == []
    (left,) = told(gate={1: 1e-4, 2: 1e-4}, outside_gate={1: 0.0, 2: 1.0})
    assert "gate of 0.0001 at step 2" in left and "parity.jsonl" in left
    (cut,) = told(truncated={1: 1.0})
    assert "top_k=-1 and top_p=1" in cut


# --- what a run is told before it starts ------------------------------------------------------------------------------


def test_engines_that_cannot_ban(run):
    fused = "actor_rollout_ref.model.use_fused_kernels"
    assert config_checks.kernels_without_logits(run()) == config_checks.engine_without_ban(run()) == []
    (problem,) = config_checks.kernels_without_logits(run(**{fused: True}))
    assert problem.startswith(f"{fused}=true") and problem.endswith(f"set {fused}=false")
    assert config_checks.kernels_without_logits(run(**{fused: True, f"{ROLLOUT}.name": "sglang"})) == []
    (warning,) = config_checks.engine_without_ban(run(**{f"{ACTOR}.strategy": "megatron"}))
    assert "strategy=megatron" in warning and "fsdp2" in warning
