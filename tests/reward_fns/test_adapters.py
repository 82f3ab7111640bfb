"""The adapters under the signatures of TRL, ms-swift and EasyR1; against the real TRL where it is installed."""

import importlib.util
import json

import pytest

from benchmarks.rewards import TYPICAL
from reward_fns import RECIPES, adapters
from tests.reward_fns.test_recipes import PERFECT

RIGHT, TRUTH = PERFECT["stvg_r1"][0], TYPICAL["stvg_r1"][0]
WRONG = "<answer>Target ID: 9, Time range: 5 to 8</answer>"
CHAT = [{"role": "assistant", "content": [{"type": "text", "text": RIGHT[:20]}, {"type": "text", "text": RIGHT[20:]}]}]


def test_trl_functions_are_the_parts():
    functions, weights = adapters.trl_rewards("stvg_r1", {"think_length": 0.0})
    assert [function.__name__ for function in functions] == ["temporal_iou", "id_match", "format", "think_length"]
    assert weights == [1.0, 1.0, 1.0, 0.0]
    columns = {"prompts": ["p"] * 3, "completion_ids": [[1]] * 3, "trainer_state": None}
    truths = [TRUTH, json.dumps(TRUTH), TRUTH]
    scores = [f(completions=[RIGHT, WRONG, CHAT], ground_truth=truths, **columns) for f in functions[:3]]
    assert scores == [[1.0, 0.5, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    with pytest.raises(ValueError, match="row 1: key 'start' is missing"):
        functions[0](completions=[RIGHT, RIGHT], ground_truth=[TRUTH, {"object_id": 1}])


def test_swift_orm_returns_totals():
    orm = adapters.swift_orm("stvg_r1")
    assert isinstance(orm, type)
    for instance in (orm(), orm(args=None)):
        assert instance([RIGHT, WRONG], ground_truth=[TRUTH, TRUTH], solution=["", ""]) == [3.0, 0.5]
    assert orm.__name__ == "stvg_r1" and adapters.swift_orm("stvg_r1", part="format").__name__ == "format"
    assert adapters.swift_orm("stvg_r1", part="format")()([RIGHT, WRONG], ground_truth=[TRUTH, TRUTH]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="no part 'colour'"):
        adapters.swift_orm("stvg_r1", part="colour")


def test_swift_orm_in_the_real_registry():
    rewards = pytest.importorskip("swift.rewards.orm")
    rewards.orms["stvg_r1"] = adapters.swift_orm("stvg_r1")
    assert rewards.orms["stvg_r1"](args=None)(completions=[RIGHT], ground_truth=[TRUTH]) == [3.0]


def test_easyr1_sequential_and_batch():
    sample = {"response": RIGHT, "response_length": 9, "ground_truth": json.dumps(TRUTH)}
    expected = {"overall": 3.0, "temporal_iou": 1.0, "id_match": 1.0, "format": 1.0}
    assert adapters.easyr1(sample) == expected
    assert adapters.easyr1([sample, sample], recipe="stvg_r1", weights={"format": 0.5})[1]["overall"] == 2.5


def test_easyr1_loads_the_file_by_path():
    spec = importlib.util.spec_from_file_location("custom_reward_fn", adapters.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sample = {"response": PERFECT["timezero"][0], "ground_truth": TYPICAL["timezero"][0]}
    assert module.easyr1([sample], recipe="timezero")[0]["overall"] == 2.0


@pytest.mark.parametrize("name", RECIPES)
def test_all_adapters_agree_with_the_recipe(name):
    completion, truth = PERFECT[name][0], TYPICAL[name][0]
    best = RECIPES[name].score(completion, truth)["score"]
    functions, weights = adapters.trl_rewards(name)
    parts = [function([completion], [truth])[0] for function in functions]
    assert sum(weight * part for weight, part in zip(weights, parts, strict=True)) == pytest.approx(best)
    assert adapters.swift_orm(name)()([completion], ground_truth=[truth])[0] == pytest.approx(best)
    sample = {"response": completion, "ground_truth": truth}
    assert adapters.easyr1(sample, recipe=name)["overall"] == pytest.approx(best)


def test_a_real_trl_trainer_takes_them(tmp_path):
    trl, transformers = pytest.importorskip("trl"), pytest.importorskip("transformers")
    datasets, tokenizers = pytest.importorskip("datasets"), pytest.importorskip("tokenizers")
    words = {"<unk>": 0, "<pad>": 1, "<eos>": 2, "when": 3, "5": 4, "to": 5, "11": 6}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=len(words), num_key_value_heads=1, pad_token_id=1, eos_token_id=2, **size)
    )
    functions, weights = adapters.trl_rewards("timezero")
    rows = [{"prompt": "when", "ground_truth": TYPICAL["timezero"][0]}] * 4
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        reward_weights=weights,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=functions,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"rewards/temporal_iou/mean", "rewards/format/mean", "reward"} <= logged
