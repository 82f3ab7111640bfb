"""A tiny model that follows the instruction of boundary reflection's mode ``prompted``, for tests and measurements.

The tiny model of the recipes knows one prompt. Here its supervised pass goes on, over the frozen vision tower, on
clips in which the target is shown once or twice: one occurrence is named in the prompt, the answer lists the other one
or is empty. `python -m tests.support.prompted_model MODEL OUT` makes the folder; its clips are of a seed that no test
uses.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.planted import planted_clip
from verl_stvg.data_builders.selection import boundary_reflection
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.testing import same_sums, tiny_answers, tiny_parts, tiny_vision
from verl_stvg.patches.transformers_positions import mend_transformers

SEED = 1001


@dataclass(frozen=True)
class Sample:
    """A question about a clip: which track is named, and which one, if any, is the answer."""

    clip: int
    named: synthetic.Track
    other: synthetic.Track | None


def samples_of(clips: list[synthetic.ClipSpec], twice: list[bool]) -> list[Sample]:
    """Every track named once."""
    found = []
    for k, (clip, again) in enumerate(zip(clips, twice, strict=True)):
        pairs = {0: clip.tracks[2], 2: clip.tracks[0]} if again else {}
        found += [Sample(k, track, pairs.get(place)) for place, track in enumerate(clip.tracks)]
    return found


def answer(sample: Sample) -> str:
    """What is taught: the colour and the list."""
    found = f"({sample.other.start:.2f}, {sample.other.end:.2f})" if sample.other else ""
    return f"<think>{sample.named.color}</think><answer>[{found}]</answer>"


def prompt_ids(tokenizer, sample: Sample) -> list[int]:
    """Tokens of the prompt, as the stage asks it of a synthetic row."""
    named = f"{sample.named.start:.2f} to {sample.named.end:.2f} seconds"
    text = (
        boundary_reflection.PROMPTS["prompted"][1].replace("{spans}", named).replace("{query}", sample.named.sentence)
    )
    content = [{"type": "text", "text": text}, {"type": "video"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text.replace("<|video_pad|>", "<|video_pad|>" * tiny_parts.VIDEO_TOKENS))["input_ids"]


def draw(seed: int, count: int) -> tuple[list[synthetic.ClipSpec], list[bool], np.ndarray]:
    """Clips, whether the target is shown twice, and their frames as the model sees them."""
    twice = [k % 2 == 0 for k in range(count)]
    clips = [planted_clip(seed, k, again) for k, again in enumerate(twice)]
    size = tiny_parts.FRAME_WIDTH, tiny_parts.FRAME_HEIGHT
    frames = np.empty((count, synthetic.NUM_TICKS, size[1], size[0], 3), dtype=np.uint8)
    ticks = range(0, synthetic.NUM_FRAMES, synthetic.FRAMES_PER_TICK)
    for k, clip in enumerate(clips):
        for tick, native in enumerate(synthetic.render_frames(clip, ticks)):
            frames[k, tick] = cv2.resize(native, size, interpolation=cv2.INTER_AREA)
    return clips, twice, frames


def guide_labels(clip: synthetic.ClipSpec, sample: Sample) -> np.ndarray:
    """What each visual token shows: 4 the named occurrence, 1 to 3 the other one (in which frames), or 0."""
    named, other = (
        tiny_vision.token_labels(synthetic.ClipSpec((track,) if track else (), 0, clip.background))[..., 3].reshape(-1)
        for track in (sample.named, sample.other)
    )
    return np.where(named > 0, 4, other)


def teach(model_dir: Path, out: Path, clips: int = 600, steps: int = 350, batch: int = 16, lr: float = 1e-3) -> None:
    """Go on from the tiny model and write the taught one; prints the loss and the share of right answers as it goes.

    As in the warm start, a linear head on the visual tokens, dropped afterwards, is asked what each shows and when.
    """
    mend_transformers()
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(model_dir)
    tokenizer = processor.tokenizer
    model = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    specs, twice, frames = draw(SEED, clips)
    visual = tiny_vision.features(model, processor.video_processor, frames)
    samples = samples_of(specs, twice)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompts = [prompt_ids(tokenizer, sample) for sample in samples]
    answers = [tokenizer(answer(sample))["input_ids"] + [end] for sample in samples]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(samples), longest), tokenizer.pad_token_id)
    taught = torch.zeros(len(samples), longest)  # 1 where the next token is taught
    for k, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        ids[k, : len(p) + len(a)] = torch.tensor(p + a)
        taught[k, len(p) - 1 : len(p) + len(a) - 1] = 1
    guided = torch.stack([torch.from_numpy(guide_labels(specs[sample.clip], sample)) for sample in samples])
    clip_of = torch.tensor([sample.clip for sample in samples])
    positive = torch.tensor([sample.other is not None for sample in samples])
    weight = torch.where(positive, 1 / positive.sum(), 1 / (~positive).sum())
    second = torch.arange(tiny_parts.UNITS).repeat_interleave(tiny_parts.ROWS * tiny_parts.COLUMNS).repeat(batch)
    kinds = 5  # of `guide_labels`
    guide = nn.Linear(model.config.text_config.hidden_size, kinds + tiny_parts.UNITS)
    held = {}
    hook = model.model.language_model.layers[1].register_forward_hook(
        lambda module, inputs, output: held.update(hidden=output[0] if isinstance(output, tuple) else output)
    )
    parameters = [p for p in model.parameters() if p.requires_grad] + [*guide.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, same_sums.warm_cosine(steps))
    began, right, count = time.monotonic(), 0, 0
    for step in range(steps):
        chosen = torch.multinomial(weight, batch, replacement=True)
        rows = ids[chosen]
        inputs = tiny_answers.embed(model, rows, visual[clip_of[chosen]])[:, :-1]
        place = tiny_answers.positions(model, rows)[:, :, :-1]
        hidden = model.model.language_model(inputs_embeds=inputs, position_ids=place).last_hidden_state
        mask = taught[chosen][:, :-1].bool()
        logits, wanted = model.lm_head(hidden[mask]), rows[:, 1:][mask]
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        video = rows == model.config.video_token_id
        tokens = nn.functional.rms_norm(held["hidden"][video[:, :-1]], (held["hidden"].shape[-1],))
        seen, when = guide(tokens).split((kinds, tiny_parts.UNITS), dim=-1)
        loss = losses.sum() / batch / 10 + 3 * nn.functional.cross_entropy(seen, guided[chosen].flatten())
        loss = loss + nn.functional.cross_entropy(when, second) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        owner = mask.nonzero()[:, 0]
        missed = torch.zeros(batch).index_add(0, owner, (logits.argmax(-1) != wanted).float())
        right, count = right + int((missed == 0).sum()), count + batch
        if step % 10 == 9:
            print(
                f"{step + 1} loss {losses.mean():.3f} guide {float(loss - losses.sum() / batch / 10):.3f} "
                f"right {right / count:.2f} {time.monotonic() - began:.0f} s",
                flush=True,
            )
            right = count = 0
    hook.remove()
    model.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    teach(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
