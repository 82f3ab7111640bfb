"""Multiple choice: which option a reply chooses, and the share of right ones.

The readers of the papers are as they are, because their tables are: one counts the article of "a cat" as option A, one
reads B from "Best option is A". `read_option` is ours, which prefers to read nothing over reading something that was
not said. All take any text, in linear time, and never raise.
"""

import re
from collections.abc import Sequence

from reward_fns.parsing import first_block, quoted_option

# Ours: `(B)` anywhere; else the reply is a letter, or begins with one and a mark: `B`, `B.`, `b) text`, `B: text`.
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_LEADING = re.compile(r"([A-Za-z])(?:[.):,](?!\w)|$)")
_FIRST_QUOTED = re.compile(r'"\(|"([A-Z])"')
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_LONE_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIODS = 32  # that are removed: the original hands a flag over where the count belongs
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


def extract_option(text: str) -> str:
    """Return what Temporal-R1's evaluation takes for the option; the whole reply if it finds none.

    In the first `<answer>` block, the first of `"(...)"` on one line and a capital in double quotes; keys count. Empty
    brackets read "None", as in the original. Source: Temporal-R1 `qwen2_5_vl_r1.py`.
    """
    block = first_block(text, "answer")
    if block is None:
        return text
    closing = newline = -1
    for found in _FIRST_QUOTED.finditer(block):
        if found.group(1):
            return found.group(1)
        # Where the next bracket and line end are is remembered, so that each is looked for once.
        start = found.end()
        if closing < start:
            closing = _find(block, ')"', start)
        if newline < start:
            newline = _find(block, "\n", start)
        if closing < newline:
            return block[start:closing] or "None"
    return text


def _find(text: str, part: str, start: int) -> int:
    """Where a part next begins; the length of the text if nowhere."""
    found = text.find(part, start)
    return found if found >= 0 else len(text)


def mvbench_option(text: str) -> str:
    """Return the letter A to E that MVBench's rule reads, or the text it compares instead, lower case.

    `X. text` reads X; else marks become blanks or vanish and the first lone letter counts, the article "a" included.
    Source: lmms-eval `tasks/mvbench/utils.py`, used by Temporal-R1.
    """
    said = text.strip()
    rest = said[2:]
    if said[:1] in tuple("ABCDEabcde") and said[1:2] == "." and rest and not rest[: rest.rfind("\n") + 1].strip():
        return said[0].upper()
    said = said.replace("\n", " ").replace("\t", " ").strip()
    plain, joined = said, _DIGIT_COMMA.search(said) is not None
    for mark in _MARKS:
        plain = plain.replace(mark, "" if joined or mark + " " in said or " " + mark in said else " ")
    plain = _PERIOD.sub("", plain, count=_PERIODS)
    for mark in "'\")(":
        plain = plain.strip(mark)
    plain = plain.strip().lower()
    found = _LONE_LETTER.search(plain)
    return found.group(1).upper() if found is not None else plain


def mvbench_correct(text: str, answer: str) -> bool:
    """Tell whether MVBench's rule reads the same from the reply and from the right letter."""
    return mvbench_option(text) == mvbench_option(answer)


def mvbench_accuracy(texts: Sequence[str], answers: Sequence[str]) -> float:
    """Return the percentage of right replies among those that are not empty; 0 if all are empty.

    Source: lmms-eval `tasks/mvbench/utils.py`. `accuracy` is the clean one.

    Raises:
        ValueError: as many replies as not answers.
    """
    correct = [mvbench_correct(text, answer) for text, answer in zip(texts, answers, strict=True) if text != ""]
    return 100.0 * sum(correct) / len(correct) if correct else 0.0


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
