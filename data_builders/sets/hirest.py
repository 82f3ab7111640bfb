"""HiREST: the moment of a how-to video that answers a goal (hirest_grounding), and its steps (hirest_step)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import AnnotationError, json_entries, json_whole
from verl_stvg.data_builders.records import NUMBER, Entries, Problem, chosen, fault, record
from verl_stvg.data_builders.sets import AnnotationSet, Source


def read_moments(files: tuple[Path], split: str) -> Entries:
    """JSON ``{goal: {video file: {relevant, clip, v_duration, bounds: [s, e], steps: [...]}}}``.

    One record for every video of a goal that has a moment for it, its ``bounds``.

    Pitfalls: videos that are not ``relevant``, or of which no ``clip`` answers the goal, say bounds [0, 0] and are no
    annotated queries: they are passed over. A video may stand under several goals. The test split has the placeholder
    [0, 1] in place of every moment, which is not read: its queries have no public truth.
    """
    for place in _videos(files[0], "bounds"):
        if isinstance(place, Problem):
            yield place
            continue
        where, goal, video, occurrence, entry = place
        yield record(
            where,
            {"query": "goal", "intervals.0": "bounds", "duration": "v_duration"},
            key=f"{video}/{occurrence}",
            video=video,
            query=goal,
            intervals=(entry["bounds"],) if split != "test" else (),
            duration=entry["v_duration"],
        )


def read_steps(files: tuple[Path, ...], split: str) -> Entries:
    """JSON ``{goal: {video file: {relevant, clip, v_duration, steps: [{heading, absolute_bounds: [s, e]}, ...]}}}``.

    One record for every step of a moment, its ``absolute_bounds``, in seconds of the video.

    Pitfalls: many moments have no steps; 15 training and 3 validation steps are empty or end after the video and stay
    as they are; the sentence is ``heading``, the goal is kept as an extra. The test split has its steps in a file of
    their own, ``{video file: {captions: [{start, end, sentence}, ...]}}``, for 507 of its 776 moments.
    """
    published = json_whole(files[1]) if split == "test" else None
    if not isinstance(published, dict | None):
        raise AnnotationError(f"{files[1]}: holds no JSON object of videos; download it again")
    for place in _videos(files[0], "steps"):
        if isinstance(place, Problem):
            yield place
            continue
        where, goal, video, occurrence, entry = place
        steps = entry["steps"]
        if published is not None:
            steps = _captions(published.get(video, {"captions": []}))
        if isinstance(steps, str):
            yield Problem(f"{where}, in {files[1].name}", steps)
            continue
        for k, step in enumerate(steps):
            if wrong := fault(step, {"heading": str, "absolute_bounds": list}):
                yield Problem(f"{where}, step {k}", wrong)
                continue
            yield record(
                f"{where}, step {k}",
                {"query": "heading", "intervals.0": "absolute_bounds", "duration": "v_duration"},
                key=f"{video}/{occurrence}/{k}",
                video=video,
                query=step["heading"],
                intervals=(step["absolute_bounds"],),
                duration=entry["v_duration"],
                extra={"goal": goal} | chosen(step, "index"),
            )


def _captions(entry: Any) -> list[Any] | str:
    """Published captions of a test video in the form of steps, or what is wrong with them."""
    if wrong := fault(entry, {"captions": list}):
        return wrong
    return [
        {"index": k, "heading": one.get("sentence"), "absolute_bounds": [one.get("start"), one.get("end")]}
        if isinstance(one, dict)
        else one
        for k, one in enumerate(entry["captions"])
    ]


def _videos(path: Path, field: str) -> Iterator[tuple[str, str, str, int, dict] | Problem]:
    """Place, goal, video, how many entries it had before this one, and entry of every video with a moment.

    The form is ``{goal: {video file: {relevant, clip, v_duration, bounds: [s, e], steps: [...]}}}``.
    """
    counts: Counter[str] = Counter()
    for goal, videos in json_entries(path):
        if not isinstance(videos, dict):
            yield Problem(f"goal {goal!r}", f"is not an object of videos, found {videos!r:.60}")
            continue
        for video, entry in videos.items():
            where = f"goal {goal!r}, video {video}"
            counts[video] += 1
            if wrong := fault(entry, {"relevant": bool, "clip": bool}):
                yield Problem(where, wrong)
                continue
            if not (entry["relevant"] and entry["clip"]):
                continue
            if wrong := fault(entry, {"v_duration": NUMBER, field: list}):
                yield Problem(where, wrong)
                continue
            yield where, goal, video, counts[video] - 1, entry


_HOME = "j-min/HiREST; videos also in yeliudev/VideoMind-Dataset"
_SPLITS = {split: (Source((f"all_data_{split}.json",)),) for split in ("train", "val", "test")}
_TEST_STEPS = "formatted_moment_evaluation_gt.json"

SETS = (
    AnnotationSet(
        "hirest_grounding",
        "HiREST moments: 865 training, 193 validation and 776 test goals in how-to videos, test without ground truth",
        _HOME,
        _SPLITS,
        read_moments,
        "videotg_r1",
    ),
    AnnotationSet(
        "hirest_step",
        "HiREST steps: 4,145 training, 606 validation and 3,856 test step headings in how-to videos",
        _HOME,
        _SPLITS | {"test": (*_SPLITS["test"], Source((_TEST_STEPS, f"../evaluation/{_TEST_STEPS}")))},
        read_steps,
        "videotg_r1",
    ),
)
