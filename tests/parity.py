"""Answers and probabilities of held-out clips from vLLM and from transformers, as one line of JSON.

A program of its own because a vLLM engine wants a process for itself: `python tests/parity.py MODEL ROWS COUNT`.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from vllm import LLM, SamplingParams

from verl_stvg.dataset import read_video  # imports verl, and with it the plugin

NEW_TOKENS = 48


def main(model_path: str, rows: Path, count: int) -> None:
    table = pq.read_table(rows / "val.parquet").to_pylist()[:count]
    processor = AutoProcessor.from_pretrained(model_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32).eval()
    engine = LLM(
        model_path,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"video": 1, "image": 0},
    )
    texts, videos = [], []
    for row in table:
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
        answers = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)[:, batch["input_ids"].shape[1] :]
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
    result = {
        "vllm": [output.outputs[0].text for output in outputs],
        "transformers": processor.batch_decode(answers, skip_special_tokens=True),
        "mean": sum(differences) / len(differences),
        "max": max(differences),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
