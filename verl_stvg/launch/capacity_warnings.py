"""What to look at before a recipe is started on some GPUs: one sentence for each finding, with its remedy."""

import math
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from verl_stvg.launch.row_sizes import Data

GB = 10**9


def of_batches(config: DictConfig, rows: int, gpus: int) -> list[str]:
    """Batches, rows and GPUs that do not divide as verl divides them.

    Args:
        config: composed.
        rows: of the recipe.
        gpus: of all nodes.
    """
    from verl_stvg.launch.key_checks import indivisible_batches

    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    found = list(indivisible_batches(config))
    sequences = config.data.train_batch_size * rollout.n
    if sequences % gpus:
        found.append(
            f"{sequences} sequences of a step do not divide over {gpus} GPUs; set data.train_batch_size (and "
            f"actor.ppo_mini_batch_size) so that x {rollout.n} is a multiple of {gpus}"
        )
    if config.data.train_batch_size < actor.ppo_mini_batch_size:
        found.append(
            f"data.train_batch_size={config.data.train_batch_size} is under actor.ppo_mini_batch_size="
            f"{actor.ppo_mini_batch_size}; lower the latter"
        )
    parallel = int(rollout.tensor_model_parallel_size)
    if gpus % parallel:
        found.append(f"rollout.tensor_model_parallel_size={parallel} does not divide {gpus} GPUs; choose a divisor")
    if rows < config.data.train_batch_size:
        found.append(f"{rows} rows do not fill one batch of {config.data.train_batch_size}; lower the batch")
    return found


def of_prompts(config: DictConfig, longest: float) -> list[str]:
    """Prompts that are too long for the recipe or the engine.

    Args:
        config: composed.
        longest: tokens of the longest prompt, with its text.
    """
    found = []
    if longest > config.data.max_prompt_length:
        found.append(
            f"the longest prompt has about {longest:.0f} tokens, over data.max_prompt_length="
            f"{config.data.max_prompt_length}, and verl raises; set it to {_round_up(longest)}, or "
            "lower total_pixels of the rows"
        )
    room = config.actor_rollout_ref.rollout.max_model_len
    if room and longest + config.data.max_response_length > room:
        found.append(
            f"prompt and answer may take {longest + config.data.max_response_length:.0f} tokens, "
            f"over rollout.max_model_len={room}; raise it"
        )
    return found


def of_memory(config: DictConfig, memory: Mapping[str, Mapping[str, float]], hbm_gb: float) -> list[str]:
    """Phases of a step that take more than a GPU has.

    Args:
        config: composed.
        memory: GB by phase and by what takes it, see `verl_stvg.launch.capacity.Plan`.
        hbm_gb: memory of a GPU.
    """
    rollout, found = config.actor_rollout_ref.rollout, []
    parts = memory["GPU, update"]
    update = sum(parts.values())
    if update > hbm_gb:
        largest = max(parts, key=lambda part: parts[part])
        found.append(
            f"the update takes about {update:.0f} GB of {hbm_gb:.0f} per GPU, most of it {largest}; use more GPUs, "
            "+variant=one_gpu (weights in main memory), +variant=lora, or a smaller micro batch"
        )
    share = rollout.gpu_memory_utilization * hbm_gb
    answering = memory["GPU, answering"]
    weights, wanted = answering["vLLM's weights, 16 bits"], answering["KV cache of a step's sequences"]
    if share < weights + 2:
        found.append(
            f"vLLM's share of a GPU ({share:.0f} GB) does not hold the weights ({weights:.0f} GB); raise "
            "rollout.gpu_memory_utilization or rollout.tensor_model_parallel_size"
        )
    elif share < weights + wanted:
        found.append(
            f"vLLM's share of a GPU ({share:.0f} GB) holds weights and {(share - weights) / wanted:.0%} of a step's KV "
            "cache; answers queue up: raise rollout.gpu_memory_utilization"
        )
    if share + answering["of the trainer"] + answering["CUDA and the rest"] > hbm_gb:
        found.append(
            f"while vLLM answers, {share:.0f} GB of it and {answering['of the trainer']:.0f} GB of the trainer meet on "
            f"{hbm_gb:.0f} GB; set actor.fsdp_config.param_offload and optimizer_offload, or lower "
            "rollout.gpu_memory_utilization"
        )
    return found


def of_cache(config: DictConfig, data: Data, free_bytes: int | None) -> list[str]:
    """A frame cache that its bound or its disk does not hold.

    Args:
        config: composed.
        data: its rows.
        free_bytes: on the disk of the frame cache, if known.
    """
    found, needed = [], f"the frame cache needs {data.frame_bytes / GB:.0f} GB"
    bound = OmegaConf.select(config, "data.video_cache.max_gb")
    if bound is not None and bound < data.frame_bytes / GB:
        found.append(
            f"{needed} and data.video_cache.max_gb is {bound}; frames "
            "would be removed just before they are needed again: raise it"
        )
    if free_bytes is not None and free_bytes < data.frame_bytes:
        found.append(
            f"{needed} and its disk here has {free_bytes / GB:.0f} GB free; set data.video_cache.folder to a larger one"
        )
    return found


def _round_up(tokens: float) -> int:
    return math.ceil(tokens / 1024) * 1024
