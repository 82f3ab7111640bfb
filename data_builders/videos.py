"""The videos that records name: where they are below a root, and what their headers say.

Names in annotations lack their ending, have another one, or point somewhere else altogether. A name is matched exactly,
or by its whole stem; never by a prefix, which picks the wrong file sooner or later. Links are followed, once.
"""

import contextlib
import functools
import heapq
import json
import logging
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

from verl_stvg.video.cache import hash_file
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.identity import ENDINGS, identity
from verl_stvg.workers import work

logger = logging.getLogger(__name__)

_PREVIEW = ".gif"  # beside a video of its stem, a GIF is a preview of it
_SHOWN = 8  # endings of files that were passed over


class UnknownVideo(ValueError):
    """A name for which there is not exactly one file; the message says why."""


@dataclass
class _Walked:
    """What lies below a root.

    Attributes:
        names: the one name of each video file, by `_file`.
        stems: names by the stem of any name that the file has, best first.
        passed_over: number of files that are no videos, by ending.
    """

    names: dict[Hashable, str]
    stems: dict[str, list[str]]
    passed_over: Counter[str]


class VideoRoot:
    """A folder of videos.

    A file may have several names, through links. One of them stands for it everywhere: the one with the fewest links
    in it, of several the first in order. So rows, tracks and checks of one file are about one video.

    Args:
        root: the folder.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder{_absolute(root)}; correct --videos")
        self.root = root
        self._real = os.path.realpath(root)
        self._folders: dict[PurePosixPath, dict[str, list[str]]] = {}
        self._chosen: dict[tuple[str, ...], list[str]] = {}

    def find(self, name: str) -> str:
        """Path of a video relative to the root, with forward slashes.

        The named file itself; else a video with that stem in the named folder; else one anywhere below the root.
        Files of equal bytes are one video.

        Raises:
            UnknownVideo: there is none, there are several, or the name points outside of the root.
        """
        check_name(name)
        path = PurePosixPath(name)
        if (self.root / name).is_file():
            return self._one_name(str(path))
        stems = [path.name, path.stem] if path.suffix.lower() in ENDINGS else [path.name]
        beside, found = self._folder(path.parent), []
        for stem in stems:
            found = found or self._distinct(tuple(beside.get(stem, ())))
        for stem in stems:
            found = found or self._distinct(tuple(self._walked.stems.get(stem, ())))
        if len(found) == 1:
            return found[0]
        if (self.root / name).is_dir():
            raise UnknownVideo(
                f"{name}: a folder of pictures; make a video of it first, for example: "
                f"ffmpeg -framerate 6 -pattern_type glob -i '{name}/*.jpg' -pix_fmt yuv420p {name}.mp4"
            )
        if found:
            more = ", ..." if len(found) > 3 else ""
            raise UnknownVideo(
                f"{name}: {len(found)} files have that name and differ ({', '.join(found[:3])}{more}); write "
                "folder and ending into the annotation, or remove all but one"
            )
        if (self.root / name).is_symlink():
            raise UnknownVideo(f"{name}: a link to {os.readlink(self.root / name)}, where no file is; mend the link")
        raise UnknownVideo(f"{name}: no such video below {self.root}{_absolute(self.root)}")

    def all(self) -> list[str]:
        """Every video file below the root once, sorted."""
        return sorted(self._walked.names.values())

    @property
    def passed_over(self) -> Counter[str]:
        """How many files below the root are no videos, by their ending."""
        return self._walked.passed_over

    @functools.cached_property
    def _walked(self) -> _Walked:
        walked = _walk(self._real)
        if count := walked.passed_over.total():
            common = sorted(walked.passed_over.items(), key=lambda one: (-one[1], one[0]))[:_SHOWN]
            said = ", ".join(f"{ending or 'without one'} {number:,}" for ending, number in common)
            more = f", {len(walked.passed_over) - _SHOWN} others" if len(walked.passed_over) > _SHOWN else ""
            _say_once(f"{count:,} files in {self.root} were passed over, no videos by their ending: {said}{more}")
        return walked

    def _one_name(self, name: str) -> str:
        path = os.path.join(self._real, name)
        if os.path.realpath(path) == path and os.stat(path).st_nlink == 1:
            return name
        return self._walked.names.get(_file(path, os.stat(path)), name)

    def _folder(self, folder: PurePosixPath) -> dict[str, list[str]]:
        """Names of the videos in a folder, by stem."""
        if folder not in self._folders:
            stems = self._folders[folder] = {}
            path = self.root / folder
            for file in sorted(entry.name for entry in _entries(path)) if path.is_dir() else ():
                stem, ending = os.path.splitext(file)
                if ending.lower() in ENDINGS and (path / file).is_file():
                    stems.setdefault(stem, []).append(str(folder / file))
        return self._folders[folder]

    def _distinct(self, names: tuple[str, ...]) -> list[str]:
        """Of files of equal bytes the first; no previews of others. Empty files are failed downloads of anything."""
        if names not in self._chosen:
            found = list(dict.fromkeys(map(self._one_name, names)))
            found = [name for name in found if not name.lower().endswith(_PREVIEW)] or found
            sizes = [os.stat(self.root / name).st_size for name in found]
            contents: dict[str, str] = {}
            for name, size in zip(found, sizes, strict=True):
                alike = size and sizes.count(size) > 1
                contents.setdefault(hash_file(str(self.root / name)) if alike else name, name)
            self._chosen[names] = list(contents.values())
        return self._chosen[names]


def _walk(root: str) -> _Walked:
    """Look into every folder below a root once, those reached through the fewest links first.

    Folders that hold the root are not looked into, wherever links lead.
    """
    seen = {_place(os.stat(folder)) for folder in Path(root).parents}
    waiting: list[tuple[int, tuple[str, ...], str, tuple[int, int]]]
    waiting = [(0, (), root, _place(os.stat(root)))]  # links on the way, name, real path, place
    best: dict[Hashable, tuple[int, tuple[str, ...]]] = {}
    stems: dict[str, set[Hashable]] = defaultdict(set)
    passed_over: Counter[str] = Counter()
    while waiting:
        links, parts, folder, place = heapq.heappop(waiting)
        if place in seen:
            continue
        seen.add(place)
        for entry in _entries(folder):
            linked = entry.is_symlink()
            stem, ending = os.path.splitext(entry.name)
            video = ending.lower() in ENDINGS
            if not (video or linked) and entry.is_file():  # unread: there may be a million pictures
                passed_over[ending.lower()] += 1
                continue
            status = _status(entry)
            name = (links + linked, (*parts, entry.name))
            if status is None:
                continue
            elif stat.S_ISDIR(status.st_mode):
                path = os.path.realpath(entry.path) if linked else entry.path
                heapq.heappush(waiting, (*name, path, _place(status)))
            elif stat.S_ISREG(status.st_mode) and not video:
                passed_over[ending.lower()] += 1
            elif stat.S_ISREG(status.st_mode):
                file = _file(entry.path, status)
                best[file] = min(name, best.get(file, name))
                stems[stem].add(file)
    names = {file: "/".join(parts) for file, (_, parts) in best.items()}
    by_stem = {stem: [names[file] for file in sorted(files, key=best.__getitem__)] for stem, files in stems.items()}
    return _Walked(names, by_stem, passed_over)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (PermissionError, FileNotFoundError) as error:
        logger.warning("%s: %s; what lies in it was passed over", folder, error.strerror)
        return []


def _status(entry: os.DirEntry) -> os.stat_result | None:
    """None: a broken link, a link to itself, or a file that was removed just now."""
    try:
        return entry.stat()
    except OSError:
        return None


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _file(path: str, status: os.stat_result) -> Hashable:
    """Equal for two names of one file. File systems without inodes of their own have no hard links either."""
    return _place(status) if status.st_nlink > 1 else os.path.realpath(path)


@functools.cache
def _say_once(text: str) -> None:
    """Several commands in one look at the same root."""
    logger.info(text)


def check_name(name: str) -> None:
    """Refuse a name that points outside of the root.

    Raises:
        UnknownVideo: an absolute path, or one with ``..``.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UnknownVideo(f"{name}: points outside of the video root")


def _absolute(path: Path) -> str:
    """Where a relative path leads, for a message."""
    return "" if path.is_absolute() else f" (that is {path.absolute()})"


@dataclass(frozen=True)
class Facts:
    """What a video file is: what `VideoInfo` says, and a hash of its bytes (XXH3, 128 bits)."""

    num_frames: int
    fps: float
    width: int
    height: int
    content: str
    times: tuple[float, ...] | None = None
    end: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: VideoInfo, content: str) -> "Facts":
        """Facts of a video that was looked into."""
        return cls(content=content, **{name: getattr(info, name) for name in _INFO})

    @property
    def info(self) -> VideoInfo:
        """Without the hash."""
        return VideoInfo(**{name: getattr(self, name) for name in _INFO})

    @property
    def clock(self) -> FrameClock:
        """Frame numbers and seconds of the video."""
        return self.info.clock

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.clock.duration


_INFO = tuple(field.name for field in fields(VideoInfo))


def probe_all(
    root: Path, names: list[str], journal: Path, workers: int = 1, on_ray: bool = False
) -> Iterator[dict[str, Facts | str]]:
    """Look into every video once and yield what was found as it comes: facts, or why the video cannot be used.

    What has been found is written down, so that an interrupted pass goes on where it was; a video that changed since
    is looked into again.

    Args:
        root: of the videos.
        names: relative to the root.
        journal: file of JSON lines.
        workers: see `verl_stvg.workers.work`.
        on_ray: see `verl_stvg.workers.work`.
    """
    known = dict(_read_journal(root, journal))
    yield {name: known[name] for name in names if name in known}
    waiting = [name for name in names if name not in known]
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as file:
        file.write("\n")  # after a line that was cut off
        for found in work(functools.partial(_look, str(root)), waiting, workers, on_ray):
            for name, state, facts in found:
                said = facts if isinstance(facts, str) else asdict(facts)
                file.write(json.dumps([name, state, said]) + "\n")
            file.flush()
            yield {name: facts for name, _, facts in found}


def _look(root: str, names: list[str]) -> list[tuple[str, list[int], Facts | str]]:
    found = []
    for name in names:
        path = Path(root, name)
        state = identity(path)
        try:
            facts = Facts.of(*shared_decoder().examine(path))
        except (ValueError, OSError) as error:
            facts = str(error)
        found.append((name, state, facts))
    return found


def _read_journal(root: Path, journal: Path) -> Iterator[tuple[str, Facts | str]]:
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the beginning of a line whose writer was killed
            name, state, said = json.loads(line)
            if (root / name).is_file() and identity(root / name) == state:
                yield name, said if isinstance(said, str) else _facts(said)


def _facts(said: dict) -> Facts:
    content = said.pop("content")
    return Facts.of(VideoInfo.of(said), content)
