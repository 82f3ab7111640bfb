"""Tracks, the size filter, a tube's ID and an ID's tube: the numbers of STVG-R1's pipeline that ours keeps or mends."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from verl_stvg.data_builders.objects.detector import Detection, wanted
from verl_stvg.data_builders.objects.target import match_masks, match_tube, size_filter, tube_iou, tube_of
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.video import tracks as files
from verl_stvg.video.tracks import Track, TrackError, Tracks

H, W = 60, 80


def rle(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (H, W)) -> dict:
    """A mask of filled boxes, x and y of the first and last pixel."""
    mask = np.zeros(size, np.uint8, order="F")
    for x1, y1, x2, y2 in boxes:
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    found = coco.encode(mask)
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def tracked(objects: dict[int, dict[int, tuple]], num_frames: int = 40, labels: dict | None = None) -> Tracks:
    """Tracks of boxes by ID and frame."""
    made = tuple(
        Track(number, (labels or {}).get(number, "person"), 0.9, {frame: rle(box) for frame, box in boxes.items()})
        for number, boxes in sorted(objects.items())
        if boxes
    )
    return Tracks(H, W, num_frames, 10.0, made)


def moving(frames, shift: int = 0) -> dict[int, tuple]:
    return {frame: (10 + shift, 20, 19 + shift, 39) for frame in frames}


# --- track files


def test_a_file_gives_back_what_was_written_with_the_same_bytes(tmp_path):
    overlapping = tracked({1: moving(range(5, 9)), 7: moving(range(0, 40, 3), 4)}, labels={1: "person", 7: None})
    files.save(overlapping, tmp_path / "a.tracks.json.gz")
    files.save(overlapping, tmp_path / "b.tracks.json.gz")
    assert (tmp_path / "a.tracks.json.gz").read_bytes() == (tmp_path / "b.tracks.json.gz").read_bytes()
    found = files.load(tmp_path / "a.tracks.json.gz")
    assert found == overlapping and [(t.born, t.lost) for t in found.tracks] == [(5, 8), (0, 39)]


def test_stvg_r1_folders_are_read_and_written(tmp_path):
    ours = tracked({1: moving(range(3)), 12: moving((1, 4), 30)}, num_frames=5, labels={12: "dog"})
    files.write_folder(ours, tmp_path)
    record = json.loads((tmp_path / "mask_1.json").read_text())
    assert record.keys() == {"height", "width", "objects"} and (record["height"], record["width"]) == (H, W)
    assert record["objects"]["12"].keys() == {"rle", "class_name", "box"} and record["objects"]["12"]["box"] is None
    assert json.loads((tmp_path / "mask_3.json").read_text())["objects"] == {}
    found = files.read_folder(tmp_path, fps=10.0)
    assert [(t.object_id, t.label, t.masks) for t in found.tracks] == [
        (t.object_id, t.label, t.masks) for t in ours.tracks
    ]
    assert (found.num_frames, found.fps) == (5, 10.0)
    record["objects"]["3"] = {"rle": rle(), "class_name": None, "box": None}  # no pixels: the object is not there
    (tmp_path / "mask_1.json").write_text(json.dumps(record))
    assert [t.object_id for t in files.read_folder(tmp_path, fps=10.0).tracks] == [1, 12]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r | {"format_version": 3}, "version 3, this program reads 1 to 2"),
        (lambda r: {k: v for k, v in r.items() if k != "fps"}, "not a track file"),
        (lambda r: r | {"objects": r["objects"] * 2}, "not ascending from 1 on, each once"),
        (lambda r: r | {"num_frames": 3}, "are not ascending within its 3"),
    ],
)
def test_a_spoilt_file_is_refused_with_its_name(tmp_path, spoil, said):
    path = tmp_path / "a.tracks.json.gz"
    files.save(tracked({1: moving(range(5))}), path)
    record = spoil(json.loads(gzip.decompress(path.read_bytes())))
    path.write_bytes(gzip.compress(json.dumps(record).encode()))
    with pytest.raises(TrackError, match=f"a.tracks.json.gz.*({said})"):
        files.load(path)


def test_a_cut_file_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "a.tracks.json.gz"
    with pytest.raises(TrackError, match="no such file"):
        files.load(path)
    files.save(tracked({1: moving(range(5))}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TrackError, match="damaged"):
        files.load(path)


def test_tracks_that_contradict_themselves_are_refused():
    with pytest.raises(TrackError, match="a mask of 10x10 in a video of 80x60"):
        Tracks(H, W, 3, 10.0, (Track(1, None, None, {0: rle((0, 0, 3, 3), size=(10, 10))}),))
    with pytest.raises(TrackError, match="seen in no frame"):
        Tracks(H, W, 3, 10.0, (Track(1, None, None, {}),))
    with pytest.raises(TrackError, match="not ascending from 1"):
        Tracks(H, W, 3, 10.0, tuple(Track(n, None, None, {0: rle((0, 0, 3, 3))}) for n in (0, 1)))


# --- the size filter


def squares(*sides: int) -> dict[int, dict[int, tuple]]:
    return {k + 1: {0: (0, 0, side - 1, 0)} for k, side in enumerate(sides)}


def test_a_third_of_the_largest_is_kept_ties_included():
    assert [t.object_id for t in size_filter(tracked(squares(30, 10, 9))).tracks] == [1, 2]
    assert size_filter(tracked({})).tracks == ()
    assert [t.object_id for t in size_filter(tracked(squares(30, 10, 9)), ratio=0.3).tracks] == [1, 2, 3]


def test_the_filter_is_blind_to_classes_unless_asked():
    made = tracked(squares(30, 9, 3), labels={1: "person", 2: "dog", 3: "dog"})
    assert [t.object_id for t in size_filter(made).tracks] == [1]
    assert [t.object_id for t in size_filter(made, per_label=True).tracks] == [1, 2, 3]


def test_hysteresis_stops_flicker():
    sides = [12, 9, 10, 9, 8, 9, 10]
    made = tracked({1: {k: (0, 0, 29, 0) for k in range(7)}, 2: {k: (0, 2, s - 1, 2) for k, s in enumerate(sides)}})
    assert list(size_filter(made).tracks[1].masks) == [0, 2, 6]
    assert list(size_filter(made, hysteresis=0.15).tracks[1].masks) == [0, 1, 2, 3, 6]


# --- from a tube to an ID


def test_both_conventions_of_iou():
    """Boxes (0,0,9,9) and (5,0,14,9): 0.3333 with a pixel added, 0.2857 without (STVG-R1 has both)."""
    assert tube_iou((0, 0, 9, 9), (5, 0, 15, 10), faithful=True) == pytest.approx(1 / 3)
    assert tube_iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(0.2857, abs=1e-4)
    assert tube_iou((0, 0, 5, 5), (5, 0, 9, 5)) == 0.0 and tube_iou((0, 0, 5, 5), (5, 0, 9, 5), faithful=True) > 0


def test_the_majority_wins_and_a_split_tube_takes_its_longer_part():
    made = tracked({3: moving(range(10, 18)), 5: moving(range(18, 30)), 8: moving(range(40), 40)})
    found = match_tube(made, 10, [(10, 20, 20, 40)] * 20)
    assert found.object_id == 5 and found.votes == {3: 8, 5: 12} and found.share == 0.6
    assert found.mean_iou == pytest.approx(0.6) and found.fragments == ((3, 10, 17), (5, 18, 29))
    assert match_tube(made, 10, [(10, 20, 20, 40)] * 20, min_share=0.7) is None
    assert match_tube(made, 10, [(10, 20, 20, 40)] * 20, min_iou=0.7) is None


def test_ties_go_to_the_first():
    same = tracked({4: moving(range(40)), 9: moving(range(40))})
    assert match_tube(same, 0, [(10, 20, 20, 40)] * 4).votes == {4: 4}
    halves = tracked({9: moving(range(0, 5)), 4: moving(range(5, 10))})
    assert match_tube(halves, 0, [(10, 20, 20, 40)] * 10).object_id == 9  # equal votes: who had one first


def test_no_overlap_no_target():
    assert match_tube(tracked({1: moving(range(40), 50)}), 0, [(0, 0, 9, 9)] * 5) is None
    assert match_tube(tracked({}), 0, [(0, 0, 9, 9)] * 5) is None
    assert match_tube(tracked({1: moving(range(40))}), 0, []) is None


def test_frames_count_from_zero_and_the_paper_is_one_late():
    """Two people who change places from one frame to the next: the released code asks the frame after."""
    made = tracked({1: {4: (0, 0, 9, 9), 5: (40, 0, 49, 9)}, 2: {4: (40, 0, 49, 9), 5: (0, 0, 9, 9)}})
    assert match_tube(made, 4, [(0, 0, 10, 10)]).object_id == 1
    assert match_tube(made, 4, [(0, 0, 10, 10)], faithful=True).object_id == 2


def test_several_targets_by_their_masks():
    made = tracked({1: moving(range(10)), 2: moving(range(10), 30), 3: moving(range(10), 55)})
    union = [rle((10, 20, 19, 39), (40, 20, 47, 39))] * 10
    assert match_masks(made, union) == {1: 1.0, 2: 0.8}
    assert match_masks(made, [None] * 10) == {} and match_masks(made, union, share=0.9) == {1: 1.0}


@pytest.mark.parametrize("seed", range(25))
def test_the_target_of_every_synthetic_clip_is_found(seed):
    """Crossing and leaving shapes, boxes as HC-STVG writes them, masks as a perfect tracker gives them."""
    clip = synthetic.make_clip(seed, "val", seed)
    made = perfect(clip)
    truth = clip.target_track
    annotation = synthetic.annotation(clip)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in annotation["bbox"]]
    found = match_tube(made, annotation["st_frame"] - 1, boxes)
    assert found.object_id == truth.object_id and found.share == 1.0 and found.mean_iou == 1.0
    tube = tube_of(made, found.object_id, truth.first, truth.last)
    assert list(tube.values()) == boxes


def perfect(clip: synthetic.ClipSpec) -> Tracks:
    made = []
    for track in sorted(clip.tracks, key=lambda one: one.object_id):
        masks = {}
        for frame in range(synthetic.NUM_FRAMES):
            mask = synthetic.object_mask(track, frame)
            if mask is not None:
                found = coco.encode(np.asfortranarray(mask, np.uint8))
                masks[frame] = {"size": list(found["size"]), "counts": found["counts"].decode()}
        made.append(Track(track.object_id, track.shape, None, masks))
    size = synthetic.HEIGHT, synthetic.WIDTH
    return Tracks(*size, synthetic.NUM_FRAMES, float(synthetic.SOURCE_FPS), tuple(made))


# --- from an ID to a tube: the worked values of STVG-R1's evaluation


def viou(made: Tracks, object_id: int, start: float, end: float, first: int = 10) -> float:
    """vIoU as STVG-R1's evaluation computes it, for a truth of 1.0 to 2.9 s at 10 fps with 20 boxes."""
    gs, ge, ps, pe = 10, 29, int(start * 10), int(end * 10)
    low, high = max(gs, ps), min(ge, pe)
    if low >= high:
        return 0.0
    tube = tube_of(made, object_id, low, high, repair=True)
    total = 0.0
    for frame in range(low, high + 1):
        truth = (10, 20, 20, 40) if 0 <= frame - first < 20 else None
        box = tube.get(frame)
        if truth and box:
            width = max(0, min(truth[2], box[2]) - max(truth[0], box[0]))
            height = max(0, min(truth[3], box[3]) - max(truth[1], box[1]))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (truth, box)]
            total += width * height / (sum(areas) - width * height)
    return total / (max(ge, pe) - min(gs, ps) + 1)


FAR = {frame: (60, 0, 79, 19) for frame in range(40)}
WHOLE = {1: moving(range(40)), 2: FAR}


@pytest.mark.parametrize(
    ("objects", "object_id", "start", "end", "first", "expected"),
    [
        (WHOLE, 1, 1.0, 2.9, 10, 1.0),
        (WHOLE, 1, 1.0, 2.9, 11, 0.95),
        (WHOLE, 2, 1.0, 2.9, 10, 0.0),
        (WHOLE, 1, 2.0, 3.9, 10, 1 / 3),
        (WHOLE, 1, 3.0, 3.9, 10, 0.0),
        (WHOLE, 1, 2.9, 3.9, 10, 0.0),
        ({1: moving(range(20)), 2: FAR}, 1, 1.0, 2.9, 10, 0.5),
        ({1: moving(range(20))}, 1, 1.0, 2.9, 10, 1.0),
        ({1: moving(range(20, 40))}, 1, 1.0, 2.9, 10, 1.0),
        ({2: FAR, 3: moving(range(40))}, 9, 1.0, 2.9, 10, 0.0),
        ({2: {f: (60, 0, 63, 3) for f in range(40)}, 3: moving(range(40))}, 9, 1.0, 2.9, 10, 1.0),
    ],
)
def test_repair_gives_the_worked_values(objects, object_id, start, end, first, expected):
    assert viou(tracked(objects), object_id, start, end, first) == pytest.approx(expected, abs=1e-9)


def test_a_lost_object_goes_on_under_another_number():
    made = tracked({1: moving(range(20)), 7: moving(range(20, 40), 1), 2: FAR})
    tube = tube_of(made, 1, 10, 29, repair=True)
    assert tube[19] == (10, 20, 20, 40) and tube[20] == (11, 20, 21, 40)
    assert list(tube_of(made, 1, 10, 29)) == list(range(10, 20))


def test_before_it_is_first_seen_the_nearest_frame_decides():
    made = tracked({1: moving(range(20, 40)), 4: moving(range(20), 2), 2: FAR})
    tube = tube_of(made, 1, 10, 29, repair=True)
    assert tube[10] == tube[19] == (12, 20, 22, 40) and tube[20] == (10, 20, 20, 40)


# --- classes


def test_classes_by_mode_and_by_name():
    found = [Detection((0, 0, 1, 1), label, 0.9) for label in ("person", "dog", "person", "cup")]
    assert [one.label for one in wanted(found, "person")] == ["person", "person"]
    assert [one.label for one in wanted(found, "non-person")] == ["dog", "cup"]
    assert wanted(found, "all") == found and [one.label for one in wanted(found, ("cup",))] == ["cup"]
    with pytest.raises(ValueError, match="class mode 'people' is unknown"):
        wanted(found, "people")


@given(st.data())
def test_shares_and_overlaps_are_parts_of_one(data):
    boxes = st.tuples(*[st.integers(0, 25)] * 2, *[st.integers(26, 50)] * 2)
    frames = data.draw(st.integers(1, 6))
    objects = {n: {f: data.draw(boxes) for f in range(frames)} for n in range(1, data.draw(st.integers(1, 4)) + 1)}
    truth = [data.draw(boxes) for _ in range(frames)]
    found = match_tube(tracked(objects), 0, truth)
    if found:
        assert 0 < found.share <= 1 and 0 < found.mean_iou <= 1 and sum(found.votes.values()) <= frames
        assert max(found.votes.values()) == found.votes[found.object_id]
