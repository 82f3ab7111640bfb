"""What a recipe will take before anything is rented: tokens, memory, seconds per step, an epoch, disk.

Arithmetic only. What goes in are the recipe's values, the published shapes of the model, the sampling plans of the rows
(or of the paper's typical clip), and `Assumptions`, each of which says whether we measured it, and can be replaced. The
stages of a step can be taken from a run's metrics instead (`measured_stages`); that is worth more than any assumption.
"""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path

from omegaconf import DictConfig

from verl_stvg import moved
from verl_stvg.launch import capacity_warnings
from verl_stvg.launch.capacity_warnings import GB
from verl_stvg.launch.model_shape import Shape, shape_of
from verl_stvg.launch.row_sizes import Data
from verl_stvg.video.frame_rules import MERGE

__getattr__ = moved.names_of(
    __name__,
    {
        **dict.fromkeys(("CLIPS", "Clip", "read_rows"), "verl_stvg.launch.row_sizes"),
        **dict.fromkeys(("SHAPES", "Qwen3Shape"), "verl_stvg.launch.model_shape"),
    },
)

PASSES = 3
"""How often a step makes an actor's pixels: old log-probabilities, reference, update."""
STAGES = {
    "generation": "timing_s/gen",
    "old log-probabilities": "timing_s/old_log_prob",
    "reference": "timing_s/ref",
    "update": "timing_s/update_actor",
    "weights to vLLM": "timing_s/update_weights",
}
"""Stages of a step and verl's metric of each."""


def _given(value: float, unit: str, source: str) -> float:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """Numbers that neither recipe nor model nor rows give. ``measured`` ones were taken by us, on x86 cores."""

    peak_tflops: float = _given(312.0, "TFLOP/s", "assumption: an A100's data sheet, bf16")
    memory_tbs: float = _given(2.0, "TB/s", "assumption: an 80 GB A100's data sheet")
    mfu: float = _given(0.4, "share of peak", "assumption: forward and backward passes, prefill")
    memory_use: float = _given(0.6, "share of peak", "assumption: reading weights and KV cache while tokens are made")
    text_tokens: float = _given(250, "tokens", "assumption: the prompt without its video")
    answer_tokens: float = _given(
        150, "tokens", "assumption: mean answer with reasoning; Temporal-R1's figure: 100 to 115"
    )
    longest_answer: float = _given(3.0, "mean answers", "assumption: a step waits for the longest one")
    prefix_hits: float = _given(0.0, "share", "assumption: prefills that a group's earlier answers save")
    logit_bytes: float = _given(10, "bytes", "assumption: per token and vocabulary entry, with gradient")
    device_gb: float = _given(4.0, "GB", "assumption: CUDA, NCCL, fragmentation, sleeping vLLM")
    offload_gbs: float = _given(20.0, "GB/s per GPU", "assumption: PCIe 4, pinned memory")
    sync_gbs: float = _given(20.0, "GB/s per GPU", "assumption: gathering weights and handing them to vLLM")
    fixed_seconds: float = _given(5.0, "s per step", "assumption: queue, dispatch; verl polls every 2 s")
    decode_mpixels: float = _given(170.0, "Mpixel/s per core", "measured: PyAV, 480x360 and 1280x720 H.264")
    pixel_gbs: float = _given(0.75, "GB/s per core", "measured: float32 pixel_values from cached frames")

    @classmethod
    def of(cls, given: Mapping[str, float]) -> "Assumptions":
        """The assumptions with some of them replaced.

        Raises:
            ValueError: unknown name, or a value that is not over 0.
        """
        known = [one.name for one in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"no assumption {name!r}; they are {', '.join(known)}")
            if not (math.isfinite(value) and (value > 0 or (value == 0 and name in ("prefix_hits", "fixed_seconds")))):
                raise ValueError(f"assumption {name}={value} must be over 0")
        return replace(cls(), **given)

    def listed(self) -> list[tuple[Field, float]]:
        """Every assumption as a field (name, default, ``metadata`` with unit and source) and its value."""
        return [(one, getattr(self, one.name)) for one in fields(self)]


def measured_stages(metrics: Path) -> tuple[dict[str, float], float]:
    """Median seconds of each stage of a run, and tokens of a step, without the first step.

    Raises:
        ValueError: no such file, or fewer than two steps in it.
    """
    if not metrics.is_file():
        raise ValueError(f"{metrics}: no such file; it is metrics.jsonl in the folder of a run")
    records = [json.loads(line)["data"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "timing_s/step" in record][1:]
    if not steps:
        raise ValueError(f"{metrics}: two steps or more are needed, because the first one is not counted")
    stages = {
        stage: statistics.median(step[key] for step in steps if key in step)
        for stage, key in STAGES.items()
        if any(key in step for step in steps)
    }
    stages["everything else"] = statistics.median(step["timing_s/step"] for step in steps) - sum(stages.values())
    return stages, statistics.median(step["perf/total_num_tokens"] for step in steps)


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on some GPUs; all quantities by name, and what to look at before it is started.

    Attributes:
        tokens: of a prompt and a step.
        memory: GB per GPU, by what takes it, while the actor is updated and while vLLM answers; main memory per node.
        seconds: of a step, by stage.
        epoch: steps, hours, GPU hours.
        disk: GB of cache and checkpoint, core hours of the first decoding.
        warnings: each with a remedy.
    """

    tokens: dict[str, float]
    memory: dict[str, dict[str, float]]
    seconds: dict[str, float]
    epoch: dict[str, float]
    disk: dict[str, float]
    warnings: list[str]

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def plan(
    config: DictConfig,
    data: Data,
    hbm_gb: float,
    assumptions: Assumptions,
    measured: tuple[dict[str, float], float, int] | None = None,
    free_bytes: int | None = None,
) -> Plan:
    """Plan a composed recipe.

    Args:
        config: composed; the number of GPUs is ``trainer.n_gpus_per_node`` x ``trainer.nnodes``.
        data: its rows.
        hbm_gb: memory of a GPU.
        assumptions: the rest.
        measured: stages and tokens of a step as `measured_stages` gives them, and the GPUs they were taken on.
        free_bytes: on the disk of the frame cache, if known.

    Raises:
        ValueError: the model's shape is not known.
    """
    shape = shape_of(config.actor_rollout_ref.model.path)
    gpus = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes)
    rollout = config.actor_rollout_ref.rollout
    prompts = int(config.data.train_batch_size)
    sequences = prompts * int(rollout.n)
    prompt, longest = _prompt(shape, data, assumptions)
    answer = min(assumptions.answer_tokens, config.data.max_response_length)
    tokens = {
        "visual tokens of a prompt": data.tokens,
        "of the longest prompt": data.longest,
        "with text": prompt,
        "longest with text": longest,
        "data.max_prompt_length": config.data.max_prompt_length,
        "sequences of a step": sequences,
        "sequences that share a prompt in the update": _sharing(config, gpus, prompt, answer),
        "tokens of a step": sequences * (prompt + answer),
    }
    memory = _memory(config, shape, data, gpus, assumptions)
    seconds = _seconds(config, shape, data, gpus, assumptions)
    if measured:
        stages, seen, on = measured
        scale = tokens["tokens of a step"] / seen * on / gpus
        seconds = {stage: value * scale for stage, value in stages.items()}
    disk = {
        "frame cache, GB": data.frame_bytes / GB,
        "core hours to fill it": data.pixels / 1e6 / assumptions.decode_mpixels / 3600,
        "a checkpoint, GB": (4 * shape.params + 8 * _trained(config, shape)) / GB,
    }
    warnings = [
        *capacity_warnings.of_batches(config, data.rows, gpus),
        *capacity_warnings.of_prompts(config, longest),
        *capacity_warnings.of_memory(config, memory, hbm_gb),
        *capacity_warnings.of_cache(config, data, free_bytes),
    ]
    epoch = _epoch(config, data.rows // prompts, sum(seconds.values()), gpus)
    return Plan(tokens, memory, seconds, epoch, disk, warnings)


def _epoch(config: DictConfig, per_epoch: int, seconds: float, gpus: int) -> dict[str, float]:
    """Steps and hours of an epoch and of the run, from the steps of an epoch and the seconds of a step."""
    steps = config.trainer.total_training_steps or per_epoch * int(config.trainer.total_epochs)
    return {
        "steps of an epoch": per_epoch,
        "hours of an epoch": per_epoch * seconds / 3600,
        "GPU hours of an epoch": per_epoch * seconds * gpus / 3600,
        "steps of the run": steps,
        "hours of the run": steps * seconds / 3600,
        "GPU hours of the run": steps * seconds * gpus / 3600,
    }


def _prompt(shape: Shape, data: Data, given: Assumptions) -> tuple[float, float]:
    """Tokens of a prompt with its text: mean, longest."""
    mean = data.tokens + data.units * shape.unit_text + given.text_tokens
    return mean, data.longest + data.most_units * shape.unit_text + given.text_tokens


def _sharing(config: DictConfig, gpus: int, prompt: float, answer: float, budget: int | None = None) -> int:
    """Trajectories that compute their prompt together in a pass, 1 where the key is not set.

    Args:
        config: of the run.
        gpus: of the run.
        prompt: tokens of a prompt.
        answer: tokens of an answer.
        budget: tokens of a micro batch; default: those of the update.
    """
    section = config.actor_rollout_ref
    if not section.actor.get("use_prefix_grouper"):
        return 1
    from verl_stvg.training import sharing  # loads torch

    if not sharing.asked(section, config.get("distillation")):
        return 1
    together = section.actor.ppo_mini_batch_size * section.rollout.n // gpus
    fitting = ((budget or section.actor.ppo_max_token_len_per_gpu) - prompt) // answer
    return int(max(1, min(section.rollout.n, together, fitting)))


def _old_pass(config: DictConfig) -> bool:
    """Whether old log-probabilities take a pass of their own."""
    if not config.actor_rollout_ref.actor.get("use_prefix_grouper"):
        return True
    from verl_stvg.training.known_log_probs import why_kept  # loads torch

    return why_kept(config, config.data.train_batch_size * config.actor_rollout_ref.rollout.n) is not None


def _lora(config: DictConfig) -> int:
    return int(config.actor_rollout_ref.model.get("lora_rank") or 0)


def _trained(config: DictConfig, shape: Shape) -> int:
    """Parameters that have gradients."""
    if rank := _lora(config):
        kv = shape.kv_heads * shape.head_dim
        sides = 2 * (shape.hidden + shape.attended) + 2 * (shape.hidden + kv) + 3 * (shape.hidden + shape.intermediate)
        return shape.layers * rank * sides
    return shape.params - (shape.vision_params if config.actor_rollout_ref.actor.freeze_vision_tower else 0)


def _has_reference(config: DictConfig) -> bool:
    return bool(config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def _memory(config: DictConfig, shape: Shape, data: Data, gpus: int, given: Assumptions) -> dict[str, dict[str, float]]:
    """GB, by phase: what is on a GPU, and in the main memory of a node."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    trained, nodes = _trained(config, shape), int(config.trainer.nnodes)
    on_cpu = bool(actor.fsdp_config.offload_policy)
    micro = int(actor.ppo_micro_batch_size_per_gpu or 1)
    (mean, prompt), patches = _prompt(shape, data, given), data.longest * MERGE**2
    answer = min(given.answer_tokens * given.longest_answer, config.data.max_response_length)
    longest = micro * (prompt + answer)
    predicted = longest
    if (shared := _sharing(config, gpus, prompt, answer)) > 1:
        from verl_stvg.training.sharing import CHUNK  # loads torch

        micro, longest, predicted = 1, prompt + shared * answer, min(shared * answer, CHUNK)
    kept = 2 * longest * shape.hidden * shape.layers  # one input per layer
    inside = 2 * longest * (8 * shape.hidden + 3 * shape.intermediate)
    if not config.actor_rollout_ref.model.enable_gradient_checkpointing:
        inside *= shape.layers
    vision = 2 * micro * patches * shape.vision_hidden * (1 if actor.freeze_vision_tower else shape.vision_layers)
    whole = 2 * shape.embedding_params * (1 if shape.tied else 2) + 2 * 2 * shape.layer_params
    update = {
        "weights, 32 bits": 0 if on_cpu else 4 * shape.params / gpus,
        "gradients": 0 if on_cpu else 4 * trained / gpus,
        "optimizer": 0 if on_cpu else 8 * trained / gpus,
        "embeddings and two layers, whole": whole,
        "activations": kept + inside + vision,
        "logits": predicted * shape.vocab * given.logit_bytes,
        "pixels": 4 * micro * patches * shape.patch_values,
        "CUDA and the rest": given.device_gb * GB,
    }
    resident = 0.0
    if not on_cpu:
        resident += 0 if actor.fsdp_config.param_offload else 4 * shape.params / gpus
        resident += 0 if actor.fsdp_config.optimizer_offload else 8 * trained / gpus
    parallel = int(rollout.tensor_model_parallel_size)
    concurrent = math.ceil(config.data.train_batch_size * rollout.n * parallel / gpus)
    length = mean + given.answer_tokens
    answering = {
        "vLLM's weights, 16 bits": 2 * shape.params / parallel,
        "KV cache of a step's sequences": min(concurrent, rollout.max_num_seqs) * length * shape.cache_bytes / parallel,
        "of the trainer": resident,
        "CUDA and the rest": given.device_gb * GB,
    }
    main = {"reference": 4 * shape.params if _has_reference(config) and not _lora(config) else 0}
    if on_cpu or actor.fsdp_config.param_offload:
        main["weights"] = 4 * shape.params
    if on_cpu or actor.fsdp_config.optimizer_offload:
        main["optimizer"] = 8 * trained
    if on_cpu:
        main["gradients"] = 4 * trained
    main = {name: value / nodes for name, value in main.items()}
    phases = {"GPU, update": update, "GPU, answering": answering, "main memory of a node": main}
    return {phase: {name: value / GB for name, value in parts.items()} for phase, parts in phases.items()}


def _seconds(config: DictConfig, shape: Shape, data: Data, gpus: int, given: Assumptions) -> dict[str, float]:
    """Of a step, by stage; every stage runs on all GPUs, one after another (verl's sync trainer)."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    sequences = config.data.train_batch_size * rollout.n
    prompt, _ = _prompt(shape, data, given)
    answer = min(given.answer_tokens, config.data.max_response_length)
    longest = min(answer * given.longest_answer, config.data.max_response_length)
    patches = data.tokens * MERGE**2
    speed = gpus * given.peak_tflops * 1e12 * given.mfu
    first, vision = shape.text_flops(prompt), shape.vision_flops(patches, data.unit)
    prefill = (first + vision) * sequences * (1 - given.prefix_hits) / speed

    def each(role) -> tuple[float, float]:
        """Operations of text and vision that one sequence takes in a pass without gradients."""
        shared = _sharing(config, gpus, prompt, answer, role.log_prob_max_token_len_per_gpu)
        return shape.text_flops(prompt + answer) - first * (1 - 1 / shared), vision / shared

    at_once = sequences * int(rollout.tensor_model_parallel_size) / gpus
    per_token = 2 * (shape.params - shape.vision_params) + at_once * prompt * shape.cache_bytes
    per_token /= int(rollout.tensor_model_parallel_size)
    decode = longest * per_token / (given.memory_tbs * 1e12 * given.memory_use)
    again = 1 if config.actor_rollout_ref.model.enable_gradient_checkpointing else 0
    backward = 1 if _lora(config) else 2
    still = actor.freeze_vision_tower or _lora(config)
    shared = _sharing(config, gpus, prompt, answer)
    update = (shape.text_flops(prompt + answer) - first * (1 - 1 / shared)) * (1 + again + backward)
    update += vision / shared * (1 if still else 1 + again + backward)
    trained = _trained(config, shape)
    moved = 0.0
    if actor.fsdp_config.offload_policy:
        moved = 2 * 4 * shape.params + 4 * trained
    else:
        moved += 2 * 4 * shape.params if actor.fsdp_config.param_offload else 0
        moved += 2 * 8 * trained if actor.fsdp_config.optimizer_offload else 0
    made = sequences * PASSES * patches * 4 * shape.patch_values
    return {
        "generation: prefill": prefill,
        "generation: answers": decode,
        "old log-probabilities": sequences * sum(each(rollout)) / speed if _old_pass(config) else 0.0,
        "reference": sequences * sum(each(config.actor_rollout_ref.ref)) / speed if _has_reference(config) else 0.0,
        "update": sequences * update * int(actor.ppo_epochs) / speed,
        "pixels on the CPU": made / (given.pixel_gbs * GB * gpus),
        "offloading": moved / gpus / (given.offload_gbs * GB),
        "weights to vLLM": 2 * shape.params / (given.sync_gbs * GB),
        "everything else": given.fixed_seconds,
    }
