"""Variants on the real engine with the tiny model, two steps each: the metrics show what each of them means."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.engine.test_training import metrics_of, training_rows
from verl_stvg.launch import run as launch

pytestmark = pytest.mark.long

PROMPTS = 8
"""Of a step."""


def run(folder, rows, model, variant, *overrides):
    """Two steps of STVG-R1's recipe under ``[tiny,variant]``; returns verl's metrics of the two."""
    status = launch.train(
        [
            *(
                "--config-path",
                "pkg://verl_stvg.recipes.stvg_r1",
                "--config-name",
                "stvg_r1",
                f"+variant=[tiny,{variant}]",
            ),
            f"data.train_files={training_rows(rows, folder)}",
            f"data.val_files={rows}/val.parquet",
            f"data.video_cache.folder={folder}/frames",
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.model.path={model}",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
            "trainer.total_training_steps=2",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            f"trainer.default_local_dir={folder}/checkpoints",
            *overrides,
        ],
        folder,
    )
    assert status == 0, (folder / "train.log").read_text(errors="replace")[-6000:]
    metrics = metrics_of(folder)
    steps = [metrics[1], metrics[2]]
    for step in steps:  # whatever the variant does to the weights, the rollout has them
        assert step["training/rollout_probs_diff_mean"] < 1e-4
        assert step["actor/grad_norm"] > 0
        assert 0 <= step["reward/score/mean"] <= 3
    return steps


def test_lora_trains_and_serves_adapters(tmp_path, rows, model):
    """The base stays as it is; the policy moves away from it, and the rollout with it."""
    steps = run(
        tmp_path,
        rows,
        model,
        "lora",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
        "actor_rollout_ref.rollout.n=4",
        "trainer.save_freq=2",
    )
    assert steps[0]["actor/kl_loss"] == 0  # the reference is the model without the adapter, which starts from nothing
    assert steps[1]["actor/kl_loss"] > 1e-5 > 10 * steps[1]["training/rollout_probs_diff_mean"]
    saved = tmp_path / "checkpoints/global_step_2/actor/model_world_size_1_rank_0.pt"
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value.to_local()
        for name, value in torch.load(saved, weights_only=False).items()
    }
    adapters = {name for name in after if ".lora_" in name}
    assert adapters and not any("visual" in name for name in adapters)  # vLLM serves those of the language model
    assert all(after[name].any() for name in adapters)
    before = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).state_dict()
    assert before.keys() == after.keys() - adapters
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gspo_makes_several_updates_of_a_batch(tmp_path, rows, model):
    steps = run(
        tmp_path,
        rows,
        model,
        "gspo",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // 4}",  # as the variant: four updates
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=4",
    )
    for step in steps:
        assert step["actor/ppo_kl"] != 0  # of the first update it is 0: more have been made
        assert step["actor/pg_clipfrac"] > 0  # the range is for a whole answer's ratio, and narrow
        assert "actor/kl_loss" not in step


def test_dapo_replaces_groups_without_variance(tmp_path, rows, model):
    steps = run(
        tmp_path,
        rows,
        model,
        "dapo",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=2",  # so small that some groups agree
    )
    assert sum(step.get("training/filter_groups/evicted_samples", 0) for step in steps) > 0
    for step in steps:
        assert step["reward/zero_variance_groups"] == 0
        assert "actor/kl_loss" not in step
