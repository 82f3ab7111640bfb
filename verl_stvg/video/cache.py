"""Frames on disk: a video is decoded once per sampling plan, for every query, rollout, process, epoch and run.

An entry is one file, named by the hash of what its pixels depend on: the bytes of the video (not its path), the plan,
the decoder's policy and the version of this format. So nothing is ever out of date, and an entry never changes:

- It is decoded into a temporary file in its own folder, synced and renamed. A killed builder leaves a temporary file,
  which the next builder of the same entry takes over and `FrameCache.gc` sweeps; no reader ever sees it.
- Builders on one host wait for each other on a lock of the temporary file, so each entry is decoded once. Hosts do not
  wait for each other: at worst both decode, and the later rename replaces equal bytes.
- Space is allocated before decoding, because a memory map that meets a full disk kills its process with SIGBUS.
- Readers map the file. An evicted entry lives on for those who have it open (on a network folder only for readers on
  the host that evicts, see docs/cache.md).

Header and size are checked whenever an entry is opened, the checksum of its pixels when a process opens it for the
first time: a millisecond for 16 MB, against several hundred for decoding, and it brings the pages in that the caller is
about to read.
"""

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from verl_stvg.video.cache_file import (
    ENTRY,
    FORMAT_VERSION,
    REMEDIES,
    TEMPORARY,
    Claim,
    Damaged,
    check,
    host,
    map_entry,
    pack_header,
    read_header,
    read_record,
    sweep,
    sync_folder,
    touch,
    write_record,
)
from verl_stvg.video.content import hash_file
from verl_stvg.video.film import VideoError
from verl_stvg.video.identity import identity
from verl_stvg.video.plan import SamplingPlan

logger = logging.getLogger(__name__)

DECODE_POLICY = "pyav-2"
"""Raise the number when the default decoder would give other pixels for the same video and plan."""
TOUCH_SECONDS = 600.0
"""A hit marks its entry as used if the last mark is older: eviction needs no finer order, and disks no more writes."""
SMALL_BYTES = 2**20
"""A video up to this size is hashed at every call, which takes a tenth of a millisecond: its times are not asked."""
_SETTLED_SECONDS = 2.0  # a video changed later than that may change again within one tick of its time stamps
_SLACK = 64  # automatic eviction frees a 64th of the bound at least, so that not every new entry scans the folder


Decode = Callable[[str | Path, SamplingPlan, np.memmap], object]


class CacheError(ValueError):
    """The cache cannot take an entry; the message names the folder, the reason and the remedy."""


@dataclass(frozen=True)
class CacheStats:
    """What lies in a cache: entries, their bytes with headers, distinct videos, seconds since the epoch at which the
    least and the most recently used entry was used (None in an empty cache), and temporary files.
    """

    entries: int
    bytes: int
    videos: int
    oldest: float | None
    newest: float | None
    temp_files: int


@dataclass(frozen=True)
class Removed:
    """What `FrameCache.gc` removed: entries, their bytes, and temporary files that nobody was writing."""

    entries: int
    bytes: int
    temp_files: int


class FrameCache:
    """Frames of videos by content and plan, in a folder that threads, processes and hosts share.

    Args:
        folder: made with the first entry. A folder that cannot be written still serves what it holds.
        max_bytes: of all entries; the least recently used make room. Entries that are being decoded, and those that
            other processes added lately (up to a 64th of the bound each), come on top. None: unbounded.
        policy: names the decoder and its rules; part of every key, so that two decoders do not share entries.

    Attributes:
        hits: frames that were there.
        misses: frames that were not, or were damaged.
        decodes: entries this object built; a miss is no decode if another process built the entry in the meantime.
        bytes: of the pixels it decoded.
        seconds: spent decoding.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None, policy: str = DECODE_POLICY):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.policy = policy
        self.hits = self.misses = self.decodes = self.bytes = 0
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._contents: dict[str, str] = {}  # path and identity of a video file -> hash of its bytes
        self._checked: set[tuple[str, int]] = set()  # key and inode of entries whose checksum was right
        self._held = 0  # bytes of all entries, as far as this process knows
        self._unseen = math.inf  # bytes it added since it last looked; it has not looked yet

    def key(self, path: str | Path, plan: SamplingPlan) -> str:
        """Name of the entry: 32 hexadecimal digits, equal for equal bytes of the video wherever it lies.

        Reads the video only if it is small, or if no process has hashed it since it last changed.

        Raises:
            FileNotFoundError: no such video.
        """
        return self._key(self._content(path), plan)

    def get(self, path: str | Path, plan: SamplingPlan, decode: Decode) -> np.ndarray:
        """Frames of a plan, decoded by the first caller of all threads and processes and waited for by the others.

        Args:
            path: of the video.
            plan: which frames, and their size.
            decode: called as ``decode(path, plan, out)`` if they are not there; fills ``out``, a writable uint8 memory
                map (T, H, W, 3) of the temporary file. Another process can write to ``out.filename`` at
                ``out.offset`` instead. What it raises passes through and leaves nothing behind.

        Returns:
            uint8 array (T, H, W, 3), read-only, mapped from disk. Each array holds one file descriptor while it lives.

        Raises:
            FileNotFoundError: no such video.
            CacheError: the folder is full, or read-only and lacks these frames.
            VideoError: the video changed while it was decoded.
        """
        content = self._content(path)
        key = self._key(content, plan)
        frames = self.find(key)
        if frames is not None:
            return frames
        with self._explained(path):
            claim = self._claim(key)
        try:
            with contextlib.suppress(FileNotFoundError, Damaged):
                return self._open(key)  # built by another while this one waited
            return self._build(claim, key, content, path, plan, decode)
        finally:
            claim.release()

    def find(self, key: str) -> np.ndarray | None:
        """Frames of an entry by its key alone, or None if it is not there; a damaged one is logged and not served.

        Returns:
            uint8 array (T, H, W, 3), read-only, mapped from disk.
        """
        try:
            frames = self._open(key)
        except FileNotFoundError:
            frames = None
        except Damaged as damage:
            logger.warning("%s %s; it is not used and will be decoded again", self._path(key), damage)
            frames = None
        with self._lock:
            self.hits += frames is not None
            self.misses += frames is None
        return frames

    def stats(self) -> CacheStats:
        """Look through the folder; reads the header of every entry."""
        entries = self._files(ENTRY)
        used = [status.st_mtime for _, status in entries]
        videos = set()
        for path, _ in entries:
            with contextlib.suppress(FileNotFoundError, Damaged), path.open("rb") as file:
                videos.add(read_header(file, path)[0]["content"])
        return CacheStats(
            entries=len(entries),
            bytes=sum(status.st_size for _, status in entries),
            videos=len(videos),
            oldest=min(used, default=None),
            newest=max(used, default=None),
            temp_files=len(self._files(TEMPORARY)),
        )

    def verify(self, remove: bool = False, track: Callable[[list], Iterable] = iter) -> list[tuple[Path, str]]:
        """Read every entry in full.

        Args:
            remove: delete the damaged ones; they are decoded again when they are next asked for.
            track: wraps the list of entries, for a progress bar.

        Returns:
            path and reason of each entry that is damaged.
        """
        damaged = []
        for path, _ in track(self._files(ENTRY)):
            try:
                with path.open("rb") as file:
                    check(map_entry(file, path))
            except FileNotFoundError:  # evicted in the meantime
                continue
            except Damaged as damage:
                damaged.append((path, str(damage)))
                if remove:
                    path.unlink(missing_ok=True)
        return damaged

    def gc(self, max_bytes: int | None = None) -> Removed:
        """Remove temporary files that nobody is writing and, least recently used first, entries over a bound.

        Args:
            max_bytes: the bound; default: the cache's own.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        swept = sum(sweep(path, status) for path, status in self._files(TEMPORARY))
        entries = sorted(self._files(ENTRY), key=lambda entry: (entry[1].st_mtime_ns, entry[0].name))
        held = sum(status.st_size for _, status in entries)
        count = freed = 0
        if limit is not None:
            for path, status in entries:
                if held - freed <= limit:
                    break
                path.unlink(missing_ok=True)
                count += 1
                freed += status.st_size
        with self._lock:
            self._held, self._unseen = held - freed, 0
        return Removed(count, freed, swept)

    # --- names ---------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.folder / "entries" / key[:2] / (key + ENTRY)

    def _key(self, content: str, plan: SamplingPlan) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps([FORMAT_VERSION, self.policy, content, plan.identity]).encode())

    def _content(self, path: str | Path) -> str:
        """Hash of a video's bytes: from memory, from the index in the folder, or from the file."""
        real = os.path.realpath(path)
        size, modified, changed, _ = state = identity(real)
        if size <= SMALL_BYTES:
            return hash_file(real)
        known = "\n".join(map(str, (real, *state)))
        content = self._contents.get(known)
        if content is None:
            name = xxhash.xxh3_128_hexdigest(os.fsencode(known))
            record = self.folder / "videos" / name[:2] / name
            content = read_record(record)
            if content is None:
                content = hash_file(real)
                if time.time() - max(modified, changed) / 1e9 < _SETTLED_SECONDS or identity(real) != state:
                    return content
                write_record(record, content)
            self._contents[known] = content
        return content

    def _files(self, suffix: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob(f"entries/*/*{suffix}"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return found

    # --- reading -------------------------------------------------------------------------------------------------

    def _open(self, key: str) -> np.memmap:
        path = self._path(key)
        with path.open("rb") as file:
            mapped = map_entry(file, path)
            status = os.fstat(file.fileno())
            if (key, status.st_ino) not in self._checked:
                check(mapped)
                self._checked.add((key, status.st_ino))
            if time.time() - status.st_mtime > TOUCH_SECONDS:
                touch(file)
        return mapped[0]

    # --- writing -------------------------------------------------------------------------------------------------

    def _claim(self, key: str) -> "Claim":
        path = self._path(key).with_suffix(f".{host()}{TEMPORARY}")
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            claim = Claim(path)
            if claim.valid():
                return claim
            claim.release()  # its former holder renamed or removed the file that this one waited for

    def _build(
        self, claim: "Claim", key: str, content: str, path: str | Path, plan: SamplingPlan, decode: Decode
    ) -> np.memmap:
        shape = (plan.num_frames, plan.height, plan.width, 3)
        header = {
            "key": key,
            "shape": shape,
            "plan": plan.identity,
            "policy": self.policy,
            "source": os.fsdecode(os.path.abspath(path)),
            "content": content,
            "checksum": "0" * 32,
        }
        offset = len(pack_header(header))
        size = offset + math.prod(shape)
        with self._explained(path):
            self._make_room(size)
            os.ftruncate(claim.fd, 0)
            os.posix_fallocate(claim.fd, 0, size)
        out = np.memmap(claim.path, np.uint8, "r+", offset, shape)
        begin = time.perf_counter()
        decode(path, plan, out)
        seconds = time.perf_counter() - begin
        if self._content(path) != content:
            raise VideoError(f"{path}: changed while it was decoded; start again when it is written in full")
        header["checksum"] = xxhash.xxh3_128_hexdigest(out.data)
        with self._explained(path):
            out.flush()
            os.pwrite(claim.fd, pack_header(header), 0)
            os.fsync(claim.fd)
            with claim.path.open("rb") as file:  # opened first: once renamed, another process may evict it
                claim.path.rename(self._path(key))
                frames = map_entry(file, self._path(key))[0]
            sync_folder(claim.path.parent)
        self._checked.add((key, os.fstat(claim.fd).st_ino))
        with self._lock:
            self.decodes += 1
            self.bytes += out.nbytes
            self.seconds += seconds
            self._held += size
            self._unseen += size
        return frames

    def _make_room(self, size: int) -> None:
        if self.max_bytes is None:
            return
        if size > self.max_bytes:
            raise CacheError(f"{self.folder}: one entry takes {size} bytes, over max_bytes={self.max_bytes}; raise it")
        bound, slack = self.max_bytes - size, self.max_bytes // _SLACK
        if self._unseen > slack:
            self.gc(bound)
        elif self._held > bound:
            self.gc(max(0, bound - slack))

    @contextlib.contextmanager
    def _explained(self, path: str | Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            raise CacheError(
                f"{self.folder}: cannot take the frames of {path} ({error.strerror}); {REMEDIES[error.errno]}"
            ) from error
