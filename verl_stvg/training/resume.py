"""Which checkpoint a run goes on from, which metrics it keeps, and whether its checkpoints fit (docs/resume.md).

What verl is given so that a checkpoint is never half-written as the latest stands in `verl_stvg.patches.checkpoints`.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from verl_stvg.base.lock import write_whole
from verl_stvg.patches.checkpoints import TRACKER, step_of

logger = logging.getLogger(__name__)

GIB = 2**30
_BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
_ADAM_MOMENTS = 2


# --- metrics ----------------------------------------------------------------------------------------------------------


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
