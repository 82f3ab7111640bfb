"""Rows of videos whose rate varies, that start late or are turned: seconds, frame numbers, facts, findings."""

import json
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.video.test_decode import write_counting_video
from verl_stvg.cli.app import app
from verl_stvg.data_builders import check, check_videos, make_row, numbering, row_schema, show, templates
from verl_stvg.data_builders.records import Record
from verl_stvg.data_builders.selection import boundary_reflection
from verl_stvg.data_builders.videos import Facts
from verl_stvg.launch.row_sizes import read_rows
from verl_stvg.rows.row import ROOT_KEY, Row, RowError, plan_of
from verl_stvg.training.dataset import VideoGroundingDataset, joined
from verl_stvg.video.decode import probe
from verl_stvg.video.plan import plan_video
from verl_stvg.video.thumbnails import thumbnails

SLOW_LATER = tuple([k / 30 for k in range(30)] + [1 + k / 5 for k in range(30)])
"""60 frames in 7 seconds: 30 in the first of them, 5 in each of the others."""
STAMPS = [round(1000 * time) for time in SLOW_LATER]
FACTS = Facts(60, 60 / 7, 64, 48, "0" * 32, SLOW_LATER, 7.0)
STEADY = Facts(60, 30.0, 64, 48, "0" * 32)
LATE = Facts(90, 30.0, 64, 48, "0" * 32, tuple(2 + k / 30 for k in range(90)), 5.0, ("its picture starts late",))
BOX = (0.0, 0.0, 10.0, 20.0)


def record(**fields) -> Record:
    given = {"where": "entry 0", "key": "k", "video": "v.mp4", "query": "Somebody waves.", "intervals": ((1.0, 3.0),)}
    return Record(**given | fields)


def maker(template: str = "time_r1", split: str = "train", **fields) -> make_row.RowMaker:
    return make_row.RowMaker("set", split, templates.find(template), **fields)


def made(one: Record, facts: Facts | None = FACTS, **fields) -> dict:
    one = one if facts else one.model_copy(update={"duration": one.duration or 10.0})
    [found] = maker(**fields).rows(one, make_row.Video("v.mp4", facts))
    found["extra_info"]["index"] = 0
    return found


def span(found: dict) -> list:
    [one] = found["reward_model"]["ground_truth"]["intervals"]
    return pytest.approx(one)


def tube(first: int, count: int) -> dict:
    return {"first_frame": first, "boxes": (BOX,) * count}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_counting_video(tmp_path_factory.mktemp("videos") / "v.mp4", stamps=STAMPS)


def write(rows: list[dict], path) -> None:
    pq.write_table(pa.Table.from_pylist(rows, row_schema.ROW_SCHEMA), path)


def findings(rows: list[dict], folder) -> list[check.Finding]:
    write(rows, folder / "train.parquet")
    return check.check([folder / "train.parquet"], decode=False)[0]


# --- seconds ----------------------------------------------------------------------------------------------------------


def test_frames_become_the_seconds_at_which_the_file_shows_them():
    frames = {"unit": "frames", "intervals": ((15, 45),)}
    assert [0.5, 4.0] == span(made(record(**frames)))
    assert [0.5, 1.5] == span(made(record(**frames), STEADY))
    assert [2.5, 3.5] == span(made(record(**frames), LATE))
    whole = made(record(unit="frames", intervals=((0, 60),)))["reward_model"]["ground_truth"]
    assert whole["intervals"] == [[0.0, 7.0]] and whole["duration"] == 7.0


def test_a_part_in_frames_is_cut_at_the_files_times():
    found = made(record(unit="frames", intervals=((0, 20),), clip=(15, 45)))
    entry = found["videos"][0]
    assert (entry["video_start"], entry["video_end"]) == (0.5, 4.0)
    assert [0.0, 1.5] == span(found) and found["extra_info"]["duration"] == 3.5
    assert found["extra_info"]["visual_tokens"] == plan_of(entry, FACTS.info).num_tokens


def test_fractions_are_of_the_files_length():
    assert [0.7, 3.5] == span(made(record(unit="fractions", intervals=((0.1, 0.5),))))


@pytest.mark.parametrize(("annotated", "seconds"), [(383.0, 383.5), (383.9, 385.2), (384.0, 390.0), (767.0, 771.0)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_rate_of_the_grid_is_chosen_from_the_length_of_the_file(annotated, seconds, split):
    facts = Facts(round(seconds * 30), 30.0, 320, 180, "")
    one = record(duration=annotated)
    found = made(one, facts, split=split, rule="grid")
    assert found["videos"][0]["fps"] == make_row.grid_rate(seconds)
    assert plan_of(found["videos"][0], facts.info).num_frames <= 768
    assert found["extra_info"]["duration"] == found["reward_model"]["ground_truth"]["duration"] == annotated
    assert made(one, None, rule="grid")["videos"][0]["fps"] == make_row.grid_rate(annotated)
    part = made(record(duration=annotated, clip=(0.0, 100.0)), facts, rule="grid")
    assert part["videos"][0]["fps"] == 2.0


# --- frame numbers beside seconds -------------------------------------------------------------------------------------


def test_frame_numbers_that_contradict_seconds_are_refused_where_the_rate_varies():
    agreed = record(tube=tube(15, 30), intervals=((0.5, 4.0),))
    by_a_constant_rate = record(tube=tube(15, 30), intervals=((15 / 8.57, 45 / 8.57),))
    a_little_off = record(tube=tube(15, 30), intervals=((0.0, 4.9),))
    in_a_part = record(tube=tube(30, 10), intervals=((0.5, 2.5),), clip=(0.5, 7.0))
    for split in ("train", "test"):
        for one in (agreed, a_little_off, in_a_part):
            assert made(one, split=split)
        assert made(by_a_constant_rate, STEADY, split=split) and made(by_a_constant_rate, None, split=split)
        with pytest.raises(make_row.Drop, match="^frame numbers and seconds disagree in a video whose rate varies$"):
            made(by_a_constant_rate, split=split)
    assert made(record(tube=tube(15, 30), unit="frames", intervals=((15, 45),)))


@pytest.mark.parametrize("name", numbering.COUNTS)
def test_an_annotation_of_other_frames_is_refused_where_the_rate_varies(name):
    one = record(tube=tube(15, 30), intervals=((0.5, 4.0),), extra={name: 75, "fps": 12.5})
    assert made(one, STEADY) and made(one.model_copy(update={"tube": None}))
    with pytest.raises(
        make_row.Drop, match="^annotated at another number of frames than the video has, whose rate varies$"
    ):
        made(one)
    assert made(one.model_copy(update={"extra": {name: 60}}))
    phone = replace(FACTS, num_frames=1000, fps=29.5, times=tuple(np.linspace(0, 33.9, 1000)), end=1000 / 29.5)
    masks = record(unit="frames", intervals=((15, 45),), masks=(None,), extra={name: 1002})
    assert made(masks, phone)  # what programs miss at the end
    with pytest.raises(make_row.Drop, match="another number of frames"):
        made(masks, replace(LATE, notes=()))


def test_boxes_on_a_turned_picture_are_refused():
    upright = record(tube=tube(0, 3), intervals=((0.0, 0.1),), extra={"width": 480, "height": 640})
    with pytest.raises(make_row.Drop, match="^boxes are annotated on a turned picture$"):
        made(upright, STEADY, template="stvg_boxes")
    assert made(upright, STEADY)  # times alone
    assert made(upright, replace(STEADY, width=96, height=128), template="stvg_boxes")


# --- what rows record -------------------------------------------------------------------------------------------------


def recorded(found: dict) -> tuple:
    return tuple(found["extra_info"][name] for name in ("constant_rate", "frame_times", "file_end"))


def test_rows_record_times_where_something_has_frame_numbers(tmp_path):
    with_tube = record(tube=tube(15, 30), intervals=((0.5, 4.0),))
    times = list(SLOW_LATER)
    assert recorded(made(with_tube)) == recorded(made(record(masks=(None,)))) == (False, times, 7.0)
    assert recorded(made(record())) == (False, None, 7.0)
    assert recorded(made(with_tube, STEADY)) == (True, None, None)
    assert recorded(made(with_tube, None)) == (None, None, None)
    known = {"set/train/k": {"object_id": 4}}
    assert recorded(made(record(), template="stvg_r1", targets=known)) == (False, times, 7.0)
    (tmp_path / "v.mp4.tracks.json.gz").touch()
    assert recorded(made(record(), tracks=(tmp_path, "../tracks"))) == (False, times, 7.0)
    write([made(with_tube)], tmp_path / "rows.parquet")
    assert recorded(pq.read_table(tmp_path / "rows.parquet").to_pylist()[0]) == (False, times, 7.0)


def test_only_what_decides_about_frames_is_believed():
    with_tube = record(tube=tube(15, 30), intervals=((0.5, 4.0),))
    assert Row(made(with_tube)).info == replace(FACTS.info, notes=())
    assert Row(made(with_tube, STEADY)).info == STEADY.info
    assert Row(made(record())).info is None and Row(made(record(), None)).info is None
    of_an_older_version = made(record(), STEADY)
    del of_an_older_version["extra_info"]["constant_rate"]
    assert Row(of_an_older_version).info is None
    two = made(record(), STEADY)
    assert Row(two | {"videos": two["videos"] * 2}).info is None


class _Tokenizer:
    def apply_chat_template(self, messages, **_):
        return ""

    def __call__(self, text, **_):
        return {"input_ids": []}


def test_training_looks_into_the_file_where_the_row_says_too_little(video, monkeypatch):
    looked = []
    source = SimpleNamespace(probe=lambda path: looked.append(path) or probe(path), try_out=None)
    monkeypatch.setattr(VideoGroundingDataset, "_build_messages", lambda self, example, key: [])
    made_of = object.__new__(VideoGroundingDataset)
    made_of.processor, made_of.tokenizer, made_of.prompt_key = None, _Tokenizer(), "prompt"
    made_of.video_key, made_of.image_key, made_of.audio_key = "videos", "images", "audios"
    made_of.apply_chat_template_kwargs = made_of.fit = {}
    facts = Facts.of(probe(video), "")
    for one, looks in ((record(), 1), (record(tube=tube(15, 30), intervals=((0.5, 4.0),)), 0)):
        found = made(one, facts) | {ROOT_KEY: str(video.parent)}
        expected = plan_of(found["videos"][0], probe(video)).num_units
        looked.clear()
        problem, tokens = made_of._check_row(found, "exist", source)
        assert problem is None and tokens >= expected and len(looked) == looks


def test_blanking_looks_into_the_file_where_the_row_says_too_little(video, tmp_path):
    found = made(record(duration=7.0), Facts.of(probe(video), ""), rule="grid")
    asked = boundary_reflection.asked(found | {"video_root": str(video.parent)}, "blanked")
    assert asked["videos"][0]["hidden"] == [[1, 3]]
    with pytest.raises(ValueError, match="set/train/k: the row does not say.*no such video.*--videos"):
        boundary_reflection.asked(found | {"video_root": str(tmp_path)}, "blanked")


def test_capacity_counts_by_the_length_of_the_file(tmp_path):
    late = made(record(duration=5.0), LATE, rule="grid")
    write([late], tmp_path / "rows.parquet")
    assert read_rows([tmp_path / "rows.parquet"]).most_units == plan_of(late["videos"][0], LATE.info).num_units == 5


# --- several files ----------------------------------------------------------------------------------------------------


def loaded(folder, *tables: pa.Table) -> list[datasets.Dataset]:
    parts = []
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
        part = datasets.load_dataset("parquet", data_files=str(folder / f"{number}.parquet"), cache_dir=str(folder))
        parts.append(part["train"])
    return parts


def test_rows_of_an_older_version_can_be_mixed_with_new_ones(tmp_path):
    new = pa.Table.from_pylist([made(record(), STEADY)], row_schema.ROW_SCHEMA)
    info = row_schema.ROW_SCHEMA.field("extra_info").type
    fields = [field for field in info if field.name not in ("constant_rate", "frame_times", "file_end")]
    old = pa.Table.from_pylist(
        [made(record(), STEADY)], row_schema.ROW_SCHEMA.set(5, pa.field("extra_info", pa.struct(fields)))
    )
    other = old.append_column("weight", pa.array([2.0])).drop_columns(["ability"])
    rows = joined(loaded(tmp_path, new, old, other), ["new", "old", "other"])
    assert [one["extra_info"]["constant_rate"] for one in rows] == [True, None, None]
    assert [one["ability"] for one in rows] == ["temporal grounding"] * 2 + [None]
    assert [one["weight"] for one in rows] == [None, None, 2.0]
    assert [one["extra_info"]["num_frames"] for one in rows] == [60] * 3
    assert rows[0]["prompt"] == rows[1]["prompt"] == new["prompt"][0].as_py()


def test_files_that_contradict_each_other_are_refused(tmp_path):
    numbers, texts = (pa.table({"extra_info": [{"index": value}]}) for value in (1, "one"))
    with pytest.raises(RowError, match=r"^a\.parquet, b\.parquet: the columns of these files do not fit together"):
        joined(loaded(tmp_path, numbers, texts), ["a.parquet", "b.parquet"])


# --- check, show, thumbnails ------------------------------------------------------------------------------------------


def test_check_compares_rows_with_the_times_of_the_file(video):
    facts = Facts.of(probe(video), "")
    good = made(record(tube=tube(15, 30), intervals=((0.5, 4.0),), duration=7.0), facts, split="test", rule="grid")
    assert findings([good], video.parent) == []
    wrong = json.loads(json.dumps(good))
    wrong["reward_model"]["ground_truth"].update(start=1.75, end=5.25, intervals=[[1.75, 5.25]])
    [found] = findings([wrong], video.parent)
    assert (found.problem, found.serious) == ("frame numbers", True)
    assert "frames 15 to 44 are on show from 0.50 to 4.00 s" in found.detail and "1.75 to 5.25 s" in found.detail
    counted = json.loads(json.dumps(good))
    counted["extra_info"]["annotated"] = json.dumps({"frame_count": 210})
    [found] = findings([counted], video.parent)
    assert "the annotation counts 210 frames and the file 60" in found.detail
    turned = json.loads(json.dumps(good))
    turned["extra_info"] |= {"annotated": json.dumps({"width": 64, "height": 48}), "width": 56, "height": 56}
    assert findings([turned], video.parent) == []  # the file is square
    before = json.loads(json.dumps(good))
    before["extra_info"] |= {"constant_rate": None, "frame_times": None, "file_end": None}
    [found] = findings([before], video.parent)
    assert (found.problem, found.serious) == ("frame times", True) and "build the rows again" in found.detail
    before["extra_info"] |= {"num_frames": 210, "source_fps": 30.0}
    [found] = findings([before], video.parent)
    assert (found.problem, found.serious) == ("another video", True)
    assert "the row says 210 frames of 56x56 at 30 fps, and the file has 60 frames of 56x56 at 8.5" in found.detail


def test_check_names_lengths_and_clocks_that_differ(video):
    facts = Facts.of(probe(video), "")
    said = made(record(duration=9.5), facts, rule="grid")
    [found] = findings([said], video.parent)
    assert (found.problem, found.serious) == ("length", False)
    assert found.detail == "the row says 9.50 s, and the file shows 7.00 s"
    drifting = made(record(duration=7.0), facts, rule="qwen_vl_utils")
    [found] = findings([drifting], video.parent)
    assert (found.problem, found.serious) == ("clock", True) and "--rule grid" in found.detail
    plan = plan_of(drifting["videos"][0], facts.info)
    # picture 29 of 60 appears at 0.97 s, and half of the frames, which are told to last 3.5 s, come before it
    assert check_videos.drift(plan) == pytest.approx(
        max(k / (60 / 7) - SLOW_LATER[k] for k in plan.frame_indices), abs=1e-6
    )
    evaluated = made(record(duration=7.0), facts, rule="qwen_vl_utils", split="test")
    assert [f.serious for f in findings([evaluated], video.parent)] == [False]


def test_the_models_clock_does_not_drift_at_a_constant_rate():
    for seconds, begin in ((30, 0.0), (30, 4.0), (3000, 100.0)):
        plan = plan_video(seconds * 30, 30.0, 64, 48, rule="qwen_vl_utils", video_start=begin)
        assert check_videos.drift(plan, begin) < 1e-6
    late = plan_video(90, 30.0, 64, 48, rule="qwen_vl_utils", clock=LATE.clock)
    assert check_videos.drift(late) == pytest.approx(2.0)


def test_check_passes_on_what_is_unusual_about_a_file(video, monkeypatch):
    note = "its picture starts 2.000 s after its sound"
    unusual = replace(probe(video), notes=(note,))
    monkeypatch.setattr(check_videos, "shared_decoder", lambda: SimpleNamespace(examine=lambda path: (unusual, "")))
    [found] = findings([made(record(duration=7.0), Facts.of(unusual, ""), rule="grid")], video.parent)
    assert (found.problem, found.detail, found.serious) == ("unusual video", note, False)


def test_boxes_and_pictures_are_those_on_show(video):
    pictures, _ = thumbnails(video, 7, 56, 10_000)
    assert [one.time for one in pictures] == pytest.approx([k + 0.5 for k in range(7)])
    info, truth = probe(video), {"first_frame": 30, "boxes": [[0, 0, 28, 28]] * 5}
    on_show = info.clock.on_show([one.time for one in pictures]).tolist()
    assert on_show == [15, 32, 37, 42, 47, 52, 57]
    shown = show._boxes(truth["boxes"], truth["first_frame"], None, on_show, info)
    assert [box is not None for box in shown] == [False, True, False, False, False, False, False]
    assert shown[1] == {"left": 0.0, "top": 0.0, "width": 50.0, "height": 50.0}
    halved = show._boxes(truth["boxes"], truth["first_frame"], json.dumps({"width": 112, "height": 112}), on_show, info)
    assert halved[1]["width"] == halved[1]["height"] == 25.0


def test_a_page_of_a_video_whose_rate_varies(video, tmp_path):
    facts = Facts.of(probe(video), "")
    write([made(record(tube=tube(15, 30), intervals=((0.5, 4.0),)), facts)], video.parent / "page.parquet")
    result = CliRunner().invoke(app, ["show", str(video.parent / "page.parquet"), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0 and "0.50 to 4.00 s" in (tmp_path / "page.html").read_text()
