"""Which videos cannot be used, and why: a file of JSON lines that processes on all hosts write together.

A video in quarantine is left out and reported; nothing ever takes its place. The file says which bytes were meant, by
size, times of change and inode, so that a video downloaded again is tried again without anybody tidying up.
"""

import fcntl
import functools
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from verl_stvg.base.nesting import loads
from verl_stvg.video.identity import identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unusable:
    """A line of the manifest.

    Attributes:
        path: of the video, absolute.
        size: bytes; None if there is no file.
        mtime_ns: when its content last changed, nanoseconds since the epoch; None if there is no file.
        reason: the error's message.
        stage: where it was found, for example ``probe`` or ``decode``.
        time: when, seconds since the epoch.
        ctime_ns: when anything of it last changed; None if there is no file, or in a line of an older version.
        inode: its number; None as `ctime_ns`.
    """

    path: str
    size: int | None
    mtime_ns: int | None
    reason: str
    stage: str
    time: float
    ctime_ns: int | None = None
    inode: int | None = None

    def meant(self, state: list[int] | None) -> bool:
        """Whether it is about a file in this state, see `identity`; None is no file. What a line lacks is not asked."""
        known = (self.size, self.mtime_ns, self.ctime_ns, self.inode)
        if state is None or self.size is None:
            return state is None and self.size is None
        return all(ours in (None, theirs) for ours, theirs in zip(known, state, strict=True))


class Quarantine:
    """A manifest of unusable videos.

    Args:
        path: of the file; made with the first line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._found: dict[str, Unusable] = {}
        self._read = 0  # bytes of the file that are in `_found`

    def add(self, video: str | Path, reason: object, stage: str) -> None:
        """Record a video; does nothing if these bytes are recorded already.

        The line is on disk when this returns. Lines that are no records, as a killed process or a crash of the machine
        leaves them, are skipped by all readers, with one warning.

        Args:
            video: path of the file.
            reason: why it cannot be used; its text is kept.
            stage: what found it, such as ``probe`` or ``decode``.
        """
        video = os.path.abspath(video)
        if self.reason(video) is None:
            size, modified, changed, inode = _state(video) or [None] * 4
            unusable = Unusable(video, size, modified, str(reason), stage, time.time(), changed, inode)
            self._append(asdict(unusable))

    def clear(self, video: str | Path) -> None:
        """Take a video out, because it turned out to be usable; does nothing if it is not in."""
        video = os.path.abspath(video)
        self._refresh()
        if video in self._found:
            self._append({"path": video, "reason": None})

    def reason(self, video: str | Path) -> str | None:
        """Why a video cannot be used; None if nothing is known against it or it has changed since."""
        video = os.path.abspath(video)
        self._refresh()
        found = self._found.get(video)
        return found.reason if found and found.meant(_state(video)) else None

    def entries(self) -> list[Unusable]:
        """The last line about each video, changed since or not, in the order in which they were first found."""
        self._refresh()
        return list(self._found.values())

    def _append(self, record: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._refresh()
            if record["reason"] is not None and self.reason(record["path"]) is not None:  # another was faster
                return
            torn = self._read < os.fstat(file.fileno()).st_size
            file.write(b"\n" * torn + json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _refresh(self) -> None:
        if not self.path.exists():
            self._found, self._read = {}, 0
            return
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read:  # another file than the one that was read
                self._found, self._read = {}, 0
            file.seek(self._read)
            lines = file.read().split(b"\n")[:-1]  # the last one is being written, or its writer was killed
        for line in lines:
            self._read += len(line) + 1
            record = _record(line)
            if record is None:
                if line.strip():
                    _warn(self.path)
            elif isinstance(record, Unusable):
                self._found[record.path] = record
            else:
                self._found.pop(record, None)


def _record(line: bytes) -> Unusable | str | None:
    """What a line says: a video is unusable, or that of this path is usable; None for what is no record."""
    try:
        record = loads(line.decode())
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("path"), str) or "reason" not in record:
        return None
    if record["reason"] is None:
        return record["path"]
    known: dict[str, Any] = {field.name: record.get(field.name) for field in fields(Unusable)}
    if any(type(known[name]) is not str for name in ("reason", "stage")):
        return None
    numbers = (known[name] for name in ("size", "mtime_ns", "time", "ctime_ns", "inode"))
    return Unusable(**known) if all(type(one) in (int, float, type(None)) for one in numbers) else None


@functools.cache
def _warn(path: Path) -> None:
    logger.warning("%s: lines that are no records, as a kill or a crash of the machine leaves them, are skipped", path)


def _state(video: str) -> list[int] | None:
    """See `identity`; None if there is no file."""
    return identity(video) if os.path.exists(video) else None
