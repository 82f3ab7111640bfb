"""The pass that answers rows: prompts as in training, equal engines, and a file that no kill can spoil."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoProcessor
from typer.testing import CliRunner

from verl_stvg.base import lock
from verl_stvg.base.models import ModelNameError
from verl_stvg.cli.eval import eval_
from verl_stvg.data_builders.sets.synthetic import ROW_SCHEMA
from verl_stvg.inference import checkpoint, engines
from verl_stvg.inference.checkpoint import CheckpointError
from verl_stvg.inference.generate import ANSWERS, RUN, generate
from verl_stvg.inference.settings import Settings, fold, read_rows
from verl_stvg.rows import answers
from verl_stvg.rows.answers import Answer, AnswersError
from verl_stvg.rows.prompts import PromptMaker, messages_of
from verl_stvg.video.store import FrameStore

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some_answers = st.lists(
    st.builds(Answer, texts.filter(bool), st.lists(texts, max_size=3).map(tuple), error=st.none() | texts.filter(bool)),
    max_size=6,
    unique_by=lambda answer: answer.uid,
)


@given(some_answers, st.data())
def test_a_file_cut_anywhere_is_a_shorter_one_and_goes_on(tmp_path_factory, given, data):
    path = tmp_path_factory.mktemp("answers") / ANSWERS
    answers.append(path, given[:2])
    answers.append(path, given[2:])
    assert list(answers.read(path).values()) == given
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    left = answers.read(path)
    assert list(left.values()) == given[: len(left)]
    answers.append(path, given[len(left) :])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"uid": "a"}\n{"uid": "a"}\n', "line 2: a second answer to 'a'"),
        ('{"uid": "a"}\n[1]\n', "line 2 is no answer .an object with a uid"),
        ('{"uid": 3}\n', "line 1 is no answer"),
        ('{"uid": "a", "texts": "yes"}\n', "texts must be a list"),
        ('{"uid": "a", "texts": [1]}\n', "texts must be a list of texts"),
        ("{}}\n", "line 1 is no answer"),
    ],
)
def test_lines_that_are_no_answers_are_named(tmp_path, lines, message):
    (tmp_path / ANSWERS).write_text(lines)
    with pytest.raises(AnswersError, match=message):
        answers.read(tmp_path / ANSWERS)


def test_a_folder_takes_no_answers_of_something_else(tmp_path):
    answers.continues(tmp_path / RUN, {"model": "a", "rows_hash": "1"})
    answers.continues(tmp_path / RUN, {"model": "a", "rows_hash": "1"})
    with pytest.raises(AnswersError, match="holds other answers .model was 'a' and is 'b'.; choose another folder"):
        answers.continues(tmp_path / RUN, {"model": "b", "rows_hash": "1"})
    with pytest.raises(AnswersError, match="no such file of answers"):
        answers.read(tmp_path / "none")


@given(st.integers(0, 50), st.integers(1, 60))
def test_folds_are_a_partition(count, size):
    folds = [fold(count, size, index) for index in range(count // size + 3)]
    assert [k for part in folds for k in part] == list(range(count))
    assert all(len(part) <= size for part in folds) and not folds[-1]
    assert list(fold(count, None, 0)) == list(range(count))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fold_size": 0}, "fold_size=0 and fold_index=0"),
        ({"fold_size": 4, "fold_index": -1}, "the index at least 0"),
        ({"fold_index": 1}, "fold_index=1 needs a fold_size"),
        ({"engine": "sglang"}, "choose one of vllm, transformers"),
        ({"samples": 4}, "4 greedy samples are all the same"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"top_p": 0.0}, "cannot be sampled with"),
        ({"engines": 2}, "needs ray"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"engine": "transformers", "tensor_parallel": 2}, "runs on one device"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings("model", **wrong)


def test_rows_that_cannot_be_asked_are_named(rows, tmp_path):
    with pytest.raises(ValueError, match="gone.parquet: no such file"):
        read_rows([tmp_path / "gone.parquet"])
    twice = [rows / "val.parquet", rows / "val.parquet"]
    with pytest.raises(ValueError, match="row 0 has the uid .* of .*val.parquet: row 0"):
        read_rows(twice)
    pq.write_table(pa.Table.from_pylist([{"prompt": []}]), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="bare.parquet: has no column extra_info"):
        read_rows([tmp_path / "bare.parquet"])
    row = read_rows([rows / "val.parquet"])[0]
    with pytest.raises(ValueError, match="1 <video> and the row 2 videos"):
        messages_of({**row, "videos": row["videos"] * 2})
    assert messages_of({"prompt": [{"role": "user", "content": "Why?"}]}) == [{"role": "user", "content": "Why?"}]


def test_an_empty_fold_is_a_file_without_lines(rows, model, tmp_path):
    settings = small(model, tmp_path, fold_size=48, fold_index=1)
    assert generate([rows / "val.parquet"], tmp_path / "out", settings).rows == 0
    assert (tmp_path / "out" / ANSWERS).read_bytes() == b""


def test_prompts_are_those_of_training(rows, model, tmp_path):
    """Messages, tokens, pixels and seconds per unit equal those of verl's dataset and agent loop, also when padded."""
    from omegaconf import OmegaConf
    from verl.utils import hf_processor

    from tests.training.test_agent_loop import rolled_out
    from verl_stvg.training.dataset import VideoGroundingDataset
    from verl_stvg.training.worker import StockWorker

    processor = hf_processor(str(model))
    config = OmegaConf.create({"max_prompt_length": 512, "video_cache": {"enabled": False}, "check_videos": "exist"})
    dataset = VideoGroundingDataset(str(rows / "val.parquet"), processor.tokenizer, config, processor)
    ours = AutoProcessor.from_pretrained(model)
    asked = read_rows([rows / "val.parquet"])[:6]
    prompts = [PromptMaker(ours, FrameStore(str(tmp_path / "frames")))(row) for row in asked]
    batch = engines.processor_inputs(ours, prompts)
    first = 0
    for k, prompt in enumerate(prompts):
        assert messages_of(asked[k]) == dataset[k]["raw_prompt"]
        theirs = rolled_out(dataset, dataset[k], StockWorker)
        assert batch["input_ids"][k][batch["attention_mask"][k].bool()].tolist() == theirs.prompt
        assert prompt.num_tokens == len(theirs.prompt)
        assert batch["second_per_grid_ts"][k] == theirs.inputs["second_per_grid_ts"][0]
        pixels = theirs.inputs["pixel_values_videos"]
        assert torch.equal(batch["pixel_values_videos"][first : first + len(pixels)], pixels)
        first += len(pixels)
        given = engines.vllm_prompt(prompt)
        placeholder = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
        position = given["prompt_token_ids"].index(placeholder)
        visual = [placeholder] * prompt.videos[0].plan.num_tokens
        assert (
            given["prompt_token_ids"][:position] + visual + given["prompt_token_ids"][position + 1 :] == theirs.prompt
        )
        ((frames, metadata),) = given["multi_modal_data"]["video"]
        assert torch.equal(frames, theirs.videos[0][0]) and metadata == theirs.videos[0][1]


def small(model, tmp_path, **changes) -> Settings:
    """Settings of the tiny model, exact to the last digit."""
    given = {"engine": "transformers", "max_tokens": 48, "max_model_len": 256, "dtype": "float32"} | changes
    return Settings(str(model), store=FrameStore(str(tmp_path / "frames")), **given)


GENERATE = """
import json, sys
from pathlib import Path
from verl_stvg.inference.generate import Settings, generate
from verl_stvg.video.store import FrameStore
given = json.loads(sys.argv[1])
if __name__ == "__main__":
    settings = Settings(**given["settings"], store=FrameStore(given["frames"]))
    print(generate([Path(given["rows"])], Path(given["out"]), settings).rows)
"""


LOCK = """
import fcntl, sys
lock = open(sys.argv[1], "r+")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def arguments(rows: Path, out: Path, settings: Settings) -> str:
    """What `GENERATE` is given on its command line."""
    changed = {**settings.sampling, "model": settings.model, "batch": settings.batch, "limit": settings.limit}
    changed |= {"ray": settings.ray, "engines": settings.engines}
    return json.dumps({"settings": changed, "frames": settings.store.folder, "rows": str(rows), "out": str(out)})


@pytest.mark.slow
def test_a_killed_pass_goes_on_to_the_same_file(rows, model, tmp_path):
    table = pq.read_table(rows / "val.parquet").to_pylist()[:8]
    for row in table:
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
    table[3]["videos"][0]["video"] = "gone.mp4"
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=ROW_SCHEMA), file)
    settings = small(model, tmp_path, batch=1, samples=2, temperature=1.0)
    counts = generate([file], tmp_path / "whole", settings)
    assert (counts.rows, counts.errors) == (8, 1)
    whole = answers.read(tmp_path / "whole" / ANSWERS)
    assert [answer.uid for answer in whole.values()] == [row["extra_info"]["uid"] for row in table]
    assert "gone.mp4: no such video" in list(whole.values())[3].error
    assert {len(answer.texts) for answer in whole.values()} == {0, 2}

    killed, written = tmp_path / "killed", 0
    process = subprocess.Popen([sys.executable, "-c", GENERATE, arguments(file, killed, settings)])
    while not written:
        assert process.poll() is None
        time.sleep(0.02)
        written = (killed / ANSWERS).stat().st_size if (killed / ANSWERS).exists() else 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(answers.read(killed / ANSWERS)) < 8
    with (killed / ANSWERS).open("a") as half:
        half.write('{"uid": "synthetic')  # as if it had been killed while writing
    generate([file], killed, settings)
    for name in (ANSWERS, RUN):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(killed / lock.NAME)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(lock.FolderInUse, match="another process is writing into this folder"):
            generate([file], killed, settings)
        other.communicate(b"")
    with pytest.raises(AnswersError, match="holds other answers .*temperature"):
        generate([file], killed, replace(settings, temperature=0.5))
    with pytest.raises(AnswersError, match="limit was None and is 2; rows_hash"):
        generate([file], killed, replace(settings, limit=2))


def test_a_prompt_over_the_limit_is_an_error_of_its_row(rows, model, tmp_path):
    settings = small(model, tmp_path, max_model_len=64, limit=2)
    assert generate([rows / "val.parquet"], tmp_path / "out", settings).errors == 2
    error = next(iter(answers.read(tmp_path / "out" / ANSWERS).values())).error
    assert "are over the 64 of the model; raise --max-model-len" in error


@pytest.mark.slow
def test_the_command_answers_and_scores(rows, model, tmp_path):
    app = typer.Typer()
    app.command()(eval_)
    given = {
        "model": model,
        "out": tmp_path / "out",
        "engine": "transformers",
        "dtype": "float32",
        "max-tokens": 48,
        "limit": 6,
        "cache": tmp_path / "frames",
    }
    line = [str(rows / "val.parquet"), *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
    CliRunner().invoke(app, line, catch_exceptions=False)
    assert len(answers.read(tmp_path / "out" / ANSWERS)) == 6
    assert json.loads((tmp_path / "out/scores.json").read_text())["rows"] == 6
    assert len((tmp_path / "out/items.jsonl").read_text().splitlines()) == 6
    with pytest.raises(ValueError, match="4 greedy samples are all the same"):
        CliRunner().invoke(app, [*line, "--samples", "4"], catch_exceptions=False)


SHARDS = """
import sys
import torch
from omegaconf import OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

def write(rank, model, out):
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    fully_shard(network, mesh=mesh)
    contents = OmegaConf.create({"save_contents": ["model"], "load_contents": ["model"]})
    manager = FSDPCheckpointManager(
        network, processing_class=AutoProcessor.from_pretrained(model), checkpoint_config=contents
    )
    manager.save_checkpoint(f"{out}/global_step_3/actor", global_step=3)

if __name__ == "__main__":
    torch.multiprocessing.start_processes(write, sys.argv[1:], nprocs=2, start_method="fork")
"""


@pytest.mark.slow
def test_a_checkpoint_of_verl_is_merged_once(rows, model, tmp_path, run_python):
    """Shards of two ranks, written by verl's own checkpoint manager."""
    run_python(SHARDS, model, tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    actor = tmp_path / "global_step_3/actor"
    merged = {checkpoint.resolve(str(folder)) for folder in (tmp_path, actor.parent, actor)}
    assert merged == {str(actor / "merged")}
    made = (actor / "merged/merged_from.json").stat().st_mtime_ns
    before, after = load_file(model / "model.safetensors"), load_file(actor / "merged/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].bfloat16(), after[name].bfloat16()) for name in before)
    assert checkpoint.fingerprint(str(model)) != checkpoint.fingerprint(str(actor / "merged"))
    settings = small(actor.parent, tmp_path, limit=2)
    assert generate([rows / "val.parquet"], tmp_path / "out", settings).errors == 0
    assert (actor / "merged/merged_from.json").stat().st_mtime_ns == made
    assert not list(actor.glob(".merged-*"))
    shard = actor / "model_world_size_2_rank_1.pt"
    shard.rename(tmp_path / "away.pt")
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing, first model_world_size_2_rank_1.pt"):
        checkpoint.resolve(str(actor))
    (actor / "lora_train_meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="trained with LoRA"):
        checkpoint.resolve(str(actor))


def test_models_that_are_none(model, tmp_path):
    assert checkpoint.resolve(str(model)) == str(model)
    assert checkpoint.fingerprint("Qwen/Qwen2.5-VL-7B-Instruct") is None
    for name in ("./nothing", "/nothing/here", "a/b/c"):
        with pytest.raises(ModelNameError, match="no such folder"):
            checkpoint.resolve(name)
    with pytest.raises(CheckpointError, match="holds neither a Hugging Face model"):
        checkpoint.resolve(str(tmp_path))
    saved = tmp_path / "actor/huggingface"
    saved.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (saved / name).write_bytes((model / name).read_bytes())
    assert checkpoint.resolve(str(tmp_path)) == str(saved)


VLLM = """
import json, sys
from dataclasses import replace
from pathlib import Path
from verl_stvg.inference import engines
from verl_stvg.inference.generate import Settings, generate
from verl_stvg.video.store import FrameStore
given = json.loads(sys.argv[1])
if __name__ == "__main__":
    settings = Settings(**given["settings"], store=FrameStore(given["frames"]))
    engine = engines.start(settings)
    rows, out = [Path(given["rows"])], Path(given["out"])
    generate(rows, out / "greedy", settings, engine)
    sampled = replace(settings, samples=4, temperature=1.0)
    generate(rows, out / "sampled", sampled, engine)
    generate(rows, out / "again", replace(sampled, batch=5), engine)
    engine.close()
"""


@pytest.mark.engine
def test_vllm_and_transformers_give_the_same_answers_here_and_on_ray(rows, model, tmp_path, run_python):
    """Greedy answers are equal to the byte, also those of two engines on Ray; samples follow from uids."""
    file = rows / "val.parquet"
    settings = small(model, tmp_path, engine="vllm", limit=24)
    run_python(VLLM, arguments(file, tmp_path, settings))
    local = small(model, tmp_path, limit=24)
    generate([file], tmp_path / "transformers", local)
    greedy = (tmp_path / "greedy" / ANSWERS).read_bytes()
    assert greedy == (tmp_path / "transformers" / ANSWERS).read_bytes()
    sampled, again = (answers.read(tmp_path / name / ANSWERS) for name in ("sampled", "again"))
    assert {len(answer.texts) for answer in sampled.values()} == {4}
    assert sum(len(set(answer.texts)) > 1 for answer in sampled.values()) > 12
    assert sum(sampled[uid] == again[uid] for uid in sampled) > 20  # other batches, hence other last digits

    on_ray = replace(local, ray=True, engines=2, limit=24)
    run_python(GENERATE, arguments(file, tmp_path / "ray", on_ray))
    assert (tmp_path / "ray" / ANSWERS).read_bytes() == greedy
