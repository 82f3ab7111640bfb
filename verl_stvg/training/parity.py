"""Whether the policy that is trained is the policy that is sampled, step by step, and where it is not.

verl logs how far the actor's probabilities of the sampled tokens are from those that vLLM sampled them with
(``training/rollout_probs_diff_mean``). Here that mean has a bound, the gate, and a step that leaves it writes its worst
tokens into the run's folder, because they say more than a mean: tokens of one position and one factor, say, come from a
distribution that one of the two cuts and the other does not.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from verl_stvg.base.lock import write_whole

FILE = "parity.jsonl"
WORST = 10
"""Tokens of a step that are kept."""
MEAN = "training/rollout_probs_diff_mean"
FLOAT32_GATE = 1e-4
BFLOAT16_GATE = 1e-2
"""docs/clock.md says where the two come from."""

_begun = False


def gate(config) -> float | None:
    """Largest mean difference of probabilities that the types of actor and rollout account for.

    None where the difference means something else: with ``top_k`` or ``top_p`` vLLM's probabilities are those of the
    tokens that are left; outside ``trainer_mode=sync`` answers may come from older weights; with
    ``rollout_correction.bypass_mode`` the actor's are taken from the rollout.
    """
    correction = config.algorithm.get("rollout_correction") or {}
    older = config.trainer.use_v1 and config.trainer.v1.trainer_mode != "sync"
    if truncated(config) or older or correction.get("bypass_mode"):
        return None
    precision = config.actor_rollout_ref.actor.get("fsdp_config", {}).get("mixed_precision") or {}
    types = {str(config.actor_rollout_ref.rollout.dtype), str(precision.get("param_dtype", "bf16"))}
    return FLOAT32_GATE if types <= {"float32", "fp32", "float"} else BFLOAT16_GATE


def truncated(config) -> bool:
    """Whether answers are sampled from some of the tokens only."""
    rollout = config.actor_rollout_ref.rollout
    return rollout.top_k > 0 or rollout.top_p < 1


def step_metrics(config, metrics: dict) -> dict[str, float]:
    """``parity/gate`` with ``parity/outside_gate`` (1 or 0) of a step where there is a gate, and ``parity/truncated``
    where sampling cuts the distribution.
    """
    bound = gate(config)
    if MEAN not in metrics:
        return {}
    if bound is None:
        return {"parity/truncated": 1.0} if truncated(config) else {}
    return {"parity/gate": bound, "parity/outside_gate": float(not metrics[MEAN] <= bound)}


def worst_tokens(
    uids: Sequence[str | None],
    responses: torch.Tensor,
    mask: torch.Tensor,
    actor: torch.Tensor,
    rollout: torch.Tensor,
    tokenizer,
) -> list[dict]:
    """The `WORST` tokens on whose probabilities the two differ most, the worst first.

    Args:
        uids: of the rows, one for each answer; None where a row has none.
        responses: (B, S) token ids.
        mask: (B, S), true where a token was sampled.
        actor: (B, S) log-probabilities.
        rollout: likewise.
        tokenizer: of the model.
    """
    apart = torch.where(mask.bool(), (actor.exp() - rollout.exp()).abs(), -1.0).nan_to_num(nan=torch.inf)
    places = apart.flatten().topk(min(WORST, int(mask.sum()))).indices.tolist()
    found = []
    for row, position in (divmod(place, responses.shape[1]) for place in places):
        token = int(responses[row, position])
        found.append(
            {
                "uid": uids[row],
                "position": position,
                "token": token,
                "text": tokenizer.decode([token]),
                "actor": float(actor[row, position].exp()),
                "rollout": float(rollout[row, position].exp()),
            }
        )
    return found


def keep(config, step: int, tokens: Sequence[dict]) -> None:
    """Add a step's worst tokens to the run's `FILE`, beside its metrics; a run that goes on forgets what it redoes.

    Args:
        config: of the run.
        step: of training, verl's, whose first is 1.
        tokens: of `worst_tokens`.
    """
    global _begun
    logged = os.environ.get("VERL_FILE_LOGGER_PATH")
    path = (Path(logged).parent if logged else Path(config.trainer.default_local_dir)) / FILE
    if not _begun:
        _begun = True
        earlier = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in earlier if line.endswith("\n")]
        write_whole(path, "".join(line for line in whole if json.loads(line)["step"] < step))
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, **token}) + "\n" for token in tokens)
