"""What to build: the arguments of a build, whether they fit together, and the files that they name."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from verl_stvg.data_builders.make_row import CHOICES, Policies
from verl_stvg.data_builders.read import AnnotationError, json_lines
from verl_stvg.data_builders.sets import AnnotationSet
from verl_stvg.data_builders.templates import Template
from verl_stvg.video.frame_rules import RULES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Job:
    """What to build.

    Attributes:
        source: the set.
        annotations: folder of its files, or the one annotation file of the one split.
        out: folder that is made.
        videos: root of the videos; None takes names as they are and looks into nothing.
        splits: of the set; empty for those whose files are there.
        template: of the prompts.
        rule: of frame sampling; None is the template's paper.
        shown: keys of `verl_stvg.rows.fit` in place of those of the template's paper.
        policies: see `Policies`.
        targets: JSON lines with uid and object_id (or object_ids), for templates that ask who.
        tracks: folder of track files whose IDs are drawn on the frames.
        marker_style: of `verl_stvg.video.markers`; None is STVG-R1's.
        probe: look into every video.
        workers: see `verl_stvg.workers.work`.
        on_ray: see `verl_stvg.workers.work`.
    """

    source: AnnotationSet
    annotations: Path
    out: Path
    videos: Path | None = None
    splits: tuple[str, ...] = ()
    template: Template | None = None
    rule: str | None = None
    policies: Policies = field(default_factory=Policies)
    targets: Path | None = None
    tracks: Path | None = None
    marker_style: str | None = None
    probe: bool = True
    workers: int = 1
    on_ray: bool = False
    shown: Mapping[str, float | str] = field(default_factory=dict)

    def videos_like(self, template: Template) -> dict:
        """How videos are shown: the template's keys, and those that were chosen over them."""
        return {**template.videos, **self.shown, **({"rule": self.rule} if self.rule else {})}


def check(job: Job, template: Template) -> None:
    """Refuse arguments that do not fit together.

    Raises:
        AnnotationError: no such file of targets.
        ValueError: anything else; the message says what to give.
    """
    chosen = asdict(job.policies) | {"rule": job.videos_like(template)["rule"]}
    for name, choices in {**CHOICES, "rule": RULES}.items():
        if chosen[name] is not None and chosen[name] not in choices:
            raise ValueError(f"{name}={chosen[name]!r} is unknown; choose one of {', '.join(choices)}")
    if template.needs in ("target", "targets") and job.targets is None:
        raise ValueError(
            f"template {template.name} asks for the ID of an object, which annotations do not have; give --targets, or "
            "choose another template: stvg_boxes asks for boxes, time_r1 for times only"
        )
    planned = job.videos_like(template)
    if planned.get("min_pixels", 0) > planned.get("max_pixels", math.inf):
        raise ValueError(
            f"min_pixels={planned['min_pixels']} is over max_pixels={planned['max_pixels']}, and one of the two is the "
            f"template's ({template.name}); give --min-pixels and --max-pixels"
        )
    if job.targets and not job.targets.is_file():
        raise AnnotationError(f"{job.targets}: no such file of targets; correct --targets")
    if job.tracks and not job.tracks.is_dir():
        raise ValueError(f"{job.tracks}: no such folder of track files; correct --tracks")
    if job.tracks and not job.videos:
        raise ValueError("--tracks are drawn on videos: give --videos")
    if job.policies.duration_from == "file" and not (job.videos and job.probe):
        raise ValueError("duration_from=file needs the files: give --videos, and leave out --no-probe")


def files_of(job: Job) -> dict[str, tuple[Path | None, ...]]:
    """The files of each split of a job, in the order of `SPLITS`.

    Raises:
        AnnotationError: files that are missing.
        ValueError: no such split, or one file for several splits.
    """
    return {split: _files(job, split) for split in _splits(job)}


def _splits(job: Job) -> list[str]:
    unknown = [split for split in job.splits if split not in job.source.splits]
    if unknown:
        raise ValueError(f"{job.source.name} has no split {', '.join(unknown)}; it has {', '.join(job.source.splits)}")
    if not job.annotations.exists():
        raise AnnotationError(f"{job.annotations}: no such file or folder; correct --annotations")
    if job.annotations.is_file() and len(job.splits) != 1:
        raise ValueError(f"{job.annotations} is one file: say which split it is, with --split")
    if job.splits:
        return [split for split in SPLITS if split in job.splits]
    found = [split for split in SPLITS if split in job.source.splits and _present(job, split)]
    if not found:
        wanted = "; ".join(f"{split}: {' or '.join(sources[0].names)}" for split, sources in job.source.splits.items())
        raise AnnotationError(f"{job.annotations}: holds no annotation of {job.source.name} ({wanted})")
    return found


def _present(job: Job, split: str) -> bool:
    return any((job.annotations / name).exists() for name in job.source.splits[split][0].names)


def _files(job: Job, split: str) -> tuple[Path | None, ...]:
    single, folder = job.annotations.is_file(), job.annotations
    paths: list[Path | None] = [job.annotations] if single else []
    folder = folder.parent if single else folder
    for source in job.source.splits[split][len(paths) :]:
        found = next((folder / name for name in source.names if (folder / name).exists()), None)
        if found is None and source.required:
            wanted = f"{job.source.name} {split} needs {' or '.join(source.names)}"
            raise AnnotationError(f"{folder}: {wanted}; see `verl-stvg build {job.source.name} --help`")
        paths.append(found)
    return tuple(paths)


def targets_of(path: Path) -> dict[str, dict]:
    """Object IDs, and when the target is seen, by uid, from a file of targets.

    Raises:
        AnnotationError: a line that lacks them, or two targets of one uid.
    """
    found: dict[str, dict] = {}
    for number, line in json_lines(path):
        uid, one, many = line.get("uid"), line.get("object_id"), line.get("object_ids")
        ids = many if isinstance(many, list) else [one]
        if not isinstance(uid, str) or not ids or any(type(i) is not int or i < 0 for i in ids):
            raise AnnotationError(
                f"{path}: line {number} lacks uid (text), or object_id (integer, not negative; or object_ids, a list)"
            )
        target = {"object_id": one, "object_ids": ids, "visible": line.get("visible")}
        if found.setdefault(uid, target) != target:
            raise AnnotationError(f"{path}: line {number}: {uid} has two targets; remove one")
    return found


def tracks_of(job: Job) -> tuple[Path, str] | None:
    """The folder of track files, as it is and relative to the root of the videos."""
    return (job.tracks, Path(os.path.relpath(job.tracks, job.videos)).as_posix()) if job.tracks else None
