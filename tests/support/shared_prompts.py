"""Small random models in verl's own FSDP engines, in this process, and batches as verl's trainer sends them.

One process is a world of its own; with ``python -m tests.support.shared_prompts`` a process is one of several ranks.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import verl  # noqa: F401 - loads the plugin, and with it the CPU platform
from tensordict import NonTensorStack, TensorDict
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_from_nested

from verl_stvg.training.shared_prompt import sharing_engine

KINDS = ("qwen2_5_vl", "qwen3_vl")
IMAGE, VIDEO, START, END, WORDS = 4, 5, 6, 7, 10
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}


@dataclass(frozen=True)
class Size:
    """Of a model: its language model's `heads` are two to a key, `tower` and what follows are the vision tower's."""

    width: int = 64
    intermediate: int = 128
    layers: int = 2
    heads: int = 2
    vocabulary: int = 256
    tower: int = 32
    tower_intermediate: int = 64
    depth: int = 2
    tower_heads: int = 2

    @property
    def head(self) -> int:
        return self.width // self.heads


def random_model(kind: str, size: Size = Size()):  # noqa: B008
    """A model whose weights are large enough that a wrong position or mask shows."""
    torch.manual_seed(0)
    third = size.head // 8
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [size.head // 2 - 2 * third, third, third]}
    text = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": rope,
    }
    vision = {
        "depth": size.depth,
        "hidden_size": size.tower,
        "num_heads": size.tower_heads,
        "intermediate_size": size.tower_intermediate,
        "out_hidden_size": size.width,
    }
    if kind == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [size.depth - 1], "window_size": 112}
    else:
        text |= {"head_dim": size.head, "rope_parameters": {**rope, "mrope_interleaved": True}}
        vision |= {"deepstack_visual_indexes": list(range(size.depth - 1)), "num_position_embeddings": 256}
    config, model = CLASSES[kind]
    made = model(config(text_config=text, vision_config=vision, tie_word_embeddings=True, **TOKENS))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    return made.float()


def make_model(kind: str, folder: Path, size: Size = Size()) -> Path:  # noqa: B008
    """Save a `random_model`."""
    random_model(kind, size).save_pretrained(folder)
    return folder


def stock_engine(strategy: str = "fsdp2") -> type:
    """verl's engine for this device."""
    return EngineRegistry.get_engine_cls("language_model", strategy)


def make_engine(shared: bool, folder: Path, lora: int = 0, checkpointing: bool = True, dtype: str = "fp32"):
    """An initialized actor."""
    engine_class = sharing_engine(stock_engine()) if shared else stock_engine()
    precision = {"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    with contextlib.redirect_stdout(None):
        engine = engine_class(
            model_config=HFModelConfig(
                path=str(folder),
                load_tokenizer=False,
                use_remove_padding=False,
                lora_rank=lora,
                enable_gradient_checkpointing=checkpointing,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2", use_torch_compile=False, mixed_precision=precision, use_orig_params=True
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-4, total_training_steps=10, clip_grad=1.0),
            checkpoint_config=CheckpointConfig(),
        )
        torch.manual_seed(7)  # the adapters of both
        engine.initialize()
    if lora:  # adapters begin at zero, where half of their gradients are nothing
        with torch.no_grad():
            for name, parameter in engine.module.named_parameters():
                if "lora_B" in name:
                    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                    local.copy_(torch.randn(local.shape, generator=torch.Generator().manual_seed(len(name))) * 0.02)
    return engine


@dataclass(frozen=True)
class Prompt:
    """What a prompt shows, (units, height, width) in patches each, and the lengths of its answers."""

    answers: Sequence[int]
    videos: Sequence[tuple[int, int, int]] = ((2, 8, 12),)
    images: Sequence[tuple[int, int, int]] = ()
    words: int = 20


@dataclass
class Rows:
    """Columns of a batch before they are packed."""

    columns: dict[str, list] = field(default_factory=dict)

    def add(self, **values) -> None:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)


def words(count: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(WORDS, vocabulary, (count,))


def tokens_of(kind: str, prompt: Prompt, vocabulary: int) -> tuple[torch.Tensor, dict]:
    """Tokens of a prompt, and its inputs of the vision tower."""
    parts, inputs, width = [words(prompt.words // 2, vocabulary)], {}, 3 * 2 * PATCH[kind] ** 2
    for name, token, shown in (("image", IMAGE, prompt.images), ("video", VIDEO, prompt.videos)):
        if not shown:
            continue
        for units, height, across in shown:
            unit = torch.full((height * across // 4,), token)
            if kind == "qwen3_vl":
                for _ in range(units):
                    parts += [words(3, vocabulary), torch.tensor([START]), unit, torch.tensor([END])]
            else:
                parts += [torch.tensor([START]), unit.repeat(units), torch.tensor([END])]
        pixels = "pixel_values" if name == "image" else "pixel_values_videos"
        inputs[pixels] = torch.randn(sum(t * h * w for t, h, w in shown), width)
        inputs[f"{name}_grid_thw"] = torch.tensor(list(shown))
    return torch.cat([*parts, words(prompt.words - prompt.words // 2, vocabulary)]), inputs


def make_batch(
    kind: str, prompts: Sequence[Prompt], vocabulary: int = Size.vocabulary, seed: int = 1, **settings
) -> TensorDict:
    """Trajectories of some prompts in turn, as a queue may give them: the first of each, the second of each, ..."""
    torch.manual_seed(seed)
    config, model = CLASSES[kind]
    with torch.device("meta"):  # only for its count of positions
        counter = model(config(**TOKENS)).model
    made, rows = [tokens_of(kind, prompt, vocabulary) for prompt in prompts], Rows()
    for rollout in range(max(len(prompt.answers) for prompt in prompts)):
        for k, (prompt, (ids, inputs)) in enumerate(zip(prompts, made, strict=True)):
            if rollout >= len(prompt.answers):
                continue
            answer = words(prompt.answers[rollout], vocabulary)
            row = torch.cat([ids, answer])
            kinds = (row[None] == VIDEO) * 2 + (row[None] == IMAGE) * 1
            grids = {name: grid for name, grid in inputs.items() if name.endswith("thw")}
            positions = counter.get_rope_index(row[None], mm_token_type_ids=kinds, **grids)[0][:, 0]
            length = len(answer)
            rows.add(
                input_ids=row,
                position_ids=torch.cat([torch.arange(len(row))[None], positions]),
                prompts=ids,
                responses=answer,
                uid=f"row-{k}",
                multi_modal_inputs=inputs,
                response_mask=torch.ones(length, dtype=torch.long),
                loss_mask=torch.ones(length, dtype=torch.long),
                advantages=torch.randn(1).expand(length),
                ref_log_prob=-6 + 0.3 * torch.randn(length),
            )
    plain = ("uid", "multi_modal_inputs")
    columns = {
        name: tu.nested_tensor_from_tensor_list(column, ragged_idx=2 if name == "position_ids" else 1)
        for name, column in rows.columns.items()
        if name not in plain
    }
    data = TensorDict(columns, batch_size=[len(rows.columns["uid"])])
    for name in plain:
        data[name] = NonTensorStack(*rows.columns[name])
    usual = {
        "temperature": 0.9,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": 1,
        "use_remove_padding": False,
        "use_fused_kernels": False,
        "calculate_entropy": True,
        "compute_loss": False,
        "global_batch_size": len(data) * dist.get_world_size(),
    }
    tu.assign_non_tensor(data, **{**usual, **settings})
    return data


def loss_of(**settings):
    """verl's loss of an actor."""
    usual = {
        "strategy": "fsdp2",
        "rollout_n": 4,
        "ppo_mini_batch_size": 2,
        "ppo_micro_batch_size_per_gpu": 1,
        "use_kl_loss": True,
        "kl_loss_coef": 0.04,
        "kl_loss_type": "low_var_kl",
        "entropy_coeff": 0.001,
        "loss_agg_mode": "seq-mean-token-mean",
    }
    return partial(ppo_loss, config=FSDPActorConfig(**{**usual, **settings}))


@contextlib.contextmanager
def alone():
    """One thread and a process group of this process; afterwards the models' classes are transformers' again.

    verl's engine replaces the `forward` of classes in the whole process; `generate` refuses what then has no name for
    its inputs.
    """
    threads = torch.get_num_threads()
    forwards = {
        cls: vars(cls)["forward"]
        for module in (modeling_qwen2_vl, modeling_qwen2_5_vl, modeling_qwen3_vl, modeling_qwen3_vl_moe)
        for cls in vars(module).values()
        if isinstance(cls, type) and "forward" in vars(cls)
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)
    for cls, forward in forwards.items():
        cls.forward = forward


class Engines:
    """Engines made once, each with a copy of the weights that it begins with.

    Args:
        folders: of the model of each kind.
    """

    def __init__(self, folders: dict[str, Path]):
        self._folders, self._made = folders, {}

    def get(self, shared: bool, kind: str, **settings):
        """An engine as it was made."""
        key = (shared, kind, *sorted(settings.items()))
        if key not in self._made:
            engine = make_engine(shared, self._folders[kind], **settings)
            self._made[key] = engine, [p.detach().clone() for p in engine.module.parameters()]
        engine, weights = self._made[key]
        with torch.no_grad():
            for parameter, weight in zip(engine.module.parameters(), weights, strict=True):
                parameter.copy_(weight)
        engine.optimizer.state.clear()
        return engine


def full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def read(engine, batch: TensorDict) -> dict[str, torch.Tensor]:
    """Log-probabilities and entropies of the answers' tokens, one row after the other."""
    with engine.eval_mode():
        output = engine.infer_batch(batch.clone(), loss_function=None)["model_output"]
    return {name: response_from_nested(output[name], batch["response_mask"]).values() for name in output}


def step(engine, batch: TensorDict, loss, old: torch.Tensor | None = None) -> dict:
    """Loss, metrics and gradients of a batch, and how far a step moves the weights.

    Args:
        old: old log-probabilities of the answers' tokens; default: some, so that ratios are not 1.
    """
    batch, offsets = batch.clone(), batch["responses"].offsets()
    if old is None:
        old = -6 + 0.5 * torch.randn(int(offsets[-1]), generator=torch.Generator().manual_seed(3))
    batch["old_log_probs"] = torch.nested.nested_tensor_from_jagged(old, offsets)
    before = {name: full(p) for name, p in engine.module.named_parameters()}
    with engine.train_mode():
        engine.optimizer_zero_grad()
        result = engine.forward_backward_batch(batch.clone(), loss)
        gradients = {name: full(p.grad) for name, p in engine.module.named_parameters() if p.grad is not None}
        engine.optimizer_zero_grad()
        engine.train_batch(batch, loss)
    moved = {name: full(p) - before[name] for name, p in engine.module.named_parameters()}
    return {
        "loss": torch.tensor(sum(result["loss"])),
        "metrics": result["metrics"],
        "gradients": gradients,
        "moved": moved,
    }


def apart(stock: dict, shared: dict) -> dict[str, float]:
    """How far two results of `read` and `step` are apart: values absolutely, gradients and weights relatively."""
    found = {name: (stock[name] - shared[name]).abs().max().item() for name in ("log_probs", "entropy", "loss")}
    assert stock["gradients"].keys() == shared["gradients"].keys()
    found["gradients"] = max(
        ((value - shared["gradients"][name]).norm() / value.norm().clamp(min=1e-12)).item()
        for name, value in stock["gradients"].items()
    )
    gap = sum((value - shared["moved"][name]).square().sum() for name, value in stock["moved"].items()).sqrt()
    found["weights"] = (gap / sum(value.square().sum() for value in stock["moved"].values()).sqrt()).item()
    return found


LIMITS = {"log_probs": 1e-5, "entropy": 1e-5, "loss": 1e-5, "gradients": 1e-4, "weights": 1e-2}


def main(rank: int, folder: Path) -> None:
    """Be one of two ranks with unequal groups; both engines, and how far they are apart, in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    groups = [[Prompt([9, 4, 12, 7])], [Prompt([5, 6]), Prompt([8, 3], videos=())]][rank]
    found = {}
    for shared in (False, True):
        engine = make_engine(shared, folder / "model")
        batch = make_batch("qwen3_vl", groups, seed=rank + 1, micro_batch_size_per_gpu=4)
        found[shared] = read(engine, batch) | step(engine, batch, loss_of())
    torch.save(apart(found[False], found[True]), folder / f"apart-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
