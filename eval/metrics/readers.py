"""Read intervals out of answers the way the papers' evaluations do, which is seldom the way their rewards do.

As in `reward_fns.parsing`, every function reads in linear time and never raises on any text. What an evaluation
accepts decides its table as much as the model does: one of these swaps reversed bounds, another takes the last pair of
the whole reply, and the same answer may be worth 0 or 1.
"""

import re

from reward_fns.parsing import Interval, last_pair

_TIMESTAMPS = re.compile(
    r'</think>\s*<answer>\s*\{\s*"start_time"\s*:\s*"([\d.]+)"\s*,\s*"end_time"\s*:\s*"([\d.]+)"\s*\}\s*</answer>'
)
_OPENING = "<think>"
_UNREAD = "0.0-0.0"
_NUMBER_AFTER = re.compile(r"\s*(\d+\.*\d*)")
_SENTENCE_END = re.compile(r"[!?\n]")
_SENTENCE_NUMBER = re.compile(r"\b(?:\d+\.\d+|\d+)\b")
_KEYWORDS = ("start", "end", "happen")
_CAPITAL_SEPARATOR = re.compile(r" (?!to |and )(?i:to|and)(?= )")


def extract_timestamps(text: str) -> str:
    """Return `"start-end"` of the training template with quoted numbers, anywhere in the text; else `"0.0-0.0"`.

    Floats are written as Python does. Numbers without quotes and answers without `<think>` are not read.
    Source: Temporal-R1 `qwen2_5_vl_r1.py` (its R1 mode).
    """
    opening = text.find(_OPENING)
    found = _TIMESTAMPS.search(text, opening + len(_OPENING)) if opening >= 0 else None
    if found is None:
        return _UNREAD
    start, end = map(_number, found.groups())
    return f"{start}-{end}" if start is not None and end is not None else _UNREAD


EXAMPLE = "A specific example is : 20.8 - 30.0 seconds"
"""Sentence of TimeChat's prompt, which Temporal-R1's script deletes from replies, though its own prompt lacks it."""


def extract_time(text: str, example: str = EXAMPLE) -> list[list[float]]:
    """Return the first interval of free text as `[[start, end]]`, bounds swapped if reversed; `[]` if there is none.

    First `NUM - NUM` or `NUM to NUM` anywhere; else the first number of each piece that holds a word such as start, end
    or happen, where `!`, `?` and line ends part the pieces, the first two of them making the interval. A minus sign is
    passed over. A number with several dots is unreadable; the original raises on it. Its third rule, for hours, minutes
    and seconds, never comes to bear, because the second one takes the first two digits of such a time.

    Args:
        text: reply of the model.
        example: a sentence of the prompt that is deleted first, whatever its case.

    Source: Temporal-R1 `eval_tvg.py`.
    """
    text = text.lower().replace(example.lower(), "") if example else text.lower()
    pair = _first_range(text.replace("to", "-"))
    if pair is None:
        # "to" holds none of the words, so they are found in the text before or after it is replaced.
        pieces = _SENTENCE_END.split(text.replace("to", "-"))
        numbers = (_SENTENCE_NUMBER.search(piece) for piece in pieces if any(word in piece for word in _KEYWORDS))
        times = [found.group() for found in numbers if found is not None][:2]
        if len(times) < 2:
            return []
        pair = (times[0], times[1])
    start, end = map(_number, pair)
    if start is None or end is None:
        return []
    return [[start, end]] if end > start else [[end, start]]


def _first_range(text: str) -> tuple[str, str] | None:
    """The two numbers of the first `NUM - NUM`, as written; a number is digits, dots, digits.

    What lies before a dash reaches back to the dash before it at most, so the text is read a fixed number of times.
    """
    previous = 0
    while (dash := text.find("-", previous)) >= 0:
        after = _NUMBER_AFTER.match(text, dash + 1)
        if after is not None and (before := _trailing_number(text[previous:dash].rstrip())):
            return before, after.group(1)
        previous = dash + 1
    return None


def _trailing_number(text: str) -> str:
    """The longest `digits, dots, digits` that a text ends in, the first digits not optional; "" if there is none."""
    tail = len(text) - len(_stripped(text, digits=True))
    head = text[: len(text) - tail]
    dotless = _stripped(head, digits=False)
    whole = len(dotless) - len(_stripped(dotless, digits=True))
    if len(dotless) < len(head) and whole:
        return text[len(dotless) - whole :]
    return text[len(text) - tail :]


def _stripped(text: str, digits: bool) -> str:
    """A text without the digits, or the dots, that it ends in."""
    if not digits:
        return text.rstrip(".")
    end = len(text)
    while end and text[end - 1].isdecimal():
        end -= 1
    return text[:end]


def _number(text: str) -> float | None:
    """The float that a run of digits and dots is; None for more than one dot, or a dot alone."""
    return float(text) if text.count(".") < 2 and text != "." else None


def parse_timestamp_output(text: str) -> Interval | None:
    """Return the last `NUM to|and NUM` of the whole reply, or None; lower case and single blanks only.

    Text after the answer can therefore override it. Neither sorted nor clamped.
    Source: VideoChat-R1 `evaluate_grounding.py`; Time-R1 `evaluate.py`.
    """
    return last_pair(_CAPITAL_SEPARATOR.sub(" -", text))
