"""Scores: every benchmark end to end, numbers worked out by hand, laws, bad input, and files of other programs."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from typer.testing import CliRunner

from reward_fns import RECIPES
from reward_fns.registry import find_recipe
from tests.data_builders.sets import test_tubes
from tests.data_builders.test_build import run as build_rows
from tests.support import set_fixtures
from verl_stvg.cli import score as score_cli
from verl_stvg.data_builders import build
from verl_stvg.data_builders.sets import all_sets, synthetic
from verl_stvg.data_builders.templates import TEMPLATES, perfect_answer
from verl_stvg.eval import baselines
from verl_stvg.eval.benchmarks import BENCHMARKS, find
from verl_stvg.eval.benchmarks.items import Prediction, item_of, read_rows
from verl_stvg.eval.benchmarks.masks import Referred, annotated
from verl_stvg.eval.benchmarks.questions import Question
from verl_stvg.eval.benchmarks.temporal import Moment
from verl_stvg.eval.benchmarks.tracked import Library, Objects
from verl_stvg.eval.benchmarks.tubes import Tube
from verl_stvg.eval.importers import foreign
from verl_stvg.eval.metrics import tubes
from verl_stvg.eval.score import rewards, score, score_files, score_run
from verl_stvg.eval.scores import DURATIONS
from verl_stvg.rows.answers import Answer, append
from verl_stvg.training.reward import compute_score
from verl_stvg.video.tracks import Track, Tracks, save

LENGTH, SIZE = 60, (96, 80)  # of made-up videos: frames, pixels
FPS = 10.0
BOX, FAR = (10, 10, 30, 50), (60, 20, 80, 60)

# --- rows, tracks and answers that are made up ------------------------------------------------------------------------


def moment(key, interval=(5.0, 10.0), duration=20.0, recipe="time_r1", dataset="charades_sta", split="test", **more):
    """A row that asks for a time; `more` goes into the ground truth, `video` and `query` aside."""
    uid = f"{dataset}/{split}/{key}"
    name = key.split("/")[0]
    video, query = more.pop("video", name if "." in name else f"{name}.mp4"), more.pop("query", f"query {key}")
    options, annotation = more.pop("options", None), more.pop("annotated", None)
    truth = {"uid": uid, "duration": duration, "intervals": [list(interval)], "start": interval[0], "end": interval[1]}
    return {
        "data_source": f"{recipe}/{dataset}",
        "videos": [{"video": video}],
        "reward_model": {"ground_truth": truth | more},
        "extra_info": {
            "uid": uid,
            "dataset": dataset,
            "split": split,
            "query": query,
            "duration": duration,
            "options": options,
            "annotated": json.dumps(annotation) if annotation else None,
        },
    }


def tube(key="a.mp4", first=10, count=20, box=BOX, recipe="stvg_r1", object_id=1, tracks=None, **more):
    """A row that asks for a tube: the same box in frames `first` and on, at 10 frames per second."""
    interval = first / FPS, (first + count) / FPS
    row = moment(key, interval, LENGTH / FPS, recipe, more.pop("dataset", "hc_stvg_v1"), **more)
    row["reward_model"]["ground_truth"].update(first_frame=first, boxes=[list(box)] * count, object_id=object_id)
    row["extra_info"].update(source_fps=FPS, num_frames=LENGTH, width=SIZE[0], height=SIZE[1])
    row["videos"][0]["tracks"] = tracks and str(tracks)
    return row


def mask(box, size=SIZE):
    x1, y1, x2, y2 = box
    [found] = coco.frPyObjects(np.array([[x1, y1, x2 - x1, y2 - y1]], dtype=float), size[1], size[0])
    return {"size": [size[1], size[0]], "counts": found["counts"].decode()}


def track_file(path, objects, size=SIZE):
    """Write tracks: by ID the box of each frame."""
    made = [
        Track(number, "person", None, {frame: mask(box, size) for frame, box in boxes.items()})
        for number, boxes in objects.items()
    ]
    save(Tracks(size[1], size[0], LENGTH, FPS, tuple(made)), path)
    return path


def over(box, first, end):
    return dict.fromkeys(range(first, end), box)


def answer(row, text):
    uid = row["extra_info"]["uid"]
    return {uid: Answer(uid, (text,), ("stop",))}


def perfect(rows):
    found = {}
    for row in rows:
        truth = dict(row["reward_model"]["ground_truth"])
        if truth.get("boxes") is not None:
            truth["boxes"] = np.asarray(truth["boxes"]).tolist()
        found |= answer(row, perfect_answer(find_recipe(row["data_source"]).name, truth))
    return found


def value(scores, name):
    return scores.metrics[name]["value"]


def target(number, start, end):
    return f"<think>x</think><answer>Target ID: {number}, Time range: {start} to {end}</answer>"


def said(start, end):
    return f"<think>x</think><answer>{start} to {end}</answer>"


# --- benchmarks end to end --------------------------------------------------------------------------------------------

INTERVALS = [one.name for one in BENCHMARKS.values() if one.kind is Moment]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Rows of a set's fixture, of the split that its benchmark scores; made when first asked for."""
    found = {}

    def of(name):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            fixture = set_fixtures.write(name, folder)
            assert build_rows(*fixture.build(folder / "rows"))[0] == 0
            found[name] = folder / "rows" / f"{BENCHMARKS[name].split}.parquet", fixture
        return found[name]

    return of


def test_benchmarks_name_sets_splits_and_templates():
    for one in BENCHMARKS.values():
        assert one.template in TEMPLATES
        if one.name != "synthetic":
            assert one.split in all_sets()[one.name].splits and one.published[one.split] > 0


@pytest.mark.parametrize("name", INTERVALS)
def test_temporal_benchmarks(name, built):
    file, _ = built(name)
    rows = list(read_rows([file]))
    right = perfect(rows)
    scores = score_files([file], right)
    assert (scores.benchmark, scores.split, scores.main) == (name, BENCHMARKS[name].split, "mIoU")
    table = {key: one["value"] for key, one in scores.metrics.items()}
    assert table == pytest.approx(dict.fromkeys(table, 1.0), abs=1e-5)
    assert scores.counts["published"] == BENCHMARKS[name].published[scores.split] and scores.notes
    whole = {}
    for row in rows:
        whole |= answer(row, said(0, row["extra_info"]["duration"]))
    assert score_files([file], whole).metrics["mIoU"]["value"] == pytest.approx(scores.baselines["whole video"]["mIoU"])
    without = dict(list(right.items())[1:])
    if without:
        scores = score_files([file], without)
        assert value(scores, "mIoU") == pytest.approx(len(without) / len(rows), abs=1e-5)
        assert scores.counts["missing"] == 1 and scores.items[0]["error"] == "missing"


def test_charades_by_hand(built):
    """24.3 to 30.4 of 31 s, answered with 25 to 31: 5.4 of 6.7 s."""
    file, _ = built("charades_sta")
    [row] = read_rows([file])
    scores = score_files([file], answer(row, said("25", "31")))
    assert value(scores, "mIoU") == pytest.approx(5.4 / 6.7)
    assert value(scores, "R1@0.7") == 1.0
    assert scores.baselines["whole video"]["mIoU"] == pytest.approx(6.1 / 31)


def test_several_annotated_windows_take_the_best(built):
    file, _ = built("qvhighlights")
    [row] = read_rows([file])  # [8, 11], [0, 2], [14, 16]
    assert value(score_files([file], answer(row, said("14", "15"))), "mIoU") == pytest.approx(0.5)


def test_grounded_questions(built):
    for name, share in (("nextgqa", 1.0), ("rextime", 0.5)):  # one of two annotated spans of ReXTime is empty
        file, _ = built(name)
        rows = list(read_rows([file]))
        scores = score_files([file], perfect(rows))
        assert [value(scores, key) for key in ("mIoU", "mIoP", "Acc@QA", "Acc@GQA")] == pytest.approx(
            [share, share, 1, share], abs=1e-5
        )
        chance = 1 / len(rows[0]["extra_info"]["options"])
        assert scores.baselines["whole video, random option"]["Acc@QA"] == pytest.approx(chance)
        wrong = {uid: Answer(uid, ("<answer>E</answer><glue>[(3, 3)]</glue>",)) for uid in perfect(rows)}
        scores = score_files([file], wrong)
        assert value(scores, "Acc@QA") == value(scores, "mIoP") == 0
        assert {item["error"] for item in scores.items} <= {"wrong option"}


def test_point_rules_of_questions(built):
    file, _ = built("nextgqa")
    [row] = read_rows([file])  # 2 to 5.5, option B
    scores = score_files([file], answer(row, "<think></think><answer>B</answer><glue>[(3, 3)]</glue>"))
    assert [value(scores, name) for name in ("mIoU", "mIoP", "Acc@GQA")] == [0, 0, 0]
    assert [value(scores, f"{name} (NExT-GQA)") for name in ("mIoP", "Acc@GQA")] == [1, 1]
    assert scores.items[0]["error"] == "time"


@pytest.mark.parametrize("name", ["vidstg", "st_align"])
def test_boxes_of_a_part_of_a_video(name, built):
    """Shown from second 2 on, answered in seconds and frames of what is shown."""
    file, _ = built(name)
    rows = list(read_rows([file]))
    scores = score_files([file], perfect(rows))
    for key in ("m_tIoU", "m_vIoU", "vIoU@0.5", "m_vIoU_repaired"):
        assert value(scores, key) == pytest.approx(1.0, abs=1e-6)
    if name == "vidstg":
        assert scores.groups["sentence type"]["declarative"]["count"] == 1
    # Frame 75 of the file alone, of 75 to 77: the shown part begins with frame 50.
    box = np.asarray(rows[0]["reward_model"]["ground_truth"]["boxes"])[0].tolist()
    text = json.dumps({"time": [1.0, 1.04], "boxes": {"25": box}})
    scores = score_files([file], answer(rows[0], f"<answer>{text}</answer>"))
    assert value(scores, "m_vIoU") == value(scores, "m_tIoU") == pytest.approx(1 / 3 / len(rows), abs=1e-6)


def test_boxes_that_are_none_are_frames_without_overlap():
    row = tube(recipe="stvg_boxes")
    boxes = {str(frame): list(BOX) for frame in range(10, 30)}
    for wrong in (None, "box", [1, 2, 3], [1, 2, 3, None], [[1], 2, 3, 4], [1, 2, 3, 10**400], {"x": 1}):
        text = json.dumps({"time": [1, 3], "boxes": boxes | {"10": wrong}})
        assert value(score([row], answer(row, f"<answer>{text}</answer>")), "m_vIoU") == pytest.approx(19 / 20)
    texts = {frame: [str(side) for side in box] for frame, box in boxes.items()}  # numbers as texts are read
    text = json.dumps({"time": [1, 3], "boxes": texts})
    assert value(score([row], answer(row, f"<answer>{text}</answer>")), "m_vIoU") == pytest.approx(1)


def boxed(start, end, *parts):
    """An answer of a time and of the same box in ranges of frames."""
    boxes = {str(frame): list(BOX) for part in parts for frame in range(*part)}
    return f"<think>x</think><answer>{json.dumps({'time': [start, end], 'boxes': boxes})}</answer>"


@pytest.mark.parametrize(
    ("text", "tiou", "viou"),
    [  # annotated are frames 10 to 29 of 60, 1 to 3 s
        (boxed(1, 3, (10, 30)), 1, 1),
        (boxed(0, 6, (10, 30)), 20 / 60, 20 / 60),  # 40 frames of the answered time have no box
        (boxed(0, 6, (0, 60)), 20 / 60, 20 / 60),
        (boxed(2, 4, (10, 30)), 10 / 30, 10 / 30),  # boxes outside of the answered time earn nothing
        (boxed(1, 3, (0, 60)), 1, 20 / 60),  # and count as answered
        (boxed(1, 3, (10, 15), (40, 60)), 1, 5 / 40),
        (boxed(4, 5, (10, 30)), 0, 0),
        (boxed(2, 4, (20, 50)), 10 / 30, 10 / 40),
        (boxed(3, 1, (10, 30)), 0, 0),
        (boxed(1, 3), 1, 0),
        (boxed(1, 100, (10, 30)), 20 / 990, 20 / 990),
    ],
)
def test_the_answered_time_is_how_long_answered_boxes_last(text, tiou, viou):
    """The same frames in the metric and in the reward: what is between the bounds of the answered time."""
    row = tube(recipe="stvg_boxes")
    scores = score([row], answer(row, text))
    assert value(scores, "m_tIoU") == pytest.approx(tiou)
    assert (value(scores, "m_vIoU") if "m_vIoU" in scores.metrics else 0) == pytest.approx(viou)
    assert RECIPES["stvg_boxes"].score(text, row["reward_model"]["ground_truth"])["tube_iou"] == pytest.approx(viou)


def test_the_sample_of_issue_19():
    """Answered 0 to 20 s with the true boxes of 11.12 to 12.56 s, at 25 frames per second: 36 of 500 frames."""
    row = tube(first=278, count=36, recipe="stvg_boxes")
    row["extra_info"].update(source_fps=25.0, num_frames=500, duration=20.0)
    row["reward_model"]["ground_truth"].update(start=11.12, end=12.56, intervals=[[11.12, 12.56]])
    scores = score([row], answer(row, boxed(0, 20, (278, 314))))
    assert value(scores, "m_tIoU") == value(scores, "m_vIoU") == pytest.approx(0.072)


def test_boxes_without_a_time_answer_the_frames_that_they_name():
    """Two boxes at the ends of 20 frames are 2 of 20, not all (as VUE-STG counts)."""
    row = tube()
    for frames, tiou in (((10, 29), 2 / 20), ((10, 40), 1 / 21), ((10, 11, 12), 3 / 20), ((50,), 0)):
        scores = score([row], {row["extra_info"]["uid"]: Prediction(tube=dict.fromkeys(frames, BOX))})
        assert (value(scores, "m_tIoU"), value(scores, "m_vIoU")) == pytest.approx((tiou, tiou))
    gaps = dict.fromkeys(range(10, 30, 2), BOX)
    assert value(score([row], {row["extra_info"]["uid"]: Prediction(tube=gaps)}), "m_vIoU") == pytest.approx(0.5)


def test_boxes_without_their_first_frame_are_no_tube():
    row = tube()
    del row["reward_model"]["ground_truth"]["first_frame"]
    scores = score([row], answer(row, target(1, 1.0, 2.0)))
    assert value(scores, "m_tIoU") == pytest.approx(0.5) and "m_vIoU" not in scores.metrics
    assert any("rows lack annotated boxes" in note for note in scores.notes)


def test_what_needs_the_rate_or_the_tracks_of_a_row_that_has_none_says_so():
    row = tube()
    row["extra_info"]["source_fps"] = None
    with pytest.raises(ValueError, match="hc_stvg_v1/test/a.mp4: the rate of its video is not known"):
        item_of(row).frames((1.0, 2.0))
    with pytest.raises(ValueError, match="hc_stvg_v1/test/a.mp4: names no track file; .*--tracks"):
        Library().objects(item_of(row))


def test_a_block_of_stvg_r1_without_an_id_is_named(tmp_path):
    file = write(tmp_path / "p.txt", f"ID: V1_0\nQuery: q\n{'-' * 80}\nQuery: r\n{'-' * 80}\n")
    with pytest.raises(ValueError, match="a block without `ID: `, 'Query: r'"):
        read(file, ROWS, "stvg_r1")


@given(
    st.none() | st.tuples(st.integers(-5, 70), st.integers(-5, 70)),
    st.dictionaries(st.integers(0, 60), st.sampled_from([BOX, FAR, (12, 10, 30, 50)]), min_size=1),
    st.booleans(),
)
@settings(max_examples=40)
def test_no_tube_is_worth_more_than_its_time(stated, boxes, in_frames):
    row = tube()
    time = ((stated[0] / FPS, (stated[1] + 1) / FPS),) if stated and not in_frames else ()
    said_it = Prediction(time, tube=boxes, span=stated if in_frames else None)
    scores = score([row], {row["extra_info"]["uid"]: said_it})
    assert 0 <= value(scores, "m_vIoU") <= value(scores, "m_tIoU") + 1e-12 <= 1 + 1e-12
    if stated:
        answered = set(range(stated[0], stated[1] + 1))
        true = set(range(10, 30))
        ious = sum(tubes.box_iou([box], [BOX])[0] for frame, box in boxes.items() if frame in answered & true)
        assert value(scores, "m_vIoU") == pytest.approx(ious / len(answered | true | set(boxes)))


def test_only_the_first_2000_entries_of_st_align_count():
    rows = [tube(f"{k}.mp4", recipe="stvg_boxes", dataset="st_align", annotated={"entry": entry, "split_first": 0,
            "split_last": 59}) for k, entry in enumerate((5, 1999, 2000))]  # fmt: skip
    scores = score(rows, perfect(rows))
    assert len(scores.items) == 2 and scores.counts["beyond"] == 1 and scores.counts["extra"] == 0
    assert value(scores, "m_vIoU (ST-Align)") == pytest.approx(1.0, abs=0.05)


def test_hc_stvg_from_its_annotation(tmp_path):
    """The track is the annotated box within the image: 0.85 and 0.7 of it, in turn, in 112 of 113 frames."""
    entry = test_tubes.V2 | set_fixtures._OVER
    (tmp_path / "val_v2.json").write_text(json.dumps({"21_D8Vhxbho1fY.mkv": entry}))
    (tmp_path / "targets.jsonl").write_text('{"uid": "hc_stvg_v2/val/21_D8Vhxbho1fY.mkv", "object_id": 1}\n')
    job = build.Job(
        all_sets()["hc_stvg_v2"],
        tmp_path / "val_v2.json",
        tmp_path / "rows",
        splits=("val",),
        targets=tmp_path / "targets.jsonl",
    )
    build.build(job)
    masks = {k: mask((0, 5, 17, 35) if k % 2 == 0 else (50, 10, 64, 40), (64, 48)) for k in range(500)}
    save(Tracks(48, 64, 500, 25.0, (Track(1, None, None, masks),)), tmp_path / "21_D8Vhxbho1fY.tracks.json.gz")
    files = [tmp_path / "rows" / "val.parquet"]
    [row] = read_rows(files)
    scores = score_files(files, answer(row, target(1, 0, 4.5)), tracks=tmp_path)
    assert value(scores, "m_tIoU") == pytest.approx(112 / 113)
    assert value(scores, "m_vIoU") == pytest.approx((0.85 + 0.7) * 56 / 113)
    assert value(scores, "ID accuracy") == 1 and scores.items[0]["error"] is None
    # The scripts: the challenge counts the hull, CG-STVG drops a frame of it, STVG-R1 is one frame late.
    assert value(scores, "m_vIoU (HC-STVG challenge)") == pytest.approx((0.85 + 0.7) * 56 / 113)
    assert value(scores, "m_vIoU (CG-STVG)") == pytest.approx(((0.85 + 0.7) * 56 - 0.7) / 113)
    assert value(scores, "m_vIoU (STVG-R1)") < 0.1 and value(scores, "m_tIoU (STVG-R1)") == 1
    assert value(scores, "m_tIoU (TubeDETR)") == pytest.approx(112 / 113, abs=0.01)
    scores = score_files(files, answer(row, target(1, 0, 4.5)))
    assert "m_vIoU" not in scores.metrics and "--tracks" in " ".join(scores.notes) and scores.main == "m_tIoU"


def test_mevis_masks_of_answered_objects(built, tmp_path):
    """Two birds; the one that is answered alone covers what it covers, whatever the time."""
    file, fixture = built("mevis")
    rows = list(read_rows([file]))
    truth = annotated("mevis", "val", fixture.annotations)
    assert set(truth) == {row["extra_info"]["uid"] for row in rows}
    objects = {}
    for row in rows:  # tracks that are the annotation: object k of a video is the k-th set of masks
        row["extra_info"]["width"] = None  # the fixture's masks are smaller than its videos
        masks = {k: one for k, one in enumerate(truth[row["extra_info"]["uid"]]) if one}
        objects.setdefault(row["videos"][0]["video"], []).append(masks)
    for video, found in objects.items():
        size = next(iter(found[0].values()))["size"]
        tracks = tuple(Track(k + 1, None, None, masks) for k, masks in enumerate(found))
        save(Tracks(*size, 10, 5.0, tracks), tmp_path / video.replace(".mp4", ".tracks.json.gz"))
    place = {}
    answers = {}
    for row in rows:
        video = row["videos"][0]["video"]
        place[video] = place.get(video, 0) + 1
        uid = row["extra_info"]["uid"]
        answers[uid] = Prediction(((0.0, 1.0),), (place[video],))
    scores = score(rows, answers, tracks=tmp_path, masks=truth)
    assert value(scores, "J&F") == value(scores, "J") == 1 and scores.main == "J&F"
    scores = score(rows, {uid: Prediction(((0.0, 1.0),), (99,)) for uid in answers}, tracks=tmp_path, masks=truth)
    assert 0 < value(scores, "J") < 1  # frames without the object are right without a mask
    with pytest.raises(ValueError, match="--masks"):
        score(rows, answers, tracks=tmp_path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of eight synthetic clips and their rows."""
    return synthetic.build(tmp_path_factory.mktemp("clips") / "data", 1, 7, seed=3, progress=False)


def test_synthetic_rows(clips):
    file = clips / "val.parquet"
    found = list(read_rows([file]))
    scores = score_files([file], perfect(found))
    assert scores.benchmark == "synthetic" and value(scores, "m_tIoU") == pytest.approx(1, abs=1e-5)
    assert value(scores, "ID accuracy") == 1 and "m_vIoU" not in scores.metrics
    wrong = score_files([file], answer(found[0], target(99, 0, 8)))
    assert wrong.items[0]["error"] in ("id", "id+time")


# --- IDs to tubes by hand ---------------------------------------------------------------------------------------------

NEAR = (11, 10, 31, 50)
SHIFTED = 19 / 21  # IoU of BOX and NEAR
WHOLE = {1: over(BOX, 0, LENGTH), 2: over(FAR, 0, LENGTH)}
LOST = over(BOX, 0, 20)


@pytest.mark.parametrize(
    ("objects", "text", "tiou", "plain", "repaired"),
    [
        (WHOLE, target(1, 1.0, 3.0), 1, 1, 1),
        (WHOLE, target(2, 1.0, 3.0), 1, 0, 0),
        (WHOLE, target(1, 2.0, 4.0), 1 / 3, 1 / 3, 1 / 3),
        (WHOLE, target(1, 3.0, 4.0), 0, 0, 0),
        (WHOLE, target(1, 2.97, 4.0), 0, 0, 0),  # rounds to frame 30
        (WHOLE, target(1, 2.9, 4.0), 1 / 30, 1 / 30, 1 / 30),
        (WHOLE, target(1, 1.0, 100.0), 20 / 990, 20 / 990, 20 / 990),  # frames beyond the video count
        (WHOLE, target(1, 3.0, 1.0), 0, 0, 0),
        (WHOLE, target(1, 2.0, 2.0), 0, 0, 0),
        ({1: LOST, 2: over(FAR, 0, LENGTH)}, target(1, 1.0, 3.0), 1, 0.5, 0.5),
        ({1: LOST}, target(1, 1.0, 3.0), 1, 0.5, 1),  # stays where it was last seen
        ({1: LOST, 7: over(NEAR, 20, LENGTH)}, target(1, 1.0, 3.0), 1, 0.5, 0.5 + 0.5 * SHIFTED),
        ({1: over(BOX, 0, LENGTH)}, target(9, 1.0, 3.0), 1, 0, 1),  # the largest object
        ({2: over(FAR, 0, LENGTH)}, target(9, 1.0, 3.0), 1, 0, 0),
        ({1: over(BOX, 0, LENGTH)}, "I do not know.", 0, 0, 0),
        (WHOLE, target(1, 1.0, "9" * 308), 0, 0, 0),
        (WHOLE, target(1, 1.0, "9" * 400), 0, 0, 0),  # not finite
    ],
)
def test_an_id_becomes_a_tube(objects, text, tiou, plain, repaired, tmp_path):
    row = tube(tracks=track_file(tmp_path / "a.tracks.json.gz", objects))
    scores = score([row], answer(row, text))
    assert value(scores, "m_tIoU") == pytest.approx(tiou, abs=1e-9)
    for name, wanted in (("m_vIoU", plain), ("m_vIoU_repaired", repaired)):
        assert (value(scores, name) if name in scores.metrics else 0) == pytest.approx(wanted, abs=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_boxes_of_objects_are_those_of_tracks(seed):
    rng = np.random.default_rng(seed)
    pictures = rng.random((6, 9, 7)) < rng.choice([0.02, 0.3])
    masks = {
        k: {"size": [9, 7], "counts": coco.encode(np.asfortranarray(one, np.uint8))["counts"].decode()}
        for k, one in enumerate(pictures)
        if one.any()  # a mask has a pixel
    }
    tracks = Tracks(9, 7, 6, FPS, (Track(3, None, None, masks),))
    assert Objects(tracks).of(3) == {k: tracks.boxes(k)[3] for k in range(6) if 3 in tracks.boxes(k)}


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 40), st.integers(1, 20), st.integers(0, 25))
@settings(max_examples=25)
def test_tubes_are_scored_as_their_definition_says(first, count, other, length, shift):
    row = tube(first=first, count=count)
    box = (BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3])
    found = dict.fromkeys(range(other, other + length), box)
    said_it = Prediction(((other / FPS, (other + length) / FPS),), tube=found)
    scores = score([row], {row["extra_info"]["uid"]: said_it})
    wanted = tubes.tiou_viou(found, dict.fromkeys(range(first, first + count), BOX))
    assert (value(scores, "m_tIoU"), value(scores, "m_vIoU")) == pytest.approx(wanted)


def test_unfiltered_tracks_keep_a_tube_whose_number_was_hidden(tmp_path):
    shown = track_file(tmp_path / "shown" / "a.tracks.json.gz", {1: LOST})
    track_file(tmp_path / "all" / "a.tracks.json.gz", {1: over(BOX, 0, LENGTH)})
    row = tube(tracks=shown)
    assert value(score([row], answer(row, target(1, 1, 3))), "m_vIoU") == 0.5
    assert value(score([row], answer(row, target(1, 1, 3)), tracks=tmp_path / "all"), "m_vIoU") == 1


def test_a_video_may_be_a_smaller_copy_of_the_annotated_one(tmp_path):
    tracks = track_file(tmp_path / "a.tracks.json.gz", WHOLE)
    row = tube(tracks=tracks, box=tuple(2 * edge for edge in BOX))
    row["extra_info"]["annotated"] = json.dumps({"width": 2 * SIZE[0], "height": 2 * SIZE[1]})
    scores = score([row], answer(row, target(1, 1, 3)))
    names = [name for name in scores.metrics if name.startswith("m_vIoU")]
    assert len(names) > 3 and value(scores, "m_vIoU") == value(scores, "m_vIoU (HC-STVG challenge)") == 1


def test_kinds_of_errors(tmp_path):
    tracks = track_file(tmp_path / "a.tracks.json.gz", WHOLE)
    texts = {
        None: target(1, 1, 3),
        "time": target(1, 4, 5),
        "id": target(2, 1, 3),
        "id+time": target(2, 4, 5),
        "format": "<answer>two</answer>",
        "missing": "",
        "video": "",
    }
    rows = [tube(f"{kind}.mp4", tracks=tracks) for kind in texts]
    answers = {}
    for row, (kind, text) in zip(rows, texts.items(), strict=True):
        uid = row["extra_info"]["uid"]
        if kind == "video":
            answers[uid] = Answer(uid, error="a.mp4: no such video")
        elif kind != "missing":
            answers |= answer(row, text)
    scores = score(rows, answers)
    assert [item["error"] for item in scores.items] == list(texts)
    counts = scores.counts
    assert (counts["answered"], counts["missing"], counts["errors"], counts["unreadable"]) == (5, 1, 1, 1)
    assert value(scores, "ID accuracy") == pytest.approx(2 / 7)
    assert scores.items[2]["prediction"] == {"intervals": [[1.0, 3.0]], "object_id": 2, "option": None}
    assert scores.items[5]["prediction"] is None and scores.items[0]["truth"]["object_id"] == 1


def test_unknown_true_ids_are_missed_and_counted(tmp_path):
    tracks = track_file(tmp_path / "a.tracks.json.gz", WHOLE)
    rows = [tube("a.mp4", tracks=tracks), tube("b.mp4", tracks=tracks, object_id=None)]
    scores = score(rows, {**answer(rows[0], target(1, 1, 3)), **answer(rows[1], target(1, 1, 3))})
    assert value(scores, "ID accuracy") == 0.5 and scores.counts["no_true_id"] == 1 and value(scores, "m_vIoU") == 1


def test_scripts_of_time_r1_and_temporal_r1():
    """Time-R1 reads the last pair of all the text and wants more than the threshold; Temporal-R1 swaps bounds."""
    row = moment("a/0", (0.0, 10.0))
    scores = score([row], answer(row, said(0, 5) + " or 0 to 7"))
    assert (value(scores, "mIoU"), value(scores, "mIoU (Time-R1)")) == (0.5, pytest.approx(0.7))
    assert value(scores, "R1@0.5") == 1
    scores = score([row], answer(row, said(0, 5)))
    assert (value(scores, "R1@0.5"), value(scores, "R1@0.5 (Time-R1)")) == (1, 0)
    row = moment("a/0", (0.0, 10.0), recipe="temporal_r1")
    text = '<think></think><answer>{"start_time": "10", "end_time": "0"}</answer>'
    scores = score([row], answer(row, text))
    assert (value(scores, "mIoU"), value(scores, "mIoU (Temporal-R1)")) == (0, 1)


@pytest.mark.parametrize(
    ("recipe", "name", "half"),
    [
        ("time_r1", "Time-R1", 0),  # eval_all.py: iou > m
        ("time_r1_nothink", "Time-R1", 0),
        ("timezero", "TimeZero", 1),  # evaluate.py: thresh <= iou
        ("videochat_r1", "VideoChat-R1", 1),
        ("videotg_r1", "VideoChat-R1", 1),
        ("videotg_r1_strict", "VideoChat-R1", 1),
        ("temporal_r1", "Temporal-R1", 1),  # eval_tvg.py: iou >= m
    ],
)
def test_what_scripts_count_at_a_threshold(recipe, name, half):
    """An IoU of exactly one half; the column has the name of the script that counts so."""
    row = moment("a/0", (0.0, 10.0), recipe=recipe)
    text = (
        '<think></think><answer>{"start_time": "0", "end_time": "5"}</answer>' if "temporal" in recipe else said(0, 5)
    )
    scores = score([row], answer(row, text))
    assert value(scores, f"R1@0.5 ({name})") == half and value(scores, "R1@0.5") == 1
    assert {key.partition("(")[2] for key in scores.metrics} == {"", f"{name})"}


def test_moment_detrs_own_recall(built):
    """Windows of 2 s clips are often worth exactly a half, which `standalone_eval/eval.py` counts."""
    row = moment(
        "7", (10.0, 20.0), recipe="videotg_r1", dataset="qvhighlights", split="val", intervals=[[10, 20], [40, 44]]
    )
    for window, ious in (((10, 15), 0.5), ((42, 46), 1 / 3), ((0, 10), 0.0), ((40, 42), 0.5)):
        scores = score([row], {row["extra_info"]["uid"]: Prediction((window, (10.0, 20.0)), ranked=True)})
        for column in ("", " (VideoChat-R1)"):
            assert value(scores, f"mIoU{column}") == pytest.approx(ious)
            assert value(scores, f"R1@0.5{column}") == (ious >= 0.5)


def test_temporal_r1_reads_files_as_its_script_does(tmp_path):
    """Bare replies of lmms-eval are read by `eval_tvg.py` as they stand, R1 files hold `start-end`."""
    row = moment("V1/0", (1.0, 5.0), recipe="temporal_r1", query="person opens door")
    key = "V1.mp4>>>person opens door>>>[1.0, 5.0]"
    reply = '<think>x</think><answer>{"start_time": "1.0", "end_time": "5.0"}</answer>'
    for text, script, clean in (
        ("The event happens in 1 - 5 seconds.", 1, 0),
        ("A specific example is : 20.8 - 30.0 seconds. It is from 1 to 5.", 1, 0),
        ("The start is 1!\nThe end is 5!", 1, 0),
        ("1.0-5.0", 1, 1),
        ("5.0-1.0", 1, 0),  # the script swaps
        ("0.0-0.0", 0, 0),
        (reply, 0, 1),  # the script reads no JSON on one line
        ("no idea, sorry 1 - 2", 0.25, 0),
    ):
        found = read(write(tmp_path / "r.json", {key: text}), [row])
        scores = score([row], found.answers)
        assert (value(scores, "mIoU (Temporal-R1)"), value(scores, "mIoU")) == (script, clean), text
    # Replies of our own are those of the R1 wrapper, which reads the template first; without reasoning there is none.
    assert value(score([row], answer(row, reply)), "mIoU (Temporal-R1)") == 1
    assert value(score([row], answer(row, "It is 1 - 5.")), "mIoU (Temporal-R1)") == 0
    bare = moment("V1/0", (1.0, 5.0), recipe="temporal_r1_nothink")
    for text, script in (("It is 1 - 5.", 1), ('<answer>\n{"start_time": "1",\n"end_time": "5"}</answer>', 1)):
        assert value(score([bare], answer(bare, text)), "mIoU (Temporal-R1)") == script


def question(recipe="videochat_r1_gqa", intervals=((2.0, 4.0), (10.0, 14.0)), right="B"):
    return moment("v/1", recipe=recipe, dataset="nextgqa", intervals=[list(one) for one in intervals], answer=right,
                  options=["a", "b", "c", "d", "e"])  # fmt: skip


def glue(letter, *periods):
    return f"<think>x</think><answer>{letter}</answer><glue>[{', '.join(map(str, periods))}]</glue>"


@pytest.mark.parametrize(
    ("text", "first", "together", "videochat", "videomind"),
    [
        (glue("B", (2.0, 4.0), (10.0, 14.0)), 1, 1, 1, 1),  # all that is annotated: the first alone meets one of two
        (glue("B", (2.0, 4.0)), 1, 2 / 6, 2 / 6, 1),
        (glue("B", (0.0, 1.0), (2.0, 4.0), (10.0, 14.0)), 0, 6 / 7, 6 / 7, 0),
        (glue("B", (2.0, 3.0), (3.0, 4.0)), 0.5, 2 / 6, 2 / 6, 0.5),
        (glue("B", (2.0, 10.0), (3.0, 14.0)), 2 / 8, 6 / 12, 6 / 12, 2 / 8),
        (glue("B"), 0, 0, 0, 0),
        ("<think>x</think><answer>B</answer><glue>[(2.0, 4.0)</glue>", 0, 0, 0, 0),
        ("no idea", 0, 0, 0, 0),
    ],
)
def test_answered_periods_count_together_and_alone(text, first, together, videochat, videomind):
    """The reward takes their union (VideoChat-R1 `evaluate_gqa.py`), VideoMind and mIoU the first."""
    row = question()
    scores = score([row], answer(row, text))
    names = ("mIoU", "set mIoU", "mIoU (VideoChat-R1)", "mIoU (VideoMind)")
    assert [value(scores, name) for name in names] == pytest.approx([first, together, videochat, videomind])
    reward = RECIPES["videochat_r1_gqa"].score(text, row["reward_model"]["ground_truth"])
    assert value(scores, "mIoU (VideoChat-R1)") == reward["temporal_iou"]
    assert value(scores, "set IoU@0.5") == (together >= 0.5)


def test_options_as_the_scripts_read_them():
    row = question()
    for said_it, clean, videochat, videomind in (
        ("B", 1, 1, 1),
        ("(B)", 1, 1, 1),
        ("The answer is B", 0, 1, 0),  # VideoMind: the t of "the"
        ("Definitely (B)", 1, 0, 0),  # VideoChat-R1: the D of "Definitely"
        ("bird", 0, 0, 1),
    ):
        scores = score([row], answer(row, glue(said_it, (2.0, 4.0))))
        names = ("Acc@QA", "Acc@QA (VideoChat-R1)", "Acc@QA (VideoMind)")
        assert [value(scores, name) for name in names] == [clean, videochat, videomind], said_it
        assert value(scores, "Acc@GQA (VideoMind)") == value(scores, "Acc@IoU (VideoMind)") == videomind
    other = question("temporal_r1_gqa")
    text = '<answer>{"option": "B", "start_time": "2.0", "end_time": "4.0"}</answer>'
    scores = score([other], answer(other, text))
    assert value(scores, "Acc@QA (VideoMind)") == value(scores, "mIoU (VideoMind)") == 1
    assert not [name for name in scores.metrics if "VideoChat" in name]  # its script reads no JSON


def test_ranked_windows_are_guesses_and_not_a_set(tmp_path):
    row = question()
    for form in ("moment_detr", "lines"):
        key = "pred_relevant_windows" if form == "moment_detr" else "intervals"
        text = lines({"qid": "v_1", key: [[2.0, 4.0], [10.0, 14.0]], "ans": "B"})
        scores = score([row], read(write(tmp_path / f"{form}.jsonl", text), [row]).answers)
        assert value(scores, "set mIoU") == pytest.approx(2 / 6 if form == "moment_detr" else 1)
        assert value(scores, "mIoU") == 1


def test_several_periods_of_videochat_r1_5():
    row = moment("v/1", (2.0, 6.0), recipe="videochat_r1_5")
    scores = score([row], answer(row, "<answer>[(2.0, 4.0), (4.0, 6.0)]</answer>"))
    assert (value(scores, "mIoU"), value(scores, "set mIoU")) == (0.5, 1)


@pytest.mark.parametrize("recipe", ["time_r1", "videotg_r1", "temporal_r1", "stvg_r1"])
def test_what_is_meant_counts_beside_what_the_prompt_asks(recipe):
    """Another form, no tag, colons: columns (lenient) hold the right value."""
    row = tube() if recipe == "stvg_r1" else moment("a/0", (1.0, 3.0), recipe=recipe)
    main = "m_tIoU" if recipe == "stvg_r1" else "mIoU"
    for text in ("1 to 3", "<think>0 to 9</think> from 1s to 3s", "<answer>00:01 to 00:03", "\\boxed{[1, 3]}"):
        scores = score([row], answer(row, text))
        assert (value(scores, main), value(scores, f"{main} (lenient)")) == (0, 1), text
        assert any("lenient" in note for note in scores.notes) and scores.counts["answered"] == 1
    scores = score([row], perfect([row]))
    assert f"{main} (lenient)" not in scores.metrics  # it would repeat the others
    assert value(score([row], answer(row, "no idea")), main) == 0


@pytest.mark.parametrize("text", ["<think>0 to 9</think> (B), 2 to 4 seconds", "<answer>(B) from 2s to 4s</answer>"])
def test_what_is_meant_counts_in_grounded_questions_too(text):
    row = question(intervals=[(2.0, 4.0)])
    scores = score([row], answer(row, text))
    assert value(scores, "mIoU") == value(scores, "Acc@GQA") == 0
    names = ("mIoU", "mIoP", "Acc@QA", "Acc@GQA", "Acc@IoU")
    assert {value(scores, f"{name} (lenient)") for name in names} == {1}
    assert value(score([row], answer(row, text.replace("B", "C"))), "Acc@GQA (lenient)") == 0
    assert "mIoU (lenient)" not in score([row], perfect([row])).metrics  # it would repeat the others


def test_colons_are_not_misread_in_silence():
    row = moment("a/0", (70.0, 80.0), duration=100.0)
    scores = score([row], answer(row, said("01:10", "01:20")))
    assert (value(scores, "mIoU"), value(scores, "mIoU (lenient)")) == (0, 1)


# --- laws -------------------------------------------------------------------------------------------------------------

times = st.tuples(st.integers(0, 150), st.integers(1, 50)).map(lambda t: (t[0] / 10, (t[0] + t[1]) / 10))


@settings(max_examples=30)
@given(
    st.lists(times, min_size=1, max_size=6), st.sampled_from(["time_r1", "temporal_r1", "videotg_r1", "videochat_r1"])
)
def test_perfect_answers_to_times(intervals, recipe):
    rows = [moment(f"v/{k}", one, recipe=recipe) for k, one in enumerate(intervals)]
    scores = score(rows, perfect(rows))
    assert all(one["value"] == pytest.approx(1, abs=1e-4) for one in scores.metrics.values())


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 25)), min_size=1, max_size=4), st.booleans())
def test_perfect_answers_to_tubes(places, by_id):
    recipe = "stvg_r1" if by_id else "stvg_boxes"
    rows = [tube(f"{k}.mp4", first, count, recipe=recipe) for k, (first, count) in enumerate(places)]
    if by_id:  # a track that is the annotation, without a file
        found = [Prediction((tuple(r["reward_model"]["ground_truth"]["intervals"][0]),), tube=None) for r in rows]
        found = [
            Prediction(one.intervals, tube=dict.fromkeys(range(first, first + count), BOX))
            for one, (first, count) in zip(found, places, strict=True)
        ]
        answers = {row["extra_info"]["uid"]: one for row, one in zip(rows, found, strict=True)}
    else:
        answers = perfect(rows)
    scores = score(rows, answers)
    for name in ("m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5", "m_vIoU_repaired", "m_vIoU (HC-STVG challenge)"):
        assert value(scores, name) == pytest.approx(1)


@settings(max_examples=30)
@given(st.lists(st.tuples(times, times, st.booleans()), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_laws_of_the_table(cases, random):
    rows = [moment(f"v{k % 3}/{k}", truth) for k, (truth, _, _) in enumerate(cases)]
    answers = {}
    for row, (_, (start, end), readable) in zip(rows, cases, strict=True):
        answers |= answer(row, said(start, end) if readable else "no idea")
    scores = score(rows, answers)
    names = list(scores.metrics)
    for name in names:  # the table is the mean of the items
        one = scores.metrics[name]
        assert np.mean([item["values"][name] for item in scores.items]) == pytest.approx(one["value"])
        assert -1e-12 <= one["low"] <= one["value"] + 1e-12 <= one["high"] + 2e-12 <= 1 + 1e-9
    shuffled = list(answers.items())
    random.shuffle(shuffled)
    again = score(rows, dict(shuffled))
    assert again.summary() == scores.summary() and again.items == scores.items
    lost = random.choice(list(answers))
    fewer = score(rows, {uid: one for uid, one in answers.items() if uid != lost} or answers)
    assert all(value(fewer, name) <= value(scores, name) + 1e-12 for name in names)
    for groups in scores.groups.values():
        counts = [group["count"] for group in groups.values()]
        assert sum(counts) == len(rows)
        mean = sum(group["mIoU"] * group["count"] for group in groups.values()) / len(rows)
        assert mean == pytest.approx(value(scores, "mIoU"))


def test_intervals_are_wider_where_rows_share_videos():
    rows = [moment(f"v{k // 10}/{k}", (0.0, 10.0)) for k in range(100)]
    alone = [moment(f"w{k}/0", (0.0, 10.0)) for k in range(100)]
    widths = []
    for found in (rows, alone):
        answers = {}
        for k, row in enumerate(found):
            answers |= answer(row, said(0, 10) if k // 10 % 2 else said(15, 20))
        one = score(found, answers).metrics["mIoU"]
        widths.append(one["high"] - one["low"])
    assert widths[0] > 2 * widths[1]


# --- baselines --------------------------------------------------------------------------------------------------------


def test_baselines_by_hand(tmp_path):
    tracks = track_file(
        tmp_path / "a.tracks.json.gz", {1: over(BOX, 0, 60), 2: over(FAR, 0, 60), 4: over((0, 0, 50, 70), 0, 60)}
    )
    row = tube(first=0, count=30, tracks=tracks, object_id=1)  # the first half
    scores = score([row], {})
    window = "constant window [0, 0.5]"
    assert scores.baselines["whole video"] == {"m_tIoU": 0.5}
    assert scores.baselines[window] == {"m_tIoU": 1}
    random, largest = scores.baselines[f"{window}, random ID"], scores.baselines[f"{window}, largest object"]
    assert random["ID accuracy"] == pytest.approx(1 / 3) and largest["ID accuracy"] == 0
    of_largest = 800 / 3500  # BOX within the largest
    assert random["m_vIoU"] == pytest.approx((1 + 0 + of_largest) / 3)
    assert largest["m_vIoU"] == pytest.approx(of_largest)


@settings(max_examples=25)
@given(st.lists(times, min_size=1, max_size=12))
def test_the_best_window_is_no_worse_than_any_of_its_grid(intervals):
    items = [item_of(moment(f"v/{k}", one)) for k, one in enumerate(intervals)]

    def mean(start, end):
        return np.mean(
            [
                max(0, min(end * 20, e) - max(start * 20, s)) / (max(end * 20, e) - min(start * 20, s))
                for s, e in intervals
            ]
        )

    start, end = baselines.best_window(items)
    best = max(mean(a / 25, b / 25) for a in range(26) for b in range(a + 1, 26))
    assert 0 <= start < end <= 1 and mean(start, end) >= best - 1e-6
    assert baselines.best_window(items[::-1]) == (start, end)


def test_the_window_may_be_fitted_on_other_rows():
    rows, train = [moment("a/0", (0.0, 10.0))], [moment("b/0", (10.0, 20.0), split="train")]
    fitted = score(rows, {}, train=train).baselines["constant window [0.5, 1] of train"]
    assert fitted["mIoU"] == 0 and score(rows, {}).baselines["constant window [0, 0.5]"]["mIoU"] == 1


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: score([], {}), "no rows"),
        (lambda: score([moment("a/0"), moment("a/0")], {}), "two rows have the ID"),
        (lambda: score([moment("a/0"), moment("b/0", dataset="tacos")], {}), "rows of charades_sta, tacos"),
        (lambda: score([moment("a/0")], {}, "tacos"), "are of charades_sta, not of tacos"),
        (lambda: score([moment("a/0")], {}, "charades"), "no benchmark 'charades'"),
        (lambda: score([moment("a/0")], {"other/1": Answer("other/1", ("x",))}), "none of 1 answers"),
        (lambda: score([moment("a/0", intervals=None, start=None)], {}), "no ground truth"),
        (lambda: score([moment("a/0", recipe="nothing")], {}), "no reward"),
        (lambda: score([moment("a/0", duration=None)], {}), "no duration"),
        (lambda: score([moment("a/0")], {}, train=[moment("b/0", intervals=None, start=None)]), "annotated intervals"),
    ],
)
def test_rows_and_answers_that_cannot_be_scored(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_track_files_that_cannot_be_used(tmp_path):
    row = tube(tracks=tmp_path / "a.tracks.json.gz")
    with pytest.raises(ValueError, match=r"row hc_stvg_v1/test/a.mp4: .*no such file; track the video"):
        score([row], answer(row, target(1, 1, 3)))
    track_file(tmp_path / "a.tracks.json.gz", {1: over(BOX, 0, 5)}, (128, 96))
    with pytest.raises(ValueError, match=r"row hc_stvg_v1/test/a.mp4: .*128x96, the row's has 96x80"):
        score([row], answer(row, target(1, 1, 3)))


def test_what_is_wrong_with_answers_is_counted():
    rows = [moment(f"v/{k}") for k in range(6)]
    uids = [row["extra_info"]["uid"] for row in rows]
    answers = {
        uids[0]: Answer(uids[0], (said(5, 10), said(0, 1)), ("length", "stop")),
        uids[1]: Prediction(((float("nan"), 10.0),)),
        uids[2]: Prediction(((float("inf"), 10.0), (5.0, 10.0))),
        uids[3]: Answer(uids[3], ("I see <answer>nothing</answer>",)),
        "charades_sta/test/v/99": Answer("charades_sta/test/v/99", (said(5, 10),)),
    }
    scores = score(rows, answers, counts={"duplicates": 2})
    wanted = {"answered": 4, "missing": 2, "unreadable": 2, "cut_off": 1, "extra": 1, "duplicates": 2, "not_finite": 2}
    assert {name: scores.counts[name] for name in wanted} == wanted
    assert value(scores, "mIoU") == pytest.approx(2 / 6)
    assert any("2 rows have no answer" in note and uids[4] in note for note in scores.notes)
    assert any("are to no row" in note and "v/99" in note for note in scores.notes)
    assert "cut off 1" in scores.table()


def test_groups_have_their_bins():
    rows = [moment(f"v/{k}", (0.0, 4.0), float(d)) for k, d in enumerate((10, 15, 30, 500))]
    groups = score(rows, perfect(rows)).groups
    assert list(groups["video duration"]) == ["under 15 s", "15 to 30 s", "30 to 60 s", f"{DURATIONS[-1]} s and more"]
    assert groups["interval length"]["under 5 s"]["count"] == 4
    assert groups["interval length"]["under 5 s"]["mIoU"] == pytest.approx(1)


# --- folders and the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def charades(tmp_path_factory):
    """Rows of ten queries on five videos, as a file."""
    folder = tmp_path_factory.mktemp("charades")
    lines = "".join(f"V{k // 2:04d} {k}.0 {k + 8}.0##person does thing {k}.\n" for k in range(10))
    (folder / "charades_sta_test.txt").write_text(lines)
    (folder / "durations.json").write_text(json.dumps({f"V{k:04d}": 30.0 for k in range(5)}))
    build.build(build.Job(all_sets()["charades_sta"], folder, folder / "rows"))
    return folder / "rows" / "test.parquet"


def command(*arguments):
    app = typer.Typer()
    app.command()(score_cli.score)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def run_folder(folder, file, answers, **more):
    folder.mkdir()
    record = {"rows": [str(file)], "model": "m", "fold_size": None, "fold_index": 0, "limit": None, "video_root": None}
    (folder / "run.json").write_text(json.dumps(record | more))
    append(folder / "predictions.jsonl", answers.values())
    return folder


def test_a_folder_of_answers_is_scored_in_place(charades, tmp_path):
    rows = list(read_rows([charades]))
    folder = run_folder(tmp_path / "run", charades, perfect(rows[:9]))
    with (folder / "predictions.jsonl").open("a") as file:
        file.write('{"uid": "charades_sta/test/V0004/1", "tex')  # killed while it wrote
    found = score_run(folder)
    assert found == json.loads((folder / "scores.json").read_text())
    assert (found["benchmark"], found["rows"], found["main"]) == ("charades_sta", 10, "mIoU")
    assert found["counts"]["half_written"] == found["counts"]["missing"] == 1
    assert found["metrics"]["mIoU"]["value"] == pytest.approx(0.9)
    assert found["made_by"]["rows"] == [str(charades)]
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert [item["uid"] for item in items] == [row["extra_info"]["uid"] for row in rows]
    assert items[9] == {
        "uid": "charades_sta/test/V0004/1",
        "values": dict.fromkeys(found["metrics"], 0.0),
        "error": "missing",
        "prediction": None,
        "truth": {"intervals": [[9.0, 17.0]], "duration": 30.0, "object_id": None, "answer": None},
    }
    assert command(folder)[0] == 1  # findings: a row has no answer


def test_a_try_on_the_first_rows_is_scored_on_them(charades, tmp_path):
    rows = list(read_rows([charades]))
    found = score_run(run_folder(tmp_path / "run", charades, perfect(rows[:4]), limit=4))
    assert found["rows"] == 4 and found["metrics"]["mIoU"]["value"] == pytest.approx(1)
    assert found["counts"]["published"] == 3720


def test_folders_that_cannot_be_scored(charades, tmp_path):
    with pytest.raises(ValueError, match="run.json: no such file"):
        score_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say which files of rows"):
        score_run(tmp_path)
    folder = run_folder(tmp_path / "run", tmp_path / "gone.parquet", {})
    with pytest.raises(ValueError, match="gone.parquet: no such file of rows"):
        score_run(folder)
    status, words = command(folder, "--rows", charades)
    assert status == 2 and "leave them out" in words
    status, words = command(tmp_path / "x.jsonl")
    assert status == 2 and "--predictions" in words


def test_scoring_starts_light(run_python):
    run_python(
        "import sys, verl_stvg.eval.score, verl_stvg.eval.importers.foreign, verl_stvg.cli.score\n"
        "heavy = {'torch', 'verl', 'transformers', 'vllm', 'pandas', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


# --- files of other programs ------------------------------------------------------------------------------------------


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return path


def lines(*found):
    return "".join(json.dumps(one) + "\n" for one in found)


def read(file, rows, form="auto"):
    return foreign.read([file], [item_of(row) for row in rows], form)


ROWS = [
    moment("V1/0", (1.0, 5.0), query="person opens door"),
    moment("V1/1", (2.0, 6.0), query="person sits"),
    moment("V2/0", (3.0, 9.0), query="person sits", annotated={"qid": 77}),
]
HALF = [(1.0, 5.0), (2.0, 4.0), None]  # IoU 1, 0.5, 0

FILES = {
    "answers": lines(
        {"uid": "charades_sta/test/V1/0", "texts": [said(1, 5)]},
        {"uid": "charades_sta/test/V1/1", "texts": [said(2, 4)]},
    ),
    "lines": lines(
        {"uid": "charades_sta/test/V1/0", "interval": [1, 5]},
        {"vid": "V1.mp4", "query": "Person  sits.", "text": said(2, 4)},
        {"qid": 77, "intervals": [["x", 4]]},
    ),
    "lines, by video and query": [
        {"video": "some/folder/V1", "sentence": "person opens door", "intervals": [[1.0, 5.0], [8, 9]]},
        {"video": "V1", "sentence": "person sits", "interval": ["2.0", 4]},
    ],
    "by_uid": {"V1_0": [1, 5], "charades_sta/test/V1/1": [[2, 4], [0, 1]], "77": "no idea"},
    "by_uid, objects": {"V1/0": {"interval": [1, 5]}, "V1/1": {"output": said(2, 4)}},
    "time_r1": lines(
        {"qid": "charades_0", "pred": [1.0, 5.0], "target": [1.0, 5.0], "duration": 20.0, "output_text": said(1, 5)},
        {"qid": "charades_1", "pred": [2.0, 4.0], "target": [2.0, 6.0], "duration": 20.0, "output_text": said(2, 4)},
        {"qid": "charades_2", "pred": [None, None], "target": [3.0, 9.0], "duration": 20.0, "output_text": "hm"},
    ),
    "temporal_r1": {
        "V1.mp4>>>person opens door>>>[1.0, 5.0]": "1.0-5.0",
        "V1.mp4>>>person sits>>>[2.0, 6.0]": said(2, 4),
        "V2.mp4>>>person sits>>>[3.0, 9.0]": "0.0-0.0",
    },
    "videomind": [
        {"vid": "V1", "query": "person opens door", "span": [[1, 5]], "pred": [[1, 5], [0, 9]], "conf": [0.9, 0.1]},
        {"video_path": "x/V1.mp4", "query": "person sits", "span": [[2, 6]], "pred": [[2, 4]], "conf": [0.5]},
    ],
    "moment_detr": lines(
        {
            "qid": "V1_0",
            "query": "person opens door",
            "vid": "V1",
            "pred_relevant_windows": [[1, 5, 0.99], [0, 9, 0.2]],
        },
        {"qid": 1234, "query": "person sits", "vid": "V1", "pred_relevant_windows": [[2, 4, 0.9]]},
        {"qid": 77, "query": "person sits", "vid": "V2", "pred_relevant_windows": []},
    ),
    "stvg_r1": "\n".join(
        f"ID: {name}\nQuery: q\nGround Truth: 3, [1, 5]\nPrediction:  {number}, {times}\nIoU: 1.0000\nMarker Value: 1\n"
        f"Model Output: <think>one\nID: 4\n</think>{text}\n{'-' * 80}"
        for name, number, times, text in (("V1_0", 3, [1, 5], said(1, 5)), ("V1_1", None, [0, 0], said(2, 4)))
    )
    + "\n",
    "stvg_r1, without outputs": f"ID: V1_0\nPrediction:  3, [1.0, 5.0]\n{'-' * 80}\n"
    f"ID: V1_1\nPrediction:  3, [2.0, 4.0]\n{'-' * 80}\nID: V2_0\nPredi",
    "verl": lines(
        {"input": "q", "output": said(1, 5), "gts": {"uid": "charades_sta/test/V1/0"}, "score": 2.0, "uid": "af3"},
        {"input": "q", "output": said(2, 4), "gts": {"uid": "charades_sta/test/V1/1"}, "score": 1.5, "uid": "b31"},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_formats_of_other_programs(name, tmp_path):
    form = name.partition(",")[0]
    ending = ".txt" if form == "stvg_r1" else ".json"
    file = write(tmp_path / f"predictions{ending}", FILES[name])
    found = read(file, ROWS)
    assert found == read(file, ROWS, form)
    scores = score(ROWS, found.answers, counts=found.counts)
    assert [item["values"]["mIoU"] for item in scores.items] == pytest.approx([1, 0.5, 0]), found
    assert found.counts.get("half_written", 0) == (1 if "without" in name else 0)
    assert not found.counts.get("extra") and scores.counts["extra"] == 0


def test_the_command_scores_files_of_other_programs(charades, tmp_path):
    rows = list(read_rows([charades]))
    windows = lines(*({"vid": f"V{k // 2:04d}", "query": r["extra_info"]["query"], "qid": k, "pred_relevant_windows":
                       [[k, k + 4, 1]]} for k, r in enumerate(rows)))  # fmt: skip
    file = write(tmp_path / "hl_val.jsonl", windows)
    status, words = command(file, "--rows", charades, "--benchmark", "charades_sta")
    assert status == 0, words
    found = json.loads((tmp_path / "hl_val-scores" / "scores.json").read_text())
    assert found["metrics"]["mIoU"]["value"] == pytest.approx(0.5) and found["made_by"]["predictions"] == [str(file)]
    texts = write(
        tmp_path / "dump.jsonl", lines(*({"output": said(0, 30), "gts": {"uid": r["extra_info"]["uid"]}} for r in rows))
    )
    status, words = command(texts, "--rows", charades, "--out", tmp_path / "out", "--rewards")
    assert status == 0, words
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["metrics"]["mIoU"]["value"] == pytest.approx(
        8 / 30
    )


def test_a_pickled_checkpoint_is_data_only(tmp_path):
    """STVG-R1's state holds numpy arrays, and might hold anything: nothing that it names is called."""
    state = {
        "processed_items": {"V1_0"},
        "ious": [np.float64(0.3)],
        "temporal_recall": np.array([0, 1, 2]),
        "predictions": {"V1_0": {"query": "q", "pred_id": 3, "model_output": said(1, 5), "iou": np.float64(1)}},
    }
    file = tmp_path / "checkpoint.pkl"
    file.write_bytes(pickle.dumps(state))
    assert score(ROWS, read(file, ROWS).answers).items[0]["values"]["mIoU"] == 1

    class Evil:
        def __reduce__(self):
            return tmp_path.joinpath("gone").mkdir, ()

    file.write_bytes(pickle.dumps(state | {"x": Evil()}))
    assert read(file, ROWS).answers and not (tmp_path / "gone").exists()


def test_a_challenge_submission_counts_frames_from_one(tmp_path):
    row = tube("12_abc.mp4")  # frames 10 to 29, from zero
    boxes = {str(frame): list(BOX) for frame in range(11, 31)}
    submission = {"12_abc.mp4": {"st_frame": 11, "ed_frame": 30, "bbox": boxes}}
    found = read(write(tmp_path / "results.json", submission), [row])
    scores = score([row], found.answers, counts=found.counts)
    for name in ("m_tIoU", "m_vIoU", "m_tIoU (HC-STVG challenge)", "m_vIoU (HC-STVG challenge)"):
        assert value(scores, name) == pytest.approx(1)
    assert "m_vIoU (STVG-R1)" not in scores.metrics  # it knows IDs only
    del boxes["15"]
    found = read(write(tmp_path / "results.json", submission), [row])
    scores = score([row], found.answers, counts=found.counts)
    assert scores.counts["wrong_tube_length"] == 1
    assert value(scores, "m_vIoU (HC-STVG challenge)") == pytest.approx(19 / 20)


def test_tubes_in_lines(tmp_path):
    row = tube("12_abc.mp4")
    for form in ({"first_frame": 10, "boxes": [list(BOX)] * 10}, {str(k): list(BOX) for k in range(10, 20)}):
        found = read(write(tmp_path / "p.jsonl", lines({"id": "12_abc", "interval": [1, 2], "tube": form})), [row])
        scores = score([row], found.answers)
        assert value(scores, "m_tIoU") == value(scores, "m_vIoU") == pytest.approx(0.5)


def test_times_and_options_in_two_files(tmp_path):
    """NExT-GQA keeps segments and answers apart."""
    row = moment("4882/1", recipe="videochat_r1_gqa", dataset="nextgqa", answer="B", options=["a", "b", "c", "d", "e"])
    segments = write(tmp_path / "test_ground.json", {"4882_1": [5, 10], "4882_7": [0, 1]})
    options = write(tmp_path / "test-res.json", {"4882_1": {"answer": 1, "prediction": 1}})
    for files in ([segments, options], [options, segments]):
        found = foreign.read(files, [item_of(row)])
        assert value(score([row], found.answers), "Acc@GQA") == 1 and found.counts["extra"] == 1
        assert not found.counts.get("duplicates")


def test_rextime_submission(tmp_path):
    row = moment(
        "anet_val1", recipe="videochat_r1_gqa", dataset="rextime", split="val", answer="C", options=list("abcd")
    )
    text = lines({"qid": "anet_val1", "pred_relevant_windows": [[5, 10]], "ans": "C"})
    scores = score([row], read(write(tmp_path / "submission.json", text), [row]).answers)
    assert value(scores, "Acc@IoU") == 1
    scores = score(
        [row], read(write(tmp_path / "submission.json", lines({"qid": "anet_val1", "ans": "A"})), [row]).answers
    )
    assert value(scores, "Acc@QA") == 0 and scores.items[0]["error"] == "wrong option"


def test_the_same_query_twice_is_told_apart_by_its_truth_or_order(tmp_path):
    rows = [moment(f"V1/{k}", (float(k), k + 5.0), query="it moves") for k in range(3)]
    with_truth = [
        {"vid": "V1", "query": "it moves", "span": [[k, k + 5]], "pred": [[k, k + 5]], "conf": [1]} for k in (2, 0, 1)
    ]
    found = read(write(tmp_path / "output_0.json", with_truth), rows)
    assert value(score(rows, found.answers), "mIoU") == 1
    bare = lines(*({"vid": "V1", "query": "it moves", "interval": [k, k + 5]} for k in range(3)))
    assert value(score(rows, read(write(tmp_path / "p.jsonl", bare), rows).answers), "mIoU") == 1


def test_duplicates_strangers_and_half_lines_are_counted(tmp_path):
    text = lines(
        {"uid": "charades_sta/test/V1/0", "interval": [1, 5]},
        {"uid": "charades_sta/test/V1/0", "interval": [0, 1]},
        {"uid": "charades_sta/test/V9/0", "interval": [0, 1]},
        {"uid": "charades_sta/test/V1/1", "interval": [float("nan"), 4]},
    )
    found = read(write(tmp_path / "p.jsonl", text + '{"uid": "charad'), ROWS)
    assert found.counts == {"duplicates": 1, "extra": 1, "half_written": 1}
    scores = score(ROWS, found.answers, counts=found.counts)
    assert scores.counts["not_finite"] == scores.counts["unreadable"] == 1
    assert value(scores, "mIoU") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("content", "form", "words"),
    [
        ("", "auto", "is empty"),
        ("not json\nat all", "auto", "line 1 is no JSON"),
        ('{"uid": "a"}\n[1]\n', "auto", "line 2 is no JSON object"),
        ("[1, 2]", "auto", "cannot be told"),
        (lines({"uid": "other", "interval": [0, 1]}), "auto", "none of 1 predictions"),
        (lines({"uid": "a", "interval": [0, 1]}), "videochat", "no format 'videochat'"),
        ({"a": [1, 2]}, "hc_stvg", "not of the format hc_stvg"),
        (lines({"qid": "a"}), "time_r1", "not of the format time_r1"),
        (lines({"qid": "a"}), "verl", "not of the format verl"),
        (lines({"uid": 3, "text": 1}), "stvg_r1", "not of the format stvg_r1"),
    ],
)
def test_files_that_cannot_be_read(content, form, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read(write(tmp_path / "p.json", content), ROWS, form)
    with pytest.raises(ValueError, match="no such file of predictions"):
        read(tmp_path / "gone.json", ROWS)


@pytest.mark.parametrize(
    "line",
    [
        {"start": 1, "end": 5},
        {"start_time": "1.0", "end_time": 5},
        {"interval": [1, 5]},
        {"timestamp": [1, 5]},
        {"timestamps": [[1, 5]]},
        {"relevant_windows": [[1, 5]]},
        {"text": said(1, 5)},
    ],
)
def test_times_under_every_name(line, tmp_path):
    row = moment("V1/0", (1.0, 5.0))
    for content in (lines({"uid": "charades_sta/test/V1/0"} | line), {"V1/0": line}):
        assert value(score([row], read(write(tmp_path / "p.json", content), [row]).answers), "mIoU") == 1


@pytest.mark.parametrize(
    ("content", "form", "words"),
    [
        (
            lines({"uid": "V1/0", "from": 1, "till": 5}),
            "auto",
            r"none of 1 predictions can be read \(format lines\).*from",
        ),
        (lines({"uid": "V1/0", "from": 1}), "auto", "looked for text .*start and end"),
        (lines({"qid": "V1/0", "text": "no idea"}), "auto", "'no idea'; looked for an answer to the row's prompt"),
        (lines({"qid": "V1/0", "text": ""}), "auto", "''; looked for"),
        ({"V1/0": "no idea", "V1/1": ""}, "auto", "none of 2 predictions can be read"),
        ({"V1/0": {"moment": "1-5"}}, "auto", "format by_uid.*moment"),
        (lines({"qid": "V1/0", "pred_relevant_windows": []}), "auto", "format moment_detr"),
        ({"V1.mp4>>>person sits>>>[2.0, 6.0]": "no idea"}, "auto", "format temporal_r1.*'no idea'"),
        ([], "lines", "holds no predictions"),
        ({}, "auto", "holds no predictions"),
    ],
)
def test_files_of_which_nothing_can_be_read(content, form, words, tmp_path, charades):
    """They end in a message and not in a table of zeros."""
    file = write(tmp_path / "p.json", content)
    with pytest.raises(ValueError, match=words):
        read(file, ROWS, form)


def test_the_command_refuses_a_file_of_which_nothing_can_be_read(charades, tmp_path):
    uids = [row["extra_info"]["uid"] for row in read_rows([charades])]
    file = write(tmp_path / "p.jsonl", lines(*({"uid": uid, "from": 1} for uid in uids)))
    status, words = command(file, "--rows", charades)
    assert status == 2 and "none of 10 predictions can be read" in words
    file = write(tmp_path / "q.jsonl", lines({"uid": uids[0], "text": "It lasts from 0 to 8 s."}))
    status, words = command(file, "--rows", charades, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["metrics"]
    assert status == 1 and (found["mIoU"]["value"], found["mIoU (lenient)"]["value"]) == (0, pytest.approx(0.1))


ANNOTATED = "charades_sta activitynet didemo qvhighlights tacos tvgbench nextgqa vidstg hc_stvg_v2".split()


@pytest.mark.parametrize("name", ANNOTATED)
def test_the_annotation_itself_is_a_perfect_prediction(name, built, tmp_path):
    """Found by its name, or named with --format."""
    if name in BENCHMARKS and name != "hc_stvg_v2":
        file, fixture = built(name)
        folder = fixture.annotations
    else:
        entry = test_tubes.V2 | set_fixtures._OVER
        folder = tmp_path / "annotations"
        folder.mkdir()
        (folder / "val_v2.json").write_text(json.dumps({"21_D8Vhxbho1fY.mkv": entry}))
        job = build.Job(all_sets()[name], folder, tmp_path / "rows", splits=("val",), template=TEMPLATES["stvg_boxes"])
        build.build(job)
        file = tmp_path / "rows" / "val.parquet"
    rows = list(read_rows([file]))
    source = all_sets()[name].splits[BENCHMARKS[name].split][0]
    annotation = next(folder / one for one in source.names if (folder / one).exists())
    for form in ("auto", "annotation"):
        found = foreign.read([annotation], [item_of(row) for row in rows], form)
        assert found.counts["annotated"] == 1
        scores = score(rows, found.answers, counts=found.counts)
        main = "Acc@IoU" if scores.main == "Acc@GQA" else scores.main
        # The annotated seconds of HC-STVG are a frame shorter than its tube.
        assert value(scores, main) == pytest.approx(1, abs=1e-6 if name != "hc_stvg_v2" else 0.01)
        assert any("annotation itself" in note for note in scores.notes)


def test_predictions_by_the_name_of_an_annotation_are_predictions(charades, tmp_path):
    rows = list(read_rows([charades]))
    file = write(tmp_path / "test.json", {r["extra_info"]["uid"]: [k, k + 4] for k, r in enumerate(rows)})
    found = foreign.read([file], [item_of(row) for row in rows])
    assert "annotated" not in found.counts
    assert value(score(rows, found.answers), "mIoU") == pytest.approx(0.5)


def test_time_r1_numbers_are_only_believed_where_the_truth_agrees(tmp_path):
    text = lines({"qid": "charades_1", "pred": [1, 5], "target": [1.0, 5.0], "output_text": said(1, 5)})
    with pytest.raises(ValueError, match="none of 1 predictions"):
        read(write(tmp_path / "tg.jsonl", text), ROWS)


# --- verl's own numbers -----------------------------------------------------------------------------------------------


def test_a_row_is_an_item_of_its_kind():
    """That of its benchmark, else of what it holds; or the kind that is asked for."""
    asked = moment("v/0", dataset="nextgqa", options=["a", "b"], answer="B")
    known = {Moment: moment("v/0"), Tube: tube(), Question: asked, Referred: moment("v/0", dataset="mevis")}
    assert [type(item_of(row)) for row in known.values()] == list(known)
    assert all(issubclass(one.kind, tuple(known)) for one in BENCHMARKS.values())
    both = tube(options=["a"], dataset="own")
    own = {Moment: moment("v/0", dataset="own"), Tube: tube(dataset="own"), Question: both}
    assert [type(item_of(row)) for row in own.values()] == list(own)
    assert item_of(both, Tube).boxes.shape == (20, 4)
    moved = item_of(own[Moment], Tube)
    assert (moved.intervals, moved.duration, moved.boxes) == (((5.0, 10.0),), 20.0, None)
    assert find(None, [moved]).kind is Moment and find(None, [item_of(own[Tube])]).kind is Tube


def test_rows_of_an_unknown_set_are_of_one_kind():
    """One row with options makes a set of questions; a row without them has its answer all the same."""
    rows = [moment(f"v/{k}", dataset="own", answer="B", options=["a", "b"][: 2 - 2 * k]) for k in range(2)]
    right = Prediction(((5.0, 10.0),), option="B")
    scores = score(rows, {row["extra_info"]["uid"]: right for row in rows})
    assert scores.metrics["Acc@QA"]["value"] == 1.0


def test_every_reward_has_a_reader():
    rows = [moment(f"v/{k}", recipe=name, answer="B", options=["a", "b"]) for k, name in enumerate(RECIPES)]
    for row in rows:
        for text in ("", "<answer></answer>", "<think>", "(B)"):
            item = item_of(row)
            scores = score([row], answer(row, text))
            assert scores.counts["answered"] == 1 and item.recipe in RECIPES


@pytest.mark.slow
def test_offline_rewards_equal_those_of_verls_validation(tmp_path, clips):
    """A dump as verl writes it, two samples of each row in random order, and verl's own means of the same answers."""
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    rng = np.random.default_rng(5)
    found = list(pq.read_table(clips / "val.parquet").to_pylist())
    records = []
    for row in found:
        truth = row["reward_model"]["ground_truth"]
        for _ in range(2):
            start, end = sorted(rng.uniform(0, 8, 2))
            text = target(rng.integers(1, 9), f"{start:.2f}", f"{end:.2f}") if rng.random() < 0.9 else "<answer>?"
            parts = compute_score(row["data_source"], text, truth, row["extra_info"])
            records.append({"input": "q", "output": text, "gts": truth, "step": 3} | parts)
    rng.shuffle(records)
    (tmp_path / "3.jsonl").write_text(lines(*records))
    source = found[0]["data_source"]
    parts = list(parts)
    infos = {part: [record[part] for record in records] for part in parts}
    theirs = process_validation_metrics([source] * len(records), [r["gts"]["uid"] for r in records], infos)
    answers = foreign.read([tmp_path / "3.jsonl"], [item_of(row) for row in found]).answers
    ours = rewards(found, answers)
    assert ours == {source: {part: theirs[source][part]["mean@2"] for part in parts}}
    assert find(None, [item_of(found[0])]).name == "synthetic"
