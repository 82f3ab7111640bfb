"""Groups of equal rewards: the advantages verl's GRPO gives them, and what these do to the tiny model.

The first rows score random intervals that overlap the truth by the recipes' own rewards and put each score into a group
of eight equal ones. The others take prompts of the tiny model, which answers each of them the same eight times: such a
step teaches nothing. They run verl's policy loss and an optimizer with the settings of `+variant=tiny`, without the
engine and without KL loss, from verl's advantages and from ours. Two minutes with `--model .cache/model`, which `make
demo` leaves; five without, because the model is made first.
"""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from benchmarks import Options, Row
from reward_fns import RECIPES
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.testing import tiny_answers, tiny_model, tiny_vision
from verl_stvg.patches import equal_rewards
from verl_stvg.patches.transformers_positions import mend_transformers

N = 8
VALUES = 1000
PROMPTS = 16
STEPS = 20
LEARNING_RATE = 3e-4

Estimator = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def estimators() -> dict[str, Estimator]:
    """Our side and verl's."""
    stock = core_algos.compute_grpo_outcome_advantage
    return {"ours": equal_rewards.exact(stock), "other": stock}


def advantages_of(estimator: Estimator, groups: Sequence[Sequence[float]]) -> torch.Tensor:
    """Advantages of the answers of groups, one after the other."""
    scores = torch.tensor([score for group in groups for score in group])[:, None]
    index = np.array([str(k) for k, group in enumerate(groups) for _ in group], dtype=object)
    return estimator(token_level_rewards=scores, response_mask=torch.ones_like(scores), index=index)[0][:, 0]


def scores_of(task: str, rng: np.random.Generator) -> list[float]:
    """What a task's reward gives to answers whose interval, in two decimals, overlaps the truth; all else is right."""
    scores = []
    while len(scores) < VALUES:
        (start, end), (first, last) = np.sort(rng.uniform(0.0, synthetic.DURATION, (2, 2)).round(2))
        truth = {"object_id": 1, "start": start, "end": end, "duration": synthetic.DURATION}
        if max(start, first) < min(end, last):
            answer = synthetic.TASKS[task].completion(1, first, last, "red 1")
            scores.append(RECIPES[task].score(answer, truth)["score"])
    return scores


def shares(task: str, rng: np.random.Generator) -> Iterator[Row]:
    """How many scores push as a group of equal ones, and how much."""
    scores = scores_of(task, rng)
    found = {side: advantages_of(one, [[score] * N for score in scores]).abs() for side, one in estimators().items()}
    share = {side: values[::N].ne(0).float().mean().item() for side, values in found.items()}
    most = {side: values.max().item() for side, values in found.items()}
    title = f"{task}, {N} equal rewards: "
    yield Row(f"{title}share of scores with an advantage", share["ours"], share["other"], None, "0", not share["ours"])
    yield Row(f"{title}largest advantage", most["ours"], most["other"], None, "0", not most["ours"])


class Policy:
    """The tiny model, and answers to some prompts that it gives by itself."""

    def __init__(self, folder: Path, seed: int):
        mend_transformers()
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = processor.tokenizer
        self.clips, frames = tiny_vision.render_pool(seed, 10_000, PROMPTS, progress=False)
        self.visual = tiny_vision.features(self.model, processor.video_processor, frames)
        self.texts = self.greedy()

    def greedy(self) -> list[str]:
        """Its answers to the prompts."""
        return tiny_answers.answer_greedily(self.model, self.tokenizer, self.clips, self.visual)

    def scores(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Rewards of some answers to each prompt."""
        truths = [
            {"object_id": track.object_id, "start": track.start, "end": track.end, "duration": synthetic.DURATION}
            for track in (clip.target_track for clip in self.clips)
        ]
        return [
            [RECIPES["stvg_r1"].score(text, truth)["score"] for text in group]
            for group, truth in zip(texts, truths, strict=True)
        ]

    def log_probs(self, texts: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the answers' tokens, and their mask; both (answers, tokens)."""
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        answers = [self.tokenizer(text)["input_ids"] + [end] for group in texts for text in group]
        longest = max(map(len, answers))
        prompts = [tiny_answers.prompt_ids(self.tokenizer, clip.target_track.sentence) for clip in self.clips]
        rows = [prompt for prompt, group in zip(prompts, texts, strict=True) for _ in group]
        padded = [answer + [end] * (longest - len(answer)) for answer in answers]
        ids = torch.tensor([row + answer for row, answer in zip(rows, padded, strict=True)])
        mask = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers])
        visual = self.visual.repeat_interleave(torch.tensor([len(group) for group in texts]), dim=0)
        hidden = self.model.model.language_model(
            inputs_embeds=tiny_answers.embed(self.model, ids, visual)[:, :-1],
            position_ids=tiny_answers.positions(self.model, ids)[:, :, :-1],
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, -longest:])
        return logits.log_softmax(-1).gather(-1, ids[:, -longest:, None])[..., 0], mask

    def loss(self, estimator: Estimator, texts: Sequence[Sequence[str]]) -> torch.Tensor:
        """verl's policy loss of a step on policy, for some answers to each prompt."""
        log_probs, mask = self.log_probs(texts)
        pushed = advantages_of(estimator, self.scores(texts))[:, None] * mask
        settings = ActorConfig(strategy="fsdp2", rollout_n=N, ppo_micro_batch_size_per_gpu=1)
        mode = "seq-mean-token-mean"
        return core_algos.compute_policy_loss_vanilla(log_probs.detach(), log_probs, pushed, mask, mode, settings)[0]

    def gradient(self, estimator: Estimator, texts: Sequence[Sequence[str]]) -> float:
        """Norm of the loss's gradient."""
        self.model.zero_grad()
        self.loss(estimator, texts).backward()
        return clip_grad_norm_(self.model.parameters(), float("inf")).item()


def on_the_model(folder: Path, seed: int) -> Iterator[Row]:
    """Gradient of a step of equal rewards, and how far twenty of them move the model."""
    policy = Policy(folder, seed)
    equal = [[text] * N for text in policy.texts]
    rng = np.random.default_rng(seed)
    tracks = [clip.target_track for clip in policy.clips]
    varied = [[tiny_answers.completion(moved(track, rng)) for _ in range(N)] for track in tracks]
    sides = estimators()
    norm = {side: policy.gradient(one, equal) for side, one in sides.items()}
    title = f"tiny model, {PROMPTS} prompts answered the same {N} times: "
    usual = policy.gradient(sides["other"], varied)
    yield Row(f"{title}norm of the gradient", norm["ours"], norm["other"], None, "0", not norm["ours"])
    yield Row("the same, of groups whose answers differ", policy.gradient(sides["ours"], varied), usual)
    start = copy.deepcopy(policy.model.state_dict())
    drift, changed = {}, {}
    for side, one in sides.items():
        policy.model.load_state_dict(start)
        with torch.no_grad():
            before, mask = policy.log_probs([[text] for text in policy.texts])
        learn(policy, one, equal)
        with torch.no_grad():
            after, _ = policy.log_probs([[text] for text in policy.texts])
        drift[side] = ((after - before).abs() * mask).sum().item() / mask.sum().item()
        changed[side] = sum(a != b for a, b in zip(policy.greedy(), policy.texts, strict=True))
    title = f"after {STEPS} such steps: "
    yield Row(
        f"{title}change of a token's log-probability", drift["ours"], drift["other"], None, "0", not drift["ours"]
    )
    yield Row(f"{title}greedy answers that changed, of {PROMPTS}", changed["ours"], changed["other"])


def moved(track: synthetic.Track, rng: np.random.Generator) -> synthetic.Track:
    """A track with another interval, so that its answer earns less."""
    first, last = np.sort(rng.choice(synthetic.NUM_FRAMES, 2, replace=False)).tolist()
    return replace(track, first=first, last=last)


def learn(policy: Policy, estimator: Estimator, texts: Sequence[Sequence[str]]) -> None:
    """Train for some steps with the optimizer of `+variant=tiny`; the vision tower is frozen."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        policy.loss(estimator, texts).backward()
        clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows."""
    rng = np.random.default_rng(options.seed)
    for task in ("stvg_r1", "temporal_r1", "videotg_r1"):
        yield from shares(task, rng)
    with tempfile.TemporaryDirectory() as name:
        folder = options.model or tiny_model.make(Path(name) / "model", seed=0)
        yield from on_the_model(folder, options.seed)
