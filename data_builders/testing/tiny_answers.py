"""The language model of the tiny model learns to answer, over a frozen vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from reward_fns.registry import find_recipe
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.testing.same_sums import gradients
from verl_stvg.data_builders.testing.tiny_parts import (
    COLUMNS,
    MERGE,
    ROWS,
    SPECIAL_TOKENS,
    TEMPORAL_PATCH,
    UNITS,
    VIDEO_TOKENS,
    TinyConfig,
    make_head,
)
from verl_stvg.data_builders.testing.tiny_vision import token_labels


def common_colors(config: TinyConfig) -> tuple[str, ...]:
    """The colours that are common words of the supervised pass."""
    return tuple(synthetic.COLORS)[: config.common_colors]


def completion(track: synthetic.Track, task: str = "stvg_r1") -> str:
    """The answer the warm start teaches for a track; the thought names the object whatever is asked."""
    thought = f"{track.color} {track.object_id}"
    return synthetic.TASKS[task].completion(track.object_id, track.start, track.end, thought)


def prompt_ids(tokenizer: Qwen2Tokenizer, sentence: str, task: str = "stvg_r1") -> list[int]:
    """Token IDs of a prompt with the video's placeholders in place, as the processor would give them.

    Args:
        tokenizer: of the model.
        sentence: that is asked about.
        task: one of `synthetic.TASKS`.
    """
    content = [{"type": "text", "text": synthetic.TASKS[task].prompt(sentence)}, {"type": "video"}]
    messages: Any = [{"role": "user", "content": content}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return tokenizer(text.replace("<|video_pad|>", "<|video_pad|>" * VIDEO_TOKENS))["input_ids"]


def positions(model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    """Mended three-axis positions (3, B, S) of sequences with one synthetic video each."""
    kinds = 2 * (ids == model.config.video_token_id).int()
    grid = torch.tensor([[UNITS, ROWS * MERGE, COLUMNS * MERGE]]).repeat(len(ids), 1)
    core: Any = model.model
    return core.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=grid)[0]


def embed(model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Input embeddings (B, S, width) with the visual tokens in their places.

    Args:
        model: whose words are embedded.
        ids: int64 (B, S), with VIDEO_TOKENS placeholders each.
        visual: float32 (B, VIDEO_TOKENS, width).
    """
    embeddings = model.get_input_embeddings()(ids)
    return embeddings.masked_scatter((ids == model.config.video_token_id)[..., None], visual)


@dataclass(frozen=True)
class _Samples:
    """What the language model is taught: a prompt and an answer for every track of every clip.

    Args:
        ids: int64 (N, S), prompts with their answers.
        clip_of: int64 (N,), the clip of each.
        weight: float32 (N,), how often each is drawn.
        shown: int64 (N, VIDEO_TOKENS), in which of a visual token's two frames the track is there (bits 1 and 2).
        loss_weight: float32 (L,), of the losses of an answer's tokens; all answers have L tokens.
    """

    ids: torch.Tensor
    clip_of: torch.Tensor
    weight: torch.Tensor
    shown: torch.Tensor
    loss_weight: torch.Tensor


def _samples(tokenizer: Qwen2Tokenizer, clips: list[synthetic.ClipSpec], config: TinyConfig) -> _Samples:
    pairs = [(k, track) for k, clip in enumerate(clips) for track in clip.tracks]
    common = common_colors(config)
    weight = torch.tensor([1.0 if track.color in common else config.rare_share for _, track in pairs])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers = [tokenizer(completion(track, config.task))["input_ids"] + [end] for _, track in pairs]
    prompts = [prompt_ids(tokenizer, track.sentence, config.task) for _, track in pairs]
    ids = torch.tensor([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    labels = np.stack([token_labels(clip) for clip in clips])
    shown = np.stack([(labels[k, ..., 1] == track.object_id) * labels[k, ..., 3] for k, track in pairs])
    clip_of = torch.tensor([k for k, _ in pairs])
    loss_weight = torch.ones(len(answers[0]))
    digits = [k for k, token in enumerate(answers[0]) if str(tokenizer.decode([token])).isdigit()]
    loss_weight[digits[0]] = config.id_weight
    return _Samples(ids, clip_of, weight, torch.from_numpy(shown).flatten(1), loss_weight)


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

    Args:
        model: its language model is changed in place.
        tokenizer: of the model.
        clips: N clips.
        visual: tokens of the clips, float32 (N, VIDEO_TOKENS, width), see `features`.
        config: steps, batch, learning rate and how often rare words are drawn.
        seed: of the batches.
        progress: whether a bar is shown.

    Returns:
        the last mean cross-entropy.
    """
    samples = _samples(tokenizer, clips, config)
    ids, clip_of, length = samples.ids, samples.clip_of, len(samples.loss_weight)
    second = torch.arange(UNITS).repeat_interleave(ROWS * COLUMNS)
    place = positions(model, ids[:1])[:, :, :-1]
    video = (ids[0] == model.config.video_token_id).nonzero().flatten()

    generator = torch.Generator().manual_seed(seed)
    guide = make_head(config.text_width, 2**TEMPORAL_PATCH + UNITS, generator)
    guided = {}  # by thread
    hook = model.model.language_model.layers[config.guide_layer - 1].register_forward_hook(
        lambda module, inputs, output: guided.update({get_ident(): output[0] if isinstance(output, tuple) else output})
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
        tokens = nn.functional.rms_norm(guided[get_ident()][:, video], (config.text_width,))
        target, time_of = guide(tokens).flatten(0, 1).split((2**TEMPORAL_PATCH, UNITS), dim=-1)
        guide_loss = nn.functional.cross_entropy(target, samples.shown[items].flatten())
        clock_loss = nn.functional.cross_entropy(time_of, second.repeat(len(items)))
        loss = (losses * samples.loss_weight).sum() / len(items) / 10 + 3 * guide_loss + clock_loss / 2
        return loss, losses.detach(), hidden.detach()

    for step in bar:
        chosen = torch.multinomial(samples.weight, config.answer_batch, replacement=True, generator=generator)
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
    would write one in ten thousand tokens.

    Args:
        model: its output layer is changed in place.
        tokenizer: of the model.
        hidden: final hidden states of answers, float32 (N, width).
        progress: whether a bar is shown.
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
    """Answers about clips from their visual tokens, without the vision tower.

    Args:
        model: that answers.
        tokenizer: of the model.
        clips: N clips; each is asked about its target.
        visual: tokens of the clips, float32 (N, VIDEO_TOKENS, width).
        max_new_tokens: of an answer.
        task: one of `synthetic.TASKS`.
    """
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
    answers = [row[: row.index(end)] if end in row else row for row in rows]
    return [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]


def reward_parts(tracks: list[synthetic.Track], texts: list[str], task: str = "stvg_r1") -> dict[str, float]:
    """Mean parts of the task's reward, each in [0, 1]: `temporal_iou`, `format` and, for STVG-R1, `id_match`.

    Args:
        tracks: the targets.
        texts: an answer for each.
        task: one of `synthetic.TASKS`.
    """
    parts = find_recipe(synthetic.TASKS[task].data_source).parts
    totals = dict.fromkeys(parts, 0.0)
    for track, text in zip(tracks, texts, strict=True):
        truth = {"object_id": track.object_id, "start": track.start, "end": track.end, "duration": synthetic.DURATION}
        for name, (part, _) in parts.items():
            totals[name] += part(text, truth) / len(tracks)
    return totals
