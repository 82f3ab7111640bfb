"""A checkpoint of verl is never half-written as the latest, and the order of rows goes on behind it (docs/resume.md).

Versions: verl 0.9.1, which names the latest checkpoint in ``latest_checkpointed_iteration.txt`` once all of it is
written. Four things break that promise, or what a resumed run then does, and are mended here:

- with ``max_actor_ckpt_to_keep=1`` the checkpoint that the file names is deleted before the file names the new one;
- the file is emptied before it is written;
- a run that was started over in an old folder writes into the checkpoint that the file names;
- verl's older trainer (``use_v1=false``) starts the second epoch in the order of the first where a checkpoint lies on
  the border of two epochs (verl#5725).

Imports nothing of verl before it is needed: the plugin loads this module in every process.
``tests/training/test_resume.py`` says when verl no longer needs it.
"""

import builtins
import contextlib
import copy
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from verl_stvg.base.lock import replacing, write_whole

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"


def mend_rotation(checkpoint_manager) -> None:
    """Let a worker's checkpoint manager delete older checkpoints when it is told to, see `mend_trainer`."""
    checkpoint_manager.BaseCheckpointManager.keep_newest = _keep_newest


def _keep_newest(self, count: int) -> None:
    if self.rank == 0:  # whose list is the one that verl keeps
        self.remove_previous_save_local_path(self.previous_saved_paths[:-count])
        self.previous_saved_paths = self.previous_saved_paths[-count:]


def mend_workers(engine_workers) -> None:
    """Let a trainer tell its workers to delete older checkpoints."""
    from verl.single_controller.base.decorator import Dispatch, register

    @register(dispatch_mode=Dispatch["ONE_TO_ALL"])
    def keep_newest(self, count: int) -> None:
        self.engine.checkpoint_manager.keep_newest(count)

    @register(dispatch_mode=Dispatch["ONE_TO_ALL"])
    def keep_newest_of_actor(self, count: int) -> None:
        self.actor.keep_newest(count)

    engine_workers.TrainingWorker.keep_newest = keep_newest
    engine_workers.ActorRolloutRefWorker.keep_newest = keep_newest_of_actor


def mend_loading(fsdp_checkpoint_manager) -> None:
    """Let a worker that has loaded a checkpoint count it, and those before it, among the ones it has saved."""
    manager = fsdp_checkpoint_manager.FSDPCheckpointManager
    load, save = manager.load_checkpoint, manager.save_checkpoint

    def load_checkpoint(self, local_path, *args, **kwargs):
        load(self, local_path, *args, **kwargs)
        self.loaded_path = local_path

    def save_checkpoint(self, local_path, *args, **kwargs):
        loaded = getattr(self, "loaded_path", None)
        if loaded and not self.previous_saved_paths:
            self.previous_saved_paths = siblings(Path(loaded), Path(local_path))
        save(self, local_path, *args, **kwargs)

    manager.load_checkpoint, manager.save_checkpoint = load_checkpoint, save_checkpoint


def siblings(loaded: Path, new: Path) -> list[str]:
    """Checkpoints of a worker up to the one it has loaded, oldest first; none where the new one lies elsewhere.

    Args:
        loaded: ``.../global_step_N/actor``.
        new: the folder of the next one.
    """
    root = new.absolute().parent.parent
    if loaded.absolute().parent.parent != root:
        return []
    last = step_of(loaded.parent) or 0
    steps = {str(path): step_of(path.parent) or last + 1 for path in root.glob(f"global_step_*/{new.name}")}
    return sorted((path for path in steps if steps[path] <= last), key=lambda path: steps[path])


def mend_trainer(trainer_module) -> None:
    """Let a trainer of verl replace its tracker as a whole, keep it off the folder that is being written, and delete
    the checkpoint that the tracker named when it names the new one.

    Where one checkpoint is to be kept, workers are told to keep two while they save, and to delete the older one
    afterwards. Where more are, verl deletes none that the tracker names.
    """
    trainer_module.open = open_tracker
    trainer = getattr(trainer_module, "PPOTrainer", None) or trainer_module.RayPPOTrainer
    load, save = trainer._load_checkpoint, trainer._save_checkpoint

    @functools.wraps(load)
    def _load_checkpoint(self):
        result = load(self)
        self.loaded_step = self.global_steps
        return result

    @functools.wraps(save)
    def _save_checkpoint(self):
        folder, given = Path(self.config.trainer.default_local_dir), self.config
        release(folder, self.global_steps, getattr(self, "loaded_step", 0))
        single = _kept_singly(given)
        self.config = _keeping_two(given, single)
        try:
            save(self)
        finally:
            self.config = given
        if "actor" in single:
            self.actor_rollout_wg.keep_newest(1)
        if "critic" in single and self.use_critic:
            self.critic_wg.keep_newest(1)

    trainer._load_checkpoint, trainer._save_checkpoint = _load_checkpoint, _save_checkpoint


def _kept_singly(config) -> list[str]:
    """Which of actor and critic keep one checkpoint only, of those that FSDP saves before the tracker is written."""
    if OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.async_save"):
        return []
    strategies = {"actor": "actor_rollout_ref.actor.strategy", "critic": "critic.strategy"}
    found = [name for name, key in strategies.items() if str(OmegaConf.select(config, key)).startswith("fsdp")]
    always = config.trainer.get("remove_previous_ckpt_in_save", False)
    return [name for name in found if always or config.trainer.get(f"max_{name}_ckpt_to_keep") == 1]


def _keeping_two(config, names: list[str]):
    """A run's settings, in which these keep two checkpoints."""
    if not names:
        return config
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, False)
    for name in ("actor", "critic") if changed.trainer.pop("remove_previous_ckpt_in_save", False) else names:
        changed.trainer[f"max_{name}_ckpt_to_keep"] = 2 if name in names else 1
    return changed


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator:
    """A text file that takes the place of ``path`` once it is complete."""
    with replacing(Path(path)) as partial, partial.open("w") as file:
        yield file


def open_tracker(path, mode="r", *args, **kwargs):
    """The built-in ``open``, but a tracker is only ever replaced."""
    if mode == "w" and os.path.basename(path) == TRACKER:
        return replaced(path)
    return builtins.open(path, mode, *args, **kwargs)


def release(folder: Path, step: int, loaded: int) -> None:
    """Take the tracker off a checkpoint that this run is about to write, or that it has not come to yet.

    Such a tracker is left from another run in the same folder; it then names the step this run was resumed from, or
    goes.

    Args:
        folder: of the run's checkpoints, with `TRACKER`.
        step: of the checkpoint that is about to be written.
        loaded: step that the run was resumed from; 0 if it began anew.
    """
    tracker = folder / TRACKER
    named = tracker.read_text().strip() if tracker.is_file() else None
    if named is None or (named.isdecimal() and int(named) < step):
        return
    if loaded and loaded < step and (folder / f"global_step_{loaded}").is_dir():
        write_whole(tracker, str(loaded))
    else:
        tracker.unlink()
    logger.warning("%s named step %s, of another run; this one comes to step %d", tracker, named, step)


def mend_epoch_border(ray_trainer) -> None:
    """Let the older trainer go on in the order of its sampler where a checkpoint lies between two epochs.

    There verl leaves the loader's state out (verl#5725), because it would make the next epoch empty; with it goes the
    state of the sampler's random generator. Here the state is loaded and the used up epoch is gone through.
    """
    trainer = ray_trainer.RayPPOTrainer
    stock = trainer._load_checkpoint

    @functools.wraps(stock)
    def _load_checkpoint(self):
        import torch

        result = stock(self)
        if self.global_steps and self.global_steps % len(self.train_dataloader) == 0:
            given = self.config.trainer
            folder = Path(given.default_local_dir, f"global_step_{self.global_steps}")
            if given.resume_mode == "resume_path":
                folder = Path(given.resume_from_path)
            self.train_dataloader.load_state_dict(torch.load(folder / "data.pt", weights_only=False))
            if left := sum(1 for _ in self.train_dataloader):
                raise ValueError(f"{folder}/data.pt has {left} batches left and the epoch none; give the rows it had")
        return result

    trainer._load_checkpoint = _load_checkpoint


def step_of(folder: Path) -> int | None:
    """N of ``global_step_N``; None for other names."""
    found = re.fullmatch(r"global_step_(\d+)", folder.name)
    return int(found[1]) if found else None
