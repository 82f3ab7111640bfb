"""Tubes: frames count in what is shown, boxes by whole second, what speaks against a tube, what nothing can meet."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_fns import RECIPES
from reward_fns.perfect import perfect_answer
from tests.video.test_decode import write_counting_video
from verl_stvg.data_builders import check, make_row, row_schema, show, templates, tubes
from verl_stvg.data_builders.check_rows import row_problems
from verl_stvg.data_builders.objects.boxes import out_of_reach
from verl_stvg.data_builders.records import Record
from verl_stvg.data_builders.videos import Facts
from verl_stvg.eval.benchmarks.items import Prediction, item_of, read_answer
from verl_stvg.eval.metrics.tubes import from_seconds
from verl_stvg.eval.report import clips, replies
from verl_stvg.eval.report.boxes import objects_of
from verl_stvg.eval.score import score
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.row import Row
from verl_stvg.rows.shape import row_shape_problems
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.decode import probe
from verl_stvg.video.plan import plan_video

FACTS = Facts(96, 12.0, 336, 224, "0" * 32)
MOVING = tuple((10.0 + k / 4, 20.0, 60.0 + k / 4, 120.0) for k in range(96))  # three pixels a second


def record(first=24, boxes=MOVING[:24], start=2.0, end=4.0, **more) -> Record:
    given_fields = {"where": "line 1", "key": "k", "video": "v.mp4", "query": "It walks.", "intervals": ((start, end),)}
    return Record(**given_fields | {"tube": {"first_frame": first, "boxes": tuple(boxes)}} | more)


def made(one: Record, template="stvg_boxes", split="train", facts=FACTS, **more) -> dict:
    maker = make_row.RowMaker("generic", split, templates.find(template), **more)
    [found] = maker.rows(one, make_row.Video("v.mp4", facts))
    found["extra_info"]["index"] = 0
    return found


def truth_of(found: dict) -> dict:
    return {key: value for key, value in found["reward_model"]["ground_truth"].items() if value is not None}


def answered(time, boxes) -> str:
    said = {"time": list(time), "boxes": {str(key): list(box) for key, box in boxes.items()}}
    return f"<think>It walks.</think>\n<answer>{json.dumps(said)}</answer>"


def value(found: dict, text: str, name: str = "m_vIoU") -> float:
    scores = score([found], {found["extra_info"]["uid"]: Answer(found["extra_info"]["uid"], (text,))})
    return scores.metrics[name]["value"] if name in scores.metrics else 0.0


# --- frames of what is shown ------------------------------------------------------------------------------------------

CLIP = {"clip": (2.0, 6.0), "start": 0.0, "end": 2.0}


@pytest.mark.parametrize("template", ["stvg_boxes", "stvg_boxes_seconds"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_perfect_answer_about_a_part_of_a_file_earns_everything(template, split):
    found = made(record(**CLIP), template, split)
    truth = truth_of(found)
    assert (truth["first_frame"], found["extra_info"]["first_frame_of"]) == (0, "shown")
    text = perfect_answer(template, truth)
    recipe = RECIPES[template]
    assert recipe.score(text, truth)["score"] == pytest.approx(sum(weight for _, weight in recipe.parts.values()))
    item = item_of(found)
    assert item.true_frames == (24, 47)  # of the file, in which tracks and scripts count
    assert value(found, text, "m_tIoU") == pytest.approx(1) and value(found, text) > 0.97


@given(st.integers(0, 60), st.integers(0, 30), st.integers(1, 30), st.booleans())
@settings(max_examples=60)
def test_a_clip_moves_prompt_reward_and_metric_alike(begin, first, count, uneven):
    """The frame of a whole file that a clip begins with: what was frame n of the file is frame n - begin."""
    times = tuple(k / 12 + (0.02 if k % 2 else 0.0) for k in range(96)) if uneven else None
    facts = replace(FACTS, times=times, end=8.0 if uneven else None)
    clock, last = facts.clock, begin + first + count
    if last > 96:
        return
    tube = {"first": begin + first, "boxes": MOVING[:count]}
    start, end = clock.seconds(begin + first), clock.seconds(last)
    in_whole = made(record(start=start, end=end, **tube), split="test", facts=facts)
    shown = clock.seconds(begin)
    in_part = made(record(start=start - shown, end=end - shown, clip=(shown, 8.0), **tube), split="test", facts=facts)
    assert truth_of(in_part)["first_frame"] == first and truth_of(in_whole)["first_frame"] == begin + first
    assert item_of(in_part).true_frames == item_of(in_whole).true_frames
    for found in (in_part, in_whole):
        text = perfect_answer("stvg_boxes", truth_of(found))
        assert RECIPES["stvg_boxes"].score(text, truth_of(found))["tube_iou"] == pytest.approx(1)
        assert value(found, text) == pytest.approx(1)


def test_the_prompt_says_what_frames_and_pixels_are():
    [turn] = made(record(), facts=replace(FACTS, fps=12.5))["prompt"]
    for said in ("12.5 frames per second", "frame 53 is seen at 4.25 seconds", "336 pixels wide and 224 pixels high"):
        assert said in turn["content"]
    assert "{" not in turn["content"].replace('{"time"', "").replace('{"53"', "")
    [turn] = made(record(extra={"width": 168, "height": 112}))["prompt"]
    assert "168 pixels wide and 112 pixels high" in turn["content"]
    assert truth_of(made(record(extra={"width": 168, "height": 112})))["picture"] == [168, 112]
    [turn] = made(record(query="Say {rate} and {frame}"))["prompt"]
    assert "say {rate} and {frame}" in turn["content"]


def test_what_only_the_video_knows_is_asked_for():
    with pytest.raises(make_row.Drop, match="give --videos"):
        made(record(**CLIP), facts=None, policies=make_row.Policies())
    known = {"duration": 8.0, "extra": {"fps": 12.0, "width": 336, "height": 224}}
    assert truth_of(made(record(**known), facts=None))["first_frame"] == 24
    with pytest.raises(make_row.Drop, match="give --videos"):
        made(record(**CLIP | known), facts=None)
    with pytest.raises(make_row.Drop, match="the tube begins before the part that is shown"):
        made(record(first=20, **CLIP))
    evaluated = made(record(first=20, **CLIP), "time_r1", "test")
    assert truth_of(evaluated)["first_frame"] == -4 and item_of(evaluated).true_frames == (20, 43)
    unlooked = made(
        record(**CLIP), "time_r1", "test", None
    )  # the annotation counts in the file, and the row says no more
    assert truth_of(unlooked)["first_frame"] == 24 and unlooked["extra_info"]["first_frame_of"] is None


def test_rows_of_older_versions_are_named(tmp_path):
    found = made(record(**CLIP))
    assert problems(found) == []
    found["reward_model"]["ground_truth"]["first_frame"] = 24
    found["extra_info"]["first_frame_of"] = None
    [(problem, detail, serious)] = row_problems(Row(found))
    assert (problem, serious) == ("frame numbers", True) and "build the rows again" in detail
    assert item_of(found).true_frames == (24, 47)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_counting_video(tmp_path_factory.mktemp("videos") / "v.mp4", stamps=[40 * k for k in range(100)])


def test_boxes_are_drawn_on_the_frames_of_the_file(video):
    """Of 25 frames per second: shown from 1 s on, the tube is 2 to 2.4 s of the file."""
    info = probe(video)
    facts = Facts.of(info, "")
    boxes = ((0.0, 0.0, 28.0, 28.0),) * 10
    found = made(record(50, boxes, 1.0, 1.4, clip=(1.0, 3.0)), facts=facts)
    truth, extra = truth_of(found), found["extra_info"]
    assert truth["first_frame"] == 25
    first = info.clock.in_file(truth["first_frame"], 1.0, extra["first_frame_of"])
    drawn = show._boxes(truth["boxes"], first, None, [49, 50, 59, 60], info)
    assert [box is not None for box in drawn] == [False, True, True, False]
    pq.write_table(pa.Table.from_pylist([found], row_schema.ROW_SCHEMA), video.parent / "train.parquet")
    assert show.write([video.parent / "train.parquet"], video.parent / "rows.html") == 1
    rows = clips.Rows([video.parent / "train.parquet"])
    one = rows[extra["uid"]]
    objects = objects_of(one, video.parent)
    assert [None in objects.at(frame) for frame in (49, 50, 59, 60)] == [False, True, True, False]
    text = perfect_answer("stvg_boxes", truth)
    assert sorted(replies.read("stvg_boxes", text, row=one).tube) == list(range(50, 60))


# --- boxes by whole second --------------------------------------------------------------------------------------------


def by_second(start, end, step=1):
    """A correct answer in seconds and pixels about MOVING: 12 frames per second."""
    seconds = range(int(np.ceil(start)), int(end) + 1, step)
    return answered((start, end), {second: MOVING[min(12 * second, 95)] for second in seconds})


@pytest.mark.parametrize(("start", "end"), [(2.0, 4.0), (0.0, 2.0), (1.25, 6.5), (0.5, 7.75), (0.0, 8.0), (3.75, 4.25)])
def test_whole_seconds_are_recognised_and_nearly_perfect(start, end):
    first, last = round(12 * start), round(12 * end)
    found = made(record(first, MOVING[first:last], start, end), split="test")
    text = by_second(start, end)
    assert read_answer(item_of(found), text).by_second
    assert value(found, text, "m_tIoU") == pytest.approx(1) and value(found, text) > 0.97
    frames = perfect_answer("stvg_boxes", truth_of(found))
    assert not read_answer(item_of(found), frames).by_second and value(found, frames) == pytest.approx(1)
    uid = found["extra_info"]["uid"]
    notes = score([found], {uid: Answer(uid, (text,))}).notes
    assert "1 answers give boxes by whole second; they are scored in all frames of their time." in notes
    assert not any("whole second" in note for note in score([found], {uid: Answer(uid, (frames,))}).notes)


@pytest.mark.parametrize(
    ("time", "keys", "seconds"),
    [
        ((2, 4), range(24, 48), False),
        ((2, 4), range(2, 5), True),
        ((2, 4), (2,), True),
        ((0, 2), range(3), True),  # as many lie within as frames, and they are all seconds of the time
        ((0, 2), range(2), False),  # as many, and a second of the time has none
        ((0, 2), range(24), False),
        ((0, 1), range(12), False),
        ((2, 4), (), False),
        ((2, 4), (500, 600), False),
        ((4, 2), range(2, 5), False),
        ((5.2, 5.4), (5,), True),
    ],
)
def test_the_unit_of_an_answer_is_the_one_that_fits_its_time(time, keys, seconds):
    found = made(record(), split="test")
    text = answered(time, {key: MOVING[0] for key in keys})
    assert read_answer(item_of(found), text).by_second is seconds


def test_one_box_for_each_frame_is_never_taken_for_seconds():
    """Where frames are a second apart the two units differ by less than one."""
    facts = replace(FACTS, num_frames=40, fps=1.0)
    for begin in (0.3, 3.3, 5.5):
        one = record(8, MOVING[:6], 8.0 - begin, 14.0 - begin, clip=(begin, 40.0))
        found = made(one, split="test", facts=facts)
        read = read_answer(item_of(found), perfect_answer("stvg_boxes", truth_of(found)))
        assert not read.by_second and min(read.tube) == 8


def test_each_prompt_has_its_pixels_and_wins_where_units_fit_alike():
    found = made(record(0, MOVING[:24], 0.0, 2.0), "stvg_boxes_seconds", "test")
    thousandths = answered((0, 2), {0: [100, 100, 200, 200], 1: [100, 100, 200, 200]})
    one = read_answer(item_of(found), thousandths)
    assert one.by_second and one.tube[0] == pytest.approx([33.6, 22.4, 67.2, 44.8])
    assert replies.read("stvg_boxes_seconds", thousandths).tube[0] == [100, 100, 200, 200]  # without a row


def test_between_seconds_boxes_move_evenly_and_gaps_stay_gaps():
    boxes = {2: (0, 0, 10, 10), 3: (10, 0, 20, 10), 6: (50, 0, 60, 10)}
    there, found = from_seconds(boxes, [1.5, 2.0, 2.25, 3.0, 3.4, 3.6, 4.5, 5.4, 5.6, 6.0, 6.4, 6.8], (1.5, 6.9))
    assert there.tolist() == [True, True, True, True, True, False, False, False, True, True, True, True]
    assert found[there][:, 0].tolist() == [0, 0, 2.5, 10, 10, 50, 50, 50, 50]
    there, _ = from_seconds({}, [1.5, 2.0], (1.0, 3.0))
    assert not there.any()


@given(
    st.tuples(st.integers(0, 80), st.integers(0, 40)),
    st.dictionaries(st.integers(0, 12), st.sampled_from([MOVING[0], (200.0, 150.0, 300.0, 200.0)])),
)
@settings(max_examples=60)
def test_no_answer_by_second_is_worth_more_than_its_time(stated, boxes):
    found = made(record(), split="test")
    text = answered((stated[0] / 10, (stated[0] + stated[1]) / 10), boxes)
    assert 0 <= value(found, text) <= value(found, text, "m_tIoU") + 1e-12


def test_answers_far_outside_of_the_video_are_read_in_no_time():
    found = made(record(), split="test")
    for time in ((0, 1e300), (-1e300, 1e300), (1e8, 1e8 + 5)):
        text = answered(time, {0: MOVING[0], 1: MOVING[0], 100000001: MOVING[0], 999999999: MOVING[0]})
        assert value(found, text) == pytest.approx(0, abs=1e-6)


@given(st.floats(0, 7.5, allow_nan=False), st.sampled_from((5.0, 12.0, 25.0, 29.97)), st.booleans())
def test_the_frame_that_is_number_0_is_the_first_of_the_plan(begin, fps, uneven):
    times = tuple(k / fps + (0.3 / fps if k % 2 else 0.0) for k in range(int(10 * fps))) if uneven else None
    clock = FrameClock(int(10 * fps), fps, times, 10.0 if uneven else None)
    plan = plan_video(clock.num_frames, fps, 336, 224, video_start=begin, clock=clock)
    assert plan.frame_indices[0] == clock.first_shown(begin)


def test_a_tube_before_the_part_is_dropped_wherever_a_truth_is_needed():
    early = record(10, MOVING[:24], 0.0, 2.0, clip=(2.0, 6.0))
    for split, policies in (("train", make_row.Policies()), ("test", make_row.Policies(unusable_truth="drop"))):
        with pytest.raises(make_row.Drop, match="the tube begins before the part that is shown"):
            made(early, split=split, policies=policies)


def test_whole_numbers_may_be_doubles():
    """As Arrow returns them of a column that was one of doubles."""
    found = made(record(), split="test")
    text = perfect_answer("stvg_boxes", truth_of(found))
    found["extra_info"]["num_frames"] = 96.0
    found["reward_model"]["ground_truth"]["first_frame"] = 24.0
    assert row_shape_problems(found) == [] and problems(found) == [] and value(found, text) == pytest.approx(1)
    found["reward_model"]["ground_truth"]["first_frame"] = 24.5
    assert "should be a whole number" in row_shape_problems(found)[0]


def test_thousandths_are_of_the_picture_that_the_truth_names():
    found = made(record(0, MOVING[:24], 0.0, 2.0), "stvg_boxes_seconds", "test")
    found["extra_info"] |= {"width": None, "height": None, "annotated": None}
    text = perfect_answer("stvg_boxes_seconds", truth_of(found))
    assert value(found, text) > 0.97 and replies.read("stvg_boxes_seconds", text, row=found) is not None


# --- what speaks against a tube ---------------------------------------------------------------------------------------


def problems(found: dict) -> list[tuple[str, str, bool]]:
    return list(row_problems(Row(found)))


def shaped(scale_x: float, scale_y: float, by: float = 0.0):
    return [(a * scale_x + by, b * scale_y + by, c * scale_x + by, d * scale_y + by) for a, b, c, d in MOVING[:24]]


SHARES = shaped(1 / 336, 1 / 224)
PER_CENT = shaped(100 / 336, 100 / 224)

CONTRADICTIONS = [
    (record(60), "tube", "no frame in common: the tube is frames 60 to 83, and the interval is frames 24 to 47", True),
    (record(24, MOVING[:12]), "tube", "covers 50 % of the interval: it is frames 24 to 35", True),
    (record(18, MOVING[:36]), "tube", "covers 100 % of the interval and has 12 frames outside of it", True),
    (record(24, MOVING[:20]), "tube", "covers 83 % of the interval", False),
    (record(25), "tube", "ends a frame after the interval: it is frames 25 to 48", False),
    (record(90, start=7.5, end=8.0), "tube", "18 of 24 boxes after the last frame that is shown, 95", True),
    (record(24, PER_CENT), "boxes", "all coordinates lie within 0 to 100 and are not whole", False),
    (record(24, SHARES), "boxes", "24 of 24 boxes are under one pixel; boxes are pixels, and these look like", True),
    (record(24, shaped(1, 1, 900)), "boxes", "24 of 24 boxes lie outside of 336x224", True),
    (record(24, [(9.0, 9.0, 9.0, 30.0), *MOVING[1:24]]), "boxes", "1 of 24 boxes have no area", False),
    (record(24, [(9.0, 9.0, 9.0, 30.0)] * 3 + list(MOVING[3:24])), "boxes", "3 of 24 boxes have no area", True),
    (record(24, [(0.0, 9.0, 0.4, 30.0), *MOVING[1:24]]), "boxes", "1 of 24 boxes are under one pixel", False),
]


@pytest.mark.parametrize("one", range(len(CONTRADICTIONS)))
@pytest.mark.parametrize(("template", "split"), [("stvg_boxes", "train"), ("stvg_boxes", "test"), ("time_r1", "test")])
def test_what_speaks_against_a_tube_is_named_by_row(one, template, split):
    """In every row that carries the tube; a published truth that is wrong is worth knowing."""
    wrong, problem, words, serious = CONTRADICTIONS[one]
    found = problems(made(wrong, template, split))
    assert [(problem, serious and split == "train")] == [
        (name, is_serious) for name, detail, is_serious in found if words in detail
    ]


def test_a_tube_that_fits_is_not_named():
    for one in (record(), record(24, MOVING[:23]), record(23), record(24, [(10, 20, 60, 90)] * 24)):
        assert problems(made(one)) == []
    assert problems(made(record(**CLIP))) == []
    assert problems(made(record(0, MOVING[:96], 0.0, 8.0))) == []
    several = record().model_copy(update={"intervals": ((2.0, 4.0), (6.0, 7.0))})
    assert problems(made(several, "time_r1", "test")) == []


def test_a_part_is_compared_with_what_is_shown_of_it():
    late = problems(made(record(60, start=1.0, end=3.0, clip=(4.0, 6.0))))
    assert ("tube", "12 of 24 boxes after the last frame that is shown, 23", True) in late
    early = problems(made(record(20, **CLIP), "time_r1", "test"))
    assert [detail for problem, detail, _ in early if problem == "tube"][0].startswith("4 of 24 boxes before the first")


def test_rows_that_do_not_record_their_file_are_compared_with_it(video):
    """Built without looking into the videos: `check` looks."""
    boxes = ((0.0, 0.0, 28.0, 28.0),) * 25
    known = {"duration": 4.0, "extra": {"fps": 25.0, "width": 56, "height": 56}}
    found = made(record(75, boxes, 1.0, 2.0, **known), split="train", facts=None)
    pq.write_table(pa.Table.from_pylist([found], row_schema.ROW_SCHEMA), video.parent / "plain.parquet")
    told = check.check([video.parent / "plain.parquet"], decode=False)[0]
    assert [(one.problem, one.serious) for one in told if "no frame in common" in one.detail] == [("tube", True)]


def test_frames_at_times_of_their_own_are_compared_by_these():
    times = tuple(k / 12 + (0.02 if k % 2 else 0.0) for k in range(96))
    clock = FrameClock(96, 12.0, times, 8.0)
    truth = {"boxes": [list(box) for box in MOVING[:24]], "first_frame": 24, "start": times[24], "end": times[48]}
    assert list(tubes.faults(truth, {}, {}, clock)) == []
    assert list(tubes.faults(truth | {"first_frame": 36}, {}, {}, clock))


# --- what nothing can meet --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(-30, 130)] * 4), min_size=1, max_size=8))
def test_boxes_out_of_reach_are_those_that_nothing_within_the_picture_overlaps(boxes):
    def clipped(a, b, c, d):
        return max(a, 0), max(b, 0), min(c, 100), min(d, 80)

    parts = [clipped(*box) for box in boxes]
    lost = [not (c > a and d > b) for a, b, c, d in parts]
    assert out_of_reach(boxes, (100, 80)) == sum(lost)
    assert out_of_reach(boxes, None) == sum(not (c > a and d > b) for a, b, c, d in boxes) <= sum(lost)


def test_scores_count_boxes_that_nothing_can_meet():
    """As they count intervals that nothing can meet."""
    good = made(record(), "time_r1", "test")
    lost = made(record(24, [*MOVING[:20], *[(400.0, 0.0, 420.0, 20.0)] * 4], key="b"), "time_r1", "test")
    said = {
        found["extra_info"]["uid"]: Prediction(((2.0, 4.0),), tube={24 + k: MOVING[k] for k in range(24)})
        for found in (good, lost)
    }
    scores = score([good, lost], said)
    assert scores.counts["boxes_out_of_reach"] == 4
    assert any("4 annotated boxes of 1 rows lie outside of the picture" in note for note in scores.notes)
    scores = score([good], {good["extra_info"]["uid"]: said[good["extra_info"]["uid"]]})
    assert "boxes_out_of_reach" not in scores.counts
