"""Metrics of evaluation: hand-worked values, laws, agreement with plain loops and with the rewards, and bad input."""

import math
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from reward_fns import measures
from verl_stvg.eval.metrics import (
    answers,
    gqa,
    intervals,
    lenient,
    masks,
    readers,
    rows,
    temporal,
    tube_scripts,
    tubes,
    videomind,
)

FEW = settings(max_examples=40)
SECONDS = st.floats(0, 100).map(lambda value: round(value, 2))
SPANS = st.tuples(SECONDS, SECONDS)
ANY = st.floats(width=64)
BOX = (10.0, 20.0, 50.0, 90.0)
FAR = (500.0, 500.0, 540.0, 590.0)


def tube(first, last, box=BOX):
    return {frame: box for frame in range(first, last + 1)}


@st.composite
def tubes_of(draw, max_size=12):
    found = draw(st.dictionaries(st.integers(0, 15), st.tuples(*[st.integers(0, 9)] * 4), max_size=max_size))
    return {frame: (x, y, x + w, y + h) for frame, (x, y, w, h) in found.items()}


# ---- temporal


@pytest.mark.parametrize(
    ("pred", "truth", "hull", "union", "iop"),
    [
        ((2, 8), (4, 10), 0.5, 0.5, 2 / 3),
        ((1, 4), (2, 6), 0.4, 0.4, 2 / 3),
        ((0, 50), (20, 30), 0.2, 0.2, 0.2),
        ((30, 40), (31, 39), 0.8, 0.8, 0.8),
        ((7, 7), (7, 7), 0, 0, 0),
        ((9, 3), (3, 9), 0, 0, 0),
        ((11, 12), (0, 10), 0, 0, 0),
        ((math.nan, math.nan), (0, 10), 0, 0, 0),
        ((math.nan, 5), (0, 10), 0, 0, 0),
        ((0, math.inf), (0, 10), 0, 0, 0),
        ((-math.inf, math.inf), (0, 10), 0, 0, 0),
        ((-1.7e308, 1.7e308), (0, 10), 0, 0, 0),
        ((-1.7e308, 1.7e308), (-1.7e308, 1.7e308), 0, 0, 0),
    ],
)
def test_interval_measures(pred, truth, hull, union, iop):
    found = [measure([pred], [truth])[0] for measure in (temporal.iou_hull, temporal.iou_union, temporal.iop)]
    assert found == pytest.approx([hull, union, iop], abs=1e-12)


def test_point_rules():
    points, truths = [(6, 6), (12, 12), (4, 4), (7, 7)], [(4, 10), (4, 10), (4, 10), (7, 7)]
    assert temporal.iop(points, truths).tolist() == [0, 0, 0, 0]
    assert temporal.iop(points, truths, point_rule="nextgqa").tolist() == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="point_rule"):
        temporal.iop(points, truths, point_rule="half")


@FEW
@given(st.lists(st.tuples(st.tuples(ANY, ANY), SPANS), min_size=1, max_size=20))
def test_vectorised_equals_the_rewards_measure_one_by_one(pairs):
    preds, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    hull, union = temporal.iou_hull(preds, truths), temporal.iou_union(preds, truths)
    for k, (pred, truth) in enumerate(pairs):
        if math.isfinite(pred[0]) and math.isfinite(pred[1]):
            assert hull[k] == pytest.approx(measures.temporal_iou(*pred, *truth), abs=1e-12)
            assert union[k] == pytest.approx(measures.temporal_iou_union(*pred, *truth), abs=1e-12)
        else:
            assert hull[k] == union[k] == 0
    precision = temporal.iop(preds, truths)
    for values in (hull, union, precision):
        assert ((values >= 0) & (values <= 1)).all()


@FEW
@given(st.lists(st.tuples(SPANS, SPANS), min_size=1, max_size=20), st.randoms())
def test_interval_laws(pairs, random):
    preds, truths = (np.array(side) for side in zip(*pairs, strict=True))
    for measure in (temporal.iou_hull, temporal.iou_union):
        values = measure(preds, truths)
        assert values == pytest.approx(measure(truths, preds), abs=1e-12)
        order = random.sample(range(len(pairs)), len(pairs))
        assert (measure(preds[order], truths[order]) == values[order]).all()
        table = temporal.summary(values, (0.1, 0.3, 0.5, 0.7, 0.9))
        shares = [table[f"R1@{m}"] for m in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert shares == sorted(shares, reverse=True)
        strict = temporal.summary(values, strict=True)
        assert all(strict[name] <= value for name, value in temporal.summary(values).items())
        assert temporal.summary(values[order]) == pytest.approx(temporal.summary(values))


@FEW
@given(st.lists(st.tuples(st.lists(SPANS, max_size=6), st.lists(SPANS, min_size=1, max_size=3)), max_size=6))
def test_several_intervals_equal_a_plain_loop(items):
    ranked, truths = [item[0] for item in items], [item[1] for item in items]
    for measure in (temporal.iou_hull, temporal.iop):
        before = np.zeros(len(items))
        for k in (1, 3, 5):
            found = temporal.top_k(measure, ranked, truths, k)
            plain = [
                max((measure([p], [t])[0] for p in pred[:k] for t in true), default=0.0)
                for pred, true in zip(ranked, truths, strict=True)
            ]
            assert found.tolist() == plain
            assert (found >= before).all()
            before = found
        first = temporal.as_intervals(pred[0] if pred else None for pred in ranked)
        assert temporal.best(measure, first, truths).tolist() == temporal.top_k(measure, ranked, truths, 1).tolist()


def test_thresholds():
    values = [0.3, 0.7 - 1e-12, 0.5 - 1e-6, 0.1 + 0.2]
    assert temporal.summary(values) == pytest.approx(
        {"R1@0.3": 1, "R1@0.5": 0.25, "R1@0.7": 0.25, "mIoU": sum(values) / 4}
    )
    strict = temporal.summary(values, strict=True)
    assert [strict["R1@0.3"], strict["R1@0.5"], strict["R1@0.7"]] == [0.75, 0.25, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: temporal.iou_hull([(1, 2)], [(1, math.nan)]), "truth 0 is not finite"),
        (lambda: temporal.iou_hull([(1, 2)], [(1, 2), (3, 4)]), "1 predictions for 2 truths"),
        (lambda: temporal.iou_hull([1, 2], [1, 2]), "shape"),
        (lambda: temporal.best(temporal.iou_hull, [(1, 2)], [[]]), "item 0 has no annotated"),
        (lambda: temporal.best(temporal.iou_hull, [(1, 2)], [[(1, 2)], [(1, 2)]]), "1 predictions for 2 items"),
        (lambda: temporal.top_k(temporal.iou_hull, [[]], [[(1, 2)]], 0), "k is at least 1"),
        (lambda: temporal.top_k(temporal.iou_hull, [[]], [], 1), "1 items for 0"),
        (lambda: temporal.as_intervals([(1, 2), (1, 2, 3)]), "interval 1 has 3 bounds"),
        (lambda: temporal.summary([]), "no items"),
    ],
)
def test_bad_intervals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_whole_activitynet_takes_less_than_a_second():
    rng = np.random.default_rng(0)
    preds, truths = (np.sort(rng.uniform(0, 200, (17031, 2)), axis=1) for _ in range(2))
    start = time.process_time()
    temporal.summary(temporal.iou_hull(preds, truths))
    temporal.best(temporal.iop, preds, [[pair] for pair in truths.tolist()])
    assert time.process_time() - start < 1


# ---- tubes


def test_checked_value_of_the_challenge():
    truths = {"a": tube(10, 29), "b": tube(0, 9)}
    found, true = rows.aligned({"a": tube(20, 39)}, truths)
    table = tubes.summary(*tubes.scores(found, true))
    assert table == pytest.approx({"m_tIoU": 1 / 6, "m_vIoU": 1 / 6, "vIoU@0.3": 0.5, "vIoU@0.5": 0})
    one = tube_scripts.hcstvg_challenge(
        {str(frame): box for frame, box in tube(20, 39).items()},
        (20, 39),
        {str(f): BOX for f in range(10, 30)},
        (10, 29),
    )
    assert one == pytest.approx((1 / 3, 1 / 3))


def test_recall_is_strictly_above():
    assert tubes.summary([0.5], [0.5])["vIoU@0.5"] == 0
    assert tubes.summary([0.5], [0.5], strict=False)["vIoU@0.5"] == 1


TRACKS = {frame: {1: BOX, 2: FAR} for frame in range(60)}
SHIFTED = (BOX[0] + 1, BOX[1], BOX[2] + 1, BOX[3])
LARGE = (0.0, 300.0, 400.0, 700.0)


def _lost(then):
    return {frame: {1: BOX, 2: FAR} if frame < 20 else then for frame in range(60)}


def _same(box):
    """Gives the object that 7 is: the target, one pixel to the right."""
    return {7: box, 2: FAR}


@pytest.mark.parametrize(
    ("object_id", "interval", "objects", "shift", "expected"),
    [
        (1, (1.0, 2.9), TRACKS, 0, 1.0),
        (1, (1.0, 2.9), TRACKS, 1, 0.95),
        (2, (1.0, 2.9), TRACKS, 0, 0.0),
        (1, (2.0, 3.9), TRACKS, 0, 1 / 3),
        (1, (3.0, 3.9), TRACKS, 0, 0.0),
        (1, (2.9, 3.9), TRACKS, 0, 0.0),
        (1, (1.0, 2.9), _lost(_same(SHIFTED)), 0, (10 + 10 * 39 / 41) / 20),
        (1, (1.0, 2.9), _lost({2: FAR}), 0, 0.5),
        (1, (1.0, 2.9), _lost({}), 0, 1.0),
        (9, (1.0, 2.9), {frame: {1: BOX, 2: LARGE} for frame in range(60)}, 0, 0.0),
        (9, (1.0, 2.9), {frame: {1: BOX, 2: (0, 0, 1, 1)} for frame in range(60)}, 0, 1.0),
        (None, (1.0, 2.9), {frame: {1: BOX} for frame in range(60)}, 0, 1.0),
        (1, (1.0, 2.9), {frame: here for frame, here in TRACKS.items() if frame % 2 == 0}, 0, 0.5),
        (1, (1.0, math.inf), TRACKS, 0, 0.0),
    ],
)
def test_table_of_stvg_r1(object_id, interval, objects, shift, expected):
    tiou, viou = tube_scripts.stvg_r1(object_id, interval, tube(10, 29), (1.0, 2.9), objects, 10, shift)
    assert viou == pytest.approx(expected)
    assert 0 <= tiou <= 1


def test_stvg_r1_before_the_object_is_first_seen():
    objects = {10: {3: SHIFTED, 2: FAR}, 11: {}, 12: {1: BOX}}
    assert tube_scripts.stvg_r1_boxes(objects, 1, 9, 12) == {10: SHIFTED, 12: BOX}
    assert tube_scripts.stvg_r1_boxes({10: {}, 12: {1: BOX}}, 1, 9, 12) == {10: BOX, 12: BOX}


def test_tubedetr_counts_sampled_frames():
    sampled = tube_scripts.sampled_frames(0, 499, 25)  # a video of 500 frames, 20 s
    assert sampled.tolist() == list(range(0, 499, 5))
    assert len(tube_scripts.sampled_frames(0, 100_000, 25)) == 200
    assert tube_scripts.sampled_frames(7, 7, 25).tolist() == [7]
    truth, span = tube(10, 29), (10, 30)
    assert tube_scripts.tubedetr(tube(0, 99), (10, 30), truth, span, sampled) == (1, 1, 1)
    # Half of the time: frames 10 and 15 of 10, 15, 20, 25; the prediction covers all of them in space.
    assert tube_scripts.tubedetr(tube(0, 99), (10, 20), truth, span, sampled) == (0.5, 0.5, 1)
    # One frame late: 11 to 30 have boxes, so that 15, 20, 25, 30 are annotated, and 10 is in the hull.
    assert tube_scripts.tubedetr(tube(0, 99), (10, 31), truth, span, sampled, shift=1) == pytest.approx(
        (20 / 21, 0.8, 1)
    )
    with pytest.raises(ValueError, match="cannot be sampled"):
        tube_scripts.sampled_frames(0, 10, 3)


def test_cgstvg_fills_gaps_and_drops_the_last_frame():
    sparse = {0: BOX, 40: BOX}
    tiou, viou, within = tube_scripts.cgstvg(sparse, (10, 30), tube(10, 29), (10, 29))
    assert (tiou, viou, within) == pytest.approx((19 / 20, 19 / 20, 1))
    moving = {0: (0, 0, 10, 10), 10: (10, 0, 20, 10)}
    assert tube_scripts.cgstvg(moving, (0, 10), {5: (5, 0, 15, 10)}, (5, 6))[2] == pytest.approx(1)


def test_st_align():
    frames = tube_scripts.st_align_frames(100, 298)
    assert frames[0] == 100 and frames[-1] == 298 and len(frames) == 100 and (np.diff(frames) == 2).all()
    truth = {int(frame): BOX for frame in frames[10:30]}
    found = {int(frame): BOX for frame in frames[20:40]}
    one = tube_scripts.st_align(found, (40 / 198, 78 / 198), truth, (120, 158), (100, 298))
    assert one == pytest.approx(((0.293 - 40 / 198) / (78 / 198 - 0.101), 1 / 3, 1))
    assert tube_scripts.st_align({}, (0.1, 0.2), truth, (120, 158), (100, 298))[1:] == (0, 0)


@FEW
@given(tubes_of(), tubes_of())
def test_tubes_equal_a_plain_loop_and_the_reward(found, truth):
    if not truth:
        with pytest.raises(ValueError, match="no frames"):
            tubes.tiou_viou(found, truth)
        return
    tiou, viou = tubes.tiou_viou(found, truth)
    assert viou == pytest.approx(measures.tube_iou(found, truth))
    assert tiou == pytest.approx(len(found.keys() & truth.keys()) / len(found.keys() | truth.keys()))
    assert 0 <= viou <= tiou <= 1
    if found:
        assert tubes.tiou_viou(truth, found) == pytest.approx((tiou, viou))
    backwards = dict(reversed(list(found.items())))
    arrays = (list(backwards), [list(box) for box in backwards.values()])
    assert tubes.tiou_viou(backwards, truth) == tubes.tiou_viou(arrays, truth) == (tiou, viou)


@FEW
@given(st.lists(st.tuples(tubes_of(), tubes_of()), min_size=1, max_size=6), st.randoms())
def test_tables_do_not_depend_on_the_order(items, random):
    items = [(found, {0: BOX} | truth) for found, truth in items]
    table = tubes.summary(*tubes.scores(*zip(*items, strict=True)), thresholds=(0.1, 0.3, 0.5, 0.9))
    random.shuffle(items)
    assert tubes.summary(*tubes.scores(*zip(*items, strict=True)), thresholds=(0.1, 0.3, 0.5, 0.9)) == pytest.approx(
        table
    )
    shares = [table[f"vIoU@{r}"] for r in (0.1, 0.3, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True)


@FEW
@given(st.lists(st.tuples(*[st.integers(-5, 9)] * 8), max_size=10))
def test_box_iou_equals_the_reward_one_by_one(pairs):
    boxes = np.array(pairs, dtype=float).reshape(-1, 8)
    plain = [measures.box_iou(pair[:4], pair[4:]) for pair in boxes]
    assert tubes.box_iou(boxes[:, :4], boxes[:, 4:]).tolist() == pytest.approx(plain)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tubes.tiou_viou({0: (0, 0, math.nan, 1)}, {0: BOX}), "frame 0 is not finite"),
        (lambda: tubes.tiou_viou({0: BOX}, {3: (0, 0, math.inf, 1)}), "frame 3 is not finite"),
        (lambda: tubes.tiou_viou({0: (0, 0, 1)}, {0: BOX}), "frame 0 has 3 numbers"),
        (lambda: tubes.tiou_viou({"4": BOX, 4: BOX}, {0: BOX}), "frame 4 occurs twice"),
        (lambda: tubes.tiou_viou(([0, 1], [BOX]), {0: BOX}), "found .2,. and .1, 4."),
        (lambda: tubes.tiou_viou(None, {}), "no frames"),
        (lambda: tubes.consecutive(5, [BOX] * 3, length=4), "4 frames has 3 boxes"),
        (lambda: tubes.scores([None, {0: (0, 0, 1)}], [{0: BOX}] * 2), "item 1: the box"),
        (lambda: tubes.scores([None], [{0: BOX}] * 2), "1 predictions for 2"),
        (lambda: tubes.summary([], []), "at least one"),
    ],
)
def test_bad_tubes(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_missing_extra_and_double_rows():
    truths = {"a": 1, "b": 2}
    assert rows.aligned({"b": 20}, truths) == ([None, 20], [1, 2])
    for found, missing, words in (
        ({"b": 20}, "error", "1 of 2 predictions are missing, such as .'a'."),
        ({"a": 1, "c": 3}, "none", "1 predictions have no truth, such as .'c'."),
        ({}, "zero", "'none' or 'error'"),
    ):
        with pytest.raises(ValueError, match=words):
            rows.aligned(found, truths, missing)
    with pytest.raises(ValueError, match="no truths"):
        rows.aligned({}, {})
    with pytest.raises(ValueError, match="two rows have the ID 3"):
        rows.by_id([3, 4, 3], lambda row: row)
    assert tubes.tiou_viou(None, {0: BOX}) == (0, 0)


def test_whole_hcstvg_takes_less_than_two_seconds():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 100, (600, 4)) + [0, 0, 100, 100]
    truths = [(np.arange(600), boxes)] * 1160
    found = [(np.arange(100, 700), boxes)] * 1160
    start = time.process_time()
    tiou, viou = tubes.scores(found, truths)
    assert time.process_time() - start < 2
    assert tiou == pytest.approx(5 / 7)


# ---- masks


def encoded(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def disc(x, radius=12):
    picture = np.zeros((60, 80), np.uint8)
    cv2.circle(picture, (x, 30), radius, 1, -1)
    return picture.astype(bool)


def test_masks_worked_by_hand():
    empty, full = np.zeros((4, 6), bool), np.ones((4, 6), bool)
    assert (masks.region_similarity(empty, empty), masks.boundary_accuracy(empty, empty)) == (1, 1)
    assert (masks.region_similarity(empty, full), masks.region_similarity(full, full)) == (0, 1)
    square = empty.copy()
    square[1:3, 1:3] = True
    assert masks.boundary(square).astype(int).tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert masks.boundary_accuracy(square, empty) == masks.boundary_accuracy(empty, square) == 0
    assert masks.boundary_accuracy(full, empty) == 1  # a mask that fills the picture has no boundary
    half = empty.copy()
    half[1:3, 1:2] = True
    assert masks.region_similarity(square, half) == 0.5


def test_tolerance_of_boundaries():
    # The diagonal of 60 x 80 is 100 and the tolerance 1 pixel: two pixels apart only crossing pixels meet.
    assert masks.boundary_accuracy(disc(30), disc(31)) == 1
    assert 0 < masks.boundary_accuracy(disc(30), disc(32)) < 1
    assert masks.boundary_accuracy(disc(30), disc(32), tolerance=0.02) == 1


@FEW
@given(st.integers(0, 79), st.integers(0, 79), st.integers(1, 25), st.integers(1, 25))
def test_mask_laws(x, other_x, radius, other_radius):
    one, other = disc(x, radius), disc(other_x, other_radius)
    for measure in (masks.region_similarity, masks.boundary_accuracy):
        assert 0 <= measure(one, other) <= 1
        assert measure(one, other) == pytest.approx(measure(other, one))
        assert measure(one, one) == 1


def test_expressions_of_several_objects():
    truth = [[encoded(disc(20)), encoded(disc(60))], [None], [encoded(disc(20))]]
    found = [encoded(disc(20) | disc(60)), None, None]
    assert masks.j_f(found, truth, (60, 80)) == pytest.approx((2 / 3, 2 / 3))
    text = [{"size": [60, 80], "counts": found[0]["counts"].decode()}, None, None]
    assert masks.j_f(text, truth, (60, 80)) == masks.j_f(found, truth, (60, 80))
    assert masks.j_f(None, truth, (60, 80)) == (0, 0)
    assert masks.summary([(1.0, 0.5), (0.0, 0.0)]) == {"J": 0.5, "F": 0.25, "J&F": 0.375}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: masks.j_f([None], [[None]] * 2, (60, 80)), "1 frames for 2"),
        (lambda: masks.j_f([encoded(disc(3))], [[None]], (80, 60)), "size .60, 80. in a video of .80, 60."),
        (lambda: masks.j_f([], [], (60, 80)), "no frames"),
        (lambda: masks.region_similarity(np.ones((2, 3)), np.ones((3, 2))), "one size"),
        (lambda: masks.summary([]), "no expressions"),
    ],
)
def test_bad_masks(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- answers


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(C)", "C"),
        ("(c) a dog", "C"),
        ("D: a dog", "D"),
        ("Best option is (A).", "A"),
        ("<think>(B)?</think><answer>(A)</answer>", "A"),
        ('<answer>{"option": "D"}</answer>', "D"),
        ("<answer></answer>B", None),
        ("A cat", None),
        ("a.m. it was", None),
        ("Best option is B", None),
        ("E", None),
        ("F)", None),
        ("", None),
        ("()", None),
        ("Ⓐ", None),
    ],
)
def test_our_option_reader(text, letter):
    assert answers.read_option(text, 4) == letter


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("B", True),
        ("Best option is B", True),
        ("A cat", False),
        ("b. x\ny", True),
        ('<answer>"("x")"</answer>', None),
        ('<answer>"()"</answer>', None),
        ('<answer>"(\n)" "D"</answer>', None),
        (" B", None),
        ("", None),
    ],
)
def test_the_option_reader_of_videomind(text, right):
    assert answers.check_ans(5, "B", text) is right


def test_accuracies():
    assert answers.accuracy(["A", None, "B"], ["A", "B", "C"]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no items"):
        answers.accuracy([], [])
    with pytest.raises(ValueError, match="A to Z"):
        answers.read_option("A", 27)


PIECES = st.lists(
    st.sampled_from('1 2.5 .. - to TO and starts ends ! ? ( ) "( )" "A" , . : B E <answer> </answer> <think>'.split())
    | st.sampled_from([" ", "\n", "٣", "ſ", "\x1f", "𝟗", "1,2", '</think><answer>{"start_time": "', '"}</answer>']),
    max_size=15,
).map("".join)


@settings(max_examples=150)
@given(PIECES | st.text(max_size=30))
def test_readers_never_raise(text):
    readers.extract_time(readers.extract_timestamps(text))
    readers.extract_time(text, example=text[:2])
    readers.parse_timestamp_output(text)
    answers.read_option(text, 4)
    answers.check_ans(4, "A", text)
    time = lenient.read_time(text)
    assert time is None or all(map(math.isfinite, time))


@pytest.mark.parametrize(
    "read",
    [
        lenient.read_time,
        readers.extract_time,
        readers.extract_timestamps,
        readers.parse_timestamp_output,
        lambda text: answers.read_option(text, 4),
    ],
)
@pytest.mark.parametrize(
    "part",
    [
        "1",
        ".",
        "-",
        " ",
        "1.",
        "1 -",
        "- 1",
        '"(',
        "<answer>",
        "</answer>",
        "\n",
        "\t",
        '"("',
        "start 1",
        "a.",
        "1 to ",
        "1,",
        "1:00",
        "start ",
        "[1",
        "{",
        "\\boxed{",
        "frames ",
        "（",
    ],
)
def test_readers_take_linear_time(read, part):
    for around in ("{}x\ny", "<answer>{}</answer>", '<think></think><answer>{{"start_time": "{}', "A. {}x\ny"):
        times = []
        for size in (10_000, 40_000):
            text = around.format(part * (size // len(part)))
            start = time.process_time()
            read(text)
            times.append(time.process_time() - start)
        assert times[1] < 8 * times[0] + 0.05


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("From 5 to 12 seconds.", [[5, 12]]),
        ("12 - 5", [[5, 12]]),
        ("1.2.3 - 4", [[2.3, 4]]),
        ("1..2 - 4", []),
        ("5. - 7", [[5, 7]]),
        (".5 - 7", [[5, 7]]),
        ("- 3 - x 4 - 6", [[4, 6]]),
        ("it starts at 7\nand ends at 3", [[3, 7]]),
        ("It starts at 3 and ends at 9", []),
        ("e.g. 1 - 2 seconds. Then 5 - 6", [[1, 2]]),
    ],
)
def test_extract_time(text, expected):
    assert readers.extract_time(text) == expected
    assert readers.extract_time("e.g. 1 - 2 seconds. Then 5 - 6", example="E.g. 1 - 2") == [[5, 6]]
    # The example of TimeChat's prompt is deleted unless told otherwise (eval_tvg.py).
    assert readers.extract_time("a specific example is : 20.8 - 30.0 seconds. It happens in 5 - 9 seconds") == [[5, 9]]
    assert readers.extract_time("A specific example is : 20.8 - 30.0 seconds", example="") == [[20.8, 30]]


# Every line of the table "What the lenient reader accepts" in docs/evaluation.md, in its order, then what is None.
MEANT = {
    "4.25 to 9.75": (4.25, 9.75),
    "From 4 to 9 seconds.": (4, 9),
    "between 4 and 9 seconds": (4, 9),
    "3s to 5s": (3, 5),
    "3 sec until 5 seconds": (3, 5),
    "3 - 5": (3, 5),
    "3.5–9 s": (3.5, 9),
    "01:10 to 01:20": (70, 80),
    "0:05 - 0:12": (5, 12),
    "00:01:05.5 to 00:01:10": (65.5, 70),
    "12:30:00 to 12:30:05": (45000, 45005),
    "3,5 to 7,25": (3.5, 7.25),
    "３ to １２．５": (3, 12.5),
    "０１：１０～０１：２０": (70, 80),
    "٣ to ٥": (3, 5),
    '{"start_time": "4.2", "end_time": "9.7"}': (4.2, 9.7),
    '{"start": 4.2, "end": "0:09.7"}': (4.2, 9.7),
    '{"time": [3, 5], "boxes": {}}': (3, 5),
    '```json\n{"start": 3, "end": 5}\n```': (3, 5),
    "{'start': 3, 'end': 5}": (3, 5),
    "[3.5,5]": (3.5, 5),
    "(3.5,5)": (3.5, 5),
    "[(4.2, 9.7), (20.0, 30.0)]": (4.2, 9.7),
    "[[0:05, 0:12]]": (5, 12),
    "\\boxed{3 to 5}": (3, 5),
    "$\\boxed{[3, 5]}$": (3, 5),
    "**3.0** to **5.0**": (3, 5),
    "starts at 3.5 seconds and ends at 9 seconds": (3.5, 9),
    "Start time: 0:08\nEnd time: 0:11": (8, 11),
    "Target ID: [2], Time range: [5.00s] to [9.00s]": (5, 9),
    "9 to 3": (9, 3),
    "3 to 5. Yes, 3 to 5.": (3, 5),
    "": None,
    "7": None,
    "no such moment": None,
    "3 to 5, or 8 to 10": None,
    "1 to 2 to 3": None,
    "-3 to 5": None,
    "-3 - 9": None,
    "1.2.3 to 4": None,
    "1:99 to 2:00": None,
    "1,200 to 1,300": None,
    "3,5": None,
    "3 min to 5 min": None,
    "30% to 40%": None,
    "frames 30 to 60": None,
    "persons 1 and 2 walk": None,
    "2024-05-06": None,
    "nan to 5": None,
    '{"start": 1e400, "end": 4}': None,
    '{"start": true, "end": 4}': None,
    "[1, 2, 3]": None,
}


AROUND = (
    "<think>1 to 2</think>\n<answer>{}</answer>",
    "<think>1 to 2</think><answer>{}",
    "<answer> {}\n</answer>.",
    "<think>1 to 2</think> {}",
    "<answer>0 to 1</answer> No: <answer>{}</answer>",
)


@pytest.mark.parametrize("said", MEANT)
def test_the_lenient_reader_reads_what_is_meant(said):
    assert lenient.read_time(said) == MEANT[said]
    for around in AROUND:
        assert lenient.read_time(around.format(said)) == MEANT[said], around
    assert lenient.read_time(f"<think>{said}") is None  # reasoning that never ends


def test_the_lenient_reader_agrees_with_the_rewards_on_their_own_forms():
    rng = np.random.default_rng(1)
    for start, end in rng.uniform(0, 999, (200, 2)).round(2).tolist():
        pair = start, end
        assert lenient.read_time(f"<think>x</think><answer>{start} to {end}</answer>") == pair
        assert lenient.read_time(f"<answer>Target ID: 2, Time range: {start:.2f} to {end:.2f}</answer>") == pair
        assert lenient.read_time(f'<answer>{{"start_time": "{start}", "end_time": "{end}"}}</answer>') == pair


def test_capitals_do_not_separate_a_pair():
    assert readers.parse_timestamp_output("1 TO 2 to 3 And 4") == (2, 3)
    assert readers.parse_timestamp_output("1 AND 2") is None


# ---- grounded questions


def test_grounded_questions():
    truths, preds = [[(2, 6)], [(8, 12), (14, 18)], [(0, 10)]], [(2, 6), (15, 17), (math.nan, math.nan)]
    values = gqa.grounded_qa(preds, truths, [False, True, True])
    means = {"IoU": 0.5, "IoP": 2 / 3, "Acc@QA": 2 / 3, "Acc@GQA": 1 / 3, "Acc@IoU": 1 / 3}
    assert {name: found.mean() for name, found in values.items()} == pytest.approx(means)
    assert [temporal.reaches(values[name], 0.3).mean() for name in ("IoU", "IoP")] == pytest.approx([2 / 3, 2 / 3])
    assert [temporal.reaches(values[name], 0.5).mean() for name in ("IoU", "IoP")] == pytest.approx([2 / 3, 2 / 3])
    with pytest.raises(ValueError, match="3 questions"):
        gqa.grounded_qa(preds, truths, [True])


def test_points_reach_full_precision_by_the_script_of_nextgqa_only():
    assert gqa.grounded_qa([(5, 5)], [[(0, 10)]], [True], point_rule="nextgqa")["IoP"].tolist() == [1]
    assert gqa.grounded_qa([(5, 5)], [[(0, 10)]], [True])["IoP"].tolist() == [0]
    assert gqa.grounded_qa([(0, 10)], [[(0, 10)]], [False], point_rule="nextgqa")["Acc@GQA"].tolist() == [0]


def test_videomind_tables():
    row = {"pred": [[0, 4]], "conf": [0], "span": [[0, 8]], "question": "", "options": "abcd", "ans": "A"}
    tables = videomind.eval_auto(
        [
            {**row, "task": ["x", "y"], "response": "A"},
            {**row, "task": "all", "response": "", "grounder_success": False},
            {"question": "", "options": "ab", "ans": "B", "response": "b"},
        ]
    )
    assert tables["QA"]["all"] == {
        "#Samples": 3, "Failed": 1, "Acc": 66.67, "Acc (IoU >= 0.5)": 33.33, "Acc (IoP >= 0.5)": 33.33,
    }  # fmt: skip
    assert list(tables["Grounding (IoU)"]) == ["all", "unknown", "x", "y"]
    assert tables["Grounding (IoP)"]["all"] | {"R1@0.3": 100.0, "Failed": 1} == tables["Grounding (IoP)"]["all"]
    with pytest.raises(ValueError, match="no prediction"):
        videomind.iou_iop([], [[0, 1]])


def test_videomind_rounds_frames_to_the_nearest_even_number():
    assert videomind.smart_nframes(69, 3.0) == 46
    assert videomind.smart_nframes(23, 10.0, fps=2.0) == 4
    assert videomind.smart_nframes(59, 10.0) == 12
    with pytest.raises(ValueError, match="video of 1"):
        videomind.smart_nframes(1, 30.0)


# ---- confidence


def test_bootstrap_interval():
    values = np.random.default_rng(3).random(400)
    mean, low, high = intervals.bootstrap(values)
    assert mean == pytest.approx(values.mean())
    error = values.std() / 20
    assert (mean - low, high - mean) == pytest.approx((1.96 * error, 1.96 * error), rel=0.15)
    assert intervals.bootstrap(values).tolist() == [mean, low, high]
    assert intervals.bootstrap(values, seed=1).tolist() != [mean, low, high]
    wide, narrow = intervals.bootstrap(values, 0.99), intervals.bootstrap(values, 0.5)
    assert wide[1] < low < narrow[1] < narrow[2] < high < wide[2]


def test_bootstrap_of_several_metrics_shares_draws():
    values = np.random.default_rng(3).random(50)
    both = intervals.bootstrap(np.stack([values, 2 * values], axis=1))
    assert both[:, 0] == pytest.approx(intervals.bootstrap(values))
    assert both[:, 1] == pytest.approx(2 * both[:, 0])


def test_bootstrap_draws_whole_groups():
    values = np.repeat([0.0, 1.0] * 10, 20)
    videos = np.repeat(np.arange(20), 20).tolist()
    alone, grouped = intervals.bootstrap(values), intervals.bootstrap(values, groups=videos)
    assert grouped[0] == alone[0] == 0.5
    assert grouped[2] - grouped[1] > 3 * (alone[2] - alone[1])
    assert 0 < grouped[1] < 0.5 < grouped[2] < 1
    assert intervals.bootstrap(values, groups=range(400)) == pytest.approx(alone)
    assert intervals.bootstrap(np.ones(7)).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([], {}, "at least one item"),
        ([1, math.nan], {}, "not finite"),
        ([1, 2], {"groups": ["a"]}, "1 groups for 2"),
        ([1, 2], {"confidence": 95}, "between 0 and 1"),
        ([1, 2], {"resamples": 0}, "below 1"),
    ],
)
def test_bad_bootstrap(values, options, words):
    with pytest.raises(ValueError, match=words):
        intervals.bootstrap(values, **options)
