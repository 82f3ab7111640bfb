"""Temporal grounding sets: fixtures in the published layouts, with the pitfalls of each, and what has to come out."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest

from verl_stvg.data_builders import build
from verl_stvg.data_builders.make_row import Drop, RowMaker, Video
from verl_stvg.data_builders.read import AnnotationError
from verl_stvg.data_builders.records import Problem, Record
from verl_stvg.data_builders.sets import (
    activitynet,
    charades_sta,
    cosmo_cap,
    didemo,
    hirest,
    internvid_vtime,
    queryd,
    qvhighlights,
    tacos,
    timerft,
    tvgbench,
)
from verl_stvg.data_builders.templates import find as find_template

MODULES = (
    activitynet,
    charades_sta,
    cosmo_cap,
    didemo,
    hirest,
    internvid_vtime,
    qvhighlights,
    queryd,
    tacos,
    timerft,
    tvgbench,
)
GONE = object()


def files_of(folder: Path, one, split: str) -> tuple[Path | None, ...]:
    """The files of a split, found as a builder finds them."""
    found = []
    for source in one.splits[split]:
        there = [folder / name for name in source.names if (folder / name).is_file()]
        assert there or not source.required, f"{source.names} not in {sorted(folder.iterdir())}"
        found.append(there[0] if there else None)
    return tuple(found)


def entries_of(folder: Path, one, split: str = "train") -> list[Record | Problem]:
    found = list(one.read(files_of(folder, one, split), split))
    keys = [entry.key for entry in found if isinstance(entry, Record)]
    assert len(set(keys)) == len(keys)
    assert found == list(one.read(files_of(folder, one, split), split)), "reading twice differs"
    return found


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def changed(row: dict, name: str, value) -> dict:
    """A copy of a row with one field changed, or gone."""
    return {k: v for k, v in (row | {name: value}).items() if v is not GONE}


def cut(path: Path) -> Path:
    """The same file without its last third, as a broken download leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def only(found: list) -> Record:
    (entry,) = found
    assert isinstance(entry, Record), entry
    return entry


def check_between(found: list, field: str, place: str) -> None:
    """Good, bad, good: the bad one is a problem with the field's name and the place, the others survive."""
    assert [type(entry) for entry in found] == [Record, Problem, Record], found
    assert field in found[1].what, found[1]
    assert place in found[1].where, found[1]


@pytest.mark.parametrize("one", [one for module in MODULES for one in module.SETS], ids=lambda one: one.name)
def test_declaration(one):
    assert set(one.splits) <= {"train", "val", "test"}
    assert one.title and one.home
    assert one.template == ("time_r1" if one.name in _TIME_R1 else "videotg_r1")
    for sources in one.splits.values():
        assert sources[0].required


_TIME_R1 = {"activitynet", "charades_sta", "timerft", "tvgbench"}


# --- Charades-STA ---------------------------------------------------------------------------------------------------

CHARADES = """\
AO8RW 0.0 6.9##a person is putting a book on a shelf.
AO8RW 0.0 6.9##person begins putting it on a shelf.
LEOL6 8.0 7.0##person opens the door ## twice.

HJZEW 24.9 31.5##the person is walking away.
"""


def charades(folder: Path, text: str = CHARADES, durations: dict | None = None) -> Path:
    (folder / "charades_sta_train.txt").write_text(text, encoding="utf-8")
    if durations is not None:
        write_json(folder / "durations.json", durations)
    return folder


def test_charades_text(tmp_path):
    found = entries_of(charades(tmp_path), charades_sta.SETS[0])
    assert found[0] == Record(
        where="line 1 (AO8RW)",
        key="AO8RW/0",
        video="AO8RW",
        query="a person is putting a book on a shelf.",
        intervals=((0.0, 6.9),),
    )
    assert [entry.key for entry in found] == ["AO8RW/0", "AO8RW/1", "LEOL6/0", "HJZEW/0"]


def test_charades_reversed_interval_stays(tmp_path):
    found = entries_of(charades(tmp_path), charades_sta.SETS[0])
    assert found[2].intervals == ((8.0, 7.0),)


def test_charades_sentence_may_hold_the_mark(tmp_path):
    assert entries_of(charades(tmp_path), charades_sta.SETS[0])[2].query == "person opens the door ## twice."


def test_charades_durations_beside_and_end_past_the_duration(tmp_path):
    found = entries_of(charades(tmp_path, durations={"HJZEW": 30.62}), charades_sta.SETS[0])
    assert [entry.duration for entry in found] == [None, None, None, 30.62]
    assert found[3].intervals == ((24.9, 31.5),)


CHARADES_CSV = """\
id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
AO8RW,HR43,Kitchen,6,7,Yes,"A person reads, and smiles.",book;shelf,"A person, at a shelf.",c117 0.00 6.90,33.67
HJZEW,XXN7,Den,7,7,Yes,A person walks.,door,A person walks away.,,30.62
"""


@pytest.mark.parametrize("name", ["Charades_v1_train.csv", "Charades/Charades_v1_train.csv"])
def test_charades_durations_of_the_published_list_of_videos(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(CHARADES_CSV, encoding="utf-8")
    found = entries_of(charades(tmp_path), charades_sta.SETS[0])
    assert [entry.duration for entry in found] == [33.67, 33.67, None, 30.62]
    charades(tmp_path, durations={"LEOL6": 20.0})
    assert [entry.duration for entry in entries_of(tmp_path, charades_sta.SETS[0])] == [None, None, 20.0, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [("id,actions\nAO8RW,\n", "has no column length"), ("id,length\nAO8RW,long\n", "line 2: length is no number")],
)
def test_a_damaged_list_of_charades_videos(tmp_path, text, said):
    (tmp_path / "Charades_v1_train.csv").write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=f"Charades_v1_train.csv: {said}"):
        entries_of(charades(tmp_path), charades_sta.SETS[0])


def test_missing_durations_name_their_remedy(tmp_path):
    """Of a set that looks them up beside its annotations, and of one that does not."""
    charades(tmp_path)
    job = build.Job(charades_sta.SETS[0], tmp_path, tmp_path / "out", splits=("train",))
    with pytest.raises(AnnotationError, match="give --videos, or put a durations.json beside the annotations: 4"):
        build.build(job)
    made = RowMaker("set", "train", find_template("time_r1"))
    one = Record(where="", key="a", video="a", query="q", intervals=((0.0, 1.0),))
    with pytest.raises(Drop, match="give --videos$"):
        made.rows(one, Video("a.mp4"))


@pytest.mark.parametrize(
    "line", ["AO8RW 0.0 6.9 no mark", "AO8RW 0.0##one time", "AO8RW zero 6.9##text", "AO8RW 0.0 nan##text", "##text"]
)
def test_charades_bad_line(tmp_path, line):
    found = entries_of(
        charades(tmp_path, f"AO8RW 0.0 6.9##one.\n{line}\nAO8RW 1.0 2.0##three.\n"), charades_sta.SETS[0]
    )
    assert [type(entry) for entry in found] == [Record, Problem, Record]
    assert found[1].where.startswith("line 2")


def test_charades_keys_do_not_move_with_a_bad_time(tmp_path):
    text = "AO8RW 0.0 6.9##one.\nAO8RW zero 6.9##two.\nAO8RW 1.0 2.0##three.\n"
    bad = entries_of(charades(tmp_path, text), charades_sta.SETS[0])
    good = entries_of(charades(tmp_path, text.replace("zero", "0.0")), charades_sta.SETS[0])
    assert bad[2] == good[2]


def test_charades_empty_sentence(tmp_path):
    (found,) = entries_of(charades(tmp_path, "AO8RW 0.0 6.9##\n"), charades_sta.SETS[0])
    assert isinstance(found, Problem) and "sentence" in found.what


def test_charades_json_form_with_either_duration_field(tmp_path):
    content = {
        "3MSZA": {"duration": 30.96, "timestamps": [[24.3, 30.4]], "sentences": ["person turn a light on."]},
        "V1XV9": {"video_duration": 12.5, "timestamps": [[0.0, 4]], "sentences": ["person sits down."]},
        "NOLEN": {"timestamps": [[0.0, 4.0]], "sentences": ["person runs."]},
    }
    write_json(tmp_path / "charades_test.json", content)
    write_json(tmp_path / "durations.json", {"3MSZA": 99.0, "NOLEN": 8.75})
    found = entries_of(tmp_path, charades_sta.SETS[0], "test")
    assert found[0] == Record(
        where="entry '3MSZA', sentence 0",
        key="3MSZA/0",
        video="3MSZA",
        query="person turn a light on.",
        intervals=((24.3, 30.4),),
        duration=30.96,
    )
    assert [entry.duration for entry in found] == [30.96, 12.5, 8.75]


def test_durations_that_are_no_object(tmp_path):
    charades(tmp_path)
    write_json(tmp_path / "durations.json", [30.6])
    with pytest.raises(AnnotationError, match="durations.json"):
        entries_of(tmp_path, charades_sta.SETS[0])


# --- ActivityNet Captions -------------------------------------------------------------------------------------------

ACTIVITYNET = {
    "v_QOlSCBRmfWY": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17, 60], [60.81, 56.2], [5, 5], [56.26, 82.75]],
        "sentences": ["A young woman is seen.", "  The girl dances.", " Reversed.", " Empty.", " She ends."],
    }
}


def test_activitynet_as_annotated(tmp_path):
    write_json(tmp_path / "train.json", ACTIVITYNET)
    found = entries_of(tmp_path, activitynet.SETS[0])
    assert found[1] == Record(
        where="entry 'v_QOlSCBRmfWY', sentence 1",
        key="v_QOlSCBRmfWY/1",
        video="v_QOlSCBRmfWY",
        query="The girl dances.",
        intervals=((17.0, 60.0),),
        duration=82.73,
    )
    assert [entry.intervals[0] for entry in found[2:]] == [(60.81, 56.2), (5.0, 5.0), (56.26, 82.75)]


def test_activitynet_test_is_val_2(tmp_path):
    write_json(tmp_path / "val_1.json", {})
    write_json(tmp_path / "val_2.json", ACTIVITYNET)
    assert entries_of(tmp_path, activitynet.SETS[0], "val") == []
    assert len(entries_of(tmp_path, activitynet.SETS[0], "test")) == 5


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("duration", None, "duration"),
        ("duration", "82.7", "duration"),
        ("duration", 0, "duration"),
        ("timestamps", GONE, "timestamps"),
        ("timestamps", None, "timestamps"),
        ("timestamps", [], "0 timestamps for 1 sentences"),
        ("timestamps", [[1.0]], "timestamps[0][1]: "),
        ("timestamps", [[1.0, 2.0, 3.0]], "timestamps[0]: "),
        ("timestamps", [["1.0", 2.0]], "timestamps[0][0]: "),
        ("timestamps", [None], "timestamps[0]: "),
        ("sentences", "A woman.", "sentences"),
        ("sentences", [None], "sentences[0]: "),
        ("sentences", [" "], "sentences[0]: "),
    ],
)
def test_activitynet_bad_entry(tmp_path, field, value, said):
    good = {"duration": 8.5, "timestamps": [[1.0, 2.0]], "sentences": ["A woman."]}
    write_json(tmp_path / "train.json", {"v_a": good, "v_b": changed(good, field, value), "v_c": good})
    check_between(entries_of(tmp_path, activitynet.SETS[0]), said, "v_b")


def test_activitynet_entry_is_no_object(tmp_path):
    good = {"duration": 8.5, "timestamps": [[1.0, 2.0]], "sentences": ["A woman."]}
    write_json(tmp_path / "train.json", {"v_a": good, "v_b": [1, 2], "v_c": good})
    check_between(entries_of(tmp_path, activitynet.SETS[0]), "object", "v_b")


# --- TVGBench -------------------------------------------------------------------------------------------------------

TVG_ROW = {
    "path": "./dataset/timer1/videos/tvgbench_data/KWZSA.mp4",
    "question": "a person was sitting at a table.",
    "answer": "13.4-28.1",
    "start": None,
    "end": None,
    "duration": 30.12,
    "question_type": "video temporal grounding",
    "source": "./annotations/raw_data/Charades_sta_test.json",
    "dataset_name": "charades",
    "qsemtype": "Human Pose",
    "bins": {"videolen": 1, "qcenter": 6, "qlen": 7, "dataset": "charades", "qsemtype": "HP"},
}
TVG_EGO = {
    "path": "./dataset/timer1/videos/tvgbench_data/bbd99850-bcb0.mp4",
    "question": "where was eggs? ",
    "answer": "0.81-12.09",
    "start": 0.93,
    "end": 70.88,
    "duration": 69.94999999999999,
    "question_type": "video temporal grounding",
    "source": "./annotations/raw_data/nlq_r1_val.json",
    "qsemtype": "Object Existence (Complex)",
    "bins": {"videolen": 3, "qcenter": 0, "qlen": 2, "dataset": "egonlq", "qsemtype": "OEC"},
}


def tvg(folder: Path, *rows) -> list[Record | Problem]:
    write_json(folder / "tvgbench.json", list(rows))
    return entries_of(folder, tvgbench.SETS[0], "test")


def test_tvgbench_answer_is_one_text(tmp_path):
    assert only(tvg(tmp_path, TVG_ROW)) == Record(
        where="entry 0 (tvgbench_data/KWZSA.mp4)",
        key="tvgbench_data/KWZSA.mp4/0",
        video="tvgbench_data/KWZSA.mp4",
        query="a person was sitting at a table.",
        intervals=((13.4, 28.1),),
        duration=30.12,
        extra={
            "start": None,
            "end": None,
            "dataset_name": "charades",
            "question_type": "video temporal grounding",
            "qsemtype": "Human Pose",
            "source": "./annotations/raw_data/Charades_sta_test.json",
            "bins.videolen": 1,
            "bins.qcenter": 6,
            "bins.qlen": 7,
            "bins.dataset": "charades",
            "bins.qsemtype": "HP",
        },
    )


def test_tvgbench_answer_is_relative_to_start_and_the_part_is_the_clip(tmp_path):
    found = only(tvg(tmp_path, TVG_EGO))
    assert found.clip == (0.93, 70.88)
    assert found.intervals == ((0.81, 12.09),)
    assert found.duration == 69.94999999999999
    assert (found.extra["start"], found.extra["end"]) == (0.93, 70.88)


def test_tvgbench_dataset_name_missing_for_ego4d(tmp_path):
    found = only(tvg(tmp_path, TVG_EGO))
    assert "dataset_name" not in found.extra
    assert found.extra["bins.dataset"] == "egonlq"


def test_tvgbench_answer_past_the_duration_stays(tmp_path):
    row = TVG_ROW | {"answer": "14.1-20.0", "duration": 19.29}
    assert only(tvg(tmp_path, row)).intervals == ((14.1, 20.0),)


def test_tvgbench_same_file_with_several_parts_and_the_same_query_twice(tmp_path):
    rows = [TVG_EGO, TVG_EGO | {"start": 156.0, "end": 229.74, "duration": 73.74}, TVG_EGO]
    found = tvg(tmp_path, *rows)
    assert [entry.clip for entry in found] == [(0.93, 70.88), (156.0, 229.74), (0.93, 70.88)]
    assert [entry.key.rsplit("/", 1)[1] for entry in found] == ["0", "1", "2"]


def test_tvgbench_path_outside_the_release_stays(tmp_path):
    assert only(tvg(tmp_path, TVG_ROW | {"path": "KWZSA.mp4"})).video == "KWZSA.mp4"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, GONE, name) for name in ("path", "question", "answer", "start", "end", "duration", "bins")]
    + [(name, None, name) for name in ("path", "question", "answer", "duration", "bins")]
    + [
        ("answer", "13.4", "answer"),
        ("answer", "1-2-3", "answer"),
        ("answer", "a-b", "answer"),
        ("answer", "nan-2", "intervals"),
        ("answer", [13.4, 28.1], "answer"),
        ("start", 3.0, "end: "),
        ("start", "3.0", "start: "),
        ("duration", "30.12", "duration"),
        ("duration", True, "duration"),
        ("duration", -1, "duration"),
        ("question", "", "question"),
        ("bins", {"videolen": [1]}, "extra"),
    ],
)
def test_tvgbench_bad_entry(tmp_path, field, value, said):
    check_between(tvg(tmp_path, TVG_ROW, changed(TVG_ROW, field, value), TVG_ROW), said, "entry 1")


# --- TimeRFT --------------------------------------------------------------------------------------------------------

TIMERFT_ROW = {
    "video": "./dataset/timer1/videos/timerft_data/QtWT8rxUuNk.mp4",
    "duration": 93.2932,
    "timestamp": [1.0, 4.0],
    "sentence": "A purple hanger shows how to hang a sweater.",
    "qid": "my|cosmo|QtWT8rxUuNk|A purple hanger shows how to hang a sweater.",
    "video_start": None,
    "video_end": None,
    "difficulty": 50.0,
    "pred": [0.0, 3.0],
}
TIMERFT_CUT = {
    "video": "./dataset/timer1/videos/timerft_data/7v2tBIXg5DM_00:00:44:800_00:01:48:500.mp4",
    "duration": 63.7,
    "timestamp": [59.1, 64.2],
    "sentence": "a machine on a production line",
    "qid": "my|internvid-vtime|7v2tBIXg5DM|a machine on a production line",
    "video_start": 44.8,
    "video_end": 108.5,
    "difficulty": 11.688311688311666,
    "pred": [56.0, 60.0],
}


def rft(folder: Path, *rows) -> list[Record | Problem]:
    write_json(folder / "train_2k5.json", list(rows))
    return entries_of(folder, timerft.SETS[0])


def test_timerft_row_with_difficulty_and_prediction(tmp_path):
    assert only(rft(tmp_path, TIMERFT_ROW)) == Record(
        where="entry 0 (timerft_data/QtWT8rxUuNk.mp4)",
        key="timerft_data/QtWT8rxUuNk.mp4/0",
        video="timerft_data/QtWT8rxUuNk.mp4",
        query="A purple hanger shows how to hang a sweater.",
        intervals=((1.0, 4.0),),
        duration=93.2932,
        extra={
            "qid": "my|cosmo|QtWT8rxUuNk|A purple hanger shows how to hang a sweater.",
            "video_start": None,
            "video_end": None,
            "difficulty": 50.0,
            "pred_start": 0.0,
            "pred_end": 3.0,
        },
    )


def test_timerft_cut_file_has_no_clip_and_keeps_its_end_past_the_duration(tmp_path):
    found = only(rft(tmp_path, TIMERFT_CUT))
    assert found.clip is None
    assert found.video == "timerft_data/7v2tBIXg5DM_00:00:44:800_00:01:48:500.mp4"
    assert found.intervals == ((59.1, 64.2),)
    assert found.duration == 63.7
    assert (found.extra["video_start"], found.extra["video_end"]) == (44.8, 108.5)


def test_timerft_whole_start_beside_fractional_end(tmp_path):
    found = only(rft(tmp_path, TIMERFT_CUT | {"video_start": 0, "video_end": 128.0}))
    assert (found.extra["video_start"], found.extra["video_end"]) == (0, 128.0)


def test_timerft_filtered_anew_without_prediction(tmp_path):
    row = {k: v for k, v in TIMERFT_ROW.items() if k not in ("difficulty", "pred")}
    assert set(only(rft(tmp_path, row)).extra) == {"qid", "video_start", "video_end"}


def test_timerft_same_query_twice(tmp_path):
    assert [entry.key[-2:] for entry in rft(tmp_path, TIMERFT_ROW, TIMERFT_ROW)] == ["/0", "/1"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, GONE, name) for name in ("video", "duration", "timestamp", "sentence", "qid")]
    + [(name, None, name) for name in ("video", "duration", "timestamp", "sentence", "qid")]
    + [
        ("timestamp", [1.0], "timestamp[1]: "),
        ("timestamp", ["1.0", "4.0"], "timestamp[0]: "),
        ("timestamp", "1.0-4.0", "timestamp"),
        ("duration", "93", "duration"),
        ("duration", 0, "duration"),
        ("pred", [1.0], "pred"),
        ("pred", "1-2", "pred"),
        ("pred", [[1.0], 2.0], "pred_start"),
        ("difficulty", [50.0], "difficulty"),
    ],
)
def test_timerft_bad_entry(tmp_path, field, value, said):
    check_between(rft(tmp_path, TIMERFT_ROW, changed(TIMERFT_ROW, field, value), TIMERFT_ROW), said, "entry 1")


# --- QVHighlights ---------------------------------------------------------------------------------------------------

QV_ROW = {
    "qid": 2579,
    "query": "A girl and her mother cooked while talking with each other.. ",
    "duration": 150,
    "vid": "NUsG9BgSes0_210.0_360.0",
    "relevant_windows": [[82, 116], [0, 8], [140, 152]],
    "relevant_clip_ids": [0, 1, 2, 3],
    "saliency_scores": [[4, 1, 3], [3, 2, 1], [2, 2, 2], [0, 1, 1]],
}


def qv(folder: Path, *rows, split: str = "train") -> list[Record | Problem]:
    write_lines(folder / f"highlight_{split}_release.jsonl", rows)
    return entries_of(folder, qvhighlights.SETS[0], split)


def test_qvhighlights_keeps_every_window_in_order_and_the_query_as_it_is(tmp_path):
    assert only(qv(tmp_path, QV_ROW)) == Record(
        where="line 1 (qid 2579)",
        key="NUsG9BgSes0_210.0_360.0/2579",
        video="NUsG9BgSes0_210.0_360.0.mp4",
        query="A girl and her mother cooked while talking with each other..",
        intervals=((82.0, 116.0), (0.0, 8.0), (140.0, 152.0)),
        duration=150.0,
        extra={"qid": 2579},
    )


def test_qvhighlights_vid_says_no_clip(tmp_path):
    assert only(qv(tmp_path, QV_ROW)).clip is None


@pytest.mark.parametrize("placeholder", [GONE, None, [], [[0, 150]], "hidden"])
def test_qvhighlights_test_has_no_ground_truth(tmp_path, placeholder):
    found = only(qv(tmp_path, changed(QV_ROW, "relevant_windows", placeholder), split="test"))
    assert found.intervals == ()
    assert found.extra == {"qid": 2579}


def test_qvhighlights_test_with_truth_is_taken_first(tmp_path):
    bare, last = changed(QV_ROW, "relevant_windows", GONE), QV_ROW | {"qid": 2580}
    write_lines(tmp_path / "highlight_test_with_gt.jsonl", [QV_ROW, changed(QV_ROW, "relevant_windows", []), last])
    found = qv(tmp_path, changed(bare, "relevant_clip_ids", GONE), split="test")
    check_between(found, "relevant_windows: has no window", "line 2")
    assert found[0].intervals == ((82.0, 116.0), (0.0, 8.0), (140.0, 152.0))


@pytest.mark.parametrize(
    ("windows", "known"),
    [([[0, 8]], True), ([[0.0, 8.0]], True), ([[0, 6]], False), ([[0, 4], [4, 8]], False), ([[0, 150]], False)],
)
def test_qvhighlights_test_windows_that_the_clips_confirm(tmp_path, windows, known):
    """In a test file of another name windows count where they are the runs of the annotated clips, 0 to 3 here."""
    write_lines(tmp_path / "mine.jsonl", [QV_ROW | {"relevant_windows": windows}])
    found = only(list(qvhighlights.read((tmp_path / "mine.jsonl",), "test")))
    assert found.intervals == (((0.0, 8.0),) if known else ())


def test_qvhighlights_same_query_twice(tmp_path):
    found = qv(tmp_path, QV_ROW, QV_ROW | {"qid": 2580}, split="val")
    assert [entry.extra["qid"] for entry in found] == [2579, 2580]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, GONE, name) for name in ("qid", "query", "duration", "vid", "relevant_windows")]
    + [(name, None, name) for name in ("qid", "query", "duration", "vid", "relevant_windows")]
    + [
        ("relevant_windows", [], "relevant_windows"),
        ("relevant_windows", [[1, 2], [3]], "relevant_windows[1][1]: "),
        ("relevant_windows", [[1, "2"]], "relevant_windows[0][1]: "),
        ("relevant_windows", [1, 2], "relevant_windows[0]: "),
        ("relevant_windows", {"0": [1, 2]}, "relevant_windows"),
        ("duration", "150", "duration"),
        ("duration", float("nan"), "duration"),
        ("vid", "", "vid"),
        ("vid", 17, "vid"),
        ("query", ["A girl"], "query"),
    ],
)
def test_qvhighlights_bad_line(tmp_path, field, value, said):
    rows = (QV_ROW, changed(QV_ROW | {"qid": 2}, field, value), QV_ROW | {"qid": 3})
    check_between(qv(tmp_path, *rows), said, "line 2")


# --- DiDeMo ---------------------------------------------------------------------------------------------------------

DIDEMO_ROW = {
    "annotation_id": 57,
    "video": "54322086@N00_2408598493_274c77d26a.avi",
    "description": "camera zooms  in on the group of women.",
    "times": [[0, 0], [1, 1], [0, 0], [1, 2]],
    "num_segments": 6,
    "reference_description": None,
    "dl_link": "https://example.org/54322086@N00_2408598493_274c77d26a.avi",
}


def did(folder: Path, *rows, split: str = "train", durations: dict | None = None) -> list[Record | Problem]:
    write_json(folder / f"{split}_data.json", list(rows))
    if durations is not None:
        write_json(folder / "durations.json", durations)
    return entries_of(folder, didemo.SETS[0], split)


def test_didemo_mean_of_annotators_in_seconds_without_shift_or_rounding(tmp_path):
    found = did(tmp_path, DIDEMO_ROW, durations={"54322086@N00_2408598493_274c77d26a": 29.53})
    assert only(found) == Record(
        where="entry 0 (54322086@N00_2408598493_274c77d26a.avi)",
        key="54322086@N00_2408598493_274c77d26a/0",
        video="54322086@N00_2408598493_274c77d26a.mp4",
        query="camera zooms  in on the group of women.",
        intervals=((2.5, 8.75),),  # means 0.5 and 0.75, and the last segment is included
        duration=29.53,
        extra={"annotation_id": 57, "num_segments": 6, "annotators": 4},
    )


def test_didemo_end_past_the_video_stays(tmp_path):
    row = DIDEMO_ROW | {"times": [[5, 5]]}
    found = did(tmp_path, row, durations={"54322086@N00_2408598493_274c77d26a": 27.1})
    assert only(found).intervals == ((25.0, 30.0),)


@pytest.mark.parametrize("name", ["123@N00_1_a.mov", "123@N00_1_a.mov.mp4", "123@N00_1_a.3gp", "123@N00_1_a"])
def test_didemo_stem_ends_at_the_first_dot(tmp_path, name):
    found = only(did(tmp_path, DIDEMO_ROW | {"video": name}, split="val", durations={"123@N00_1_a": 30.0}))
    assert found.video == "123@N00_1_a.mp4"
    assert found.duration == 30.0


def test_didemo_without_durations(tmp_path):
    assert only(did(tmp_path, DIDEMO_ROW, split="test")).duration is None


def test_didemo_same_description_twice(tmp_path):
    assert [entry.key[-2:] for entry in did(tmp_path, DIDEMO_ROW, DIDEMO_ROW)] == ["/0", "/1"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, GONE, name) for name in ("video", "description", "times")]
    + [(name, None, name) for name in ("video", "description", "times")]
    + [
        ("times", [], "times"),
        ("times", [[1]], "times"),
        ("times", [[1, 2, 3]], "times"),
        ("times", [1, 2], "times"),
        ("times", [["1", 2]], "times"),
        ("times", [[1, None]], "times"),
        ("times", [[-1, 2]], "times"),
        ("times", [[0, 1000]], "times"),
        ("video", ".avi", "video"),
        ("video", " ", "video"),
        ("description", 5, "description"),
        ("num_segments", [6], "num_segments"),
    ],
)
def test_didemo_bad_entry(tmp_path, field, value, said):
    check_between(did(tmp_path, DIDEMO_ROW, changed(DIDEMO_ROW, field, value), DIDEMO_ROW), said, "entry 1")


def test_didemo_bad_duration(tmp_path):
    (found,) = did(tmp_path, DIDEMO_ROW, durations={"54322086@N00_2408598493_274c77d26a": "29.5"})
    assert isinstance(found, Problem) and "duration" in found.what


# --- TACoS ----------------------------------------------------------------------------------------------------------

TACOS_ROW = {
    "qid": 3,
    "query": "The person gets out an egg cup.",
    "vid": "s33-d50",
    "duration": 211.347,
    "relevant_windows": [[12.347, 17.0]],
}


def tac(folder: Path, *rows, split: str = "train") -> list[Record | Problem]:
    write_lines(folder / f"{split}.jsonl", rows)
    return entries_of(folder, tacos.SETS[0], split)


def test_tacos_video_of_camera_two(tmp_path):
    assert only(tac(tmp_path, TACOS_ROW)) == Record(
        where="line 1 (s33-d50)",
        key="s33-d50/0",
        video="s33-d50-cam-002.mp4",
        query="The person gets out an egg cup.",
        intervals=((12.347, 17.0),),
        duration=211.347,
        extra={"qid": 3},
    )


def test_tacos_every_split_has_its_own_file(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        assert only(tac(tmp_path, TACOS_ROW | {"query": split, "qid": k}, split=split)).query == split


def test_tacos_same_sentence_twice_in_a_video(tmp_path):
    found = tac(tmp_path, TACOS_ROW, TACOS_ROW | {"relevant_windows": [[40, 41.5]]})
    assert [(entry.key, entry.intervals) for entry in found] == [
        ("s33-d50/0", ((12.347, 17.0),)),
        ("s33-d50/1", ((40.0, 41.5),)),
    ]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, GONE, name) for name in ("vid", "query", "duration", "relevant_windows")]
    + [(name, None, name) for name in ("vid", "query", "duration", "relevant_windows")]
    + [
        ("relevant_windows", [], "found 0"),
        ("relevant_windows", [[1, 2], [3, 4]], "found 2"),
        ("relevant_windows", [[1]], "relevant_windows[0][1]: "),
        ("duration", "211", "duration"),
    ],
)
def test_tacos_bad_line(tmp_path, field, value, said):
    check_between(tac(tmp_path, TACOS_ROW, changed(TACOS_ROW, field, value), TACOS_ROW), said, "line 2")


TACOS_2DTAN = {
    "s34-d28.avi": {
        "timestamps": [[147, 294], [441, 588], [588, 735]],
        "sentences": ["The person gets out a knife.", "He peels the orange.", "He peels the orange."],
        "fps": 29.4,
        "num_frames": 1470,
    },
    "s36-d27.avi": {"timestamps": [[0, 49]], "sentences": ["He took out onion"], "fps": 29.4, "num_frames": 4000},
}


def test_tacos_of_2d_tan_counts_frames(tmp_path):
    write_json(tmp_path / "val.json", TACOS_2DTAN)
    found = entries_of(tmp_path, tacos.SETS[0], "val")
    assert [entry.key for entry in found] == ["s34-d28/0", "s34-d28/1", "s34-d28/2", "s36-d27/0"]
    assert found[0] == Record(
        where="video s34-d28.avi, sentence 0",
        key="s34-d28/0",
        video="s34-d28-cam-002.mp4",
        query="The person gets out a knife.",
        intervals=((147 / 29.4, 294 / 29.4),),
        duration=1470 / 29.4,
    )
    write_lines(tmp_path / "val.jsonl", [TACOS_ROW])  # VideoMind's file comes first
    assert only(entries_of(tmp_path, tacos.SETS[0], "val")).key == "s33-d50/0"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, value, name) for name in ("timestamps", "sentences", "fps", "num_frames") for value in (GONE, None, "x")]
    + [("fps", 0, "above 0"), ("sentences", ["one"], "1 sentences"), ("timestamps", [["0", 49]], "timestamps[0][0]: ")]
    + [
        ("timestamps", [[1]], "timestamps[0][1]: "),
        ("sentences", [None], "sentences[0]: "),
        ("num_frames", 0, "duration"),
    ],
)
def test_tacos_of_2d_tan_bad_video(tmp_path, field, value, said):
    good = TACOS_2DTAN["s36-d27.avi"]
    bad = changed(good, field, value)
    if said == "1 sentences":
        bad["timestamps"] = [[0, 1], [1, 2]]
    write_json(tmp_path / "test.json", {"a.avi": good, "b.avi": bad, "c.avi": good})
    check_between(entries_of(tmp_path, tacos.SETS[0], "test"), said, "b.avi")


# --- QuerYD ---------------------------------------------------------------------------------------------------------

QUERYD_CAPTIONS = {
    "video-9uP7WjixVFM": [["she", "smiles", "and", "holds", "up", "the", "bottle."], ["A", "title", "card"]],
    "video-_b-d2JbRm-w": [["A", "dog", "runs"]],
    "video-TestSplit00": [["not", "listed"]],
}
QUERYD_TIMES = {
    "video-9uP7WjixVFM": [[82.9, 85.3], [10, 4.5]],
    "video-_b-d2JbRm-w": [[0.0, 2.004]],
    "video-TestSplit00": [[0.0, 1.0]],
}


def que(
    folder: Path,
    captions=QUERYD_CAPTIONS,
    times=QUERYD_TIMES,
    ids="video-9uP7WjixVFM\nvideo-_b-d2JbRm-w\n",
    durations=None,
) -> list[Record | Problem]:
    (folder / "train_list.txt").write_text(ids, encoding="utf-8")
    (folder / "raw_captions_combined_filtered-v2.pkl").write_bytes(pickle.dumps(captions))
    (folder / "times_captions_combined_filtered-v2.pkl").write_bytes(pickle.dumps(times))
    if durations is not None:
        write_json(folder / "durations.json", durations)
    return entries_of(folder, queryd.SETS[0])


def test_queryd_tokens_joined_and_prefix_cut(tmp_path):
    found = que(tmp_path, durations={"9uP7WjixVFM": 119.49437499999999})
    assert found[0] == Record(
        where="line 1 (video-9uP7WjixVFM), sentence 0",
        key="9uP7WjixVFM/0",
        video="9uP7WjixVFM.mp4",
        query="she smiles and holds up the bottle.",
        intervals=((82.9, 85.3),),
        duration=119.49437499999999,
    )


def test_queryd_reads_listed_ids_only_in_the_order_of_the_list(tmp_path):
    found = que(tmp_path, ids="video-_b-d2JbRm-w\nvideo-9uP7WjixVFM\n")
    assert [entry.key for entry in found] == ["_b-d2JbRm-w/0", "9uP7WjixVFM/0", "9uP7WjixVFM/1"]


def test_queryd_reversed_span_stays(tmp_path):
    assert que(tmp_path)[1].intervals == ((10.0, 4.5),)


def test_queryd_video_without_a_duration_stays(tmp_path):
    assert [entry.duration for entry in que(tmp_path, durations={"9uP7WjixVFM": 119.5})] == [119.5, 119.5, None]


def test_queryd_refuses_a_pickle_that_is_a_program(tmp_path):
    with pytest.raises(AnnotationError, match="raw_captions.*OrderedDict"):
        que(tmp_path, captions=OrderedDict(QUERYD_CAPTIONS))


def test_queryd_pickle_without_dictionary(tmp_path):
    with pytest.raises(AnnotationError, match="times_captions.*dictionary"):
        que(tmp_path, times=[[0.0, 1.0]])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("video-unknown0000", "captions"),
        ("video-", "prefix"),
        ("video-9uP7WjixVFM", "twice"),
    ],
)
def test_queryd_bad_id(tmp_path, line, said):
    found = que(tmp_path, ids=f"video-9uP7WjixVFM\n{line}\nvideo-_b-d2JbRm-w\n")
    assert [type(entry) for entry in found] == [Record, Record, Problem, Record]
    assert said in found[2].what and "line 2" in found[2].where


@pytest.mark.parametrize(
    ("captions", "times", "said"),
    [
        ([["A", "dog"]], [], "0 times for 1 captions"),
        ([["A", "dog"]], None, "times"),
        (None, [[0.0, 1.0]], "captions"),
        (["A dog"], [[0.0, 1.0]], "caption"),
        ([["A", 5]], [[0.0, 1.0]], "caption"),
        ([[]], [[0.0, 1.0]], "captions[0]: "),
        ([["A", "dog"]], [[0.0]], "times[0][1]: "),
        ([["A", "dog"]], [["0.0", "1.0"]], "times[0][0]: "),
        ([["A", "dog"]], [None], "times[0]: "),
    ],
)
def test_queryd_bad_entry(tmp_path, captions, times, said):
    name = "video-bad00000000"
    found = que(
        tmp_path,
        captions=QUERYD_CAPTIONS | {name: captions},
        times=QUERYD_TIMES | {name: times},
        ids=f"video-_b-d2JbRm-w\n{name}\nvideo-TestSplit00\n",
    )
    check_between(found, said, name)


@pytest.mark.parametrize("name", ["raw_captions_combined_filtered-v2.pkl", "times_captions_combined_filtered-v2.pkl"])
def test_queryd_truncated_pickle(tmp_path, name):
    que(tmp_path)
    cut(tmp_path / name)
    with pytest.raises(AnnotationError, match=name):
        entries_of(tmp_path, queryd.SETS[0])


# --- HiREST ---------------------------------------------------------------------------------------------------------

HIREST_VIDEO = {
    "relevant": True,
    "clip": True,
    "v_duration": 207.08,
    "bounds": [50, 121],
    "steps": [
        {"index": 0, "heading": "take grinned oats flour", "absolute_bounds": [50, 58]},
        {"index": 1, "heading": "add coriander and green chilly ", "absolute_bounds": [67, 67]},
        {"index": 2, "heading": "heat pan", "absolute_bounds": [121, 104]},
        {"index": 3, "heading": "heat pan", "absolute_bounds": [121, 210]},
    ],
}
HIREST = {
    "Make Oatmeal Pancake Mix": {
        "5V3dI2zp1xA.mp4": HIREST_VIDEO,
        "W_uqfgJp1zA.mp4": {"relevant": True, "clip": False, "v_duration": 326.89, "bounds": [0, 0], "steps": []},
        "Rrqju1sm1dY.mp4": {"relevant": False, "clip": False, "v_duration": 264.73, "bounds": [0, 0], "steps": []},
    },
    "Make Pancakes": {
        "5V3dI2zp1xA.mp4": HIREST_VIDEO,
        "UM1OUc60YIU.mp4": {"relevant": True, "clip": True, "v_duration": 295.03, "bounds": [60, 191], "steps": []},
    },
}
MOMENTS, STEPS = hirest.SETS


def hir(folder: Path, one, content=HIREST, split: str = "train") -> list[Record | Problem]:
    write_json(folder / f"all_data_{split}.json", content)
    return entries_of(folder, one, split)


def test_hirest_moment(tmp_path):
    found = hir(tmp_path, MOMENTS)
    assert found[0] == Record(
        where="goal 'Make Oatmeal Pancake Mix', video 5V3dI2zp1xA.mp4",
        key="5V3dI2zp1xA.mp4/0",
        video="5V3dI2zp1xA.mp4",
        query="Make Oatmeal Pancake Mix",
        intervals=((50.0, 121.0),),
        duration=207.08,
    )


def test_hirest_videos_without_a_moment_are_no_queries(tmp_path):
    assert [entry.video for entry in hir(tmp_path, MOMENTS)] == [
        "5V3dI2zp1xA.mp4",
        "5V3dI2zp1xA.mp4",
        "UM1OUc60YIU.mp4",
    ]
    assert {entry.video for entry in hir(tmp_path, STEPS)} == {"5V3dI2zp1xA.mp4"}


def test_hirest_video_under_two_goals(tmp_path):
    found = hir(tmp_path, MOMENTS, split="val")
    assert [(entry.key, entry.query) for entry in found[:2]] == [
        ("5V3dI2zp1xA.mp4/0", "Make Oatmeal Pancake Mix"),
        ("5V3dI2zp1xA.mp4/1", "Make Pancakes"),
    ]


def test_hirest_step(tmp_path):
    found = hir(tmp_path, STEPS)
    assert len(found) == 8
    assert found[0] == Record(
        where="goal 'Make Oatmeal Pancake Mix', video 5V3dI2zp1xA.mp4, step 0",
        key="5V3dI2zp1xA.mp4/0/0",
        video="5V3dI2zp1xA.mp4",
        query="take grinned oats flour",
        intervals=((50.0, 58.0),),
        duration=207.08,
        extra={"goal": "Make Oatmeal Pancake Mix", "index": 0},
    )


def test_hirest_empty_reversed_and_overlong_steps_stay(tmp_path):
    found = hir(tmp_path, STEPS, split="val")
    assert [entry.intervals[0] for entry in found[1:4]] == [(67.0, 67.0), (121.0, 104.0), (121.0, 210.0)]


@pytest.mark.parametrize("one", [MOMENTS, STEPS], ids=["grounding", "step"])
@pytest.mark.parametrize(
    ("field", "value"),
    [(name, value) for name in ("relevant", "clip", "v_duration") for value in (GONE, None, "yes")],
)
def test_hirest_bad_video(tmp_path, one, field, value):
    good = HIREST_VIDEO | {"steps": HIREST_VIDEO["steps"][:1]}
    content = {"Goal": {"a.mp4": good, "b.mp4": changed(good, field, value), "c.mp4": good}}
    check_between(hir(tmp_path, one, content), field, "b.mp4")


@pytest.mark.parametrize(
    ("value", "said"), [(GONE, "bounds"), (None, "bounds"), ([50], "bounds[1]: "), (["50", 121], "bounds[0]: ")]
)
def test_hirest_bad_bounds(tmp_path, value, said):
    content = {"Goal": {"a.mp4": HIREST_VIDEO, "b.mp4": changed(HIREST_VIDEO, "bounds", value), "c.mp4": HIREST_VIDEO}}
    check_between(hir(tmp_path, MOMENTS, content), said, "b.mp4")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, value, name) for name in ("heading", "absolute_bounds") for value in (GONE, None, 5)]
    + [("absolute_bounds", [1, 2, 3], "absolute_bounds: "), ("heading", " ", "heading"), ("index", [0], "index")],
)
def test_hirest_bad_step(tmp_path, field, value, said):
    good = HIREST_VIDEO["steps"][0]
    steps = [good, changed(good, field, value), good]
    check_between(hir(tmp_path, STEPS, {"Goal": {"a.mp4": HIREST_VIDEO | {"steps": steps}}}), said, "a.mp4, step 1")


def test_hirest_steps_missing(tmp_path):
    good = HIREST_VIDEO | {"steps": HIREST_VIDEO["steps"][:1]}
    content = {"Goal": {"a.mp4": good, "b.mp4": changed(good, "steps", GONE), "c.mp4": good}}
    check_between(hir(tmp_path, STEPS, content), "steps", "b.mp4")
    assert len(hir(tmp_path, MOMENTS, content)) == 3


HIREST_TEST = {  # every moment is [0, 1], and no video has steps
    "Make Tea": {
        name: {"relevant": True, "clip": clip, "v_duration": 12.5, "bounds": [0, 1], "steps": []}
        for name, clip in (("t1.mp4", True), ("t2.mp4", True), ("t3.mp4", False))
    }
}
HIREST_TEST_STEPS = {
    "t1.mp4": {
        "captions": [
            {"start": 1, "end": 6, "sentence": "boil the water"},
            {"start": 6, "end": 9, "sentence": "put in the tea "},
        ],
        "bounds": [[1.0, 6.0], [6.0, 9.0]],
    }
}


def test_hirest_test_has_steps_in_a_file_of_their_own_and_no_moments(tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "evaluation").mkdir()
    write_json(tmp_path / "evaluation" / "formatted_moment_evaluation_gt.json", HIREST_TEST_STEPS)
    found = hir(tmp_path / "splits", STEPS, HIREST_TEST, "test")
    assert [(entry.key, entry.query, entry.intervals) for entry in found] == [
        ("t1.mp4/0/0", "boil the water", ((1.0, 6.0),)),
        ("t1.mp4/0/1", "put in the tea", ((6.0, 9.0),)),
    ]
    assert found[0].extra == {"goal": "Make Tea", "index": 0} and found[0].duration == 12.5
    moments = hir(tmp_path / "splits", MOMENTS, HIREST_TEST, "test")
    assert [(entry.key, entry.intervals) for entry in moments] == [("t1.mp4/0", ()), ("t2.mp4/0", ())]


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (GONE, "captions: missing"),
        ("x", "captions"),
        ([None], "is not an object"),
        ([{"start": 1, "end": 2}], "heading"),
    ]
    + [([{"start": None, "end": 2, "sentence": "a"}], "absolute_bounds[0]: ")],
)
def test_hirest_bad_test_steps(tmp_path, captions, said):
    broken = {"t1.mp4": changed({}, "captions", captions), "t2.mp4": HIREST_TEST_STEPS["t1.mp4"]}
    write_json(tmp_path / "formatted_moment_evaluation_gt.json", broken)
    bad, *rest = hir(tmp_path, STEPS, HIREST_TEST, "test")
    assert isinstance(bad, Problem) and said in bad.what and "t1.mp4" in bad.where and len(rest) == 2
    write_json(tmp_path / "formatted_moment_evaluation_gt.json", [])
    with pytest.raises(AnnotationError, match="holds no JSON object of videos"):
        hir(tmp_path, STEPS, HIREST_TEST, "test")


def test_hirest_goal_is_no_object(tmp_path):
    content = {"First": {"a.mp4": HIREST_VIDEO}, "Second": [], "Third": {"b.mp4": HIREST_VIDEO}}
    check_between(hir(tmp_path, MOMENTS, content), "object", "Second")


# --- CosMo-Cap and InternVid-VTime ----------------------------------------------------------------------------------

SPAN_ROW = {"vid": "QtWT8rxUuNk", "query": "A purple hanger  is shown. ", "span": [1, 4.5], "duration": 93.2932}
SPAN_SETS = [(cosmo_cap, "anno_cosmo_cap.jsonl"), (internvid_vtime, "anno_internvid_vtime_query_gpt4o_mini.jsonl")]


@pytest.mark.parametrize(("module", "name"), SPAN_SETS, ids=["cosmo_cap", "internvid_vtime"])
def test_span_sets_row(tmp_path, module, name):
    write_lines(tmp_path / name, [SPAN_ROW])
    assert only(entries_of(tmp_path, module.SETS[0])) == Record(
        where="line 1 (QtWT8rxUuNk)",
        key="QtWT8rxUuNk/0",
        video="QtWT8rxUuNk.mp4",
        query="A purple hanger  is shown.",
        intervals=((1.0, 4.5),),
        duration=93.2932,
    )


@pytest.mark.parametrize(("module", "name"), SPAN_SETS, ids=["cosmo_cap", "internvid_vtime"])
def test_span_sets_same_query_twice_in_a_video(tmp_path, module, name):
    write_lines(tmp_path / name, [SPAN_ROW, SPAN_ROW | {"vid": "other"}, SPAN_ROW])
    keys = [entry.key for entry in entries_of(tmp_path, module.SETS[0])]
    assert keys == ["QtWT8rxUuNk/0", "other/0", "QtWT8rxUuNk/1"]


def test_internvid_is_cropped_already(tmp_path):
    write_lines(tmp_path / SPAN_SETS[1][1], [SPAN_ROW])
    assert only(entries_of(tmp_path, internvid_vtime.SETS[0])).clip is None


@pytest.mark.parametrize(("module", "name"), SPAN_SETS, ids=["cosmo_cap", "internvid_vtime"])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(name, value, name) for name in ("vid", "query", "span", "duration") for value in (GONE, None)]
    + [
        ("span", [1.0], "span[1]: "),
        ("span", [[1.0, 2.0]], "span[0]: "),
        ("span", "1-2", "span"),
        ("duration", "93", "duration"),
        ("duration", 0, "duration"),
        ("vid", "", "vid"),
    ],
)
def test_span_sets_bad_line(tmp_path, module, name, field, value, said):
    write_lines(tmp_path / name, [SPAN_ROW, changed(SPAN_ROW, field, value), SPAN_ROW])
    check_between(entries_of(tmp_path, module.SETS[0]), said, "line 2")


# --- every set ------------------------------------------------------------------------------------------------------

WHOLE_JSON = [
    (activitynet.SETS[0], "train", "train.json", ACTIVITYNET),
    (charades_sta.SETS[0], "train", "train.json", ACTIVITYNET),
    (tvgbench.SETS[0], "test", "tvgbench.json", [TVG_ROW, TVG_EGO]),
    (timerft.SETS[0], "train", "train_2k5.json", [TIMERFT_ROW, TIMERFT_CUT]),
    (didemo.SETS[0], "train", "train_data.json", [DIDEMO_ROW, DIDEMO_ROW]),
    (MOMENTS, "train", "all_data_train.json", HIREST),
    (STEPS, "train", "all_data_train.json", HIREST),
]
LINES = [
    (qvhighlights.SETS[0], "train", "highlight_train_release.jsonl", QV_ROW),
    (tacos.SETS[0], "train", "train.jsonl", TACOS_ROW),
    (cosmo_cap.SETS[0], "train", "anno_cosmo_cap.jsonl", SPAN_ROW),
    (internvid_vtime.SETS[0], "train", "anno_internvid_vtime_query_gpt4o_mini.jsonl", SPAN_ROW),
]


@pytest.mark.parametrize(("one", "split", "name", "content"), WHOLE_JSON, ids=lambda value: getattr(value, "name", ""))
def test_truncated_json(tmp_path, one, split, name, content):
    cut(write_json(tmp_path / name, content))
    with pytest.raises(AnnotationError, match=name):
        entries_of(tmp_path, one, split)


@pytest.mark.parametrize(("one", "split", "name", "row"), LINES, ids=lambda value: getattr(value, "name", ""))
def test_truncated_lines(tmp_path, one, split, name, row):
    cut(write_lines(tmp_path / name, [row]))
    with pytest.raises(AnnotationError, match=name):
        entries_of(tmp_path, one, split)


@pytest.mark.parametrize(("one", "split", "name", "content"), WHOLE_JSON, ids=lambda value: getattr(value, "name", ""))
def test_other_shape_of_file(tmp_path, one, split, name, content):
    write_json(tmp_path / name, {} if isinstance(content, list) else [])
    with pytest.raises(AnnotationError, match=name):
        entries_of(tmp_path, one, split)


@pytest.mark.parametrize(
    ("one", "split", "name", "row"),
    [(tvgbench.SETS[0], "test", "tvgbench.json", TVG_ROW), (timerft.SETS[0], "train", "train_2k5.json", TIMERFT_ROW)]
    + [(didemo.SETS[0], "train", "train_data.json", DIDEMO_ROW)],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("bad", [None, 5, "text", []])
def test_list_entry_is_no_object(tmp_path, one, split, name, row, bad):
    write_json(tmp_path / name, [row, bad, row])
    check_between(entries_of(tmp_path, one, split), "object", "entry 1")
