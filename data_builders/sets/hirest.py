"""HiREST: the moment of a how-to video that answers a goal (hirest_grounding), and its steps (hirest_step)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_builders.read import json_entries
from data_builders.records import NUMBER, Entries, Problem, chosen, fault, record
from data_builders.sets import AnnotationSet, Source


def read_moments(files: tuple[Path | None, ...], split: str) -> Entries:
    """One record for every video of a goal that has a moment for it, its ``bounds``; see `_videos` for the form.

    Pitfalls: videos that are not ``relevant``, or of which no ``clip`` answers the goal, say bounds [0, 0] and are no
    annotated queries: they are passed over. A video may stand under several goals.
    """
    for place in _videos(files[0], "bounds"):
        if isinstance(place, Problem):
            yield place
            continue
        where, goal, video, occurrence, entry = place
        yield record(
            where,
            key=f"{video}/{occurrence}",
            video=video,
            query=goal,
            intervals=(entry["bounds"],),
            duration=entry["v_duration"],
        )


def read_steps(files: tuple[Path | None, ...], split: str) -> Entries:
    """One record for every step of a moment, its ``absolute_bounds``, in seconds of the video; see `_videos`.

    Pitfalls: many moments have no steps; 15 training and 3 validation steps are empty or end after the video and stay
    as they are; the sentence is ``heading``, the goal is kept as an extra.
    """
    for place in _videos(files[0], "steps"):
        if isinstance(place, Problem):
            yield place
            continue
        where, goal, video, occurrence, entry = place
        for k, step in enumerate(entry["steps"]):
            if wrong := fault(step, {"heading": str, "absolute_bounds": list}):
                yield Problem(f"{where}, step {k}", wrong)
                continue
            yield record(
                f"{where}, step {k}",
                key=f"{video}/{occurrence}/{k}",
                video=video,
                query=step["heading"],
                intervals=(step["absolute_bounds"],),
                duration=entry["v_duration"],
                extra={"goal": goal} | chosen(step, "index"),
            )


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
_SPLITS = {split: (Source((f"all_data_{split}.json",)),) for split in ("train", "val")}

SETS = (
    AnnotationSet(
        "hirest_grounding",
        "HiREST moments: 865 training and 193 validation goals in how-to videos",
        _HOME,
        _SPLITS,
        read_moments,
        "videotg_r1",
    ),
    AnnotationSet(
        "hirest_step",
        "HiREST steps: 4,145 training and 606 validation step headings in how-to videos",
        _HOME,
        _SPLITS,
        read_steps,
        "videotg_r1",
    ),
)
