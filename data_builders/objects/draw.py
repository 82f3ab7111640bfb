"""Tracked objects to look at: a video with IDs as the model sees them, one with masks and boxes, a contact sheet."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from pycocotools import mask as coco

from data_builders.objects.frames import VideoFrames
from verl_stvg.video.markers import draw_ids
from verl_stvg.video.tracks import TrackError, Tracks

_BLOCK = 32  # frames that are held at once
_COLUMNS = 4


def render(video: Path, tracks: Tracks, out: Path, style: str = "stvg_r1") -> None:
    """Write an H.264 video of native size and rate with the IDs drawn on every frame (STVG-R1's marker video).

    Training needs none: rows that name a track file have the IDs drawn on the frames that are sampled.

    Args:
        video: the file.
        tracks: of its objects, those that are displayed.
        out: mp4 file.
        style: of `verl_stvg.video.markers`.

    Raises:
        TrackError: tracks of a video of another size or length.
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
        TrackError: tracks of a video of another size or length.
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
                mask=np.array([coco.decode(_encoded(found[number])) for number in ids], bool),
                class_id=np.array(ids),
                tracker_id=np.array(ids),
            )
            frame = boxes.annotate(masks.annotate(frame, detections), detections)
            texts = [f"{number} {names[number] or ''}".strip() for number in ids]
            frame = labels.annotate(frame, detections, texts)
        if index in wanted:
            kept[index] = frame.copy()
        return frame

    _write(video, tracks, out, annotated)
    if sheet is not None:
        _sheet(kept, tracks.fps, sheet)


def _write(video: Path, tracks: Tracks, out: Path, draw: Callable[[np.ndarray, int], np.ndarray]) -> None:
    frames = VideoFrames(video)
    if (frames.height, frames.width) != (tracks.height, tracks.width) or frames.num_frames != tracks.num_frames:
        raise TrackError(
            f"{video}: {frames.num_frames} frames of {frames.width}x{frames.height}, and its tracks are about "
            f"{tracks.num_frames} of {tracks.width}x{tracks.height}; track this video"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    even = frames.height % 2 == 0 and frames.width % 2 == 0
    temporary = out.with_name(f".{out.name}")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames.fps).limit_denominator(1001))
        stream.width, stream.height = frames.width, frames.height
        stream.pix_fmt = "yuv420p" if even else "yuv444p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        for index, frame in _frames(frames):
            image = np.ascontiguousarray(draw(frame, index))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    temporary.rename(out)


def _frames(frames: VideoFrames) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, frames.num_frames, _BLOCK):
        for k, frame in enumerate(frames.read(start, min(start + _BLOCK, frames.num_frames))):
            yield start + k, frame.copy()


def _sheet(pictures: dict[int, np.ndarray], fps: float, out: Path) -> None:
    """Pictures in rows, each with its time in seconds."""
    cells = []
    for index, picture in sorted(pictures.items()):
        scale = 320 / picture.shape[1]
        cell = cv2.resize(picture, (320, max(1, round(picture.shape[0] * scale))), interpolation=cv2.INTER_AREA)
        text = f"{index / fps:.1f} s"
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(cell, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
        cells.append(cell)
    blank = np.zeros_like(cells[0])
    cells += [blank] * (-len(cells) % _COLUMNS)
    rows = [np.hstack(cells[k : k + _COLUMNS]) for k in range(0, len(cells), _COLUMNS)]
    out.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".jpg", np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    out.write_bytes(data.tobytes())


def _encoded(mask) -> dict:
    counts = mask["counts"]
    return {"size": list(mask["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
