"""What is wrong with rows, found before a GPU is rented.

Each finding is one that spoils a run without stopping it: an interval that the video does not reach can never be
answered, a ground truth that earns nothing gives no gradient, and a video that is in training and in a benchmark makes
the benchmark worthless.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from reward_fns.registry import find_recipe
from verl_stvg.base.lock import write_whole
from verl_stvg.data_builders import tubes
from verl_stvg.data_builders.numbering import counted, hull, misnumbered
from verl_stvg.data_builders.objects.boxes import Size, TurnedBoxes, annotated_size, scales
from verl_stvg.data_builders.records import Interval
from verl_stvg.data_builders.templates import perfect_answer
from verl_stvg.data_builders.videos import Facts
from verl_stvg.rows.files import rows_in
from verl_stvg.rows.row import entry_of, listed, located, plan_of, refit, root_of, which
from verl_stvg.rows.shape import row_shape_problems
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.decode import VideoInfo
from verl_stvg.video.identity import ENDINGS
from verl_stvg.video.plan import SamplingPlan
from verl_stvg.workers import work

COLUMNS = ("data_source", "prompt", "videos", "reward_model", "extra_info")
DRIFT = 0.5
"""Seconds by which the times that a model is told may differ from the file's: a step of the 2 fps grid."""
SLACK = 1.0
"""Seconds by which an interval may end after its video and still count as covered: a step of the clock."""
_RECORDED = ("num_frames", "source_fps", "width", "height")
_ENOUGH = 1e-3  # of the reward, for the digits of a perfect answer
_YOUTUBE = re.compile(r"(?:^|[_/])([A-Za-z0-9_-]{11})(?:[._/]|$)")


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        file: parquet file, as given.
        row: position in it; None for the file as a whole.
        uid: of the row.
        problem: kind, the same words for the same kind.
        detail: what it is here.
        serious: spoils training or a benchmark; otherwise worth knowing.
    """

    file: str
    row: int | None
    uid: str
    problem: str
    detail: str
    serious: bool = True

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row} ({self.uid})"
        return f"{where}: {self.problem}: {self.detail}"


@dataclass(frozen=True)
class Counts:
    """What was looked at."""

    rows: int
    videos: int


@dataclass(frozen=True)
class _Said:
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
    unrecorded: tuple[dict, dict, dict] | None = None


@dataclass
class _Seen:
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
    said: _Said = _Said()
    place: int = 0  # in the row
    which: str = ""  # how a detail begins: nothing where the row has one video
    wrong: str = ""  # why nothing can be known of the video


def check(
    files: list[Path],
    video_root: Path | None = None,
    decode: bool = True,
    workers: int = 1,
    on_ray: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
    videos: bool = True,
    fit: Mapping[str, float | str] | None = None,
) -> tuple[list[Finding], Counts]:
    """Look for everything that `Finding` can be, in the order of files and rows.

    A row that is none (`row_shape_problems`) is a finding, and nothing more is asked of it. Where none of the videos
    of a file is there, that is one finding, too.

    Args:
        files: parquet files; those of training and evaluation together, so that they can be compared.
        video_root: see `verl_stvg.rows.row.root_of`.
        decode: every planned frame, not only the header.
        workers: see `verl_stvg.workers.work`.
        on_ray: see `verl_stvg.workers.work`.
        progress: called with videos done and their number.
        videos: look into them; else only what the rows say is looked at.
        fit: keys of the plan in place of those of the rows, see `verl_stvg.rows.fit`.

    Raises:
        ValueError: a file that is missing or has no rows of ours.
    """
    findings: list[Finding] = []
    seen: list[_Seen] = []
    lost: set[str] = set()
    malformed = 0
    for number, file in enumerate(files):
        root = root_of(file.resolve(), video_root)
        before = len(seen)
        for position, row in enumerate(rows_of(file)):
            if wrong := row_shape_problems(row):
                findings += (Finding(str(file), position, uid_of(row), "row", text) for text in wrong)
                malformed += 1
                continue
            findings += (Finding(str(file), position, *found) for found in row_problems(row))
            seen += _remember(row, number, position, root, fit)
        named = dict.fromkeys(one.video for one in seen[before:] if one.video)
        if videos and named and _none_is_there(named, root):
            detail = (
                f"none of the {len(named):,} videos of these rows is there, such as {next(iter(named))}; correct "
                f"--video-root (it is {root}), or check the rows alone, with --no-videos"
            )
            findings.append(Finding(str(file), None, "", "videos", detail))
            lost.update(named)
    plans: dict[str, list[tuple]] = defaultdict(list)
    for one in seen if videos else ():
        if one.video and one.video not in lost and one.plan not in plans[one.video]:
            plans[one.video].append(one.plan)
    looks: dict[str, tuple[Facts | str, dict[tuple, str]]] = {}
    for found in work(functools.partial(_look, decode), list(plans.items()), workers, on_ray):
        looks.update(found)
        progress(len(looks), len(plans))
    for one in seen:
        findings += (Finding(str(files[one.file]), one.row, one.uid, *p) for p in _video_problems(one, looks))
    findings += _twins(files, seen, looks)
    findings += _leaks(files, seen, looks)
    order = {str(file): k for k, file in enumerate(files)}
    findings.sort(key=lambda finding: (order[finding.file], -1 if finding.row is None else finding.row))
    return findings, Counts(malformed + sum(not one.place for one in seen), len(plans))


def _none_is_there(videos: Iterable[str], root: Path) -> bool:
    """Whether all videos of a file are missing because nobody put them there; one alone may just be lost."""
    found = list(videos)
    return (len(found) > 1 or not root.is_dir()) and not any(map(os.path.isfile, found))


def tally(findings: list[Finding]) -> dict[str, int]:
    """How often each kind of problem was found, the most frequent first."""
    return dict(Counter(finding.problem for finding in findings).most_common())


def write(findings: list[Finding], path: Path) -> None:
    """Write findings as JSON lines."""
    write_whole(path, "".join(json.dumps(dataclasses.asdict(finding)) + "\n" for finding in findings))


def rows_of(file: Path) -> Iterator[dict]:
    """Rows of a parquet file, one at a time.

    Raises:
        ValueError: no such file, or one that holds no rows of ours.
    """
    yield from rows_in(file, COLUMNS, COLUMNS)


# --- one row ----------------------------------------------------------------------------------------------------------


def row_problems(row: dict) -> Iterator[tuple]:
    """(uid, problem, detail, serious) of what can be seen without the video."""
    uid, truth = uid_of(row), truth_of(row)
    text = "".join(turn["content"] for turn in row["prompt"] or ())
    if text.count("<video>") != len(row["videos"] or ()) or not row["videos"]:
        yield uid, "placeholders", f"{text.count('<video>')} <video> for {len(row['videos'] or ())} videos", True
    if truth.get("start") is None and truth.get("option") is None and truth.get("answer") is None:
        yield uid, "no ground truth", "cannot be trained on or scored here", not _is_evaluation(row)
        return
    yield from ((uid, *found) for found in _tube_problems(row, truth))
    try:
        recipe = find_recipe(row["data_source"])
        recipe.check(truth, uid)
    except ValueError as error:
        yield uid, "ground truth", str(error), True
        return
    best = sum(weight for _, weight in recipe.parts.values())
    possible = _from_zero(truth)
    score = recipe.score(perfect_answer(recipe.name, possible), possible)
    if score["score"] < best * (1 - _ENOUGH):
        parts = ", ".join(f"{name} {score[name]:.3f}" for name in recipe.parts)
        yield (
            uid,
            "reward",
            f"a perfect answer earns {score['score']:.3f} of {best:g} ({parts})",
            not _is_evaluation(row),
        )
    for start, end in truth.get("intervals") or ():
        if truth.get("duration") and end > truth["duration"]:
            over = f"ends at {end:.2f} s, the video is said to last {truth['duration']:.2f} s"
            yield uid, "past the stated end", over, False
        if start < 0:
            yield uid, "before the start", f"begins at {start:.2f} s", False


def _tube_problems(row: dict, truth: dict) -> Iterator[tuple]:
    """(problem, detail, serious) of a row's tube, as far as the row records its file; `_contradictions` has the rest.

    Where the answer has no boxes they are what evaluation scores, and a published truth is nobody's to correct.
    """
    extra, entry = row["extra_info"] or {}, next((entry for _, entry, _ in read_entries(row["videos"])), {})
    asked = "boxes" in row["data_source"].partition("/")[0]
    if asked and truth.get("boxes") and entry.get("video_start") and extra.get("first_frame_of") != "shown":
        begin = f"{entry['video_start']:g} s"
        detail = f"first_frame counts frames of the file, and the row shows it from {begin} on; build the rows again"
        yield "frame numbers", detail, True
    clock = _recorded_clock(extra)
    if clock is not None:
        for problem, detail, serious in tubes.faults(truth, extra, entry, clock):
            yield problem, detail, serious and not _is_evaluation(row)


def _recorded_clock(extra: dict) -> FrameClock | None:
    """The clock of a row's file; None where the row does not record it, or an older version did."""
    constant, times = extra.get("constant_rate"), extra.get("frame_times")
    if constant is None or not extra.get("num_frames") or not extra.get("source_fps") or not (constant or times):
        return None
    return FrameClock(int(extra["num_frames"]), extra["source_fps"], times and tuple(times), extra.get("file_end"))


def _from_zero(truth: dict) -> dict:
    """The ground truth as far as an answer can say it: no answer names a time before the start."""
    spans = [[max(0.0, time) for time in span] for span in truth.get("intervals") or ()]
    times = {name: max(0.0, truth[name]) for name in ("start", "end") if name in truth}
    return truth | times | ({"intervals": spans} if spans else {})


def read_entries(videos: object, fit: Mapping[str, float | str] | None = None) -> list[tuple[str, dict, str]]:
    """Of each of a row's ``videos``: how a detail about it begins, its entry (`entry_of`), and what is wrong with it.

    The beginning is empty where there is one video, the entry where something is wrong. ``fit``: see `refit`.
    """
    try:
        videos = listed(videos)
    except ValueError as error:
        return [("", {}, str(error))]
    found = []
    for place, video in enumerate(videos):
        try:
            entry, wrong = refit(entry_of(video), fit), ""
        except ValueError as error:
            entry, wrong = {}, str(error)
        found.append((which(place, len(videos)), entry, wrong))
    return found


def _remember(
    row: dict, file: int, position: int, root: Path, fit: Mapping[str, float | str] | None = None
) -> Iterator[_Seen]:
    truth, entries = truth_of(row), read_entries(row["videos"], fit) or [("", {}, "")]
    parts = [(entry.get("video_start"), entry.get("video_end")) for _, entry, _ in entries]
    further = [entry.get("video") for _, entry, _ in entries[1:]]
    query = (row["extra_info"] or {}).get("sentence") or (row["extra_info"] or {}).get("query") or ""
    target = [truth.get(key) for key in ("start", "end", "object_id", "option")]
    ends = [end for _, end in truth.get("intervals") or ()] or [e for e in [truth.get("end")] if e is not None]
    known = not any(wrong for _, _, wrong in entries)
    same = _digest(parts, further, query.strip().lower().rstrip(".")) if known else _digest(file, position)
    for place, (beginning, entry, wrong) in enumerate(entries):
        there = located(entry, root) if entry else {}
        yield _Seen(
            file,
            position,
            uid_of(row),
            there.pop("video", ""),
            entry.get("video", ""),
            same,
            _digest(target),
            _is_evaluation(row),
            max(ends, default=None),
            tuple(sorted((key, _frozen(value)) for key, value in there.items())),
            _said(row["extra_info"] or {}, truth, entry),
            place,
            beginning,
            wrong,
        )


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _said(extra: dict, truth: dict, video: dict) -> _Said:
    first, boxes = truth.get("first_frame"), truth.get("boxes")
    tube = (int(first), int(first) + len(boxes)) if first is not None and boxes else None
    annotated = json.loads(extra["annotated"]) if extra.get("annotated") else {}
    numbered = bool(tube or video.get("tracks") or "object_id" in truth or "object_ids" in truth)
    single = [(truth["start"], truth["end"])] if "start" in truth and "end" in truth else []
    return _Said(
        extra.get("duration") or truth.get("duration"),
        tuple(extra.get(name) for name in _RECORDED),
        extra.get("constant_rate"),
        extra.get("frame_times") is not None,
        numbered,
        hull(truth.get("intervals") or single),
        tube,
        extra.get("first_frame_of"),
        counted(annotated) if numbered else None,
        annotated_size(annotated) if tube else None,
        (truth, extra, video) if tube and _recorded_clock(extra) is None else None,
    )


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()


def uid_of(row: dict) -> str:
    """What messages call a row, whatever it is."""
    extra = row["extra_info"] if isinstance(row["extra_info"], dict) else {}
    return f"{extra.get('uid') or extra.get('index')!s:.200}"


def truth_of(row: dict) -> dict:
    """The ground truth of a row without what is empty; nothing where there is none."""
    found = (row["reward_model"] or {}).get("ground_truth")
    return {key: value for key, value in found.items() if value is not None} if isinstance(found, dict) else {}


def _is_evaluation(row: dict) -> bool:
    return (row["extra_info"] or {}).get("split") in ("val", "test")


# --- videos -----------------------------------------------------------------------------------------------------------


def _look(decode: bool, jobs: list[tuple[str, list[tuple]]]) -> list[tuple[str, tuple[Facts | str, dict[tuple, str]]]]:
    """Of each video its facts, or why it cannot be used, and what is wrong with each plan."""
    return [(path, _look_at(path, plans, decode)) for path, plans in jobs]


def _look_at(path: str, plans: list[tuple], decode: bool) -> tuple[Facts | str, dict[tuple, str]]:
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


def _video_problems(one: _Seen, looks: dict) -> Iterator[tuple]:
    """(problem, detail, serious) of one of a row's videos."""
    if one.wrong:
        yield "video entry", one.which + one.wrong, True
    if one.video in looks:
        for problem, detail, serious in _problems_of_video(one, *looks[one.video]):
            yield problem, one.which + detail, serious


def _problems_of_video(one: _Seen, facts: Facts | str, wrong: dict[tuple, str]) -> Iterator[tuple]:
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


def _against_video(one: _Seen, facts: Facts) -> Iterator[tuple]:
    """What a row says of its (first) video and the file does not confirm."""
    shown = _shown_seconds(dict(one.plan), facts.info)
    if one.end is not None and one.end > shown + SLACK:
        detail = f"the interval ends at {one.end:.2f} s and the video at {shown:.2f} s"
        yield "not covered", detail, not one.evaluation
    if one.said.duration is not None and abs(one.said.duration - shown) > SLACK:
        detail = f"the row says {one.said.duration:.2f} s, and the file shows {shown:.2f} s"
        yield "length", detail, False
    yield from _contradictions(one, facts)


def _contradictions(one: _Seen, facts: Facts) -> Iterator[tuple]:
    """What the file says against frame numbers, sizes and recorded facts of a row."""
    said, begin = one.said, dict(one.plan).get("video_start") or 0.0
    span = said.hull and hull([said.hull], begin)
    first = said.tube and facts.clock.in_file(said.tube[0], begin, said.first_frame_of)
    tube = said.tube and (first, first + said.tube[1] - said.tube[0])
    if said.numbered and (found := misnumbered(facts.clock, tube, span, said.count)):
        yield "frame numbers", f"{found[0]}: {found[1]}", True
    try:
        scales(said.size, (facts.width, facts.height))
    except TurnedBoxes as error:
        yield "turned boxes", str(error), True
    if said.unrecorded is not None:
        truth, extra, video = said.unrecorded
        extra = extra | {"width": facts.width, "height": facts.height}
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


# --- rows beside rows -------------------------------------------------------------------------------------------------


def _content(one: _Seen, looks: dict) -> str | None:
    """Hash of the video's bytes; None if they could not be read."""
    facts = looks[one.video][0] if one.video in looks else None
    return facts.content if isinstance(facts, Facts) else None


def _stem(name: str) -> str:
    """A video's path without the ending; dots elsewhere in it stay."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in ENDINGS else name


def _twins(files: list[Path], seen: list[_Seen], looks: dict) -> Iterator[Finding]:
    """Rows that ask the same about the same video, with the same answer or another; uids that are there twice.

    The same video is one of the same bytes; where they are not known, one of the same name.
    """
    uids: dict[str, _Seen] = {}
    asked: dict[tuple, _Seen] = {}
    for one in seen:
        if one.place:
            continue
        first = uids.setdefault(one.uid, one)
        if first is not one:
            yield _beside(files, one, "uid twice", first, True)
        content = _content(one, looks)
        video = ("name", one.name) if content is None else ("bytes", content)
        first = asked.setdefault((video, one.same, one.evaluation), one)
        if first is not one:
            same = first.truth == one.truth
            yield _beside(files, one, "duplicate" if same else "same query, another truth", first, False)


def _beside(files: list[Path], one: _Seen, problem: str, other: _Seen, serious: bool, what: str = "") -> Finding:
    detail = f"{what}as {files[other.file]} row {other.row} ({other.uid})"
    return Finding(str(files[one.file]), one.row, one.uid, problem, detail, serious)


def _leaks(files: list[Path], seen: list[_Seen], looks: dict) -> Iterator[Finding]:
    """Training rows whose video is also one of evaluation: by its bytes, its name, or the YouTube id within it.

    Where both videos were read and differ, their names prove nothing: then it is worth knowing that they have one name.
    """
    evaluated: dict[tuple[str, str], _Seen] = {}
    stems: dict[str, _Seen] = {}
    for one in seen:
        if one.evaluation:
            for mark in _marks(one, looks):
                evaluated.setdefault(mark, one)
            stems.setdefault(_stem(one.name), one)
            if _content(one, looks) is None:
                evaluated["name", one.name] = one
    for one in seen:
        if one.evaluation or not one.name:
            continue
        for mark in _marks(one, looks):
            if (other := evaluated.get(mark)) and (mark[0] != "name" or not _differ(one, other, looks)):
                yield _beside(files, one, "evaluation video in training", other, True, f"{one.which}same {mark[0]} ")
                break
        else:
            if other := stems.get(_stem(one.name)):
                bytes_ = "other bytes" if _differ(one, other, looks) else "bytes that could not be compared"
                what = f"{one.which}same name but {bytes_} "
                yield _beside(files, one, "name of an evaluation video", other, False, what)


def _differ(one: _Seen, other: _Seen, looks: dict) -> bool:
    contents = _content(one, looks), _content(other, looks)
    return None not in contents and contents[0] != contents[1]


def _marks(one: _Seen, looks: dict) -> Iterator[tuple[str, str]]:
    if content := _content(one, looks):
        yield "bytes", content
    yield "name", one.name
    if found := _YOUTUBE.search(PurePosixPath(_stem(one.name)).name):
        yield "YouTube id", found[1]
