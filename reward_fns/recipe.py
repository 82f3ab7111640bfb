"""What a composition of rewards is: named parts with weights, and the check of its ground truth.

Each paper's reward is a weighted sum of parts that are worth watching one by one, so a recipe is an explicit table from
part name to (function, weight) and `score` returns all of them. The parts stay plain functions of a completion and a
ground truth, usable without a recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Part = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class Recipe:
    """A named reward: its parts, the parts that are off by default, and the check of its ground truth."""

    name: str
    parts: Mapping[str, tuple[Part, float]]
    check: Callable[..., None]
    optional: Mapping[str, Part] = field(default_factory=dict)

    def score(self, completion: str, ground_truth: Mapping[str, Any]) -> dict[str, float]:
        """Return `score`, the weighted sum, and every part under its name, all plain floats.

        Never raises on a completion; the ground truth is trusted here, `check` refuses malformed ones.
        """
        result = {"score": 0.0}
        total = 0.0
        for name, (part, weight) in self.parts.items():
            reward = float(part(completion, ground_truth))
            result[name] = reward
            total += weight * reward
        result["score"] = total
        return result

    def with_weights(self, weights: Mapping[str, float]) -> "Recipe":
        """Return a copy with these weights; an optional part that is named is switched on (0 logs it only).

        Raises ValueError for a name that is neither a part nor an optional part.
        """
        parts = dict(self.parts)
        for name, weight in weights.items():
            if name not in parts and name not in self.optional:
                known = ", ".join([*parts, *self.optional])
                raise ValueError(f"recipe {self.name!r} has no part {name!r}; its parts are {known}")
            parts[name] = (parts[name][0] if name in parts else self.optional[name], float(weight))
        return replace(self, parts=parts)
