"""The time that a reply means, however it is written: the reader of the columns in brackets `(lenient)`. Ours.

The readers of the papers and rewards take one form and misread or refuse the others, which is part of their numbers.
Beside them stands this one: it reads what people would read, in seconds, and reads nothing where they would ask. Which
forms, and which values, is the table in `docs/evaluation.md`; `tests/eval/test_metrics.py` holds every line of it.

Linear time, no exception on any text, None for what cannot be read. All quantifiers of the patterns are bounded.
"""

import json
import re
from typing import Any

from reward_fns.parsing import Interval, last_block

MAX_LENGTH = 65_536  # characters of an answer; what is longer is not read

_CLOCK = r"\d{1,6}(?::[0-5]\d){1,2}(?:[.,]\d{1,9})?(?!\d)"
_NUMBER = r"(?:\d{1,9}(?:\.\d{0,9}(?!\d)|,\d{1,2}(?!\d))?|\.\d{1,9})"
# No number goes on behind it (1.2.3, 1,200, 1:99); a unit, if there is one, is seconds.
_TIME = rf"({_CLOCK}|{_NUMBER})(?!\d|[.,:]\d)(?:\s{{0,3}}(?:seconds?|secs?|s)\b)?"
_DASH = "[-\u2010\u2011\u2012\u2013\u2014\u2015\u2212~\u301c]"
_BEFORE = r"(?<![\w.,:-])(?<!-\s)(?<!\bto\s)(?<!frame\s)(?<!frames\s)"
_TO = rf"\s{{0,8}}(?:\bto\b|\buntil\b|\btill\b|{_DASH})\s{{0,8}}"
_JOINED = rf"(?:between\s{{1,8}}{_TIME}\s{{1,8}}and\s{{1,8}}{_TIME}|{_BEFORE}{_TIME}{_TO}{_TIME})"
_ENDED = rf"(?![\w:%]|[.,]\d|{_TO}[\d.])"
_PAIR = re.compile(_JOINED + _ENDED, re.IGNORECASE)
_APART = rf"\s{{0,8}}(?:to|and|until|till|{_DASH}|,)\s{{0,8}}"
_WHOLE = re.compile(rf"\s{{0,8}}{_TIME}{_APART}{_TIME}\s{{0,8}}", re.IGNORECASE)
# In a list a comma parts the times.
_ITEM = r"[\"']?(\d{1,6}(?::[0-5]\d){1,2}(?:\.\d{1,9})?|\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?![\d:]|\.\d)s?[\"']?"
_LIST = re.compile(rf"[\[(]\s{{0,8}}{_ITEM}\s{{0,8}},\s{{0,8}}{_ITEM}\s{{0,8}}[\])]", re.IGNORECASE)
_NAMED = re.compile(
    rf"\b(start|begin|end|finish)(?:s|es|ing|ning)?(?:[\s_]?time)?[\"']?\s{{0,8}}(?:at\b|is\b|:|=)?\s{{0,8}}[\"']?{_TIME}(?![\w:%])",
    re.IGNORECASE,
)
_DECIMAL = r"[0-9]{1,9}(?:\.[0-9]{0,9})?"
_PLAIN = re.compile(rf"<answer>{_DECIMAL} (?:to|and) {_DECIMAL}</answer>\s{{0,8}}\Z")
# Brackets that a reply copies from the prompt: `Target ID: [2], Time range: [5.00] to [9.00]`.
_BRACKETED = re.compile(r"\[\s{0,4}([\d.:]{1,16}s?)\s{0,4}\]")
_LABEL = "time range"
_KEYS = (("start_time", "end_time"), ("start", "end"), ("start_s", "end_s"), ("begin", "end"))
_LISTS = ("time", "interval", "timestamp", "timestamps", "span", "window")
_BOXED = "\\boxed{"
_DROPPED = str.maketrans("", "", "*`$")
# Full-width forms of ASCII, as Chinese and Japanese text has them.
_NARROW = str.maketrans({code + 0xFEE0: code for code in range(0x21, 0x7F)})


def is_plain(text: str) -> bool:
    """Tell whether a reply ends in `<answer>NUM to|and NUM</answer>`, which every reader of pairs reads alike."""
    return _PLAIN.match(text, max(0, text.rfind("<answer>"))) is not None


def read_time(text: str) -> Interval | None:
    """Return the interval in seconds that a reply means, or None.

    Looked at is the last `<answer>` block, closed or not; without one the text behind the reasoning, or all of it if
    there is none. Reasoning that never ends is no answer. Of a list the first interval counts, of free text the only
    one: two that differ are None. Bounds are as said, neither swapped nor clamped.
    """
    said = _answer(text)
    return _read(said) if said is not None and len(said) <= MAX_LENGTH else None


def _answer(text: str) -> str | None:
    """The part of a reply that answers."""
    block = last_block(text, "answer")
    if block is not None:
        return block
    if (opened := text.rfind("<answer>")) >= 0:
        return text[opened + len("<answer>") :]
    thought = text.rfind("</think>")
    if thought < 0 and "<think>" in text:
        return None
    return text[thought + len("</think>") :] if thought >= 0 else text


def _read(said: str) -> Interval | None:
    if not said.isascii():
        said = said.translate(_NARROW)
    if (boxed := said.rfind(_BOXED)) >= 0:
        inner = said[boxed + len(_BOXED) :]
        said = inner[: inner.rindex("}")] if "}" in inner else inner
    said = said.translate(_DROPPED).strip().strip("\"'").removeprefix("json").strip()
    if (found := _WHOLE.fullmatch(said.removesuffix("."))) is not None:
        return _interval(*found.groups())
    found = _json(said)
    if isinstance(found, dict | list):
        return _of_object(found) if isinstance(found, dict) else _bounds(found)
    if (label := said.lower().rfind(_LABEL)) >= 0:
        said = said[label + len(_LABEL) :].lstrip(" :")
    said = _BRACKETED.sub(r"\1", said)
    if (found := _LIST.search(said)) is not None:
        return _interval(*found.groups())
    pairs = {_interval(*(part for part in found.groups() if part is not None)) for found in _PAIR.finditer(said)}
    if pairs:
        return pairs.pop() if len(pairs) == 1 else None
    named: dict[bool, set[float]] = {True: set(), False: set()}
    for found in _NAMED.finditer(said):
        named[found.group(1).lower() in ("start", "begin")].add(_seconds(found.group(2)))
    if len(named[True]) == len(named[False]) == 1:
        return named[True].pop(), named[False].pop()
    return None


def _json(said: str) -> Any:
    """The JSON that a text is, or None."""
    try:
        return json.loads(said) if said[:1] in ("{", "[") else None
    except (ValueError, RecursionError):  # not JSON, an integer of over 4,300 digits, or nested too deeply to read
        return None


def _of_object(found: dict) -> Interval | None:
    """The interval of a JSON object."""
    for names in _KEYS:
        if all(name in found for name in names):
            return _bounds([found[name] for name in names])
    return next((_bounds(found[name]) for name in _LISTS if name in found), None)


def _bounds(found: object) -> Interval | None:
    """Two bounds of JSON, numbers or text; of several pairs the first."""
    if not isinstance(found, list) or not found:
        return None
    if isinstance(found[0], list):
        return _bounds(found[0]) if not (found[0] and isinstance(found[0][0], list)) else None
    bounds = [bound for each in found if (bound := _bound(each)) is not None]
    return (bounds[0], bounds[1]) if len(bounds) == len(found) == 2 else None


def _bound(found: object) -> float | None:
    if isinstance(found, str):
        time = _WHOLE_TIME.fullmatch(found.strip())
        return _seconds(time.group(1)) if time is not None else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if 0 <= found < 1e9 else None


_WHOLE_TIME = re.compile(_TIME, re.IGNORECASE)


def _interval(start: str, end: str) -> Interval:
    return _seconds(start), _seconds(end)


def _seconds(time: str) -> float:
    """Seconds of `ss.s`, `m:ss` or `h:mm:ss`, the last with decimals behind a dot or a comma."""
    total = 0.0
    for part in time.replace(",", ".").split(":"):
        total = 60 * total + float(part)
    return total
