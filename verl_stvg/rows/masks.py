"""What a mask of a video is: whole temporal units that the model does not see, and the ground truth on its clock.

Pure arithmetic: neither torch nor verl. When a mask is laid on says `verl_stvg.training.curriculum`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_stvg.rows.row import Row
from verl_stvg.video.plan import SamplingPlan

REGIONS = ("window", "random", "far_first")
OPERATORS = ("blank", "crop")
BINS = ("hard", "normal", "easy")
"""Of `extra_info.bin`, which data selection writes."""
SELECT = "select data first (docs/selection.md), or set data.curriculum.enabled=false"
Interval = tuple[float, float]
Run = tuple[int, int]
"""Temporal units from the first to before the last."""


class CurriculumError(ValueError):
    """A setting or a row that no mask can be made from; says which and what to do."""


@dataclass(frozen=True)
class RowFacts:
    """What a mask depends on in a row: uid, bin, difficulty from 0 (easy) to 1, annotated intervals in seconds."""

    uid: str
    bin: str
    difficulty: float
    intervals: tuple[Interval, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "RowFacts":
        """Of a row's ``extra_info`` and ``reward_model``.

        Raises:
            CurriculumError: no bin or difficulty, or one that is unknown; no usable interval.
        """
        row = Row.of(row)
        bin_, difficulty = row.extra.get("bin"), row.extra.get("difficulty")
        if row.uid is None:
            raise CurriculumError("the curriculum needs extra_info.uid; build the rows again")
        if bin_ not in BINS:
            raise CurriculumError(
                f"the curriculum needs extra_info.bin, one of {', '.join(BINS)}, and finds {bin_}; {SELECT}"
            )
        if difficulty is None or not 0 <= difficulty <= 1:
            raise CurriculumError(
                f"the curriculum needs extra_info.difficulty from 0 to 1, and finds {difficulty}; {SELECT}"
            )
        if not row.intervals or not all(0 <= start <= end < math.inf for start, end in row.intervals):
            raise CurriculumError(f"intervals {list(row.intervals)} cannot be kept visible; correct or drop the row")
        return cls(str(row.uid), bin_, float(difficulty), row.intervals)


@dataclass(frozen=True)
class Mask:
    """What is taken from a video at one step.

    Attributes:
        ratio: share of the time outside of the annotation that the schedule hides.
        hidden: units that are black (operator ``blank``).
        shown: units that are left (operator ``crop``); None for all.
        share: of all temporal units, those that the model does not see.
        crop_start: seconds that the model's clock is behind the video's.
    """

    ratio: float
    hidden: tuple[Run, ...] = ()
    shown: Run | None = None
    share: float = 0.0
    crop_start: float = 0.0

    @property
    def keys(self) -> dict[str, list]:
        """Keys of the video's entry in the prompt, for `SamplingPlan.masked`."""
        found = {"hidden": [list(run) for run in self.hidden], "shown": self.shown and list(self.shown)}
        return {key: value for key, value in found.items() if value}


def visible_units(
    units: int, seconds: float, intervals: Sequence[Interval], ratio: float, region: str = "window", order: str = ""
) -> list[int]:
    """Temporal units that a mask leaves visible, increasing; unit u covers ``[u * seconds, (u + 1) * seconds)``.

    Units that touch an interval are always among them, and with a smaller ratio none of them goes.

    Args:
        units: of the video.
        seconds: of one unit.
        intervals: annotated, seconds from the start of the video, in any order.
        ratio: share of the other time that is hidden, from 0 to 1.
        region: one of `REGIONS`.
        order: names the order in which ``random`` hides units.

    Raises:
        CurriculumError: an interval that no unit touches.
    """
    kept = _touching(units, seconds, intervals)
    free = sorted(set(range(units)).difference(*(range(first, last) for first, last in kept)))
    if region == "window":
        start, end = min(start for start, _ in intervals), max(end for _, end in intervals)
        low, high = start * ratio, end + (1 - ratio) * (max(units * seconds, end) - end)
        hidden = {u for u in free if u * seconds >= high or (u + 1) * seconds <= low}
    else:
        if region == "random":
            free.sort(key=lambda u: hashlib.blake2b(f"{order}/{u}".encode(), digest_size=16).digest())
        else:
            free.sort(key=lambda u: (min(max(first - u, u - last + 1) for first, last in kept), u), reverse=True)
        hidden = set(free[: round(ratio * len(free))])
    return [u for u in range(units) if u not in hidden]


def crop_truth(truth: Mapping[str, Any], mask: Mask, plan: SamplingPlan) -> dict[str, Any]:
    """Ground truth on the clock of a cropped video, with ``crop_start``: what to add to come back to the video's own.

    Args:
        truth: of the row, in seconds of what the plan shows.
        mask: of the row; where it crops nothing, the truth stays as it is.
        plan: of the row's one video, before it is cropped.

    Raises:
        CurriculumError: it holds boxes, which count frames of all that the row shows.
    """
    if mask.shown is None:
        return dict(truth)
    if truth.get("boxes") is not None:
        raise CurriculumError("data.curriculum.op=crop cannot move a ground truth with boxes; use op=blank")
    length = (mask.shown[1] - mask.shown[0]) * plan.seconds_per_unit
    moved = dict(truth) | {"duration": length, "crop_start": mask.crop_start}
    for key in ("start", "end"):
        if truth.get(key) is not None:
            moved[key] = max(truth[key] - mask.crop_start, 0.0)
    if truth.get("intervals") is not None:
        moved["intervals"] = [[max(time - mask.crop_start, 0.0) for time in one] for one in truth["intervals"]]
    if truth.get("visible") is not None:
        spans = [
            (max(start - mask.crop_start, 0.0), min(end - mask.crop_start, length)) for start, end in truth["visible"]
        ]
        moved["visible"] = [[start, end] for start, end in spans if start < end]
    return moved


def _touching(units: int, seconds: float, intervals: Sequence[Interval]) -> list[Run]:
    """Units that each interval touches; a point touches the one that holds it."""
    found = []
    for start, end in intervals:
        first = max(math.floor(start / seconds), 0)
        last = min(max(math.ceil(end / seconds), first + 1), units)
        if first >= last:
            raise CurriculumError(
                f"the interval from {start} to {end} s lies outside of the {units * seconds:g} s that the model sees; "
                "correct or drop the row"
            )
        found.append((first, last))
    return found


def runs_of(units: set[int]) -> tuple[Run, ...]:
    """The runs that make up a set of units."""
    starts = sorted(u for u in units if u - 1 not in units)
    ends = sorted(u + 1 for u in units if u + 1 not in units)
    return tuple(zip(starts, ends, strict=True))
