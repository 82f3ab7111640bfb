"""The files of the frame cache: entries, with the lock that each is written under, and the index of videos.

The header of an entry has a fixed part, then JSON that is padded to `PAGE`; pixels follow, uint8 (T, H, W, 3). The
index is one small file for each video, named by path and identity of the video; it holds the hash of its bytes.
"""

import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import platform
import string
import struct
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

FORMAT_VERSION = 1
"""Of the file; raise it when the layout changes."""
PAGE = 4096
"""Pixels start at a multiple of this many bytes."""
STALE_SECONDS = 24 * 3600.0
"""Age from which another host's temporary file counts as left behind; this host's are asked for their lock."""
_MAGIC = b"STVGFRM\n"
_PREFIX = struct.Struct("<8sIIQ")  # magic, format version, bytes of the padded JSON, hash of the padded JSON
ENTRY, TEMPORARY = ".frames", ".tmp"
_FULL = "free some space, bound the cache (max_bytes, `verl-stvg cache gc --max-bytes SIZE`) or choose another folder"
_READ_ONLY = "make it writable, fill it beforehand with `verl-stvg cache build`, or choose another folder"
_NO_LOCKS = "files cannot be locked there; mount it with lock support (flock) or choose another folder"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _READ_ONLY),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), _NO_LOCKS),
}


class Damaged(Exception):
    """An entry that must not be served; the message completes "this file ..."."""


class Claim:
    """An exclusive lock on the temporary file of an entry, which is waited for; ends with its process."""

    def __init__(self, path: Path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(self.fd)
            raise

    def valid(self) -> bool:
        """Whether the locked file is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(self.fd), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self.valid():
            self.path.unlink()
        fcntl.flock(self.fd, fcntl.LOCK_UN)  # closing is not enough if a process was forked meanwhile
        os.close(self.fd)


@functools.cache
def host() -> str:
    """Names the kernel whose locks exclude each other."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return xxhash.xxh3_64_hexdigest((platform.node() + boot).encode())


def sweep(path: Path, status: os.stat_result) -> bool:
    """Remove a temporary file unless somebody is writing it; says whether it was removed."""
    if not path.name.endswith(f".{host()}{TEMPORARY}"):
        stale = time.time() - status.st_mtime > STALE_SECONDS
        if stale:
            path.unlink(missing_ok=True)
        return stale
    with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


def pack_header(header: dict) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % PAGE)
    return _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(text), xxhash.xxh3_64_intdigest(text)) + text


def read_header(file: BinaryIO, path: Path) -> tuple[dict, int]:
    """Header of an entry and the offset of its pixels; raises Damaged if the file is not whole."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise Damaged("ends within its header")
    magic, version, length, digest = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise Damaged("is not an entry of a frame cache")
    if version != FORMAT_VERSION:
        raise Damaged(f"has format version {version}, and this program reads {FORMAT_VERSION}")
    text = file.read(min(length, size))
    if len(text) < length or xxhash.xxh3_64_intdigest(text) != digest:
        raise Damaged("has a damaged header")
    header, offset = json.loads(text), _PREFIX.size + length
    if size != offset + math.prod(header["shape"]):
        raise Damaged(f"is {size} bytes long instead of {offset + math.prod(header['shape'])}")
    if path.name != header["key"] + ENTRY:
        raise Damaged(f"is the entry {header['key']} under another name")
    return header, offset


def map_entry(file: BinaryIO, path: Path) -> tuple[np.memmap, dict]:
    header, offset = read_header(file, path)
    return np.memmap(file, np.uint8, "r", offset, tuple(header["shape"])), header


def check(mapped: tuple[np.memmap, dict]) -> None:
    frames, header = mapped
    if xxhash.xxh3_128_hexdigest(frames.data) != header["checksum"]:
        raise Damaged("has damaged pixels")


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def touch(file: BinaryIO) -> None:
    try:
        os.utime(file.fileno())
    except OSError as error:
        if error.errno not in REMEDIES:  # a cache that cannot be written is not evicted from here either
            raise


def read_record(record: Path) -> str | None:
    try:
        text = record.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    return text if len(text) == 32 and set(text) <= set(string.hexdigits) else None


def write_record(record: Path, content: str) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(content)
    except OSError as error:
        if error.errno not in REMEDIES:  # without a record the next process hashes the video again
            raise
