"""Readers of tube and mask sets: every pitfall of the published layouts, and every way an entry can be malformed."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco

from verl_stvg.data_builders.read import AnnotationError
from verl_stvg.data_builders.records import Problem, Record, Tube
from verl_stvg.data_builders.sets import hc_stvg, mevis, st_align, vidstg

SETS = {one.name: one for module in (hc_stvg, vidstg, st_align, mevis) for one in module.SETS}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def only(found):
    [one] = found
    return one


def changed(entry, path, value=None):
    """Copy of nested JSON with one value replaced, or removed if `value` is `GONE`."""
    entry = copy.deepcopy(entry)
    *parents, last = path
    place = entry
    for key in parents:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return entry


GONE = object()


def assert_problem(found, where, what):
    assert isinstance(found, Problem), found
    assert where in found.where and what in found.what, found


# HC-STVG

V1 = {
    "bbox": [[10, 20, 30.5, 40], [11, 20, 30.5, 40]],
    "st_frame": 268,
    "st_time": 8.914734192388288,
    "ed_time": 17.544734192388397,
    "img_num": 600,
    "caption": "The woman in red clothes turns in a circle.",
    "width": 640,
    "height": 360,
}
V2 = {
    "bbox": [[-3, 5, 20, 30], [600, 100, 60, 270]],
    "st_frame": 1,
    "st_time": 0,
    "ed_time": 4.5,
    "img_num": 500,
    "img_size": [360, 640, 3],
    "English": " The man opens the door. ",
}


def hc(tmp_path, entries, split="train"):
    return list(hc_stvg.read((write(tmp_path / "anno.json", entries),), split))


def test_hc_stvg_v1_record(tmp_path):
    assert hc(tmp_path, {"55_vfjywN5CN0Y.mp4": V1}) == [
        Record(
            where="entry '55_vfjywN5CN0Y.mp4'",
            key="55_vfjywN5CN0Y.mp4",
            video="55_vfjywN5CN0Y.mp4",
            query="The woman in red clothes turns in a circle.",
            intervals=((8.914734192388288, 17.544734192388397),),
            duration=20.0,
            tube=Tube(first_frame=267, boxes=((10, 20, 40.5, 60), (11, 20, 41.5, 60))),
            extra={"fps": 30.0, "img_num": 600, "width": 640, "height": 360},
        )
    ]


def test_hc_stvg_first_frame_is_one_based(tmp_path):
    assert only(hc(tmp_path, {"a.mp4": V2})).tube.first_frame == 0
    assert only(hc(tmp_path, {"a.mp4": changed(V2, ["st_frame"], 101)})).tube.first_frame == 100


def test_hc_stvg_boxes_become_xyxy_and_are_not_clipped(tmp_path):
    assert only(hc(tmp_path, {"a.mp4": V2})).tube.boxes == ((-3, 5, 17, 35), (600, 100, 660, 370))


def test_hc_stvg_sentence_is_english_or_caption(tmp_path):
    both = {**V2, "caption": "another wording"}
    found = hc(tmp_path, {"1.mp4": V1, "2.mp4": V2, "3.mp4": both})
    assert [one.query for one in found] == [V1["caption"], "The man opens the door.", "The man opens the door."]
    found = only(hc(tmp_path, {"4.mp4": changed(V2, ["English"], GONE)}))
    assert_problem(found, "4.mp4", "English, caption: neither is there")


def test_hc_stvg_mkv_names_stay(tmp_path):
    found = only(hc(tmp_path, {"3_5MxjqHfkWFI.mkv": V2}))
    assert found.video == found.key == "3_5MxjqHfkWFI.mkv"


def test_hc_stvg_image_size_is_height_first(tmp_path):
    extra = only(hc(tmp_path, {"a.mp4": V2})).extra
    assert (extra["height"], extra["width"]) == (360, 640)


def test_hc_stvg_rate_is_number_of_images_over_twenty_seconds(tmp_path):
    found = only(hc(tmp_path, {"a.mp4": V2}))
    assert found.extra["fps"] == 25.0 and found.duration == 20.0


def test_hc_stvg_times_that_disagree_with_the_boxes_stay(tmp_path):
    found = only(hc(tmp_path, {"a.mp4": {**V2, "st_time": 19.0, "ed_time": 3.0}}))
    assert found.intervals == ((19.0, 3.0),) and len(found.tube.boxes) == 2


def test_hc_stvg_items_that_others_drop_are_read(tmp_path):
    names = ["10__Gvp-cj3bmIY.mp4", "1_aMYcLyh9OhU.mkv"]
    assert [one.key for one in hc(tmp_path, dict.fromkeys(names, V2))] == names


def test_hc_stvg_v2_test_has_sentences_only(tmp_path):
    queries = {"3_5MxjqHfkWFI.mkv": "The man stands up.", "20_D8Vhxbho1fY.mp4": "The man picks him up ."}
    found = hc(tmp_path, queries, "test")
    assert found[0] == Record(
        where="entry '3_5MxjqHfkWFI.mkv'",
        key="3_5MxjqHfkWFI.mkv",
        video="3_5MxjqHfkWFI.mkv",
        query="The man stands up.",
        duration=20.0,
    )
    assert len(found) == 2
    assert all(isinstance(one, Problem) for one in hc(tmp_path, queries, "train"))


@pytest.mark.parametrize(
    "path, value, what",
    [
        (["bbox"], GONE, "bbox: missing"),
        (["st_time"], GONE, "st_time: missing"),
        (["img_num"], GONE, "img_num: missing"),
        (["bbox"], None, "bbox: "),
        (["bbox"], [], "bbox: "),
        (["bbox", 1], [1, 2, 3], "bbox[1]"),
        (["bbox", 0], [1, 2, 3, "4"], "bbox[0]"),
        (["bbox", 0], None, "bbox[0]"),
        (["st_frame"], 0, "st_frame: no frame counted from 1, found 0"),
        (["st_frame"], "268", "st_frame: no frame counted from 1, found '268'"),
        (["st_frame"], 268.0, "st_frame: "),
        (["st_time"], "8.9", "st_time: "),
        (["ed_time"], None, "ed_time: "),
        (["img_num"], 0, "img_num: no number of frames, found 0"),
        (["img_num"], None, "img_num: no number of frames, found None"),
        (["img_size"], "360x640", "img_size: not [height, width, ...]"),
        (["img_size"], [360], "img_size: not [height, width, ...]"),
        (["img_size"], [360, [640]], "extra.width"),
        (["English"], None, "English: "),
        (["English"], "  ", "English: "),
    ],
)
def test_hc_stvg_malformed(tmp_path, path, value, what):
    before, found, after = hc(tmp_path, {"1.mp4": V1, "2.mp4": changed(V2, path, value), "3.mp4": V2})
    assert_problem(found, "'2.mp4'", what)
    assert before.key == "1.mp4" and after.key == "3.mp4"


@pytest.mark.parametrize("entry", [None, [V2], 3, "a sentence"])
def test_hc_stvg_entry_that_is_no_object(tmp_path, entry):
    assert_problem(only(hc(tmp_path, {"1.mp4": entry})), "1.mp4", "is not an object")


# VidSTG

STG = {
    "vid": "7771650716",
    "fps": 25,
    "frame_count": 300,
    "used_segment": {"begin_fid": 50, "end_fid": 149},
    "width": 640,
    "height": 360,
    "subject/objects": [{"tid": 0, "category": "dog"}, {"tid": 7, "category": "adult"}],
    "used_relation": {"subject_tid": 0, "object_tid": 7, "predicate": "in_front_of", "begin_fid": 75, "end_fid": 78},
    "temporal_gt": {"begin_fid": 75, "end_fid": 78},
    "captions": [{"description": "a dog walks in front of a man.", "type": "object", "target_id": 0}],
    "questions": [
        {"description": "what walks in front of a man?", "type": "object", "target_id": 0},
        {"description": "who is behind the dog?", "type": "person", "target_id": 7},
    ],
}


def vidor(num_frames=300, tids=(7, 0)):
    def box(tid, frame):
        sides = {"xmin": frame, "ymin": 10 * tid, "xmax": frame + 20, "ymax": 10 * tid + 30}
        return {"tid": tid, "bbox": sides, "generated": 1, "tracker": "linear"}

    return {
        "version": "VERSION 1.0",
        "video_id": "7771650716",
        "video_path": "0004/7771650716.mp4",
        "frame_count": num_frames,
        "fps": 25,
        "trajectories": [[box(tid, frame) for tid in tids] for frame in range(num_frames)],
    }


def stg(tmp_path, entries, boxes=None):
    folder = tmp_path / "vidor/training"
    write(folder / "0004/7771650716.json", boxes or vidor())
    return list(vidstg.read((write(tmp_path / "train_annotations.json", entries), folder), "train"))


def test_vidstg_caption_record(tmp_path):
    assert stg(tmp_path, [STG])[0] == Record(
        where="entry 0 (7771650716), captions 0",
        key="7771650716/0/declarative/0",
        video="0004/7771650716",
        query="a dog walks in front of a man.",
        intervals=((1.0, 1.12),),
        duration=4.0,
        clip=(2.0, 6.0),
        tube=Tube(first_frame=75, boxes=((75, 0, 95, 30), (76, 0, 96, 30), (77, 0, 97, 30))),
        extra={
            "kind": "declarative",
            "target_id": 0,
            "target_type": "object",
            "category": "dog",
            "predicate": "in_front_of",
            "fps": 25,
            "frame_count": 300,
            "width": 640,
            "height": 360,
        },
    )


def test_vidstg_one_record_for_each_caption_and_question(tmp_path):
    found = stg(tmp_path, [STG])
    assert [(one.extra["kind"], one.query) for one in found] == [
        ("declarative", "a dog walks in front of a man."),
        ("interrogative", "what walks in front of a man?"),
        ("interrogative", "who is behind the dog?"),
    ]
    assert found[2].extra["category"] == "adult" and found[2].tube.boxes[0] == (75, 70, 95, 100)


def test_vidstg_tube_ends_before_end_fid_and_segment_after_it(tmp_path):
    """A relation may end at the frame after the segment's last one: half-open against inclusive."""
    entry = changed(STG, ["temporal_gt"], {"begin_fid": 145, "end_fid": 150})
    found = stg(tmp_path, [entry])[0]
    assert len(found.tube.boxes) == 5 and found.tube.boxes[-1][0] == 149
    assert found.intervals == ((3.8, 4.0),) and found.duration == 4.0 and found.clip == (2.0, 6.0)


def test_vidstg_times_count_from_the_segment_and_frames_from_the_file(tmp_path):
    entry = changed(STG, ["used_segment"], {"begin_fid": 75, "end_fid": 99})
    found = stg(tmp_path, [entry])[0]
    assert found.intervals == ((0.0, 0.12),) and found.clip == (3.0, 4.0) and found.tube.first_frame == 75


def test_vidstg_rate_of_each_video_is_used(tmp_path):
    found = stg(tmp_path, [changed(STG, ["fps"], 29.97002997002997)])[0]
    assert found.intervals == ((25 / 29.97002997002997, 28 / 29.97002997002997),)
    assert found.clip == (50 / 29.97002997002997, 150 / 29.97002997002997)


def test_vidstg_entries_without_question_and_entries_twice_have_keys_of_their_own(tmp_path):
    again = {**changed(STG, ["captions", 0, "description"], "a dog is before a man"), "questions": []}
    keys = [one.key for one in stg(tmp_path, [STG, again, STG])]
    assert len(keys) == len(set(keys)) == 7
    assert keys[3] == "7771650716/1/declarative/0"


def test_vidstg_keys_do_not_depend_on_other_videos(tmp_path):
    other = changed(STG, ["vid"], "111")
    found = stg(tmp_path, [other, STG])
    assert_problem(found[0], "entry 0 (111)", "has no */111.json")
    assert found[1].key == "7771650716/0/declarative/0"


def test_vidstg_a_target_without_box_in_a_frame_is_a_problem(tmp_path):
    boxes = vidor()
    boxes["trajectories"][76] = [box for box in boxes["trajectories"][76] if box["tid"] != 0]
    caption, question, other = stg(tmp_path, [STG], boxes)
    assert_problem(caption, "entry 0 (7771650716), captions 0", "target_id 0 has no box in 1 of 3 frames")
    assert_problem(question, "questions 0", "the first of them 76")
    assert other.extra["target_id"] == 7


def test_vidstg_a_target_that_is_not_in_the_video_is_a_problem(tmp_path):
    found = stg(tmp_path, [changed(STG, ["captions", 0, "target_id"], 99)])
    assert_problem(found[0], "captions 0", "target_id 99 has no box in 3 of 3 frames")
    assert len(found) == 3 and isinstance(found[1], Record)


def test_vidstg_two_boxes_in_a_frame_are_a_problem(tmp_path):
    boxes = vidor()
    boxes["trajectories"][76].append(boxes["trajectories"][76][1])
    assert_problem(stg(tmp_path, [STG], boxes)[0], "captions 0", "target_id 0 has two boxes in one frame")


@pytest.mark.parametrize("value", [None, "12", GONE])
def test_vidstg_malformed_boxes_are_a_problem(tmp_path, value):
    boxes = changed(vidor(), ["trajectories", 5, 0, "bbox", "xmax"], value)
    assert_problem(stg(tmp_path, [STG], boxes)[0], "captions 0", "trajectories are not lists")


def test_vidstg_a_tube_far_past_the_video_is_a_problem(tmp_path):
    found = stg(tmp_path, [changed(STG, ["temporal_gt", "end_fid"], 10**15)])
    assert_problem(found[0], "captions 0", "the first of them 300")


@pytest.mark.parametrize(
    "path, value, what",
    [
        (["fps"], GONE, "fps: no frame rate, found None"),
        (["fps"], "25", "fps: no frame rate, found '25'"),
        (["fps"], 0, "fps: no frame rate, found 0"),
        (["used_segment"], GONE, "used_segment: no begin_fid and end_fid"),
        (["used_segment", "end_fid"], 9.5, "used_segment: no begin_fid and end_fid"),
        (["used_segment", "end_fid"], 3, "used_segment: has no frame, 50 to 3"),
        (["temporal_gt"], None, "temporal_gt: no begin_fid and end_fid"),
        (["temporal_gt", "begin_fid"], "75", "temporal_gt: no begin_fid and end_fid"),
        (["temporal_gt", "end_fid"], 75, "temporal_gt: has no frame, 75 to 75"),
        (["captions"], GONE, "captions: missing, or not a list"),
        (["questions"], {}, "questions: missing, or not a list"),
    ],
)
def test_vidstg_malformed_entry(tmp_path, path, value, what):
    found = stg(tmp_path, [STG, changed(STG, path, value), STG])
    assert_problem(found[3], "entry 1 (7771650716)", what)
    assert len(found) == 7 and all(isinstance(one, Record) for one in found[:3] + found[4:])


@pytest.mark.parametrize(
    "path, value, what",
    [
        (["captions", 0], None, "target_id: missing"),
        (["captions", 0, "target_id"], GONE, "target_id: missing"),
        (["captions", 0, "target_id"], "0", "target_id: missing, or no whole number"),
        (["captions", 0, "description"], GONE, "description: "),
        (["captions", 0, "description"], 5, "description: "),
        (["captions", 0, "type"], ["object"], "extra.target_type"),
        (["width"], [640], "extra.width"),
    ],
)
def test_vidstg_malformed_sentence(tmp_path, path, value, what):
    assert_problem(stg(tmp_path, [changed(STG, path, value)])[0], "entry 0 (7771650716), captions 0", what)


@pytest.mark.parametrize("things", [GONE, None, 3, [None, {"tid": 5}]])
def test_vidstg_category_is_not_needed(tmp_path, things):
    assert stg(tmp_path, [changed(STG, ["subject/objects"], things)])[0].extra["category"] is None


@pytest.mark.parametrize("entry", [None, [], {"fps": 25}, {**STG, "vid": 7771650716}])
def test_vidstg_entry_without_vid(tmp_path, entry):
    assert_problem(only(stg(tmp_path, [entry])), "entry 0", "vid: missing, or not a text")


def test_vidstg_without_the_folder_of_boxes(tmp_path):
    path = write(tmp_path / "train_annotations.json", [STG])
    with pytest.raises(AnnotationError, match="vidor.*no such folder"):
        list(vidstg.read((path, tmp_path / "vidor"), "train"))


def test_vidstg_truncated_boxes_name_their_file(tmp_path):
    path = write(tmp_path / "train_annotations.json", [STG])
    cut = tmp_path / "vidor/0004/7771650716.json"
    write(cut, vidor()).write_text(cut.read_text()[:-10])
    with pytest.raises(AnnotationError, match="7771650716.json"):
        list(vidstg.read((path, tmp_path / "vidor"), "train"))


def test_vidstg_reads_the_boxes_of_a_video_once(tmp_path, monkeypatch):
    """However often, in which order and in which splits its entries come; a file that changed is read again."""
    read, folder, vids = [], tmp_path / "vidor", [str(k) for k in range(3)]
    monkeypatch.setattr(vidstg, "json_whole", lambda path: read.append(path.stem) or json.loads(path.read_text()))
    for vid in vids:
        write(folder / f"0004/{vid}.json", vidor())
    entries = [changed(STG, ["vid"], vid) for vid in vids * 5]
    path = write(tmp_path / "train_annotations.json", entries)
    first, *others = [list(vidstg.read((path, folder), split)) for split in ("train", "train", "val")]
    assert read == vids and len(first) == 45 and all(isinstance(one, Record) for one in first)
    assert others == [first, first]
    assert {one.tube.boxes[0] for one in first} == {(75.0, 0.0, 95.0, 30.0), (75.0, 70.0, 95.0, 100.0)}
    write(folder / "0004/1.json", vidor(tids=(7,)))
    assert sum(isinstance(one, Problem) for one in vidstg.read((path, folder), "train")) == 10
    assert read == [*vids, "1"]


def test_vidstg_sources_use_vidor_training_for_val(tmp_path):
    splits = SETS["vidstg"].splits
    assert [splits[name][1].names[0] for name in ("train", "val", "test")] == [
        "vidor/training",
        "vidor/training",
        "vidor/validation",
    ]


# ST-Align

ALIGN = {
    "video_path": "vidor/0004/7771650716.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhen and where does the dog of <bbox_0> run?"},
        {"from": "gpt", "value": "From <s> to <e>. Object bounding box: <bboxes>"},
    ],
    "meta": {
        "split": [50, 149],
        "width": 640,
        "height": 360,
        "time_token": {"<s>": 75, "<e>": 78},
        "spatial_token": {
            "<bboxes>": {"75": [10, 20, 30, 40], "76": [11, 20, 30, 40], "77": [12, 20, 30, 40]},
            "<bbox_0>": [1, 2, 3, 4],
            "<bbox_1>": [5, 6, 7, 8],
        },
    },
}
ALIGN_TUBE = ["meta", "spatial_token", "<bboxes>"]


def align(tmp_path, entries):
    return list(st_align.read((write(tmp_path / "stvg.json", entries),), "test"))


def test_st_align_without_rate_stays_in_frames(tmp_path):
    assert align(tmp_path, [ALIGN]) == [
        Record(
            where="entry 0 (vidor/0004/7771650716.mp4)",
            key="vidor/0004/7771650716.mp4/0",
            video="vidor/0004/7771650716.mp4",
            query="When and where does the dog of <bbox_0> run?",
            unit="frames",
            intervals=((25, 28),),
            clip=(50, 150),
            tube=Tube(first_frame=75, boxes=((10, 20, 40, 60), (11, 20, 41, 60), (12, 20, 42, 60))),
            extra={
                "entry": 0,
                "split_first": 50,
                "split_last": 149,
                "fps": None,
                "width": 640,
                "height": 360,
                "<bbox_0>": "[1, 2, 4, 6]",
            },
        )
    ]


@pytest.mark.parametrize("path", [["fps"], ["meta", "fps"]])
def test_st_align_with_rate_is_in_seconds_of_the_split(tmp_path, path):
    found = only(align(tmp_path, [changed(ALIGN, path, 25)]))
    assert (found.unit, found.intervals, found.clip, found.duration) == ("seconds", ((1.0, 1.12),), (2.0, 6.0), 4.0)
    assert found.tube.first_frame == 75 and found.extra["fps"] == 25


def test_st_align_frames_are_numbers_not_texts(tmp_path):
    tube = {"100": [0, 0, 2, 2], "99": [0, 0, 1, 1], "101": [0, 0, 3, 3]}
    found = only(align(tmp_path, [changed(ALIGN, ALIGN_TUBE, tube)]))
    assert found.tube == Tube(first_frame=99, boxes=((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3)))


def test_st_align_frames_with_a_gap_are_a_problem(tmp_path):
    found = only(align(tmp_path, [changed(ALIGN, [*ALIGN_TUBE, "76"], GONE)]))
    assert_problem(found, "entry 0", "<bboxes>: frames are not consecutive, 77 follows 75")


def test_st_align_queries_of_a_video_have_keys_of_their_own(tmp_path):
    other = {**ALIGN, "video_path": "vidor/0001/1.mp4"}
    keys = [one.key for one in align(tmp_path, [ALIGN, other, ALIGN])]
    assert keys == ["vidor/0004/7771650716.mp4/0", "vidor/0001/1.mp4/0", "vidor/0004/7771650716.mp4/1"]


def test_st_align_reads_past_the_benchmark_and_counts(tmp_path):
    found = align(tmp_path, [ALIGN] * 2001)
    assert len(found) == 2001 and found[-1].extra["entry"] == 2000


@pytest.mark.parametrize(
    "path, value, what",
    [
        (["conversations"], GONE, "conversations: no turn"),
        (["conversations"], [], "conversations: no turn"),
        (["conversations", 0], "text", "conversations: no turn"),
        (["conversations", 0, "value"], None, "conversations.0.value: not a text, found None"),
        (["conversations", 0, "value"], "<video>\n", "query: "),
        (["meta"], GONE, "meta: not an object, found None"),
        (["meta", "split"], [50], "meta.split: not two frames"),
        (["meta", "split"], [50, "149"], "meta.split: not two frames"),
        (["meta", "time_token"], GONE, "meta.time_token: no frames <s> and <e>"),
        (["meta", "time_token", "<e>"], 78.5, "meta.time_token: no frames <s> and <e>"),
        (["meta", "spatial_token"], None, "meta.spatial_token.<bboxes>: no boxes by frame"),
        (ALIGN_TUBE, GONE, "meta.spatial_token.<bboxes>: no boxes by frame"),
        (ALIGN_TUBE, [1, 2, 3, 4], "meta.spatial_token.<bboxes>: no boxes by frame"),
        (ALIGN_TUBE, {}, "meta.spatial_token.<bboxes>: no boxes by frame"),
        (ALIGN_TUBE, {"x": [1, 2, 3, 4]}, "not the number of a frame: 'x'"),
        (ALIGN_TUBE, {"-1": [1, 2, 3, 4]}, "not the number of a frame: '-1'"),
        ([*ALIGN_TUBE, "76"], None, "tube.boxes[1]"),
        ([*ALIGN_TUBE, "76"], [1, 2, 3], "tube.boxes[1]"),
        ([*ALIGN_TUBE, "76", 2], "3", "tube.boxes[1]"),
        (["meta", "width"], [640], "extra.width"),
        (["fps"], "25", "fps: no frame rate, found '25'"),
    ],
)
def test_st_align_malformed(tmp_path, path, value, what):
    before, found, after = align(tmp_path, [ALIGN, changed(ALIGN, path, value), ALIGN])
    assert_problem(found, "entry 1 (vidor/0004/7771650716.mp4)", what)
    assert isinstance(before, Record) and isinstance(after, Record)


@pytest.mark.parametrize("entry", [None, [], {"meta": {}}, {**ALIGN, "video_path": 3}])
def test_st_align_entry_without_video(tmp_path, entry):
    assert_problem(only(align(tmp_path, [entry])), "entry 0", "video_path: missing, or not a text")


# MeViS


def rle(rows):
    found = coco.encode(np.asfortranarray(np.array(rows, np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


LEFT, RIGHT, BOTH = rle([[1, 0, 0], [1, 0, 0]]), rle([[0, 0, 1], [0, 0, 0]]), rle([[1, 0, 1], [1, 0, 0]])
MEVIS = {
    "videos": {
        "4e2f6e4f6f5b": {
            "vid_id": 0,
            "frames": ["00000", "00001", "00002"],
            "expressions": {
                "0": {"exp": "the bird flying away", "obj_id": [0], "anno_id": [11]},
                "1": {"exp": "both birds", "obj_id": [0, 3], "anno_id": [11, 7]},
            },
        },
        "0ab4afe7fb46": {
            "frames": ["00000"],
            "expressions": {"0": {"exp": "dog, turning", "obj_id": [1], "anno_id": [2]}},
        },
    }
}
MASKS = {"99": [LEFT], "7": [RIGHT, RIGHT, None], "2": [LEFT], "11": [LEFT, None, None]}
BIRD = ["videos", "4e2f6e4f6f5b"]


def mv(tmp_path, meta, masks=MASKS, split="train"):
    files = write(tmp_path / "meta_expressions.json", meta), masks and write(tmp_path / "mask_dict.json", masks)
    return list(mevis.read(files, split))


def test_mevis_record(tmp_path):
    assert mv(tmp_path, MEVIS)[0] == Record(
        where="video '4e2f6e4f6f5b', expression '0'",
        key="4e2f6e4f6f5b/0",
        video="4e2f6e4f6f5b",
        query="the bird flying away",
        unit="frames",
        intervals=((0, 1),),
        masks=(LEFT, None, None),
        extra={"expression": "0", "num_frames": 3, "obj_id": "0", "anno_id": "11"},
    )


def test_mevis_masks_of_several_objects_are_joined(tmp_path):
    found = mv(tmp_path, MEVIS)[1]
    assert found.masks == (BOTH, RIGHT, None)
    assert (found.extra["obj_id"], found.extra["anno_id"]) == ("0,3", "11,7")
    assert np.array_equal(coco.decode(found.masks[0]), [[1, 0, 1], [1, 0, 0]])


def test_mevis_overlapping_masks_join_to_their_union(tmp_path):
    masks = {**MASKS, "7": [BOTH, None, None]}
    assert mv(tmp_path, MEVIS, masks)[1].masks == (BOTH, None, None)


def test_mevis_numbers_may_be_texts(tmp_path):
    meta = changed(MEVIS, [*BIRD, "expressions", "1"], {"exp": "both", "obj_id": ["0", "3"], "anno_id": ["11", "7"]})
    assert mv(tmp_path, meta)[1].masks == (BOTH, RIGHT, None)


def test_mevis_expression_of_no_object_has_no_mask_in_any_frame(tmp_path):
    meta = changed(MEVIS, [*BIRD, "expressions", "0"], {"exp": "the cat", "obj_id": [], "anno_id": []})
    found = mv(tmp_path, meta)[0]
    assert found.masks == (None, None, None) and found.extra["anno_id"] == ""


def test_mevis_test_split_has_expressions_only(tmp_path):
    meta = {"videos": {"0ab4afe7fb46": {"frames": ["00000"], "expressions": {"4": {"exp": "dog, turning"}}}}}
    assert mv(tmp_path, meta, None, "test") == [
        Record(
            where="video '0ab4afe7fb46', expression '4'",
            key="0ab4afe7fb46/4",
            video="0ab4afe7fb46",
            query="dog, turning",
            extra={"expression": "4", "num_frames": 1},
        )
    ]
    assert_problem(only(mv(tmp_path, meta)), "expression '4'", "obj_id: no list of numbers, found None")


def test_mevis_intervals_reach_from_the_first_mask_to_the_last_in_frames(tmp_path):
    masks = {**MASKS, "7": [None, RIGHT, None], "2": [None]}
    found = mv(tmp_path, MEVIS, masks)
    assert [(one.unit, one.intervals) for one in found] == [
        ("frames", ((0, 1),)),
        ("frames", ((0, 2),)),
        ("frames", ()),
    ]
    assert {(one.duration, one.clip, one.tube) for one in found} == {(None, None, None)}


def test_mevis_keys_are_unique_and_in_order(tmp_path):
    assert [one.key for one in mv(tmp_path, MEVIS)] == ["4e2f6e4f6f5b/0", "4e2f6e4f6f5b/1", "0ab4afe7fb46/0"]


@pytest.mark.parametrize(
    "path, value, what",
    [
        (["exp"], GONE, "exp: "),
        (["exp"], 3, "exp: "),
        (["obj_id"], GONE, "obj_id: no list of numbers, found None"),
        (["anno_id"], GONE, "anno_id: no list of numbers, found None"),
        (["anno_id"], 11, "anno_id: no list of numbers, found 11"),
        (["anno_id"], [11, None], "anno_id: no list of numbers"),
        (["anno_id"], [12345], "anno_id 12345: no list of masks in the mask file"),
        (["anno_id"], [2], "anno_id 2: 1 masks for 3 frames"),
    ],
)
def test_mevis_malformed_expression(tmp_path, path, value, what):
    found = mv(tmp_path, changed(MEVIS, [*BIRD, "expressions", "0", *path], value))
    assert_problem(found[0], "video '4e2f6e4f6f5b', expression '0'", what)
    assert [one.key for one in found[1:]] == ["4e2f6e4f6f5b/1", "0ab4afe7fb46/0"]


@pytest.mark.parametrize(
    "path, value, what",
    [
        (["frames"], GONE, "frames: no list of names"),
        (["frames"], [], "frames: no list of names"),
        (["expressions"], [], "expressions: not an object"),
        ([], None, "is not an object"),
        (["expressions", "0"], "a bird", "is not an object, found 'a bird'"),
    ],
)
def test_mevis_malformed_video(tmp_path, path, value, what):
    found = mv(tmp_path, changed(MEVIS, [*BIRD, *path], value))
    assert_problem(found[0], "video '4e2f6e4f6f5b'", what)
    assert found[-1].key == "0ab4afe7fb46/0"


@pytest.mark.parametrize(
    "mask, what",
    [
        ("text", "mask 1: no object with size"),
        ({"counts": "01200"}, "mask 1: no object with size"),
        ({"size": [2, "3"], "counts": "06"}, "mask 1: no object with size"),
        ({"size": [2, 3]}, "mask 1: counts are no text, found None"),
        ({"size": [2, 3], "counts": [0, 2, 5]}, "mask 1: malformed RLE: the runs of a 3x2 mask add up to 7 pixels"),
        ({"size": [2, 3], "counts": "0"}, "mask 1: malformed RLE"),
        ({"size": [2, 3], "counts": "\u00e9"}, "mask 1: "),
        (rle([[1, 0]]), "anno_id: masks of 2 sizes"),
    ],
)
def test_mevis_malformed_mask(tmp_path, mask, what):
    found = mv(tmp_path, MEVIS, {**MASKS, "11": [LEFT, mask, None]})
    assert_problem(found[0], "expression '0'", what)
    assert isinstance(found[2], Record)


def test_mevis_takes_masks_in_both_spellings(tmp_path):
    (first, *_), (same, *_) = (
        mv(tmp_path, MEVIS, {**MASKS, "11": [LEFT, mask, None]})
        for mask in ({"size": [2, 3], "counts": [0, 2, 4]}, {"size": [2, 3], "counts": "024"})
    )
    assert first.masks == same.masks and isinstance(first.masks[1]["counts"], str)


@pytest.mark.parametrize("meta", [[], {}, {"videos": []}])
def test_mevis_without_videos_is_no_annotation(tmp_path, meta):
    with pytest.raises(AnnotationError, match="meta_expressions.json.*no object 'videos'"):
        mv(tmp_path, meta)


def test_mevis_truncated_masks_name_their_file(tmp_path):
    files = write(tmp_path / "meta_expressions.json", MEVIS), write(tmp_path / "mask_dict.json", MASKS)
    files[1].write_text(files[1].read_text()[:-20])
    with pytest.raises(AnnotationError, match="mask_dict.json"):
        list(mevis.read(files, "train"))


# All


@pytest.mark.parametrize("name", sorted(SETS))
def test_truncated_annotation_names_its_file(tmp_path, name):
    content = {"vidstg": [STG], "st_align": [ALIGN], "mevis": MEVIS}.get(name, {"1.mp4": V1})
    path = write(tmp_path / "annotation.json", content)
    path.write_text(path.read_text()[:-15])
    with pytest.raises(AnnotationError, match="annotation.json"):
        list(SETS[name].read((path, tmp_path), "test"))


@pytest.mark.parametrize("name", sorted(SETS))
def test_missing_annotation_names_its_file(tmp_path, name):
    with pytest.raises(AnnotationError, match="annotation.json.*no such file"):
        list(SETS[name].read((tmp_path / "annotation.json", tmp_path), "test"))


def test_sets_have_the_published_splits():
    assert {name: list(one.splits) for name, one in SETS.items()} == {
        "hc_stvg_v1": ["train", "test"],
        "hc_stvg_v2": ["train", "val", "test"],
        "vidstg": ["train", "val", "test"],
        "st_align": ["test"],
        "mevis": ["train", "val", "test"],
    }
