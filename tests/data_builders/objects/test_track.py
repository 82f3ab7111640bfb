"""Tracking: its rules on hand-made masks, its walks with perfect and with arbitrary stand-ins, and the real models.

The real SAM 2, RT-DETR and Grounding DINO run here with random weights and few parameters. What such models find means
nothing, but shapes, numbering, memory and agreement with the packages' own ways do not depend on that.
"""

import sys
import types
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from verl_stvg.data_builders.objects import frames as sources
from verl_stvg.data_builders.objects.detector import Detection
from verl_stvg.data_builders.objects.frames import ArrayFrames, VideoFrames
from verl_stvg.data_builders.objects.track import Merged, Options, encode, fill, merge, paint, track
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.video import decode
from verl_stvg.video import tracks as files
from verl_stvg.video.decode import VideoError, read_frames
from verl_stvg.video.plan import SamplingPlan

ALL = Options(mode="all")
FAITHFUL = replace(ALL, faithful=True)


def span(start, stop, length=40):
    """A mask of one row."""
    mask = np.zeros((1, length), bool)
    mask[0, start:stop] = True
    return encode(mask)


# --- the rules --------------------------------------------------------------------------------------------------------

CASES = {
    "nothing exists": ([span(0, 5)], {}, (0,), ()),
    "no pixel in common": ([span(0, 5)], {1: span(5, 10)}, (0,), ()),
    "IoU of 0.4 is the same object": ([span(0, 4)], {1: span(0, 10)}, (), ()),
    "a larger mask with IoU of 0.4 is the same object too": ([span(0, 10)], {1: span(0, 4)}, (), ()),
    "a little common ground": ([span(0, 10)], {1: span(6, 16)}, (0,), ()),
    "half of the new one is not enough": ([span(0, 6)], {1: span(3, 30)}, (0,), ()),
    "0.6 of the new one, which is smaller": ([span(0, 5)], {1: span(2, 30)}, (), ()),
    "0.6 of the old one, which is smaller": ([span(2, 30)], {1: span(0, 5)}, (0,), (1,)),
    "half of the old one is not enough": ([span(3, 30)], {1: span(0, 6)}, (0,), ()),
    "several old ones inside": ([span(0, 30)], {1: span(0, 5), 2: span(10, 15), 4: span(33, 35)}, (0,), (1, 2)),
    "removed although the new one is dropped later": ([span(0, 30)], {1: span(0, 5), 2: span(0, 28)}, (), (1,)),
    "removed although the new one is inside of a third": (
        [span(0, 12)],
        {1: span(0, 4), 2: span(4, 40)},
        (),
        (1,),
    ),
    "dropped before it meets what it would remove": ([span(0, 30)], {2: span(0, 28), 1: span(0, 5)}, (), ()),
    "what one removed, the next does not meet": (
        [span(0, 30), span(0, 5)],
        {1: span(0, 5)},
        (0, 1),
        (1,),
    ),
    "new ones do not meet": ([span(0, 5), span(0, 5)], {}, (0, 1), ()),
    "a mask without pixels meets nothing": ([span(0, 0)], {1: span(0, 40)}, (0,), ()),
    "an object without pixels is met by nothing": ([span(0, 9)], {1: span(0, 0)}, (0,), ()),
}


@pytest.mark.parametrize("new, existing, kept, removed", CASES.values(), ids=CASES)
def test_merge_follows_the_pseudo_code(new, existing, kept, removed):
    assert merge(new, existing, mutual=False) == Merged(kept, removed)


def test_equal_areas_count_as_not_larger():
    assert merge([span(0, 10)], {1: span(4, 14)}, iou=0.9) == Merged((), ())


MUTUAL = {
    "twice the same": ([span(0, 5), span(0, 5)], {}, (0,), ()),
    "the later one is larger": ([span(0, 5), span(10, 15), span(0, 20)], {}, (2,), ()),
    "the later one is smaller": ([span(0, 20), span(0, 5)], {}, (0,), ()),
    "apart": ([span(0, 5), span(5, 10)], {7: span(10, 20)}, (0, 1), ()),
    "a new one goes although the later one is dropped": (
        [span(0, 4), span(0, 30)],
        {1: span(20, 25)},
        (1,),
        (1,),
    ),
    "old ones come first": ([span(0, 4), span(0, 30)], {1: span(0, 29)}, (), ()),
}


@pytest.mark.parametrize("new, existing, kept, removed", MUTUAL.values(), ids=MUTUAL)
def test_new_masks_are_held_against_each_other(new, existing, kept, removed):
    assert merge(new, existing) == Merged(kept, removed)


def test_a_new_mask_is_removed_even_if_its_remover_is_dropped():
    new = [span(0, 12), span(20, 24), span(0, 24)]  # the third removes the second, and is inside of object 9
    assert merge(new, {}, iou=0.9) == Merged((2,), ())
    assert merge([span(20, 24), span(0, 12), span(0, 12)], {}) == Merged((0, 1), ())
    thirds = [span(0, 3), span(1, 40), span(0, 12)]
    assert merge(thirds, {}, iou=0.9) == Merged((1,), ())


def literally(new, existing, iou, containment):
    """The pseudo code of the released algorithm, on arrays."""
    present, kept, removed = dict(existing), [], []
    for index, m in enumerate(new):
        survives, scheduled = True, []
        for number, e in present.items():
            common = int((m & e).sum())
            if common == 0:
                continue
            if common / int((m | e).sum()) >= iou:
                survives = False
                break
            if common / int(m.sum()) >= containment or common / int(e.sum()) >= containment:
                if m.sum() > e.sum():
                    scheduled.append(number)
                else:
                    survives = False
                    break
        for number in scheduled:
            del present[number]
            removed.append(number)
        if survives:
            kept.append(index)
    return Merged(tuple(kept), tuple(removed))


boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 10), st.integers(0, 10))


def filled(box, shape=(12, 13)):
    mask = np.zeros(shape, bool)
    mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    return mask


@settings(max_examples=150)
@given(
    new=st.lists(boxes, max_size=5), old=st.lists(boxes, max_size=6), limits=st.sampled_from([(0.4, 0.6), (0.9, 0.3)])
)
def test_merge_on_runs_agrees_with_arrays(new, old, limits):
    new, old = [filled(box) for box in new], {3 * k + 1: filled(box) for k, box in enumerate(old)}
    found = merge([encode(m) for m in new], {k: encode(m) for k, m in old.items()}, *limits, mutual=False)
    assert found == literally(new, old, *limits)


@settings(max_examples=100)
@given(below=st.lists(boxes, max_size=4), above=st.lists(boxes, max_size=4))
def test_paint_is_a_map_of_labels(below, above):
    labels = np.zeros((12, 13), np.uint16)
    for number, box in enumerate(below, 1):
        labels[filled(box)] = number
    first = {n: encode(labels == n) for n in range(1, len(below) + 1) if (labels == n).any()}
    assert paint({}, {n: encode(filled(box)) for n, box in enumerate(below, 1)}) == first
    for number, box in enumerate(above, 11):
        labels[filled(box)] = number
    found = paint(first, {n: encode(filled(box)) for n, box in enumerate(above, 11)})
    assert found == {int(n): encode(labels == n) for n in np.unique(labels) if n}


def test_fill_takes_only_what_is_free():
    assert fill(span(0, 10), []) == span(0, 10)
    assert fill(span(0, 10), [span(8, 30), span(10, 20), span(0, 0)]) == span(0, 8)
    assert fill(span(0, 10), [span(0, 10)]) is None  # the same object
    assert fill(span(0, 5), [span(2, 30)]) is None  # most of it is inside of another
    assert fill(span(0, 30), [span(0, 5)]) == span(5, 30)  # holds a smaller one, which stays
    assert fill(span(0, 10), [span(0, 5, 40), span(5, 10)], iou=0.9, containment=0.9) is None  # nothing left
    assert fill(span(0, 0), []) is None


# --- perfect stand-ins ------------------------------------------------------------------------------------------------


@dataclass
class World:
    """A clip of which everything is known: truth[name][frame] is the visible mask, or None."""

    frames: np.ndarray
    truth: dict
    fps: float = 12.0
    classes: dict | None = None

    def __post_init__(self):
        self.small = self.frames[:, ::3, ::3, 1:].astype(np.int16)

    def index(self, frame):
        """Which frame of the clip this is; encoding may have blurred it."""
        return int(np.abs(self.small - frame[::3, ::3, 1:]).mean(axis=(1, 2, 3)).argmin())

    def masks(self, frame):
        index = self.index(frame)
        return {name: masks[index] for name, masks in self.truth.items() if masks[index] is not None}


class PerfectDetector:
    name = "perfect"

    def __init__(self, world):
        self.world = world

    def detect(self, frame):
        found = []
        for k, (name, mask) in enumerate(self.world.masks(frame).items()):
            x, y, w, h = synthetic.mask_box(mask)
            label = (self.world.classes or {}).get(name, "person")
            found.append(Detection((x, y, x + w, y + h), label, 0.9 - 0.1 * k))
        return found


class PerfectSegmenter:
    """Knows every mask; `forgets`: loses an object for good as soon as it is hidden, as a tracker might."""

    name = "perfect"

    def __init__(self, world, forgets=False):
        self.world, self.forgets, self.removed, self.steps = world, forgets, [], 0

    def segment(self, frame, boxes):
        truth = {synthetic.mask_box(mask): mask for mask in self.world.masks(frame).values()}
        return [encode(truth[x, y, x2 - x, y2 - y]) for x, y, x2, y2 in boxes]

    def start(self, height, width, num_frames):
        assert (num_frames, height, width) == self.world.frames.shape[:3]
        return PerfectTracker(self)


class PerfectTracker:
    def __init__(self, segmenter):
        self.segmenter, self.names, self.frame = segmenter, {}, None

    def step(self, frame):
        assert frame.flags.c_contiguous and frame.dtype == np.uint8
        self.segmenter.steps += 1
        self.frame = frame
        masks = self.segmenter.world.masks(frame)
        if self.segmenter.forgets:
            self.names = {number: name for number, name in self.names.items() if name in masks}
        return {number: encode(masks[name]) for number, name in self.names.items() if name in masks}

    def add(self, object_id, mask):
        (self.names[object_id],) = [k for k, m in self.segmenter.world.masks(self.frame).items() if encode(m) == mask]
        return mask

    def remove(self, object_id):
        self.segmenter.removed.append(object_id)
        del self.names[object_id]


def synthetic_world(index):
    clip = synthetic.make_clip(3, "train", index)
    frames = synthetic.render_frames(clip, range(synthetic.NUM_FRAMES))
    masks = {one.sentence: [synthetic.object_mask(one, k) for k in range(synthetic.NUM_FRAMES)] for one in clip.tracks}
    return World(frames, masks)


def scene(paths, count=64, height=45, width=77, size=13):
    """Squares on paths, name -> function from frame to (x, y) or None; later ones hide earlier ones. Odd sizes."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, :, :, 2] = np.arange(count)[:, None, None] * 3  # every frame is another
    truth = {name: [] for name in paths}
    for k in range(count):
        layers = {}
        for c, (name, path) in enumerate(paths.items()):
            mask = np.zeros((height, width), bool)
            if (place := path(k)) is not None:
                x, y = place
                mask[max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = True
            layers = {other: below & ~mask for other, below in layers.items()} | {name: mask}
            frames[k, mask, :2] = (90 + 50 * c, 250 - 60 * c)
        for name, mask in layers.items():
            truth[name].append(mask if mask.any() else None)
    return World(frames, truth)


def lively_scene():
    """Two that cross (one hides the other wholly), one that leaves and comes back, one that comes late."""
    return scene(
        {
            "walks right": lambda k: (k, 10),
            "walks left": lambda k: (62 - k, 10),
            "comes back": lambda k: (5, 30) if k < 24 or k > 33 else None,
            "comes late": lambda k: (70 - k, 28) if k > 40 else None,
        }
    )


def agrees(tracks, world):
    """Every object has one ID, and its masks are the truth."""
    assert len(tracks.tracks) == len(world.truth)
    found = [dict(one.masks) for one in tracks.tracks]
    for masks in world.truth.values():
        expected = {k: encode(mask) for k, mask in enumerate(masks) if mask is not None}
        assert expected in found
        found.remove(expected)


@pytest.mark.parametrize("index", range(3))
def test_synthetic_clips_are_tracked_perfectly(index):
    world = synthetic_world(index)
    segmenter = PerfectSegmenter(world)
    tracks = track(ArrayFrames(world.frames, world.fps), PerfectDetector(world), segmenter, Options(step=7))
    agrees(tracks, world)
    assert segmenter.steps <= 2 * len(world.frames) and not segmenter.removed


def test_crossings_occlusions_and_re_entries():
    world = lively_scene()
    assert any(mask is None for mask in world.truth["walks right"])
    tracks = track(ArrayFrames(world.frames, world.fps), PerfectDetector(world), PerfectSegmenter(world))
    agrees(tracks, world)
    assert [one.object_id for one in tracks.tracks] == [1, 2, 3, 4]
    assert [one.born for one in tracks.tracks] == [0, 0, 0, 41]  # the last one was detected in frame 45
    assert (tracks.height, tracks.width, tracks.num_frames, tracks.fps) == (45, 77, 64, 12.0)
    assert {one.label for one in tracks.tracks} == {"person"}
    assert tracks.tracks[1].score == pytest.approx(0.8)


def test_forwards_only_if_asked():
    world = lively_scene()
    options = Options(bidirectional=False)
    segmenter = PerfectSegmenter(world)
    tracks = track(ArrayFrames(world.frames, world.fps), PerfectDetector(world), segmenter, options)
    assert [one.born for one in tracks.tracks] == [0, 0, 0, 45] and segmenter.steps == 64


def test_what_is_lost_and_found_gets_a_new_id():
    world = lively_scene()
    source = ArrayFrames(world.frames, world.fps)
    tracks = track(source, PerfectDetector(world), PerfectSegmenter(world, forgets=True))
    truth = {name: {k: encode(m) for k, m in enumerate(masks) if m is not None} for name, masks in world.truth.items()}
    lives = {name: [] for name in truth}
    for one in tracks.tracks:
        (name,) = [name for name, masks in truth.items() if masks.get(one.born) == one.masks[one.born]]
        assert all(truth[name][k] == mask for k, mask in one.masks.items())
        lives[name].append((one.object_id, one.born, one.lost))
    assert [len(lives[name]) for name in truth] == [2, 1, 2, 1]
    first, second = lives["comes back"]
    assert first[0] < second[0] and first[1:] == (0, 23)
    assert second[1:] == (34, 63)  # found in frame 45, and followed back to where it came in


def test_in_blocks_of_frames_it_is_the_same():
    world = lively_scene()
    source = ArrayFrames(world.frames, world.fps)
    whole = track(source, PerfectDetector(world), PerfectSegmenter(world))
    for buffer in (1, 5 * 45 * 77 * 3):
        parts = track(source, PerfectDetector(world), PerfectSegmenter(world), Options(buffer=buffer))
        assert parts.tracks == whole.tracks


def test_classes_are_chosen_before_anything_is_numbered():
    world = lively_scene()
    world.classes = {"walks left": "dog"}
    source = ArrayFrames(world.frames, world.fps)

    def labels(mode):
        tracks = track(source, PerfectDetector(world), PerfectSegmenter(world), Options(mode=mode))
        return [(one.object_id, one.label) for one in tracks.tracks]

    assert labels("non-person") == [(1, "dog")] == labels(("dog",))
    assert labels("person") == [(1, "person"), (2, "person"), (3, "person")]
    assert labels("all") == [(1, "person"), (2, "dog"), (3, "person"), (4, "person")]


def test_video_files(tmp_path):
    world = synthetic_world(1)
    path = tmp_path / "clip.mp4"
    synthetic.write_video(path, world.frames)
    agrees(track(path, PerfectDetector(world), PerfectSegmenter(world), Options(step=7, buffer=4_000_000)), world)
    frames = VideoFrames(path)
    assert frames.read(90, 96).shape == (6, synthetic.HEIGHT, synthetic.WIDTH, 3)
    for start in (0, 41, 95):
        block = frames.read(start, start + 1)
        assert np.abs(block.astype(int) - world.frames[start : start + 1]).mean() < 2
    with pytest.raises(VideoError, match="no such video"):
        track(tmp_path / "none.mp4", PerfectDetector(world), PerfectSegmenter(world))


def write_odd_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


@pytest.mark.parametrize("count", [2, 64])
def test_odd_sizes_and_two_frames_from_a_file(tmp_path, count):
    world = lively_scene()
    world = World(world.frames[:count], {name: masks[:count] for name, masks in world.truth.items()}, 25.0)
    world.truth = {name: masks for name, masks in world.truth.items() if any(m is not None for m in masks)}
    write_odd_video(tmp_path / "odd.mkv", world.frames)
    tracks = track(tmp_path / "odd.mkv", PerfectDetector(world), PerfectSegmenter(world))
    agrees(tracks, world)
    assert (tracks.num_frames, tracks.fps) == (count, 25.0)


ENCODINGS = {
    "B-frames": ("clip.mp4", "libx264", {"g": "12", "bf": "3"}, False),
    "open groups of pictures": ("clip.mp4", "libx264", {"g": "12", "bf": "3", "x264opts": "open-gop=1"}, False),
    "a varying rate": ("clip.mkv", "libx264", {"g": "12", "bf": "3"}, True),
    "a single keyframe": ("clip.mkv", "libx264", {"g": "1000"}, False),
    "keyframes only": ("clip.avi", "mjpeg", {}, False),
}


def write_encoded(path, codec, options, varying, count=70):
    rng = np.random.default_rng(5)
    picture = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={**options, "threads": "1"})
        stream.width, stream.height = 128, 96
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        time = 0
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * k, axis=1), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            time += 1 + (varying and k % 5 == 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def plainly(frames, start, stop):
    indices = tuple(range(start, stop))
    times = tuple(map(frames.clock.seconds, indices))
    plan = SamplingPlan(indices, times, frames.height, frames.width, frames.fps, by_index=True)
    return read_frames(frames.path, plan, threads=1)


@pytest.mark.parametrize("name, codec, options, varying", ENCODINGS.values(), ids=ENCODINGS)
def test_blocks_are_read_from_a_keyframe_on(name, codec, options, varying, tmp_path, monkeypatch):
    write_encoded(tmp_path / name, codec, options, varying)
    frames = VideoFrames(tmp_path / name)
    whole = plainly(frames, 0, frames.num_frames)
    assert frames.num_frames == 70 and len(np.unique(whole[:, 48], axis=0)) > 40

    monkeypatch.setattr(decode, "read_frames", None)  # it is for damaged files only
    blocks, passes, opened = decode.Blocks(tmp_path / name), [], decode.pictures
    monkeypatch.setattr(decode, "pictures", lambda *given: passes.append(given) or opened(*given))
    for size in (1, 9, 64):
        for start in range(0, 70, size):
            block = frames.read(start, min(start + size, 70))
            assert np.array_equal(block, whole[start : start + size])
            blocks.read(start, again := np.empty_like(block))
            assert np.array_equal(again, block)
    assert len(passes) == 3  # one for each size
    backwards = [(k, frame.copy()) for k, frame in sources.walk(frames, 10 * 128 * 96 * 3, back_from=48)]
    assert [k for k, _ in backwards] == list(range(48, -1, -1))
    assert all(np.array_equal(frame, whole[k]) for k, frame in backwards)


def test_damaged_files_are_read_as_everywhere_else(tmp_path):
    path = tmp_path / "clip.mkv"
    write_encoded(path, "libx264", {"g": "12", "bf": "2"}, False)
    data, outcomes = bytearray(path.read_bytes()), set()
    rng = np.random.default_rng(1)
    for place in rng.integers(len(data) // 4, len(data) - 400, 6):
        broken = data.copy()
        broken[place : place + 300] = rng.bytes(300)
        (tmp_path / f"{place}.mkv").write_bytes(broken)
        frames = VideoFrames(tmp_path / f"{place}.mkv", threads=1)  # several conceal damage differently each time
        for start in range(0, frames.num_frames, 14):
            found = []
            for read in (frames.read, lambda a, b, frames=frames: plainly(frames, a, b)):
                try:
                    found.append(read(start, min(start + 14, frames.num_frames)))
                except VideoError as error:
                    found.append(str(error))
            outcomes.add(type(found[0]))
            assert np.array_equal(found[0], found[1])
    assert np.ndarray in outcomes


@pytest.mark.parametrize("options", [ALL, FAITHFUL], ids=["ours", "faithful"])
def test_without_detections_there_are_no_tracks(options, tmp_path):
    world = scene({}, count=40)
    segmenter = PerfectSegmenter(world)
    tracks = track(ArrayFrames(world.frames, 12.0), PerfectDetector(world), segmenter, options)
    assert tracks.tracks == () and tracks.num_frames == 40 and segmenter.steps == 40
    files.save(tracks, tmp_path / "none.tracks.json.gz")
    assert files.load(tmp_path / "none.tracks.json.gz") == tracks


def test_tracks_say_how_they_were_made_and_survive_a_file(tmp_path):
    world = lively_scene()
    options = Options(mode=("person", "dog"))
    tracks = track(ArrayFrames(world.frames, 12.0), PerfectDetector(world), PerfectSegmenter(world), options)
    assert tracks.made_by["detector"] == "perfect" == tracks.made_by["segmenter"]
    assert tracks.made_by["options"]["step"] == 15 and tracks.made_by["options"]["mode"] == ["person", "dog"]
    files.save(tracks, tmp_path / "a.tracks.json.gz")
    assert files.load(tmp_path / "a.tracks.json.gz") == tracks


@pytest.mark.parametrize(
    "wrong", [{"step": 0}, {"buffer": 0}, {"iou": 0.0}, {"containment": 1.2}, {"mode": "persons"}], ids=str
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError):
        Options(**wrong)


@pytest.mark.parametrize(
    "array", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8)]
)
def test_other_arrays_are_no_frames(array):
    with pytest.raises(ValueError, match="frames must be"):
        ArrayFrames(array, 12.0)


# --- arbitrary stand-ins ----------------------------------------------------------------------------------------------


class Arbitrary:
    """Detector and segmenter whose masks are boxes drawn at random, always the same for the same question.

    A frame's first pixels hold its number. A tracker's mask in a frame depends on the mask it was given and the frame.
    """

    name = "arbitrary"
    shape = (16, 18)

    def __init__(self, seed):
        self.seed = seed

    def frames(self, count):
        frames = np.zeros((count, *self.shape, 3), np.uint8)
        frames[:, 0, 0, 0] = np.arange(count)
        return ArrayFrames(frames, 10.0)

    def draw(self, *key):
        rng = np.random.default_rng([self.seed, *key])
        if rng.random() < 0.15:
            return np.zeros(self.shape, bool)
        y, x = rng.integers(0, 13, 2)
        return filled((y, x, *rng.integers(1, 9, 2)), self.shape)

    def detect(self, frame):
        rng = np.random.default_rng([self.seed, int(frame[0, 0, 0])])
        return [Detection((k, 0, k + 1, 1), "thing", 0.9 - 0.1 * k) for k in range(rng.integers(0, 4))]

    def new(self, frame):
        return [self.draw(frame, k) for k in range(len(self.detect(np.full((1, 1, 1), frame))))]

    def segment(self, frame, boxes):
        return [encode(self.draw(int(frame[0, 0, 0]), int(box[0]))) for box in boxes]

    def followed(self, seed, frame):
        y, x = np.argwhere(seed)[0] if seed.any() else (0, 0)
        return self.draw(int(seed.sum()), int(y), int(x), frame)

    def start(self, height, width, num_frames):
        return ArbitraryTracker(self)


class ArbitraryTracker:
    def __init__(self, world):
        self.world, self.seeds, self.now = world, {}, None

    def step(self, frame):
        self.now = int(frame[0, 0, 0])
        masks = {number: encode(self.world.followed(seed, self.now)) for number, seed in self.seeds.items()}
        return {number: mask for number, mask in masks.items() if coco.area(mask)}

    def add(self, object_id, mask):
        self.seeds[object_id] = coco.decode(mask).astype(bool)
        return encode(self.world.followed(self.seeds[object_id], self.now))

    def remove(self, object_id):
        del self.seeds[object_id]


def released(world, count, step):
    """The released algorithm word by word: passes over the rest of the video, and stored maps of labels."""
    stored, last = [np.zeros(world.shape, np.uint16) for _ in range(count)], 0
    first = world.new(0)
    for k in range(count if first else 0):
        for number, seed in enumerate(first, 1):
            stored[k][world.followed(seed, k)] = number
    last = len(first)
    for f in range(step, count, step):
        present = {int(n): stored[f] == n for n in np.unique(stored[f]) if n}
        new = world.new(f)
        merged = literally(new, present, 0.4, 0.6)
        if not merged.kept:
            continue
        for number in merged.removed:
            stored[f][stored[f] == number] = 0
        numbers = {last + 1 + k: new[index] for k, index in enumerate(merged.kept)}
        last += len(numbers)
        for k in range(f, count):
            for number, seed in numbers.items():
                stored[k][world.followed(seed, k)] = number
    return stored


@pytest.mark.parametrize("seed", range(12))
def test_faithful_is_the_released_algorithm(seed):
    world, count, step = Arbitrary(seed), 20, 3
    tracks = track(world.frames(count), world, world, replace(FAITHFUL, step=step, buffer=4000))
    stored = released(world, count, step)
    for k, labels in enumerate(stored):
        assert tracks.at(k) == {int(n): encode(labels == n) for n in np.unique(labels) if n}


@pytest.mark.parametrize("seed", range(12))
def test_our_rules_hold_whatever_the_models_say(seed):
    world, count, step = Arbitrary(seed), 20, 3
    tracks = track(world.frames(count), world, world, replace(ALL, step=step))
    forwards = track(world.frames(count), world, world, replace(ALL, step=step, bidirectional=False))
    born = {one.object_id: one.born for one in forwards.tracks}
    assert [one.object_id for one in tracks.tracks] == list(range(1, len(tracks.tracks) + 1)) == list(born)
    assert all(frame % step == 0 for frame in born.values())
    for one, other in zip(tracks.tracks, forwards.tracks, strict=True):
        start = born[one.object_id]
        assert {k: m for k, m in one.masks.items() if k >= start} == other.masks
        for k in (k for k in one.masks if k < start):
            older = [masks.masks[k] for masks in tracks.tracks if born[masks.object_id] < start and k in masks.masks]
            assert not any(coco.iou([one.masks[k]], [mask], [0])[0, 0] for mask in older)


class Scripted(Arbitrary):
    """New masks of each keyframe as given; they are followed where they are, forever."""

    def __init__(self, new):
        super().__init__(0)
        self.given = new

    def detect(self, frame):
        return [Detection((k, 0, k + 1, 1), "thing", 0.5) for k in range(len(self.given.get(int(frame[0, 0, 0]), ())))]

    def draw(self, frame, k):
        return self.given[frame][k]

    def followed(self, seed, frame):
        return seed


SMALL, LARGE = filled((2, 2, 3, 3), Arbitrary.shape), filled((1, 1, 9, 9), Arbitrary.shape)
BESIDE, NOTHING = filled((12, 12, 3, 3), Arbitrary.shape), filled((0, 0, 0, 0), Arbitrary.shape)


def seen(new, options, count=10):
    world = Scripted(new)
    tracks = track(world.frames(count), world, world, replace(options, step=5))
    return {one.object_id: list(one.masks) for one in tracks.tracks}


def test_removal_is_for_good_or_for_the_keyframe():
    new = {0: [SMALL], 5: [LARGE]}
    assert seen(new, replace(ALL, bidirectional=False)) == {1: [0, 1, 2, 3, 4], 2: [5, 6, 7, 8, 9]}
    assert seen(new, ALL) == {1: [0, 1, 2, 3, 4], 2: list(range(10))}  # it surrounds the small one
    assert seen(new, FAITHFUL) == {1: [0, 1, 2, 3, 4], 2: [5, 6, 7, 8, 9]}  # the later mask covers it
    apart = {0: [SMALL], 5: [LARGE & ~SMALL | (SMALL & (np.cumsum(SMALL).reshape(SMALL.shape) > 2))]}
    assert seen(apart, FAITHFUL) == {1: [0, 1, 2, 3, 4, 6, 7, 8, 9], 2: [5, 6, 7, 8, 9]}  # back in the next frame
    assert seen(apart, replace(ALL, bidirectional=False)) == {1: [0, 1, 2, 3, 4], 2: [5, 6, 7, 8, 9]}


def test_removal_without_anything_new():
    """A mask that pushes one object out, and is another one itself."""
    almost = LARGE.copy()
    almost[1, 1:9] = False
    new = {0: [SMALL & ~filled((2, 2, 1, 1), SMALL.shape), almost & ~SMALL], 5: [LARGE]}
    options = replace(ALL, bidirectional=False)
    assert seen(new, options) == {1: [0, 1, 2, 3, 4], 2: list(range(10))}
    assert seen(new, FAITHFUL) == {1: list(range(10)), 2: list(range(10))}  # the keyframe is not written again
    with_another = {**new, 5: [LARGE, BESIDE]}
    assert seen(with_another, options) == {1: [0, 1, 2, 3, 4], 2: list(range(10)), 3: [5, 6, 7, 8, 9]}
    assert seen(with_another, FAITHFUL) == {1: [0, 1, 2, 3, 4, 6, 7, 8, 9], 2: list(range(10)), 3: [5, 6, 7, 8, 9]}


def test_the_first_frame_is_compared_with_itself_only_by_our_rules():
    new = {0: [LARGE, LARGE, NOTHING, BESIDE]}
    every = list(range(10))
    assert seen(new, ALL) == {1: every, 2: every}
    assert seen(new, FAITHFUL) == {2: every, 4: every}  # the second covers the first; no pixels still use up an ID


def test_objects_of_one_keyframe_may_overlap_backwards_too():
    left, right = filled((2, 2, 6, 6), LARGE.shape), filled((2, 6, 6, 6), LARGE.shape)
    world = Scripted({5: [left, right]})
    tracks = track(world.frames(8), world, world, replace(ALL, step=5))
    assert all(tracks.at(k) == {1: encode(left), 2: encode(right)} for k in range(8))


# --- detectors --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detect():
    from verl_stvg.data_builders.objects import detect

    return detect


@pytest.fixture(scope="module")
def picture():
    clip = synthetic.make_clip(3, "train", 0)
    return synthetic.render_frames(clip, [40])[0, :-1, :-3]  # 223 x 333


@pytest.fixture(scope="module")
def rtdetr(tmp_path_factory, detect):
    """Folder of a small RT-DETR with random weights."""
    import torch
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    torch.manual_seed(0)
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_in_channels=[16, 16, 16],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_in_channels=[16, 16, 16],
        d_model=16,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_queries=20,
        initializer_bias_prior_prob=0.3,
        num_labels=3,
        id2label={0: "person", 1: "dog", 2: "cup"},
    )
    folder = tmp_path_factory.mktemp("rtdetr")
    RTDetrForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


def sound(found, frame):
    height, width = frame.shape[:2]
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    for one in found:
        x1, y1, x2, y2 = one.box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_models_of_transformers(detect, rtdetr, picture):
    every = detect.HuggingFaceDetector(rtdetr, confidence=0.0, nms=None, device="cpu")
    found = every.detect(picture)
    sound(found, picture)
    assert 10 < len(found) <= 20 and {one.label for one in found} <= {"person", "dog", "cup"}
    assert (
        found
        == every.detect(picture)
        == detect.detector(f"huggingface:{rtdetr}", confidence=0, nms=None).detect(picture)
    )
    middle = found[len(found) // 2].score
    some = detect.HuggingFaceDetector(rtdetr, confidence=middle, nms=None).detect(picture)
    assert some == [one for one in found if one.score > middle]
    fewer = detect.HuggingFaceDetector(rtdetr, confidence=0.0, nms=0.0).detect(picture)
    assert 0 < len(fewer) and [one for one in found if one in fewer] == fewer
    sound(every.detect(picture[:31, :57]), picture[:31, :57])


def test_boxes_are_cut_sorted_and_thinned_by_class(detect):
    import torch

    rows = [
        ((-5.0, -5.0, 10.0, 10.0), 0.5, 0),
        ((0.0, 0.0, 10.0, 9.0), 0.8, 0),  # nearly the same, better
        ((0.0, 0.0, 10.0, 10.0), 0.6, 1),  # another class
        ((20.0, 0.0, 30.0, 5.0), 0.8, 0),  # as good as an earlier one
        ((50.0, 0.0, 60.0, 5.0), 0.9, 0),  # outside
    ]
    columns = [torch.tensor(list(column)) for column in zip(*rows, strict=True)]
    names = {0: "a", 1: "b"}
    found = detect._detections(*columns, names, (20, 40), 0.7)
    assert [(one.box, one.label) for one in found] == [
        ((0, 0, 10, 9), "a"),
        ((20, 0, 30, 5), "a"),
        ((0, 0, 10, 10), "b"),
    ]
    assert len(detect._detections(*columns, names, (20, 40), None)) == 4
    nothing = [column[:0] for column in columns]
    assert detect._detections(*nothing, names, (20, 40), 0.7) == []


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory, detect):
    """Folder of a small Grounding DINO with random weights."""
    import torch
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("grounding_dino")
    words = ["[PAD]", *(f"[unused{k}]" for k in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # BERT's places
    words += ["person", "traffic", "light", "dog"]
    words += [f"[filler{k}]" for k in range(1012 - len(words))] + ["."]  # 1012 in BERT
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        d_model=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_text_len=32,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_grounding_dino(detect, grounding_dino, picture):
    classes = ("Person", "traffic light", "dog")
    model = detect.GroundingDinoDetector(classes, grounding_dino, confidence=0.0, nms=None)
    tokens = model.processor.tokenizer(model._text)["input_ids"]
    words = [model.processor.tokenizer.convert_ids_to_tokens([tokens[k] for k in some]) for some in model._columns]
    assert words == [["person"], ["traffic", "light"], ["dog"]]
    found = model.detect(picture)
    sound(found, picture)
    assert found == model.detect(picture) and 0 < len(found) <= 12
    assert {one.label for one in found} <= set(classes)
    for wrong in ((), ("a.b",), ("person", " ")):
        with pytest.raises(detect.ModelError, match="must be words"):
            detect.GroundingDinoDetector(wrong, grounding_dino)
    with pytest.raises(detect.ModelError, match="name fewer"):
        detect.GroundingDinoDetector(["dog"] * 20, grounding_dino)


def test_ultralytics_is_asked_for_bgr_and_its_boxes_are_read(detect, monkeypatch):
    import torch

    asked = {}

    class YOLO:
        def __init__(self, weights):
            asked["weights"] = weights

        def predict(self, image, **settings):
            asked.update(settings, image=image)
            found = types.SimpleNamespace(
                xyxy=torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 99.0, 4.0]]),
                conf=torch.tensor([0.3, 0.7]),
                cls=torch.tensor([0.0, 16.0]),
            )
            return [types.SimpleNamespace(boxes=found, names={0: "person", 16: "dog"})]

    with pytest.raises(detect.ModelError, match="AGPL"):
        detect.detector("yolo:yolo12x.pt")
    module = types.ModuleType("ultralytics")
    module.YOLO, module.__spec__ = YOLO, types.SimpleNamespace(name="ultralytics")
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    frame = np.zeros((8, 10, 3), np.uint8)
    frame[..., 0] = 255
    found = detect.detector("yolo:yolo12x.pt", confidence=0.2).detect(frame)
    assert found[0] == Detection((0.0, 0.0, 10.0, 4.0), "dog", pytest.approx(0.7)) and found[1].label == "person"
    assert asked["weights"] == "yolo12x.pt" and asked["image"][0, 0].tolist() == [0, 0, 255]
    assert (asked["conf"], asked["iou"], asked["verbose"]) == (0.2, 0.7, False)


def make_detector(confidence=0.1):
    return types.SimpleNamespace(detect=lambda frame: [], confidence=confidence)


def test_detectors_by_name(detect, monkeypatch):
    made = detect.detector(f"{__name__}:make_detector", confidence=0.4)
    assert made.confidence == 0.4
    calls, asked = [], []
    monkeypatch.setattr(detect, "located", lambda name: asked.append(name) or name)  # see tests/base/test_models.py
    monkeypatch.setattr(detect, "HuggingFaceDetector", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(detect, "GroundingDinoDetector", lambda *a, **k: calls.append((a, k)))
    detect.detector("rtdetr", device="cpu")
    detect.detector("huggingface:facebook/detr-resnet-50")
    detect.detector("grounding-dino:person.traffic light.", nms=None)
    assert calls == [
        (("PekingU/rtdetr_r50vd",), {"device": "cpu"}),
        (("facebook/detr-resnet-50",), {}),
        ((["person", "traffic light"],), {"nms": None}),
    ]
    assert asked == ["PekingU/rtdetr_r50vd", "facebook/detr-resnet-50", detect.GROUNDING_DINO]


@pytest.mark.parametrize(
    "name, says",
    [
        ("rtdter", "unknown; choose one of rtdetr"),
        ("yolo:", "is unknown"),
        ("grounding-dino", "grounding-dino:CLASS"),
        ("no_such_module:make", "cannot be imported"),
        (f"{__name__}:missing", "defines no missing"),
        (f"{__name__}:span_of_nothing", "no method detect"),
    ],
)
def test_wrong_names_of_detectors_say_what_is_wrong(detect, name, says):
    with pytest.raises(detect.ModelError, match=says):
        detect.detector(name)


def span_of_nothing():
    return span(0, 0)


# --- SAM 2 ------------------------------------------------------------------------------------------------------------

SMALL_SAM2 = (
    "model.image_size=128",
    "model.image_encoder.trunk.embed_dim=16",
    "model.image_encoder.trunk.stages=[1,1,2,1]",
    "model.image_encoder.trunk.global_att_blocks=[3]",
    "model.image_encoder.neck.d_model=32",
    "model.image_encoder.neck.position_encoding.num_pos_feats=32",
    "model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    "model.memory_attention.d_model=32",
    "model.memory_attention.num_layers=1",
    "model.memory_attention.layer.d_model=32",
    "model.memory_attention.layer.dim_feedforward=64",
    "model.memory_attention.layer.self_attention.embedding_dim=32",
    "model.memory_attention.layer.cross_attention.embedding_dim=32",
    "model.memory_attention.layer.cross_attention.kv_in_dim=16",
    "model.memory_encoder.out_dim=16",
    "+model.memory_encoder.in_dim=32",
    "model.memory_encoder.position_encoding.num_pos_feats=16",
    "+model.memory_encoder.mask_downsampler.embed_dim=32",
    "model.memory_encoder.fuser.layer.dim=32",
)
LENGTH = 40  # more than the frames that SAM 2 looks back at


@pytest.fixture(scope="module")
def sam2():
    """The real program, on the processor, with few and random weights, which see objects everywhere."""
    import torch

    from verl_stvg.data_builders.objects.segment import Sam2Segmenter

    torch.manual_seed(1)
    made = Sam2Segmenter.build("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", overrides=SMALL_SAM2)
    made.predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += 10.0
    return made


@pytest.fixture(scope="module")
def noisy():
    """Frames with something to see everywhere, and seeds for three objects."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (LENGTH, 6, 8, 3), dtype=np.uint8)
    frames = np.ascontiguousarray(coarse.repeat(15, axis=1).repeat(15, axis=2)[:, :, :-1])  # 90 x 119
    seeds = {1: filled((10, 20, 40, 30), (90, 119)), 2: filled((40, 60, 30, 50), (90, 119))}
    return frames, seeds | {3: filled((0, 0, 90, 40), (90, 119))}


def followed(segmenter, frames, seeds, numbers=None):
    tracker = segmenter.start(*frames.shape[1:3], len(frames))
    masks = [tracker.step(frames[0])]
    masks[0] = {k: tracker.add(k, encode(seeds[k])) for k in numbers or seeds}
    return masks + [tracker.step(frame) for frame in frames[1:]], tracker


def stock(segmenter, folder, seeds, start, reverse=False):
    """The package's own way, from pictures in a folder, keeping everything."""
    import torch

    predictor = segmenter.predictor
    with torch.inference_mode():
        state = predictor.init_state(str(folder))
        for number, seed in seeds.items():
            predictor.add_new_mask(state, start, number, seed)
        walk = predictor.propagate_in_video(state, start_frame_idx=start, reverse=reverse)
        return {
            index: {n: encode((logit[0] > 0).numpy()) for n, logit in zip(numbers, logits, strict=True)}
            for index, numbers, logits in walk
        }, state


def test_sam2_follows_as_the_package_itself_does(sam2, noisy, tmp_path):
    from PIL import Image

    frames, seeds = noisy
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{k}.jpg", quality=95)
    seen = np.stack([np.asarray(Image.open(tmp_path / f"{k}.jpg").convert("RGB")) for k in range(LENGTH)])
    expected, _ = stock(sam2, tmp_path, seeds, 0)
    masks, _ = followed(sam2, seen, seeds)
    varied = set()
    for k in range(LENGTH):
        assert masks[k] == {n: mask for n, mask in expected[k].items() if coco.area(mask)}
        varied |= {int(coco.area(mask)) for mask in masks[k].values()}
    assert len(varied) > LENGTH  # it was not always the same, nor nothing
    expected, _ = stock(sam2, tmp_path, {7: seeds[2]}, 9)  # one that joins later
    tracker = sam2.start(90, 119, LENGTH)
    for k in range(LENGTH):
        found = tracker.step(seen[k]).get(7)
        if k == 9:
            found = tracker.add(7, encode(seeds[2]))
        if k == 2:
            tracker.add(1, encode(seeds[1]))
        assert found == (expected[k][7] if k >= 9 and coco.area(expected[k][7]) else None)
    expected, _ = stock(sam2, tmp_path, seeds, LENGTH - 1, reverse=True)
    masks, _ = followed(sam2, np.ascontiguousarray(seen[::-1]), seeds)
    for k in range(LENGTH):
        assert masks[k] == {n: m for n, m in expected[LENGTH - 1 - k].items() if coco.area(m)}


def test_sam2_forgets_what_it_cannot_look_back_at(sam2, noisy):
    frames, seeds = noisy
    _, tracker = followed(sam2, frames, seeds)
    state = tracker._state
    assert list(state["cached_features"]) == [LENGTH - 1]
    for outputs in state["output_dict_per_obj"].values():
        assert list(outputs["cond_frame_outputs"]) == [0]
        assert list(outputs["non_cond_frame_outputs"]) == list(range(LENGTH - 16, LENGTH))
    assert not any(state["mask_inputs_per_obj"].values())


def test_sam2_objects_do_not_influence_each_other(sam2, noisy):
    frames, seeds = noisy
    together, _ = followed(sam2, frames, seeds)
    for number in seeds:
        alone, _ = followed(sam2, frames, seeds, [number])
        assert [masks.get(number) for masks in together] == [masks.get(number) for masks in alone]
    tracker = sam2.start(90, 119, LENGTH)  # joining and leaving on the way
    for k, frame in enumerate(frames):
        masks = tracker.step(frame)
        if k == 0:
            tracker.add(1, encode(seeds[1]))
            tracker.add(2, encode(seeds[2]))
        else:
            assert masks.get(2 if k < 9 else 1) == together[k].get(2 if k < 9 else 1)
        if k == 5:
            tracker.add(9, encode(seeds[3]))
        if k == 8:
            tracker.remove(2)
        assert set(masks) <= ({1, 2} if k < 6 else {1, 2, 9} if k < 9 else {1, 9})
    for number in (1, 9):
        tracker.remove(number)
    assert tracker.step(frames[0]) == {}


def test_sam2_keeps_the_seed(sam2, noisy):
    """Its answer in the seeded frame is the seed, but for the corners, which a quarter of its own size rounds off."""
    frames, seeds = noisy
    masks, _ = followed(sam2, frames[:1], seeds)
    for number, seed in seeds.items():
        assert masks[0][number]["size"] == [90, 119]
        assert coco.iou([masks[0][number]], [encode(seed)], [0])[0, 0] > 0.95


def test_sam2_masks_boxes(sam2, noisy):
    frames, _ = noisy
    boxes = [(5.0 * k, 3.0 * k, 40.0 + 5 * k, 30.0 + 3 * k) for k in range(11)]
    masks = sam2.segment(frames[0], boxes)
    assert len(masks) == 11 and all(mask["size"] == [90, 119] for mask in masks)
    assert masks == sam2.segment(frames[0], boxes)
    assert len(sam2.segment(frames[0][:33, :17], boxes[:1])) == 1
    single = [sam2.segment(frames[0], [box])[0] for box in boxes]
    for one, other in zip(masks, single, strict=True):
        assert coco.area(one) == coco.area(other) == 0 or coco.iou([one], [other], [0])[0, 0] > 0.99


def test_sam2_refuses_frames_of_another_size(sam2, noisy):
    tracker = sam2.start(90, 120, 3)
    with pytest.raises(ValueError, match="119x90"):
        tracker.step(noisy[0][0])


@pytest.mark.slow
def test_sam2_leaves_hydra_to_others(sam2, run_python):
    run_python(
        "from verl_stvg.data_builders.objects.segment import Sam2Segmenter\n"
        "from hydra import compose, initialize_config_module\n"
        "from tests.data_builders.objects.test_track import SMALL_SAM2\n"
        "with initialize_config_module('sam2', version_base='1.2'):\n"
        "    made = Sam2Segmenter.build('configs/sam2.1/sam2.1_hiera_t.yaml', device='cpu', overrides=SMALL_SAM2)\n"
        "    assert compose('configs/sam2.1/sam2.1_hiera_s').model\n"
        "with initialize_config_module('sam2', version_base='1.2'):\n"
        "    pass\n"
    )


def test_real_programs_from_file_to_tracks(sam2, rtdetr, detect, noisy, tmp_path):
    write_odd_video(tmp_path / "noise.mkv", noisy[0][:24])
    detector = detect.HuggingFaceDetector(rtdetr, confidence=0.0)

    def made(options):
        few = types.SimpleNamespace(name="few", detect=lambda frame: detector.detect(frame)[:3])
        return track(tmp_path / "noise.mkv", few, sam2, options)

    ours = made(Options(step=9, mode="all"))
    assert ours == made(Options(step=9, mode="all"))
    assert ours.tracks and (ours.height, ours.width, ours.num_frames) == (90, 119, 24)
    assert ours.made_by["segmenter"] == "sam2.1_hiera_t (random)"
    faithful = made(Options(step=9, mode="all", faithful=True))
    for k in range(24):
        masks = list(faithful.at(k).values())
        overlaps = [coco.iou([a], [b], [0])[0, 0] for i, a in enumerate(masks) for b in masks[:i]]
        assert not any(overlaps)


def test_benchmarks_of_the_rules():
    from benchmarks import objects

    options = types.SimpleNamespace(seed=0)
    rows = [*objects.rules(options, frames=45), *objects.merging(options)]
    assert [row.met for row in rows[:2]] == [None, None] and all(row.ours > 0 for row in rows)
