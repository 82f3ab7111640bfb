"""What the videos of rows say against them: whether they can be read, and confirm what the rows say."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from verl_stvg.data_builders import tubes
from verl_stvg.data_builders.check_rows import recorded_clock
from verl_stvg.data_builders.numbering import counted, hull, misnumbered
from verl_stvg.data_builders.objects.boxes import Size, TurnedBoxes, annotated_size, scales
from verl_stvg.data_builders.records import Interval
from verl_stvg.data_builders.videos import Facts
from verl_stvg.rows.row import FACTS, Row, located, plan_of, read_entries
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.decode import VideoInfo
from verl_stvg.video.plan import SamplingPlan

DRIFT = 0.5
"""Seconds by which the times that a model is told may differ from the file's: a step of the 2 fps grid."""
SLACK = 1.0
"""Seconds by which an interval may end after its video and still count as covered: a step of the clock."""
Look = tuple[Facts | str, dict[tuple, str]]
"""Facts of a video, or why it cannot be used, and what is wrong with each plan."""
Looks = dict[str, Look]
"""By path of the video."""


@dataclass(frozen=True)
class Said:
    """What a row says and only its video can confirm.

    Attributes:
        duration: seconds of what is shown.
        facts: frames, rate, width and height of the file, None for what is not recorded.
        constant: whether the rate is.
        times: whether the times of all frames are recorded.
        numbered: something in the row has frame numbers: boxes, IDs, tracks.
        hull: from the first start to the last end.
        tube: its first frame, and the one after its last, as the row counts them.
        first_frame_of: what they count in, see `FrameClock.in_file`.
        count: of frames, as annotated.
        size: (width, height) of the pictures on which the boxes are annotated.
        unrecorded: arguments of `tubes.faults`, where the row does not record its file.
    """

    duration: float | None = None
    facts: tuple = (None,)
    constant: bool | None = None
    times: bool = False
    numbered: bool = False
    hull: Interval | None = None
    tube: tuple[int, int] | None = None
    first_frame_of: str | None = None
    count: float | None = None
    size: Size | None = None
    unrecorded: tuple[Mapping, Mapping, Mapping] | None = None


@dataclass
class Seen:
    """What is remembered of a video of a row: enough for comparisons, small enough for a hundred thousand.

    What a row says of its video, it says of the first. A row without a video has one of these, too, without a name.
    """

    file: int
    row: int
    uid: str
    video: str
    name: str  # of the video: its path in the row
    same: bytes  # hash of part, query and all further videos
    truth: bytes  # hash of the interval and the target besides
    evaluation: bool
    end: float | None
    plan: tuple
    said: Said = Said()
    place: int = 0  # in the row
    which: str = ""  # how a detail begins: nothing where the row has one video
    wrong: str = ""  # why nothing can be known of the video


def remember(row: Row, file: int, position: int) -> Iterator[Seen]:
    """What is remembered of each video of a row.

    Args:
        row: whose shape is right.
        file: number of its file.
        position: of the row in it.
    """
    truth, entries = row.truth, read_entries(row["videos"], row.fit) or [("", {}, "")]
    parts = [(entry.get("video_start"), entry.get("video_end")) for _, entry, _ in entries]
    further = [entry.get("video") for _, entry, _ in entries[1:]]
    query = row.extra.get("sentence") or row.extra.get("query") or ""
    target = [truth.get(key) for key in ("start", "end", "object_id", "option")]
    known = not any(wrong for _, _, wrong in entries)
    same = _digest(parts, further, query.strip().lower().rstrip(".")) if known else _digest(file, position)
    for place, (beginning, entry, wrong) in enumerate(entries):
        there = located(entry, row.root or "") if entry else {}
        yield Seen(
            file,
            position,
            row.name,
            there.pop("video", ""),
            entry.get("video", ""),
            same,
            _digest(target),
            row.is_evaluation,
            max((end for _, end in row.intervals), default=None),
            tuple(sorted((key, _frozen(value)) for key, value in there.items())),
            _said(row, entry),
            place,
            beginning,
            wrong,
        )


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _said(row: Row, video: dict) -> Said:
    truth, extra = row.truth, row.extra
    first, boxes = truth.get("first_frame"), truth.get("boxes")
    tube = (int(first), int(first) + len(boxes)) if first is not None and boxes else None
    annotated = json.loads(extra["annotated"]) if extra.get("annotated") else {}
    numbered = bool(tube or video.get("tracks") or "object_id" in truth or "object_ids" in truth)
    return Said(
        row.duration,
        tuple(extra.get(name) for name in FACTS),
        extra.get("constant_rate"),
        extra.get("frame_times") is not None,
        numbered,
        hull(row.intervals),
        tube,
        extra.get("first_frame_of"),
        counted(annotated) if numbered else None,
        annotated_size(annotated) if tube else None,
        (truth, extra, video) if tube and recorded_clock(extra) is None else None,
    )


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()


def look(decode: bool, jobs: list[tuple[str, list[tuple]]]) -> list[tuple[str, Look]]:
    """Of each video its facts, or why it cannot be used, and what is wrong with each plan."""
    return [(path, _look_at(path, plans, decode)) for path, plans in jobs]


def _look_at(path: str, plans: list[tuple], decode: bool) -> Look:
    try:
        info, content = shared_decoder().examine(path)
        facts = Facts.of(info, content)
    except (ValueError, OSError) as error:
        return str(error), {}
    wrong = {}
    for options in plans:
        try:
            chosen = dict(options)
            plan = plan_of(chosen, info).masked(chosen.get("hidden"), chosen.get("shown"))
            if decode:
                shared_decoder().try_out(path, plan.whole)
        except (ValueError, OSError) as error:
            wrong[options] = str(error)
    return facts, wrong


def video_problems(one: Seen, looks: Looks) -> Iterator[tuple]:
    """(problem, detail, serious) of one of a row's videos."""
    if one.wrong:
        yield "video entry", one.which + one.wrong, True
    if one.video in looks:
        for problem, detail, serious in _problems_of_video(one, *looks[one.video]):
            yield problem, one.which + detail, serious


def _problems_of_video(one: Seen, facts: Facts | str, wrong: dict[tuple, str]) -> Iterator[tuple]:
    if isinstance(facts, str):
        yield "video", facts, True
        return
    if one.plan in wrong:
        yield "frames", wrong[one.plan], True
    if not one.place:
        yield from _against_video(one, facts)
    for note in facts.notes:
        yield "unusual video", note, False
    options = dict(one.plan)
    if options.get("rule") == "qwen_vl_utils" and facts.times is not None and one.plan not in wrong:
        off = drift(plan_of(options | {"tracks": None}, facts.info), options.get("video_start") or 0.0)
        if off > DRIFT:
            detail = (
                f"the frames are not spread evenly over the time of this video, but the model is told so: up to "
                f"{off:.2f} s off; build the rows with --rule grid"
            )
            yield "clock", detail, off > SLACK and not one.evaluation


def _against_video(one: Seen, facts: Facts) -> Iterator[tuple]:
    """What a row says of its (first) video and the file does not confirm."""
    shown = _shown_seconds(dict(one.plan), facts.info)
    if one.end is not None and one.end > shown + SLACK:
        detail = f"the interval ends at {one.end:.2f} s and the video at {shown:.2f} s"
        yield "not covered", detail, not one.evaluation
    if one.said.duration is not None and abs(one.said.duration - shown) > SLACK:
        detail = f"the row says {one.said.duration:.2f} s, and the file shows {shown:.2f} s"
        yield "length", detail, False
    yield from _contradictions(one, facts)


def _contradictions(one: Seen, facts: Facts) -> Iterator[tuple]:
    """What the file says against frame numbers, sizes and recorded facts of a row."""
    said, begin = one.said, dict(one.plan).get("video_start") or 0.0
    span = said.hull and hull([said.hull], begin)
    before = facts.clock.in_file(0, begin, said.first_frame_of)
    tube = said.tube and (said.tube[0] + before, said.tube[1] + before)
    if said.numbered and (why := misnumbered(facts.clock, tube, span, said.count)):
        yield "frame numbers", f"{why[0]}: {why[1]}", True
    try:
        scales(said.size, (facts.width, facts.height))
    except TurnedBoxes as error:
        yield "turned boxes", str(error), True
    if said.unrecorded is not None:
        truth, extra, video = said.unrecorded
        extra = {**extra, "width": facts.width, "height": facts.height}
        for problem, detail, serious in tubes.faults(truth, extra, video, facts.clock):
            yield problem, detail, serious and not one.evaluation
    if None not in said.facts and not _same(said.facts, facts):
        detail = f"the row says {_words(said.facts)}, and the file has {_words(_recorded(facts))}; build the rows again"
        yield "another video", detail, said.numbered or bool(said.constant)
    elif said.numbered and facts.times is not None and not said.times:
        detail = "frames are numbered, the rate varies, and the row lacks extra_info.frame_times; build the rows again"
        yield "frame times", detail, True


def _recorded(facts: Facts) -> tuple:
    return facts.num_frames, facts.fps, facts.width, facts.height


def _same(said: tuple, facts: Facts) -> bool:
    frames, fps, *size = said
    whole = [frames, *size] == [facts.num_frames, facts.width, facts.height]
    return whole and math.isclose(fps, facts.fps, rel_tol=1e-4)


def _words(recorded: tuple) -> str:
    frames, fps, width, height = recorded
    return f"{frames} frames of {width}x{height} at {fps:.6g} fps"


def drift(plan: SamplingPlan, begin: float = 0.0) -> float:
    """By how many seconds the times that a model is told are off at most, because the rate of a video varies.

    Under the rule ``qwen_vl_utils`` the model is told that the frames lie at equal distance from the start on.

    Args:
        plan: under that rule, by the file's times.
        begin: seconds of the file at which what is shown begins.
    """
    indices = np.array(plan.frame_indices) - plan.frame_indices[0]
    rate = plan.fps * (indices[-1] + 1) / plan.num_frames
    return float(np.abs(np.array(plan.timestamps) - begin - indices / rate).max())


def _shown_seconds(options: dict, info: VideoInfo) -> float:
    end = min(info.duration, options.get("video_end") or math.inf)
    return end - (options.get("video_start") or 0.0)
