"""Tokens that no answer may hold, taken out of every distribution: actor, reference, rollout and evaluation.

verl bans the placeholders of images and videos and all that lies beyond the tokenizer, and it does so in vLLM's logits
only. The actor of verl 0.9.1 still gives them probability, so that the log-probabilities it is trained by are those of
another policy than the one that is sampled: ratio, KL and gradient are off by the share that was taken away.

`mend_engine` bans the same tokens in the logits of verl's FSDP engine, of which the actor and the reference are two.
It is the one place through which all logits of a language model go, before entropy and log-probabilities, with and
without padding, in either trainer. ``tests/patches/test_banned_tokens.py`` says when verl no longer needs it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_rollout: str | None = None
_banned: "Banned | None" = None


@dataclass(frozen=True)
class Banned:
    """What verl bans in vLLM.

    Attributes:
        vocabulary: tokens of the tokenizer; models often have more rows in their output layer, which mean nothing.
        ids: placeholders of images and videos.
    """

    vocabulary: int
    ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer, processor) -> "Banned":
        """Of a model's tokenizer, and its processor if it has one."""
        from verl.workers.rollout.utils import get_vision_placeholder_token_ids

        return cls(len(tokenizer), tuple(get_vision_placeholder_token_ids(processor)))

    def all(self, width: int) -> list[int]:
        """Every banned token of an output layer with ``width`` rows."""
        return sorted({*self.ids, *range(self.vocabulary, width)})

    def out_of(self, logits: torch.Tensor, value: float | None = None) -> torch.Tensor:
        """Logits without these tokens, changed in place: their probability is exactly 0.

        Autograd sees none of this and needs not: what is left of a banned logit's gradient is its probability.

        Args:
            logits: (..., vocabulary), after the temperature, which could make infinity of the lowest value.
            value: default: -1e30, and -1e4 in float16. At minus infinity verl's entropy is not a number, and near the
                lowest finite value its gradient is none where a loss weighs entropy by more than 1.
        """
        if value is None:
            value = -1e4 if logits.dtype == torch.float16 else -1e30
        with torch.no_grad():
            for one in self.ids:
                logits[..., one : one + 1] = value  # a row that the output layer lacks is banned already
            logits[..., self.vocabulary :] = value
        return logits


def mend_worker(engine_workers) -> None:
    """Note which program answers, in the process that will build actor and reference: verl bans in vLLM alone."""
    worker = engine_workers.ActorRolloutRefWorker
    stock = worker.__init__

    def __init__(self, config, *args, **kwargs):
        global _rollout
        _rollout = config.rollout.name
        stock(self, config, *args, **kwargs)

    worker.__init__ = __init__


def look_up(engine) -> None:
    """Note what is banned for an engine's model; to be called before its first logits are scaled."""
    global _banned
    if _banned is None and _rollout == "vllm":
        _banned = Banned.of(engine.model_config.tokenizer, engine.model_config.processor)


def mend_engine(transformer_impl) -> None:
    """Ban in the logits of verl's FSDP engine what is banned in the rollout's."""
    engine = transformer_impl.FSDPEngineWithLMHead
    outputs, scale = engine.prepare_model_outputs, transformer_impl._scale_logits_by_temperature

    def prepare_model_outputs(self, *args, **kwargs):
        look_up(self)
        return outputs(self, *args, **kwargs)

    def _scale_logits_by_temperature(logits, *args, **kwargs):
        logits = scale(logits, *args, **kwargs)
        return _banned.out_of(logits) if _banned else logits

    engine.prepare_model_outputs = prepare_model_outputs
    transformer_impl._scale_logits_by_temperature = _scale_logits_by_temperature


class BanningWorker:
    """What evaluation adds to vLLM's workers (``worker_extension_cls``): they say what the rollout can say, no more."""

    model_runner: Any  # of the worker that this is added to

    def ban(self, vocabulary: int, ids: Sequence[int]) -> None:
        """Take tokens out of the logits, as verl does in the rollout; see `verl_stvg.patches.banned_tokens.Banned`."""
        banned, model = Banned(vocabulary, tuple(ids)), self.model_runner.get_model()
        stock = model.compute_logits

        def compute_logits(*args, **kwargs):
            logits = stock(*args, **kwargs)
            return logits if logits is None else banned.out_of(logits, -math.inf)

        model.compute_logits = compute_logits
