"""Curriculum masks: early in training a hard video shows little more than its annotated time, later all of it.

After VideoTG-R1 (arXiv 2510.23397), of which only the outline is known: masking is a function of the training step and
applies to hard samples. What is masked, by which schedule and how is our reading; every number here is a field of
`Curriculum` and its default is ours.

A mask is whole temporal units of a sampling plan, because the model merges the frames of a unit. It follows from row,
step and settings alone: no state, no random generator, so that any worker, rollout or resumed run makes the same one.
Pure arithmetic: neither torch nor verl.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_stvg.rows.masks import BINS, OPERATORS, REGIONS, CurriculumError, Mask, RowFacts, runs_of, visible_units
from verl_stvg.rows.settings import section
from verl_stvg.video.plan import SamplingPlan

SCHEDULES: dict[str, Callable[["Curriculum", float, float], float]] = {
    "linear": lambda self, p, d: self.hidden_at_start * (1 - p),
    "cosine": lambda self, p, d: self.hidden_at_start * (1 + math.cos(math.pi * p)) / 2,
    "step": lambda self, p, d: self.hidden_at_start * (1 - math.floor(self.stages * p + 1e-9) / self.stages),
    "exp": lambda self, p, d: self.hidden_at_start * _decay(self.decay_rate, p),
    "difficulty": lambda self, p, d: d * self.hidden_at_start * (1 - p),
}
"""Share of the time outside of the annotation that is hidden, by progress p and difficulty d, both from 0 to 1."""


def _decay(rate: float, p: float) -> float:
    return (math.exp(-rate * p) - math.exp(-rate)) / (1 - math.exp(-rate))


@dataclass(frozen=True)
class Curriculum:
    """When, where and how videos are masked: verl's ``data.curriculum``.

    Attributes:
        enabled: whether videos are masked.
        schedule: one of `SCHEDULES`.
        hidden_at_start: share hidden at the first step.
        all_shown_after: share of the training steps after which nothing is hidden.
        stages: of the schedule ``step``.
        decay_rate: of the schedule ``exp``.
        region: which time outside of the annotation is hidden: ``window``, all but a window that grows from the
            annotation to the whole video; ``random``, units in an order of the row's own; ``far_first``, the units
            farthest from the annotation.
        op: ``blank``, frames are black and the clock goes on; ``crop``, the video is cut to what is visible, and
            answer and annotation count from the cut.
        bins: rows that are masked.
        seed: of ``random``.
    """

    enabled: bool = field(default=False, compare=False)
    schedule: str = "linear"  # ours: the simplest reading of a mask that depends on the step
    hidden_at_start: float = 1.0  # ours
    all_shown_after: float = 1.0  # ours
    stages: int = 4  # ours
    decay_rate: float = 5.0  # ours
    region: str = "window"  # ours
    op: str = "blank"  # ours: neither prompt nor reward changes
    bins: tuple[str, ...] = ("hard",)
    seed: int = 42  # ours

    def __post_init__(self):
        if not isinstance(self.enabled, bool):
            raise CurriculumError(f"data.curriculum.enabled={self.enabled} must be true or false")
        if isinstance(self.bins, str):
            raise CurriculumError(f"data.curriculum.bins={self.bins} must be a list: [{self.bins}]")
        object.__setattr__(self, "bins", tuple(self.bins or ()))
        for key, known in (("schedule", SCHEDULES), ("region", REGIONS), ("op", OPERATORS)):
            if getattr(self, key) not in known:
                raise CurriculumError(
                    f"data.curriculum.{key}={getattr(self, key)} is unknown; choose one of {', '.join(known)}"
                )
        if not self.bins or set(self.bins) - set(BINS):
            raise CurriculumError(f"data.curriculum.bins={list(self.bins)} must name some of {', '.join(BINS)}")
        for key, right, wanted in (
            ("hidden_at_start", lambda value: 0 <= value <= 1, "from 0 to 1"),
            ("all_shown_after", lambda value: 0 < value <= 1, "over 0, at most 1"),
            ("stages", lambda value: value >= 1 and value == int(value), "a whole number, at least 1"),
            ("decay_rate", lambda value: 0 < value <= 100, "over 0, at most 100"),
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
        made = section(data_config, "curriculum", cls, CurriculumError)
        return made if made and made.enabled else None

    def ratio(self, step: int, total: int, difficulty: float = 1.0) -> float:
        """Share of the time outside of the annotation that is hidden.

        Args:
            step: of the optimiser, from 0.
            total: steps of the run.
            difficulty: of the row, from 0 to 1; read by the schedule ``difficulty``.
        """
        progress = min(max(step / (self.all_shown_after * total), 0.0), 1.0)
        return min(max(SCHEDULES[self.schedule](self, progress, difficulty), 0.0), 1.0)

    def mask(self, plan: SamplingPlan, row: RowFacts, step: int, total: int) -> Mask:
        """The mask of a row at a step; one that takes nothing for rows of other bins.

        Args:
            plan: of the row's one video, with nothing hidden.
            row: what the mask depends on: bin, uid, difficulty, and intervals in seconds of what the plan shows.
            step: of the optimiser, from 0.
            total: steps of the run.

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
            return Mask(ratio, hidden=runs_of(set(range(units)) - set(visible)), share=1 - len(visible) / units)
        first, last = visible[0], visible[-1] + 1
        if last - first == units:
            return Mask(ratio)
        return Mask(
            ratio, shown=(first, last), share=1 - (last - first) / units, crop_start=first * plan.seconds_per_unit
        )
