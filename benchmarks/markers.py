"""Object IDs on frames: drawing beside the way of STVG-R1's code, and measures of masks from runs beside decoding them.

STVG-R1's way is written down here from its description: every mask of every frame is decoded to an array, its pixels
are looked up, the middle of their rows and the mean column on that row give the text's origin. It also draws on every
frame of the video and encodes the result, which is not counted here. Both sides must paint the same frame.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from benchmarks import Options, Row
from verl_stvg.video.markers import RLE, draw_ids, rle_area, rle_box, rle_boxes, rle_centre

HEIGHT, WIDTH = 720, 1280
OBJECTS = 5
FRAMES = 40  # of a clip of 20 s at 2 fps


def person(x: float, y: float, size: float, rng: np.random.Generator) -> RLE:
    """Return the mask of a standing figure, `size` pixels high, with the wavy outline that segmenters give."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    v = (rows - y) / size  # 0 at the hip; half the size up and down
    waves = np.interp(rows[:, :1], np.arange(0, HEIGHT + 12, 12), 0.005 * rng.standard_normal(HEIGHT // 12 + 1))
    u = (columns - x) / size + waves
    head = u**2 + (v + 0.43) ** 2 < 0.065**2
    torso = (np.abs(u) < 0.12 + 0.04 * v) & (v > -0.36) & (v <= 0.02)
    legs = (np.abs(np.abs(u) - 0.03 - 0.1 * v) < 0.045) & (v > 0.0) & (v < 0.5)
    arms = (np.abs(np.abs(u) - 0.15 - 0.1 * v) < 0.02) & (v > -0.34) & (v < 0.08)
    return coco.encode(np.asfortranarray(head | torso | legs | arms, dtype=np.uint8))


def scene(rng: np.random.Generator) -> dict[int, RLE]:
    """Return masks of one frame: five people of 300 to 500 pixels side by side."""
    return {
        k + 1: person(WIDTH * (k + 0.5) / OBJECTS, HEIGHT / 2 + rng.uniform(-60, 60), rng.uniform(300, 500), rng)
        for k in range(OBJECTS)
    }


def centre_by_decoding(rle: RLE) -> tuple[int, int]:
    """Return the centre as STVG-R1's code finds it."""
    rows, columns = np.where(coco.decode(rle))
    y = int((rows.min() + rows.max()) / 2)
    row = columns[rows == y]
    return int(row.mean()) if len(row) else int((columns.min() + columns.max()) / 2), y


def draw_by_decoding(frame: np.ndarray, objects: dict[int, RLE]) -> None:
    """Draw the IDs as STVG-R1's code does."""
    scale = (20 / 30) * (max(frame.shape[:2]) / 336)
    thickness, red = max(2, int(2 * scale)), (255, 0, 0)
    for number, rle in objects.items():
        origin = centre_by_decoding(rle)
        cv2.putText(frame, str(number), origin, cv2.FONT_HERSHEY_SIMPLEX, scale, red, thickness, cv2.LINE_AA)


def _each(function: Callable[[RLE], Any], rles: list[RLE]) -> list[Any]:
    return [function(rle) for rle in rles]


def _area_by_decoding(rle: RLE) -> int:
    return int(coco.decode(rle).sum())


def _box_by_decoding(rle: RLE) -> tuple[int, int, int, int]:
    mask = coco.decode(rle)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def rates(functions: Sequence[Callable[..., Any]], inputs: Sequence[tuple], rounds: int) -> list[float]:
    """Return how many inputs per second each function takes, in the best of interleaved rounds."""
    least = [math.inf] * len(functions)
    for _ in range(rounds):
        for k, function in enumerate(functions):
            begin = time.thread_time()
            for arguments in inputs:
                function(*arguments)
            least[k] = min(least[k], time.thread_time() - begin)
    return [len(inputs) / took for took in least]


def drawing(options: Options) -> Iterator[Row]:
    """Yield frames per second of drawing five IDs at 720p, in both styles."""
    rng = np.random.default_rng(options.seed)
    scenes = [scene(rng) for _ in range(FRAMES)]
    picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    ours, other = picture.copy(), picture.copy()
    for objects in scenes:
        draw_ids(ours, objects)
        draw_by_decoding(other, objects)
    if not np.array_equal(ours, other):
        raise RuntimeError("both ways must paint the same frames; one of them has changed")
    frames = [(picture, objects) for objects in scenes]
    rate, centred, decoding = rates((draw_ids, partial(draw_ids, style="centred"), draw_by_decoding), frames, 10)
    name = f"frames/s with {OBJECTS} IDs at {WIDTH}x{HEIGHT} vs masks decoded as STVG-R1 does"
    yield Row(name, rate, decoding, rate / decoding, ">= 2,000", rate >= 2000)
    yield Row("frames/s likewise, style centred", centred, decoding, centred / decoding)


def measuring(options: Options) -> Iterator[Row]:
    """Yield masks per second of centre, area and box from runs, beside decoding."""
    rng = np.random.default_rng(options.seed)
    scenes = [list(scene(rng).values()) for _ in range(FRAMES // OBJECTS)]
    single = [([rle],) for rles in scenes for rle in rles]
    for name, ours, other, inputs in (
        ("centre", partial(_each, rle_centre), partial(_each, centre_by_decoding), single),
        ("area", partial(_each, rle_area), partial(_each, _area_by_decoding), single),
        ("box", partial(_each, rle_box), partial(_each, _box_by_decoding), single),
        (f"boxes of {OBJECTS} masks at a time", rle_boxes, partial(_each, _box_by_decoding), [(r,) for r in scenes]),
    ):
        if any(ours(rles) != other(rles) for (rles,) in inputs):
            raise RuntimeError(f"both ways must give the same {name}; one of them has changed")
        rate, decoding = (len(inputs[0][0]) * rate for rate in rates((ours, other), inputs, 20))
        label = f"masks/s, {name} from runs vs decoding with pycocotools"
        yield Row(label, rate, decoding, rate / decoding, ">= 20x", rate >= 20 * decoding)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows: drawing, then centre, area and box."""
    for part in (drawing, measuring):
        yield from part(options)
