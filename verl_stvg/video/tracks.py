"""What tracking a video gives: numbered objects with a mask for each frame they are seen in, as one file per video.

A mask is kept per object, as COCO run lengths, so that objects may overlap; STVG-R1 paints all of them into one map of
labels per frame, where a later object cuts pieces out of an earlier one. `read_folder` and `write_folder` speak its
format, so that its files can be used here and ours there.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from verl_stvg.video.markers import RLE, rle_area, rle_boxes

FORMAT_VERSION = 1
ENDING = ".tracks.json.gz"


class TrackError(ValueError):
    """A track file that cannot be read, or tracks that contradict themselves; the message says which and what to do."""


@dataclass(frozen=True)
class Track:
    """One object.

    Attributes:
        object_id: its number, from 1 on, never used twice in a video.
        label: class name of the detector; None if it has none.
        score: of the detection that it began with, 0 to 1; None if unknown.
        masks: by zero-based frame, ascending; only frames in which it is seen.
    """

    object_id: int
    label: str | None
    score: float | None
    masks: Mapping[int, RLE]

    @property
    def born(self) -> int:
        """First frame in which it is seen."""
        return next(iter(self.masks))

    @property
    def lost(self) -> int:
        """Last frame in which it is seen."""
        return next(reversed(self.masks))


@dataclass(frozen=True)
class Tracks:
    """All objects of a video.

    Attributes:
        height: of the video, pixels.
        width: of the video, pixels.
        num_frames: of the video.
        fps: of the video, frames per second.
        tracks: by ascending ID; objects that are seen in no frame are left out.
        made_by: how they were made, for the reader: models, versions, settings.

    Raises:
        TrackError: an ID twice or below 1, a frame outside of the video, a mask of another size or without pixels.
    """

    height: int
    width: int
    num_frames: int
    fps: float
    tracks: tuple[Track, ...] = ()
    made_by: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        ids = [track.object_id for track in self.tracks]
        if ids != sorted(set(ids)) or any(found < 1 for found in ids):
            raise TrackError(f"object IDs {ids} are not ascending from 1 on, each once; number the objects anew")
        for track in self.tracks:
            if not track.masks:
                raise TrackError(f"object {track.object_id} is seen in no frame; leave it out")
            frames = list(track.masks)
            if frames != sorted(frames) or not 0 <= frames[0] <= frames[-1] < self.num_frames:
                raise TrackError(
                    f"object {track.object_id}: frames {frames[0]} to {frames[-1]} are not ascending within its "
                    f"{self.num_frames}"
                )
            for frame, mask in track.masks.items():
                if tuple(mask["size"]) != (self.height, self.width):
                    raise TrackError(
                        f"object {track.object_id}, frame {frame}: a mask of {mask['size'][1]}x{mask['size'][0]} in a "
                        f"video of {self.width}x{self.height}; track the video again"
                    )

    def at(self, frame: int) -> dict[int, RLE]:
        """Masks of a frame by object ID, ascending."""
        return {track.object_id: track.masks[frame] for track in self.tracks if frame in track.masks}

    def boxes(self, frame: int) -> dict[int, tuple[int, int, int, int]]:
        """Boxes of a frame by object ID: xyxy, pixels, up to the far edge of the last pixel."""
        masks = self.at(frame)
        found = zip(masks, rle_boxes(list(masks.values())), strict=True)
        return {object_id: box for object_id, box in found if box is not None}


def track_name(video: str) -> str:
    """Name of a video's track file, relative to the folder of track files, as the video's to the root of videos."""
    return str(PurePosixPath(video).with_suffix("")) + ENDING


def save(tracks: Tracks, path: Path) -> None:
    """Write tracks to a file (usually ``<video>.tracks.json.gz``); the same tracks give the same bytes."""
    record = {
        "format_version": FORMAT_VERSION,
        "size": [tracks.height, tracks.width],
        "num_frames": tracks.num_frames,
        "fps": tracks.fps,
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        file.write(json.dumps(record, separators=(",", ":")).encode())
    temporary.rename(path)


def load(path: Path) -> Tracks:
    """Read tracks from a file.

    Raises:
        TrackError: no such file, a damaged one, one of another version, or tracks that contradict themselves.
    """
    if not path.is_file():
        raise TrackError(f"{path}: no such file; track the video first")
    try:
        record = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise TrackError(f"{path}: damaged ({error}); track the video again") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise TrackError(
            f"{path}: track file of version {version}, this program reads {FORMAT_VERSION}; track the video again"
        )
    size = record["size"]
    try:
        return Tracks(
            size[0],
            size[1],
            record["num_frames"],
            record["fps"],
            tuple(
                Track(
                    one["id"],
                    one["label"],
                    one["score"],
                    {
                        frame: {"size": size, "counts": counts}
                        for frame, counts in zip(one["frames"], one["counts"], strict=True)
                    },
                )
                for one in record["objects"]
            ),
            record["made_by"],
        )
    except TrackError as error:
        raise TrackError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise TrackError(f"{path}: not a track file ({error!r}); track the video again") from error


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
        TrackError: no such files, a damaged one, or files of videos of different sizes.
    """
    files = sorted(_numbered(folder))
    if not files:
        raise TrackError(f"{folder}: holds no mask_<frame>.json")
    size, labels, masks = None, {}, {}
    for frame, path in files:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found = (record["height"], record["width"])
            objects = {int(number): one for number, one in record["objects"].items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise TrackError(f"{path}: not a mask file ({error!r}); track the video again") from error
        if size not in (None, found):
            raise TrackError(f"{path}: size {found} in a folder of {size}; do not mix videos in one folder")
        size = found
        for number, one in objects.items():
            if rle_area(one["rle"]):
                labels[number] = one.get("class_name")
                masks.setdefault(number, {})[frame] = {"size": one["rle"]["size"], "counts": one["rle"]["counts"]}
    tracks = tuple(Track(number, labels[number], None, masks[number]) for number in sorted(masks))
    return Tracks(*size, files[-1][0] + 1, fps, tracks, {"importer": "STVG-R1 mask folder"})


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("mask_*.json"):
        number = path.stem.removeprefix("mask_")
        if not (number.isascii() and number.isdecimal()):
            raise TrackError(f"{path}: its name says no frame; remove it")
        yield int(number), path


def _text(mask: RLE) -> str:
    counts = mask["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
