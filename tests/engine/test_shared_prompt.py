"""A prompt that is computed once trains the same model: two steps of the tiny recipe with the key and without it."""

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.test_training import lines, metrics_of, training_rows
from verl_stvg.launch import run
from verl_stvg.training.sharing import KEY

pytestmark = pytest.mark.engine

ADDED = ("actor/shared_prompt/computed_share",)


def trained(folder, rows, model, shares: bool) -> tuple[dict, dict, dict, str]:
    """Metrics by step, rows of the rollouts by step, weights and log of a run of two steps."""
    status = run.train(
        [
            "--config-path",
            "pkg://verl_stvg.recipes.stvg_r1",
            "--config-name",
            "stvg_r1",
            "+variant=tiny",
            f"data.train_files={training_rows(rows, folder)}",
            f"data.val_files={rows}/val.parquet",
            f"data.video_cache.folder={folder.parent}/frames",
            "data.curriculum.enabled=true",
            "data.train_batch_size=4",
            f"actor_rollout_ref.model.path={model}",
            f"{KEY}={shares}",
            "actor_rollout_ref.rollout.full_determinism=true",  # the same answers to the same weights
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
            "actor_rollout_ref.actor.optim.lr=1e-3",
            "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]",
            "trainer.total_training_steps=2",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            "trainer.save_freq=2",
            f"trainer.default_local_dir={folder}/checkpoints",
            f"trainer.rollout_data_dir={folder}/rollouts",
        ],
        folder,
    )
    log = (folder / "train.log").read_text(errors="replace")
    assert status == 0, log[-6000:]
    rollouts = {step: lines(folder / f"rollouts/{step}.jsonl") for step in (1, 2)}
    saved = next((folder / "checkpoints/global_step_2/actor").glob("**/model.safetensors"))
    return metrics_of(folder), rollouts, load_file(saved), log


def test_two_steps_are_those_of_verls_own_way(tmp_path, rows, model):
    runs = []
    for shares in (False, True):
        folder = tmp_path / f"shares-{shares}"
        folder.mkdir()
        runs.append(trained(folder, rows, model, shares))
    (plain, plain_rows, plain_weights, _), (shared, shared_rows, shared_weights, log) = runs

    assert f"{KEY} is set and has no effect" not in log
    for step in (1, 2):
        assert len(shared_rows[step]) == 16
        answers = [
            sorted((one["gts"]["uid"], one["output"], one["score"]) for one in dumped[step])
            for dumped in (plain_rows, shared_rows)
        ]
        assert answers[0] == answers[1]  # a batch is laid out in another order
        assert shared[step]["actor/shared_prompt/computed_share"] < 0.7
        assert shared[step]["timing_s/old_log_prob"] < 0.1 < plain[step]["timing_s/old_log_prob"]
        for name in ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "training/rollout_probs_diff_mean"):
            assert shared[step][name] == pytest.approx(plain[step][name], abs=1e-5), name
        assert shared[step]["actor/grad_norm"] == pytest.approx(plain[step]["actor/grad_norm"], rel=1e-4)
        assert shared[step]["training/rollout_probs_diff_mean"] < 1e-4
        assert set(shared[step]) == {*plain[step], *ADDED}

    before = load_file(model / "model.safetensors")
    way, apart = (
        torch.cat([(one[name].float() - other[name].float()).flatten() for name in before]).norm()
        for one, other in ((plain_weights, before), (plain_weights, shared_weights))
    )
    assert way > 0 and apart < 0.01 * way
