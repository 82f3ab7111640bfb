"""Read answers out of completions: tagged blocks, intervals, object IDs, option letters, lists, JSON.

Every reward starts by reading text that a policy wrote, and a policy writes anything. The functions here therefore hold
three promises that the originals break: linear time in the length of the text, no exception on any string, and None for
what cannot be read. Which occurrence counts (first or last), which whitespace is allowed and which digits are digits
follows the papers, because that decides the reward; `\\d` and `\\s` are Python's Unicode classes throughout.

Patterns avoid nested or adjacent quantifiers over the same characters, so no match attempt re-reads a run of digits or
blanks; blocks are found with `str.find`, never with a lazy dot.
"""

import re

# CPython refuses to convert longer runs of digits (sys.int_info.default_max_str_digits); such an ID is unreadable.
MAX_ID_DIGITS = 4300

_TARGET_ID = re.compile(r"Target ID:\s*(\d+)", re.IGNORECASE)
_TIME_RANGE = re.compile(r"Time range:\s*(\d+(?:\.\d*)?)\s*(?:to|and)\s*(\d+(?:\.\d*)?)", re.IGNORECASE)


def first_block(text: str, tag: str) -> str | None:
    """Return the content of the first `<tag>...</tag>`, or None.

    The block runs from the first opening tag to the first closing tag after it; tags are case-sensitive, the content
    may span lines and may contain further opening tags. Equals the first match of a lazy, dot-matches-newline pattern.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
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
    opening, closing = f"<{tag}>", f"</{tag}>"
    close_end = text.rfind(closing)
    if close_end < 0:
        return None
    last_open = text.rfind(opening, 0, close_end)
    if last_open < 0:
        return None
    # After any closing tag the scan is outside a block, so the block that holds `last_open` starts after the previous one.
    previous = text.rfind(closing, 0, last_open)
    start = text.find(opening, previous + len(closing) if previous >= 0 else 0) + len(opening)
    return text[start : text.find(closing, last_open)]


def target_id(text: str) -> int | None:
    """Return the first integer that follows `Target ID:` (any case), or None.

    Signs, brackets and markup between label and number make it unreadable; so do more than 4,300 digits, on which the
    original raises. Source: STVG-R1, 2.1.
    """
    match = _TARGET_ID.search(text)
    if match is None or match.end(1) - match.start(1) > MAX_ID_DIGITS:
        return None
    return int(match.group(1))


def time_range(text: str) -> tuple[float, float] | None:
    """Return (start, end) in seconds of the first `Time range: NUM to|and NUM` (any case), or None.

    NUM is digits, an optional dot, optional digits. Neither sorted nor clamped. Source: STVG-R1, 2.1.
    """
    match = _TIME_RANGE.search(text)
    return (float(match.group(1)), float(match.group(2))) if match is not None else None
