"""What a run needs to go on after ``kill -9`` or on a full disk, beyond what verl 0.9.1 does (docs/resume.md).

verl names the latest checkpoint in ``latest_checkpointed_iteration.txt`` once all of it is written. Four things break
that promise, or what a resumed run then does, and are mended here:

- with ``max_actor_ckpt_to_keep=1`` the checkpoint that the file names is deleted before the file names the new one;
- the file is emptied before it is written;
- a run that was started over in an old folder writes into the checkpoint that the file names;
- verl's older trainer (``use_v1=false``) starts the second epoch in the order of the first where a checkpoint lies on
  the border of two epochs.

Imports nothing of verl before it is needed: the plugin loads this module in every process.
"""

import builtins
import contextlib
import copy
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import OmegaConf

from verl_stvg.base.lock import replacing, write_whole

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
APPEND_METRICS = "VERL_STVG_APPEND_METRICS"
"""Environment variable of a resumed run: verl's metrics file is added to, not begun again."""
GIB = 2**30
_BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
_ADAM_MOMENTS = 2


# --- a checkpoint is never half-written as the latest -----------------------------------------------------------------


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

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def keep_newest(self, count: int) -> None:
        self.engine.checkpoint_manager.keep_newest(count)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
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
    last = step_of(loaded.parent)
    found = [path for path in root.glob(f"global_step_*/{new.name}") if (step_of(path.parent) or last + 1) <= last]
    return [str(path) for path in sorted(found, key=lambda path: step_of(path.parent))]


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


# --- data order -------------------------------------------------------------------------------------------------------


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


# --- metrics ----------------------------------------------------------------------------------------------------------


def mend_metrics_file(tracking) -> None:
    """Let verl's file logger add to the metrics where the launcher has kept those of the first part of the run."""
    if os.environ.get(APPEND_METRICS):
        tracking.open = lambda path, mode="r", *args, **kwargs: builtins.open(
            path, "ab" if mode == "wb" else mode, *args, **kwargs
        )


def keep_metrics(path: Path, step: int, aside: Path | None = None) -> int:
    """Shorten a metrics file to the steps up to one; later steps are about to be repeated.

    Args:
        path: the file; it may be missing.
        step: the last one that stays.
        aside: file that the other lines are written to: those of later steps, and those that are no step's, as a crash
            leaves them.

    Returns:
        lines that are left.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    torn = lines.pop()
    kept, moved, broken = [], [], int(bool(torn))
    for line in lines:
        of = _step_of_line(line)
        broken += of is None
        (kept if of is not None and of <= step else moved).append(line)
    if moved or torn:
        logger.info(
            "%d lines of %s are of steps that are repeated, or no step's (%d)", len(moved) + bool(torn), path, broken
        )
        if aside is not None:
            aside.write_bytes(b"".join(line + b"\n" for line in moved) + torn)
    write_whole(path, b"".join(line + b"\n" for line in kept).decode())
    return len(kept)


def _step_of_line(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return None


# --- which checkpoint -------------------------------------------------------------------------------------------------


def step_of(folder: Path) -> int | None:
    """N of ``global_step_N``; None for other names."""
    found = re.fullmatch(r"global_step_(\d+)", folder.name)
    return int(found[1]) if found else None


def tracked_step(folder: Path) -> int | None:
    """The step that a folder's tracker names; None without one.

    Raises:
        ValueError: it names none.
    """
    tracker = folder / TRACKER
    if not tracker.is_file():
        return None
    text = tracker.read_text().strip()
    if not text.isdecimal():
        raise ValueError(
            f"{tracker} names no step ({text!r}); write the number of the newest complete global_step_N into it, or "
            "remove it to begin anew"
        )
    return int(text)


def resumed_step(trainer: Mapping) -> int | None:
    """The step a run goes on from; None if it begins anew.

    Args:
        trainer: verl's ``trainer`` settings; read are ``resume_mode``, ``resume_from_path`` and ``default_local_dir``.

    Raises:
        ValueError: the tracker names no step, or ``resume_from_path`` is no checkpoint.
    """
    mode = trainer.get("resume_mode") or "auto"
    if mode == "auto":
        return tracked_step(Path(trainer["default_local_dir"]))
    if mode == "resume_path":
        step = step_of(Path(str(trainer.get("resume_from_path"))))
        if step is None:
            raise ValueError(
                f"trainer.resume_from_path={trainer.get('resume_from_path')} is no folder global_step_N; correct it"
            )
        return step
    return None


# --- checks before a run ----------------------------------------------------------------------------------------------


def unusable_checkpoint(config) -> list[str]:
    """Whether the checkpoint this run would go on from is there, is whole, and was saved by as many ranks."""
    trainer = config.trainer
    try:
        step = resumed_step(trainer)
    except ValueError as error:
        return [str(error)]
    if step is None:
        return []
    folder = Path(trainer.default_local_dir, f"global_step_{step}")
    if trainer.resume_mode == "resume_path":
        folder = Path(trainer.resume_from_path)
    remedy = (
        f"name another in {Path(trainer.default_local_dir, TRACKER)}, or begin anew with trainer.resume_mode=disable"
    )
    described = folder / "actor/fsdp_config.json"
    if not (folder / "data.pt").is_file() or not (folder / "actor").is_dir():
        return [f"{folder}, the checkpoint to go on from, is not complete or not there; {remedy}"]
    if not str(config.actor_rollout_ref.actor.strategy).startswith("fsdp") or not described.is_file():
        return []
    ranks = json.loads(described.read_text())["world_size"]
    asked = int(trainer.n_gpus_per_node) * int(trainer.nnodes)
    if ranks != asked:
        return [f"{folder} was saved by {ranks} ranks and this run has {asked}; go on with {ranks}, or {remedy}"]
    contents = set(OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.load_contents") or ())
    parts = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
    lacking = [
        name
        for name, file in parts.items()
        if name in contents
        for rank in range(ranks)
        if not (folder / f"actor/{file}_world_size_{ranks}_rank_{rank}.pt").is_file()
    ]
    if lacking:
        return [f"{folder} lacks {', '.join(sorted(set(lacking)))} of some of its {ranks} ranks; {remedy}"]
    if left_out := sorted(parts.keys() - contents):
        logger.warning(
            "going on from %s without its %s: actor.checkpoint.save_contents leaves that out", folder, left_out
        )
    return []


def too_little_disk(config) -> list[str]:
    """Whether the checkpoints of a run fit on their disk; a model that is not on this machine is not judged."""
    trainer, actor = config.trainer, config.actor_rollout_ref.actor
    model = Path(str(config.actor_rollout_ref.model.path)).expanduser()
    if trainer.save_freq <= 0 or not model.is_dir():
        return []
    sizes = checkpoint_bytes(
        parameters(model),
        list(actor.checkpoint.save_contents),
        _BYTES[OmegaConf.select(actor, "fsdp_config.model_dtype") or "fp32"],
        frozen=OmegaConf.select(actor, "freeze_vision_tower") is True,
        adapters_only=lora(config.actor_rollout_ref.model),
    )
    size, folder = sum(sizes.values()), Path(trainer.default_local_dir).absolute()
    kept = trainer.max_actor_ckpt_to_keep
    count = max(int(kept), 2) if kept else saves(config)
    existing = len(list(folder.glob("global_step_*/actor")))
    free = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.is_dir())).free
    needed = size * max(count - existing, 1)
    if needed <= free:
        return []
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in sizes.items())
    return [
        f"{folder} has {free / GIB:.1f} GiB free and the run's checkpoints take {needed / GIB:.1f} GiB more: "
        f"{count} of {size / GIB:.1f} GiB ({parts}), of which {existing} are there; free some, point "
        "trainer.default_local_dir to a larger disk, lower trainer.max_actor_ckpt_to_keep, or save less often "
        "(trainer.save_freq)"
    ]


def saves(config) -> int:
    """How often a run saves, at most: its last step included."""
    import pyarrow.parquet as pq

    steps = config.trainer.total_training_steps
    if steps is None:
        files = config.data.train_files
        rows = sum(pq.read_metadata(file).num_rows for file in ([files] if isinstance(files, str) else files))
        steps = rows // config.data.train_batch_size * config.trainer.total_epochs
    return -(-int(steps) // int(config.trainer.save_freq))


def checkpoint_bytes(
    shapes: Mapping[str, int], contents: list[str], width: int, frozen: bool = False, adapters_only: bool = False
) -> dict[str, int]:
    """Bytes of one checkpoint by part; what is small (schedule, random state, tokenizer) is left out.

    Args:
        shapes: numbers of parameters by name.
        contents: verl's ``save_contents``.
        width: bytes of a parameter while it is trained; Adam keeps two moments of the same width.
        frozen: the vision tower is not trained.
        adapters_only: only adapters are, whose moments are small.
    """
    total = sum(shapes.values()) * width
    still = sum(count for name, count in shapes.items() if "visual." in name) * width if frozen else 0
    moments = 0 if adapters_only else _ADAM_MOMENTS * (total - still)
    parts = {"model": ("weights", total), "optimizer": ("optimizer", moments), "hf_model": ("hf_model", total)}
    return {name: size for key, (name, size) in parts.items() if key in contents}


def parameters(model: Path) -> dict[str, int]:
    """Numbers of parameters of a saved model by name, from the headers of its safetensors files."""
    from safetensors import safe_open

    found = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                shape = file.get_slice(name).get_shape()
                count = 1
                for length in shape:
                    count *= length
                found[name] = count
    return found


def lora(model) -> bool:
    """Whether a run trains adapters."""
    rank = OmegaConf.select(model, "lora.rank") or model.get("lora_rank") or 0
    return rank > 0 or bool(model.get("lora_adapter_path"))
