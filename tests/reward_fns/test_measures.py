"""Laws of the overlap measures: range, identity, symmetry, growth towards the truth, and how they relate."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reward_fns import measures

SECONDS = st.floats(0, 1000).map(lambda value: round(value, 3))
ANY = st.floats(allow_nan=False, width=64)
HUGE = st.sampled_from([0.0, 5e-324, 1e308, 1.7e308, math.inf]) | st.floats(0, 1e6)


@st.composite
def intervals(draw):
    start, end = sorted((draw(SECONDS), draw(SECONDS)))
    assume(end > start)
    return start, end


SYMMETRIC = [
    measures.temporal_iou,
    measures.temporal_iou_union,
    measures.temporal_giou,
    measures.temporal_diou,
]


@pytest.mark.parametrize("measure", SYMMETRIC)
@given(a=intervals(), b=intervals())
def test_range_identity_symmetry(measure, a, b):
    lowest = -1.0 if measure in SYMMETRIC[2:] else 0.0
    assert lowest <= measure(*a, *b) <= 1.0
    assert measure(*a, *a) == 1.0
    assert measure(*a, *b) == pytest.approx(measure(*b, *a))


@pytest.mark.parametrize("measure", SYMMETRIC)
@given(bounds=st.tuples(HUGE, HUGE, HUGE, HUGE))
def test_always_finite(measure, bounds):
    assert math.isfinite(measure(*bounds))


@given(st.tuples(HUGE, HUGE), st.tuples(ANY, ANY, ANY))
def test_boundary_penalty_is_always_finite(answer, truth):
    assert math.isfinite(measures.temporal_iou_v2(*answer, *truth))


@given(intervals(), intervals())
def test_hull_and_union_agree(a, b):
    assert measures.temporal_iou(*a, *b) == pytest.approx(measures.temporal_iou_union(*a, *b))


@given(intervals(), st.floats(0, 1), st.floats(0, 1))
def test_grows_while_an_interval_inside_grows_towards_the_truth(truth, inner, outer):
    start, end = truth
    middle = (start + end) / 2
    small, large = sorted((inner, outer))
    grown = [
        measures.temporal_iou(middle - (middle - start) * s, middle + (end - middle) * s, *truth)
        for s in (small, large)
    ]
    assert grown[0] <= grown[1] + 1e-9


@given(intervals(), st.floats(0, 100), st.floats(0, 100))
def test_falls_while_an_interval_grows_beyond_the_truth(truth, one, other):
    near, far = sorted((one, other))
    start, end = truth
    assert measures.temporal_iou(start, end + near, *truth) >= measures.temporal_iou(start, end + far, *truth)
    assert measures.temporal_iou(start - near, end, *truth) >= measures.temporal_iou(start - far, end, *truth)


@given(intervals(), st.floats(1, 100), st.floats(1, 100))
def test_generalised_measures_tell_near_from_far(truth, one, other):
    near, far = sorted((one, other))
    assume(far - near > 1e-3)
    start, end = truth
    for measure in (measures.temporal_giou, measures.temporal_diou):
        assert measure(end + near, end + near + 1, *truth) > measure(end + far, end + far + 1, *truth)


@given(intervals(), intervals())
def test_boundary_penalty_only_lowers(a, b):
    duration = max(a[1], b[1])
    v2 = measures.temporal_iou_v2(*a, *b, duration)
    assert 0.0 <= v2 <= measures.temporal_iou(*a, *b)
    assert measures.temporal_iou_v2(*a, *a, duration) == 1.0


def test_boundary_penalty_is_not_clamped():
    assert measures.temporal_iou_v2(10, 90, 10, 20, 30) == pytest.approx(-1 / 6)


@pytest.mark.parametrize(
    "answer", [(11.0, 5.0), (7.0, 7.0), (11.0, 15.0), (0.0, 5.0), (12.5, 18.0), (math.inf, math.inf)]
)
def test_reversed_empty_touching_and_disjoint_earn_nothing(answer):
    assert measures.temporal_iou(*answer, 5.0, 11.0) == 0.0


@given(st.lists(intervals(), max_size=6), st.lists(intervals(), max_size=6))
def test_lists_of_intervals(a, b):
    value = measures.intervals_iou(a, b)
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(measures.intervals_iou(b, a))
    assert measures.intervals_iou(a, a) == 1.0
    assert measures.intervals_iou(a + a, b) == pytest.approx(value)
    assert measures.intervals_iou(list(reversed(a)), b) == pytest.approx(value)


@given(intervals(), intervals())
def test_lists_of_one_interval_are_plain_iou(a, b):
    assert measures.intervals_iou([a], [b]) == pytest.approx(measures.temporal_iou(*a, *b))


def test_lists_of_intervals_without_length():
    assert measures.intervals_iou([], []) == 1.0
    assert measures.intervals_iou([(1, 1)], [(5, 5)]) == 1.0
    assert measures.intervals_iou([], [(1, 2)]) == 0.0
    assert measures.intervals_iou([(1, math.inf)], [(1, 2)]) == 0.0


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_set_f1(a, b):
    assert 0.0 <= measures.set_f1(a, b) == measures.set_f1(b, a) <= 1.0
    assert measures.set_f1(a, a) == (1.0 if a else 0.0)
    assert (measures.set_f1(a, b) > 0) == bool(a & b)


@given(st.integers(0, 9), st.integers(0, 9))
def test_set_f1_of_one_id_is_an_exact_match(a, b):
    assert measures.set_f1([a], [b]) == float(a == b)


def test_overlaps_any_is_closed():
    assert measures.overlaps_any(3.0, 5.0, [(0.0, 1.0), (5.0, 6.0)])
    assert not measures.overlaps_any(3.0, 4.9, [(0.0, 1.0), (5.0, 6.0)])
    assert not measures.overlaps_any(5.5, 5.0, [(5.0, 6.0)])


@st.composite
def boxes(draw):
    x, y = draw(st.integers(0, 50)), draw(st.integers(0, 50))
    return x, y, x + draw(st.integers(1, 50)), y + draw(st.integers(1, 50))


@given(boxes(), boxes())
def test_box_iou(a, b):
    assert 0.0 <= measures.box_iou(a, b) == measures.box_iou(b, a) <= 1.0
    assert measures.box_iou(a, a) == 1.0
    assert measures.box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert measures.box_iou((0, 0, 0, 10), (0, 0, 0, 10)) == 0.0
    assert measures.box_iou((0, 0, 1e308, 1e308), (0, 0, 1e308, 1e308)) == 0.0


@given(st.dictionaries(st.integers(0, 8), boxes(), min_size=1), st.dictionaries(st.integers(0, 8), boxes(), min_size=1))
def test_tube_iou(a, b):
    value = measures.tube_iou(a, b)
    assert 0.0 <= value <= 1.0 and value == pytest.approx(measures.tube_iou(b, a))
    assert measures.tube_iou(a, a) == pytest.approx(1.0)
    assert measures.tube_iou(dict(reversed(a.items())), b) == pytest.approx(value)


@given(st.dictionaries(st.integers(0, 8), boxes(), min_size=2), st.integers(9, 20))
def test_missing_and_superfluous_frames_lower_a_tube(tube, extra):
    one = dict([next(iter(tube.items()))])
    assert measures.tube_iou(one, tube) == pytest.approx(1 / len(tube))
    assert measures.tube_iou({**tube, extra: (0, 0, 1, 1)}, tube) == pytest.approx(len(tube) / (len(tube) + 1))
