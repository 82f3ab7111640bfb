"""A detector and a segmenter that know the colours of synthetic clips, in place of models that know the world.

They see nothing but pixels of decoded frames, as real ones do, and are named on the command line like one's own.
"""

import functools
from collections.abc import Sequence

import numpy as np

from verl_stvg.data_builders.objects.detector import Detection
from verl_stvg.data_builders.objects.track import encode
from verl_stvg.data_builders.sets.synthetic import COLORS
from verl_stvg.video.markers import RLE, rle_area

NEAR = 60  # in any channel, after lossy compression
LEAST = 400  # pixels


def colours_of(frame: np.ndarray) -> np.ndarray:
    """The colour of each pixel, (H, W): the nearest of `COLORS` by index, or -1 if none is near."""
    red, green, blue = np.moveaxis(frame >> 3, 2, 0).astype(np.intp)
    return _table()[(red * 32 + green) * 32 + blue]


@functools.cache
def _table() -> np.ndarray:
    """The same for all colours, each channel in steps of 8."""
    steps = np.arange(32) * 8 + 4
    every = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    away = [np.abs(every - np.array(colour)).max(axis=1) for colour in COLORS.values()]
    return np.where(np.min(away, axis=0) < NEAR, np.argmin(away, axis=0), -1).astype(np.int8)


class ColourDetector:
    """Every colour that covers enough pixels is an object, named after it."""

    name = "colours"

    def detect(self, frame: np.ndarray) -> list[Detection]:
        found, shown = [], colours_of(frame)
        for k, label in enumerate(COLORS):
            mask = shown == k
            if mask.sum() >= LEAST:
                ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                box = (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))
                found.append(Detection(box, label, min(1.0, mask.sum() / 10_000)))
        return sorted(found, key=lambda one: -one.score)


class ColourSegmenter:
    """The colour that fills a box best, followed through the video."""

    name = "colours"

    def segment(self, frame: np.ndarray, boxes: Sequence[tuple]) -> list[RLE]:
        shown, masks = colours_of(frame), []
        for x1, y1, x2, y2 in boxes:
            inside = np.full(shown.shape, -1)
            part = slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2)))
            inside[part] = shown[part]
            masks.append(encode(inside == np.bincount(inside[inside >= 0], minlength=1).argmax()))
        return masks

    def start(self, height: int, width: int, num_frames: int) -> "ColourTracker":
        return ColourTracker()


class ColourTracker:
    def __init__(self):
        self.followed: dict[int, int] = {}

    def step(self, frame: np.ndarray) -> dict[int, RLE]:
        self.shown = colours_of(frame)
        masks = {number: encode(self.shown == k) for number, k in self.followed.items()}
        return {number: mask for number, mask in masks.items() if rle_area(mask) >= LEAST}

    def add(self, object_id: int, mask: RLE) -> RLE:
        areas = {k: (self.shown == k).sum() for k in range(len(COLORS))}
        self.followed[object_id] = min(areas, key=lambda k: abs(areas[k] - rle_area(mask)))
        return mask

    def remove(self, object_id: int) -> None:
        self.followed.pop(object_id, None)


def detector(**settings) -> ColourDetector:
    return ColourDetector()


def segmenter(device: str | None = None) -> ColourSegmenter:
    return ColourSegmenter()
