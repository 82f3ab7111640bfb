"""The videos that records name: where they are below a root, and what their headers say.

Names in annotations lack their ending, have another one, or point somewhere else altogether. A name is matched exactly,
or by its whole stem; never by a prefix, which picks the wrong file sooner or later.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

from verl_stvg.parallel import work
from verl_stvg.video.cache import hash_file
from verl_stvg.video.child import Decoder
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.decode import VideoInfo
from verl_stvg.video.identity import identity

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")


class UnknownVideo(ValueError):
    """A name for which there is not exactly one file; the message says why."""


class VideoRoot:
    """A folder of videos.

    Args:
        root: the folder.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; correct --videos")
        self.root = root
        self._stems: dict[str, list[str]] | None = None

    def find(self, name: str) -> str:
        """Path of a video relative to the root, with forward slashes.

        The named file itself; else a video with that stem in the named folder; else one anywhere below the root.

        Raises:
            UnknownVideo: there is none, there are several, or the name points outside of the root.
        """
        check_name(name)
        if (self.root / name).is_file():
            return name
        path = PurePosixPath(name)
        stem = path.stem if path.suffix.lower() in ENDINGS else path.name
        beside = [str(path.parent / (stem + ending)) for ending in ENDINGS]
        found = [other for other in beside if (self.root / other).is_file()] or self._by_stem().get(stem, [])
        if len(found) == 1:
            return found[0]
        if (self.root / name).is_dir():
            raise UnknownVideo(
                f"{name}: a folder of pictures; make a video of it first, for example: "
                f"ffmpeg -framerate 6 -pattern_type glob -i '{name}/*.jpg' -pix_fmt yuv420p {name}.mp4"
            )
        if found:
            raise UnknownVideo(
                f"{name}: {len(found)} files have that name ({', '.join(found[:3])}); remove all but one"
            )
        raise UnknownVideo(f"{name}: no such video")

    def all(self) -> list[str]:
        """Every video below the root, sorted."""
        return sorted(path for paths in self._by_stem().values() for path in paths)

    def _by_stem(self) -> dict[str, list[str]]:
        if self._stems is None:
            self._stems = {}
            for folder, folders, files in os.walk(self.root, followlinks=True):
                folders.sort()
                for file in sorted(files):
                    path = PurePosixPath(Path(folder, file).relative_to(self.root).as_posix())
                    if path.suffix.lower() in ENDINGS:
                        self._stems.setdefault(path.stem, []).append(str(path))
        return self._stems


def check_name(name: str) -> None:
    """Refuse a name that points outside of the root.

    Raises:
        UnknownVideo: an absolute path, or one with ``..``.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UnknownVideo(f"{name}: points outside of the video root")


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
        workers: see `verl_stvg.parallel.work`.
        on_ray: see `verl_stvg.parallel.work`.
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
            info = _decoder().probe(path)
            facts = Facts.of(info, hash_file(str(path)))
        except (ValueError, OSError) as error:
            facts = str(error)
        found.append((name, state, facts))
    return found


@functools.cache
def _decoder() -> Decoder:
    return Decoder(threads=1)


def _read_journal(root: Path, journal: Path) -> Iterator[tuple[str, Facts | str]]:
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the beginning of a line whose writer was killed
            name, state, said = json.loads(line)
            if (root / name).is_file() and identity(root / name) == state:
                yield name, said if isinstance(said, str) else _facts(said)


def _facts(said: dict) -> Facts:
    return Facts(**said | {name: said[name] and tuple(said[name]) for name in ("times", "notes")})
