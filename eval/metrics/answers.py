"""Multiple choice: which option a reply chooses, and the share of right ones.

VideoMind's reader is as it is, because its tables are: it counts the article of "a cat" as option A. `read_option` is
ours, which prefers to read nothing over reading something that was not said. Both take any text, in linear time, and
never raise.
"""

import re
from collections.abc import Sequence

from reward_fns.parsing import first_block, quoted_option

# Ours: `(B)` anywhere; else the reply is a letter, or begins with one and a mark: `B`, `B.`, `b) text`, `B: text`.
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_LEADING = re.compile(r"([A-Za-z])(?:[.):,](?!\w)|$)")
_ASCII_A = ord("a")


def read_option(text: str, num_options: int) -> str | None:
    """Return the capital letter of the option that a reply chooses, or None. Ours.

    Looked at is the first `<answer>` block, or the whole reply if there is none: a quoted letter (Temporal-R1's JSON),
    else the first letter in brackets, else a letter that is the whole text or its beginning before one of `.):,`.

    Args:
        text: the reply.
        num_options: 1 to 26; letters beyond are not options.

    Raises:
        ValueError: `num_options` out of range.
    """
    _check(num_options)
    block = first_block(text, "answer")
    said = (text if block is None else block).strip()
    letter = quoted_option(said)
    if letter is None:
        found = _BRACKETED.search(said) or _LEADING.match(said)
        letter = found.group(1).upper() if found is not None else None
    return letter if letter is not None and ord(letter.lower()) - _ASCII_A < num_options else None


def accuracy(chosen: Sequence[str | None], answers: Sequence[str]) -> float:
    """Return the share of right options, 0 to 1; what could not be read is wrong.

    Raises:
        ValueError: no items, or as many choices as not answers.
    """
    if not answers:
        raise ValueError("there are no items, and so no accuracy")
    return sum(found == answer for found, answer in zip(chosen, answers, strict=True)) / len(answers)


def check_ans(num_options: int, ans: str, response: str) -> bool | None:
    """Tell whether VideoMind's rule takes a reply for the right option; None if for none at all.

    The first word, up to a blank, without `().`, then its first character: "apple" reads A. Where nothing is left the
    original raises; here it is None. Source: VideoMind `eval_auto.py`.

    Args:
        num_options: that the question has, lettered from A on.
        ans: letter of the right one, in any case.
        response: reply of the model.

    Raises:
        ValueError: `num_options` out of range.
    """
    _check(num_options)
    word = response.lower().split(" ", 1)[0].replace("(", "").replace(")", "").replace(".", "")
    letter = word[:1]
    if not letter or not 0 <= ord(letter) - _ASCII_A < num_options:
        return None
    return ans.lower() == letter


def _check(num_options: int) -> None:
    if not 1 <= num_options <= 26:
        raise ValueError(f"options are lettered A to Z, found {num_options} of them")
