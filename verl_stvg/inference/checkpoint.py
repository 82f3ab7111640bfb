"""What a user names as a model: a Hugging Face folder or name, or a checkpoint of verl, whose shards are merged once.

verl saves a training run as one file of weights per rank. Whoever evaluates it wants to name the checkpoint, so the
merge (verl's own, in a process of its own) happens here, beside the shards, under a lock.
"""

import json
import logging
import shutil
import subprocess
from pathlib import Path

import xxhash

from verl_stvg.base import python
from verl_stvg.base.lock import finished, whole
from verl_stvg.base.models import located

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_LATEST = "latest_checkpointed_iteration.txt"
_MERGED, _RECORD = "merged", "merged_from.json"
_SAMPLES, _SAMPLE_BYTES = 16, 65536


class CheckpointError(ValueError):
    """A model that cannot be used as it is; the message names the folder and the remedy."""


def resolve(model: str) -> str:
    """The model to load: a folder with configuration and weights, or a name on the hub.

    Args:
        model: such a folder or name; or a folder that verl wrote: ``global_step_N``, ``global_step_N/actor``, or the
            one above, whose latest step is taken. Weights that verl saved there as a Hugging Face model are used;
            otherwise its shards are merged, in bfloat16, as verl's merger does, into ``merged`` beside them.

    Raises:
        ModelNameError: no such folder, and no such name on the hub, which is asked once (`verl_stvg.base.models`).
        CheckpointError: no model in the folder, a shard is missing, or an adapter (LoRA) would be left out.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return located(model)
    if _holds_model(folder):
        return str(folder.resolve())
    if (folder / _LATEST).is_file():
        folder = folder / f"global_step_{(folder / _LATEST).read_text().strip()}"
    for actor in (folder, folder / "actor"):
        if _holds_model(actor / "huggingface"):
            return str((actor / "huggingface").resolve())
        if (actor / "fsdp_config.json").is_file():
            return str(_merged(actor.resolve()))
    raise CheckpointError(
        f"{folder} holds neither a Hugging Face model (config.json and weights) nor a checkpoint of verl "
        "(global_step_N with actor/fsdp_config.json); correct the path"
    )


def fingerprint(model: str) -> str | None:
    """Hash of a model folder's configuration and of samples of its weights; None for a name on the hub.

    Tells models of one path apart, in a moment whatever their size: the weights are read at a few places only.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = xxhash.xxh3_128((folder / "config.json").read_bytes())
    for path in sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for k in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * k // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def _merged(actor: Path) -> Path:
    """The merged model of a folder of shards; made if it is not there or the shards are others."""
    if (actor / "lora_train_meta.json").is_file():
        raise CheckpointError(
            f"{actor} was trained with LoRA, and verl's merger leaves the adapter apart; merge it into the base model "
            "(peft: merge_and_unload) and name the resulting folder"
        )
    world = json.loads((actor / "fsdp_config.json").read_text(encoding="utf-8"))["world_size"]
    shards = [actor / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(
            f"{actor}: {len(missing)} of {world} shards are missing, first {missing[0]}; bring the shards of all nodes "
            "together in this folder, or save with checkpoint.save_contents=[model,hf_model]"
        )
    made_of = {shard.name: [shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards}
    target = actor / _MERGED
    if finished(target) and _made_of(target) == made_of:
        return target
    with whole(target, wait=True) as work:
        if _made_of(target) == made_of:  # another process has just merged them
            return target
        logger.info("merging %d shards of %s with verl's merger", world, actor)
        _merge(actor, work)
        (work / _RECORD).write_text(json.dumps(made_of, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(work / "outdated")
            shutil.rmtree(work / "outdated")
    return target


def _made_of(merged: Path) -> dict | None:
    """The shards of which a merged model was made; None where there is none."""
    record = merged / _RECORD
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def _merge(actor: Path, out: Path) -> None:
    command = python.module("verl.model_merger", "merge", "--backend", "fsdp")
    command += ["--local_dir", str(actor), "--target_dir", str(out)]
    environment = python.environment()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise CheckpointError(f"{actor}: verl's merger failed with status {done.returncode}:\n{last}")
