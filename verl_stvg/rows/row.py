"""The one place where a parquet row is opened: its videos, their sampling plans, the folder of their paths, its uid.

Knows rows and videos but neither verl nor torch.
"""

import difflib
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

from verl_stvg.base import nesting
from verl_stvg.video.cache import hash_file
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.frame_rules import refuse_contradictions
from verl_stvg.video.identity import identity
from verl_stvg.video.markers import STYLES
from verl_stvg.video.plan import SamplingPlan, plan_video

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
ROOT_KEY = "video_root"
"""Key of a row under which its reader puts the folder that relative paths start from."""
_MOST = 1e18  # size of a number in an entry of `videos`; with more, arithmetic ends
_SHORT = 64  # characters of a path that no file system finds too long: each has at most four bytes


class RowError(ValueError):
    """Rows that cannot be trained on; the message lists the first ones, the total and the remedy."""


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


def row_uid(row: dict):
    extra = row.get("extra_info") or {}
    return extra.get("uid", extra.get("index", "unknown"))
