"""Files of lmms-eval, and of Temporal-R1, which is run in it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from verl_stvg.eval.benchmarks.base import Interval, Prediction, Stored
from verl_stvg.eval.importers.entries import Entry, Reader, number_of, times_of
from verl_stvg.eval.metrics.readers import extract_time
from verl_stvg.rows.answers import Answer

JOINT = ">>>"
"""Joins video, query and times to the name of a sample."""
_DOCS = (("video", "caption", "timestamp"), ("video_path", "query", "span"))  # Charades-STA, TimeLens


def _temporal_r1(content: Mapping[str, str], counts: Counter) -> Iterator[Entry]:
    """Temporal-R1's (lmms-eval's) object by ``video>>>caption>>>times``: ``start-end`` (R1 mode), or the bare reply."""
    for name, text in content.items():
        video, query, truth = _named_by(name)
        times = times_of(text.split("-"))
        said = replace(times, text=text) if times.intervals else Stored("", (text,))
        yield Entry(said, (), video, query, truth, source=text)


def _lmms_eval(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """lmms-eval's ``*_samples_<task>.jsonl`` (``--log_samples``): replies as its tasks read them (``filtered_resps``).

    Rows of its own tasks of temporal grounding (Charades-STA, TimeLens) are named by `video>>>query>>>times`, which is
    what these tasks log as a metric, or by ``doc`` of older versions; of such replies the times are those that
    `readers.extract_time` reads, because the prompt was not the row's. Rows of our tasks are named by their truth
    (``target``) and the prompt (``input``).
    """
    for line in content:
        texts = tuple(_leaves(line["filtered_resps"]))
        doc = line["doc"] if isinstance(line.get("doc"), dict) else {}
        key = _key(line, doc)
        if key is not None:
            video, query, annotated = key
            times = tuple((start, end) for start, end in extract_time(texts[0])) if texts else ()
            said = Prediction(times, text=texts[0]) if texts else Prediction()
            yield Entry(said, (), video, query, annotated, source=texts[0] if texts else line)
            continue
        said = Answer("", texts) if texts else Prediction()
        uid = doc.get("extra_info", {}).get("uid")
        if uid is not None:
            yield Entry(said, (uid,), source=line)
            continue
        start, _, end = line["target"].partition(" to ")
        first, last = number_of(start), number_of(end)
        if first is None or last is None:
            raise KeyError(f"target {line['target']!r} of doc_id {line['doc_id']} is no time")
        yield Entry(
            said, truth=(first, last), place=int(line["doc_id"]), prompt=str(line.get("input", "")), source=line
        )


def _key(line: Mapping[str, Any], doc: Mapping[str, Any]) -> tuple[str, str, Interval | None] | None:
    """Video, query and annotated interval of a sample of lmms-eval's own tasks; None for one of ours."""
    for value in line.values():
        key = next(iter(value), None) if isinstance(value, dict) and len(value) == 1 else None
        if isinstance(key, str) and key.count(JOINT) == 2:
            return _named_by(key)
    for video, query, times in _DOCS:
        if {video, query, times} <= doc.keys():
            return doc[video], doc[query], _first_interval(doc[times])
    return None


def _named_by(key: str) -> tuple[str, str, Interval | None]:
    """Video, query and annotated interval of lmms-eval's `video>>>query>>>times`, of one pair of times or several."""
    video, query, annotated = key.split(JOINT)
    return video, query, _first_interval(annotated)


def _first_interval(annotated: Any) -> Interval | None:
    times = str(annotated).replace("[", " ").replace("]", " ").strip("() ").split(",")[:2]
    numbers = [number for time in times if (number := number_of(time.strip(" ()"))) is not None]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _leaves(found: Any) -> Iterator[str]:
    """Texts of lists in lists, which lmms-eval wraps replies in."""
    if isinstance(found, list):
        for one in found:
            yield from _leaves(one)
    elif isinstance(found, str):
        yield found


FORMATS: dict[str, Reader] = {"temporal_r1": _temporal_r1, "lmms_eval": _lmms_eval}
