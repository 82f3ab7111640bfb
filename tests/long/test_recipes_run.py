"""Every recipe trains for real: two steps through its own yaml and the override `tiny`, on rows of its own task."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engine.test_training import lines, metrics_of
from tests.support.recipe_values import ALL
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.testing import tiny_answers, tiny_model, tiny_parts
from verl_stvg.launch import run

pytestmark = pytest.mark.long

UNTAUGHT = {"clips": 4, "vision_steps": 2, "vision_batch": 8, "answer_steps": 2, "answer_batch": 2, "eval_clips": 2}


@pytest.mark.parametrize("recipe", ALL)
def test_two_steps(tmp_path, recipe):
    rows = synthetic.build(tmp_path / "rows", 16, 4, seed=5, task=recipe, progress=False)
    config = tiny_parts.TinyConfig(task=recipe, **UNTAUGHT)
    model = tiny_model.make(tmp_path / "model", seed=0, config=config, progress=False)
    train = rows / "train.parquet"
    if recipe == "videotg_r1":
        train = synthetic_bins(train, rows / "binned.parquet")
    status = run.train(
        [
            *("--config-path", f"pkg://verl_stvg.recipes.{recipe}", "--config-name", recipe, "+variant=tiny"),
            f"data.train_files={train}",
            f"data.val_files={rows}/val.parquet",
            f"data.video_cache.folder={tmp_path}/frames",
            f"actor_rollout_ref.model.path={model}",
            "data.train_batch_size=8",
            "actor_rollout_ref.actor.ppo_mini_batch_size=8",
            "trainer.total_training_steps=2",
            "trainer.test_freq=2",
            f"trainer.rollout_data_dir={tmp_path}/rollouts",
        ],
        tmp_path / "run",
    )
    assert status == 0, (tmp_path / "run" / "train.log").read_text(errors="replace")[-6000:]
    steps = metrics_of(tmp_path / "run")
    parts = set(tiny_answers.reward_parts([], [], recipe))
    for step in (1, 2):
        assert {f"reward/{part}/mean" for part in parts} <= steps[step].keys()
        assert steps[step]["rollout/missing"] == steps[step]["video/decodes"] == 0
        assert steps[step]["training/rollout_probs_diff_mean"] < 1e-4  # an untaught model would say placeholders
        assert (steps[step]["parity/gate"], steps[step]["parity/outside_gate"]) == (1e-4, 0)
        assert len(lines(tmp_path / f"rollouts/{step}.jsonl")) == 8 * 8
    if recipe == "videotg_r1":
        assert [steps[step]["curriculum/hard/mask_ratio"] for step in (1, 2)] == [1.0, 0.5]


def synthetic_bins(rows, out):
    """The same rows, every second one hard, as `verl-stvg select subset` writes them."""
    table = pq.read_table(rows).to_pylist()
    for k, row in enumerate(table):
        row["extra_info"] |= {"bin": "hard" if k % 2 else "easy", "difficulty": k % 2}
    pq.write_table(pa.Table.from_pylist(table), out)
    return out
