"""Read answers out of completions: tagged blocks, intervals, object IDs, option letters, lists, JSON.

Every reward starts by reading text that a policy wrote, and a policy writes anything. The functions here therefore hold
three promises that the originals break: linear time in the length of the text, no exception on any string, and None for
what cannot be read. Which occurrence counts (first or last), which whitespace is allowed and which digits are digits
follows the papers, because that decides the reward; `\\d` and `\\s` are Python's Unicode classes throughout.

Patterns avoid nested or adjacent quantifiers over the same characters, so no match attempt re-reads a run of digits or
blanks; blocks are found with `str.find`, never with a lazy dot.
"""

import json
import re
from functools import lru_cache

Interval = tuple[float, float]

# CPython refuses to convert longer runs of digits (sys.int_info.default_max_str_digits); such an ID is unreadable.
MAX_ID_DIGITS = 4300
# Ours: bounds on lists, far above what fits into a completion of a few thousand tokens; a longer list is unreadable.
MAX_INTERVALS = 1000
MAX_IDS = 64
# Ours: joined pairs (`1 to 2 to 3 to ...`) are untangled within this many characters.
MAX_CHAIN = 8192

_NUMBER = r"\d+(?:\.\d*)?"
_TARGET_ID = re.compile(r"Target ID:(?=(\s*))\1(\d+)", re.IGNORECASE)
_TARGET_IDS = re.compile(
    rf"Target IDs?:\s*(\d+(?:\s*(?:,|/|&|and)\s*(?:and\s*)?\d+){{0,{MAX_IDS - 1}}})", re.IGNORECASE
)
# A lookahead is never re-entered, so what it captured and the backreference takes is not given back bit by bit.
_TIME_RANGE = re.compile(rf"Time range:(?=(\s*))\1(?=({_NUMBER}))\2(?=(\s*))\3(?:to|and)\s*({_NUMBER})", re.IGNORECASE)
# A run of digits and dots before the separator, and the number after it; the guard lets a run be entered only once.
_PAIR = re.compile(rf"(?<![\d.])([\d.]+) (?:to|and) (?=({_NUMBER}))", re.IGNORECASE)
_LAST_SEPARATOR = re.compile(rf"(?s:.*) (?<=[\d.] )(to|and) ({_NUMBER})", re.IGNORECASE)
_RUN_BEFORE = re.compile(r"(?<![\d.])[\d.]+\Z")
_ENDS_IN_SEPARATOR = re.compile(r"[\d.] (?:to|and) $", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
_QUOTED_OPTION = re.compile(r'"\(([^()\n]*)\)"|"([A-Z])"')
_OPTION = re.compile(r"[A-G]")
# ASCII only and no leading zero: the originals let Python's literal syntax decide.
_INTEGER = r"(?:0+|[1-9][0-9]*)"
_LITERAL = rf"(?:[0-9]+\.[0-9]+|{_INTEGER})"
_TUPLE = rf"\({_LITERAL},[ \t\n\r\f]*{_LITERAL}\)"
_TUPLE_LIST = re.compile(rf"\[(?:{_TUPLE}(?:,[ \t\n\r\f]*{_TUPLE}){{0,{MAX_INTERVALS - 1}}},?)?\]\n?")
_LITERALS = re.compile(r"[0-9.]+")


@lru_cache(maxsize=32)
def _tags(tag: str) -> tuple[str, str]:
    return f"<{tag}>", f"</{tag}>"


def first_block(text: str, tag: str) -> str | None:
    """Return the content of the first `<tag>...</tag>`, or None.

    The block runs from the first opening tag to the first closing tag after it; tags are case-sensitive, the content
    may span lines and may contain further opening tags. Equals the first match of a lazy, dot-matches-newline pattern.
    """
    opening, closing = _tags(tag)
    start = text.find(opening)
    if start < 0:
        return None
    start += len(opening)
    end = text.find(closing, start)
    return text[start:end] if end >= 0 else None


def last_block(text: str, tag: str) -> str | None:
    """Return the content of the last `<tag>...</tag>`, or None.

    Blocks are those a left-to-right scan with a lazy pattern would find, so a block starts at the first opening tag
    after the end of the block before it. Equals the last element of such a scan without performing it (STVG-R1, 2.1).
    """
    opening, closing = _tags(tag)
    last_close = text.rfind(closing)
    last_open = text.rfind(opening, 0, last_close) if last_close >= 0 else -1
    if last_open < 0:
        return None
    # After any closing tag the scan is outside a block, so the block holding `last_open` starts after the previous one.
    previous = text.rfind(closing, 0, last_open)
    start = text.find(opening, previous + len(closing) if previous >= 0 else 0) + len(opening)
    return text[start : text.find(closing, last_open)]


def first_line_block(text: str, tag: str) -> str | None:
    """Return the content of the first `<tag>...</tag>` that lies on one line, or None.

    Equals the first match of a lazy pattern whose dot does not match a newline (Temporal-R1, 2.2, `r1v`).
    """
    opening, closing = _tags(tag)
    start = text.find(opening)
    while start >= 0:
        content = start + len(opening)
        end = text.find(closing, content)
        if end < 0:
            return None
        newline = text.rfind("\n", content, end)
        if newline < 0:
            return text[content:end]
        start = text.find(opening, newline)
    return None


def target_id(text: str) -> int | None:
    """Return the first integer that follows `Target ID:` (any case), or None.

    Signs, brackets and markup between label and number make it unreadable; so do more than 4,300 digits, on which the
    original raises. Source: STVG-R1, 2.1.
    """
    match = _TARGET_ID.search(text)
    if match is None or match.end(2) - match.start(2) > MAX_ID_DIGITS:
        return None
    return int(match.group(2))


def target_ids(text: str) -> frozenset[int] | None:
    """Return the set of integers that follow the first `Target ID:` or `Target IDs:` (any case), or None.

    IDs are joined by `,`, `/`, `&` or `and`; at most 64 are read. Ours: the paper defines no answer of several IDs.
    """
    match = _TARGET_IDS.search(text)
    if match is None:
        return None
    runs = _DIGITS.findall(match.group(1))
    return frozenset(map(int, runs)) if all(len(run) <= MAX_ID_DIGITS for run in runs) else None


def time_range(text: str) -> Interval | None:
    """Return (start, end) in seconds of the first `Time range: NUM to|and NUM` (any case), or None.

    NUM is digits, an optional dot, optional digits. Neither sorted nor clamped. Source: STVG-R1, 2.1.
    """
    match = _TIME_RANGE.search(text)
    return (float(match.group(2)), float(match.group(4))) if match is not None else None


def last_pair(text: str) -> Interval | None:
    """Return (start, end) of the last `NUM to|and NUM` (any case, single blanks), or None.

    Pairs are found from left to right without overlap, so `1 to 2 to 3` holds only (1, 2). A sign and the dot of `.5`
    are passed over; neither sorted nor clamped. Source: Time-R1 (STVG-R1 notes, 6.1); VideoChat-R1 grounding.
    """
    last = _LAST_SEPARATOR.match(text)
    if last is None:
        return None
    run_end = last.start(1) - 1
    run = _RUN_BEFORE.search(text, max(0, run_end - 32), run_end) or _RUN_BEFORE.search(text, 0, run_end)
    number = _trailing_number(run.group()) if run is not None else ""
    if run is not None and number and _ENDS_IN_SEPARATOR.search(text, max(0, run.start() - 6), run.start()) is None:
        return float(number), float(last.group(2))
    # Its first number may belong to the pair before it, or is none: find the pairs from the left.
    pair, taken, end = None, 0, last.end(2)
    for match in _PAIR.finditer(text, max(0, end - MAX_CHAIN), end):
        number = _trailing_number(text[max(taken, match.start(1)) : match.end(1)])
        if number:
            pair, taken = (number, match.group(2)), match.end(2)
    return (float(pair[0]), float(pair[1])) if pair is not None else None


def _trailing_number(run: str) -> str:
    """Return the number in which a run of digits and dots ends, or "": `2.3` for `1.2.3`, `5` for `.5`."""
    head, _, tail = run.rpartition(".")
    whole = head.rpartition(".")[2]
    return f"{whole}.{tail}" if whole else tail


def interval_list(text: str) -> list[Interval] | None:
    """Return the intervals of `[(s1, e1), (s2, e2), ...]`, or None.

    Plain non-negative ASCII numbers, no blanks but after a comma, start <= end, a trailing comma and `[]` allowed; more
    than 1,000 intervals are unreadable (ours). Source: VideoChat-R1 grounded QA (VideoTG-R1 notes, 4.2).
    """
    if _TUPLE_LIST.fullmatch(text) is None:
        return None
    runs = _LITERALS.findall(text)
    # A longer integer is a syntax error to the original, a longer float is infinite to both.
    if any(len(run) > MAX_ID_DIGITS and "." not in run for run in runs):
        return None
    values = list(map(float, runs))
    intervals = list(zip(values[::2], values[1::2], strict=True))
    return intervals if all(start <= end for start, end in intervals) else None


def option_letter(text: str) -> str:
    """Return the first capital A-G, or "" if there is none.

    Any capital counts, so "Definitely A" reads D and "Answer: C" reads A. One odd exception of the original is kept:
    its two prefixes "Best answer:" and "Best option:" are only passed over when they stand glued together.
    Source: VideoChat-R1 grounded QA (VideoTG-R1 notes, 4.2).
    """
    match = _OPTION.search(text.replace("Best answer:" + "Best option:", ""))
    return match.group() if match is not None else ""


def quoted_option(text: str) -> str | None:
    """Return the first `"X"` or `"(X)"` in double quotes, X one capital letter, or None.

    Keys are read like values. Source: Temporal-R1, 5.4, there used by its evaluation.
    """
    for match in _QUOTED_OPTION.finditer(text):
        letter = match.group(2) or match.group(1)
        if len(letter) == 1 and letter.isascii() and letter.isupper():
            return letter
    return None


def json_object(text: str) -> dict | None:
    """Return the JSON object that the stripped text is, or None; the last of duplicate keys wins."""
    try:
        found = json.loads(text.strip())
    except (ValueError, RecursionError):  # not JSON, an integer of over 4,300 digits, or nested too deeply to read
        return None
    return found if isinstance(found, dict) else None


def json_interval(text: str, start_key: str = "start_time", end_key: str = "end_time") -> Interval | None:
    """Return (start, end) of a JSON object whose two keys hold numbers or strings that `float` accepts, or None.

    Signs, exponents, padded blanks and `true` count as numbers; NaN and infinity are unreadable, which costs the same
    reward as the original pays for them. Source: Temporal-R1, 2.1.

    Args:
        text: of the object, with nothing but blanks around.
        start_key: of the start, seconds.
        end_key: of the end, seconds.
    """
    found = json_object(text)
    if found is None:
        return None
    start, end = _as_float(found.get(start_key)), _as_float(found.get(end_key))
    return (start, end) if start is not None and end is not None else None


def json_tube(text: str) -> tuple[Interval, dict[int, object]] | None:
    """Return ((start, end), key to box) of `{"time": [s, e], "boxes": {"key": [x1, y1, x2, y2], ...}}`, or None.

    Keys are decimal integers, frames or whole seconds as the prompt asks; the boxes are returned as they were written
    and may be anything. The structure is OneThinker's.
    """
    found = json_object(text)
    if found is None:
        return None
    time, boxes = found.get("time"), found.get("boxes")
    if not isinstance(time, list) or len(time) != 2 or not isinstance(boxes, dict):
        return None
    start, end = _as_float(time[0]), _as_float(time[1])
    if start is None or end is None or not all(len(key) <= 9 and key.isdecimal() for key in boxes):
        return None
    return (start, end), {int(key): box for key, box in boxes.items()}


def box(found: object) -> tuple[float, float, float, float] | None:
    """Return a list of four numbers as a box xyxy, or None."""
    if not isinstance(found, list) or len(found) != 4:
        return None
    left, top, right, bottom = map(_as_float, found)
    if left is None or top is None or right is None or bottom is None:
        return None
    return left, top, right, bottom


def _as_float(found: object) -> float | None:
    if not isinstance(found, str | int | float):
        return None
    try:
        number = float(found)
    except (ValueError, OverflowError):  # a string that is no number, an integer too large for a double
        return None
    return number if -float("inf") < number < float("inf") else None
