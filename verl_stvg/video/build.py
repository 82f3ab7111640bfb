"""Filling a frame cache before training: every video and plan of the rows, once, on all processors or a Ray cluster.

It knows rows and videos but neither verl nor torch, so that a worker starts in half a second.
"""

import functools
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from verl_stvg.parallel import work
from verl_stvg.video.cache import CacheError, hash_file
from verl_stvg.video.decode import VideoInfo
from verl_stvg.video.identity import identity
from verl_stvg.video.markers import STYLES
from verl_stvg.video.plan import PATCH, SamplingPlan, plan_video
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.store import FrameStore

PLAN_KEYS = (
    *("rule", "fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"),
    *("video_start", "video_end"),
)
"""Keys of an entry of ``videos`` that `plan_video` knows."""
MARK_KEYS = ("tracks", "marker_style")
"""Keys that say which IDs are drawn on the frames, and how."""
VIDEO_COLUMN = "videos"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Job:
    """A video (absolute path) and what its row says about the plan, as (key, value) pairs of `PLAN_KEYS`
    and `MARK_KEYS`."""

    video: str
    options: tuple[tuple[str, float | str], ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``built``, ``present`` (nothing to do) or ``failed`` with a reason; bytes of its pixels."""

    job: Job
    state: str
    bytes: int = 0
    reason: str = ""


def plan_of(video: dict, info: VideoInfo) -> SamplingPlan:
    """Sampling plan of one entry of a row's ``videos``; keys that are absent or None take the plan's defaults.

    ``patch``, which no row has, is the model's (`verl_stvg.video.positions.fit`).

    Raises:
        ValueError: see `plan_video`; a missing track file, or an unknown style of markers.
    """
    chosen = {key: video[key] for key in (*PLAN_KEYS, "patch") if video.get(key) is not None}
    plan = plan_video(info.num_frames, info.fps, info.width, info.height, **chosen, clock=info.clock)
    if video.get("tracks") is None:
        return plan
    style = video.get("marker_style") or "stvg_r1"
    if style not in STYLES:
        raise ValueError(f"marker_style {style!r} is unknown; choose one of {', '.join(STYLES)}")
    path = Path(video["tracks"])
    if not path.is_file():
        raise ValueError(f"{path}: no such track file; track the video first, or correct the row")
    return replace(plan, marks=(str(path), _content(str(path), tuple(identity(path))), style))


@functools.lru_cache(maxsize=65536)
def _content(path: str, version: tuple[int, ...]) -> str:
    return hash_file(path)


def recorded_info(row: Mapping) -> VideoInfo | None:
    """What a row says about its one video; None where it does not say enough, and the file must be looked into.

    A rate that varies takes the times of all frames, which only rows have that need frame numbers. Rows that do not say
    whether their rate is constant were built by versions that took every rate for constant; they are not believed.
    """
    extra = row.get("extra_info") or {}
    facts = [extra.get(key) for key in ("num_frames", "source_fps", "width", "height")]
    if None in facts or len(row.get(VIDEO_COLUMN) or ()) != 1:
        return None
    if extra.get("constant_rate"):
        return VideoInfo(*facts)
    times, end = extra.get("frame_times"), extra.get("file_end")
    return None if times is None or end is None else VideoInfo(*facts, tuple(times), end)


def located(video: dict, root: str | Path) -> dict:
    """An entry of a row's ``videos`` without its empty keys, paths absolute."""
    entry = {key: value for key, value in video.items() if value is not None}
    return entry | {key: str(Path(root, entry[key])) for key in ("video", "tracks") if key in entry}


def root_of(file: Path, given: str | Path | None = None) -> Path:
    """Folder that relative paths of a parquet file's videos start from.

    The given one; else the one that the ``manifest.json`` beside the file names; else the file's own.
    """
    if given:
        return Path(given).expanduser().resolve()
    manifest = file.parent / "manifest.json"
    root = json.loads(manifest.read_text(encoding="utf-8")).get("video_root") if manifest.is_file() else None
    return (file.parent / (root or ".")).resolve()


def read_jobs(files: Iterable[str | Path], video_root: str | Path | None = None, patch: int = PATCH) -> list[Job]:
    """Every distinct video and plan of the rows, in their order.

    Args:
        files: parquet files with a column ``videos``, as `verl_stvg.dataset` reads them.
        video_root: see `root_of`.
        patch: of the model, see `plan_video`.

    Raises:
        ValueError: a missing file, or one without the column.
    """
    jobs: dict[Job, None] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise ValueError(f"{file}: no such file; build the rows first, or correct the path")
        if VIDEO_COLUMN not in pq.read_schema(file).names:
            raise ValueError(f"{file}: has no column {VIDEO_COLUMN!r}; build the rows again")
        root = root_of(file, video_root)
        for videos in pq.read_table(file, columns=[VIDEO_COLUMN])[VIDEO_COLUMN].to_pylist():
            for video in videos or ():
                entry = located(video, root)
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
    before = store.cache.decodes
    try:
        plan = plan_of(dict(job.options), store.probe(job.video))
        size = store.frames(job.video, plan).nbytes
    except CacheError:
        raise
    except (ValueError, OSError) as error:
        return Outcome(job, "failed", reason=str(error))
    return Outcome(job, "built" if store.cache.decodes > before else "present", size)


def note_failures(folder: Path, outcomes: list[Outcome]) -> Path:
    """Bring the quarantine of a cache up to date: failures go in, videos of which nothing failed come out.

    Returns:
        path of the file.
    """
    quarantine = Quarantine(folder / QUARANTINE)
    failed = {outcome.job.video: outcome.reason for outcome in outcomes if outcome.state == "failed"}
    for video, reason in failed.items():
        quarantine.add(video, reason, "build")
    for video in {outcome.job.video for outcome in outcomes} - failed.keys():
        quarantine.clear(video)
    return quarantine.path
