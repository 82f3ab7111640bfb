"""A Qwen2.5-VL small enough for a laptop, warm-started so that reinforcement learning has something to build on.

The architecture, the processor and the chat format are the real ones; only the sizes and the vocabulary are small. A
random model would write noise and earn no reward, so the model is first supervised on clips of its own: the vision
tower learns to name what it sees in each visual token, then, frozen, it feeds the language model, which learns to
answer. That second pass is short: the model keeps to the answer format and grounds only partly. None of its clips is
ever one of a training or held-out set (`synthetic.SPLITS`).

The weights are the same bits on every x86-64 CPU with AVX2 (since 2013). Sums of floats depend on the order and the
instructions that a CPU gets from torch, MKL and the C library, and 500 steps of training make large differences of
small ones. So the weights are made in a process of their own, which is told to use what all these CPUs have
(`SAME_ON_EVERY_CPU`), in a number of steps that no measured score decides, and in two threads that share each batch
whatever the number of cores.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from tqdm import tqdm
from transformers import (
    AddedToken,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.video_utils import VideoMetadata
from transformers.vision_utils import get_vision_position_ids

from reward_fns.registry import find_recipe
from verl_stvg.base import python
from verl_stvg.base.lock import finished, whole
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.patches.transformers_positions import mend_transformers
from verl_stvg.video.decode import read_frames
from verl_stvg.video.plan import plan_video

logger = logging.getLogger(__name__)

SAME_ON_EVERY_CPU = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's matrix products, see `product`: the kernels for AVX2
    "OPENBLAS_NUM_THREADS": "1",  # the order of sums
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",  # other products: the branch that is the same on Intel's and AMD's CPUs
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-FMA_Usable,-FMA4_Usable,-AVX2_Usable",  # exp, log; new, old
}
"""Environment of the process that makes the weights.

What chooses by the CPU in spite of it is not called there: oneDNN (switched off), OpenCV, MKL's square roots, which
torch's optimisers take unless they are fused, and MKL's products where they would take long.
"""
WEIGHTS = "464887c214425997"
"""`weights_hash` of the model of `TinyConfig()` and seed 0 with torch 2.11.0; docs/learning.md starts from it."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, ordinary text to the decoder

CHAT_TEMPLATE = (  # Qwen2.5-VL's, without its default system message
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FRAME_HEIGHT = synthetic.HEIGHT // synthetic.MODEL_SCALE
FRAME_WIDTH = synthetic.WIDTH // synthetic.MODEL_SCALE
PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
TOKEN_PIXELS = PATCH * MERGE
UNITS = synthetic.NUM_TICKS // TEMPORAL_PATCH
ROWS, COLUMNS = FRAME_HEIGHT // TOKEN_PIXELS, FRAME_WIDTH // TOKEN_PIXELS
VIDEO_TOKENS = UNITS * ROWS * COLUMNS
MIN_PIXELS, MAX_PIXELS = TOKEN_PIXELS**2, 16 * TOKEN_PIXELS**2  # every multiple of 28 in between is a fixed point


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the model and of its warm start; every field is part of the cache key."""

    task: str = "stvg_r1"  # of synthetic.TASKS: the prompt it knows and the form of its answers
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 4
    text_mlp: int = 256
    vision_width: int = 128
    vision_layers: int = 2
    vision_heads: int = 4
    vision_mlp: int = 256
    clips: int = 800
    vision_steps: int = 240
    vision_batch: int = 128  # temporal units, not clips
    vision_lr: float = 2e-3
    answer_steps: int = 365
    answer_batch: int = 32
    answer_lr: float = 2e-3
    id_weight: float = 3.0
    guide_layer: int = 2
    common_colors: int = synthetic.COMMON_COLORS  # of COLORS; the others are rare words of the supervised pass,
    rare_share: float = 0.045  # each sample about one drawn with this weight
    eval_clips: int = 96


def make_tokenizer(task: str = "stvg_r1") -> Qwen2Tokenizer:
    """Byte-level BPE in Qwen's manner: digits and words of the synthetic task are one token each, any text survives."""
    asked = synthetic.TASKS[task]
    words = [f"the {c} {s} {m}" for c in synthetic.COLORS for s in synthetic.SHAPES for m in synthetic.MOTIONS]
    corpus = (
        words + [f"{color} " for color in synthetic.COLORS] + [asked.instruction, "system", "user\n", "assistant\n"]
    )
    corpus.append(asked.completion(1, 2.5, 3.0, "is"))
    for tag in TAGS:
        corpus = [line.replace(tag, "\n") for line in corpus]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    bpe = json.loads(tokenizer.to_str())["model"]
    result = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(m) for m in bpe["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=4096,
    )
    result.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    result.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    result.chat_template = CHAT_TEMPLATE
    return result


def make_processor(task: str = "stvg_r1") -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor around `make_tokenizer`, with size limits that leave the synthetic frames as they are."""
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=make_tokenizer(task),
        video_processor=Qwen2VLVideoProcessor(size=dict(size)),
        chat_template=CHAT_TEMPLATE,
    )


def make_untrained(config: TinyConfig, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A random model in float32, weights drawn with standard deviation 1/sqrt(fan in)."""
    token_id = tokenizer.convert_tokens_to_ids
    head_dim = config.text_width // config.text_heads
    quarter = head_dim // 8
    model_config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.text_width,
            "intermediate_size": config.text_mlp,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "num_key_value_heads": config.text_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2 * quarter, quarter, quarter],
            },
        },
        vision_config={
            "depth": config.vision_layers,
            "hidden_size": config.vision_width,
            "intermediate_size": config.vision_mlp,
            "num_heads": config.vision_heads,
            "out_hidden_size": config.text_width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL_PATCH,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(range(config.vision_layers)),
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = Qwen2_5_VLForConditionalGeneration(model_config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue  # norms start at one, biases at zero
        std = 1.0 if "embed_tokens" in name else parameter[0].numel() ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
            std /= math.sqrt(2 * config.text_layers)
        with torch.no_grad():
            drawn = torch.empty(parameter.shape, dtype=torch.float64).normal_(0.0, std, generator=generator)
            parameter.copy_(drawn)  # the same on every CPU, which float32's own draws are not
    with torch.no_grad():  # words are written as they are read, so that copying one from the prompt is easy
        model.lm_head.weight.copy_(model.get_input_embeddings().weight * 0.3 * config.text_width**-0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|endoftext|>"), do_sample=False
    )
    return model


def completion(track: synthetic.Track, task: str = "stvg_r1") -> str:
    """The answer the warm start teaches for a track; the thought names the object whatever is asked."""
    thought = f"{track.color} {track.object_id}"
    return synthetic.TASKS[task].completion(track.object_id, track.start, track.end, thought)


def render_pool(
    seed: int, first: int, count: int, progress: bool = True
) -> tuple[list[synthetic.ClipSpec], np.ndarray]:
    """Clips of the warm-start split as the model would see them: specs and uint8 (count, 16, 56, 84, 3)."""
    clips = [synthetic.make_clip(seed, "warm", first + k) for k in range(count)]
    frames = np.empty((count, synthetic.NUM_TICKS, FRAME_HEIGHT, FRAME_WIDTH, 3), dtype=np.uint8)
    ticks, scale = range(0, synthetic.NUM_FRAMES, synthetic.FRAMES_PER_TICK), synthetic.MODEL_SCALE
    for k, clip in enumerate(tqdm(clips, desc="warm start: draw clips", unit="clip", disable=not progress)):
        native = synthetic.render_frames(clip, ticks)
        sums = sum(native[:, y::scale, x::scale].astype(np.uint16) for y in range(scale) for x in range(scale))
        frames[k] = np.rint(sums / scale**2)
    return clips, frames


def patchify(video_processor: Qwen2VLVideoProcessor, frames: np.ndarray) -> torch.Tensor:
    """Pixels of clips (N, T, H, W, 3) as the processor's patches: float32 (N * T / 2 units, patches per unit, values).

    The same numbers as the processor's own call, several times faster for many small frames.
    """
    mean = torch.tensor(video_processor.image_mean)[:, None, None, None]
    std = torch.tensor(video_processor.image_std)[:, None, None, None]
    x = torch.from_numpy(frames).view(-1, TEMPORAL_PATCH, ROWS, MERGE, PATCH, COLUMNS, MERGE, PATCH, 3)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # unit, row, column, patch row, patch column, colour, frame, y, x
    x = (x.float() * video_processor.rescale_factor - mean) / std
    return x.reshape(len(x), ROWS * COLUMNS * MERGE**2, -1)


def tower(visual: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """The vision tower over many equal frames at once: (units, patches, values) to (units, ROWS * COLUMNS, width).

    The model's own forward attends unit by unit in a Python loop; frames of one small size need none. Its convolution,
    whose kernel is one patch, is a matrix product here.
    """
    grid = torch.tensor([[1, ROWS * MERGE, COLUMNS * MERGE]])
    rotary = visual.rotary_pos_emb(get_vision_position_ids(grid, MERGE))
    emb = torch.cat((rotary, rotary), dim=-1)
    cos, sin = emb.cos(), emb.sin()
    units, length, _ = patches.shape
    x = nn.functional.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    for block in visual.blocks:
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(x)).view(units, length, 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        mixed = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.flatten(0, 1)).unflatten(0, (units, -1))


COLOR_NAMES = tuple(synthetic.COLORS)
_CONCEPTS = (  # what a visual token may show, as words of the vocabulary; class 0: nothing centred here
    (".", *(f" {c}" for c in COLOR_NAMES)),
    (".", *(str(i) for i in synthetic.IDS)),
    (".", *(f" {s}" for s in synthetic.SHAPES)),
)


def token_labels(clip: synthetic.ClipSpec) -> np.ndarray:
    """What is centred in each visual token: int64 (UNITS, ROWS * COLUMNS, 4).

    Colour, ID and shape (each + 1, 0 for nothing) and in which of the unit's two frames (bits 1 and 2). Where one shape
    follows another within a unit, the later one counts.
    """
    labels = np.zeros((UNITS, ROWS, COLUMNS, 4), dtype=np.int64)
    cell = TOKEN_PIXELS * synthetic.MODEL_SCALE
    for track in clip.tracks:
        row = (track.top + synthetic.SHAPE_SIZE // 2) // cell
        look = (COLOR_NAMES.index(track.color) + 1, track.object_id, synthetic.SHAPES.index(track.shape) + 1)
        for tick in range(synthetic.NUM_TICKS):
            frame = tick * synthetic.FRAMES_PER_TICK
            if track.first <= frame <= track.last:
                column = min((track.lefts[frame] + synthetic.SHAPE_SIZE // 2) // cell, COLUMNS - 1)
                token = labels[tick // TEMPORAL_PATCH, row, column]
                token[:3] = look
                token[3] |= 1 << tick % TEMPORAL_PATCH
    return labels.reshape(UNITS, ROWS * COLUMNS, 4)


def train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    clips: list[synthetic.ClipSpec],
    frames: np.ndarray,
    config: TinyConfig,
    seed: int,
    progress: bool = True,
) -> dict[str, float]:
    """Teach the tower to name what is centred in each visual token, in the language model's own word embeddings.

    A visual token is compared with the embeddings of the words for colours, IDs and shapes, and a linear head, dropped
    afterwards, tells in which of the unit's two frames the shape is there. The merger's output is finally scaled to a
    standard deviation of one, the size of the word embeddings.
    Returns the accuracies over the last tenth of the steps, on tokens where something is centred.
    """
    visual = model.model.visual
    generator = torch.Generator().manual_seed(seed)
    words = [
        model.get_input_embeddings().weight[[processor.tokenizer(w)["input_ids"][0] for w in c]].detach()
        * config.text_width**-0.5
        for c in _CONCEPTS
    ]
    when = nn.Linear(config.text_width, 2**TEMPORAL_PATCH)
    with torch.no_grad():
        when.weight.normal_(0.0, config.text_width**-0.5, generator=generator)
        when.bias.zero_()
    labels = torch.from_numpy(np.stack([token_labels(c) for c in clips])).flatten(0, 1)
    units = frames.reshape(-1, TEMPORAL_PATCH, *frames.shape[2:])
    parameters = [*visual.parameters(), *when.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.vision_lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(config.vision_steps))
    hits, seen = np.zeros(4), 0
    bar = tqdm(range(config.vision_steps), desc="warm start: vision tower", unit="step", disable=not progress)

    def loss_of(items: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = tower(visual, patchify(processor.video_processor, units[items.numpy()]))
        logits = [*(nn.functional.linear(tokens, w) for w in words), when(tokens)]
        asked = [(x.flatten(0, 1), labels[items][..., i].flatten()) for i, x in enumerate(logits)]
        guesses = torch.stack([x.argmax(-1) for x in logits], dim=-1)
        return sum(nn.functional.cross_entropy(*pair) for pair in asked), tokens.detach(), guesses

    for step in bar:
        chosen = torch.randint(len(units), (config.vision_batch,), generator=generator)
        loss, tokens, guesses = gradients(loss_of, chosen, parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= 0.9 * config.vision_steps:
            present = labels[chosen][..., 0] > 0
            seen += int(present.sum())
            hits += (guesses == labels[chosen])[present].sum(0).numpy()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    with torch.no_grad():
        scale = tokens.std()
        last = visual.merger.mlp[-1]
        last.weight /= scale
        last.bias /= scale
    return dict(zip(("color", "id", "shape", "when"), (hits / max(seen, 1)).tolist(), strict=True))


@torch.no_grad()
def features(
    model: Qwen2_5_VLForConditionalGeneration, video_processor: Qwen2VLVideoProcessor, frames: np.ndarray
) -> torch.Tensor:
    """Visual tokens of clips, float32 (N, VIDEO_TOKENS, width); each temporal unit is computed once."""
    chunks = [patchify(video_processor, frames[k : k + 16]) for k in range(0, len(frames), 16)]
    return torch.cat([tower(model.model.visual, c) for c in chunks]).view(len(frames), VIDEO_TOKENS, -1)


class _Product(torch.autograd.Function):
    """``x @ weight.T`` by numpy."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.T).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        rows, weight = ctx.saved_tensors
        by_row = grad.flatten(0, -2)
        to_input = product(by_row, weight).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return to_input, product(by_row.T, rows)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product of float32 (M, K) and (K, N) by numpy, whose OpenBLAS has one code for all CPUs with AVX2.

    MKL, which torch calls, has such a code for SSE2 only: with it the making takes twice as long.
    """
    return torch.from_numpy(a.detach().numpy() @ b.detach().numpy())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` by `product`."""
    y = _Product.apply(x, weight)
    return y if bias is None else y + bias


def gradients(
    loss_of: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], chosen: torch.Tensor, parameters: list[nn.Parameter]
) -> tuple[torch.Tensor, ...]:
    """Set the gradients of a batch's mean loss; its two halves run side by side, and are added in one order.

    So two cores are used, and the sums are the same however many there are.

    Args:
        loss_of: of the items (B / 2,) of a half: their mean loss, and what else is to be returned of them.
        chosen: items of the batch, int64 (B,), B even.
        parameters: the leaves.

    Returns:
        the batch's mean loss, and the rest of `loss_of`'s results, joined along their first axis.
    """

    def half(items: torch.Tensor) -> tuple:
        loss, *rest = loss_of(items)
        return torch.autograd.grad(loss, parameters, allow_unused=True), loss.detach(), *rest

    with ThreadPoolExecutor(2) as pool:
        (ours, loss, *rest), (others, other_loss, *other_rest) = pool.map(half, chosen.chunk(2))
    for parameter, a, b in zip(parameters, ours, others, strict=True):
        parameter.grad = None if a is None else (a + b) / 2
    return (loss + other_loss) / 2, *(torch.cat(pair) for pair in zip(rest, other_rest, strict=True))


def warm_cosine(steps: int, warm_up: int = 20):
    """Learning-rate factor per step: a linear rise, then a cosine to a tenth."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))

    return factor


def prompt_ids(tokenizer: Qwen2Tokenizer, sentence: str, task: str = "stvg_r1") -> list[int]:
    """Token IDs of a prompt with the video's placeholders in place, as the processor would give them."""
    content = [{"type": "text", "text": synthetic.TASKS[task].prompt(sentence)}, {"type": "video"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text.replace("<|video_pad|>", "<|video_pad|>" * VIDEO_TOKENS))["input_ids"]


def positions(model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    """Mended three-axis positions (3, B, S) of sequences with one synthetic video each."""
    kinds = 2 * (ids == model.config.video_token_id).int()
    grid = torch.tensor([[UNITS, ROWS * MERGE, COLUMNS * MERGE]]).repeat(len(ids), 1)
    return model.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=grid)[0]


def embed(model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Input embeddings (B, S, width) with the visual tokens (B, VIDEO_TOKENS, width) in their places."""
    embeddings = model.get_input_embeddings()(ids)
    return embeddings.masked_scatter((ids == model.config.video_token_id)[..., None], visual)


def common_colors(config: TinyConfig) -> tuple[str, ...]:
    """The colours that are common words of the supervised pass."""
    return tuple(synthetic.COLORS)[: config.common_colors]


def train_answers(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    clips: list[synthetic.ClipSpec],
    visual: torch.Tensor,
    config: TinyConfig,
    seed: int,
    progress: bool = True,
) -> float:
    """Teach the language model to answer, over a frozen vision tower, for `answer_steps`; every shape serves as target.

    The loss is that of the answer's tokens, the first ID counted `id_weight` times. A linear head on the visual tokens
    after `guide_layer`, dropped afterwards, is asked which second a token shows and whether it shows the target: both
    are needed for any answer and come late when only the answer teaches them.
    Returns the last mean cross-entropy.
    """
    samples = [(k, track) for k, clip in enumerate(clips) for track in clip.tracks]
    common = common_colors(config)
    weight_of = torch.tensor([1.0 if track.color in common else config.rare_share for _, track in samples])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers = [tokenizer(completion(track, config.task))["input_ids"] + [end] for _, track in samples]
    length = len(answers[0])
    ids = torch.tensor(
        [prompt_ids(tokenizer, track.sentence, config.task) + a for (_, track), a in zip(samples, answers, strict=True)]
    )
    clip_of = torch.tensor([k for k, _ in samples])
    weights = torch.ones(length)
    digits = [k for k, token in enumerate(answers[0]) if tokenizer.decode([token]).isdigit()]
    weights[digits[0]] = config.id_weight
    labels = np.stack([token_labels(clip) for clip in clips])
    shown = np.stack([(labels[k, ..., 1] == track.object_id) * labels[k, ..., 3] for k, track in samples])
    shown = torch.from_numpy(shown).flatten(1)
    second = torch.arange(UNITS).repeat_interleave(ROWS * COLUMNS)
    place = positions(model, ids[:1])[:, :, :-1]
    video = (ids[0] == model.config.video_token_id).nonzero().flatten()

    generator = torch.Generator().manual_seed(seed)
    guide = nn.Linear(config.text_width, 2**TEMPORAL_PATCH + UNITS)
    with torch.no_grad():
        guide.weight.normal_(0.0, config.text_width**-0.5, generator=generator)
        guide.bias.zero_()
    guided = {}  # by thread
    hook = model.model.language_model.layers[config.guide_layer - 1].register_forward_hook(
        lambda module, inputs, output: guided.update(
            {threading.get_ident(): output[0] if isinstance(output, tuple) else output}
        )
    )
    model.model.visual.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad] + [*guide.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.answer_lr, weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    bar = tqdm(range(config.answer_steps), desc="warm start: answers", unit="step", disable=not progress)

    def loss_of(items: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch = ids[items]
        inputs = embed(model, batch, visual[clip_of[items]])[:, :-1]
        there = place.expand(3, len(items), -1)
        hidden = model.model.language_model(inputs_embeds=inputs, position_ids=there).last_hidden_state[:, -length:]
        logits = model.lm_head(hidden)
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, -length:], reduction="none")
        tokens = nn.functional.rms_norm(guided[threading.get_ident()][:, video], (config.text_width,))
        target, time_of = guide(tokens).flatten(0, 1).split((2**TEMPORAL_PATCH, UNITS), dim=-1)
        guide_loss = nn.functional.cross_entropy(target, shown[items].flatten())
        clock_loss = nn.functional.cross_entropy(time_of, second.repeat(len(items)))
        loss = (losses * weights).sum() / len(items) / 10 + 3 * guide_loss + clock_loss / 2
        return loss, losses.detach(), hidden.detach()

    for step in bar:
        chosen = torch.multinomial(weight_of, config.answer_batch, replacement=True, generator=generator)
        loss, losses, hidden = gradients(loss_of, chosen, parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    hook.remove()
    model.model.visual.requires_grad_(True)
    silence_placeholders(model, tokenizer, hidden.flatten(0, 1), progress)
    return losses.mean().item()


def silence_placeholders(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, hidden: torch.Tensor, progress: bool = True
) -> None:
    """Give the tokens that stand for pixels a logit below -20 wherever an answer is being written.

    A placeholder in a sampled answer has no pixels behind it and ends a training step with an error, and a small model
    would write one in ten thousand tokens. `hidden`: final hidden states (N, width) of answers.
    """
    row = torch.zeros(hidden.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([row], lr=0.05, fused=True)
    for _ in tqdm(range(300), desc="warm start: placeholders", unit="step", disable=not progress):
        loss = nn.functional.softplus(hidden @ row + 25.0).mean() + 1e-3 * row.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for token in SPECIAL_TOKENS:
            if token not in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"):
                model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = row


@torch.no_grad()
def answer_greedily(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    clips: list[synthetic.ClipSpec],
    visual: torch.Tensor,
    max_new_tokens: int = 40,
    task: str = "stvg_r1",
) -> list[str]:
    """Answers about clips from their visual tokens (N, VIDEO_TOKENS, width), without the vision tower."""
    ids = torch.tensor([prompt_ids(tokenizer, clip.target_track.sentence, task) for clip in clips])
    place = positions(model, ids)
    cache = DynamicCache()
    hidden = model.model.language_model(
        inputs_embeds=embed(model, ids, visual), position_ids=place, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1:]
    place = place[..., -1:]
    tokens = []
    for _ in range(max_new_tokens):
        tokens.append(model.lm_head(hidden).argmax(-1))
        place = place + 1
        hidden = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(tokens[-1]),
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = torch.cat(tokens, dim=1).tolist()
    return [tokenizer.decode(row[: row.index(end)] if end in row else row, skip_special_tokens=True) for row in rows]


def reward_parts(tracks: list[synthetic.Track], texts: list[str], task: str = "stvg_r1") -> dict[str, float]:
    """Mean parts of the task's reward, each in [0, 1]: `temporal_iou`, `format` and, for STVG-R1, `id_match`."""
    parts = find_recipe(synthetic.TASKS[task].data_source).parts
    totals = dict.fromkeys(parts, 0.0)
    for track, text in zip(tracks, texts, strict=True):
        truth = {"object_id": track.object_id, "start": track.start, "end": track.end, "duration": synthetic.DURATION}
        for name, (part, _) in parts.items():
            totals[name] += part(text, truth) / len(tracks)
    return totals


@torch.no_grad()
def score(
    model_dir: str | os.PathLike,
    clips: list[synthetic.ClipSpec],
    samples: int = 0,
    seed: int = 0,
    batch: int = 48,
    task: str = "stvg_r1",
) -> dict[str, float]:
    """Mean reward parts of a saved model on clips, by way of real mp4 files, the sampling plan and the processor.

    Greedy by default; with `samples`, that many answers per clip are drawn at temperature 1.
    Returns what `reward_parts` does.
    """
    mend_transformers()
    processor = AutoProcessor.from_pretrained(model_dir)
    model = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(seed)
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(clips), batch):
            chunk = clips[first : first + batch]
            inputs = processor(
                **_processor_inputs(processor, chunk, Path(folder), task), return_tensors="pt", padding=True
            )
            choice = (
                {"do_sample": True, "num_return_sequences": samples, "top_k": 0} if samples else {"do_sample": False}
            )
            output = model.generate(**inputs, max_new_tokens=64, **choice)
            texts += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return reward_parts([clip.target_track for clip in clips for _ in range(max(samples, 1))], texts, task)


def _processor_inputs(processor: Qwen2_5_VLProcessor, clips: list[synthetic.ClipSpec], folder: Path, task: str) -> dict:
    texts, videos, metadata = [], [], []
    for clip in clips:
        path = folder / "clip.mp4"
        synthetic.write_video(path, synthetic.render_frames(clip, range(synthetic.NUM_FRAMES)))
        plan = plan_video(
            synthetic.NUM_FRAMES,
            synthetic.SOURCE_FPS,
            synthetic.WIDTH,
            synthetic.HEIGHT,
            fps=synthetic.GRID_FPS,
            min_pixels=synthetic.FRAME_PIXELS,
            max_pixels=synthetic.FRAME_PIXELS,
        )
        videos.append(torch.from_numpy(read_frames(path, plan)).permute(0, 3, 1, 2))
        metadata.append(VideoMetadata(**plan.metadata()))
        instruction = synthetic.TASKS[task].prompt(clip.target_track.sentence)
        message = {"role": "user", "content": [{"type": "text", "text": instruction}, {"type": "video"}]}
        texts.append(processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    return {
        "text": texts,
        "videos": videos,
        "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False, "do_resize": False},
    }


def make(out_dir: str | os.PathLike, seed: int = 0, config: TinyConfig | None = None, progress: bool = True) -> Path:
    """Make the warm-started model in a folder of its own (weights, processor, `warm_start.json`) and return the folder.

    A model made there before from the same configuration, seed, code and libraries is kept; an outdated one is
    replaced. The folder appears only when everything in it is written.

    Raises ValueError when `out_dir` exists and is no folder made by this function.
    """
    config = config or TinyConfig()
    out_dir = Path(out_dir)
    key = cache_key(config, seed)
    if not finished(out_dir) or not _is_of(out_dir, key):
        with whole(out_dir, wait=True) as work:
            if not out_dir.exists() or not _is_of(out_dir, key):  # else another process has just made it
                if out_dir.exists():
                    logger.info("%s is outdated and made again", out_dir)
                _write(work, key, seed, config, progress)
                if out_dir.exists():
                    out_dir.rename(work / "outdated")
                    shutil.rmtree(work / "outdated")
    _tell_weights(out_dir, seed, config)
    return out_dir


def _tell_weights(folder: Path, seed: int, config: TinyConfig) -> None:
    """Log the hash of a model's weights, and whether it is the recorded one."""
    found = json.loads((folder / "warm_start.json").read_text(encoding="utf-8"))["weights"]
    logger.info("%s: weights %s", folder, found)
    if (config, seed) == (TinyConfig(), 0) and found != WEIGHTS:
        logger.warning(
            "The tiny model's weights are %s with torch %s on this machine, and %s where docs/learning.md was "
            "measured: your figures may differ from its figures.",
            found,
            torch.__version__,
            WEIGHTS,
        )


def _is_of(folder: Path, key: str) -> bool:
    """Whether a folder holds the model of a key; ValueError where it holds none made here."""
    record = folder / "warm_start.json"
    if not record.is_file():
        raise ValueError(f"{folder} exists and holds no model made here. Remove it, or choose another folder.")
    return json.loads(record.read_text(encoding="utf-8"))["key"] == key


def _write(work: Path, key: str, seed: int, config: TinyConfig, progress: bool) -> None:
    """Make the model and write it into a folder."""
    began = time.monotonic()
    asked = json.dumps({"config": asdict(config), "seed": seed, "progress": progress, "parent": os.getpid()})
    child = python.code(
        "from verl_stvg.data_builders.testing import tiny_model; tiny_model.make_weights(*sys.argv[1:])",
        str(work),
        asked,
    )
    same = dict(SAME_ON_EVERY_CPU)
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        del same["ATEN_CPU_CAPABILITY"], same["OPENBLAS_CORETYPE"]  # other weights than recorded, which is said
    ended = subprocess.run(child, env=python.environment(path=True) | same).returncode
    if ended:
        how = f"signal {-ended} ({signal.Signals(-ended).name})" if ended < 0 else f"status {ended}"
        reason = "was there enough memory (3 GB)?" if ended == -signal.SIGKILL else "see its messages above"
        raise ValueError(f"{work.parent}: the process that makes the tiny model ended with {how}; {reason}")
    taught = work / "taught.json"
    held_out = [synthetic.make_clip(seed, "warm", config.clips + k) for k in range(config.eval_clips)]
    record = {
        "key": key,
        "seed": seed,
        "config": asdict(config),
        "weights": weights_hash(work),
        **json.loads(taught.read_text(encoding="utf-8")),
        "held_out_clips": config.eval_clips,
        "greedy": score(work, held_out, task=config.task),
        "sampled": score(work, held_out, samples=2, seed=seed, task=config.task),
        "seconds": round(time.monotonic() - began, 1),
    }
    taught.unlink()
    (work / "warm_start.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def make_weights(folder: str, asked: str) -> None:
    """Train the model and write it, its processor and `taught.json`; runs in the environment `SAME_ON_EVERY_CPU`.

    `asked` is JSON: the configuration, the seed, whether to show bars, and the process that waits for this one.
    """
    asked = json.loads(asked)
    python.end_with_parent(asked["parent"])
    config, seed, progress = TinyConfig(**asked["config"]), asked["seed"], asked["progress"]
    torch.backends.mkldnn.set_flags(False)
    nn.functional.linear = linear
    mend_transformers()
    processor = make_processor(config.task)
    model = make_untrained(config, processor.tokenizer, seed)
    clips, frames = render_pool(seed, 0, config.clips, progress)
    accuracy = train_vision(model, processor, clips, frames, config, seed, progress)
    visual = features(model, processor.video_processor, frames)
    loss = train_answers(model, processor.tokenizer, clips, visual, config, seed, progress)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    taught = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vision_accuracy": accuracy,
        "answer_loss": loss,
    }
    (Path(folder) / "taught.json").write_text(json.dumps(taught), encoding="utf-8")


def weights_hash(folder: str | os.PathLike) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a model's weights: names and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(Path(folder) / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_key(config: TinyConfig, seed: int) -> str:
    """Hash of all that determines the model: configuration, seed, the code of the builders, and library versions."""
    digest = hashlib.sha256(json.dumps([asdict(config), seed, torch.__version__, transformers.__version__]).encode())
    for module in (synthetic.__file__, Path(synthetic.__file__).with_name("synthetic_world.py"), __file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:16]
