"""The bridge from verl to `reward_fns`: one `compute_score` for every recipe.

verl calls it for each rollout, selected by `reward.custom_reward_function.path=pkg://verl_stvg.training.reward` and
`name=compute_score`. It lives apart from the rewards so that these stay free of verl, and imports neither verl nor
torch, so that reward workers start fast. Options arrive through `reward.custom_reward_function.reward_kwargs`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from reward_fns import RECIPES, Recipe
from reward_fns.registry import find_recipe
from verl_stvg.rows.chat_template import OPENED

# What verl's reward loop passes to every custom function besides the four standard arguments.
_VERL_KWARGS = frozenset({"reward_router_address", "reward_model_tokenizer"})


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Mapping[str, Any],
    extra_info: Mapping[str, Any] | None = None,
    *,
    recipe: str | None = None,
    weights: Mapping[str, float] | None = None,
    parts: Sequence[str] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one completion: `score`, the weighted sum, and every part of the recipe, all plain floats.

    Args:
        data_source: the row's data source; its longest known prefix (of whole segments) selects the recipe.
        solution_str: the decoded completion; any text is scored, none raises.
        ground_truth: the row's `reward_model.ground_truth`, with the keys that the recipe names.
        extra_info: the row's extra information; its `uid`, the ground truth's, or its `index` names the row in errors.
            Its `opened` is what the chat template has written of the answer (`<think>`); `solution_str` goes on there.
        recipe: name of the recipe, instead of the one that `data_source` selects.
        weights: part name to weight, over the recipe's own; naming an optional part switches it on.
        parts: every part name that each result has to carry, 0.0 where this recipe lacks it. Needed when one batch
            mixes recipes, because verl wants the same keys in every sample.
        **kwargs: only what verl itself passes.

    Raises:
        ValueError: unknown recipe, data source, part or option, or a malformed ground truth (names row and key).
    """
    if kwargs and not kwargs.keys() <= _VERL_KWARGS:
        unknown = sorted(kwargs.keys() - _VERL_KWARGS)
        raise ValueError(f"compute_score: unknown options {unknown} in reward_kwargs; known are recipe, weights, parts")
    composition = find_recipe(data_source, recipe)
    if weights:
        composition = _weighted(composition.name, tuple(weights.items()))
    composition.check(ground_truth, _row(ground_truth, extra_info))
    result = composition.score((extra_info or {}).get(OPENED, "") + solution_str, ground_truth)
    if parts is not None:
        stray = result.keys() - set(parts) - {"score"}
        if stray:
            raise ValueError(f"compute_score: option parts lacks {sorted(stray)} of recipe {composition.name!r}")
        result = {"score": result["score"], **{name: result.get(name, 0.0) for name in parts}}
    return result


@lru_cache(maxsize=64)
def _weighted(name: str, weights: tuple[tuple[str, float], ...]) -> Recipe:
    return RECIPES[name].with_weights(dict(weights))


def _row(ground_truth: Any, extra_info: Mapping[str, Any] | None) -> object:
    """What errors call a row, as `verl_stvg.rows.row.Row.name` does, which takes longer to import."""
    info, truth = extra_info or {}, ground_truth if isinstance(ground_truth, Mapping) else {}
    return next((name for name in (info.get("uid"), truth.get("uid")) if name not in (None, "")), info.get("index"))
