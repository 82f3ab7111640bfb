"""Filling a frame cache before training: every video and plan of the rows, once, on all processors or a Ray cluster.

It knows rows and videos but neither verl nor torch, so that a worker starts in half a second.
"""

import functools
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from verl_stvg.rows.files import read_rows
from verl_stvg.rows.row import MARK_KEYS, PLAN_KEYS, VIDEO_COLUMN, plan_of
from verl_stvg.video.cache import CacheError
from verl_stvg.video.frame_rules import PATCH
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.store import FrameStore
from verl_stvg.workers import work

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Job:
    """A video (absolute path) and what its row says about the plan, as (key, value) pairs of `PLAN_KEYS`
    and `MARK_KEYS`; or why a row's ``videos`` cannot be read, and no video."""

    video: str
    options: tuple[tuple[str, float | str], ...]
    refused: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``built``, ``present`` (nothing to do) or ``failed`` with a reason; bytes of its pixels."""

    job: Job
    state: str
    bytes: int = 0
    reason: str = ""


def read_jobs(
    files: Iterable[str | Path], video_root: str | Path | None = None, patch: int = PATCH, fit: Mapping | None = None
) -> list[Job]:
    """Every distinct video and plan of the rows, in their order; a row whose videos are none (`entry_of`) is one, too.

    Args:
        files: parquet files with a column ``videos``, as `verl_stvg.training.dataset` reads them.
        video_root: see `root_of`.
        patch: of the model, see `plan_video`.
        fit: see `refit`.

    Raises:
        ValueError: a missing file, one that is no parquet file, or one without the column.
    """
    jobs: dict[Job, None] = {}
    for file in map(Path, files):
        for row in read_rows(file, video_root, (VIDEO_COLUMN,), fit):
            try:
                videos = row.videos
            except ValueError as error:
                jobs[Job("", (), str(error))] = None
                continue
            for entry in videos:
                options = tuple((key, entry[key]) for key in (*PLAN_KEYS, *MARK_KEYS) if key in entry)
                jobs[Job(entry["video"], options if patch == PATCH else (*options, ("patch", patch)))] = None
    return list(jobs)


def build(jobs: list[Job], store: FrameStore, workers: int = 1, on_ray: bool = False) -> Iterator[list[Outcome]]:
    """Do all jobs and yield outcomes as they come; a video that cannot be used is an outcome, not an exception.

    Interrupted, it loses nothing: done again, it skips what is there.

    Args:
        jobs: of `read_jobs`.
        store: the cache and its decoder; with Ray, in a folder that every node shares.
        workers: processes on this machine; 1 works in this process. With Ray, the cluster's processors count instead.
        on_ray: use the running Ray cluster.

    Raises:
        CacheError: the folder cannot take entries.
        NoCluster: Ray was asked for and does not answer.
    """
    store = replace(store, folder=str(Path(store.folder).resolve()))
    if on_ray:
        Path(store.folder).mkdir(parents=True, exist_ok=True)
    yield from work(functools.partial(build_chunk, store=store, made=on_ray), jobs, workers, on_ray)


def build_chunk(jobs: list[Job], store: FrameStore, made: bool = False) -> list[Outcome]:
    """Do some jobs in this process.

    Args:
        jobs: of `read_jobs`.
        store: the cache and its decoder.
        made: the folder has been made, so that not seeing it means that this node does not share it.

    Raises:
        CacheError: the folder cannot take entries.
    """
    if made and not Path(store.folder).is_dir():
        raise CacheError(
            f"{store.folder}: does not exist on node {platform.node()}; put cache and videos on a folder that all "
            "nodes share"
        )
    return [_build_one(store, job) for job in jobs]


def _build_one(store: FrameStore, job: Job) -> Outcome:
    if job.refused:
        return Outcome(job, "failed", reason=job.refused)
    before = store.cache.decodes
    try:
        plan = plan_of(dict(job.options), store.probe(job.video))
        size = store.frames(job.video, plan).nbytes
    except CacheError:
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and _is_about(error, Path(store.folder)):
            raise CacheError(
                f"{store.folder}: cannot take the frames of {job.video} ({error}); something removed or moved a part "
                "of that folder while it was filled: see to it that nothing does, and start again"
            ) from error
        return Outcome(job, "failed", reason=str(error))
    return Outcome(job, "built" if store.cache.decodes > before else "present", size)


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error is the fault of a folder, which is gone or holds the file that the error names."""
    return not folder.is_dir() or f"{folder}{os.sep}" in str(error)


def note_failures(folder: Path, outcomes: list[Outcome]) -> Path:
    """Bring the quarantine of a cache up to date: failed videos go in, those of which nothing failed come out.

    Returns:
        path of the file.
    """
    quarantine = Quarantine(folder / QUARANTINE)
    outcomes = [outcome for outcome in outcomes if not outcome.job.refused]
    failed = {outcome.job.video: outcome.reason for outcome in outcomes if outcome.state == "failed"}
    for video, reason in failed.items():
        quarantine.add(video, reason, "build")
    for video in {outcome.job.video for outcome in outcomes} - failed.keys():
        quarantine.clear(video)
    return quarantine.path
