"""From one record to verl's row: times in seconds, what cannot be right dealt with, prompt, ground truth, video.

Everything that decides about a row is here; where records come from and where rows go is in
`verl_stvg.data_builders.build`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.numbering import counted, hull, misnumbered
from verl_stvg.data_builders.objects.boxes import TurnedBoxes, annotated_size, scales
from verl_stvg.data_builders.records import Interval, Record, Tube, is_number
from verl_stvg.data_builders.templates import Template, normalise
from verl_stvg.data_builders.videos import Facts
from verl_stvg.moved import names_of
from verl_stvg.rows.fit import FPS
from verl_stvg.rows.row import MARK_KEYS, PLAN_KEYS, plan_of
from verl_stvg.video.frame_rules import MAX_FRAMES
from verl_stvg.video.tracks import find_track

__getattr__ = names_of(
    __name__,
    {"ROW_SCHEMA": "verl_stvg.data_builders.row_schema"}
    | dict.fromkeys(("AGREE", "COUNTS", "MISCOUNT"), "verl_stvg.data_builders.numbering"),
)

CHOICES = {
    "reversed_intervals": ("drop", "swap", "keep"),
    "past_end": ("keep", "clip", "drop"),
    "empty_intervals": ("drop", "keep"),
    "several_intervals": ("drop", "split", "first", "hull"),
    "duration_from": ("annotation", "file"),
    "bad_entries": ("error", "drop"),
    "unusable_truth": ("keep", "drop"),
}
"""Values of each policy, see `Policies`."""


@dataclass(frozen=True)
class Policies:
    """What is done with what cannot be right; for training only, the ground truth of other splits is never altered.

    Attributes:
        reversed_intervals: an end before its start: drop (the default: no answer can earn anything), swap, keep.
        past_end: an end after the video: keep, clip, drop; None is the template's paper.
        empty_intervals: no length, or none left after clipping: drop, keep.
        several_intervals: more than one, where the reward knows one: drop, split (a row each), first, hull.
        duration_from: the annotation (the file where it says none) or the file.
        bad_entries: malformed entries and unknown videos: error, or drop and count.
        unusable_truth: rows of other splits whose ground truth no answer can earn (none, reversed, no target ID): keep,
            as published, or drop and count, because verl refuses to validate on them.
        raw_eval_queries: sentences of other splits as annotated, as STVG-R1 and VideoChat-R1 evaluate; by default all
            splits are normalised alike.
    """

    reversed_intervals: str = "drop"
    past_end: str | None = None
    empty_intervals: str = "drop"
    several_intervals: str = "drop"
    duration_from: str = "annotation"
    bad_entries: str = "error"
    unusable_truth: str = "keep"
    raw_eval_queries: bool = False


@dataclass(frozen=True)
class Video:
    """A video of the rows: its path relative to the root, and what it is, if it was looked into."""

    path: str
    facts: Facts | None = None


class Drop(Exception):
    """Why a record becomes no row."""


@dataclass(frozen=True)
class RowMaker:
    """Turns records of a split into rows.

    Attributes:
        dataset: name of the set.
        split: ``train``, ``val`` or ``test``.
        template: of the prompts.
        policies: for training.
        rule: of frame sampling; None is the template's.
        shown: keys of `verl_stvg.rows.fit` in place of the template's own.
        targets: what is known of the target by uid: ``object_id`` or ``object_ids``, ``visible``.
        tracks: folder of the track files whose IDs are drawn, as it is and relative to the video root.
        marker_style: of the drawing.
        root: of the videos; None where it is not known.
        durations: name of a file beside the annotations in which durations are looked up; None: the set reads none.
    """

    dataset: str
    split: str
    template: Template
    policies: Policies = field(default_factory=Policies)
    rule: str | None = None
    targets: dict[str, dict] = field(default_factory=dict)
    tracks: tuple[Path, str] | None = None
    marker_style: str | None = None
    root: Path | None = None
    durations: str | None = None
    shown: Mapping[str, float | str] = field(default_factory=dict)

    def rows(self, record: Record, video: Video) -> list[dict]:
        """The rows of a record, without their index: one, or with ``several_intervals=split`` one per interval.

        Raises:
            Drop: the policies leave it out, or the template cannot use it.
        """
        self._check_needs(record)
        clip = self._clip(record, video.facts)
        duration = self._duration(record, clip, video.facts)
        seconds = self._seconds(record, video.facts, duration, record.clip and record.clip[0])
        found = [(seconds(start), seconds(end)) for start, end in record.intervals]
        self._check_numbering(record, video.facts, clip, found)
        self._check_size(record, video.facts)
        self._check_tube(record, video.facts, clip)
        if not found and self._must_have_truth:
            raise Drop("no ground truth")
        if self._must_have_truth and self.split != "train" and any(end < start for start, end in found):
            raise Drop("reversed interval")
        if self.split == "train":
            found = [self._corrected(one, duration) for one in found]
            if len(found) > 1 and self.template.needs != "options":
                found = self._one_each(found)
                keys = [f"{record.key}/{k}" for k in range(len(found))] if len(found) > 1 else [record.key]
                return [
                    self._row(record, video, clip, [one], duration, key) for one, key in zip(found, keys, strict=True)
                ]
        return [self._row(record, video, clip, found, duration, record.key)]

    @property
    def _must_have_truth(self) -> bool:
        return self.split == "train" or self.policies.unusable_truth == "drop"

    def _check_needs(self, record: Record) -> None:
        if self.template.needs == "options" and not (record.options and (record.answer or not self._must_have_truth)):
            raise Drop(f"template {self.template.name} needs options and an answer")
        if self.template.needs == "tube" and record.tube is None:
            raise Drop(f"template {self.template.name} needs a tube")

    def _check_tube(self, record: Record, facts: Facts | None, clip: Interval | None) -> None:
        """Refuse a tube that no answer of the template can say."""
        if self.template.needs != "tube" or record.tube is None:
            return
        known = facts is not None or (is_number(record.extra.get("fps")) and annotated_size(record.extra))
        if not known or (clip and clip[0] and facts is None):
            raise Drop(
                f"template {self.template.name} says how many frames a second has and how large a picture is, and "
                "counts frames in what is shown, which only the video knows: give --videos"
            )
        if self._must_have_truth and facts and record.tube.first_frame < facts.clock.first_shown(clip and clip[0]):
            raise Drop("the tube begins before the part that is shown")

    def _clip(self, record: Record, facts: Facts | None) -> Interval | None:
        """The part of the file that is shown, in its seconds, and not past its end if that is known."""
        if record.clip is None:
            return None
        start, end = map(self._seconds(record, facts), record.clip)
        if facts:
            end = min(end, facts.duration)
        if not 0 <= start < end:
            raise Drop("the part that is shown is empty or outside of the video")
        return start, end

    def _duration(self, record: Record, clip: Interval | None, facts: Facts | None) -> float:
        """Seconds of what is shown."""
        of_file = _shown(clip, facts)
        given = [record.duration, of_file] if self.policies.duration_from == "annotation" else [of_file]
        duration = next((seconds for seconds in given if seconds is not None), None)
        if duration is None:
            beside = f", or put a {self.durations} beside the annotations" if self.durations else ""
            raise Drop(f"duration unknown: neither annotated nor looked up in the video: give --videos{beside}")
        return duration

    def _seconds(
        self, record: Record, facts: Facts | None, duration: float | None = None, first: float | None = None
    ) -> Callable[[float], float]:
        """What turns times of the record into seconds of the file, or into seconds after its frame ``first``.

        Fractions are those of ``duration``, seconds; None: of the file's.
        """
        if record.unit == "seconds":
            return float
        if facts is None:
            raise Drop(f"times are {record.unit}, and what they mean in seconds only the video knows: give --videos")
        if record.unit == "fractions":
            whole = facts.duration if duration is None else duration
            return lambda fraction: fraction * whole
        clock = facts.clock
        return clock.seconds if first is None else lambda frame: clock.seconds(first + frame) - clock.seconds(first)

    def _check_numbering(self, record: Record, facts: Facts | None, clip: Interval | None, found: list) -> None:
        """Refuse frame numbers that are not those of the file, where that shows."""
        if facts is None or not (record.tube or record.masks or record.unit == "frames"):
            return
        tube = record.tube and (record.tube.first_frame, record.tube.first_frame + len(record.tube.boxes))
        seconds = None if record.unit == "frames" else hull(found, clip[0] if clip else 0.0)
        if wrong := misnumbered(facts.clock, tube, seconds, counted(record.extra)):
            raise Drop(wrong[0])

    def _check_size(self, record: Record, facts: Facts | None) -> None:
        """Refuse boxes that are annotated on the picture before it was turned, or after."""
        if facts and self._true_tube(record):
            try:
                scales(annotated_size(record.extra), (facts.width, facts.height))
            except TurnedBoxes as error:
                raise Drop("boxes are annotated on a turned picture") from error

    def _corrected(self, interval: Interval, duration: float) -> Interval:
        start, end = interval
        if end < start:
            if self.policies.reversed_intervals == "drop":
                raise Drop("reversed interval")
            if self.policies.reversed_intervals == "swap":
                start, end = end, start
        past_end = self.policies.past_end or self.template.past_end
        if end > duration and past_end == "drop":
            raise Drop("interval past the end of the video")
        if past_end == "clip":
            start, end = max(0.0, min(start, duration)), max(0.0, min(end, duration))
        if start == end and self.policies.empty_intervals == "drop":
            raise Drop("empty interval")
        return start, end

    def _one_each(self, intervals: list[Interval]) -> list[Interval]:
        policy = self.policies.several_intervals
        if policy == "drop":
            raise Drop("several intervals")
        if policy == "first":
            return intervals[:1]
        if policy == "hull":
            return [(min(start for start, _ in intervals), max(end for _, end in intervals))]
        return intervals

    def _row(
        self, record: Record, video: Video, clip: Interval | None, intervals: list, duration: float, key: str
    ) -> dict:
        uid = f"{self.dataset}/{self.split}/{key}"
        entry, tokens = self._video(video, clip, duration)
        raw = self.split != "train" and self.policies.raw_eval_queries
        query = record.query if raw else normalise(record.query)
        truth: dict[str, Any] = {
            "uid": uid,
            "duration": duration,
            "intervals": [list(one) for one in intervals] or None,
        }
        if intervals:
            truth.update(start=intervals[0][0], end=intervals[0][1])
        if self.template.needs in ("target", "targets"):
            truth.update(self._target(f"{self.dataset}/{self.split}/{record.key}"))
        if record.answer:
            truth.update(answer=record.answer, option=record.answer)
        facts = video.facts
        rate = facts.fps if facts else record.extra.get("fps")
        picture = annotated_size(record.extra) or (facts and (facts.width, facts.height))
        first_frame_of = None
        if tube := self._true_tube(record):
            begin = clip and clip[0]
            first_frame_of = "shown" if facts or not begin else None  # how many come before it only the video knows
            first = tube.first_frame - (facts.clock.first_shown(begin) if facts else 0)
            boxes = [list(box) for box in tube.boxes]
            truth.update(first_frame=first, boxes=boxes, picture=picture and list(picture))
        seen = {"rate": rate, "picture": picture} if self.template.needs == "tube" else {}
        return {
            "data_source": f"{self.template.recipe}/{self.dataset}",
            "prompt": self.template.messages(query, record.options, record.prompt, **seen),
            "videos": [entry],
            "ability": _ABILITIES[self.template.needs],
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {
                "uid": uid,
                "dataset": self.dataset,
                "split": self.split,
                "template": self.template.id,
                "annotation": record.where,
                "query": query,
                "sentence": record.query,
                "options": list(record.options) or None,
                "duration": duration,
                "num_frames": facts and facts.num_frames,
                "source_fps": facts and facts.fps,
                "width": facts and facts.width,
                "height": facts and facts.height,
                "constant_rate": None if facts is None else facts.times is None,
                "first_frame_of": first_frame_of,
                "frame_times": list(facts.times) if facts and facts.times and self._is_numbered(record) else None,
                "file_end": facts and facts.end,
                "content": facts and facts.content,
                "visual_tokens": tokens,
                "annotated": json.dumps(record.extra, sort_keys=True, ensure_ascii=False) if record.extra else None,
            },
        }

    def _true_tube(self, record: Record) -> Tube | None:
        """The annotated tube, if its boxes are part of the row's ground truth."""
        return record.tube if self.template.needs == "tube" or self.split != "train" else None

    def _is_numbered(self, record: Record) -> bool:
        """Whether anything that the row is asked, shown or scored by has frame numbers."""
        by_number = self.template.needs in ("target", "targets", "tube") or self.tracks is not None
        return by_number or record.tube is not None or record.masks is not None

    def _target(self, uid: str) -> dict:
        found = self.targets.get(uid, {})
        wanted = "object_id" if self.template.needs == "target" else "object_ids"
        if found.get(wanted) is None and self._must_have_truth:
            raise Drop("no target ID")
        return {key: found[key] for key in (wanted, "visible") if found.get(key) is not None}

    def _video(self, video: Video, clip: Interval | None, duration: float) -> tuple[dict, int | None]:
        """The entry of ``videos``, and how many visual tokens it costs if that is known."""
        entry: dict[str, Any] = {**dict.fromkeys((*PLAN_KEYS, *MARK_KEYS)), **self.template.videos, "video": video.path}
        entry.update(self.shown)
        entry["rule"] = self.rule or entry["rule"] or "grid"
        if self.tracks is not None:
            folder, below_root = self.tracks
            path = find_track(folder, video.path, self.root)
            if not path.is_file():
                raise Drop("no track file")
            entry.update(tracks=f"{below_root}/{path.relative_to(folder).as_posix()}", marker_style=self.marker_style)
        if clip is not None:
            entry.update(video_start=clip[0], video_end=clip[1])
        shown = _shown(clip, video.facts)
        if entry["fps"] is None:
            most = entry["max_frames"] or MAX_FRAMES
            entry["fps"] = grid_rate(duration if shown is None else shown, most) if entry["rule"] == "grid" else FPS
        if video.facts is None:
            return entry, None
        try:
            return entry, plan_of({**entry, "tracks": None}, video.facts.info).num_tokens
        except ValueError as error:
            raise Drop(f"video too short or too long: {_without_numbers(str(error))}") from error


def grid_rate(duration: float, max_frames: int = MAX_FRAMES) -> float:
    """Frames per second of the exact grid: 2, or 2/k with the smallest whole k that keeps a long video in bounds."""
    k = 1
    while duration * 2 / k > max_frames:
        k += 1
    return 2 / k


def _shown(clip: Interval | None, facts: Facts | None) -> float | None:
    """Seconds of the file that are shown, as far as they are known."""
    if clip:
        return clip[1] - clip[0]
    return facts.duration if facts else None


_ABILITIES = {
    "interval": "temporal grounding",
    "target": "spatio-temporal grounding",
    "targets": "spatio-temporal grounding",
    "tube": "spatio-temporal grounding",
    "options": "grounded question answering",
}
_NUMBERS = str.maketrans("", "", "0123456789")


def _without_numbers(text: str) -> str:
    return " ".join(text.partition(";")[0].translate(_NUMBERS).replace(" . ", " ").split())
