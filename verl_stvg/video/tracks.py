"""Track files: one file per video with the objects of `verl_stvg.video.tracked`, and where it lies.

`read_folder` and `write_folder` speak STVG-R1's format, so that its files can be used here and ours there.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from verl_stvg.base import nesting
from verl_stvg.base.lock import replacing
from verl_stvg.video import rle
from verl_stvg.video.identity import ENDINGS
from verl_stvg.video.rle import RLE, MaskError
from verl_stvg.video.tracked import AGAIN, FORMAT_VERSION, MasksByFrame, Track, TrackError, Tracks

ENDING = ".tracks.json.gz"
MAX_BYTES, MAX_VALUES = 2**29, 2**22
"""Of the JSON of a track file: bytes, and values, which are two for each mask."""
_FREE, _RATIO = 2**24, 400  # a file may unpack to 16 MiB, and 400 bytes more for each of its own; moving boxes have 50
_SOUND: set[bytes] = set()
"""Digests of files whose masks were checked in this process: scoring reads a file more than once."""


def track_name(video: str) -> str:
    """Name of a video's track file, relative to the folder of track files, as the video's to the root of videos.

    The video's ending stays in it: ``a/b.mp4`` and ``a/b.mkv`` have a file each.
    """
    return video + ENDING


def find_track(folder: Path, video: str, root: Path | None = None) -> Path:
    """Where the track file of a video is, or is to be written.

    That is `track_name`. Older versions left the video's ending out of the name; such a file is taken where there is no
    other and it can only be this video's: no video of the same stem lies beside it or has a track file of its own.

    Args:
        folder: of the track files.
        video: relative to the root of the videos.
        root: of the videos; None where it is not known, which leaves out the look at the videos beside.
    """
    path, name = folder / track_name(video), PurePosixPath(video)
    stem = str(name.with_suffix(""))
    old = folder / (stem + ENDING)
    if path.is_file() or name.suffix.lower() not in ENDINGS or not old.is_file():
        return path
    others = {stem + ending for lower in ENDINGS for ending in (lower, lower.upper())} - {video}
    shared = any((folder / track_name(other)).is_file() for other in others) or (
        root is not None and any((root / other).is_file() for other in (stem, *others))
    )
    return path if shared else old


def save(tracks: Tracks, path: Path) -> None:
    """Write tracks to a file (usually ``<video>.tracks.json.gz``); the same tracks give the same bytes.

    Raises:
        TrackError: more than `load` reads.
    """
    record = {
        "format_version": tracks.version,
        "size": [tracks.height, tracks.width],
        "num_frames": tracks.num_frames,
        "fps": tracks.fps,
        **({} if tracks.version < 2 else {"times": tracks.times, "end": tracks.end}),
        "made_by": dict(tracks.made_by),
        "objects": [
            {
                "id": track.object_id,
                "label": track.label,
                "score": track.score,
                "frames": list(track.masks),
                "counts": [_text(mask) for mask in track.masks.values()],
            }
            for track in tracks.tracks
        ],
    }
    text = json.dumps(record, separators=(",", ":")).encode()
    if len(text) > MAX_BYTES or text.count(b",") > MAX_VALUES:
        raise TrackError(f"{path}: too many masks for one file; cut the video, or look for fewer classes")
    with replacing(path) as partial, partial.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        file.write(text)


def load(path: Path) -> Tracks:
    """Read tracks from a file.

    Raises:
        TrackError: no such file, a damaged one, one of another version, or tracks that contradict themselves.
    """
    if not path.is_file():
        raise TrackError(f"{path}: no such file; track the video first")
    try:
        packed = path.read_bytes()
        text, digest = _unpacked(packed), hashlib.blake2b(packed, digest_size=16).digest()
        if digest not in _SOUND and text.count(b",") > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES} values")
        record = json.loads(text)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise TrackError(f"{path}: damaged ({error}); {AGAIN}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if type(version) is not int or version not in range(1, FORMAT_VERSION + 1):
        raise TrackError(
            f"{path}: track file of version {version!r:.40}, this program reads 1 to {FORMAT_VERSION}; {AGAIN}"
        )
    try:
        tracks = _tracks(record, version, digest in _SOUND)
    except (TrackError, MaskError) as error:
        raise TrackError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise TrackError(f"{path}: not a track file ({error!r:.200}); {AGAIN}") from error
    _SOUND.add(digest)
    return tracks


def _unpacked(packed: bytes) -> bytes:
    """What a gzip file holds.

    Raises:
        ValueError: cut off, or more than it may hold.
        zlib.error: damaged.
    """
    limit, parts, size = min(MAX_BYTES, _FREE + _RATIO * len(packed)), [], 0
    while packed:  # further parts, as `cat` makes them
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        parts.append(stream.decompress(packed, limit - size + 1))
        size += len(parts[-1])
        if size > limit:
            raise ValueError(f"it unpacks to more than {limit} bytes")
        if not stream.eof:
            raise ValueError("it is cut off")
        packed = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _tracks(record: dict[str, Any], version: int, checked: bool) -> Tracks:
    """Tracks of a file's record.

    Args:
        record: as JSON has it.
        version: of the file.
        checked: whether its masks were.

    Raises:
        TrackError: tracks that contradict themselves.
        MaskError: an impossible size.
        KeyError, TypeError, ValueError: it is no such record.
    """
    height, width = rle.size_of({"size": record["size"], "counts": ""})
    times, end, made_by = record.get("times"), record.get("end"), record["made_by"]
    _must(height * width > 0, "size", record["size"])
    _must(type(record["num_frames"]) is int and record["num_frames"] >= 0, "num_frames", record["num_frames"])
    _must(_is_number(record["fps"]) and record["fps"] > 0, "fps", record["fps"])
    _must(times is None or (isinstance(times, list) and all(map(_is_number, times))), "times", times)
    _must(end is None or _is_number(end), "end", end)
    _must(isinstance(made_by, dict) and nesting.is_shallow(made_by), "made_by", type(made_by))
    _must(isinstance(record["objects"], list), "objects", record["objects"])
    count, fps, times = record["num_frames"], record["fps"], None if times is None else tuple(times)
    objects = tuple(_track(item, height, width, checked) for item in record["objects"])
    return Tracks(height, width, count, fps, objects, made_by, times, end, version, checked=True)


def _track(one: dict[str, Any], height: int, width: int, checked: bool) -> Track:
    number, label, score, frames, counts = (one[key] for key in ("id", "label", "score", "frames", "counts"))
    _must(type(number) is int, "id", number)
    _must(label is None or isinstance(label, str), "label", label)
    _must(score is None or _is_number(score), "score", score)
    _must(isinstance(frames, list) and set(map(type, frames)) <= {int}, "frames", frames)
    _must(isinstance(counts, list) and len(counts) == len(frames) == len(set(frames)), "counts", counts)
    size = [height, width]
    masks = MasksByFrame(size, dict(zip(frames, counts, strict=True)))
    if not checked and (wrong := rle.flaw([{"size": size, "counts": each} for each in counts], height, width)):
        raise TrackError(f"object {number}, frame {frames[wrong[0]]}: {wrong[1]}")
    if set(map(type, counts)) - {str}:
        masks = {frame: rle.encoded(mask) for frame, mask in masks.items()}
    return Track(number, label, score, masks)


def _must(holds: bool, field_name: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{field_name}: {found!r:.60}")


def _is_number(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)


def write_folder(tracks: Tracks, folder: Path) -> None:
    """Write STVG-R1's ``mask_<frame>.json``, one for each frame, empty ones included."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {track.object_id: track.label for track in tracks.tracks}
    for frame in range(tracks.num_frames):
        objects = {
            str(object_id): {
                "rle": {"size": list(mask["size"]), "counts": _text(mask)},
                "class_name": labels[object_id],
                "box": None,
            }
            for object_id, mask in tracks.at(frame).items()
        }
        record = {"height": tracks.height, "width": tracks.width, "objects": objects}
        (folder / f"mask_{frame}.json").write_text(json.dumps(record), encoding="utf-8")


def read_folder(folder: Path, fps: float) -> Tracks:
    """Read STVG-R1's ``mask_<frame>.json``; missing files are frames without objects, empty masks are left out.

    Args:
        folder: of the files.
        fps: of the video, which the files do not say.

    Raises:
        TrackError: no such files, a damaged one, a malformed mask, or files of videos of different sizes.
    """
    files = sorted(_numbered(folder))
    if not files:
        raise TrackError(f"{folder}: holds no mask_<frame>.json")
    sizes, labels, masks = [], {}, {}
    for frame, path in files:
        try:
            record = nesting.loads(path.read_text(encoding="utf-8"))
            found = (record["height"], record["width"])
            objects = {int(number): (one.get("class_name"), one["rle"]) for number, one in record["objects"].items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise TrackError(f"{path}: not a mask file ({error!r:.200}); {AGAIN}") from error
        sizes.append(found)
        if found != sizes[0]:
            raise TrackError(f"{path}: size {found} in a folder of {sizes[0]}; do not mix videos in one folder")
        for number, (label, mask) in objects.items():
            try:
                mask = rle.encoded(mask)
            except MaskError as error:
                raise TrackError(f"{path}: object {number}: {error}") from error
            if rle.pixels(mask):
                labels[number] = label
                masks.setdefault(number, {})[frame] = mask
    tracks = tuple(Track(number, labels[number], None, masks[number]) for number in sorted(masks))
    height, width = sizes[0]
    return Tracks(height, width, files[-1][0] + 1, fps, tracks, {"importer": "STVG-R1 mask folder"})


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("mask_*.json"):
        number = path.stem.removeprefix("mask_")
        if not (number.isascii() and number.isdecimal()):
            raise TrackError(f"{path}: its name says no frame; remove it")
        yield int(number), path


def _text(mask: RLE) -> str | Sequence[int]:
    counts = mask["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
