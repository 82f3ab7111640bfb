"""Curriculum masks: early in training a hard video shows little more than its annotated time, later all of it.

After VideoTG-R1 (arXiv 2510.23397), of which only the outline is known: masking is a function of the training step and
applies to hard samples. What is masked, by which schedule and how is our reading; every number here is a field of
`Curriculum` and its default is ours.

A mask is whole temporal units of a sampling plan, because the model merges the frames of a unit. It follows from row,
step and settings alone: no state, no random generator, so that any worker, rollout or resumed run makes the same one.
Pure arithmetic: neither torch nor verl.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verl_stvg.video.plan import SamplingPlan

REGIONS = ("window", "random", "far_first")
OPERATORS = ("blank", "crop")
BINS = ("hard", "normal", "easy")
"""Of `extra_info.bin`, which data selection writes."""
SELECT = "select data first (docs/selection.md), or set data.curriculum.enabled=false"

Interval = tuple[float, float]
Run = tuple[int, int]
"""Temporal units from the first to before the last."""

SCHEDULES: dict[str, Callable[["Curriculum", float, float], float]] = {
    "linear": lambda self, p, d: self.r0 * (1 - p),
    "cosine": lambda self, p, d: self.r0 * (1 + math.cos(math.pi * p)) / 2,
    "step": lambda self, p, d: self.r0 * (1 - math.floor(self.stages * p + 1e-9) / self.stages),
    "exp": lambda self, p, d: self.r0 * (math.exp(-self.k * p) - math.exp(-self.k)) / (1 - math.exp(-self.k)),
    "difficulty": lambda self, p, d: d * self.r0 * (1 - p),
}
"""Share of the time outside of the annotation that is hidden, by progress p and difficulty d, both from 0 to 1."""


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
        extra = row.get("extra_info") or {}
        truth = (row.get("reward_model") or {}).get("ground_truth") or {}
        uid, bin_, difficulty = extra.get("uid"), extra.get("bin"), extra.get("difficulty")
        if uid is None:
            raise CurriculumError("the curriculum needs extra_info.uid; build the rows again")
        if bin_ not in BINS:
            raise CurriculumError(
                f"the curriculum needs extra_info.bin, one of {', '.join(BINS)}, and finds {bin_}; {SELECT}"
            )
        if difficulty is None or not 0 <= difficulty <= 1:
            raise CurriculumError(
                f"the curriculum needs extra_info.difficulty from 0 to 1, and finds {difficulty}; {SELECT}"
            )
        found = truth.get("intervals")
        if found is None or not len(found):
            found = [(truth.get("start"), truth.get("end"))]
        intervals = tuple((start, end) for start, end in found)
        if any(start is None or end is None or not 0 <= start <= end < math.inf for start, end in intervals):
            raise CurriculumError(f"intervals {list(intervals)} cannot be kept visible; correct or drop the row")
        return cls(str(uid), bin_, float(difficulty), intervals)


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


@dataclass(frozen=True)
class Curriculum:
    """When, where and how videos are masked: verl's ``data.curriculum``.

    Attributes:
        schedule: one of `SCHEDULES`.
        r0: share hidden at the first step.
        rho: share of the training steps after which nothing is hidden.
        stages: of the schedule ``step``.
        k: rate of the schedule ``exp``.
        region: which time outside of the annotation is hidden: ``window``, all but a window that grows from the
            annotation to the whole video; ``random``, units in an order of the row's own; ``far_first``, the units
            farthest from the annotation.
        op: ``blank``, frames are black and the clock goes on; ``crop``, the video is cut to what is visible, and
            answer and annotation count from the cut.
        bins: rows that are masked.
        seed: of ``random``.
    """

    schedule: str = "linear"  # ours: the simplest reading of a mask that depends on the step
    r0: float = 1.0  # ours
    rho: float = 1.0  # ours
    stages: int = 4  # ours
    k: float = 5.0  # ours
    region: str = "window"  # ours
    op: str = "blank"  # ours: neither prompt nor reward changes
    bins: tuple[str, ...] = ("hard",)
    seed: int = 42  # ours

    def __post_init__(self):
        for key, known in (("schedule", SCHEDULES), ("region", REGIONS), ("op", OPERATORS)):
            if getattr(self, key) not in known:
                raise CurriculumError(
                    f"data.curriculum.{key}={getattr(self, key)} is unknown; choose one of {', '.join(known)}"
                )
        if not self.bins or set(self.bins) - set(BINS):
            raise CurriculumError(f"data.curriculum.bins={list(self.bins)} must name some of {', '.join(BINS)}")
        for key, right, wanted in (
            ("r0", lambda value: 0 <= value <= 1, "from 0 to 1"),
            ("rho", lambda value: 0 < value <= 1, "over 0, at most 1"),
            ("stages", lambda value: value >= 1 and value == int(value), "a whole number, at least 1"),
            ("k", lambda value: 0 < value <= 100, "over 0, at most 100"),
            ("seed", lambda value: value == int(value), "a whole number"),
        ):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not right(value):
                raise CurriculumError(f"data.curriculum.{key}={value} must be {wanted}")
        if self.op == "crop" and self.region == "random":
            raise CurriculumError(
                "data.curriculum.op=crop leaves one piece of the video, and region=random many; use window or far_first"
            )

    @classmethod
    def of(cls, data_config: Mapping[str, Any]) -> "Curriculum | None":
        """The curriculum of verl's ``data`` configuration; None where there is none or ``enabled`` is false.

        Raises:
            CurriculumError: unknown keys or values.
        """
        given = dict(data_config.get("curriculum") or {})
        enabled = given.pop("enabled", False)
        known = [field.name for field in fields(cls)]
        if unknown := sorted(given.keys() - set(known)):
            raise CurriculumError(
                f"data.curriculum knows no {', '.join(unknown)}; its keys are enabled, {', '.join(known)}"
            )
        if not isinstance(enabled, bool):
            raise CurriculumError(f"data.curriculum.enabled={enabled} must be true or false")
        if isinstance(given.get("bins"), str):
            raise CurriculumError(f"data.curriculum.bins={given['bins']} must be a list: [{given['bins']}]")
        if "bins" in given:
            given["bins"] = tuple(given["bins"])
        made = cls(**given)
        return made if enabled else None

    def ratio(self, step: int, total: int, difficulty: float = 1.0) -> float:
        """Share of the time outside of the annotation that is hidden.

        Args:
            step: of the optimiser, from 0.
            total: steps of the run.
            difficulty: of the row, from 0 to 1; read by the schedule ``difficulty``.
        """
        progress = min(max(step / (self.rho * total), 0.0), 1.0)
        return min(max(SCHEDULES[self.schedule](self, progress, difficulty), 0.0), 1.0)

    def mask(self, plan: SamplingPlan, row: RowFacts, step: int, total: int) -> Mask:
        """The mask of a row at a step; one that takes nothing for rows of other bins.

        Raises:
            CurriculumError: an annotation outside of what the plan shows.
        """
        if row.bin not in self.bins:
            return Mask(0.0)
        ratio, units = self.ratio(step, total, row.difficulty), plan.whole.num_units
        visible = visible_units(
            units, plan.seconds_per_unit, row.intervals, ratio, self.region, f"{self.seed}/{row.uid}"
        )
        if len(visible) == units:
            return Mask(ratio)
        if self.op == "blank":
            return Mask(ratio, hidden=_runs(set(range(units)) - set(visible)), share=1 - len(visible) / units)
        first, last = visible[0], visible[-1] + 1
        if last - first == units:
            return Mask(ratio)
        return Mask(
            ratio, shown=(first, last), share=1 - (last - first) / units, crop_start=first * plan.seconds_per_unit
        )


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


def _runs(units: set[int]) -> tuple[Run, ...]:
    """The runs that make up a set of units."""
    starts = sorted(u for u in units if u - 1 not in units)
    ends = sorted(u + 1 for u in units if u + 1 not in units)
    return tuple(zip(starts, ends, strict=True))
