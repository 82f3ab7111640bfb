"""Sizes, tokenizer, processor and untrained weights of the tiny Qwen2.5-VL."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AddedToken,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from verl_stvg.data_builders.sets import synthetic

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
    answer_steps: int = 480
    answer_batch: int = 32
    answer_lr: float = 2e-3
    id_weight: float = 3.0
    guide_layer: int = 2
    common_colors: int = synthetic.COMMON_COLORS  # of COLORS; the others are rare words of the supervised pass,
    rare_share: float = 0.0415  # each sample about one drawn with this weight
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


def _model_config(config: TinyConfig, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    token_id = tokenizer.get_vocab().__getitem__
    head_dim = config.text_width // config.text_heads
    quarter = head_dim // 8
    return Qwen2_5_VLConfig(
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


def make_untrained(config: TinyConfig, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A random model in float32, weights drawn with standard deviation 1/sqrt(fan in).

    Args:
        config: sizes.
        tokenizer: of `make_tokenizer`.
        seed: of the weights.
    """
    model = Qwen2_5_VLForConditionalGeneration(_model_config(config, tokenizer))
    token_id = tokenizer.convert_tokens_to_ids
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


def make_head(width: int, classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear head that a supervised pass drops afterwards.

    Args:
        width: of its inputs, whose standard deviation is about one.
        classes: number of its outputs.
        generator: its weights are drawn from there with standard deviation 1/sqrt(width); the biases are zero.
    """
    head = nn.Linear(width, classes)
    with torch.no_grad():
        head.weight.normal_(0.0, width**-0.5, generator=generator)
        head.bias.zero_()
    return head
