"""Files of programs that ground moments: Time-R1, VideoMind, TimeChat, TimeSuite, Moment-DETR and their kin."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from verl_stvg.eval.importers.entries import Entry, Reader, letter_of, times_of
from verl_stvg.rows.answers import Answer

_NUMBERED = re.compile(r"_(\d+)\Z")
_BRACKETS = dict.fromkeys(map(ord, "()."))


def _time_r1(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Time-R1's ``tg_*.jsonl``, whose ``qid`` ends in the place of the row in the annotation."""
    for line in content:
        place = _NUMBERED.search(line["qid"])
        start, end = map(float, line["target"])
        yield Entry(
            Answer("", (line["output_text"],)),
            (line["qid"],),
            truth=(start, end),
            place=int(place.group(1)) if place is not None else None,
        )


def _videomind(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """VideoMind's ``output_*.json``: ranked intervals, and a reply to a question, of which the first letter counts."""
    for one in content:
        said = replace(times_of(one.get("pred") or []), ranked=True)
        if one.get("response") is not None:
            first = one["response"].strip().split(" ", 1)[0].translate(_BRACKETS)[:1].upper()
            letter = first if first.isascii() and first.isalpha() else None
            said = replace(said, option=letter, reply=one["response"])
        names = tuple(str(one[key]) for key in ("qid", "id") if one.get(key) is not None)
        span = (one.get("span") or [None])[0]
        query = one.get("question") or one.get("query")
        video = one.get("vid") or one.get("video_path")
        yield Entry(said, names, video, query, tuple(span) if span else None, source=one)


def _timechat(content: Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """TimeChat's and TimeSuite's ``fmt_*_result.json``: by number of the annotation intervals, video and query.

    The first interval is scored; an empty list is a reply in which none was found. Numbers only put the same query of a
    video in the annotation's order, as the program may have drawn its samples at random.
    """
    numbers = {name: int(name) if name.isdecimal() else None for name in content}
    if None not in numbers.values():
        content = {name: content[name] for name in sorted(content, key=int)}
    for name, one in content.items():
        yield Entry(
            replace(times_of(one["timestamp"]), ranked=True),
            video=one["vid"],
            query=one["query"],
            place=numbers[name],
            source={name: one},
        )


def _moment_detr(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Submissions of QVHighlights (Moment-DETR, lighthouse) and ReXTime: ranked windows with scores, and a letter."""
    for one in content:
        windows = [window[:2] for window in one.get("pred_relevant_windows") or ()]
        said = replace(times_of(windows), option=letter_of(one["ans"]) if "ans" in one else None, ranked=True)
        yield Entry(said, (str(one["qid"]),), one.get("vid"), one.get("query"), source=one)


FORMATS: dict[str, Reader] = {
    "time_r1": _time_r1,
    "videomind": _videomind,
    "moment_detr": _moment_detr,
    "timechat": _timechat,
}
