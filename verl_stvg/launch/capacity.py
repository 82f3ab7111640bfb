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

from omegaconf import DictConfig, OmegaConf

from verl_stvg.rows.row import FACTS, PLAN_KEYS
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.plan import MERGE, PATCH, QWEN3_PATCH, TEMPORAL_PATCH, SamplingPlan, plan_video

GB = 10**9
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


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL, as its configuration has them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    vision_intermediate: int
    vision_hidden: int = 1280
    vision_layers: int = 32
    vision_full: int = 4  # layers whose attention spans a temporal unit
    window: int = 64  # patches of the others' windows
    patch: int = PATCH
    unit_text: int = 0  # tokens of text that the model's processor writes around a temporal unit

    @property
    def head_dim(self) -> int:
        """Of an attention head."""
        return self.hidden // self.heads

    @property
    def attended(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def layer_params(self) -> int:
        """Of one layer of the language model."""
        kv = self.kv_heads * self.head_dim
        attention = 2 * self.hidden**2 + 2 * self.hidden * kv + self.hidden + 2 * kv
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embedding_params(self) -> int:
        """Of the token embedding; the output layer has as many, unless it is the same."""
        return self.vocab * self.hidden

    @property
    def block_params(self) -> int:
        """Of the vision tower's blocks and patch embedding."""
        d, i = self.vision_hidden, self.vision_intermediate
        block = 4 * d * d + 4 * d + 3 * d * i + 2 * i + d + 2 * d
        return self.vision_layers * block + self.patch_values * d

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return 3 * TEMPORAL_PATCH * self.patch**2

    @property
    def merger_params(self) -> int:
        """Of the projection from patches to tokens."""
        wide = MERGE**2 * self.vision_hidden
        return self.vision_hidden + wide * wide + wide + wide * self.hidden + self.hidden

    @property
    def vision_params(self) -> int:
        """What ``actor.freeze_vision_tower`` freezes."""
        return self.block_params + self.merger_params

    @property
    def params(self) -> int:
        """Of the whole model."""
        embeddings = self.embedding_params * (1 if self.tied else 2)
        return self.layers * self.layer_params + self.hidden + embeddings + self.vision_params

    def text_flops(self, tokens: float) -> float:
        """Floating-point operations of one forward pass of the language model over one sequence."""
        dense = 2 * (self.layers * self.layer_params + self.embedding_params) * tokens
        return dense + 2 * self.layers * tokens**2 * self.attended  # causal: half of all pairs

    def vision_flops(self, patches: float, unit: float) -> float:
        """The same of the vision tower.

        Args:
            patches: of the video.
            unit: patches of one temporal unit.
        """
        spans = (self.vision_layers - self.vision_full) * min(self.window, unit) + self.vision_full * unit
        dense = 2 * self.block_params + 2 * self.merger_params / MERGE**2
        return patches * (dense + 4 * self.vision_hidden * spans)

    @property
    def cache_bytes(self) -> int:
        """Of vLLM's KV cache for one token, 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Qwen3Shape(Shape):
    """The same of a Qwen3-VL without experts: heads of a size of their own, a tower without windows, deepstack."""

    head_dim: int = 128
    patch: int = QWEN3_PATCH
    unit_text: int = 9  # "<12.3 seconds>" and two marks, in Qwen's tokenizer
    deepstack: int = 3  # layers of the tower that are merged too
    places: int = 2304  # learned positions of the tower

    @property
    def layer_params(self) -> int:
        """Of one layer of the language model."""
        attention = 2 * self.hidden * (self.attended + self.kv_heads * self.head_dim) + 2 * self.head_dim
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def block_params(self) -> int:
        """Of the vision tower's blocks, patch embedding and positions."""
        d, i = self.vision_hidden, self.vision_intermediate
        block = 4 * d * d + 4 * d + 2 * d * i + i + d + 4 * d
        return self.vision_layers * block + self.patch_values * d + d + self.places * d

    @property
    def merger_params(self) -> int:
        """Of the projections from patches to tokens."""
        wide = MERGE**2 * self.vision_hidden
        norms = 2 * self.vision_hidden + self.deepstack * 2 * wide
        return (1 + self.deepstack) * (wide * wide + wide + wide * self.hidden + self.hidden) + norms


SHAPES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Shape(2048, 36, 16, 2, 11008, 151936, True, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(3584, 28, 28, 4, 18944, 152064, False, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": Shape(5120, 64, 40, 8, 27648, 152064, False, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": Shape(8192, 80, 64, 8, 29568, 152064, False, 3456),
    "Qwen/Qwen3-VL-4B-Instruct": Qwen3Shape(2560, 36, 32, 8, 9728, 151936, True, 4096, 1024, 24, 24),
    "Qwen/Qwen3-VL-8B-Instruct": Qwen3Shape(4096, 36, 32, 8, 12288, 151936, False, 4304, 1152, 27, 27),
}
"""From the configurations that are published with the weights."""


def shape_of(model: str) -> Shape:
    """The shape of a model: published, or of the ``config.json`` in a folder.

    Raises:
        ValueError: neither is there, or it is no Qwen2.5-VL and no Qwen3-VL.
    """
    if model in SHAPES:
        return SHAPES[model]
    path = Path(model).expanduser() / "config.json"
    if not path.is_file():
        raise ValueError(
            f"actor_rollout_ref.model.path={model}: its shape is not known here; give a folder with config.json, or "
            f"one of {', '.join(SHAPES)}"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("model_type") not in ("qwen2_5_vl", "qwen3_vl"):
        raise ValueError(f"{path}: model_type is {found.get('model_type')}; this planner knows qwen2_5_vl and qwen3_vl")
    text, vision = found.get("text_config") or found, found["vision_config"]
    common = {
        "hidden": text["hidden_size"],
        "layers": text["num_hidden_layers"],
        "heads": text["num_attention_heads"],
        "kv_heads": text["num_key_value_heads"],
        "intermediate": text["intermediate_size"],
        "vocab": text["vocab_size"],
        "tied": bool(found.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        "vision_intermediate": vision["intermediate_size"],
        "vision_hidden": vision["hidden_size"],
        "vision_layers": vision["depth"],
    }
    if found["model_type"] == "qwen3_vl":
        return Qwen3Shape(
            **common,
            vision_full=vision["depth"],
            head_dim=text["head_dim"],
            deepstack=len(vision["deepstack_visual_indexes"]),
            places=vision["num_position_embeddings"],
        )
    full, window = len(vision["fullatt_block_indexes"]), (vision["window_size"] // PATCH) ** 2
    return Shape(**common, vision_full=full, window=window)


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


@dataclass(frozen=True)
class Data:
    """What the rows of a recipe are made of.

    Attributes:
        rows: prompts.
        videos: distinct pairs of video and plan.
        tokens: visual tokens of a prompt, mean.
        longest: visual tokens of the longest prompt.
        units: temporal units of a prompt, mean.
        most_units: of the longest prompt.
        unit: patches of a temporal unit, mean.
        frame_bytes: of all distinct frames, in the cache.
        pixels: decoded pixels of all videos, whole files.
        source: where these numbers come from.
    """

    rows: int
    videos: int
    tokens: float
    longest: int
    units: float
    most_units: int
    unit: float
    frame_bytes: int
    pixels: float
    source: str


@dataclass(frozen=True)
class Clip:
    """The typical clip of a paper's training set, for plans without rows."""

    rows: int
    videos: int
    seconds: float
    width: int
    height: int
    fps: float
    sampling: Mapping[str, object]
    source: str

    def data(self, patch: int = PATCH) -> Data:
        """As if all rows were this clip; ``patch`` is the model's."""
        frames = round(self.seconds * self.fps)
        plan = plan_video(frames, self.fps, self.width, self.height, **self.sampling, patch=patch)
        pixels = self.videos * frames * self.width * self.height
        return Data(
            self.rows,
            self.videos,
            plan.num_tokens,
            plan.num_tokens,
            plan.num_units,
            plan.num_units,
            _unit(plan),
            self.videos * _bytes(plan),
            pixels,
            self.source,
        )


def _sampling(tokens: int, least: int) -> dict[str, object]:
    area = (PATCH * MERGE) ** 2
    return {"rule": "qwen_vl_utils", "min_pixels": least * area, "total_pixels": tokens * area}


CLIPS = {
    "stvg_r1": Clip(10131, 10131, 20, 1280, 720, 30, _sampling(2048, 16), "HC-STVG v2, train: clips of 20 s"),
    "time_r1": Clip(2500, 2475, 147, 640, 360, 30, _sampling(3584, 16), "TimeRFT: 147 s on average"),
    "temporal_r1": Clip(12404, 5338, 30, 480, 360, 30, _sampling(2048, 4), "Charades-STA, train: clips of 30 s"),
    "videotg_r1": Clip(21000, 21000, 120, 640, 360, 30, _sampling(3584, 16), "a tenth of 210,000 rows; 120 s is ours"),
}  # fmt: skip
"""By recipe; sizes of frames and rates are typical ones, and ours."""


def _unit(plan: SamplingPlan) -> int:
    _, height, width = plan.grid_thw
    return height * width


def _bytes(plan: SamplingPlan) -> int:
    return 3 * plan.num_frames * plan.height * plan.width + 4096


def read_rows(files: list[Path], patch: int = PATCH, fit: Mapping[str, float | str] | None = None) -> Data:
    """What rows that were built with a look into their videos are made of.

    Args:
        files: of the rows.
        patch: of the model.
        fit: keys of the plan in place of those of the rows, see `verl_stvg.rows.fit`.

    Raises:
        ValueError: a file is missing or empty, or rows lack size and rate of their videos, or have one that is none.
    """
    from verl_stvg.rows import files as row_files

    plans, tokens, sizes, pixels = {}, [], [], {}
    for file in files:
        for row in row_files.read_rows(file, None, ("videos", "extra_info"), fit):
            total, units, grids = 0, 0, []
            for video in row.entries:
                size = [row.extra.get(name) for name in FACTS]
                if None in size:
                    raise ValueError(
                        f"{row.where} does not say size and rate of {video['video']}; build the rows without "
                        "--no-probe, or plan without rows"
                    )
                chosen = {key: video[key] for key in PLAN_KEYS if key in video}
                key = (video["video"], tuple(sorted(chosen.items())))
                if key not in plans:
                    info = row.info or VideoInfo(*size, end=row.extra.get("file_end"))
                    plans[key] = plan_video(*size, **chosen, patch=patch, clock=info.clock)
                    pixels[video["video"]] = size[0] * size[2] * size[3]
                total += plans[key].num_tokens
                units += plans[key].num_units
                grids.append(_unit(plans[key]))
            tokens.append((total, units))
            sizes.append(statistics.fmean(grids) if grids else 0)
    if not tokens:
        raise ValueError(f"{', '.join(map(str, files))}: no rows; build them again")
    return Data(
        rows=len(tokens),
        videos=len(plans),
        tokens=statistics.fmean(total for total, _ in tokens),
        longest=max(tokens)[0],
        units=statistics.fmean(units for _, units in tokens),
        most_units=max(tokens)[1],
        unit=statistics.fmean(sizes),
        frame_bytes=sum(map(_bytes, plans.values())),
        pixels=sum(pixels.values()),
        source=", ".join(map(str, files)),
    )


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
        "tokens of a step": sequences * (prompt + answer),
    }
    memory = _memory(config, shape, data, gpus, assumptions)
    seconds = _seconds(config, shape, data, gpus, assumptions)
    if measured:
        stages, seen, on = measured
        scale = tokens["tokens of a step"] / seen * on / gpus
        seconds = {stage: value * scale for stage, value in stages.items()}
    step = sum(seconds.values())
    per_epoch = data.rows // prompts
    steps = config.trainer.total_training_steps or per_epoch * int(config.trainer.total_epochs)
    epoch = {
        "steps of an epoch": per_epoch,
        "hours of an epoch": per_epoch * step / 3600,
        "GPU hours of an epoch": per_epoch * step * gpus / 3600,
        "steps of the run": steps,
        "hours of the run": steps * step / 3600,
        "GPU hours of the run": steps * step * gpus / 3600,
    }
    disk = {
        "frame cache, GB": data.frame_bytes / GB,
        "core hours to fill it": data.pixels / 1e6 / assumptions.decode_mpixels / 3600,
        "a checkpoint, GB": (4 * shape.params + 8 * _trained(config, shape)) / GB,
    }
    warnings = _warnings(config, shape, data, gpus, hbm_gb, tokens, memory, disk, free_bytes)
    return Plan(tokens, memory, seconds, epoch, disk, warnings)


def _prompt(shape: Shape, data: Data, given: Assumptions) -> tuple[float, float]:
    """Tokens of a prompt with its text: mean, longest."""
    mean = data.tokens + data.units * shape.unit_text + given.text_tokens
    return mean, data.longest + data.most_units * shape.unit_text + given.text_tokens


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
    longest = micro * (prompt + min(given.answer_tokens * given.longest_answer, config.data.max_response_length))
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
        "logits": longest * shape.vocab * given.logit_bytes,
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
    text, vision = shape.text_flops(prompt + answer), shape.vision_flops(patches, data.unit)
    prefill = (shape.text_flops(prompt) + vision) * sequences * (1 - given.prefix_hits) / speed
    at_once = sequences * int(rollout.tensor_model_parallel_size) / gpus
    per_token = 2 * (shape.params - shape.vision_params) + at_once * prompt * shape.cache_bytes
    per_token /= int(rollout.tensor_model_parallel_size)
    decode = longest * per_token / (given.memory_tbs * 1e12 * given.memory_use)
    again = 1 if config.actor_rollout_ref.model.enable_gradient_checkpointing else 0
    backward = 1 if _lora(config) else 2
    still = actor.freeze_vision_tower or _lora(config)
    update = text * (1 + again + backward) + vision * (1 if still else 1 + again + backward)
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
        "old log-probabilities": sequences * (text + vision) / speed,
        "reference": sequences * (text + vision) / speed if _has_reference(config) else 0.0,
        "update": sequences * update * int(actor.ppo_epochs) / speed,
        "pixels on the CPU": made / (given.pixel_gbs * GB * gpus),
        "offloading": moved / gpus / (given.offload_gbs * GB),
        "weights to vLLM": 2 * shape.params / (given.sync_gbs * GB),
        "everything else": given.fixed_seconds,
    }


def _warnings(
    config: DictConfig,
    shape: Shape,
    data: Data,
    gpus: int,
    hbm_gb: float,
    tokens: Mapping[str, float],
    memory: Mapping[str, Mapping[str, float]],
    disk: Mapping[str, float],
    free_bytes: int | None,
) -> list[str]:
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
    if tokens["longest with text"] > config.data.max_prompt_length:
        found.append(
            f"the longest prompt has about {tokens['longest with text']:.0f} tokens, over data.max_prompt_length="
            f"{config.data.max_prompt_length}, and verl raises; set it to {_round_up(tokens['longest with text'])}, or "
            "lower total_pixels of the rows"
        )
    room = rollout.max_model_len
    if room and tokens["longest with text"] + config.data.max_response_length > room:
        found.append(
            f"prompt and answer may take {tokens['longest with text'] + config.data.max_response_length:.0f} tokens, "
            f"over rollout.max_model_len={room}; raise it"
        )
    if data.rows < config.data.train_batch_size:
        found.append(f"{data.rows} rows do not fill one batch of {config.data.train_batch_size}; lower the batch")
    update = sum(memory["GPU, update"].values())
    if update > hbm_gb:
        largest = max(memory["GPU, update"], key=memory["GPU, update"].get)
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
    bound = OmegaConf.select(config, "data.video_cache.max_gb")
    if bound is not None and bound < disk["frame cache, GB"]:
        found.append(
            f"the frame cache needs {disk['frame cache, GB']:.0f} GB and data.video_cache.max_gb is {bound}; frames "
            "would be removed just before they are needed again: raise it"
        )
    if free_bytes is not None and free_bytes < data.frame_bytes:
        found.append(
            f"the frame cache needs {disk['frame cache, GB']:.0f} GB and its disk here has {free_bytes / GB:.0f} GB "
            "free; set data.video_cache.folder to a larger one"
        )
    return found


def _round_up(tokens: float) -> int:
    return math.ceil(tokens / 1024) * 1024
