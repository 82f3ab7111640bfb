"""The STVG-R1 reward: temporal IoU, object-ID match and format, summed without weights (range 0 to 3).

`stvg_r1` is faithful to the released code, surprises included: the last answer block counts even if it is empty or was
drafted inside the reasoning; a time that cannot be read also costs a correct ID; an ID earns its reward however wrong
the span is. `stvg_r1_visible` adds the condition that the paper states and the code lacks; `stvg_r1_multi` pays the F1
of several IDs. Ground truth: `object_id`, `start`, `end`, `duration` (seconds; the duration is carried, not used).
Source: STVG-R1, sections 1.8 and 2.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from reward_fns import ground_truth as truths
from reward_fns import measures, parsing
from reward_fns.formats import answer_only, think_answer
from reward_fns.parsing import Interval
from reward_fns.recipe import Reading, Recipe, said_span
from reward_fns.thinking import optional_parts


@lru_cache(maxsize=8)  # the parts of one completion are scored one after the other: read it once
def parse(completion: str) -> tuple[int, float, float] | None:
    """Return (object ID, start, end) of the last answer block, or None if any of the three cannot be read."""
    answer = parsing.last_block(completion, "answer")
    if answer is None:
        return None
    object_id, span = parsing.target_id(answer), parsing.time_range(answer)
    return (object_id, *span) if object_id is not None and span is not None else None


def read(completion: str) -> Reading | None:
    """Return what the last answer block says, or None if ID or time cannot be read."""
    answer = parse(completion)
    return Reading((answer[1:],), (answer[0],)) if answer is not None else None


def write(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says the true ID and the true span."""
    return _said([ground_truth["object_id"]], ground_truth)


def _said(ids: Iterable[float], ground_truth: Mapping[str, Any]) -> str:
    start, end = said_span(ground_truth)
    return f"<answer>Target ID: {' and '.join(str(int(found)) for found in ids)}, Time range: {start} to {end}</answer>"


def parse_span(completion: str) -> Interval | None:
    """Return (start, end) of the last answer block, or None if they or the ID cannot be read."""
    answer = parse(completion)
    return answer[1:] if answer is not None else None


def temporal(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU (intersection over hull) of the answered span, in [0, 1]; 0 if unreadable."""
    answer = parse(completion)
    if answer is None:
        return 0.0
    return measures.temporal_iou(answer[1], answer[2], ground_truth["start"], ground_truth["end"])


def spatial(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return 1.0 if the answered object ID is the true one, else 0.0; 0 if ID or time is unreadable."""
    answer = parse(completion)
    return 1.0 if answer is not None and answer[0] == ground_truth["object_id"] else 0.0


def accuracy(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return temporal plus spatial reward, in [0, 2]: the single function that the original registers."""
    return temporal(completion, ground_truth) + spatial(completion, ground_truth)


def format(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 for the think-then-answer layout, else 0.0; the content of the answer is not looked at."""
    return think_answer(completion)


def format_nothink(completion: str, ground_truth: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 if the stripped completion is an answer block, else 0.0. Ours, for prompts without reasoning."""
    return answer_only(completion)


def spatial_visible(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return `spatial`, but 0 unless the target is displayed at some moment of the answered span.

    `visible` lists the (start, end) in seconds at which the ID is drawn. Source: STVG-R1, 2.3, the paper's condition.
    """
    answer = parse(completion)
    if answer is None or answer[0] != ground_truth["object_id"]:
        return 0.0
    return 1.0 if measures.overlaps_any(answer[1], answer[2], ground_truth["visible"]) else 0.0


@lru_cache(maxsize=8)
def parse_set(completion: str) -> tuple[frozenset[int], Interval] | None:
    """Return (object IDs, (start, end)) of the last answer block, or None if either cannot be read. Ours."""
    answer = parsing.last_block(completion, "answer")
    if answer is None:
        return None
    ids, span = parsing.target_ids(answer), parsing.time_range(answer)
    return (ids, span) if ids is not None and span is not None else None


def read_set(completion: str) -> Reading | None:
    """Return what an answer of several IDs says, or None if IDs or time cannot be read. Ours."""
    answer = parse_set(completion)
    return Reading((answer[1],), tuple(sorted(answer[0]))) if answer is not None else None


def write_set(ground_truth: Mapping[str, Any]) -> str:
    """Return the answer that says all true IDs and the true span. Ours."""
    return _said(ground_truth.get("object_ids") or (), ground_truth)


def parse_set_span(completion: str) -> Interval | None:
    """Return (start, end) of an answer of several IDs, or None if they or the IDs cannot be read. Ours."""
    answer = parse_set(completion)
    return answer[1] if answer is not None else None


def spatial_set(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the F1 of the answered IDs with `object_ids`, in [0, 1]; 0 if IDs or time are unreadable. Ours."""
    answer = parse_set(completion)
    if answer is None:
        return 0.0
    return measures.set_f1(answer[0], [int(object_id) for object_id in ground_truth["object_ids"]])


def temporal_set(completion: str, ground_truth: Mapping[str, Any]) -> float:
    """Return the temporal IoU of an answer of several IDs, in [0, 1]; 0 if IDs or time are unreadable. Ours."""
    answer = parse_set(completion)
    return measures.temporal_iou(*answer[1], ground_truth["start"], ground_truth["end"]) if answer is not None else 0.0


_PAPER = Recipe(
    name="stvg_r1",
    parts={"temporal_iou": (temporal, 1.0), "id_match": (spatial, 1.0), "format": (format, 1.0)},
    check=truths.check_object_span,
    read=read,
    answer=write,
    asks=frozenset({"thinking", "time", "object"}),
    optional=optional_parts(parse_span),
)

RECIPES = (
    _PAPER,
    _PAPER.without_thinking(
        {"temporal_iou": (temporal, 1.0), "id_match": (spatial, 1.0), "format": (format_nothink, 1.0)}
    ),
    _PAPER.variant(
        "stvg_r1_visible",
        {"temporal_iou": (temporal, 1.0), "id_match": (spatial_visible, 1.0), "format": (format, 1.0)},
        check=truths.check_visible_object_span,
    ),
    Recipe(
        name="stvg_r1_multi",
        parts={"temporal_iou": (temporal_set, 1.0), "id_match": (spatial_set, 1.0), "format": (format, 1.0)},
        check=truths.check_objects_span,
        read=read_set,
        answer=write_set,
        asks=frozenset({"thinking", "time", "objects"}),
        optional=optional_parts(parse_set_span),
    ),
)
