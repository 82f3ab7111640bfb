"""Numbered objects of a video, with a mask for each frame they are seen in.

A mask is kept per object, as COCO run lengths, so that objects may overlap; STVG-R1 paints all of them into one map of
labels per frame, where a later object cuts pieces out of an earlier one.

Frames are the pictures of the file in the order in which they are shown: frame k is the k-th of them, whenever that is.
Track files of version 1 counted differently: their frame k was the picture on show at ``k / fps``. At a constant rate
that is the same; `Tracks.check` refuses them for other videos.
"""

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from verl_stvg.video import rle
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.markers import rle_boxes
from verl_stvg.video.rle import RLE, MaskError

FORMAT_VERSION = 2
MAX_FRAMES = 10**7
"""Most frames of a video: 46 hours at 60 frames per second."""
_SLACK = 2e-3  # seconds by which times of one picture may differ: containers round them to thousandths
AGAIN = "track the video again"


class TrackError(ValueError):
    """A track file that cannot be read, or tracks that contradict themselves; the message says which and what to do."""


class Video(Protocol):
    """What `Tracks.check` asks about a video, and frames being read say; `VideoInfo` says it, too."""

    num_frames: int
    width: int
    height: int
    clock: FrameClock


@dataclass(frozen=True)
class Track:
    """One object.

    Attributes:
        object_id: its number, from 1 on, never used twice in a video.
        label: class name of the detector; None if it has none.
        score: of the detection that it began with, 0 to 1; None if unknown.
        masks: by zero-based frame, ascending; only frames in which it is seen. `Tracks` compresses them.
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
        return max(self.masks)


class MasksByFrame(Mapping[int, RLE]):
    """Masks of one size by frame, made when they are asked for: a file has thousands, and few of them are looked at."""

    __slots__ = ("_size", "_counts")

    def __init__(self, size: list[int], counts: dict[int, str]):
        self._size, self._counts = size, counts

    def __getitem__(self, frame: int) -> RLE:
        return {"size": self._size, "counts": self._counts[frame]}

    def __contains__(self, frame: object) -> bool:
        return frame in self._counts

    def __iter__(self) -> Iterator[int]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return repr(dict(self))


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
        times: (num_frames,) seconds at which the frames appear, ascending; None: at a constant rate, or not known.
        end: seconds at which the last frame goes; None with `times`.
        version: of the file that they were read from; it says what a frame number means.
        checked: whether the run lengths of all masks are known to be right.

    Raises:
        TrackError: an ID twice or below 1, a frame outside of the video, a mask of another size, malformed or without
            pixels, more than `MAX_FRAMES` frames, times that are not one for each frame or not ascending.
    """

    height: int
    width: int
    num_frames: int
    fps: float
    tracks: tuple[Track, ...] = ()
    made_by: Mapping[str, object] = field(default_factory=dict)
    times: tuple[float, ...] | None = None
    end: float | None = None
    version: int = FORMAT_VERSION
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool):
        if self.num_frames > MAX_FRAMES:
            raise TrackError(f"tracks of {self.num_frames} frames, more than {MAX_FRAMES}; cut the video")
        if self.times is not None:
            bounds = self.times if self.end is None else (*self.times, self.end)
            if len(self.times) != self.num_frames or not all(a <= b for a, b in pairwise(bounds)):
                raise TrackError(
                    f"{len(self.times)} times of {self.num_frames} frames, or times that do not ascend; "
                    "track the video again"
                )
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
        if not checked:
            object.__setattr__(self, "tracks", tuple(map(self._with_masks_checked, self.tracks)))

    def _with_masks_checked(self, track: Track) -> Track:
        where = f"object {track.object_id}, frame"
        for frame, mask in track.masks.items():
            try:
                height, width = rle.size_of(mask)
            except MaskError as error:
                raise TrackError(f"{where} {frame}: {error}") from error
            if (height, width) != (self.height, self.width):
                raise TrackError(
                    f"{where} {frame}: a mask of {width}x{height} in a video of {self.width}x{self.height}; {AGAIN}"
                )
        if wrong := rle.flaw(list(track.masks.values()), self.height, self.width):
            raise TrackError(f"{where} {list(track.masks)[wrong[0]]}: {wrong[1]}")
        if all(isinstance(mask["counts"], str | bytes) for mask in track.masks.values()):
            return track
        return replace(track, masks={frame: rle.encoded(mask) for frame, mask in track.masks.items()})

    @cached_property
    def clock(self) -> FrameClock:
        """Frame numbers and seconds, as far as the tracks know them."""
        return FrameClock(self.num_frames, self.fps, self.times, self.end)

    @property
    def imported(self) -> bool:
        """Whether another program made them, of which nothing but the last frame with objects is known."""
        return "importer" in self.made_by

    def check(self, video: Video | VideoInfo) -> None:
        """Refuse tracks that are not about a video.

        Imported tracks may be shorter than the video, and their frame numbers are taken as those of its pictures.

        Raises:
            TrackError: another size, another number of frames, or frames at other times; the message says which.
        """
        if (self.width, self.height) != (video.width, video.height):
            turned = (self.height, self.width) == (video.width, video.height)
            raise TrackError(
                f"frames of {video.width}x{video.height}, and its track file is about a video of "
                f"{self.width}x{self.height}{', the picture before it was turned' if turned else ''}; track this video"
            )
        if self.num_frames > video.num_frames or (self.num_frames < video.num_frames and not self.imported):
            raise TrackError(
                f"the video has {video.num_frames} frames, and its tracks are of {self.num_frames}; track this video"
            )
        if self.imported:
            return
        clock, numbers = video.clock, np.arange(self.num_frames)
        if self.version < 2 and clock.times is not None:
            appear = np.array(clock.times) - clock.start - 0.5 / self.fps  # they allowed half a frame
            if (np.searchsorted(appear, numbers / self.fps, side="right") - 1 != numbers).any():
                raise TrackError(
                    "the rate of the video varies, and its tracks were made by an older version, on a constant grid of "
                    "times; track the video again"
                )
        elif self.times is not None:
            own = numbers / clock.fps if clock.times is None else np.array(clock.times)
            if (off := float(np.abs(own - self.times).max(initial=0))) > _SLACK:
                raise TrackError(
                    f"frames of the video appear up to {off:.3f} s before or after those that were tracked; "
                    "track this video"
                )

    def at(self, frame: int) -> dict[int, RLE]:
        """Masks of a frame by object ID, ascending."""
        return {track.object_id: track.masks[frame] for track in self.tracks if frame in track.masks}

    def boxes(self, frame: int) -> dict[int, tuple[int, int, int, int]]:
        """Boxes of a frame by object ID: xyxy, pixels, up to the far edge of the last pixel."""
        masks = self.at(frame)
        found = zip(masks, rle_boxes(list(masks.values())), strict=True)
        return {object_id: box for object_id, box in found if box is not None}
