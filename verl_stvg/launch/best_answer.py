"""Whether answers can earn what a run pays: the best answer to a row, as the model would continue the prompt.

Checked before a run. A part of the reward that no answer can earn has no gradient, and nothing in the metrics says so.
"""

import re
from collections.abc import Callable, Mapping
from heapq import heappush, heappushpop
from typing import Any

from reward_fns.recipe import THOUGHT, Recipe
from verl_stvg.rows.row import Row
from verl_stvg.training.reward import compute_score

_NUMBER = re.compile(r"[0-9]+\.[0-9]{3,}")
_ENOUGH = 1e-3  # of the reward, for the digits of a perfect answer
_COUNTED = 64
_SHOWN = 5


class BestAnswers:
    """The best answers to the rows of a file, in the order in which they are given to `add`.

    Args:
        options: of the reward, ``reward.custom_reward_function.reward_kwargs``.
        opened: what the chat template has written of the answer to a row. It is asked once for each recipe: the end of
            a prompt does not depend on the row.
    """

    def __init__(self, options: Mapping[str, Any], opened: Callable[[Mapping[str, Any]], str]):
        self.options, self._opened = dict(options), opened
        self.unpaid: dict[str, str] = {}
        """By recipe, what the template takes from the best answer and how to mend it; empty if nothing."""
        self._longest: dict[str, list[tuple[int, int, str, str]]] = {}

    def add(self, index: int, row: Row) -> None:
        """Look at one more row, whose ground truth has been checked.

        Args:
            index: of the row, for messages.
            row: of a file of the run.

        Raises:
            ValueError: options that the reward does not know.
        """
        recipe = row.recipe(self.options.get("recipe"))
        if recipe.name not in self._longest:
            self._longest[recipe.name] = []
            if problem := self._lost(recipe, row):
                self.unpaid[recipe.name] = f"row {index} (uid {row.name}): {problem}"
        answer = shortest(recipe.write(row.truth))
        longest, one = self._longest[recipe.name], (len(answer.encode()), -index, row.name, answer)
        if len(longest) < _COUNTED:
            heappush(longest, one)
        else:
            heappushpop(longest, one)

    def _lost(self, recipe: Recipe, row: Row) -> str | None:
        def score(text: str) -> dict[str, float]:
            return compute_score(row.data_source, text, row.truth, row.extra, **self.options)

        answer, opened = recipe.write(row.truth), self._opened(row)
        best = score(answer)
        if not opened:
            return None
        got = max((score(opened + text) for text in continuations(answer)), key=lambda found: found["score"])
        if got["score"] >= best["score"] - _ENOUGH * abs(best["score"]):
            return None
        parts = ", ".join(
            f"{name} {got[name]:g} of {best[name]:g}"
            for name in best
            if name != "score" and got[name] < best[name] - _ENOUGH
        )
        without = recipe.variant_of is not None and "thinking" not in recipe.asks
        thinking = f", or a recipe with reasoning (such as {recipe.variant_of})" if without else ""
        return (
            f"the chat template ends the prompt with {opened!r}, and recipe {recipe.name} then pays at most "
            f"{got['score']:g} of {best['score']:g} ({parts}); set "
            f"+data.apply_chat_template_kwargs.enable_thinking=false if the template knows it{thinking}, or use a "
            "model that does not think"
        )

    def overlong(self, tokenizer, limit: int) -> str | None:
        """Which best answers, without any reasoning, are longer than an answer may be; None if there are none.

        Tokens are counted of the longest answers only, 64 for each recipe.

        Args:
            tokenizer: of the model.
            limit: ``data.max_response_length``.
        """
        found = []
        for recipe, longest in self._longest.items():
            for length, place, uid, answer in sorted(longest, reverse=True):
                if length > limit:  # Qwen's tokenizers make at most one token of a byte
                    tokens = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
                    found += [(tokens, -place, uid, recipe)] if tokens > limit else []
        if not found:
            return None
        found.sort(reverse=True)
        lines = [f"  row {place} (uid {uid}): {tokens} tokens ({recipe})" for tokens, place, uid, recipe in found]
        return (
            f"a perfect answer, without any reasoning, is over data.max_response_length={limit}; raise it to "
            f"{found[0][0]} and what the reasoning takes\n" + "\n".join(lines[:_SHOWN])
        )


def shortest(answer: str) -> str:
    """A perfect answer as short as the prompts ask for it: without reasoning, numbers with two decimals."""
    return _NUMBER.sub(lambda found: f"{float(found.group()):.2f}", answer.replace(THOUGHT, ""))


def continuations(answer: str) -> list[str]:
    """A perfect answer as a model may say it after an opened ``<think>``: as its end, or after a thought of its own."""
    return [f"{THOUGHT}</think>\n{answer}", *([answer.removeprefix("<think>")] if answer.startswith("<think>") else [])]
