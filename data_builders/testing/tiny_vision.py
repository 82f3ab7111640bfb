"""The vision tower of the tiny model learns to name what it sees in each visual token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.vision_utils import get_vision_position_ids

from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.testing.same_sums import gradients, warm_cosine
from verl_stvg.data_builders.testing.tiny_parts import (
    COLUMNS,
    FRAME_HEIGHT,
    FRAME_WIDTH,
    MERGE,
    PATCH,
    ROWS,
    TEMPORAL_PATCH,
    TOKEN_PIXELS,
    UNITS,
    VIDEO_TOKENS,
    TinyConfig,
    make_head,
)

COLOR_NAMES = tuple(synthetic.COLORS)
_CONCEPTS = (  # what a visual token may show, as words of the vocabulary; class 0: nothing centred here
    (".", *(f" {c}" for c in COLOR_NAMES)),
    (".", *(str(i) for i in synthetic.IDS)),
    (".", *(f" {s}" for s in synthetic.SHAPES)),
)


def render_pool(
    seed: int, first: int, count: int, progress: bool = True
) -> tuple[list[synthetic.ClipSpec], np.ndarray]:
    """Clips of the warm-start split as the model would see them: specs and uint8 (count, 16, 56, 84, 3).

    Args:
        seed: of the clips.
        first: number of the first clip.
        count: number of clips.
        progress: whether a bar is shown.
    """
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


def tower(visual: Any, patches: torch.Tensor) -> torch.Tensor:
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
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.flatten(0, 1)).unflatten(0, (units, -1))


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

    Args:
        model: its tower is changed in place.
        processor: of the model.
        clips: N clips.
        frames: of the clips, uint8 (N, T, H, W, 3), see `render_pool`.
        config: steps, batch and learning rate.
        seed: of the batches.
        progress: whether a bar is shown.

    Returns:
        the accuracies over the last tenth of the steps, on tokens where something is centred.
    """
    visual: Any = model.model.visual  # its parts are typed as any module
    generator = torch.Generator().manual_seed(seed)
    words = [
        model.get_input_embeddings().weight[[processor.tokenizer(w)["input_ids"][0] for w in c]].detach()
        * config.text_width**-0.5
        for c in _CONCEPTS
    ]
    when = make_head(config.text_width, 2**TEMPORAL_PATCH, generator)
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
    """Visual tokens of clips, float32 (N, VIDEO_TOKENS, width); each temporal unit is computed once.

    Args:
        model: whose tower is asked.
        video_processor: of the model.
        frames: uint8 (N, T, H, W, 3), see `render_pool`.
    """
    chunks = [patchify(video_processor, frames[k : k + 16]) for k in range(0, len(frames), 16)]
    return torch.cat([tower(model.model.visual, c) for c in chunks]).view(len(frames), VIDEO_TOKENS, -1)
