"""Tracking objects: memory for a long video, beside what the SAM 2 package needs by itself, and time beside the models.

Memory is measured in a process of its own: its highest resident size, minus its size when the models are built. The
models are the real program with few and random weights; what it holds for a video (frames at 1024 pixels, memories of
64 channels at a sixteenth of that, masks at a quarter) has its real size. They do not attend to their memories, which
would take most of the time and say nothing about what is held. All objects begin in the middle, so that both
walks have all of them. What the package itself needs, a float tensor of all frames and every frame's memory of every
object, is computed.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import psutil
from pycocotools import mask as coco

from benchmarks import Options, Row
from benchmarks.cache import SOURCE_FPS
from benchmarks.markers import HEIGHT, WIDTH, scene
from verl_stvg.data_builders.objects.detector import Detection
from verl_stvg.data_builders.objects.frames import ArrayFrames
from verl_stvg.data_builders.objects.track import Options as TrackOptions
from verl_stvg.data_builders.objects.track import encode, merge, track
from verl_stvg.video.markers import RLE

FRAMES, OBJECTS, BORN = 300, 8, 150
SIDE = 1024
_SMALL = (
    "model.image_encoder.trunk.embed_dim=8",
    "model.image_encoder.trunk.stages=[1,1,2,1]",
    "model.image_encoder.trunk.global_att_blocks=[3]",
    "model.image_encoder.neck.d_model=64",
    "model.image_encoder.neck.position_encoding.num_pos_feats=64",
    "model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
    "model.memory_attention.d_model=64",
    "model.memory_attention.num_layers=1",
    "model.memory_attention.layer.d_model=64",
    "model.memory_attention.layer.dim_feedforward=64",
    "model.memory_attention.layer.self_attention.embedding_dim=64",
    "model.memory_attention.layer.cross_attention.embedding_dim=64",
    "+model.memory_encoder.in_dim=64",
    "+model.memory_encoder.mask_downsampler.embed_dim=64",
    "model.memory_encoder.fuser.layer.dim=64",
)


class Boxes:
    """Detector: the same boxes side by side, in one keyframe only."""

    name = "boxes"

    def __init__(self, keyframe: int, count: int = OBJECTS):
        self.left, self.count = keyframe, count

    def detect(self, frame: np.ndarray) -> list[Detection]:
        """Return boxes when the keyframe has come; each call is one."""
        self.left -= 1
        if self.left != -1:
            return []
        height, width = frame.shape[:2]
        step = width / self.count
        edges = [(k * step + 4, height / 4, (k + 1) * step - 4, height * 0.75) for k in range(self.count)]
        return [Detection(box, "person", 0.9) for box in edges]


def write_clip(path: Path, frames: int, seed: int) -> None:
    """Write a drifting picture of 1280x720."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=int(SOURCE_FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * k, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def track_in_this_process(path: str, keyframe: int) -> dict[str, float]:
    """Track a clip; megabytes above the size with the models built, and what came of it."""
    import torch

    from verl_stvg.data_builders.objects.segment import Sam2Segmenter

    torch.manual_seed(0)
    segmenter = Sam2Segmenter.build("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", overrides=_SMALL)
    segmenter.predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += 10.0  # sees objects everywhere
    segmenter.predictor.memory_attention.forward = lambda curr, **_: curr[0]
    segment = segmenter.segment

    def filled(frame: np.ndarray, boxes: list) -> list[RLE]:
        segment(frame, boxes)  # takes its memory, but random weights would make one object of several
        masks = np.zeros((len(boxes), *frame.shape[:2]), bool)
        for mask, box in zip(masks, boxes, strict=True):
            x1, y1, x2, y2 = (round(side) for side in box)
            mask[y1:y2, x1:x2] = True
        return [encode(mask) for mask in masks]

    segmenter.segment = filled
    before = psutil.Process().memory_info().rss
    tracks = track(path, Boxes(keyframe // TrackOptions().step), segmenter)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    masks = sum(len(one.masks) for one in tracks.tracks)
    return {"mb": (peak - before) / 1e6, "objects": len(tracks.tracks), "masks": masks, "frames": tracks.num_frames}


_CHILD = "import json, sys; from benchmarks import objects; " + (
    "print(json.dumps(objects.track_in_this_process(sys.argv[1], int(sys.argv[2]))))"
)


def memory(options: Options, frames: int = FRAMES, keyframe: int = BORN) -> Iterator[Row]:
    """Yield the highest number of megabytes beside the models, for a clip with all objects in one keyframe."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_clip(path, frames, options.seed)
        command = [sys.executable, "-c", _CHILD, str(path), str(keyframe)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(answer.splitlines()[-1])
    if found["objects"] != OBJECTS or found["frames"] != frames or found["masks"] < frames:
        raise RuntimeError(f"the clip has {OBJECTS} objects in {frames} frames, and what was tracked is {found}")
    pictures = frames * 3 * SIDE**2 * 4
    memories = frames * OBJECTS * (64 * (SIDE // 16) ** 2 * 2 + (SIDE // 4) ** 2 * 4)
    other = (pictures + memories) / 1e6
    name = f"MB beside the models, {frames} frames of {WIDTH}x{HEIGHT}, {OBJECTS} objects, vs sam2 by itself (computed)"
    yield Row(name, found["mb"], other, other / found["mb"], "<= 1,000", found["mb"] <= 1000)


class Still:
    """Segmenter without a model: masks of a scene, followed where they are."""

    name = "still"

    def __init__(self, masks: list[RLE]):
        self.masks, self.seen = masks, {}

    def segment(self, frame: np.ndarray, boxes: list) -> list[RLE]:
        """Return the scene."""
        return self.masks[: len(boxes)]

    def start(self, height: int, width: int, num_frames: int) -> "Still":
        """Return itself, as a tracker without objects."""
        self.seen = {}
        return self

    def step(self, frame: np.ndarray) -> dict[int, RLE]:
        """Return what was added."""
        return dict(self.seen)

    def add(self, object_id: int, mask: RLE) -> RLE:
        """Remember a mask."""
        self.seen[object_id] = mask
        return mask

    def remove(self, object_id: int) -> None:
        """Forget a mask."""
        del self.seen[object_id]


def rules(options: Options, frames: int = 90) -> Iterator[Row]:
    """Yield milliseconds per frame of all that is not reading, detecting and segmenting."""
    masks = list(scene(np.random.default_rng(options.seed)).values())
    source = ArrayFrames(np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8), SOURCE_FPS)
    for name, choice in (("ours", TrackOptions()), ("faithful", TrackOptions(faithful=True))):
        best = float("inf")
        for _ in range(3):
            begin = time.thread_time()
            tracks = track(source, Boxes(2, len(masks)), Still(masks), choice)
            best = min(best, time.thread_time() - begin)
        if len(tracks.tracks) != len(masks):
            raise RuntimeError(f"the scene has {len(masks)} objects, and {len(tracks.tracks)} were tracked")
        yield Row(
            f"ms per frame beside the models, {len(masks)} objects at {WIDTH}x{HEIGHT}, {name}", 1e3 * best / frames
        )


def _by_decoding(new: list[np.ndarray], old: dict[int, np.ndarray]) -> tuple[list[int], list[int]]:
    kept, removed = [], []
    for index, m in enumerate(new):
        scheduled, survives = [], True
        for number, e in old.items():
            common = np.logical_and(m, e).sum()
            if not common or number in removed:
                continue
            if common / np.logical_or(m, e).sum() >= 0.4:
                survives = False
            elif max(common / m.sum(), common / e.sum()) >= 0.6:
                survives = m.sum() > e.sum()
                scheduled += [number] * survives
            if not survives:
                break
        removed += scheduled
        kept += [index] * survives
    return kept, removed


def merging(options: Options) -> Iterator[Row]:
    """Yield keyframes per second of the rules that compare new masks with old ones, from runs and on arrays."""
    rng = np.random.default_rng(options.seed)
    old, fresh = scene(rng), scene(rng)
    moved = [encode(np.roll(_array(mask), 60, axis=1)) for mask in fresh.values()]
    arrays = [_array(mask) for mask in moved], {number: _array(mask) for number, mask in old.items()}
    best = [float("inf")] * 2
    for _ in range(10):
        for k, work in enumerate((lambda: merge(moved, old, mutual=False), lambda: _by_decoding(*arrays))):
            begin = time.thread_time()
            found = work()
            best[k] = min(best[k], time.thread_time() - begin)
            if k:
                kept, removed = found
            else:
                merged = found
        if (list(merged.kept), list(merged.removed)) != (kept, removed):
            raise RuntimeError("both ways must decide alike; one of them has changed")
    name = f"keyframes/s, {len(moved)} new and {len(old)} old masks compared from runs vs on arrays"
    yield Row(name, 1 / best[0], 1 / best[1], best[1] / best[0], ">= 10x", best[1] >= 10 * best[0])


def _array(mask: RLE) -> np.ndarray:
    return coco.decode(mask).astype(bool)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows: rules, merging, memory (minutes)."""
    for part in (rules, merging, memory):
        yield from part(options)
