"""What a composition of rewards is: named parts with weights, the check of its ground truth, and its answers.

Each paper's reward is a weighted sum of parts that are worth watching one by one, so a recipe is an explicit table from
part name to (function, weight) and `score` returns all of them. The parts stay plain functions of a completion and a
ground truth, usable without a recipe. A recipe also knows the form of its answers: `read` takes a completion apart,
`write` makes the completion that earns the most, and `asks` says what a prompt has to ask for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reward_fns.parsing import Interval

Part = Callable[[str, Mapping[str, Any]], float]

THOUGHT = "It is so."
"""The whole reasoning of an answer that is perfect without any."""

Asked = Literal["thinking", "time", "times", "object", "objects", "boxes", "boxes_by_second", "option"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a completion answers, as the parts of its recipe read it. What a recipe does not ask for is not set.

    Attributes:
        intervals: (start, end) in seconds, neither sorted nor clamped; empty where the answer says that there is none,
            None where it cannot be read.
        object_ids: ascending.
        option: a letter, or the text of a free answer.
        boxes: by the key that the answer gives them, as they were written: anything that JSON can hold.
    """

    intervals: tuple[Interval, ...] | None = None
    object_ids: tuple[int, ...] = ()
    option: str | None = None
    boxes: Mapping[int, object] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Recipe:
    """A named reward, and the answers that it rewards.

    Attributes:
        name: of the recipe.
        parts: function and weight by name.
        check: raises ValueError for a malformed ground truth, with its row.
        read: what a completion answers; None where nothing can be read. Never raises.
        answer: the completion, without reasoning, that says a ground truth exactly.
        asks: what a prompt has to ask for: ``thinking``; ``time`` for one interval or ``times`` for several; ``object``
            or ``objects`` for IDs; ``boxes`` by frame in pixels, with ``boxes_by_second`` by whole second in
            thousandths of the picture; ``option``.
        optional: parts that are off by default.
        variant_of: name of the paper's own recipe, whose form of answers this one shares; None if it is that one.
    """

    name: str
    parts: Mapping[str, tuple[Part, float]]
    check: Callable[..., None]
    read: Callable[[str], Reading | None]
    answer: Callable[[Mapping[str, Any]], str]
    asks: frozenset[Asked]
    optional: Mapping[str, Part] = field(default_factory=dict)
    variant_of: str | None = None

    @property
    def form(self) -> str:
        """Name of the recipe whose form of answers this is: its own, or that of the recipe that it varies."""
        return self.variant_of or self.name

    def write(self, ground_truth: Mapping[str, Any]) -> str:
        """Return the completion that says a ground truth exactly, with a thought where the recipe asks for reasoning.

        The ground truth is trusted here, as in `score`.
        """
        answer = self.answer(ground_truth)
        return f"<think>{THOUGHT}</think>\n{answer}" if "thinking" in self.asks else answer

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

    def variant(self, name: str, parts: Mapping[str, tuple[Part, float]], **changes: Any) -> "Recipe":
        """Return a recipe of this name and these parts with the same form of answers; `changes` are other fields."""
        return replace(self, name=name, parts=parts, variant_of=self.name, **changes)

    def without_thinking(self, parts: Mapping[str, tuple[Part, float]]) -> "Recipe":
        """Return the variant for prompts that ask for no reasoning; its name ends in ``_nothink``."""
        return self.variant(f"{self.name}_nothink", parts, asks=self.asks - {"thinking"}, optional={})


def reading_of(span: Interval | None) -> Reading | None:
    """Return the reading of an answer that is one interval, or None for None."""
    return Reading((span,)) if span is not None else None


def said_span(ground_truth: Mapping[str, Any]) -> tuple[str, str]:
    """Return start and end of a ground truth with six decimals; "" for what it lacks."""
    start, end = ground_truth.get("start"), ground_truth.get("end")
    return said_time(start) if start is not None else "", said_time(end) if end is not None else ""


def said_time(seconds: float) -> str:
    """Return a time with six decimals."""
    return f"{seconds:.6f}"


def said_option(ground_truth: Mapping[str, Any]) -> str:
    """Return the right option of a ground truth."""
    return str(ground_truth.get("option") or ground_truth.get("answer"))
