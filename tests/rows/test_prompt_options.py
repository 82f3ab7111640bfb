"""One prompt for training, evaluation and selection, whatever the chat template's options; and answers it has begun."""

import asyncio
import json
import logging
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from typer.testing import CliRunner

from reward_fns.perfect import THOUGHT, perfect_answer
from verl_stvg.cli.asking import settings_of
from verl_stvg.cli.eval import eval_
from verl_stvg.data_builders.selection.folder import SelectionError, read_answers
from verl_stvg.data_builders.sets.synthetic import ROW_SCHEMA
from verl_stvg.data_builders.templates import TEMPLATES
from verl_stvg.data_builders.testing.tiny_parts import CHAT_TEMPLATE, TinyConfig, make_processor, make_untrained
from verl_stvg.eval.report.comparison import facts
from verl_stvg.eval.report.evaluations import Evaluation
from verl_stvg.inference.generate import ANSWERS, RUN, generate
from verl_stvg.inference.settings import Settings, read_rows
from verl_stvg.launch.best_answer import continuations, shortest
from verl_stvg.rows import answers, chat_template
from verl_stvg.rows.answers import AnswersError
from verl_stvg.rows.chat_template import opened
from verl_stvg.rows.prompts import PromptMaker
from verl_stvg.training.reward import compute_score
from verl_stvg.video.store import FrameStore

_START = "<|im_start|>assistant\n"
HYBRID = (
    "{% if system_prompt is defined %}<|im_start|>system\n{{ system_prompt }}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE.removesuffix("{% endif %}")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
"""The template of a model that thinks unless it is told not to."""
TOOL = {"type": "function", "function": {"name": "seek", "parameters": {"type": "object", "properties": {}}}}
OPTIONS = (
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"system_prompt": "Be brief.", "tools": [TOOL]},
    {"chat_template": CHAT_TEMPLATE},
)


def thinking_processor():
    processor = make_processor()
    processor.chat_template = processor.tokenizer.chat_template = HYBRID
    return processor


@pytest.fixture
def hybrid(tmp_path):
    """Folder of a tiny model that has learned nothing, with the template of one that thinks."""
    processor = thinking_processor()
    make_untrained(TinyConfig(), processor.tokenizer, seed=0).save_pretrained(tmp_path / "hybrid")
    processor.save_pretrained(tmp_path / "hybrid")
    return tmp_path / "hybrid"


# --- what the template has begun --------------------------------------------------------------------------------------


@given(st.text(), st.sampled_from(["", "\n", "\n\n", "\nOkay, "]))
def test_a_thought_that_is_left_open_belongs_to_the_answer(said, blanks):
    """Whatever was said before: its tags stand before the marks of the answer's turn."""
    prompt = f"<|im_start|>user\n{said} <think><|im_end|>\n{_START}"
    assert opened(prompt) == ""
    assert opened(f"{prompt}<think>{blanks}") == f"<think>{blanks}"
    assert opened(f"{prompt}<think>{blanks}</think>{blanks}") == ""


@pytest.mark.parametrize("recipe", ["stvg_r1", "temporal_r1", "time_r1", "videochat_r1_gqa"])
def test_the_reward_reads_the_answer_from_where_the_template_began_it(recipe):
    truth = {"object_id": 2, "start": 1.0, "end": 3.0, "duration": 10.0, "intervals": [[1.0, 3.0]], "option": "B"}
    truth |= {"answer": "B"}
    whole = perfect_answer(recipe, truth)
    best = compute_score(f"{recipe}/set", whole, truth, {"uid": "a"})
    written = whole.removeprefix("<think>")
    for tag in ("<think>", "<think>\n"):
        assert compute_score(f"{recipe}/set", written, truth, {"uid": "a", "opened": tag}) == best
    without = compute_score(f"{recipe}/set", written, truth, {"uid": "a"})
    assert without["score"] < best["score"] and without["format"] == 0.0


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_the_shortest_answer_says_the_same_to_a_hundredth(start, end):
    whole = perfect_answer("time_r1", {"start": start, "end": end})
    short = shortest(whole)
    assert THOUGHT not in short and len(short) < len(whole)
    said = [float(word) for word in short.split("<answer>")[1].removesuffix("</answer>").split(" to ")]
    assert all(math.isclose(a, b, abs_tol=0.0051) for a, b in zip(said, (start, end), strict=True))


def test_a_perfect_answer_goes_on_from_an_open_thought():
    assert continuations("<think>x</think>a") == [f"{THOUGHT}</think>\n<think>x</think>a", "x</think>a"]
    assert continuations("<answer>a</answer>") == [f"{THOUGHT}</think>\n<answer>a</answer>"]


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_of_a_command_line():
    lines = ["enable_thinking=false", "a=1", "b=[1, 2]", "c=Be brief.", "d=False", "e=x=y", "f=null", "g="]
    wanted = {"enable_thinking": False, "a": 1, "b": [1, 2], "c": "Be brief.", "d": False, "e": "x=y", "f": None}
    assert chat_template.parse(lines) == wanted | {"g": ""}
    for wrong, words in (
        (["enable_thinking"], "--template-option enable_thinking is not of the form KEY=VALUE"),
        (["a=1", "a=2"], "--template-option a is given twice"),
        (["tokenize=true"], "tokenize, which cannot be chosen"),
    ):
        with pytest.raises(ValueError, match=words):
            chat_template.parse(wrong)


@pytest.mark.parametrize("place", ["global_step_4", "global_step_4/actor/merged", "."])
def test_options_of_the_training_that_made_a_checkpoint(tmp_path, caplog, place):
    folder = tmp_path / "run/checkpoints" / place
    folder.mkdir(parents=True)
    arguments = [
        "--config-path",
        "pkg://verl_stvg.recipes.stvg_r1",
        "+data.apply_chat_template_kwargs={enable_thinking: false, words: [a, 'b c']}",
        "++data.apply_chat_template_kwargs.system_prompt='Be brief.'",
        "actor_rollout_ref.model.custom_chat_template=null",
        "data.max_prompt_length=4",
    ]
    (tmp_path / "run/run.json").write_text(json.dumps({"arguments": arguments}))
    found = {"enable_thinking": False, "words": ["a", "b c"], "system_prompt": "Be brief."}
    with caplog.at_level(logging.INFO):
        assert chat_template.options_for(str(folder)) == found
    assert "options of the chat template, from the training in" in caplog.text
    given = chat_template.options_for(str(folder), ["enable_thinking=true", "other=1"])
    assert given == found | {"enable_thinking": True, "other": 1}


def test_models_that_no_training_of_ours_made_have_no_options(tmp_path):
    (tmp_path / RUN).write_text(json.dumps({"model": "a", "rows": []}))
    assert chat_template.options_for(str(tmp_path)) == {}
    assert chat_template.options_for("Qwen/Qwen3-VL-8B-Thinking") == {}


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(rows, tmp_path):
    """A file with one held-out clip under every prompt of the builders."""
    table = pq.read_table(rows / "val.parquet").to_pylist()
    found = []
    for row, template in zip(table, TEMPLATES.values(), strict=False):
        row["prompt"] = template.messages("the red circle moves", ("yes", "no"))
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
        found.append(row)
    assert len(found) == len(TEMPLATES)
    pq.write_table(pa.Table.from_pylist(found, schema=ROW_SCHEMA), tmp_path / "asked.parquet")
    return tmp_path / "asked.parquet"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "none")
def test_training_and_evaluation_read_the_same_tokens(asked, tmp_path, options):
    """For every prompt: the tokens that verl's agent loop makes of a row are those of `PromptMaker`."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap

    from verl_stvg.training.agent_loop import KeyedVideoProcessor, VideoGroundingAgentLoop
    from verl_stvg.training.dataset import VideoGroundingDataset

    data = {"max_prompt_length": 4096, "check_videos": "exist", "apply_chat_template_kwargs": options}
    data["video_cache"] = {"folder": str(tmp_path / "frames")}
    rollout = {"prompt_length": 4096, "response_length": 64}
    config = OmegaConf.create({"data": data, "actor_rollout_ref": {"rollout": rollout}})
    processor = thinking_processor()
    dataset = VideoGroundingDataset(str(asked), processor.tokenizer, config.data, processor)
    processor.video_processor = KeyedVideoProcessor(processor.video_processor)

    async def loop():
        return VideoGroundingAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=None,
            tokenizer=processor.tokenizer,
            processor=processor,
            dataset_cls=VideoGroundingDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2_5_vl",
        )

    builder = asyncio.run(loop()).continuous_token_builder
    make = PromptMaker(thinking_processor(), FrameStore(str(tmp_path / "frames")), options)
    placeholder = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    ends = set()
    for k, row in enumerate(read_rows([asked])):
        trained = dataset[k]
        messages = list(trained["raw_prompt"])
        videos = [(frames, frames.plan.metadata()) for frames in make(row).videos]
        prompt = make(row)
        ids = list(prompt.ids)
        place = ids.index(placeholder)
        ids[place : place + 1] = [placeholder] * prompt.videos[0].plan.num_tokens
        assert builder.build_initial_tokens(messages, videos=videos) == ids and len(ids) == prompt.num_tokens
        assert trained["extra_info"].get("opened", "") == prompt.opened
        ends.add(prompt.opened)
        if "system_prompt" in options:
            assert "Be brief." in prompt.text and '"seek"' in prompt.text
    thinks = "chat_template" not in options and options.get("enable_thinking") is not False
    assert ends == {"<think>\n" if thinks else ""}


def test_verl_hands_the_opened_thought_to_the_reward(rows, tmp_path):
    """Through verl's own reward manager, which every trainer of it and its validation use."""
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    from verl_stvg.training.dataset import VideoGroundingDataset

    processor = thinking_processor()
    config = OmegaConf.create({"max_prompt_length": 512, "check_videos": "exist", "video_cache": {"enabled": False}})
    row = VideoGroundingDataset(str(rows / "val.parquet"), processor.tokenizer, config, processor)[0]
    truth = row["reward_model"]["ground_truth"]
    written = perfect_answer("stvg_r1", truth).removeprefix("<think>")
    ids = torch.tensor([processor.tokenizer(written)["input_ids"]])
    columns = {name: row[name] for name in ("data_source", "reward_model", "extra_info")}
    batch = DataProto.from_single_dict(
        {"responses": ids, "attention_mask": torch.ones_like(ids)}
        | {name: np.array([value], dtype=object) for name, value in columns.items()}
    )

    async def scored():
        manager = NaiveRewardManager(OmegaConf.create({}), processor.tokenizer, compute_score)
        return await manager.run_single(batch)

    assert asyncio.run(scored())["reward_extra_info"]["format"] == 1.0


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_are_kept_as_the_template_began_them(rows, hybrid, tmp_path):
    store = FrameStore(str(tmp_path / "frames"))

    def settings(**template):
        return Settings(
            str(hybrid), engine="transformers", max_tokens=12, dtype="float32", limit=2, store=store, template=template
        )

    file = [rows / "val.parquet"]
    generate(file, tmp_path / "open", settings())
    made = json.loads((tmp_path / "open" / RUN).read_text())
    assert (made["template"], made["opened"]) == ({}, "<think>\n")
    found = answers.read(tmp_path / "open" / ANSWERS)
    assert len(found) == 2 and all(answer.texts[0].startswith("<think>\n") for answer in found.values())
    generate(file, tmp_path / "closed", settings(enable_thinking=False))
    made = json.loads((tmp_path / "closed" / RUN).read_text())
    assert (made["template"], made["opened"]) == ({"enable_thinking": False}, "")
    found = answers.read(tmp_path / "closed" / ANSWERS)
    assert len(found) == 2 and not any(answer.texts[0].startswith("<think>\n") for answer in found.values())
    with pytest.raises(AnswersError, match="template was {'enable_thinking': False} and is {}"):
        generate(file, tmp_path / "closed", settings())


def test_answers_of_before_the_options_go_on(tmp_path):
    older = {"model": "a", "rows_hash": "1"}
    (tmp_path / RUN).write_text(json.dumps(older))
    answers.continues(tmp_path / RUN, {**older, "template": {}, "opened": ""})
    assert answers.made(tmp_path / RUN)["template"] == {}
    with pytest.raises(AnswersError, match="opened was '' and is '<think>"):
        answers.continues(tmp_path / RUN, {**older, "template": {}, "opened": "<think>\n"})


def test_folds_of_other_options_are_refused(tmp_path):
    def fold(number, **template):
        folder = tmp_path / f"answers/fold{number}"
        answers.append(folder / ANSWERS, [answers.Answer(f"row{number}", ("text",))])
        record = {"model": "a", "weights": "1", "sampling": {"seed": 0}} | ({"template": template} if template else {})
        (folder / RUN).write_text(json.dumps(record))

    fold(0)
    fold(1)
    found, made_by = read_answers(tmp_path)
    assert set(found) == {"row0", "row1"} and made_by["template"] == {}
    fold(2, enable_thinking=False)
    with pytest.raises(SelectionError, match="fold2: was made otherwise than the folds before it .template"):
        read_answers(tmp_path)


def test_the_report_tells_the_options(tmp_path):
    evaluation = Evaluation(tmp_path, "a", {"template": {"enable_thinking": False}}, {"metrics": {}}, {}, {})
    assert {"name": "Chat template", "value": "enable_thinking=false", "note": ""} in facts(evaluation, alone=True)
    evaluation.record["template"] = {}
    assert not any(fact["name"] == "Chat template" for fact in facts(evaluation, alone=True))


def test_selection_takes_the_same_options():
    assert settings_of(model="a/b", template_option=["enable_thinking=false"]).template == {"enable_thinking": False}
    with pytest.raises(ValueError, match="not of the form KEY=VALUE"):
        settings_of(model="a/b", template_option=["enable_thinking"])


def test_an_option_of_the_command_line_reaches_the_prompt(rows, hybrid, tmp_path):
    app = typer.Typer()
    app.command()(eval_)
    given = [rows / "val.parquet", "--model", hybrid, "--out", tmp_path / "out", "--engine", "transformers"]
    given += ["--limit", 1, "--max-tokens", 4, "--cache", tmp_path / "frames", "--template-option"]
    CliRunner().invoke(app, [str(word) for word in (*given, "enable_thinking=false")], catch_exceptions=False)
    assert json.loads((tmp_path / "out" / RUN).read_text())["template"] == {"enable_thinking": False}


def test_no_recipe_chooses_options_that_evaluation_would_not_know():
    """`of_training` reads the command line of a run, not the yaml of its recipe."""
    from verl_stvg import recipes

    files = sorted(Path(recipes.__file__).parent.rglob("*.yaml"))
    assert files and not any("apply_chat_template_kwargs" in file.read_text() for file in files)


def test_verls_dumps_are_read_from_where_the_template_began_the_answer():
    answer = "It is so.</think>\n<answer>4.00 to 8.00</answer>"
    line = {"input": "user\nWhen? Reason inside <think> </think>.\nassistant\n<think>\n", "output": answer}
    assert chat_template.of_dump(line) == f"<think>\n{answer}"
    for prompt in (
        "user\nWhen?\nassistant\n",
        "user\nBegin with <think>.\nassistant\n",
        "assistant\n<think>\n\n</think>\n\n",
    ):
        assert chat_template.of_dump({"input": prompt, "output": answer}) == answer
    assert chat_template.of_dump({"output": answer}) == answer
