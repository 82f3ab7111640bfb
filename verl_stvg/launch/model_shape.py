"""Sizes of a model: parameters, floating-point operations and KV cache, from its published configuration.

Arithmetic only; no weights are read.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from verl_stvg.video.frame_rules import MERGE, PATCH, QWEN3_PATCH, TEMPORAL_PATCH


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
    head_size: int = 0  # where heads are of a size of their own

    @property
    def head_dim(self) -> int:
        """Of an attention head."""
        return self.head_size or self.hidden // self.heads

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

    head_size: int = 128
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
            head_size=text["head_dim"],
            deepstack=len(vision["deepstack_visual_indexes"]),
            places=vision["num_position_embeddings"],
        )
    full, window = len(vision["fullatt_block_indexes"]), (vision["window_size"] // PATCH) ** 2
    return Shape(**common, vision_full=full, window=window)
