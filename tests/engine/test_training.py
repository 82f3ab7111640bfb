"""The main job on the real engine: verl's trainer, FSDP2 actor and reference, vLLM rollout, on mp4 files, on a CPU."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_stvg.launch import run
from verl_stvg.training.dataset import VideoGroundingDataset

pytestmark = pytest.mark.engine


SMALL = [
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
]


def metrics_of(folder):
    """verl's metrics by step."""
    path = folder / "metrics.jsonl"
    return {line["step"]: line["data"] for line in lines(path)} if path.exists() else {}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def transformers_answers(model, rows, uids):
    """Greedy answers of a saved model by transformers alone, by the rows' uid; 48 tokens each, whatever they say."""
    processor = AutoProcessor.from_pretrained(model)
    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    network.generation_config.eos_token_id = None
    dataset = VideoGroundingDataset(
        str(rows / "val.parquet"),
        processor.tokenizer,
        OmegaConf.create({"max_prompt_length": 512, "video_cache": {"enabled": False}}),
        processor,
    )
    found = {}
    for row in dataset:
        uid = row["extra_info"]["uid"]
        if uid in uids:
            videos = dataset._process_multi_modal_info(row["raw_prompt"], 14, dataset.config)[1]
            text = processor.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=False)
            inputs = build_multimodal_processor_inputs(processor, text=[text], videos=videos)
            with torch.no_grad():
                ids = network.generate(**inputs, do_sample=False, max_new_tokens=48)[0, inputs["input_ids"].shape[1] :]
            found[uid] = processor.decode(ids, skip_special_tokens=True)
    return found


def left_behind():
    marks = ("raylet", "gcs_server", "ray::", "VLLM::", "EngineCore")
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        title = " ".join(process.info["cmdline"] or [process.info["name"] or ""])
        if any(mark in title for mark in marks):
            found.append(title[:80])
    return found


def training_rows(rows, folder):
    """The training rows, all hard ones; the prompts of the first batch have one length, those of the second two."""
    table = pq.read_table(rows / "train.parquet").to_pylist()
    for k, row in enumerate(table):
        if k % 2 and k >= 4:
            (message,) = row["prompt"]
            message["content"] = message["content"].replace("this happens", "this happens, this happens")
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
        row["extra_info"] |= {"bin": "hard", "difficulty": 1.0}
    pq.write_table(pa.Table.from_pylist(table), folder / "train.parquet")
    return folder / "train.parquet"


def test_two_steps(tmp_path, rows, model):
    """Also with a batch of one length, which verl's packing alone cannot take, and under a curriculum: the actor reads
    what the rollout saw, masks and all."""
    status = run.train(
        [
            "--config-path",
            "pkg://verl_stvg.recipes.stvg_r1",
            "--config-name",
            "stvg_r1",
            "+variant=tiny",
            f"data.train_files={training_rows(rows, tmp_path)}",
            f"data.val_files={rows}/val.parquet",
            f"data.video_cache.folder={tmp_path}/frames",
            "data.shuffle=false",
            f"actor_rollout_ref.model.path={model}",
            "actor_rollout_ref.rollout.ignore_eos=true",
            "data.curriculum.enabled=true",
            *SMALL,
            "actor_rollout_ref.actor.optim.lr=1e-3",
            "trainer.total_training_steps=2",
            "trainer.test_freq=2",
            "trainer.save_freq=2",
            "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]",
            "data.val_max_samples=8",
            f"trainer.default_local_dir={tmp_path}/checkpoints",
            f"trainer.rollout_data_dir={tmp_path}/rollouts",
            f"trainer.validation_data_dir={tmp_path}/validation",
        ],
        tmp_path,
    )
    metrics, log = metrics_of(tmp_path), (tmp_path / "train.log").read_text(errors="replace")
    assert status == 0, log[-6000:]
    assert left_behind() == []

    # every reward part is logged, in training and in validation
    for step in (1, 2):
        for part in ("score", "temporal_iou", "id_match", "format"):
            assert 0 <= metrics[step][f"reward/{part}/mean"] <= 3
        assert metrics[step]["actor/kl_loss"] >= 0
        assert metrics[step]["rollout/missing"] == 0
        assert metrics[step]["video/decodes"] == 0  # the checks before the run have put every video into the cache
        assert metrics[step]["actor/video/load_seconds"] > 0 and metrics[step]["actor/video/load_bytes"] > 0
        assert 0 < metrics[step]["video/queue_bytes"] < 16 * 0.01 * (4 * 3 * 16 * 56 * 84)  # of the pixels of a row
    for step in (0, 2):
        for part in ("temporal_iou", "id_match", "format"):
            assert f"val-aux/verl_stvg/synthetic/{part}/mean@1" in metrics[step]

    assert [metrics[step]["curriculum/hard/mask_ratio"] for step in (1, 2)] == [1.0, 0.5]
    assert metrics[1]["response_length/min"] == metrics[1]["response_length/max"] == 48
    assert metrics[1]["prompt_length/min"] == metrics[1]["prompt_length/max"]
    assert metrics[2]["prompt_length/min"] < metrics[2]["prompt_length/max"]

    # no row dropped: 4 prompts x 4 rollouts in each step, 8 held-out clips
    assert [len(lines(tmp_path / f"rollouts/{step}.jsonl")) for step in (1, 2)] == [16, 16]
    assert [len(lines(tmp_path / f"validation/{step}.jsonl")) for step in (0, 2)] == [8, 8]

    # the weights changed, and the rollout has the actor's new ones
    saved = next((tmp_path / "checkpoints/global_step_2/actor").glob("**/model.safetensors"))
    before, after = load_file(model / "model.safetensors"), load_file(saved)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))}
    trained = {name for name in before if "visual" not in name}  # the recipe freezes the vision tower
    assert changed <= trained and len(changed) > 0.9 * len(trained)
    for step in (1, 2):
        assert metrics[step]["training/rollout_probs_diff_mean"] < 1e-4
    generated = {line["gts"]["uid"]: line["output"] for line in lines(tmp_path / "validation/2.jsonl")}
    assert len(generated) == 8
    assert transformers_answers(saved.parent, rows, generated) == generated


def test_ctrl_c_leaves_nothing(tmp_path, rows, model):
    command = [sys.executable, "-m", "verl_stvg.cli.app", "train", "--recipe", "stvg_r1", "--run-dir", str(tmp_path)]
    command += ["+variant=tiny", *SMALL, f"data.train_files={rows}/train.parquet", f"data.val_files={rows}/val.parquet"]
    command += [f"data.video_cache.folder={tmp_path}/frames", f"actor_rollout_ref.model.path={model}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if these tests run in the background
    )
    deadline = time.monotonic() + 6000
    while time.monotonic() < deadline and not any("EngineCore" in title or "VLLM" in title for title in left_behind()):
        assert process.poll() is None, (tmp_path / "train.log").read_text(errors="replace")[-6000:]
        time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(900) == 130
    assert left_behind() == []
