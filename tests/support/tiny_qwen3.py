"""A random Qwen3-VL of the real architecture, small enough for a test: tower with deepstack, interleaved positions.

Its tokenizer and chat format are those of the tiny Qwen2.5-VL (`verl_stvg.data_builders.testing.tiny_model`), and it
knows as little as a random model does: what is tested is what it reads. Its weights are large enough that a wrong
position or time shows.
"""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from verl_stvg.data_builders.testing.tiny_parts import make_tokenizer
from verl_stvg.video.frame_rules import MERGE, QWEN3_PATCH

TOKEN_PIXELS = (QWEN3_PATCH * MERGE) ** 2
WIDTH, LAYERS, HEADS = 128, 4, 4


def make_processor() -> Qwen3VLProcessor:
    """Qwen3-VL's processor, with limits of whole videos that let small clips be as they are."""
    tokenizer = make_tokenizer()
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=QWEN3_PATCH,
            size={"shortest_edge": TOKEN_PIXELS, "longest_edge": 64 * TOKEN_PIXELS},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 2 * TOKEN_PIXELS, "longest_edge": 4096 * TOKEN_PIXELS}
        ),
        chat_template=tokenizer.chat_template,
    )


def make(folder: Path, seed: int = 0) -> Path:
    """Save a random model in float32 with its processor, and return the folder."""
    processor = make_processor()
    token_id = processor.tokenizer.convert_tokens_to_ids
    head = WIDTH // HEADS
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={
                "vocab_size": len(processor.tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS // 2,
                "head_dim": head,
                "max_position_embeddings": 8192,
                "bos_token_id": token_id("<|endoftext|>"),
                "eos_token_id": token_id("<|im_end|>"),
                "pad_token_id": token_id("<|endoftext|>"),
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [head // 2 - 2 * (head // 6), head // 6, head // 6],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 3,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_heads": HEADS,
                "out_hidden_size": WIDTH,
                "patch_size": QWEN3_PATCH,
                "spatial_merge_size": MERGE,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            image_token_id=token_id("<|image_pad|>"),
            video_token_id=token_id("<|video_pad|>"),
            vision_start_token_id=token_id("<|vision_start|>"),
            vision_end_token_id=token_id("<|vision_end|>"),
            tie_word_embeddings=False,
            dtype="float32",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 * parameter[0].numel() ** -0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|endoftext|>"), do_sample=False
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
