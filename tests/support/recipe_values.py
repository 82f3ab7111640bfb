"""Every value of the papers' recipes with where it comes from: the table that composed recipes and READMEs must equal.

Sources are files of the authors' releases, the default of a library at the version they name, or what the paper says.
``ours`` marks what no source gives, ``inferred`` what is taken from neighbouring code.
"""

import json
from typing import Any, NamedTuple

ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
MODEL, REF = "actor_rollout_ref.model.", "actor_rollout_ref.ref."
SMALL, LARGE = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"


class Value(NamedTuple):
    """One value of a recipe.

    Attributes:
        what: in words.
        paper: the value as the source has it.
        source: where it stands.
        key: verl's.
        value: ours, as composed.
    """

    what: str
    paper: str
    source: str
    key: str
    value: Any

    @property
    def row(self) -> str:
        """Its line in the README of the recipe."""
        shown = json.dumps(self.value) if isinstance(self.value, (bool, list)) else self.value
        return (
            f"| {self.what} | {self.paper} | {self.source} | `{self.key.removeprefix('actor_rollout_ref.')}: {shown}` |"
        )


def _grpo(advantage: str, updates: str) -> list[Value]:
    return [
        Value(
            "advantage", "of the group, divided by its standard deviation", advantage, "algorithm.adv_estimator", "grpo"
        ),
        Value("", "n - 1 in the deviation", advantage, "algorithm.norm_adv_by_std_in_grpo", True),
        Value("KL in the reward", "no", advantage, "algorithm.use_kl_in_reward", False),
        Value("passes over a batch", "1", updates, ACTOR + "ppo_epochs", 1),
    ]


def _hugging_face(source: str, inferred: str = "") -> list[Value]:
    """What a trainer of transformers or TRL does when it is told nothing."""
    default = f"{inferred}default of transformers"
    return [
        Value("learning rate", "1e-6", source, ACTOR + "optim.lr", 1e-6),
        Value("schedule", "linear decay to 0", default, ACTOR + "optim.lr_scheduler_type", "linear"),
        Value("warm-up", "none", default, ACTOR + "optim.lr_warmup_steps", 0),
        Value("weight decay", "0", default, ACTOR + "optim.weight_decay", 0.0),
        Value("betas of AdamW", "0.9, 0.999", default, ACTOR + "optim.betas", [0.9, 0.999]),
        Value("gradient norm", "clipped at 1.0", default, ACTOR + "optim.clip_grad", 1.0),
    ]


_TRAINER = "`grpo_trainer_video.py`"
_SCRIPT = "`run_grpo_video.sh`"
_ZERO3 = "`zero3_offload.json`"
_TIMER1 = "`timer1_trainer.py`"
_TIME_SCRIPT = "`train_rl.sh`"
_TEMPORAL = "release"  # run_qwen2_5_vl_3b_tvg.sh over grpo_example.yaml and EasyR1's defaults
_CHAT = "VideoChat-R1, inferred"
_OURS = "ours"
_BY_ANSWER, _BY_TOKEN = "seq-mean-token-mean", "token-mean"

VALUES: dict[str, list[Value]] = {
    "stvg_r1": [
        Value("base model", "Qwen2.5-VL-7B-Instruct", _SCRIPT, MODEL + "path", LARGE),
        Value("frozen parts", "none", _TRAINER, ACTOR + "freeze_vision_tower", False),
        Value("gradient checkpointing", "yes", _SCRIPT, MODEL + "enable_gradient_checkpointing", True),
        Value("GPUs", "8 (A100 in the paper), one node", _SCRIPT, "trainer.n_gpus_per_node", 8),
        Value("prompts per step", "8 (1 per GPU, no accumulation)", _SCRIPT, "data.train_batch_size", 8),
        Value("group", "8", _SCRIPT, ROLLOUT + "n", 8),
        Value("epochs", "2 (the paper: 1)", _SCRIPT, "trainer.total_epochs", 2),
        *_hugging_face("default of TRL 0.15.1, and the paper"),
        Value("KL term", "in the loss", _TRAINER, ACTOR + "use_kl_loss", True),
        Value("KL estimator", "k3, by token", _TRAINER, ACTOR + "kl_loss_type", "low_var_kl"),
        Value("KL weight", "0.04", "default of TRL 0.15.1", ACTOR + "kl_loss_coef", 0.04),
        Value("entropy term", "none", _TRAINER, ACTOR + "entropy_coeff", 0),
        Value("clipping", "none: one update per rollout", _TRAINER, ACTOR + "ppo_mini_batch_size", 8),
        Value("loss", "mean over tokens, then over answers", _TRAINER, ACTOR + "loss_agg_mode", _BY_ANSWER),
        *_grpo(_TRAINER, _TRAINER),
        Value("temperature", "1.0", _TRAINER, ROLLOUT + "temperature", 1.0),
        Value("top-p", "1.0", _TRAINER, ROLLOUT + "top_p", 1.0),
        Value("top-k", "50", "default of transformers 4.50", ROLLOUT + "top_k", 50),
        Value("prompt tokens", "8192, not enforced", _SCRIPT, "data.max_prompt_length", 8192),
        Value("answer tokens", "1024", _SCRIPT, "data.max_response_length", 1024),
        Value("parameters on the CPU", "yes", _ZERO3, ACTOR + "fsdp_config.param_offload", True),
        Value("optimizer on the CPU", "yes", _ZERO3, ACTOR + "fsdp_config.optimizer_offload", True),
        Value("checkpoint", "every 50 steps", _SCRIPT, "trainer.save_freq", 50),
        Value("seed", "42, after an unseeded shuffle", _SCRIPT, "data.seed", 42),
    ],
    "time_r1": [
        Value("base model", "Qwen2.5-VL-3B-Instruct (7B is published too)", _TIME_SCRIPT, MODEL + "path", SMALL),
        Value("frozen parts", "vision tower, not the merger", _TIMER1, ACTOR + "freeze_vision_tower", "keep_merger"),
        Value("prompts per step", "2 (1 GPU x 1 x accumulation 2)", _TIME_SCRIPT, "data.train_batch_size", 2),
        Value("group", "8", _TIME_SCRIPT, ROLLOUT + "n", 8),
        Value("epochs", "5", _TIME_SCRIPT, "trainer.total_epochs", 5),
        *_hugging_face("default of TRL 0.17", "inferred, "),
        Value("KL term", "in the loss", "default of TRL 0.17", ACTOR + "use_kl_loss", True),
        Value("KL estimator", "k3, by token", "inferred, its parent", ACTOR + "kl_loss_type", "low_var_kl"),
        Value("KL weight", "0.04", "default of TRL 0.17", ACTOR + "kl_loss_coef", 0.04),
        Value("entropy term", "none", "inferred, its parent", ACTOR + "entropy_coeff", 0),
        Value("clipping", "0.2", _TIMER1, ACTOR + "clip_ratio", 0.2),
        Value("", "0.2", _TIMER1, ACTOR + "clip_ratio_low", 0.2),
        Value("", "0.2", _TIMER1, ACTOR + "clip_ratio_high", 0.2),
        Value("updates per batch", "1", "inferred, its parent", ACTOR + "ppo_mini_batch_size", 2),
        Value("loss", "mean over the tokens of the batch", _TIMER1, ACTOR + "loss_agg_mode", _BY_TOKEN),
        *_grpo("inferred, its parent", "inferred, its parent"),
        Value("temperature", "1.0", _TIME_SCRIPT, ROLLOUT + "temperature", 1.0),
        Value("top-p", "not stated", _OURS, ROLLOUT + "top_p", 1.0),
        Value("top-k", "not stated", _OURS, ROLLOUT + "top_k", 50),
        Value("prompt tokens", "8192", _TIME_SCRIPT, "data.max_prompt_length", 8192),
        Value("answer tokens", "200", _TIME_SCRIPT, "data.max_response_length", 200),
        Value("checkpoint", "every 50 steps", _TIME_SCRIPT, "trainer.save_freq", 50),
        Value("seed", "42", _TIME_SCRIPT, "data.seed", 42),
    ],
    "temporal_r1": [
        Value("base model", "Qwen2.5-VL-3B-Instruct", _TEMPORAL, MODEL + "path", SMALL),
        Value("frozen parts", "none", _TEMPORAL, ACTOR + "freeze_vision_tower", False),
        Value("gradient checkpointing", "yes", _TEMPORAL, MODEL + "enable_gradient_checkpointing", True),
        Value("packing without padding", "yes", _TEMPORAL, MODEL + "use_remove_padding", True),
        Value("GPUs", "8, one node", _TEMPORAL, "trainer.n_gpus_per_node", 8),
        Value("prompts per step", "16", _TEMPORAL, "data.train_batch_size", 16),
        Value("group", "8", _TEMPORAL, ROLLOUT + "n", 8),
        Value("epochs", "15 configured; the curves end within the first", _TEMPORAL, "trainer.total_epochs", 15),
        Value("learning rate", "1e-6", _TEMPORAL, ACTOR + "optim.lr", 1e-6),
        Value("schedule", "constant", _TEMPORAL, ACTOR + "optim.lr_scheduler_type", "constant"),
        Value("warm-up", "ratio 0", _TEMPORAL, ACTOR + "optim.lr_warmup_steps", 0),
        Value("weight decay", "0.01", _TEMPORAL, ACTOR + "optim.weight_decay", 0.01),
        Value("betas of AdamW", "0.9, 0.999", _TEMPORAL, ACTOR + "optim.betas", [0.9, 0.999]),
        Value("gradient norm", "clipped at 1.0", _TEMPORAL, ACTOR + "optim.clip_grad", 1.0),
        Value("KL term", "in the loss", _TEMPORAL, ACTOR + "use_kl_loss", True),
        Value("KL estimator", "k3, clamped to 10", _TEMPORAL, ACTOR + "kl_loss_type", "low_var_kl"),
        Value("KL weight", "0.01", _TEMPORAL, ACTOR + "kl_loss_coef", 0.01),
        Value("entropy term", "0.001", _TEMPORAL, ACTOR + "entropy_coeff", 0.001),
        Value("clipping", "0.2", _TEMPORAL, ACTOR + "clip_ratio", 0.2),
        Value("", "0.2", _TEMPORAL, ACTOR + "clip_ratio_low", 0.2),
        Value("", "0.2", _TEMPORAL, ACTOR + "clip_ratio_high", 0.2),
        Value("updates per batch", "1", _TEMPORAL, ACTOR + "ppo_mini_batch_size", 16),
        Value("loss", "mean over the tokens of a micro batch", _TEMPORAL, ACTOR + "loss_agg_mode", _BY_TOKEN),
        *_grpo(_TEMPORAL, _TEMPORAL),
        Value("micro batch per GPU, update", "4", _TEMPORAL, ACTOR + "ppo_micro_batch_size_per_gpu", 4),
        Value("micro batch per GPU, log-probs", "8", _TEMPORAL, ROLLOUT + "log_prob_micro_batch_size_per_gpu", 8),
        Value("", "8", _TEMPORAL, REF + "log_prob_micro_batch_size_per_gpu", 8),
        Value("temperature", "1.0", _TEMPORAL, ROLLOUT + "temperature", 1.0),
        Value("top-p", "1.0", _TEMPORAL, ROLLOUT + "top_p", 1.0),
        Value("top-k", "-1 (off)", _TEMPORAL, ROLLOUT + "top_k", -1),
        Value("engine", "vLLM, tensor parallel 1", _TEMPORAL, ROLLOUT + "tensor_model_parallel_size", 1),
        Value("", "half of the memory", _TEMPORAL, ROLLOUT + "gpu_memory_utilization", 0.5),
        Value("", "CUDA graphs", _TEMPORAL, ROLLOUT + "enforce_eager", False),
        Value("", "no chunked prefill", _TEMPORAL, ROLLOUT + "enable_chunked_prefill", False),
        Value("", "8192 tokens in a batch", _TEMPORAL, ROLLOUT + "max_num_batched_tokens", 8192),
        Value("", "6144 tokens in a sequence", _TEMPORAL, ROLLOUT + "max_model_len", 6144),
        Value("prompt tokens", "4096", _TEMPORAL, "data.max_prompt_length", 4096),
        Value("answer tokens", "2048", _TEMPORAL, "data.max_response_length", 2048),
        Value("parameters on the CPU", "yes", _TEMPORAL, ACTOR + "fsdp_config.param_offload", True),
        Value("optimizer on the CPU", "yes", _TEMPORAL, ACTOR + "fsdp_config.optimizer_offload", True),
        Value("reference on the CPU", "yes", _TEMPORAL, REF + "fsdp_config.param_offload", True),
        Value("checkpoint", "every 50 steps", _TEMPORAL, "trainer.save_freq", 50),
        Value("evaluation before training", "no", _TEMPORAL, "trainer.val_before_train", False),
        Value("shuffle", "yes", _TEMPORAL, "data.shuffle", True),
        Value("seed", "1", _TEMPORAL, "data.seed", 1),
    ],
    "videotg_r1": [
        Value("base model", "Qwen2.5-VL-7B-Instruct", _CHAT, MODEL + "path", LARGE),
        Value("frozen parts", "not stated", _OURS, ACTOR + "freeze_vision_tower", False),
        Value("gradient checkpointing", "yes", _CHAT, MODEL + "enable_gradient_checkpointing", True),
        Value("GPUs", "8", _CHAT, "trainer.n_gpus_per_node", 8),
        Value("prompts per step", "8 (1 per GPU, accumulation 1)", _CHAT, "data.train_batch_size", 8),
        Value("group", "8", _CHAT, ROLLOUT + "n", 8),
        Value("epochs", "1", _CHAT, "trainer.total_epochs", 1),
        *_hugging_face("VideoChat-R1, default of TRL 0.15.1, inferred", "VideoChat-R1, inferred, "),
        Value("KL term", "in the loss", _CHAT, ACTOR + "use_kl_loss", True),
        Value("KL estimator", "k3, by token", _CHAT, ACTOR + "kl_loss_type", "low_var_kl"),
        Value("KL weight", "0.04", _CHAT, ACTOR + "kl_loss_coef", 0.04),
        Value("entropy term", "none", _CHAT, ACTOR + "entropy_coeff", 0),
        Value("clipping", "none: one update per rollout", _CHAT, ACTOR + "ppo_mini_batch_size", 8),
        Value("loss", "mean over tokens, then over answers", _CHAT, ACTOR + "loss_agg_mode", _BY_ANSWER),
        *_grpo(_CHAT, _CHAT),
        Value("temperature", "1.0", _CHAT, ROLLOUT + "temperature", 1.0),
        Value("top-p", "1.0", _CHAT, ROLLOUT + "top_p", 1.0),
        Value("top-k", "not stated", _OURS, ROLLOUT + "top_k", -1),
        Value("prompt tokens", "8192, not enforced", _CHAT, "data.max_prompt_length", 8192),
        Value("answer tokens", "1024", _CHAT, "data.max_response_length", 1024),
        Value("checkpoint", "every 200 steps", _CHAT, "trainer.save_freq", 200),
        Value("seed", "42", _CHAT, "data.seed", 42),
        Value("curriculum", "masks that depend on the step", "abstract", "data.curriculum.enabled", True),
        Value("masked samples", "the hard ones", "abstract", "data.curriculum.bins", ["hard"]),
        Value("schedule of the mask", "not stated", _OURS, "data.curriculum.schedule", "linear"),
        Value("", "not stated", _OURS, "data.curriculum.hidden_at_start", 1.0),
        Value("", "not stated", _OURS, "data.curriculum.all_shown_after", 1.0),
        Value("", "not stated", _OURS, "data.curriculum.stages", 4),
        Value("", "not stated", _OURS, "data.curriculum.decay_rate", 5.0),
        Value("masked region", "not stated", _OURS, "data.curriculum.region", "window"),
        Value("mask", "not stated", _OURS, "data.curriculum.op", "blank"),
        Value("", "not stated", _OURS, "data.curriculum.seed", 42),
    ],
}  # fmt: skip

PIXELS: dict[str, tuple[str, dict[str, Any]]] = {
    "stvg_r1": ("stvg_r1", {"rule": "qwen_vl_utils", "min_pixels": 12_544, "total_pixels": 1_605_632}),
    "time_r1": ("time_r1", {"rule": "qwen_vl_utils", "min_pixels": 12_544, "total_pixels": 2_809_856}),
    "temporal_r1": ("temporal_r1", {"rule": "qwen_vl_utils", "min_pixels": 3_136, "total_pixels": 1_605_632}),
    "videotg_r1": ("videotg_r1", {"rule": "qwen_vl_utils", "min_pixels": 12_544, "total_pixels": 2_809_856}),
}
"""Template of a recipe's rows and how it samples frames: `preprocess_video.sh`, `train_rl.sh`,
`run_qwen2_5_vl_3b_tvg.sh`, and VideoChat-R1's own copy of qwen-vl-utils."""

ALL = tuple(VALUES)
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "qwen2_5_vl_3b": (ALL, {MODEL + "path": SMALL}),
    "qwen2_5_vl_7b": (ALL, {MODEL + "path": LARGE}),
    "qwen3_vl_4b": (ALL, {MODEL + "path": "Qwen/Qwen3-VL-4B-Instruct"}),
    "qwen3_vl_8b": (ALL, {MODEL + "path": "Qwen/Qwen3-VL-8B-Instruct"}),
    "lora": (ALL, {MODEL + "lora_rank": 64, ROLLOUT + "load_format": "safetensors"}),
    "gspo": (ALL, {ACTOR + "policy_loss.loss_mode": "gspo", "data.train_batch_size": 32}),
    "dapo": (ALL, {ACTOR + "clip_ratio_high": 0.28, "algorithm.filter_groups.enable": True}),
    "one_gpu": (ALL, {ACTOR + "fsdp_config.offload_policy": True, ACTOR + "fsdp_config.param_offload": False}),
    "sdpa": (ALL, {MODEL + "use_remove_padding": False, MODEL + "override_config.attn_implementation": "sdpa"}),
    "tiny": (
        ALL,
        {
            "trainer.device": "cpu",
            "trainer.val_before_train": True,
            "data.train_batch_size": 16,
            ACTOR + "kl_loss_coef": 0.001,
        },
    ),
    "no_format": (ALL, {"reward.custom_reward_function.reward_kwargs.weights": {"format": 0.0}}),
    "no_think": (ALL, {"data.max_response_length": 128}),
    "no_marker": (("stvg_r1",), {"reward.custom_reward_function.reward_kwargs.recipe": "timezero"}),
    "visible": (("stvg_r1",), {"reward.custom_reward_function.reward_kwargs.recipe": "stvg_r1_visible"}),
    "no_curriculum": (("videotg_r1",), {"data.curriculum.enabled": False}),
    "timezero": (
        ("time_r1",),
        {
            MODEL + "path": LARGE,
            ACTOR + "freeze_vision_tower": False,
            ACTOR + "loss_agg_mode": _BY_ANSWER,
            ACTOR + "kl_loss_coef": 0.04,
            "data.train_batch_size": 8,  # 4 GPUs x 1 x accumulation 2
            "data.max_response_length": 1024,
            "trainer.total_epochs": 2,  # the report: 1
        },
    ),
    "time_r1_finetune": (
        ("time_r1",),
        {
            ACTOR + "kl_loss_coef": 0.0,
            "data.train_batch_size": 2,
            "data.max_response_length": 1024,
            "trainer.total_epochs": 2,
            "trainer.save_freq": 100,
        },
    ),
    "time_r1_finetune_activitynet": (
        ("time_r1",),
        {
            ACTOR + "kl_loss_coef": 0.0,
            ACTOR + "ppo_mini_batch_size": 16,
            "data.train_batch_size": 16,  # 8 GPUs x 1 x accumulation 2
            "data.max_response_length": 1024,
            "trainer.total_epochs": 2,
            "trainer.save_freq": 100,
        },
    ),
}  # fmt: skip
"""Variant, the recipes it is for, and values that it sets: those of the papers (TimeZero's scripts, Time-R1's
`scripts/finetune`) or of the method's own paper."""
