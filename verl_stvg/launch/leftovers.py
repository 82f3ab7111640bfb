"""What ended runs leave on a machine: shared memory, semaphores, lock files and sockets that nobody uses any more.

A run that is ended by a signal does not come to unlink them, and neither do all that end by themselves. A file counts
as left if this user owns it, its name is one that verl, vLLM, torch or Python's multiprocessing give, it was not
touched for a minute, and no process has it open, mapped or bound. Processes in other containers are not seen: where
``/dev/shm`` is shared with one (``--ipc=host``), its files look left while it runs.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
MEMORY_NAMES = re.compile(
    r"psm_[0-9a-f]+|sem\.mp-\w+|torch_\d+_\w+|verl_weights_[0-9a-f]+|VLLM_OBJECT_STORAGE_\w+|plasma\w+"
)
"""Of Python's `SharedMemory` (vLLM's queues), its semaphores, torch's tensors, verl's weights, vLLM's inputs, Ray."""
FILE_NAMES = re.compile(r"ckpt_[0-9a-f]{8}\.lock|[0-9a-f]{64}.*\.lock|rl-colocate-zmq-.+\.sock")
"""Of verl's folders of checkpoints, vLLM's models, and verl's weights, in the temporary folder and in ``/tmp``."""
SETTLED_SECONDS = 60


def left(memory: Path = SHARED_MEMORY, temporary: tuple[Path, ...] | None = None) -> list[Path]:
    """Files that ended runs have left, sorted.

    Args:
        memory: where shared memory lies.
        temporary: folders of temporary files; default: this process's, and ``/tmp``.
    """
    places = [(memory, MEMORY_NAMES)]
    places += [(folder, FILE_NAMES) for folder in temporary or {Path(tempfile.gettempdir()), Path("/tmp")}]
    found = {path for folder, names in places for path in _unused_for_long(folder, names)}
    return sorted(found - _in_use()) if found else []


def remove(paths: list[Path]) -> list[Path]:
    """Delete those of some files that are still left, and return them."""
    taken = _in_use()
    gone = [path for path in paths if path not in taken and path.exists()]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def size(paths: list[Path]) -> int:
    """Bytes of some files, of those that are still there."""
    return sum(path.lstat().st_size for path in paths if path.exists())


def _unused_for_long(folder: Path, names: re.Pattern) -> Iterator[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if names.fullmatch(path.name) and not path.is_symlink() and not path.is_dir():
            try:
                status = path.stat()
            except FileNotFoundError:  # its owner has just removed it
                continue
            last = max(status.st_mtime, status.st_ctime)
            if status.st_uid == os.geteuid() and time.time() - last > SETTLED_SECONDS:
                yield path


def _in_use() -> set[Path]:
    """Every file that a process maps or has open, and every bound socket, as far as this user may see them."""
    found = {_socket(line) for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            found.update(_path(line) for line in (process / "maps").read_text(errors="surrogateescape").splitlines())
            found.update(os.readlink(link) for link in (process / "fd").iterdir())
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is another user's
            continue
    return {Path(name) for name in found if name.startswith("/")}


def _path(line: str) -> str:
    """The file of a line of ``/proc/PID/maps``, which begins with five columns."""
    columns = line.split(None, 5)
    return columns[5] if len(columns) > 5 else ""


def _socket(line: str) -> str:
    """The name of a line of ``/proc/net/unix``, which begins with seven columns."""
    columns = line.split(None, 7)
    return columns[7] if len(columns) > 7 else ""
