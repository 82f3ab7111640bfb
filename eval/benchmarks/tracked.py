"""Items whose answers name tracked objects, and the track files that make a tube, or masks, of an answered ID."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from reward_fns.measures import set_f1
from verl_stvg.data_builders.objects.target import tube_of
from verl_stvg.eval.benchmarks.base import Box, Item, Prediction, Predictions
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.rle import RLE, AnyRLE
from verl_stvg.video.tracks import TrackError, Tracks, find_track, load

HELD_MASKS = 500_000
"""Masks of track files that are held at once, about 0.3 GB."""

Masks = Sequence[AnyRLE | None]
"""Encoded masks of an expression by frame."""


@dataclass
class Objects:
    """Objects of one video, their boxes made when they are asked for.

    Attributes:
        tracks: of the video.
    """

    tracks: Tracks
    _boxes: dict[int, dict[int, Box]] = field(default_factory=dict)

    @cached_property
    def num_masks(self) -> int:
        """Masks of all objects in all frames."""
        return sum(len(track.masks) for track in self.tracks.tracks)

    def of(self, object_id: int) -> dict[int, Box]:
        """Boxes of an object by frame; none if there is no such object."""
        if object_id not in self._boxes:
            track = next((one for one in self.tracks.tracks if one.object_id == object_id), None)
            self._boxes[object_id] = _boxes(track.masks) if track is not None else {}
        return self._boxes[object_id]

    def around(self, object_id: int) -> "_Around":
        """What `tube_of` needs to know of the video to follow an object."""
        return _Around(self, object_id)


@dataclass(frozen=True)
class _Around:
    """Boxes of a frame: the object's own where it is seen, else those of all others, which a repair chooses from."""

    objects: Objects
    object_id: int

    def boxes(self, frame: int) -> dict[int, Box]:
        own = self.objects.of(self.object_id)
        return {self.object_id: own[frame]} if frame in own else _boxes(self.objects.tracks.at(frame))


def _boxes(masks: Mapping[int, RLE]) -> dict[int, Box]:
    """Boxes xyxy of masks that have a pixel, as `Tracks.boxes` gives them, many at a time."""
    if not masks:
        return {}
    sides = coco.toBbox(list(masks.values()))
    sides[:, 2:] += sides[:, :2]
    return {key: (x1, y1, x2, y2) for key, (x1, y1, x2, y2) in zip(masks, sides.tolist(), strict=True) if x2 > x1}


def tubes_of(
    objects: Objects, object_id: int, span: tuple[int, int], repair: bool = True
) -> tuple[Mapping[int, Box], ...]:
    """Boxes of an object in frames of the video, as they are and if wanted repaired.

    Args:
        objects: of the video.
        object_id: as answered; there need not be such an object.
        span: first and last frame, which may lie outside of the video.
        repair: also the boxes that `tube_of` repairs.
    """
    first, last = max(span[0], 0), min(span[1], objects.tracks.num_frames - 1)
    own = objects.of(object_id)
    plain = {frame: own[frame] for frame in range(first, last + 1) if frame in own}
    if not repair:
        return (plain,)
    if len(plain) == max(0, last - first + 1):
        return plain, plain
    return plain, tube_of(objects.around(object_id), object_id, first, last, repair=True)


@dataclass
class Library:
    """Track files of a benchmark's videos. Scores are made in several passes over the rows, so those that were asked
    for last are held, as many as have `HELD_MASKS` masks together.

    Attributes:
        folder: of the track files; None takes those that the rows name.
    """

    folder: Path | None = None
    _held: dict[Path, Objects] = field(default_factory=dict)
    _masks: int = 0

    def knows(self, item: Item) -> bool:
        """Whether an item has a track file to look for."""
        return self.path(item) is not None

    def path(self, item: Item) -> Path | None:
        """Where an item's track file should be."""
        return find_track(self.folder, item.video) if self.folder is not None else item.tracks

    def objects(self, item: Item) -> Objects:
        """Objects of an item's video.

        Tracks have to fit what the row says of its file: size, number of frames and when they appear. Nothing is asked
        about the content, so that tracks of a copy serve, if its pictures are as large and as many.

        Raises:
            ValueError: there is no such file, or it cannot be read, or is of another video; the message names the row.
        """
        path = self.path(item)
        if path is None:
            raise ValueError(f"row {item.uid}: names no track file; give the folder of track files with --tracks")
        objects = self._held.pop(path, None)
        if objects is None:
            try:
                objects = Objects(load(path))
            except ValueError as error:
                raise ValueError(f"row {item.uid}: {error}") from error
            self._masks += objects.num_masks
        self._held[path] = objects
        while len(self._held) > 1 and self._masks > HELD_MASKS:
            self._masks -= self._held.pop(next(iter(self._held))).num_masks
        tracks = objects.tracks
        if item.size is not None and (tracks.width, tracks.height) != item.size:
            raise ValueError(
                f"row {item.uid}: {path} is of a video of {tracks.width}x{tracks.height}, the row's has "
                f"{item.size[0]}x{item.size[1]}; give the folder of the row's videos with --tracks"
            )
        if item.num_frames and item.size and item.fps:
            unknown = item.times is None and item.file_end is not None  # rows whose frames have no numbers leave it out
            times, end = (tracks.times, tracks.end) if unknown else (item.times, item.file_end)
            try:
                tracks.check(VideoInfo(item.num_frames, item.fps, *item.size, times, end))
            except TrackError as error:
                raise ValueError(
                    f"row {item.uid}: {path}: {error}, or, if the row is older than the video or this program, build "
                    "the rows again"
                ) from error
        return objects


@dataclass(frozen=True)
class Sources:
    """What measures need besides items and answers.

    Attributes:
        library: of track files.
        texts: replies by item; None for what is no text.
        masks: annotated masks of MeViS, by uid; None if they are not given.
        scripts: of papers that tubes are scored with as well, by name.
        stored: texts that files of lmms-eval hold, by item; see `temporal.variants`.
    """

    library: Library = field(default_factory=Library)
    texts: Sequence[str | None] = ()
    masks: Mapping[str, Masks] | None = None
    scripts: Mapping[str, Callable] = field(default_factory=dict)
    stored: Sequence[str | None] | None = None


@dataclass(frozen=True)
class Tracked(Item):
    """A row that asks for tracked objects.

    Attributes:
        object_id: true ID; None if it is not known.
        object_ids: true IDs, where several may be meant.
    """

    object_id: int | None = None
    object_ids: tuple[int, ...] = ()

    @classmethod
    def own(cls, truth: Mapping[str, Any]) -> tuple:
        return truth.get("object_id"), tuple(truth.get("object_ids") or ())

    @property
    def true_ids(self) -> tuple[int, ...]:
        return self.object_ids or (() if self.object_id is None else (self.object_id,))

    @property
    def truth(self) -> dict[str, Any]:
        several = {"object_ids": list(self.object_ids)} if self.object_ids else {}
        return super().truth | {"object_id": self.object_id} | several

    def wrong(self, said: Prediction, values: Mapping[str, float]) -> list[str]:
        right = values.get("ID accuracy", values.get("ID F1", 1.0))
        return [*(["id"] if said.object_ids and right < 1 else []), *super().wrong(said, values)]

    @classmethod
    def notes(cls, items: Sequence[Item], told: dict[str, int]) -> list[str]:
        unknown = sum(not item.true_ids for item in items)
        if unknown in (0, len(items)):
            return []
        told["no_true_id"] = unknown
        return [f"{unknown:,} rows have no true ID, because no tracked object met their tube; they count as 0."]


def identity(items: Sequence[Tracked], said: Predictions) -> np.ndarray:
    """Whether the answered ID is the true one, (N,), or the F1 of several."""
    pairs = zip(items, said, strict=True)
    return np.array([set_f1(one.object_ids, item.true_ids) if one is not None else 0.0 for item, one in pairs])
