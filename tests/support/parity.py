"""Answers, probabilities and positions from vLLM and from transformers, as one line of JSON.

A program of its own because a vLLM engine wants a process for itself:
`python tests/support/parity.py MODEL ROWS COUNT [positions [DTYPE]]`. Answers and probabilities are those of COUNT
held-out clips; positions those of noise at many rates and lengths (`NOISE`), of an image, and of a prompt without
either. DTYPE is that of vLLM's weights (float32); in another, only positions can be equal.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from vllm import LLM, SamplingParams

from verl_stvg.training.dataset import read_video  # imports verl, and with it the plugin

NEW_TOKENS = 48
NOISE = [(fps, frames) for fps in (1.0, 2.0, 2.02, 3.0, 24.0, 29.97) for frames in (1, 2, 7, 16, 61, 120)]
NOISE += [(2.0, 768), (29.97, 768)]
NOISE += [(fps, frames) for fps in (0.7, 1.9, 29.97 / 12) for frames in (2, 16, 120, 600)]
"""Frames per second and number of frames."""


def record(worker) -> None:
    """Keep the positions that vLLM's worker gives to each prompt from now on."""
    model = worker.model_runner.model
    stock, model.seen = model.get_mrope_input_positions, []

    def get_mrope_input_positions(*args, **kwargs):
        result = stock(*args, **kwargs)
        model.seen.append(result[0].tolist())
        return result

    model.get_mrope_input_positions = get_mrope_input_positions


def recorded(worker) -> list:
    return worker.model_runner.model.seen


def positions(engine, processor, model) -> dict[str, bool]:
    """Whether both give the same prompt tokens and the same positions, by prompt."""
    generator = np.random.default_rng(0)
    cases = {}
    for fps, frames in NOISE:
        pixels = torch.from_numpy(generator.integers(0, 256, (frames, 3, 56, 28), dtype=np.uint8))
        cases[f"{frames} frames at {fps} fps"] = {
            "video": (pixels, {"fps": fps, "total_num_frames": frames, "frames_indices": list(range(frames))})
        }
    cases["an image"] = {"image": Image.fromarray(generator.integers(0, 256, (56, 84, 3), dtype=np.uint8))}
    cases["text alone"] = {}
    engine.collective_rpc(record)
    same = {}
    for name, media in cases.items():
        content = [{"type": "text", "text": "Find when this happens"}, *({"type": kind} for kind in media)]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        given = {"text": [text], "return_tensors": "pt"}
        if "image" in media:
            given["images"] = [media["image"]]
        if "video" in media:
            frames, metadata = media["video"]
            given |= {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
        inputs = processor(**given)
        grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
        ours, _ = model.model.get_rope_index(
            inputs["input_ids"],
            inputs.get("mm_token_type_ids", torch.zeros_like(inputs["input_ids"])),
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            **grids,
        )
        prompt = {"prompt": text} | ({"multi_modal_data": {k: [v] for k, v in media.items()}} if media else {})
        (output,) = engine.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
        (seen,) = engine.collective_rpc(recorded)
        same[name] = output.prompt_token_ids == inputs["input_ids"][0].tolist() and seen[-1] == ours[:, 0].tolist()
    return same


def main(model_path: str, rows: Path, count: int, also_positions: bool, dtype: str) -> None:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # lets functions be sent to the worker
    processor = AutoProcessor.from_pretrained(model_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32).eval()
    engine = LLM(
        model_path,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=1024,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"video": 1, "image": 1},
    )
    result = answers(engine, processor, model, rows, count) if count else {"vllm": []}
    result["positions"] = positions(engine, processor, model) if also_positions else {}
    sys.stdout.write(json.dumps(result) + "\n")


def answers(engine, processor, model, rows: Path, count: int) -> dict:
    """Answers of both to the first held-out rows, and how far their probabilities of vLLM's tokens are apart."""
    texts, videos = [], []
    for row in pq.read_table(rows / "val.parquet").to_pylist()[:count]:
        question = row["prompt"][0]["content"].replace("<video>", "")
        message = {"role": "user", "content": [{"type": "text", "text": question}, {"type": "video"}]}
        texts.append(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
        videos.append(read_video(row["videos"][0] | {"video": str(rows / row["videos"][0]["video"])}))

    def process(chosen: slice, **padding):
        return processor(
            text=texts[chosen],
            videos=[frames for frames, _ in videos[chosen]],
            video_metadata=[metadata for _, metadata in videos[chosen]],
            do_sample_frames=False,
            return_tensors="pt",
            **padding,
        )

    prompts = [{"prompt": t, "multi_modal_data": {"video": [v]}} for t, v in zip(texts, videos, strict=True)]
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0)
    outputs = engine.generate(prompts, greedy, use_tqdm=False)

    batch = process(slice(None), padding=True, padding_side="left")
    with torch.no_grad():
        said = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)[:, batch["input_ids"].shape[1] :]
    differences = []
    for k, output in enumerate(outputs):
        inputs = process(slice(k, k + 1))
        assert output.prompt_token_ids == inputs["input_ids"][0].tolist(), "the two read other prompt tokens"
        sampled = list(output.outputs[0].token_ids)
        full = torch.cat([inputs.pop("input_ids")[0], torch.tensor(sampled)])[None]
        types = inputs.pop("mm_token_type_ids")
        types = torch.cat([types, torch.zeros(1, len(sampled), dtype=types.dtype)], dim=1)
        inputs["attention_mask"] = torch.ones_like(full)
        with torch.no_grad():
            logits = model(input_ids=full, mm_token_type_ids=types, **inputs).logits[0, -len(sampled) - 1 : -1]
        ours = torch.log_softmax(logits, -1).gather(1, torch.tensor(sampled)[:, None])[:, 0]
        theirs = torch.tensor([s[token].logprob for s, token in zip(output.outputs[0].logprobs, sampled, strict=True)])
        differences += (ours.exp() - theirs.exp()).abs().tolist()
    return {
        "vllm": [output.outputs[0].text for output in outputs],
        "transformers": processor.batch_decode(said, skip_special_tokens=True),
        "mean": sum(differences) / len(differences),
        "max": max(differences),
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), "positions" in sys.argv[4:], (*sys.argv[5:], "float32")[0])
