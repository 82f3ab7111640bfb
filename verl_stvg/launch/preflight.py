"""Checks of a run's configuration before anything is started, so that a mistake costs seconds and ends in one message.

Runs inside verl's own ``validate_config``, on the driver, for every run whose dataset class is ours: keys, values and
names (`verl_stvg.launch.config_checks`), paths, Ray's CPUs and memory first, then every row (its video, the length of
its prompt, its ground truth). Rows that passed here are not decoded a second time when verl builds its dataset.
"""

import difflib
import importlib.util
import inspect
import json
import logging
import os
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_stvg.base.lock import write_whole
from verl_stvg.launch import lifeline, nodes, phases
from verl_stvg.launch.config_checks import (
    REWARD_OPTIONS,
    clip_ratio_that_is_not_read,
    defaults,
    engine_without_ban,
    is_our_reward,
    kernels_without_logits,
    other_kinds,
    row_files,
    rows_beyond,
    too_few_rows,
    unknown_names,
    unknown_reward_options,
    unusable_cache,
    unusable_files,
)
from verl_stvg.training.resume import too_little_disk, unusable_checkpoint
from verl_stvg.workers import cluster_cpus

logger = logging.getLogger(__name__)

GIB = 2**30
CPU_RUN_BYTES = 9 * GIB
"""Memory a run with `+variant=tiny` takes beyond an idle machine: measured 9 GB; larger models take more."""
BASE_CPUS = 4
"""Logical CPUs the trainer's own actors ask Ray for, besides storage units, agent-loop and reward workers."""
CPUS_OF_A_GPU = 3
"""Logical CPUs that verl asks Ray for with each GPU, on the same node."""
OPEN_KEYS = (
    "ray_kwargs.ray_init",
    "ray_kwargs.",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.rollout.engine_kwargs",
    "actor_rollout_ref.rollout.agent.",
    "reward.custom_reward_function.reward_kwargs",
    "data.mm_processor_kwargs",
    "data.apply_chat_template_kwargs",
    "trainer.v1.sampler.sampler_kwargs",
)
"""Prefixes under which verl takes any key."""
ADDED_KEYS = {
    "model_engine",
    "algorithm.exact_zero_advantage",
    "data.check_videos",
    "data.curriculum",
    "data.draw",
    "data.filter_unusable_videos",
    "data.fit",
    "data.rollouts",
    "data.video_cache",
    "data.video_root",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision",
}
"""Keys outside verl's yaml that verl or verl_stvg reads."""


class PreflightError(ValueError):
    """The run cannot succeed as configured; one line for each cause, with its remedy."""


def install(verl_config) -> None:
    """Let verl's ``validate_config`` run `check` first, and watch the run that follows."""
    stock = verl_config.validate_config

    def validate_config(config, *args, **kwargs):
        if is_ours(config) and not in_actor():  # the older trainer validates again, in its own process
            phases.begin("checking the configuration and every row")
            check(config)
            phases.begin("starting Ray")
            lifeline.start()
        return stock(config, *args, **kwargs)

    verl_config.validate_config = validate_config


def in_actor() -> bool:
    """Whether this process is one that Ray started for a run."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def is_ours(config: DictConfig) -> bool:
    """Whether a run uses verl_stvg's dataset class."""
    return "verl_stvg" in str(OmegaConf.select(config, "data.custom_cls.path") or "")


def check(config: DictConfig) -> None:
    """Raise `PreflightError` that lists everything wrong with the configuration and this machine."""
    of_another_kind = other_kinds(config)
    problems = [*unknown_keys(config), *of_another_kind]
    if not of_another_kind:  # the other checks reckon with these values
        problems += [
            *unknown_names(config),
            *unknown_reward_options(config),
            *unusable_files(config),
            *too_few_rows(config),
            *indivisible_batches(config),
            *groups_of_one(config),
            *other_prompts(config),
            *longer_than_the_rollout(config),
            *too_few_gpus(config),
            *attention_that_cannot_run(config),
            *kernels_without_logits(config),
            *unusable_cache(config),
            *cache_without_manager(config),
            *too_few_cpus(config),
            *too_little_memory(),
            *unusable_checkpoint(config),
            *too_little_disk(config),
        ]
    if problems := problems or differing_nodes(config):
        raise PreflightError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
    for warning in (*clip_ratio_that_is_not_read(config), *engine_without_ban(config), *rows_beyond(config)):
        logger.warning("%s", warning)
    check_rows(config)


def check_rows(config: DictConfig) -> None:
    """Build the datasets once, which checks every video and prompt, then check every ground truth against its reward.

    Raises:
        RowError: names the file, the first bad rows and the remedy.
    """
    from verl.utils import hf_processor, hf_tokenizer
    from verl.utils.import_utils import load_extern_object

    from reward_fns.registry import find_recipe
    from verl_stvg.launch.best_answer import BestAnswers
    from verl_stvg.rows.chat_template import settle
    from verl_stvg.rows.row import RowError, row_uid
    from verl_stvg.video.frame_rules import MERGE, PATCH, QWEN3_PATCH
    from verl_stvg.video.positions import writes_times

    model = config.actor_rollout_ref.model.get("tokenizer_path") or config.actor_rollout_ref.model.path
    tokenizer, processor = hf_tokenizer(model), hf_processor(model)
    if processor is None:
        raise PreflightError(f"{model} has no processor of Qwen2.5-VL or Qwen3-VL that loads; it cannot read video")
    side = processor.video_processor.patch_size * processor.video_processor.merge_size
    if side != (QWEN3_PATCH if writes_times(processor) else PATCH) * MERGE:
        raise PreflightError(
            f"{model} makes one token of {side}x{side} pixels, and sampling plans are for {PATCH * MERGE} (Qwen2-VL "
            f"and Qwen2.5-VL) and {QWEN3_PATCH * MERGE} (Qwen3-VL); train one of these"
        )
    settle(processor, config.actor_rollout_ref.model.get("custom_chat_template"))
    dataset_class = load_extern_object(config.data.custom_cls.path, config.data.custom_cls.name)
    options = OmegaConf.select(config, "reward.custom_reward_function.reward_kwargs") or OmegaConf.create()
    options = OmegaConf.to_container(options, resolve=True)
    for files, limit in (("train_files", "train_max_samples"), ("val_files", "val_max_samples")):
        dataset = dataset_class(config.data[files], tokenizer, config.data, processor, config.data.get(limit, -1))
        if files == "train_files" and (problems := too_few_rows(config, len(dataset))):
            raise RowError(f"{config.data[files]}: {problems[0]}")
        wrong, best = [], BestAnswers(options, dataset.opened)
        for index, row in enumerate(dataset.dataframe if is_our_reward(config) else ()):
            try:
                recipe = find_recipe(row["data_source"], options.get("recipe"))
                recipe.check(row["reward_model"]["ground_truth"], row_uid(row))
            except ValueError as error:
                wrong.append(f"  row {index}: {error}")
                continue
            try:
                best.add(index, row, row_uid(row))
            except ValueError as error:
                raise RowError(f"{config.data[files]}: row {index}: {REWARD_OPTIONS}: {error}") from error
        if wrong:
            raise RowError(
                f"{config.data[files]}: {len(wrong)} of {len(dataset.dataframe)} rows have no usable ground truth\n"
                + "\n".join(wrong[:5])
            )
        if best.unpaid:
            lines = "\n".join(f"  {problem}" for problem in best.unpaid.values())
            raise RowError(f"{config.data[files]}: no answer can earn all of the reward\n{lines}")
        if overlong := best.overlong(tokenizer, int(config.data.max_response_length)):
            if files == "train_files":
                raise RowError(f"{config.data[files]}: {overlong}")
            logger.warning("%s: %s", config.data[files], overlong)
    widen_the_rollout(config)
    record_fit(config)
    with open_dict(config):
        config.data.check_videos = "exist"


def widen_the_rollout(config: DictConfig) -> None:
    """Raise vLLM's window to prompts that a fit has made longer than it was.

    Raises:
        PreflightError: the model reads fewer tokens.
    """
    from transformers import AutoConfig

    if not OmegaConf.select(config, "data.fit") or not (problems := longer_than_the_rollout(config)):
        return
    needed = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    most = AutoConfig.from_pretrained(config.actor_rollout_ref.model.path).get_text_config().max_position_embeddings
    if needed > most:
        raise PreflightError(f"{problems[0]}, but the model reads {most} tokens: lower data.fit.total_pixels")
    logger.info("actor_rollout_ref.rollout.max_model_len is raised to %d, for prompt and answer", needed)
    with open_dict(config):
        config.actor_rollout_ref.rollout.max_model_len = needed


def record_fit(config: DictConfig) -> None:
    """Write the fit into the launcher's ``run.json``, from which evaluation takes it."""
    from verl_stvg.rows.settings import fit_of

    fit, metrics = fit_of(config.data), os.environ.get("VERL_FILE_LOGGER_PATH")
    path = metrics and Path(metrics).with_name("run.json")
    if path and path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        record.pop("fit", None)  # of an earlier start
        write_whole(path, json.dumps(record | ({"fit": fit} if fit else {}), indent=2))


def cache_without_manager(config: DictConfig) -> list[str]:
    """The frame cache hands out keys, and only our manager's workers can read them; only they draw masks."""
    from verl_stvg.rows.settings import frame_store
    from verl_stvg.training.curriculum import Curriculum

    manager = str(OmegaConf.select(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class") or "")
    masked = Curriculum.of(config.data) is not None
    if "verl_stvg" in manager or not (masked or frame_store(config.data)):
        return []
    key = "data.curriculum" if masked else "data.video_cache"
    return [
        f"{key} needs actor_rollout_ref.rollout.agent.agent_loop_manager_class="
        "verl_stvg.training.manager.VideoGroundingLoopManager; set it, or set enabled=false there"
    ]


def unknown_keys(config: DictConfig) -> list[str]:
    """Keys of the composed configuration that neither verl's yaml nor verl_stvg knows."""
    known = _leaves(defaults())
    groups = {key.rsplit(".", i)[0] for key in known for i in range(1, key.count(".") + 1)}
    problems = []
    for key in sorted(_leaves(config) - known):
        parent = key
        while "." in parent and parent not in ADDED_KEYS:
            parent = parent.rsplit(".", 1)[0]
        if parent in ADDED_KEYS or key in ADDED_KEYS or key.startswith(OPEN_KEYS) or key in groups:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        problems.append(f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "; remove it"))
    return problems


def _leaves(config, prefix: str = "") -> set[str]:
    found = set()
    for key in config:
        name = f"{prefix}{key}"
        missing = OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key)
        value = None if missing else config[key]
        if isinstance(value, DictConfig) and len(value):
            found |= _leaves(value, name + ".")
        else:
            found.add(name)
    return found


def indivisible_batches(config: DictConfig) -> list[str]:
    """Micro batches that do not divide what a GPU is given in a step; verl asserts it in the workers, minutes later."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if actor.use_dynamic_bsz:
        return []
    gpus = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes)
    batch, mini = config.data.train_batch_size * rollout.n, actor.ppo_mini_batch_size * rollout.n
    problems = []
    for total, key in (
        (mini, "actor.ppo_micro_batch_size_per_gpu"),
        (batch, "ref.log_prob_micro_batch_size_per_gpu"),
        (batch, "rollout.log_prob_micro_batch_size_per_gpu"),
    ):
        micro = OmegaConf.select(config.actor_rollout_ref, key)
        if micro and (total % gpus or (total // gpus) % micro):
            problems.append(
                f"actor_rollout_ref.{key}={micro} does not divide the {total} sequences of a step over {gpus} GPU(s); "
                "choose a divisor, or set actor.use_dynamic_bsz"
            )
    return problems


def groups_of_one(config: DictConfig) -> list[str]:
    """Whether each prompt has one answer only, where the advantage is taken within the answers to a prompt.

    verl 0.9.1 then takes the reward itself, so that every answer is reinforced, wrong ones too; or 0, for some.
    """
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    if config.trainer.get("val_only"):
        return []
    name, answers = str(config.algorithm.adv_estimator), int(config.actor_rollout_ref.rollout.n)
    estimator = ADV_ESTIMATOR_REGISTRY.get(name)
    if answers > 1 or estimator is None or "index" not in inspect.signature(estimator).parameters:
        return []
    return [
        f"actor_rollout_ref.rollout.n={answers} with algorithm.adv_estimator={name}: the advantage compares the "
        "answers to a prompt, and one answer has none to be compared with (verl would reinforce it whatever its "
        "reward); set rollout.n to at least 2"
    ]


def other_prompts(config: DictConfig) -> list[str]:
    """Keys that would change a prompt in training where the checks, evaluation and data selection do not know them."""
    from verl_stvg.rows.settings import template_options
    from verl_stvg.training.agent_loop import AGENT_NAME

    problems = []
    if given := OmegaConf.select(config, "data.mm_processor_kwargs"):
        problems.append(
            f"data.mm_processor_kwargs={given}: the frames of a video, their size and their times follow from its row; "
            "remove it, and set data.fit.fps or data.fit.max_pixels, or build the rows with others"
        )
    if config.actor_rollout_ref.rollout.agent.default_agent_loop == AGENT_NAME:
        for key in ("tool_config_path", "function_tool_path"):
            if OmegaConf.select(config, f"data.{key}"):
                problems.append(
                    f"data.{key}: the agent loop {AGENT_NAME} has one turn and calls no tools; remove it, or show "
                    "tools in the prompt with data.apply_chat_template_kwargs.tools"
                )
    try:
        template_options(config.data)
    except ValueError as error:
        problems.append(f"data.apply_chat_template_kwargs: {error}")
    return problems


def longer_than_the_rollout(config: DictConfig) -> list[str]:
    """Whether the longest prompt and the longest answer fit into vLLM's window together."""
    window = OmegaConf.select(config, "actor_rollout_ref.rollout.max_model_len")
    needed = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    if not window or int(window) >= needed:
        return []
    return [
        f"actor_rollout_ref.rollout.max_model_len={window} is less than data.max_prompt_length + "
        f"data.max_response_length = {needed}; raise it to {needed}"
    ]


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
    from verl_stvg.rows.settings import frame_store

    address = cluster_address(config)
    if address is None:
        return []
    paths, store = files_of_a_run(config), frame_store(config.data)
    shared = [store.folder] if store else []
    if int(config.trainer.save_freq) > 0:
        shared.append(config.trainer.default_local_dir)
    environment = OmegaConf.to_container(OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env") or DictConfig({}))
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
    from verl_stvg.rows.files import open_rows
    from verl_stvg.rows.row import entries_of, root_of

    paths = []
    for _, file in row_files(config):
        paths.append(file)
        with open_rows(file) as table:
            if "videos" not in table.schema_arrow.names or not table.metadata.num_rows:
                continue
            root = root_of(Path(file).expanduser().resolve(), OmegaConf.select(config, "data.video_root"))
            videos = next(table.iter_batches(1, columns=["videos"])).to_pylist()[0]["videos"]
            paths += [entry["video"] for entry in entries_of(videos, root, f"{file}: row 0")[:1]]
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
        offered = int(OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus") or os.cpu_count())
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
