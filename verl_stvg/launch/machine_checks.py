"""Checks of what a run needs of this machine and its Ray cluster, for `verl_stvg.launch.preflight`.

Each function returns one sentence for each problem, with its remedy.
"""

import importlib.util
import logging
import os
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf

from verl_stvg.launch import nodes
from verl_stvg.launch.config_checks import row_files
from verl_stvg.workers import cluster_cpus

logger = logging.getLogger(__name__)

GIB = 2**30
CPU_RUN_BYTES = 9 * GIB
"""Memory a run with `+variant=tiny` takes beyond an idle machine: measured 9 GB; larger models take more."""
BASE_CPUS = 4
"""Logical CPUs the trainer's own actors ask Ray for, besides storage units, agent-loop and reward workers."""
CPUS_OF_A_GPU = 3
"""Logical CPUs that verl asks Ray for with each GPU, on the same node."""


def too_few_gpus(config: DictConfig) -> list[str]:
    """Whether this machine has the GPUs of a run that joins no cluster, or is a CPU that the run is meant for."""
    import torch

    from verl_stvg.base import vllm_build
    from verl_stvg.patches import cpu_platform

    asked = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes)
    if cluster_address(config):
        return []
    gpus = torch.cuda.device_count()
    found = vllm_build.device(gpus)
    if found.problem:
        return [found.problem]
    if cpu_platform.wanted():
        logger.log(
            logging.WARNING if found.note else logging.INFO,
            "this run is on the CPU, because %s%s",
            *(found.because, found.note and f": {found.note}"),
        )
        return _cpu_run(config, asked)
    if asked <= gpus:
        return []
    return [
        f"trainer.n_gpus_per_node x trainer.nnodes = {asked} GPUs and this machine has {gpus}; "
        "lower them, or start a Ray cluster and set RAY_ADDRESS"
    ]


def _cpu_run(config: DictConfig, workers: int) -> list[str]:
    """What a run on a CPU needs to be told: the device, and a logical GPU for each worker."""
    from verl_stvg.base import vllm_build

    problems, logical = [], int(OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus") or 0)
    if config.trainer.device != "cpu":
        problems.append(
            f"trainer.device={config.trainer.device} and verl runs on the CPU here, because "
            f"{vllm_build.device(gpus=0).because}; train on a machine with GPUs and vLLM's GPU build, or set "
            "trainer.device=cpu as +variant=tiny does"
        )
    if workers > logical:
        problems.append(
            f"trainer.n_gpus_per_node x trainer.nnodes = {workers} workers and Ray is started with {logical} GPUs, of "
            "which each takes one, a mere count on a CPU; lower them, or set "
            f"ray_kwargs.ray_init.num_gpus={workers}"
        )
    return problems


def attention_that_cannot_run(config: DictConfig) -> list[str]:
    """What verl's actor asks of flash-attn on a GPU; its workers fail without it after the model has been read.

    verl's default packs sequences (``use_remove_padding``) and then calls flash-attn's functions by name, whatever
    ``attn_implementation`` says; and it casts 32-bit activations to 16 bits for them, without a way back.
    """
    from verl.plugin.platform import get_platform

    if get_platform().device_name != "cuda" or cluster_address(config):
        return []
    model = config.actor_rollout_ref.model
    packed = bool(model.use_remove_padding)
    kind = OmegaConf.select(model, "override_config.attn_implementation") or "flash_attention_2"
    problems = []
    if (packed or kind == "flash_attention_2") and importlib.util.find_spec("flash_attn") is None:
        problems.append(
            f"actor_rollout_ref.model.use_remove_padding={packed} with attn_implementation={kind} needs flash-attn, "
            "which is not installed; install it (docs/launch.md), or add +variant=sdpa"
        )
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}.fsdp_config.mixed_precision.param_dtype"
        if packed and OmegaConf.select(config, key) in ("fp32", "float32"):
            problems.append(
                f"{key} is 32 bits, and packed sequences (model.use_remove_padding) are computed in 16; add "
                "+variant=sdpa"
            )
    return problems


def cluster_address(config: DictConfig) -> str | None:
    """Of the running Ray cluster that the run joins, as Ray finds it; None if the run starts one of its own."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    return None if address == "local" else address


def differing_nodes(config: DictConfig) -> list[str]:
    """What the nodes of a running cluster lack: GPUs, the plugin, this machine's versions, the files of the run.

    Frame caches need not be shared: a node that lacks a video's frames decodes it, and a warning says so.
    """
    from verl_stvg.rows.settings import frame_store, plain

    address = cluster_address(config)
    if address is None:
        return []
    paths, store = files_of_a_run(config), frame_store(config.data)
    shared = [store.folder] if store else []
    if int(config.trainer.save_freq) > 0:
        shared.append(config.trainer.default_local_dir)
    environment = plain(OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env")) or {}
    found = nodes.survey(address, paths, shared, environment)
    if isinstance(found, str):
        return [f"the nodes of the Ray cluster at {address} cannot be asked: {found}"]
    here = nodes.facts(paths, [])
    problems = too_few_gpus_on_nodes(config, [node["resources"] for node in found])
    for node in found:
        problems += [f"{node['node']} {problem}" for problem in nodes.different(node, here)]
        for folder in node.get("unshared", []):
            text = f"{node['node']} does not share {folder} with this machine"
            if store and folder == str(Path(store.folder).absolute()):
                logger.warning("%s, so it fills a cache of its own, decoding once every video that it needs", text)
            else:
                problems.append(f"{text}, so no run can go on from its checkpoints; set trainer.default_local_dir")
    return problems


def files_of_a_run(config: DictConfig) -> list[str]:
    """Row files, the first video of each, and the model if it is a folder: what every node reads."""
    from verl_stvg.rows.files import read_rows

    paths = []
    for _, file in row_files(config):
        paths.append(file)
        first = next(read_rows(file, OmegaConf.select(config, "data.video_root"), ("videos",), needed=()), None)
        paths += [entry["video"] for entry in (first.videos[:1] if first else ())]
    model = config.actor_rollout_ref.model.path
    return paths + [model] if Path(model).exists() else paths


def too_few_gpus_on_nodes(config: DictConfig, resources: list[dict]) -> list[str]:
    """Whether a cluster has a place for each of a run's groups of workers; verl would wait for one for ever.

    Args:
        resources: of each node, as Ray counts them.
    """
    from verl.plugin.platform import get_platform

    name, gpus, groups = get_platform().ray_resource_name(), int(config.trainer.n_gpus_per_node), config.trainer.nnodes
    places = [min(node.get(name, 0) // gpus, node.get("CPU", 0) // (CPUS_OF_A_GPU * gpus)) for node in resources]
    if sum(places) >= int(groups):
        return []
    offered = ", ".join(f"{node.get(name, 0):.0f} and {node.get('CPU', 0):.0f}" for node in resources)
    return [
        f"trainer.nnodes={groups} groups of trainer.n_gpus_per_node={gpus} need {gpus} {name}s and "
        f"{CPUS_OF_A_GPU * gpus} CPUs on one node each, and the cluster's {len(resources)} nodes offer {offered} (CPUs "
        "are a count: `ray start --num-cpus`); start the missing nodes, or lower trainer.nnodes or n_gpus_per_node"
    ]


def needed_cpus(config: DictConfig) -> int:
    """Logical CPUs the run's Ray actors ask for; with fewer, verl waits for ever without a word."""
    storage = int(OmegaConf.select(config, "transfer_queue.backend.SimpleStorage.num_data_storage_units") or 0)
    agents = int(OmegaConf.select(config, "actor_rollout_ref.rollout.agent.num_workers") or 1)
    rewards = int(OmegaConf.select(config, "reward.num_workers") or 1)
    gpus = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes)
    return BASE_CPUS + storage + agents + rewards + CPUS_OF_A_GPU * gpus


def too_few_cpus(config: DictConfig) -> list[str]:
    """Whether the Ray cluster, the one this run would start or the one it joins, has the logical CPUs it needs."""
    needed = needed_cpus(config)
    if address := cluster_address(config):
        offered = cluster_cpus(address)
        if isinstance(offered, str):
            return [
                f"no Ray cluster answers at {address} ({offered}); start it (`ray start --head`), or unset RAY_ADDRESS"
            ]
        remedy = f"start its nodes with --num-cpus so that they add up to {needed} or more"
    else:
        offered = int(OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus") or os.cpu_count() or 1)
        remedy = f"set ray_kwargs.ray_init.num_cpus={needed} or more"
    if offered >= needed:
        return []
    return [
        f"Ray offers {offered} CPUs and the run's actors ask for {needed} (verl would wait for ever); CPUs are a "
        f"count, not cores: {remedy}, or lower transfer_queue.backend.SimpleStorage.num_data_storage_units, "
        "rollout.agent.num_workers or reward.num_workers"
    ]


def too_little_memory() -> list[str]:
    """Whether a CPU run fits; on a machine with an accelerator verl's own limits apply."""
    from verl_stvg.patches import cpu_platform

    if not cpu_platform.wanted():
        return []
    available = psutil.virtual_memory().available
    if available >= CPU_RUN_BYTES:
        return []
    return [
        f"{available / GIB:.1f} GiB of memory are free and a CPU run takes about {CPU_RUN_BYTES / GIB:.0f} GiB; close "
        "other programs (`verl-stvg doctor` lists leftover Ray and vLLM processes)"
    ]
