"""Tracked objects to look at: a video with IDs as the model sees them, one with masks and boxes, a contact sheet."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

from verl_stvg.base.lock import replacing
from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.data_builders.objects.write import write_video
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.markers import draw_ids
from verl_stvg.video.tracks import TrackError, Tracks

_BLOCK = 32  # frames that are held at once
_COLUMNS = 4


def render(video: Path, tracks: Tracks, out: Path, style: str = "stvg_r1") -> None:
    """Write an H.264 video of native size and times with the IDs drawn on every frame (STVG-R1's marker video).

    Training needs none: rows that name a track file have the IDs drawn on the frames that are sampled.

    Args:
        video: the file.
        tracks: of its objects, those that are displayed.
        out: mp4 file.
        style: of `verl_stvg.video.markers`.

    Raises:
        TrackError: tracks of another video, see `Tracks.check`.
    """

    def numbered(frame: np.ndarray, index: int) -> np.ndarray:
        draw_ids(frame, tracks.at(index), style)
        return frame

    _write(video, tracks, out, numbered)


def show(video: Path, tracks: Tracks, out: Path, sheet: Path | None = None, pictures: int = 12) -> None:
    """Write a video with masks, boxes and IDs of all objects in colours, and pictures of it on one sheet.

    Args:
        video: the file.
        tracks: of its objects.
        out: mp4 file.
        sheet: jpg file; None for none.
        pictures: on the sheet, evenly spread.

    Raises:
        TrackError: tracks of another video, see `Tracks.check`.
    """
    import supervision

    colours = supervision.ColorPalette.DEFAULT
    masks = supervision.MaskAnnotator(colours, opacity=0.45)
    boxes = supervision.BoxAnnotator(colours, thickness=2)
    labels = supervision.LabelAnnotator(colours, text_scale=0.5, text_padding=4, smart_position=True)
    names = {track.object_id: track.label for track in tracks.tracks}
    kept: dict[int, np.ndarray] = {}
    wanted = {round(k * (tracks.num_frames - 1) / max(1, pictures - 1)) for k in range(pictures)}

    def annotated(frame: np.ndarray, index: int) -> np.ndarray:
        found, corners = tracks.at(index), tracks.boxes(index)
        if found:
            ids = list(found)
            detections = supervision.Detections(
                xyxy=np.array([corners[number] for number in ids], float),
                mask=np.array([coco.decode(found[number]) for number in ids], bool),
                class_id=np.array(ids),
                tracker_id=np.array(ids),
            )
            frame = boxes.annotate(masks.annotate(frame, detections), detections)
            texts = [f"{number} {names[number] or ''}".strip() for number in ids]
            frame = labels.annotate(frame, detections, texts)
        if index in wanted:
            kept[index] = frame.copy()
        return frame

    clock = _write(video, tracks, out, annotated)
    if sheet is not None:
        _sheet([(clock.seconds(index), kept[index]) for index in sorted(kept)], sheet)


def _write(video: Path, tracks: Tracks, out: Path, draw: Callable[[np.ndarray, int], np.ndarray]) -> FrameClock:
    """Write what is drawn of each frame, at the frame's time; returns the video's clock."""
    frames = VideoFrames(video)
    try:
        tracks.check(frames)
    except TrackError as error:
        raise TrackError(f"{video}: {error}") from error
    clock = frames.clock
    drawn = (np.ascontiguousarray(draw(frame, index)) for index, frame in _frames(frames))
    write_video(out, drawn, (frames.width, frames.height), frames.fps, clock.times, clock.end)
    return clock


def _frames(frames: VideoFrames) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, frames.num_frames, _BLOCK):
        for k, frame in enumerate(frames.read(start, min(start + _BLOCK, frames.num_frames))):
            yield start + k, frame.copy()


def _sheet(pictures: Iterable[tuple[float, np.ndarray]], out: Path) -> None:
    """Pictures in rows, each with its time in seconds."""
    cells = []
    for time, picture in pictures:
        scale = 320 / picture.shape[1]
        cell = cv2.resize(picture, (320, max(1, round(picture.shape[0] * scale))), interpolation=cv2.INTER_AREA)
        text = f"{time:.1f} s"
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(cell, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
        cells.append(cell)
    blank = np.zeros_like(cells[0])
    cells += [blank] * (-len(cells) % _COLUMNS)
    rows = [np.hstack(cells[k : k + _COLUMNS]) for k in range(0, len(cells), _COLUMNS)]
    data = cv2.imencode(".jpg", np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    with replacing(out) as partial:
        partial.write_bytes(data.tobytes())
