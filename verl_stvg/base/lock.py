"""What lets two processes that write into one place come out whole: a lock on a folder, taken with its creation, and
folders and files that appear only when all of them is written.

A folder that is to appear as a whole is written as ``.NAME.unfinished`` beside it, under that folder's lock, and then
renamed. Whoever comes second is refused by name, or waits, or finds the finished folder.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks say."""
NAME = ".lock"
"""The file that is locked. Only its holder may remove it: whoever waits for it then finds that it is another one."""

_held: set[str] = set()
"""Folders whose lock this process holds; the system lets a process take its own lock again, and drops both together."""


class FolderInUse(ValueError):
    """Another process is writing into a folder; the message names it and the remedy."""


@contextlib.contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make a folder and hold its lock, until the block ends or the process does, however it ends.

    The lock belongs to this process alone: what it starts, which may outlive it, does not inherit it. A process that
    takes it twice holds it until the first block ends.

    Args:
        folder: made with its parents.
        wait: until another process has left it, instead of an error.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be made or written into.
    """
    lock = None
    while lock is None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, wait)
    place = os.path.abspath(folder)
    _held.add(place)
    try:
        with lock:
            yield
    finally:
        _held.discard(place)


def _locked(folder: Path, wait: bool) -> TextIO | None:
    """The locked file of a folder; None if the folder was renamed or removed in this moment."""
    try:
        lock = (folder / NAME).open("a")
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / NAME)):
            return lock
    except FileNotFoundError:
        pass
    except (BlockingIOError, PermissionError) as error:  # systems differ in what they say
        lock.close()
        raise FolderInUse(
            f"{folder}: another process is writing into this folder; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: files cannot be locked there, so nobody notices another process that writes there", folder)
        return lock
    lock.close()
    return None


# --- what appears as a whole ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(out: Path, keep: bool = False, wait: bool = False) -> Iterator[Path]:
    """A folder to write into, whose lock is held, and which becomes another one at the end of the block.

    Where that one is there by then, it stays as it is, and what was written goes.

    Args:
        out: folder that appears.
        keep: what was written if the block raises or the process dies, for the next time, which finds it there.
        wait: for another process that is writing it, instead of an error.

    Raises:
        FolderInUse: another process is writing it.
    """
    work = _beside(out)
    with alone(work, wait):
        if not keep:
            clear(work)
        try:
            yield work
        except BaseException:
            if not keep or out.exists():
                clear(work)
            _leave(work)
            raise
        if out.exists():
            clear(work)
            _leave(work)
        else:
            work.rename(out)
            (out / NAME).unlink(missing_ok=True)
    finished(out)


def finished(out: Path) -> bool:
    """Whether a file or folder is there that appears as a whole (`whole`, `turn`).

    If it is, what a process has left that was killed right behind its last step goes: a lock within, a folder beside.
    """
    if not out.exists():
        return False
    for folder in (out, _beside(out)):
        if (folder / NAME).exists() and os.path.abspath(folder) not in _held:
            with contextlib.suppress(FolderInUse, PermissionError), alone(folder):  # to look needs no right to write
                if folder != out:
                    clear(folder)
                    _leave(folder)
                else:
                    (folder / NAME).unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for other processes that write a file, and have them wait; it leaves nothing behind."""
    work = _beside(path)
    with alone(work, wait=True):
        try:
            yield
        finally:
            _leave(work)


def clear(folder: Path, *but: str) -> None:
    """Remove what is in a folder whose lock this process holds, but for the files of these names."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (NAME, *but):
            path.unlink()


def _beside(path: Path) -> Path:
    full = Path(os.path.abspath(path))  # "." has no name
    return full.with_name(f".{full.name}.unfinished")


def _leave(work: Path) -> None:
    (work / NAME).unlink(missing_ok=True)  # where nothing can be locked, another process may have been here
    with contextlib.suppress(OSError):  # something is kept there, or another process has begun: the lock is gone
        work.rmdir()


@contextlib.contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[Path]:
    """A file to write, which takes the place of another at the end of the block: all of it, and on disk.

    It is ``.NAME.partial`` beside the other. Of two processes that write it, the second waits; what a process has left
    that was killed, the next one overwrites. Where the block raises, the other file stays as it was. A link, and what
    is no file (``/dev/stdout``), is written in its place. The folder is made.

    Args:
        path: of the file.
        synced: False for many small files that can be made again: the file may be empty after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    with _claimed(path.with_name(f".{path.name}.partial")) as (partial, file):
        try:
            yield partial
            if synced:
                os.fsync(file.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _claimed(partial: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A file that no other process or thread writes; under another name where files cannot be locked."""
    while True:
        with partial.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                partial.unlink(missing_ok=True)
                break
            try:
                if _is(partial, file):  # else the one who held it has put it in its place
                    yield partial, file
                    return
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if a process was forked meanwhile
    own = partial.with_name(f".{uuid.uuid4().hex[:12]}{partial.name}")
    with own.open("ab") as file:
        yield own, file


def _is(path: Path, file: BinaryIO) -> bool:
    """Whether an open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def write_whole(path: Path, text: str) -> None:
    """Write a text file (UTF-8), or replace it, at once, see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
