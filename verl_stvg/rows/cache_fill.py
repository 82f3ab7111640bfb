"""Filling a frame cache before training: every video and plan of the rows, once, on all processors or a Ray cluster.

It knows rows and videos but neither verl nor torch, so that a worker starts in half a second.
"""

import difflib
import functools
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from verl_stvg.base import nesting
from verl_stvg.rows.files import rows_in
from verl_stvg.video.cache import CacheError, hash_file
from verl_stvg.video.decode import VideoInfo
from verl_stvg.video.identity import identity
from verl_stvg.video.markers import STYLES
from verl_stvg.video.plan import PATCH, SamplingPlan, plan_video, refuse_contradictions
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.store import FrameStore
from verl_stvg.workers import work

PLAN_KEYS = (
    *("rule", "fps", "nframes", "min_frames", "max_frames"),
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
    *("video_start", "video_end"),
)
"""Keys of an entry of ``videos`` that `plan_video` knows."""
PART_KEYS = ("video_start", "video_end")
"""Those of them that say what is shown; the others say how."""
MARK_KEYS = ("tracks", "marker_style")
"""Keys that say which IDs are drawn on the frames, and how."""
MASK_KEYS = ("hidden", "shown")
"""Keys that say which temporal units the model sees, see `SamplingPlan.masked`."""
VIDEO_KEYS = ("video", *PLAN_KEYS, *MARK_KEYS, *MASK_KEYS)
"""All keys that an entry of ``videos`` may have."""
VIDEO_COLUMN = "videos"
_MOST = 1e18  # size of a number in an entry of `videos`; with more, arithmetic ends
_SHORT = 64  # characters of a path that no file system finds too long: each has at most four bytes
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


def entry_of(video: object) -> dict:
    """One entry of a row's ``videos`` in the one form that all else knows: those of `VIDEO_KEYS` that are not empty.

    A name alone is a video without options. Keys whose value is None are absent: a parquet file gives every entry the
    keys of all others.

    Raises:
        ValueError: another form (a list of frames, the Video feature of ``datasets``), no name, a key that is not of
            `VIDEO_KEYS`, a value that its key cannot have, or keys that contradict each other.
    """
    if isinstance(video, str | os.PathLike):
        video = {"video": os.fspath(video)}
    frames = video.get("video") if isinstance(video, Mapping) else video
    if isinstance(frames, list | tuple):
        raise ValueError(
            f"a list of {len(frames)} frames is no video; encode them as one file, at the rate at which they were "
            "taken (ffmpeg -framerate 2 -i %05d.jpg a.mp4), and name that file"
        )
    if not isinstance(video, Mapping):
        raise ValueError(f'{type(video).__name__} is no form of a video; write {{"video": "a.mp4"}}')
    entry = {key: value for key, value in video.items() if value is not None}
    if entry.get("type") == "video":  # as in a message
        del entry["type"]
    if feature := [key for key in ("path", "bytes") if key in entry]:
        raise ValueError(
            f"a video with {' and '.join(map(repr, feature))} (the Video feature of `datasets`) is not read; write "
            'bytes to a file, and name the file by {"video": "a.mp4"}'
        )
    if unknown := [key for key in entry if key not in VIDEO_KEYS]:
        raise ValueError("; ".join(map(_unknown, unknown)))
    for key, value in entry.items():
        if wanted := _wanted(key, value):
            raise ValueError(f"{key} must be {wanted}, got {value!r:.200}; correct the row")
    if not entry.get("video"):
        raise ValueError('a video has no file name; write {"video": "a.mp4"}')
    if "://" in entry["video"]:
        raise ValueError(
            f"video {entry['video']!r} is a URL, and files are read; download what is elsewhere, and give its path, "
            "without 'file://'"
        )
    if len(entry) > 1:
        refuse_contradictions(**{key: entry[key] for key in PLAN_KEYS if key in entry})
    return entry


def refit(entry: dict, fit: Mapping | None) -> dict:
    """An entry as `entry_of` has it, planned by a fit's keys instead of its own; what is shown, and drawn, stays.

    Args:
        entry: see `entry_of`.
        fit: keys of `PLAN_KEYS` with values, see `verl_stvg.rows.fit`; nothing leaves the entry as it is.

    Raises:
        ValueError: the entry masks temporal units, which count in its own plan.
    """
    if not fit:
        return entry
    if masked := [key for key in MASK_KEYS if key in entry]:
        raise ValueError(
            f"{' and '.join(masked)} of the row count the temporal units of its own plan, which a fit replaces; leave "
            "the fit out, or take these rows out"
        )
    return {key: entry[key] for key in entry if key not in PLAN_KEYS or key in PART_KEYS} | dict(fit)


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, VIDEO_KEYS, 1)
    return f"{key!r} is no key of a video; " + (
        f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(VIDEO_KEYS)}"
    )


def _wanted(key: str, value: object) -> str:
    """What a value must be and is not; empty where nothing is wrong with it."""
    if key in ("video", "rule", *MARK_KEYS) and not isinstance(value, str):
        return "a text"
    if key in ("video", "tracks") and not _is_name(value):
        return "a path that file systems know, of at most 255 bytes between slashes"
    if key in ("video", "rule", *MARK_KEYS):
        return ""
    if key == "shown":
        return "" if _is_run(value) else "[first, last] of temporal units"
    if key == "hidden":
        runs = isinstance(value, list | tuple) and all(map(_is_run, value))
        return "" if runs else "a list of [first, last] of temporal units"
    number = _is_number(value)
    if number and abs(value) > _MOST:
        return f"of a size up to {_MOST:g}"
    if key in ("video_start", "video_end"):
        return "" if number else "a number of seconds"
    return "" if number and value > 0 else "a positive number"


def _is_name(path: str) -> bool:
    if len(path) < _SHORT and "\0" not in path:
        return True
    parts = path.encode("utf-8", "surrogatepass").split(b"/")
    return b"\0" not in b"/".join(parts) and max(map(len, parts)) <= 255 and sum(map(len, parts)) <= 3072


def _is_run(value: object) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(_is_number(unit) and unit == int(unit) for unit in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Real) and not isinstance(value, bool) and abs(value) < math.inf


def located(video: object, root: str | Path) -> dict:
    """An entry of a row's ``videos`` as `entry_of` has it, paths absolute."""
    entry = entry_of(video)
    return entry | {key: str(Path(root, entry[key])) for key in ("video", "tracks") if key in entry}


def listed(videos: object, where: str = "") -> Sequence:
    """The entries of a row's ``videos`` as they are; none for None.

    Raises:
        ValueError: no list; the message begins with ``where``.
    """
    if videos is not None and not isinstance(videos, list | tuple):
        raise ValueError(f'{where}{VIDEO_COLUMN} is no list; write [{{"video": "a.mp4"}}], also for one video')
    return videos or ()


def which(place: int, count: int) -> str:
    """How a message begins that is about one of a row's ``count`` videos: with nothing if it is the only one."""
    return f"{VIDEO_COLUMN}[{place}]: " if count > 1 else ""


def entries_of(
    videos: object, root: str | Path | None = None, where: str = "", fit: Mapping | None = None
) -> list[dict]:
    """All entries of a row's ``videos``, each as `entry_of` has it.

    Args:
        videos: of a row; None for none.
        root: folder that relative paths start from, see `located`; None leaves paths as they are.
        where: file and row, with which a message begins.
        fit: see `refit`.

    Raises:
        ValueError: see `entry_of` and `refit`; of several videos it says which.
    """
    where = f"{where}: " if where else ""
    videos, found = listed(videos, where), []
    for place, video in enumerate(videos):
        try:
            found.append(refit(entry_of(video) if root is None else located(video, root), fit))
        except ValueError as error:
            raise ValueError(f"{where}{which(place, len(videos))}{error}") from error
    return found


def are_plain(names: Sequence[object]) -> bool:
    """Whether `entry_of` finds nothing wrong with any of these names of videos, seen at once; False: look at each."""
    if not all(type(name) is str and 0 < len(name) < _SHORT for name in names):
        return False
    joined = "\n".join(names)
    return "://" not in joined and "\0" not in joined


def root_of(file: Path, given: str | Path | None = None) -> Path:
    """Folder that relative paths of a parquet file's videos start from.

    The given one; else the one that the ``manifest.json`` beside the file names; else the file's own.

    Raises:
        ValueError: that file cannot be read.
    """
    if given:
        return Path(given).expanduser().resolve()
    manifest = file.parent / "manifest.json"
    root = _named_root(manifest) if manifest.is_file() else None
    return (file.parent / (root or ".")).resolve()


def _named_root(manifest: Path) -> str | None:
    try:
        found = nesting.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{manifest}: no JSON ({error}); build the rows again, or give --video-root") from error
    root = found.get("video_root") if isinstance(found, dict) else None
    if root is not None and not isinstance(root, str):
        raise ValueError(f"{manifest}: video_root is no text, found {root!r:.60}; correct it, or give --video-root")
    return root


def read_jobs(
    files: Iterable[str | Path],
    video_root: str | Path | None = None,
    patch: int = PATCH,
    fit: Mapping | None = None,
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
        root = root_of(file, video_root)
        for number, row in enumerate(rows_in(file, (VIDEO_COLUMN,), (VIDEO_COLUMN,))):
            try:
                entries = entries_of(row[VIDEO_COLUMN], root, f"{file}: row {number}", fit)
            except ValueError as error:
                jobs[Job("", (), str(error))] = None
                continue
            for entry in entries:
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
