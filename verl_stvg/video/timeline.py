"""The one answer to what a video file holds, for rows, plans, decoders, tracks and scores alike.

It comes from a walk over the file's packets (`verl_stvg.video.packets`), and is remembered in the process and in the
user's cache folder, ``verl_stvg/timelines``, under the file's identity. What lies there may be deleted.
"""

import json
import logging
import os
import time
import zlib
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xxhash

from verl_stvg.base.lock import replacing
from verl_stvg.video.content import Opened
from verl_stvg.video.film import Timeline, Turn, VideoError, VideoInfo
from verl_stvg.video.identity import identity
from verl_stvg.video.packets import Begins, nothing_begins, walk

_FORMAT = 1  # of the kept files; raise it when timelines of the same bytes would differ
_SETTLED = 2.0  # seconds: a file changed later than that may change again within one tick of its time stamps
_HELD = 64  # timelines that a process remembers

logger = logging.getLogger(__name__)


def probe(path: str | Path, begins: Begins = nothing_begins, file: Opened | None = None) -> VideoInfo:
    """What a video is to whoever watches it, and proof that a picture decodes.

    Args:
        path: of the video.
        begins: called before pictures are decoded, which few files need.
        file: of that path if it is open already; it stays open.

    Raises:
        TimelessVideo: its times cannot be had.
        VideoError: missing, unreadable or empty file; one that is cut off.
    """
    line = timeline(path, begins, file)
    if line.promised is not None:
        raise VideoError(
            f"{path}: decodes up to {line.info.duration:.3f} s only, and its index says {line.promised:.3f} s; it is "
            "truncated, download or encode it again"
        )
    return line.info


def timeline(path: str | Path, begins: Begins = nothing_begins, file: Opened | None = None) -> Timeline:
    """The timeline of a file: from memory, from the user's cache folder, or from a walk over its packets.

    Args:
        path: of the file.
        begins: see `verl_stvg.video.packets.walk`; not called where the timeline is known.
        file: of that path if it is open already; it stays open.

    Raises:
        VideoError: see `probe`.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")
    version = identity(path)
    key = (os.path.realpath(path), *version)
    if (found := _known.get(key)) is not None:  # in one step: threads share what is remembered
        return found
    kept = _folder() / f"{xxhash.xxh3_128_hexdigest(json.dumps(key).encode())}.timeline"
    found = _read(kept)
    if found is None:
        found = walk(path, begins, file)
        if time.time() - max(version[1], version[2]) / 1e9 > _SETTLED and identity(path) == version:
            _write(kept, found)
    _known[key] = found
    if len(_known) > _HELD:
        _known.popitem(last=False)
    return found


_known: OrderedDict[tuple, Timeline] = OrderedDict()


# --- kept on disk: a line of JSON, then the packets -------------------------------------------------------------------


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "verl_stvg", "timelines")


def _write(path: Path, line: Timeline) -> None:
    times = np.asarray(line.info.times or (), np.float64)
    flags = line.shown.astype(np.uint8) | line.keys.astype(np.uint8) << 1
    raw = np.diff(line.stamps, prepend=0).tobytes() + flags.tobytes() + times.tobytes()
    head = {
        "format": _FORMAT,
        "packets": len(flags),
        "times": len(times),
        "info": asdict(line.info) | {"times": None},
        "promised": line.promised,
        "as_decoded": line.as_decoded,
        "stream": line.stream,
        "stored": line.stored,
        "turn": asdict(line.turn),
    }
    data = json.dumps(head).encode() + b"\n" + zlib.compress(raw, 1)
    try:
        with replacing(path, synced=False) as partial:
            partial.write_bytes(xxhash.xxh3_64_hexdigest(data).encode() + data)
    except OSError as error:  # whatever is wrong with that folder, the video is not: the next process walks again
        logger.debug("%s cannot be kept: %s", path, error)


def _read(path: Path) -> Timeline | None:
    """What `_write` wrote; None if there is nothing, or something else."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, data = data[:16], data[16:]
    if digest != xxhash.xxh3_64_hexdigest(data).encode():
        return None
    head, _, data = data.partition(b"\n")
    head, raw = json.loads(head), zlib.decompress(data)
    if head["format"] != _FORMAT:
        return None
    count = head["packets"]
    stamps = np.cumsum(np.frombuffer(raw, np.int64, count))
    flags = np.frombuffer(raw, np.uint8, count, 8 * count)
    times = tuple(np.frombuffer(raw, np.float64, head["times"], 9 * count).tolist()) or None
    info = VideoInfo.of(head["info"] | {"times": times})
    turn, stored = Turn(**head["turn"]), tuple(head["stored"])
    rest = {name: head[name] for name in ("promised", "as_decoded")}
    return Timeline(info, head["stream"], stored, turn, stamps, (flags & 1) > 0, (flags & 2) > 0, **rest)
