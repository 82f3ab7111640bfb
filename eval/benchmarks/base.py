"""What all kinds of answers share: `Item`, a row as a question with its truth, and `Prediction`, what an answer says.

Each kind has a type of its own below `Item`, which says how its truth is read from a row and how answers are measured:
`temporal.Moment`, `tubes.Tube`, `masks.Referred` and `questions.Question`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from reward_fns import RECIPES, Recipe
from verl_stvg.data_builders.objects.boxes import Size, annotated_size
from verl_stvg.eval.metrics.tubes import as_arrays
from verl_stvg.rows.answers import Answer
from verl_stvg.video.clock import FrameClock

Interval = tuple[float, float]
Box = tuple[float, float, float, float]
Values = dict[str, np.ndarray]
"""Values of metrics by name, each of one per item, (N,)."""

Predictions = Sequence["Prediction | None"]
"""What was read from the answer to each item; None for nothing."""

Kind = TypeVar("Kind", bound="Item")

_FAR = 1e12  # frames; far beyond any video it does not matter which


@dataclass(frozen=True)
class Item:
    """A row of a benchmark, with what rows of every kind have.

    Attributes:
        uid: of the row.
        dataset: name of the annotation set.
        split: of the set.
        recipe: name of the reward that reads the answers, which the prompt goes with.
        video: path as the row has it; rows of one video succeed and fail together.
        query: sentence or question.
        duration: of what is shown, seconds.
        intervals: annotated, seconds of what is shown; empty where the split has no public truth.
        annotated: the row's JSON text of further fields.
        fps: of the video; None if neither the video nor the annotation said it.
        shown: first second of the file that is shown.
        num_frames: of the file; None if it was not looked into.
        size: (width, height) of the file, likewise.
        times: seconds at which the frames of the file appear; None at a constant rate.
        file_end: seconds at which the last one goes, likewise.
        tracks: absolute path of the track file whose IDs the model saw.
        num_options: that the prompt offers; 0 for none.
    """

    main: ClassVar[str]
    """The metric that people quote."""

    uid: str
    dataset: str
    split: str
    recipe: str
    video: str
    query: str
    duration: float
    intervals: tuple[Interval, ...] = ()
    annotated: str | None = None
    fps: float | None = None
    shown: float = 0.0
    num_frames: int | None = None
    size: tuple[int, int] | None = None
    times: tuple[float, ...] | None = field(default=None, repr=False)
    file_end: float | None = None
    tracks: Path | None = None
    num_options: int = 0

    # --- the row

    @classmethod
    def own(cls, truth: Mapping[str, Any]) -> tuple:
        """Fields that this kind adds to those of `Item`, in their order, from the ground truth of a row."""
        return ()

    def counted_in_file(self, first_frame_of: str | None) -> "Item":
        """The item with its frames counted in the file, whatever the row says that they are counted in."""
        return self

    @property
    def reward(self) -> Recipe:
        """The recipe that reads the answers."""
        return RECIPES[self.recipe]

    @cached_property
    def extra(self) -> Mapping[str, Any]:
        """Further fields of the annotation."""
        return json.loads(self.annotated) if self.annotated else {}

    @cached_property
    def clock(self) -> FrameClock | None:
        """Frame numbers and seconds of the file; None without a rate."""
        return FrameClock(self.num_frames or 0, self.fps, self.times, self.file_end) if self.fps else None

    @property
    def known_clock(self) -> FrameClock:
        """`clock`, where frames cannot do without it.

        Raises:
            ValueError: neither the video nor the annotation says the rate.
        """
        if self.clock is None:
            raise ValueError(f"row {self.uid}: the rate of its video is not known; build the rows with --videos")
        return self.clock

    def frames(self, interval: Interval) -> tuple[int, int]:
        """First and last frame of the file in an interval of what is shown; the last is before the first if none is.

        Bounds are rounded to the nearest beginning of a frame, so that two decimals name a frame.
        """
        return self._nearest(interval[0]), self._nearest(interval[1]) - 1

    def span(self, seconds: float) -> float:
        """How many frames the first seconds of what is shown are."""
        clock = self.known_clock
        if self.times is None:
            return seconds * clock.fps
        return clock.place(self.shown + seconds) - clock.place(self.shown)

    def _nearest(self, seconds: float) -> int:
        clock = self.known_clock
        far = _FAR / clock.fps
        return clock.nearest(min(max(self.shown + seconds, -far), far))

    def answered_size(self) -> Size | None:
        """(width, height) of the picture that answered thousandths are of; None: not known."""
        return annotated_size(self.extra) or self.size

    def known_frames(self) -> int:
        """How many frames the file has, as far as that is known."""
        return self.num_frames or 0

    # --- the truth, and what is measured

    @property
    def has_truth(self) -> bool:
        """Whether answers can be scored."""
        return bool(self.intervals)

    @property
    def true_ids(self) -> tuple[int, ...]:
        """IDs of the objects that are meant; none if they are not known."""
        return ()

    @property
    def truth(self) -> dict[str, Any]:
        """What is true, as ``items.jsonl`` holds it."""
        return {
            "intervals": [list(interval) for interval in self.intervals],
            "duration": self.duration,
            "object_id": None,
            "answer": None,
        }

    def wrong(self, said: "Prediction", values: Mapping[str, float]) -> list[str]:
        """What is wrong with an answer: a time whose IoU is below a half, and what a kind adds."""
        return ["time"] if values.get("mIoU", values.get("m_tIoU", 1.0)) < 0.5 else []

    @classmethod
    def measure(cls, items: Sequence["Item"], said: Predictions, sources: Any) -> tuple[Values, list[str]]:
        """Values of the clean metrics per item, and notes on what could not be measured.

        Args:
            items: with their truth.
            said: what was read from each answer; None for nothing.
            sources: track files and masks, `tracked.Sources`.

        Raises:
            ValueError: track files or masks that are missing or of something else.
        """
        raise NotImplementedError

    @classmethod
    def variants(cls, items: Sequence["Item"], said: Predictions, sources: Any, values: Values) -> Values:
        """Values per item of the scripts that published numbers come from, each under its name in brackets.

        Args:
            items: with their truth.
            said: what was read from each answer; None for nothing.
            sources: as in `measure`.
            values: of `measure`.
        """
        return {}

    @classmethod
    def unseen(cls, items: Sequence["Item"], times: np.ndarray) -> tuple[str, Values] | None:
        """Values per item of answers without a look at the video, and what the baseline's name says of them.

        Args:
            items: with their truth.
            times: (N, 2) answered seconds.

        Returns:
            None where this kind has no such baseline.
        """
        return None

    @classmethod
    def notes(cls, items: Sequence["Item"], told: dict[str, int]) -> list[str]:
        """Sentences on what no answer can meet; the numbers are added to `told`."""
        return []


def only(kind: type[Kind], items: Sequence[Item]) -> list[Kind]:
    """Those of some items that are of a kind."""
    return [item for item in items if isinstance(item, kind)]


@dataclass(frozen=True)
class Prediction:
    """What was read from an answer, or what another program predicted.

    Attributes:
        intervals: seconds of what is shown, the best first; the first is scored.
        object_ids: answered.
        option: capital letter.
        tube: boxes xyxy in pixels by zero-based frame of the file.
        by_second: the answer gave the boxes by whole second; see `verl_stvg.eval.metrics.tubes.from_seconds`.
        span: first and last frame that the tube is said to cover; None takes it from the interval. Without either the
            tube covers the frames that it names.
        ranked: whether several intervals are guesses at one moment, the best first, as programs with scores give them;
            otherwise they belong together, as in an answer of several periods.
        text: the file's own text for it, where a script reads that (lmms-eval).
        first: the first interval as the file has it, where it is not finite and so none of `intervals`; scripts that
            take the first score this one.
        reply: to a question, as the file has it, where a script reads the option from it (VideoMind).
    """

    intervals: tuple[Interval, ...] = ()
    object_ids: tuple[int, ...] = ()
    option: str | None = None
    tube: Mapping[int, Sequence[float]] | None = field(default=None, hash=False)
    span: tuple[int, int] | None = None
    ranked: bool = False
    text: str | None = None
    by_second: bool = False
    first: Interval | None = None
    reply: str | None = None

    @property
    def periods(self) -> tuple[Interval, ...]:
        """The intervals that are answered together."""
        return self.intervals[:1] if self.ranked else self.intervals

    @property
    def interval(self) -> Interval | None:
        """The interval that is scored."""
        return self.intervals[0] if self.intervals else None

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The tube as frames (T,), ascending, and boxes (T, 4)."""
        return as_arrays(self.tube or {})

    def finite(self) -> "Prediction | None":
        """Without what is not finite; None if nothing is there, or left."""
        intervals = tuple(one for one in self.intervals if all(map(math.isfinite, one)))
        tube = {k: box for k, box in (self.tube or {}).items() if all(map(math.isfinite, box))}
        if not (intervals or self.object_ids or self.option or tube):
            return None
        if len(intervals) == len(self.intervals) and len(tube) == len(self.tube or ()):
            return self
        lost = self.intervals[0] if self.intervals and self.intervals[0] not in intervals else self.first
        return replace(self, intervals=intervals, tube=tube or None, first=lost)


@dataclass(frozen=True)
class Stored(Answer):
    """A reply of another program, which its script reads as it stands in the file (lmms-eval)."""
