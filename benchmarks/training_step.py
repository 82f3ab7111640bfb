"""A whole training step of the main job on real clips, beside the same trainer with verl's own data path.

Both sides are the recipe `tiny` on the CPU engine: same model, rows, clips and plan, n = 8. The other side has verl's
dataset class, agent loop and manager, with qwen-vl-utils and decord (the extra `bench`). The model is untrained and
its frames are tiny, so that the step is mostly what a step costs before the model sees it; a large model adds the same
time to both sides.
Takes a quarter of an hour.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import Options, Row
from benchmarks.data_plane import CLIPS, READER, N, model_folder, require_reader
from benchmarks.decode import write_clip
from verl_stvg.launch import run as launch

PROMPTS, STEPS = 8, 3  # the first step is not counted
FRAME = {"min_pixels": 3136, "max_pixels": 12 * 784}
STOCK = [
    "data.custom_cls.path=null",
    "data.custom_cls.name=null",
    "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
]


def write_rows(folder: Path) -> None:
    """Write clips and rows; every clip has bytes of its own and every prompt its clip."""
    rows = []
    for k in range(PROMPTS):
        width, height, seconds = list(CLIPS.values())[k % len(CLIPS)]
        clip = folder / f"{k}.mp4"
        write_clip(clip, width, height, seconds, seed=k)
        truth = {"object_id": 1, "start": 1.0, "end": 2.0, "duration": float(seconds)}
        rows.append(
            {
                "data_source": "stvg_r1/clips",
                "prompt": [{"role": "user", "content": "When does it move?<video>"}],
                "videos": [{"video": str(clip), "fps": 2.0, **FRAME}],
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"uid": str(k), "index": k},
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")


def seconds_per_step(folder: Path, name: str, arguments: list[str]) -> tuple[float, float]:
    """Median seconds of a step, and of its generation, which holds the data path.

    Raises:
        RuntimeError: the run failed; its log stands in the message.
    """
    run = folder / name
    status = launch.train(
        [
            *("--config-path", "pkg://verl_stvg.recipes.stvg_r1", "--config-name", "stvg_r1", "+variant=tiny"),
            f"data.train_files={folder}/rows.parquet",
            f"data.val_files={folder}/rows.parquet",
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
            f"actor_rollout_ref.rollout.n={N}",
            f"actor_rollout_ref.model.path={folder}/model",
            "data.max_prompt_length=480",
            "actor_rollout_ref.rollout.max_model_len=560",
            f"trainer.total_training_steps={STEPS}",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            *arguments,
        ],
        run,
    )
    if status:
        raise RuntimeError((run / "train.log").read_text(errors="replace")[-4000:])
    steps = [json.loads(line)["data"] for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    return tuple(statistics.median(step[f"timing_s/{part}"] for step in steps) for part in ("step", "gen"))


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows."""
    require_reader()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_folder(folder)
        write_rows(folder)
        ours = seconds_per_step(folder, "ours", [f"data.video_cache.folder={folder}/frames"])
        with mock.patch.dict(os.environ, {"FORCE_QWENVL_VIDEO_READER": READER}):
            other = seconds_per_step(folder, "stock", STOCK)
    for k, part in enumerate(("a training step", "its generation and data path")):
        ratio = other[k] / ours[k]
        goal = (">= 1.5x", ratio >= 1.5) if k == 0 else ("", None)
        yield Row(f"s of {part}, {PROMPTS} prompts x {N}, cache filled by the checks", ours[k], other[k], ratio, *goal)
