"""Boundary reflection: find rows whose annotated interval is not the only one that fits.

On such a row a right answer may earn nothing, and the model is taught the wrong thing.

A model is asked what else in the video matches the query, either with the annotated interval named in the prompt
(``prompted``) or with it blacked out (``blanked``, which no model can merely repeat). Partly annotated rows are those
for which it names enough outside of the interval. Source: VideoTG-R1 notes, 1; prompts, formulas and thresholds are
ours, the authors' are not public.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa

from reward_fns.parsing import last_block
from verl_stvg.data_builders.selection.folder import SelectionError, Stage
from verl_stvg.data_builders.selection.samples import Interval, Sample, read_intervals, sample_of
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.masks import visible_units
from verl_stvg.rows.row import Row, plan_of
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.film import VideoError, VideoInfo

Number = TypeVar("Number", int, float)

NAME = "boundary_reflection"
MODES = ("prompted", "blanked")
MAX_ITEMS = 1000  # that are read of one reply

_LIST = (
    "First reason inside <think> </think>. Then list all of them inside <answer> </answer>, each as (start, end) in "
    "seconds with up to two decimals, for example <answer>[(3.50, 8.00), (41.25, 47.00)]</answer>, or give an empty "
    "list if there is none: <answer>[]</answer>"
)
PROMPTS = {
    "prompted": (
        "reflect_prompted/1",
        'A video comes with this description: "{query}". Somebody has marked where the video shows it: {spans}. That '
        "mark is accepted as right and needs no repeating. Look at the rest of the video: are there other periods, "
        f"outside of the marked time, that the same description fits as well? {_LIST}",
    ),
    "blanked": (
        "reflect_blanked/1",
        'A video comes with this event: "{query}". Parts of the video are blacked out and do not count. Determine '
        f"every period of the remaining video in which the event happens; there may be none. {_LIST}",
    ),
}
"""Per mode the name with its version, and the text, in our own words."""


@dataclass(frozen=True)
class Rules:
    """When a prediction counts as evidence. All numbers are ours.

    Attributes:
        guard: seconds around the annotation in which nothing counts: ordinary disagreement about boundaries.
        min_len: seconds that an interval must have.
        tau_out: least share of an interval that lies outside of annotation and guard band.
        min_items: of evidence that make a row partly annotated.
        reversed: intervals that end before they start: ``swap`` the two times, or ``drop`` them, for a model that has
            no other way to say that there is nothing (measured in docs/selection.md).
        full: share of the video from which on an annotation leaves no outside.
        healthy: drop rates of a set below and above which the prompt is more likely to be broken than the annotation.
    """

    guard: float = 1.0
    min_len: float = 1.0
    tau_out: float = 0.5
    min_items: int = 1
    reversed: str = "swap"
    full: float = 0.95
    healthy: tuple[float, float] = (0.02, 0.60)

    def __post_init__(self):
        if self.reversed not in ("swap", "drop"):
            raise ValueError(f"reversed={self.reversed!r} is unknown; choose one of swap, drop")


def stage(mode: str = "prompted", rules: Rules | None = None, own_prompt: bool = False) -> Stage:
    """The stage.

    Args:
        mode: ``prompted`` or ``blanked``.
        rules: of judging.
        own_prompt: ask each row's own question in mode ``blanked``, for models that know no other; they cannot answer
            that there is none.

    Raises:
        ValueError: unknown mode, or rows' own prompts in mode ``prompted``.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if own_prompt and mode != "blanked":
        raise ValueError("a row's own prompt does not name the annotated interval; use it with mode blanked")
    rules = rules or Rules()
    version = "" if own_prompt else PROMPTS[mode][0]
    return Stage(
        name=NAME,
        asking={"mode": mode, "prompt_version": version},
        rules=asdict(rules),
        ask=lambda row: asked(row, mode, own_prompt),
        judge=lambda sample, answer: judged(sample, answer, rules, own_prompt),
        notes=lambda lines: health(lines, rules),
        video_fields={"hidden": pa.list_(pa.list_(pa.int64()))} if mode == "blanked" else {},
    )


def asked(row: dict, mode: str, own_prompt: bool = False) -> dict:
    """The row that is asked: another prompt, and in mode ``blanked`` with temporal units of its video ``hidden``.

    Args:
        row: as `verl_stvg.data_builders.selection.pool.Pool.rows` has it.
        mode: of `MODES`.
        own_prompt: the row's prompt stays.

    Raises:
        SelectionError: the row does not say what the temporal units of its video are, and the video cannot be used.
    """
    opened = Row.of(row)
    sample = sample_of(opened)
    if mode == "blanked":
        first, *others = opened.entries
        row = row | {"videos": [first | {"hidden": _hidden(opened, first, sample)}, *others]}
    if own_prompt:
        return row
    named = " and ".join(f"{start:.2f} to {end:.2f} seconds" for start, end in sample.spans)
    text = PROMPTS[mode][1].replace("{spans}", named).replace("{query}", sample.query)
    video_first = any(turn["content"].startswith("<video>") for turn in row["prompt"])
    return row | {"prompt": [{"role": "user", "content": f"<video>{text}" if video_first else f"{text}<video>"}]}


def _hidden(row: Row, video: dict, sample: Sample) -> list[list[int]] | None:
    """Runs of temporal units that touch the annotation; None where it lies outside of what the model sees."""
    plan = plan_of({**video, "tracks": None}, row.info or _looked_into(row, sample))
    seconds = plan.seconds_per_unit
    spans = clipped(sample.spans, min(sample.duration, plan.num_units * seconds))
    if not spans:
        return None
    touched = visible_units(plan.num_units, seconds, spans, ratio=1.0, region="far_first")
    return [list(run) for run in united((unit, unit + 1) for unit in touched)]


def _looked_into(row: Row, sample: Sample) -> VideoInfo:
    try:
        return shared_decoder().probe(row.videos[0]["video"])
    except VideoError as error:
        raise SelectionError(
            f"{sample.uid}: the row does not say when each frame of its video is shown, so nothing can be blanked, and "
            f"the video does not say it either ({error}); build the rows with --videos"
        ) from error


# --- reading replies --------------------------------------------------------------------------------------------------

_SPACE = r"\s{0,8}(?:s|sec|secs|seconds)?\s{0,8}"
_TIME = r"([0-9]{1,9}(?:\.[0-9]{0,9})?)"
_TUPLE = re.compile(rf"[(\[]\s{{0,8}}{_TIME}{_SPACE},{_SPACE}{_TIME}{_SPACE}[)\]]")
_RANGE = re.compile(rf"(?<![0-9.]){_TIME}{_SPACE}(?:to|-|\u2013){_SPACE}{_TIME}", re.IGNORECASE)
_NUMBER = re.compile(rf"(?<![0-9.]){_TIME}")
_NO_SECONDS = re.compile(r"[0-9]:[0-9]|[0-9]\.[0-9]{0,9}\.[0-9]|[0-9]{10}")
_NONE = re.compile(r"\b(?:no|none|nothing|not)\b", re.IGNORECASE)


def read_reply(text: str) -> list[tuple[float, ...]] | None:
    """The intervals (two numbers) or moments (one) that a reply lists, in seconds; empty for none, None if unreadable.

    Read is the last answer block, or a reply that is nothing but a list. In it: pairs in brackets; without any, ``a to
    b``; without any, single numbers. Times as minutes and seconds, numbers of ten digits and the like are
    unreadable.
    Linear in the length of the text, which may be anything.
    """
    block = last_block(text, "answer")
    if block is None:
        block = text if text.strip().startswith("[") else None
    if block is None or _NO_SECONDS.search(block):
        return None
    for pattern in (_TUPLE, _RANGE, _NUMBER):
        if found := [tuple(map(float, match.groups())) for match in pattern.finditer(block)]:
            return found if len(found) <= MAX_ITEMS else None
    return [] if not block.strip("[]() \t\r\n.") or _NONE.search(block) else None


# --- judging ----------------------------------------------------------------------------------------------------------


def judged(sample: Sample, answer: Answer, rules: Rules, own_prompt: bool = False) -> dict[str, Any]:
    """What the first answer says about a row: ``parse_ok``, ``pred``, ``outside``, ``is_partial``, ``drop_reason``.

    Rows whose reply cannot be read are kept. ``drop_reason`` is ``partial``, ``bad_gt`` (no annotated interval within
    the video), ``video_error`` or None.

    Args:
        sample: the row.
        answer: the first of its texts counts.
        rules: when a prediction is evidence against the annotation.
        own_prompt: the row was asked with its own prompt, so that the reply is read as its reward reads it.
    """
    text = answer.texts[0] if answer.texts else ""
    said = read_intervals(text, sample.recipe) if own_prompt else read_reply(text)
    spans = clipped(sample.spans, sample.duration)
    outside = evidence(said or [], spans, sample.duration, rules)
    partial = bool(spans) and len(outside) >= rules.min_items
    reason = "video_error" if answer.error else "bad_gt" if not spans else "partial" if partial else None
    return {
        "parse_ok": said is not None,
        "pred": [list(item) for item in said or []],
        "outside": [list(item) for item in outside],
        "is_partial": partial,
        "drop_reason": reason,
    }


def evidence(
    items: Iterable[tuple[float, ...]], spans: Sequence[Interval], duration: float, rules: Rules
) -> list[tuple[float, ...]]:
    """The predictions that lie outside of the annotation; source: VideoTG-R1 notes, 1.3.

    Intervals are put in order (see `Rules.reversed`), clipped to the video and united first; moments stay as they are.

    Args:
        items: intervals (start, end) and moments (time,), seconds.
        spans: annotated, within the video.
        duration: of the video, seconds.
        rules: of judging.
    """
    if not spans or sum(end - start for start, end in united(spans)) >= rules.full * duration:
        return []
    items = [item for item in items if all(map(math.isfinite, item))]
    if rules.reversed == "drop":
        items = [item for item in items if item[0] <= item[-1]]
    guarded = united([(start - rules.guard, end + rules.guard) for start, end in spans])
    intervals = clipped([(min(item), max(item)) for item in items if len(item) == 2], duration)
    found: list[tuple[float, ...]] = [
        (start, end)
        for start, end in united(intervals)
        if end - start >= rules.min_len
        and 1.0 - sum(max(0.0, min(end, e) - max(start, s)) for s, e in guarded) / (end - start) >= rules.tau_out
    ]
    moments = [item for item in items if len(item) == 1]
    return found + [item for item in moments if not any(start <= item[0] <= end for start, end in guarded)]


def clipped(intervals: Iterable[Sequence[float]], duration: float) -> list[Interval]:
    """Intervals cut at the ends of the video, without those of which nothing is left."""
    cut = [(max(0.0, start), min(duration, end)) for start, end in intervals]
    return [(start, end) for start, end in cut if start < end]


def united(intervals: Iterable[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    """Disjoint intervals that cover the same, in order; touching ones become one."""
    disjoint: list[tuple[Number, Number]] = []
    for start, end in sorted(intervals):
        if disjoint and start <= disjoint[-1][1]:
            disjoint[-1] = (disjoint[-1][0], max(end, disjoint[-1][1]))
        else:
            disjoint.append((start, end))
    return disjoint


def health(lines: list[dict], rules: Rules) -> list[str]:
    """A sentence for each set: its drop rate, and whether the prompt is to be suspected."""
    rows = Counter(line["dataset"] for line in lines)
    partial = Counter(line["dataset"] for line in lines if line["drop_reason"] == "partial")
    unreadable = Counter(line["dataset"] for line in lines if not line["parse_ok"] and not line["error"])
    low, high = rules.healthy
    said = []
    for name, count in sorted(rows.items()):
        rate = partial[name] / count
        text = f"{name}: {rate:.1%} of {count} rows partly annotated, {unreadable[name]} replies unreadable"
        if not low <= rate <= high:
            text += f"; outside of {low:.0%} to {high:.0%}: look at the replies, the prompt may not suit the model"
        said.append(text)
    return said
