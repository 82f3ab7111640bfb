"""A run that was killed goes on as if it had not been, and what it leaves behind is whole or not named.

The comparisons on the real engine are `long`: three runs each. Everything else needs neither Ray nor vLLM.
"""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import verl  # noqa: F401  (loads the plugin, as a run does)
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.data import SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from benchmarks.kills import tensors
from verl_stvg.launch import run as launch
from verl_stvg.patches import checkpoints, metrics_file
from verl_stvg.training import resume
from verl_stvg.training.agent_loop import answer_seed

ROWS, BATCH, STEPS = 9, 4, 4
"""An epoch is two steps and leaves one row out."""


# --- data order: verl#5725, verl#7401 ---------------------------------------------------------------------------------


def loader(shuffle=True, workers=0):
    rows, generator = list(range(ROWS)), torch.Generator()
    generator.manual_seed(1)
    sampler = RandomSampler(data_source=rows, generator=generator) if shuffle else SequentialSampler(rows)
    return StatefulDataLoader(rows, BATCH, sampler=sampler, num_workers=workers, drop_last=True, collate_fn=collated)


def collated(rows):
    return {"raw_prompt": rows}


def trainer_of(cls, folder, shuffle, workers):
    """One of verl's trainers with a data loader and no engine."""
    trainer = object.__new__(cls)
    trainer.config = OmegaConf.create(
        {
            "trainer": {
                "resume_mode": "auto",
                "default_local_dir": str(folder),
                "default_hdfs_dir": None,
                "del_local_ckpt_after_load": False,
            },
            "actor_rollout_ref": {"actor": {"checkpoint": {}, "strategy": "fsdp2"}},
        }
    )
    trainer.actor_rollout_wg = SimpleNamespace(
        load_checkpoint=lambda *args, **kwargs: None, save_checkpoint=lambda *args, **kwargs: None
    )
    trainer.use_critic, trainer.trainer_mode, trainer.global_steps = False, "sync", 0
    trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **kwargs: None)
    trainer.train_dataloader, trainer.train_dataloader_it = loader(shuffle, workers), None
    return trainer


def v1_batches(trainer, steps, save=None):
    """Rows of each step, as verl's V1 trainer fetches them."""
    found = []
    while trainer.global_steps < steps:
        trainer.global_steps += 1
        found.append(sorted(trainer._fetch_one_gen_batch()["raw_prompt"]))
        if trainer.global_steps == save:
            trainer._save_checkpoint()
    return found


def legacy_batches(trainer, steps, save=None):
    """Rows of each step, as verl's older trainer fetches them, in loops over just as many epochs as it takes."""
    found = []
    per_epoch = len(trainer.train_dataloader)
    for _ in range(trainer.global_steps // per_epoch, -(-steps // per_epoch)):
        for batch in trainer.train_dataloader:
            trainer.global_steps += 1
            found.append(sorted(batch["raw_prompt"]))
            if trainer.global_steps == save:
                trainer._save_checkpoint()
            if trainer.global_steps == steps:
                return found
    return found


def trainers():
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    return {"v1": (PPOTrainerSync, v1_batches), "legacy": (RayPPOTrainer, legacy_batches)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("name", ["v1", "legacy"])
def test_data_order_within_and_across_epochs(tmp_path, name, shuffle, workers):
    cls, batches = trainers()[name]
    whole = batches(trainer_of(cls, tmp_path, shuffle, workers), 6)
    assert len(whole) == 6
    for save in (1, 2, 3, 4) if not workers else (2,):
        first = trainer_of(cls, tmp_path / str(save), shuffle, workers)
        assert batches(first, save, save) == whole[:save]
        second = trainer_of(cls, tmp_path / str(save), shuffle, workers)
        second._load_checkpoint()
        assert second.global_steps == save
        assert batches(second, 6) == whole[save:]


def test_the_older_trainer_still_needs_the_mend(tmp_path):
    """Without it the second epoch repeats the order of the first."""
    cls, batches = trainers()["legacy"]
    whole = batches(trainer_of(cls, tmp_path, True, 0), 4, save=2)
    second = trainer_of(cls, tmp_path, True, 0)
    stock = cls._load_checkpoint
    while hasattr(stock, "__wrapped__"):
        stock = stock.__wrapped__
    stock(second)
    assert batches(second, 4) == whole[:2] != whole[2:]


# --- a checkpoint is never half-written as the latest -----------------------------------------------------------------

KILLED_WHILE_SAVING = """
import json, os, shutil, signal, sys
from pathlib import Path
from types import SimpleNamespace

import torch
torch.set_num_threads(1)
import verl
from omegaconf import OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoModelForImageTextToText
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

out, which = Path(sys.argv[2]), {"v1": PPOTrainerSync, "legacy": RayPPOTrainer}[sys.argv[3]]
network = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32)
CONTENTS = ["model", "optimizer", "extra"]
ACTOR = {"checkpoint": {}, "strategy": "fsdp2"}
left = None  # events until the end


def event(*_):
    global left
    if left is not None:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def whole_or_half(state, path, *args, **kwargs):
    event()
    save(state, path, *args, **kwargs)
    size = os.path.getsize(path)
    if left == 0:
        os.truncate(path, size // 2)
    event()


save, torch.save = torch.save, whole_or_half
CHANGES = ("open", "os.remove", "os.rmdir", "os.rename", "os.mkdir")
sys.addaudithook(lambda name, _: event() if name in CHANGES else None)


def trainer_in(folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=0, world_size=1)
    model = fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    config = OmegaConf.create({"save_contents": CONTENTS, "load_contents": CONTENTS})
    manager = FSDPCheckpointManager(model, optimizer, schedule, None, config)
    trainer = object.__new__(which)
    given = {"default_local_dir": str(folder), "default_hdfs_dir": None, "max_actor_ckpt_to_keep": 1}
    given |= {"resume_mode": "auto", "del_local_ckpt_after_load": False}
    trainer.config = OmegaConf.create({"trainer": given, "actor_rollout_ref": {"actor": ACTOR}})
    trainer.actor_rollout_wg = manager
    trainer.use_critic, trainer.trainer_mode = False, "sync"
    trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **kwargs: None)
    trainer.train_dataloader = StatefulDataLoader(list(range(16)), 4)
    return trainer


def saving(folder, events):
    global left
    trainer = trainer_in(folder)
    for trainer.global_steps in (1, 2):
        trainer._save_checkpoint()
    left = events
    trainer.global_steps = 3
    trainer._save_checkpoint()
    left = None


def loading(folder):
    trainer = trainer_in(folder)
    trainer.global_steps = 0
    trainer._load_checkpoint()
    (folder / "loaded").write_text(str(trainer.global_steps))


def status(action, *arguments):
    child = os.fork()
    if not child:
        log = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        try:
            action(*arguments)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


seen = []
for events in range(0, 1000, int(sys.argv[4])):
    folder = out / str(events)
    ended = status(saving, folder, events)
    assert ended in (0, -signal.SIGKILL), (out / "log").read_text()
    shutil.rmtree(f"{folder}.store", ignore_errors=True)
    Path(f"{folder}.store").unlink(missing_ok=True)
    loads = status(loading, folder) == 0
    seen.append([ended, int((folder / "loaded").read_text()) if loads else None, (out / "log").read_text()[-200:]])
    shutil.rmtree(folder)
    if ended == 0:
        break
print("seen", json.dumps(seen))
"""


@pytest.mark.long
@pytest.mark.parametrize(("name", "every"), [("v1", 1), ("legacy", 3)])
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path, model, run_python, name, every):
    """verl's own trainer and FSDP2 workers' code, killed before files are opened, moved or deleted, and in the middle
    of files of tensors; what is then named as the latest is loaded."""
    done = run_python(KILLED_WHILE_SAVING, model, tmp_path, name, every)
    seen = json.loads(re.search("seen (.*)", done.stdout)[1])
    print(len(seen), "moments", Counter(step for _, step, _ in seen))
    assert len(seen) > 30 / every and [ended for ended, *_ in seen[:-1]] == [-signal.SIGKILL] * (len(seen) - 1)
    assert [one for one in seen if one[1] is None] == []
    steps = [step for _, step, _ in seen]
    assert steps == sorted(steps) and set(steps) == {2, 3}


@pytest.mark.long
def test_verl_alone_still_needs_the_mend(tmp_path, model, run_python):
    done = run_python(KILLED_WHILE_SAVING, model, tmp_path, "v1", 3, VERL_USE_EXTERNAL_PLUGINS="none")
    seen = json.loads(re.search("seen (.*)", done.stdout)[1])
    steps = [step for _, step, _ in seen]
    assert steps[0] == 2 and steps[-1] == 3 and None in steps


def keeping_manager(tracker, named_at_deletion):
    """A worker's checkpoint manager that writes a file of its own in place of tensors; it notes what the tracker says
    whenever a checkpoint is deleted."""
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

    class Manager(BaseCheckpointManager):
        def __init__(self):
            self.previous_saved_paths, self.rank = [], 0

        def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
            self.ensure_checkpoint_capacity(max_ckpt_to_keep)
            os.makedirs(local_path)
            self.register_checkpoint(local_path, max_ckpt_to_keep)

        def remove_previous_save_local_path(self, path):
            super().remove_previous_save_local_path(path)
            named_at_deletion.extend(tracker.read_text() for _ in path)

    return Manager()


@pytest.mark.parametrize("name", ["v1", "legacy"])
@pytest.mark.parametrize(
    ("given", "kept", "named"),
    [
        ({"max_actor_ckpt_to_keep": 1, "max_critic_ckpt_to_keep": 1}, [1, 1], "2233"),
        ({"remove_previous_ckpt_in_save": True}, [1, 1], "2233"),
        ({"max_actor_ckpt_to_keep": 2, "max_critic_ckpt_to_keep": 1}, [2, 1], "223"),
        ({}, [3, 3], ""),
    ],
)
def test_as_many_checkpoints_as_asked_and_none_goes_before_the_tracker_names_the_next(
    tmp_path, name, given, kept, named
):
    cls, _ = trainers()[name]
    trainer, said = trainer_of(cls, tmp_path, True, 0), []
    trainer.config.trainer.update(given)
    trainer.config.critic = {"strategy": "fsdp2"}
    OmegaConf.set_struct(trainer.config, True)
    before = OmegaConf.to_yaml(trainer.config)
    trainer.use_critic = True
    trainer.actor_rollout_wg, trainer.critic_wg = (
        keeping_manager(tmp_path / checkpoints.TRACKER, said) for _ in range(2)
    )
    for trainer.global_steps in (1, 2, 3):
        trainer._save_checkpoint()
        here = [len(list(tmp_path.glob(f"global_step_*/{role}"))) for role in ("actor", "critic")]
        assert here == [min(count, trainer.global_steps) for count in kept]
        assert (tmp_path / checkpoints.TRACKER).read_text() == str(trainer.global_steps)
    assert "".join(sorted(said)) == named and OmegaConf.to_yaml(trainer.config) == before


def test_verl_alone_deletes_before_the_tracker_names_the_next(tmp_path):
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    trainer, said = trainer_of(RayPPOTrainer, tmp_path, True, 0), []
    trainer.config.trainer.max_actor_ckpt_to_keep = 1
    trainer.actor_rollout_wg = keeping_manager(tmp_path / checkpoints.TRACKER, said)
    for trainer.global_steps in (1, 2):
        inspect.unwrap(RayPPOTrainer._save_checkpoint)(trainer)
    assert said == ["1"]


def test_workers_of_both_kinds_are_told_which_checkpoints_to_keep(tmp_path):
    from verl.single_controller.base.decorator import MAGIC_ATTR
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    paths = [str(tmp_path / f"global_step_{step}/actor") for step in (1, 2, 3)]
    for path in paths:
        os.makedirs(path)
    manager = keeping_manager(tmp_path / "none", [])
    manager.remove_previous_save_local_path = super(type(manager), manager).remove_previous_save_local_path
    manager.previous_saved_paths = list(paths)
    inner, outer = object.__new__(TrainingWorker), object.__new__(ActorRolloutRefWorker)
    inner.engine, outer.actor = SimpleNamespace(checkpoint_manager=manager), inner
    for worker in (inner, outer):
        assert hasattr(worker.keep_newest, MAGIC_ATTR)  # what makes it a method of the group of workers
    inner.keep_newest(2)
    assert [os.path.isdir(path) for path in paths] == [False, True, True]
    outer.keep_newest(1)
    assert [os.path.isdir(path) for path in paths] == [False, False, True] and manager.previous_saved_paths == paths[2:]
    manager.rank, manager.previous_saved_paths = 1, list(paths)
    outer.keep_newest(1)
    assert manager.previous_saved_paths == paths


def test_the_tracker_is_replaced_as_a_whole(tmp_path):
    tracker = tmp_path / checkpoints.TRACKER
    tracker.write_text("2")
    with checkpoints.open_tracker(str(tracker), "w") as file:
        file.write("4")
        assert tracker.read_text() == "2"
    assert tracker.read_text() == "4"
    with pytest.raises(OSError, match="full"), checkpoints.open_tracker(str(tracker), "w"):
        raise OSError("full")
    assert tracker.read_text() == "4"


def test_a_tracker_of_another_run_is_taken_off_what_is_overwritten(tmp_path):
    tracker = tmp_path / checkpoints.TRACKER
    (tmp_path / "global_step_2").mkdir()
    for named, step, loaded, after in (
        ("2", 4, 0, "2"),
        ("8", 4, 2, "2"),
        ("4", 4, 2, "2"),
        ("8", 4, 0, None),
        ("", 4, 0, None),
    ):
        tracker.write_text(named)
        checkpoints.release(tmp_path, step, loaded)
        assert (tracker.read_text() if tracker.exists() else None) == after


def test_a_resumed_run_counts_the_checkpoints_it_found(tmp_path):
    for step in (2, 10, 4, 12):
        (tmp_path / f"run/global_step_{step}/actor").mkdir(parents=True)
    loaded, new = tmp_path / "run/global_step_10/actor", tmp_path / "run/global_step_14/actor"
    assert checkpoints.siblings(loaded, new) == [str(tmp_path / f"run/global_step_{step}/actor") for step in (2, 4, 10)]
    assert checkpoints.siblings(loaded, tmp_path / "other/global_step_14/actor") == []


# --- metrics of both parts --------------------------------------------------------------------------------------------


def test_metrics_up_to_the_checkpoint_are_kept(tmp_path, monkeypatch):
    from verl.utils import tracking

    path = tmp_path / "metrics.jsonl"
    whole = "".join(f'{{"step": {step}, "data": {{"a": {step}}}}}\n' for step in (0, 1, 2, 3))
    path.write_text(whole + '{"step": 4, "da')
    assert resume.keep_metrics(path, 2) == 3

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    monkeypatch.setenv(metrics_file.APPEND_METRICS, "1")
    monkeypatch.setattr(tracking, "open", open, raising=False)  # undone afterwards
    metrics_file.mend_metrics_file(tracking)
    tracking.FileLogger("project", "name").log({"a": 30}, 3)
    assert [json.loads(line)["data"]["a"] for line in path.read_text().splitlines()] == [0, 1, 2, 30]
    assert resume.keep_metrics(tmp_path / "none.jsonl", 2) == 0


# --- checks before a run ----------------------------------------------------------------------------------------------


def settings(folder, model="none", **trainer):
    defaults = {
        "default_local_dir": str(folder),
        "resume_mode": "auto",
        "n_gpus_per_node": 2,
        "nnodes": 1,
        "save_freq": 1,
        "max_actor_ckpt_to_keep": None,
        "total_training_steps": 1,
    }
    contents = ["model", "optimizer", "extra"]
    actor = {
        "strategy": "fsdp2",
        "freeze_vision_tower": False,
        "checkpoint": {"save_contents": contents, "load_contents": "${.save_contents}"},
    }
    return OmegaConf.create(
        {"trainer": defaults | trainer, "actor_rollout_ref": {"actor": actor, "model": {"path": str(model)}}}
    )


def checkpoint(folder, step, ranks):
    actor = folder / f"global_step_{step}/actor"
    actor.mkdir(parents=True)
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    for rank in range(ranks):
        for name in ("model", "optim", "extra_state"):
            (actor / f"{name}_world_size_{ranks}_rank_{rank}.pt").touch()
    (actor.parent / "data.pt").touch()
    (folder / checkpoints.TRACKER).write_text(str(step))
    return actor


def test_checkpoint_to_go_on_from(tmp_path, caplog):
    assert resume.unusable_checkpoint(settings(tmp_path)) == []
    actor = checkpoint(tmp_path, 4, 2)
    assert resume.unusable_checkpoint(settings(tmp_path)) == []
    assert resume.resumed_step(settings(tmp_path).trainer) == 4
    assert resume.unusable_checkpoint(settings(tmp_path, resume_mode="disable", n_gpus_per_node=8)) == []

    assert "saved by 2 ranks and this run has 8" in resume.unusable_checkpoint(settings(tmp_path, n_gpus_per_node=8))[0]
    without = settings(tmp_path)
    without.actor_rollout_ref.actor.checkpoint.save_contents = ["model"]
    assert resume.unusable_checkpoint(without) == [] and "without its ['extra', 'optimizer']" in caplog.text
    (actor / "optim_world_size_2_rank_1.pt").unlink()
    assert "lacks optimizer of some of its 2 ranks" in resume.unusable_checkpoint(settings(tmp_path))[0]
    (actor.parent / "data.pt").unlink()
    assert "not complete or not there" in resume.unusable_checkpoint(settings(tmp_path))[0]
    (tmp_path / checkpoints.TRACKER).write_text("6")
    assert "global_step_6, the checkpoint to go on from" in resume.unusable_checkpoint(settings(tmp_path))[0]
    (tmp_path / checkpoints.TRACKER).write_text("")
    assert "names no step" in resume.unusable_checkpoint(settings(tmp_path))[0]
    path = settings(tmp_path, resume_mode="resume_path", resume_from_path=str(tmp_path))
    assert "is no folder global_step_N" in resume.unusable_checkpoint(path)[0]


def test_too_little_disk(tmp_path, model):
    enough = settings(tmp_path, model, total_training_steps=2)
    assert resume.too_little_disk(enough) == []
    endless = settings(tmp_path, model, total_training_steps=10**9)
    (problem,) = resume.too_little_disk(endless)
    assert "trainer.max_actor_ckpt_to_keep" in problem and "trainer.save_freq" in problem
    for fitting in ({"max_actor_ckpt_to_keep": 3}, {"save_freq": -1}, {"save_freq": 10**9}):
        assert resume.too_little_disk(settings(tmp_path, model, **{"total_training_steps": 10**9} | fitting)) == []
    assert resume.too_little_disk(settings(tmp_path, "org/name", total_training_steps=10**9)) == []


def test_steps_are_counted_from_the_rows(tmp_path):
    pq.write_table(pa.table({"a": list(range(10))}), tmp_path / "rows.parquet")
    config = settings(tmp_path, total_training_steps=None, total_epochs=3, save_freq=2)
    config.data = {"train_files": str(tmp_path / "rows.parquet"), "train_batch_size": 4}
    assert resume.saves(config) == 3


@given(st.integers(0, 2**31), st.text(max_size=8), st.integers(0, 10**6), st.integers(0, 63))
def test_seeds_of_answers(seed, uid, step, place):
    found = answer_seed(seed, uid, step, place)
    assert 0 <= found < 2**63 and found == answer_seed(seed, uid, step, place)
    others = [(seed + 1, uid, step, place), (seed, uid + "x", step, place), (seed, uid, step + 1, place)]
    assert found not in [answer_seed(*other) for other in (*others, (seed, uid, step, place + 1))]


def test_batches_are_in_the_order_in_which_they_were_asked():
    from verl_stvg.training.legacy import places_in_group
    from verl_stvg.training.replay_buffer import place_of

    keys, places = ["c_0_0", "b_1_0", "a_10_0", "a_2_0"], {"a": 0, "b": 1}
    assert sorted(keys, key=lambda key: place_of(key, places)) == ["a_2_0", "a_10_0", "b_1_0", "c_0_0"]
    assert places_in_group(["x", "y", "x", "x"]).tolist() == [0, 0, 1, 2]


# --- the comparison on the real engine --------------------------------------------------------------------------------


def training_rows(rows, folder):
    table = pq.read_table(rows / "train.parquet").to_pylist()[:ROWS]
    for row in table:
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
        row["extra_info"] |= {"bin": "hard", "difficulty": 1.0}
    pq.write_table(pa.Table.from_pylist(table), folder / "train.parquet")
    return folder / "train.parquet"


def arguments(folder, rows, model, use_v1):
    return [
        "--config-path",
        "pkg://verl_stvg.recipes.stvg_r1",
        "--config-name",
        "stvg_r1",
        "+variant=tiny",
        f"data.train_files={training_rows(rows, folder.parent)}",
        f"data.val_files={rows}/val.parquet",
        f"data.video_cache.folder={folder.parent}/frames",
        f"data.train_batch_size={BATCH}",
        f"actor_rollout_ref.model.path={model}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.actor.optim.lr_scheduler_type=linear",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.full_determinism=true",
        "data.curriculum.enabled=true",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.total_epochs={STEPS // 2}",
        "trainer.save_freq=2",
        "trainer.max_actor_ckpt_to_keep=1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        f"trainer.rollout_data_dir={folder}/rollouts",
        f"trainer.use_v1={str(use_v1).lower()}",
    ]


def killed_after(folder, step, given):
    """Start a run; kill it and all that it started once its tracker names a step, in the middle of the next one."""
    code = (
        "import sys; from pathlib import Path; from verl_stvg.launch import run as launch\n"
        "launch.train(sys.argv[2:], Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), *given], start_new_session=True)
    tracker, metrics = folder / "checkpoints" / checkpoints.TRACKER, folder / "metrics.jsonl"
    while not (tracker.exists() and tracker.read_text() == str(step) and metrics.read_text().count("\n") == step):
        assert process.poll() is None, (folder / "train.log").read_text(errors="replace")[-6000:]
        time.sleep(0.05)
    time.sleep(1)  # the next step is under way
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in family:
        if child.is_running():
            child.kill()
    assert psutil.wait_procs(family, timeout=300)[1] == []
    process.wait()


def drawn(folder, step):
    """Rows and answers of a step."""
    lines = [json.loads(line) for line in (folder / f"rollouts/{step}.jsonl").read_text().splitlines()]
    return Counter((line["gts"]["uid"], line["output"]) for line in lines)


def difference(one, other):
    """The largest difference of two saved states, 0 only if they are the same to the bit; they hold the same names."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    largest = 0.0
    for name, value in first.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            if not torch.equal(value, second[name]):
                largest = max(largest, float((value - second[name]).abs().max()))
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name
    return largest


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.parametrize("use_v1", [False, True])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, rows, model, use_v1):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = arguments(whole, rows, model, use_v1)
    assert launch.train(given, whole) == 0, (whole / "train.log").read_text(errors="replace")[-6000:]
    given = arguments(parts, rows, model, use_v1)
    killed_after(parts, 2, given)
    before = (parts / "metrics.jsonl").read_text()
    assert launch.train(given, parts) == 0, (parts / "train.log").read_text(errors="replace")[-6000:]
    assert json.loads((parts / "run.json").read_text())["resumed_from"] == 2

    # the metrics of both parts, each step once
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, parts)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [1, 2, 3, 4]
    assert (parts / "metrics.jsonl").read_text().startswith("".join(before.splitlines(keepends=True)[:2]))
    for one, other in zip(*lines, strict=True):
        for name in ("actor/lr", "curriculum/mask_ratio", "training/epoch"):
            assert one["data"].get(name) == other["data"].get(name)
    assert [line["data"]["curriculum/mask_ratio"] for line in lines[0]] == [1.0, 0.75, 0.5, 0.25]

    # data order, across the border of two epochs, and the answers that were sampled
    for step in range(1, STEPS + 1):
        assert drawn(whole, step) == drawn(parts, step), step
        groups = Counter(uid for uid, _ in drawn(whole, step).elements())
        assert len(groups) == BATCH and set(groups.values()) == {4}
    assert any(count < 4 for _, count in drawn(whole, 1).items())  # the answers to a prompt differ

    last = [run / f"checkpoints/global_step_{STEPS}/actor" for run in (whole, parts)]
    for name in ("model", "optim", "extra_state"):
        off = difference(*(folder / f"{name}_world_size_1_rank_0.pt" for folder in last))
        print(f"use_v1={use_v1} {name}: largest difference {off}")
        assert off == 0

    # the actor's generator goes on where it was; no step draws from it
    states = [parts / f"checkpoints/global_step_{step}/actor/extra_state_world_size_1_rank_0.pt" for step in (2, STEPS)]
    saved, last = (torch.load(state, weights_only=False)["rng"]["cpu"] for state in states)
    assert torch.equal(saved, last)
