"""The same rewards under the signatures of other trainers: TRL, ms-swift and EasyR1.

Each adapter is a few lines and imports none of those libraries; they differ in how they name a column, a class or a
key, not in what is scored. All take the name of a recipe and, in the column or key `ground_truth`, what its check
describes, as a mapping or as the JSON text of one. A malformed ground truth raises ValueError.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_fns import get_recipe


def trl_rewards(recipe: str, weights: Mapping[str, float] | None = None) -> tuple[list[Callable], list[float]]:
    """Return (`reward_funcs`, `reward_weights`) for TRL: one function for each part, so that TRL logs them all.

    Pass the first to `GRPOTrainer` and the second to `GRPOConfig`; the data set needs a column `ground_truth`. Plain
    and conversational completions are both read.
    """
    composition = get_recipe(recipe).with_weights(weights or {})

    def reward_function(name: str, part: Callable[[str, Mapping[str, Any]], float]) -> Callable:
        def score(completions: Sequence[Any], ground_truth: Sequence[Any], **columns: Any) -> list[float]:
            truths = _checked(ground_truth, composition.check)
            return [float(part(_text(one), truth)) for one, truth in zip(completions, truths, strict=True)]

        score.__name__ = name
        return score

    functions = [reward_function(name, part) for name, (part, _) in composition.parts.items()]
    return functions, [weight for _, weight in composition.parts.values()]


def swift_orm(recipe: str, part: str = "score", weights: Mapping[str, float] | None = None) -> type:
    """Return a reward class for ms-swift: in a plugin file, `orms["stvg_r1"] = swift_orm("stvg_r1")`.

    An instance takes `completions` and the column `ground_truth` and returns one number for each completion: the total,
    or the named part if each is to be a reward function of its own. Raises ValueError for an unknown part.

    Args:
        recipe: name of the reward.
        part: of it, or ``score`` for the total.
        weights: by part, in place of the recipe's; None keeps those.
    """
    composition = get_recipe(recipe).with_weights(weights or {})

    if part not in ("score", *composition.parts):
        raise ValueError(f"recipe {recipe!r} has no part {part!r}; its parts are {', '.join(composition.parts)}")

    class GroundingReward:
        """One number of one recipe; constructor arguments of any ms-swift version are accepted and not used."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.recipe = composition

        def __call__(self, completions: Sequence[Any], ground_truth: Sequence[Any], **columns: Any) -> list[float]:
            truths = _checked(ground_truth, composition.check)
            pairs = zip(completions, truths, strict=True)
            return [composition.score(_text(completion), truth)[part] for completion, truth in pairs]

    GroundingReward.__name__ = recipe if part == "score" else part  # the name under which ms-swift logs it
    return GroundingReward


def easyr1(reward_inputs: Any, recipe: str = "stvg_r1", weights: Mapping[str, float] | None = None) -> Any:
    """Score EasyR1's reward input, or a list of them: `overall` is the total, the parts follow under their names.

    Set `reward_function` to the path of this file, followed by `:easyr1`, and the recipe in `reward_function_kwargs`;
    it serves the sequential and the batch manager.

    Args:
        reward_inputs: with ``response`` and ``ground_truth``, an object or its JSON text; or a list of such.
        recipe: name of the reward.
        weights: by part, in place of the recipe's; None keeps those.
    """
    if not isinstance(reward_inputs, Mapping):
        return [easyr1(one, recipe, weights) for one in reward_inputs]
    composition = get_recipe(recipe).with_weights(weights) if weights else get_recipe(recipe)
    (truth,) = _checked([reward_inputs["ground_truth"]], composition.check)
    parts = composition.score(reward_inputs["response"], truth)
    return {"overall": parts.pop("score"), **parts}


def _text(completion: Any) -> str:
    """Return the text of a completion, plain or a list of chat messages whose contents are text or typed parts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion]
    return "".join(_content(content) for content in contents)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


def _checked(ground_truths: Sequence[Any], check: Callable[..., None]) -> list[Any]:
    checked = []
    for row, ground_truth in enumerate(ground_truths):
        truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        check(truth, row)
        checked.append(truth)
    return checked
