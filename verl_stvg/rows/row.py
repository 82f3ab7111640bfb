"""The one place where a row is opened: `Row` has one rule for each thing that a row says, and all readers ask it.

Below it are the entries of a row's ``videos`` and their sampling plans. It knows neither verl nor torch.
"""

import difflib
import functools
import math
import os
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

from reward_fns.recipe import Recipe
from reward_fns.registry import find_recipe
from verl_stvg.moved import names_of
from verl_stvg.video.cache import hash_file
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.frame_rules import refuse_contradictions
from verl_stvg.video.identity import identity
from verl_stvg.video.markers import STYLES
from verl_stvg.video.plan import SamplingPlan, plan_video

__getattr__ = names_of(__name__, {"root_of": "verl_stvg.rows.files"})

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
FACTS = ("num_frames", "source_fps", "width", "height")
"""Keys of ``extra_info`` that say what the file of the row's one video is."""
_NAME = 200  # characters
_MOST = 1e18  # size of a number in an entry of `videos`; with more, arithmetic ends
_SHORT = 64  # characters of a path that no file system finds too long: each has at most four bytes


class RowError(ValueError):
    """Rows that cannot be trained on; the message lists the first ones, the total and the remedy."""


@dataclass(frozen=True, eq=False)
class Row(Mapping[str, Any]):
    """A row: a mapping of its columns, and what they say, by one rule for each thing.

    A row whose shape is wrong (`verl_stvg.rows.shape.row_shape_problems`) has a name and nothing else to rely on.

    Attributes:
        raw: columns by name; those that were not read are absent.
        root: folder that relative paths of the videos start from; None leaves paths as they are.
        where: file and number of the row, with which messages begin; empty where the caller's message says it.
        fit: keys of the plan in place of those of the row, see `refit`.
    """

    raw: Mapping[str, Any]
    root: str | Path | None = None
    where: str = ""
    fit: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Row":
        """A row that may be opened already; else its root stands under `ROOT_KEY`, and messages say its name."""
        if isinstance(row, cls):
            return row
        return cls(row, row.get(ROOT_KEY), f"row {cls(row).name}")

    def __getitem__(self, column: str) -> Any:
        return self.raw[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def keys(self) -> KeysView[str]:
        return self.raw.keys()

    # What follows is no `cached_property` where it is cheap: those of Python 3.11 take a lock and a dictionary per row.

    @property
    def extra(self) -> Mapping[str, Any]:
        """``extra_info``; empty where there is none."""
        found = self.raw.get("extra_info")
        return found if _is_mapping(found) else {}

    @property
    def given_truth(self) -> Any:
        """The ground truth as verl gives it to the reward; None where there is none."""
        reward = self.raw.get("reward_model")
        return reward.get("ground_truth") if _is_mapping(reward) else None

    @property
    def truth(self) -> dict[str, Any]:
        """The ground truth without keys that are None; empty where there is none."""
        found = self.given_truth
        return {key: value for key, value in found.items() if value is not None} if _is_mapping(found) else {}

    @property
    def uid(self) -> Any:
        """``extra_info.uid``, else that of the ground truth; None where neither says one. An empty text is none."""
        found = self.extra.get("uid")
        if found is None or found == "":
            found = self.truth.get("uid")
        return None if found == "" else found

    @property
    def name(self) -> str:
        """What messages call the row, whatever it holds: its uid, else ``extra_info.index``, else ``unknown``."""
        found = self.uid
        found = self.extra.get("index") if found is None else found
        return "unknown" if found is None else f"{found!s:.{_NAME}}"

    @property
    def data_source(self) -> str:
        """The column ``data_source``; empty where there is none."""
        return self.raw.get("data_source") or ""

    @property
    def dataset(self) -> str:
        """Annotation set: ``extra_info.dataset``, else the last part of the data source."""
        return self.extra.get("dataset") or self.data_source.rpartition("/")[2]

    @property
    def is_evaluation(self) -> bool:
        """Whether the row is of a split that is never trained on."""
        return self.extra.get("split") in ("val", "test")

    @property
    def duration(self) -> float | None:
        """Seconds of what is shown: ``extra_info.duration``, else that of the ground truth."""
        return self.extra.get("duration") or self.truth.get("duration")

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """Annotated seconds of what is shown: ``intervals`` of the ground truth, else its start and end, else none."""
        truth = self.truth
        found = truth.get("intervals")
        if found is None or not len(found):
            found = [(truth["start"], truth["end"])] if "start" in truth and "end" in truth else ()
        return tuple((start, end) for start, end in found)

    @cached_property
    def entries(self) -> list[dict]:
        """Entries of the column ``videos`` with the paths that the row has, see `entries_of`.

        Raises:
            ValueError: one of them is none; the message says where.
        """
        return entries_of(self.raw.get(VIDEO_COLUMN), None, self.where, self.fit)

    @cached_property
    def videos(self) -> list[dict]:
        """`entries` with paths from the root."""
        return self.entries if self.root is None else [_at(entry, self.root) for entry in self.entries]

    @cached_property
    def info(self) -> VideoInfo | None:
        """What the row says about its one video; None where it does not say enough, and the file must be looked into.

        A rate that varies takes the times of all frames, which only rows have that need frame numbers. Rows that do not
        say whether their rate is constant were built by versions that took every rate for constant; they are not
        believed.
        """
        extra = self.extra
        facts = [extra[key] for key in FACTS if extra.get(key) is not None]
        if len(facts) < len(FACTS) or len(self.raw.get(VIDEO_COLUMN) or ()) != 1:
            return None
        info, times, end = VideoInfo(*facts), extra.get("frame_times"), extra.get("file_end")
        if extra.get("constant_rate"):
            return info
        return None if times is None or end is None else replace(info, times=tuple(times), end=end)

    def recipe(self, named: str | None = None) -> Recipe:
        """The recipe of that name, else the one that the data source selects.

        Raises:
            ValueError: there is none.
        """
        try:
            return find_recipe(self.data_source, named)
        except ValueError as error:
            raise ValueError(f"{_begin(self.where)}{error}") from error


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
    entry: dict[str, Any] = {key: value for key, value in video.items() if value is not None}
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
    if key in ("video", "rule", *MARK_KEYS):
        if not isinstance(value, str):
            return "a text"
        named = key not in ("video", "tracks") or _is_name(value)
        return "" if named else "a path that file systems know, of at most 255 bytes between slashes"
    if key == "shown":
        return "" if _is_run(value) else "[first, last] of temporal units"
    if key == "hidden":
        runs = isinstance(value, list | tuple) and all(map(_is_run, value))
        return "" if runs else "a list of [first, last] of temporal units"
    if _is_number(value) and abs(value) > _MOST:
        return f"of a size up to {_MOST:g}"
    if key in ("video_start", "video_end"):
        return "" if _is_number(value) else "a number of seconds"
    return "" if _is_number(value) and value > 0 else "a positive number"


def _is_name(path: str) -> bool:
    if len(path) < _SHORT and "\0" not in path:
        return True
    parts = path.encode("utf-8", "surrogatepass").split(b"/")
    return b"\0" not in b"/".join(parts) and max(map(len, parts)) <= 255 and sum(map(len, parts)) <= 3072


def _is_run(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(_is_number(unit) and unit == int(unit) for unit in value)


def _is_number(value: object) -> TypeGuard[float]:
    number = isinstance(value, int | float | Real) and not isinstance(value, bool)
    return number and value == value and value not in (math.inf, -math.inf)


def located(video: object, root: str | Path) -> dict:
    """An entry of a row's ``videos`` as `entry_of` has it, paths absolute."""
    return _at(entry_of(video), root)


def _at(entry: dict, root: str | Path) -> dict:
    return entry | {key: str(Path(root, entry[key])) for key in ("video", "tracks") if key in entry}


def _is_mapping(found: object) -> TypeGuard[Mapping[str, Any]]:
    return type(found) is dict or isinstance(found, Mapping)  # the former takes a tenth of the time


def _begin(where: str) -> str:
    return f"{where}: " if where else ""


def read_entries(videos: object, fit: Mapping | None = None) -> list[tuple[str, dict, str]]:
    """Of each of a row's ``videos``: how a message about it begins, its entry (`entry_of`), and what is wrong with it.

    The beginning is empty where there is one video, the entry where something is wrong.

    Args:
        videos: of a row; None for none.
        fit: see `refit`.
    """
    if videos is not None and not isinstance(videos, list | tuple):
        return [("", {}, f'{VIDEO_COLUMN} is no list; write [{{"video": "a.mp4"}}], also for one video')]
    given, entries = videos or (), []
    for place, video in enumerate(given):
        try:
            entry, wrong = refit(entry_of(video), fit), ""
        except ValueError as error:
            entry, wrong = {}, str(error)
        entries.append((f"{VIDEO_COLUMN}[{place}]: " if len(given) > 1 else "", entry, wrong))
    return entries


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
    found = []
    for beginning, entry, wrong in read_entries(videos, fit):
        if wrong:
            raise ValueError(f"{_begin(where)}{beginning}{wrong}")
        found.append(entry if root is None else _at(entry, root))
    return found


def are_plain(names: Sequence[object]) -> bool:
    """Whether `entry_of` finds nothing wrong with any of these names of videos, seen at once; False: look at each."""
    plain = [name for name in names if type(name) is str and 0 < len(name) < _SHORT]
    joined = "\n".join(plain)
    return len(plain) == len(names) and "://" not in joined and "\0" not in joined
