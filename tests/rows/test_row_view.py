"""`Row`: one rule for each thing that a row says, whoever asks."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.rows.test_video_keys import row
from verl_stvg.data_builders.check_videos import remember
from verl_stvg.data_builders.selection.folder import pool
from verl_stvg.data_builders.selection.samples import sample_of
from verl_stvg.eval.benchmarks.items import item_of, read_rows
from verl_stvg.eval.report.rows import Rows
from verl_stvg.inference import settings
from verl_stvg.launch import row_sizes
from verl_stvg.rows import Row, files
from verl_stvg.rows.masks import RowFacts
from verl_stvg.training import reward


def of(extra=None, truth=None, **columns) -> Row:
    return Row({"extra_info": extra, "reward_model": {"ground_truth": truth}, **columns})


@pytest.mark.parametrize(
    ("extra", "truth", "uid", "name"),
    [
        ({"uid": "a", "index": 3}, {"uid": "b"}, "a", "a"),
        ({"uid": None, "index": 3}, {"uid": "b"}, "b", "b"),
        ({"uid": "", "index": 3}, {"uid": "b"}, "b", "b"),
        ({"index": 3}, {"uid": ""}, None, "3"),
        ({"index": 0}, None, None, "0"),
        ({"uid": 0, "index": 3}, None, 0, "0"),  # a number is a name as well
        ({}, {}, None, "unknown"),
        (None, None, None, "unknown"),
        ("no object", "no object", None, "unknown"),
        ({"uid": "a" * 300}, None, "a" * 300, "a" * 200),
    ],
)
def test_the_uid_is_the_rows_then_the_truths_and_messages_fall_back_on_the_index(extra, truth, uid, name):
    found = of(extra, truth)
    assert (found.uid, found.name) == (uid, name)
    if extra != "no object":
        said = reward._row(truth, extra)  # the reward names rows alike; it is imported without this module
        assert ("unknown" if said is None else str(said)[:200]) == name


@pytest.mark.parametrize(
    ("extra", "truth", "duration"),
    [
        ({"duration": 10.0}, {"duration": 12.0}, 10.0),
        ({"duration": None}, {"duration": 12.0}, 12.0),
        ({}, {"duration": 12.0}, 12.0),
        ({}, {}, None),
        (None, None, None),
    ],
)
def test_the_duration_is_the_rows_then_the_truths(extra, truth, duration):
    assert of(extra, truth).duration == duration


@pytest.mark.parametrize(
    ("truth", "intervals"),
    [
        ({"intervals": [[1.0, 2.0], [4.0, 5.0]], "start": 1.0, "end": 5.0}, ((1.0, 2.0), (4.0, 5.0))),
        ({"intervals": [], "start": 1.0, "end": 5.0}, ((1.0, 5.0),)),
        ({"intervals": None, "start": 0.0, "end": 0.0}, ((0.0, 0.0),)),
        ({"start": 1.0, "end": None}, ()),
        ({}, ()),
        (None, ()),
    ],
)
def test_intervals_are_the_list_then_start_and_end(truth, intervals):
    assert of({}, truth).intervals == intervals


def test_an_empty_key_of_the_truth_is_no_key():
    found = of({}, {"start": 0.0, "object_id": None})
    assert found.truth == {"start": 0.0} and found.given_truth == {"start": 0.0, "object_id": None}
    for column in (None, "text", {"ground_truth": "text"}, {}):
        assert Row({"reward_model": column}).truth == {}
    assert Row({}).truth == {}


def test_the_set_is_named_or_the_end_of_the_data_source():
    assert of({"dataset": "own"}, data_source="time_r1/other").dataset == "own"
    assert of({"dataset": None}, data_source="time_r1/a/other").dataset == "other"
    assert Row({}).dataset == ""


def test_the_recipe_is_the_one_asked_for_then_that_of_the_data_source():
    found = Row({"data_source": "time_r1/own"}, where="rows.parquet: row 3")
    assert found.recipe().name == "time_r1" and found.recipe("stvg_r1").name == "stvg_r1"
    with pytest.raises(ValueError, match="^rows.parquet: row 3: compute_score: no reward for data_source ''"):
        Row({}, where="rows.parquet: row 3").recipe()


def test_splits_that_are_never_trained_on():
    assert [of({"split": split}).is_evaluation for split in ("val", "test", "train", None)] == [
        True,
        True,
        False,
        False,
    ]


def test_paths_of_videos_start_from_the_root():
    named = {"videos": ["a.mp4", {"video": "/q/b.mp4", "tracks": "t.gz", "fps": None}]}
    given = [{"video": "a.mp4"}, {"video": "/q/b.mp4", "tracks": "t.gz"}]
    assert Row(named).videos == Row(named).entries == Row(named, "/r").entries == given
    assert Row(named, "/r").videos == [{"video": "/r/a.mp4"}, {"video": "/q/b.mp4", "tracks": "/r/t.gz"}]
    assert Row(named, fit={"fps": 1.0}).videos[0] == {"video": "a.mp4", "fps": 1.0}
    assert Row({"videos": None}).videos == Row({}).videos == []


def test_a_row_is_a_mapping_of_its_columns_and_is_opened_once():
    raw = row(["a.mp4"])
    found = Row.of(raw)
    assert dict(found) == raw and found["videos"] == ["a.mp4"] and len(found) == len(raw)
    assert Row.of(found) is found and found.where == "row own/train/0" and found.root is None
    assert Row.of(raw | {"video_root": "/r"}).videos == [{"video": "/r/a.mp4"}]


def test_all_readers_take_the_same_of_a_row_that_says_as_little_as_it_may(tmp_path):
    """Its ground truth alone says uid, duration and interval."""
    raw = json.loads(json.dumps(row([{"video": "a.mp4"}])))
    for key in ("uid", "duration", "dataset"):
        raw["extra_info"][key] = None
    del raw["reward_model"]["ground_truth"]["intervals"]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([raw]), file)
    (opened,) = files.read_rows(file)
    assert (opened.root, opened.where) == (tmp_path, f"{file}: row 0")
    told = (opened.uid, opened.duration, opened.intervals, opened.dataset, opened.recipe().name)
    assert told == ("own/train/0", 10.0, ((1.0, 3.0),), "own", "time_r1")
    (scored,) = read_rows([file])
    for item in (item_of(scored), item_of(raw)):
        assert (item.uid, item.duration, item.intervals, item.dataset, item.recipe) == told
    sample = sample_of(raw)
    assert (sample.uid, sample.duration, sample.spans, sample.dataset, sample.recipe) == told
    (seen,) = remember(opened, 0, 0)
    assert (seen.uid, seen.said.duration, seen.end) == ("own/train/0", 10.0, 3.0)
    masked = RowFacts.of(raw | {"extra_info": raw["extra_info"] | {"bin": "hard", "difficulty": 0.5}})
    assert (masked.uid, masked.intervals) == ("own/train/0", ((1.0, 3.0),))
    assert [found["videos"] for found in pool([file]).rows()] == [[{"video": "a.mp4"}]]
    assert row_sizes.read_rows([file]).rows == 1
    with pytest.raises(ValueError, match="row 0 has no extra_info.uid"):
        settings.read_rows([file])  # asks without reading the truth


def test_a_link_to_a_file_has_the_root_of_the_file(tmp_path):
    """Whoever reads it; before, two readers looked beside the link."""
    (tmp_path / "there").mkdir()
    pq.write_table(pa.Table.from_pylist([row([{"video": "a.mp4"}])]), tmp_path / "there/rows.parquet")
    link = tmp_path / "link.parquet"
    link.symlink_to(tmp_path / "there/rows.parquet")
    for root in (next(files.read_rows(link)).root, Rows([link])["own/train/0"].root, pool([link]).root):
        assert root == tmp_path / "there"


def test_what_a_row_says_is_kept_nowhere_unless_it_is_dear():
    opened = Row({**row([{"video": "a.mp4"}]), "extra_info": {"uid": "a", "duration": 9.0}}, "/r", "here")
    assert opened.uid == opened.name == "a" and opened.duration and opened.truth is not None
    assert opened.intervals is not None and not opened.is_evaluation
    assert set(vars(opened)) == {"raw", "root", "where", "fit"}  # a dictionary each, in 100,000 rows, takes seconds
    assert opened.entries is opened.entries
