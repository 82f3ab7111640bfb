"""What is wrong with a user's file is said in the words of that file: its name, the row, the field, the remedy."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.data_builders.test_build import write_video
from verl_stvg.cli.data import build_app
from verl_stvg.data_builders import build, check, show
from verl_stvg.data_builders.make_row import Policies
from verl_stvg.data_builders.read import AnnotationError
from verl_stvg.data_builders.records import Problem, record
from verl_stvg.data_builders.selection import difficulty, folder
from verl_stvg.data_builders.sets import find
from verl_stvg.data_builders.templates import TEMPLATES
from verl_stvg.eval.benchmarks import items
from verl_stvg.inference import settings
from verl_stvg.launch import config_checks, row_sizes
from verl_stvg.rows.cache_fill import read_jobs
from verl_stvg.rows.files import open_rows, rows_in
from verl_stvg.training import dataset

LINE = {"video": "a.mp4", "query": "She waves.", "start": 1.0, "end": 3.0, "duration": 10.0}


def written(folder_, *lines: dict):
    folder_.mkdir(parents=True, exist_ok=True)
    (folder_ / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder_


# --- files of rows ----------------------------------------------------------------------------------------------------

READERS = {
    "check": lambda file, out: check.check([file]),
    "show": lambda file, out: show.write([file], out / "page.html"),
    "cache build": lambda file, out: read_jobs([file]),
    "eval": lambda file, out: settings.read_rows([file]),
    "score": lambda file, out: list(items.read_rows([file])),
    "select": lambda file, out: folder.prepare(difficulty.stage(difficulty.Rules()), [file], out / "stage"),
    "plan": lambda file, out: row_sizes.read_rows([file]),
    "train": lambda file, out: dataset.table_of(str(file), file),
    "files of a run": lambda file, out: _raised(config_checks._metadata(str(file))),
}


def _raised(found):
    if isinstance(found, str):
        raise ValueError(found)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_no_parquet_file_is_named(reader, tmp_path):
    file = tmp_path / "rows.parquet"
    with pytest.raises(ValueError, match=r"rows\.parquet: no such file"):
        READERS[reader](file, tmp_path)
    file.write_text("uid,query\n")
    with pytest.raises(
        ValueError, match=r"rows\.parquet: not a readable parquet file of rows \(.*\); build the rows again"
    ):
        READERS[reader](file, tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"rows\.parquet: (is a folder; name the parquet files in it|no such file)"):
        READERS[reader](file, tmp_path)


def test_a_file_that_is_damaged_in_the_middle_is_named(tmp_path):
    file = tmp_path / "rows.parquet"
    table = pa.table({"uid": [f"{k:032x}" for k in range(5000)]})
    pq.write_table(table, file, row_group_size=1000, compression="zstd", use_dictionary=False)
    data = bytearray(file.read_bytes())
    with open_rows(file) as opened:
        place = opened.metadata.row_group(3).column(0).data_page_offset
    data[place : place + 400] = bytes(400)
    file.write_bytes(data)
    rows = rows_in(file)
    assert [next(rows)["uid"] for _ in range(3000)] == table["uid"].to_pylist()[:3000]
    with pytest.raises(ValueError, match=r"rows\.parquet: not a readable parquet file of rows"):
        list(rows)


# --- annotations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start": "1.0"}, "line 1 (a.mp4): start: input should be a valid number, found '1.0'"),
        ({"end": True}, "line 1 (a.mp4): end: input should be a valid number, found True"),
        ({"clip": [0, "9"]}, "line 1 (a.mp4): clip[1]: input should be a valid number, found '9'"),
        ({"tube": {"first_frame": 0, "boxes": [[0, 1, 2, "x"]]}}, "line 1 (a.mp4): tube.boxes[0][3]: input should be"),
        ({"query": 3}, "line 1 (a.mp4): query: input should be a valid string, found 3"),
        ({"extra": {"note": [1]}}, "line 1 (a.mp4): extra.note"),
    ],
)
def test_fields_of_own_data_have_their_own_names(change, said, tmp_path):
    found = list(find("generic").read((written(tmp_path, LINE | change) / "train.jsonl",), "train"))
    assert isinstance(found[0], Problem) and f"{found[0].where}: {found[0].what}".startswith(said)
    line = {**LINE, "intervals": [[1, 2], [3, "4"]]}
    del line["start"], line["end"]
    (found,) = find("generic").read((written(tmp_path, line) / "train.jsonl",), "train")
    assert found.what.startswith("intervals[1][1]: ")


def test_a_set_says_what_its_own_file_calls_a_field():
    fields = {"key": "k", "video": "a.mp4", "query": "q"}
    names = {"intervals.0": "timestamps[4]", "query": "sentences[4]"}
    assert record("w", names, **fields, intervals=((1, "2"),)).what.startswith("timestamps[4][1]: ")
    assert record("w", names, **fields, intervals=((1, 2), (3, "x"))).what.startswith("intervals[1][1]: ")
    assert record("w", names, **{**fields, "query": 7}).what.startswith("sentences[4]: ")


def job(tmp_path, **more):
    return build.Job(find("generic"), tmp_path, tmp_path / "rows", **more)


def test_paths_that_do_not_exist_are_named(tmp_path, monkeypatch):
    written(tmp_path, LINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"clips: no such folder \(that is {tmp_path}/clips\); correct --videos"):
        build.build(job(tmp_path, videos=Path("clips")))
    (tmp_path / "clips").mkdir()
    with pytest.raises(AnnotationError, match=rf"a.mp4: no such video below clips \(that is {tmp_path}/clips\)"):
        build.build(job(tmp_path, videos=Path("clips")))
    with pytest.raises(ValueError, match="nothing: no such folder of track files; correct --tracks"):
        build.build(job(tmp_path, videos=tmp_path / "clips", tracks=tmp_path / "nothing"))
    with pytest.raises(AnnotationError, match="nothing.jsonl: no such file of targets; correct --targets"):
        build.build(job(tmp_path, targets=tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    ("change", "template", "policies", "said"),
    [
        (
            {},
            "videochat_r1_gqa",
            {},
            "needs options and an answer: 1); --template videotg_r1 or time_r1 asks for times",
        ),
        ({}, "stvg_boxes_seconds", {}, "needs a tube: 1); --template time_r1 asks for times only"),
        ({"start": 5.0, "end": 2.0}, None, {}, "(reversed interval: 1); --reversed-intervals swap turns them round"),
        ({"end": 12.0}, None, {"past_end": "drop"}, "; --past-end clip cuts them at the end"),
    ],
)
def test_a_build_that_leaves_no_row_has_a_hint(change, template, policies, said, tmp_path):
    written(tmp_path, LINE | change)
    chosen = {"template": TEMPLATES[template]} if template else {}
    with pytest.raises(AnnotationError) as caught:
        build.build(job(tmp_path, policies=Policies(**policies), **chosen))
    assert "no row is left" in str(caught.value) and said in str(caught.value)


def test_a_build_without_a_usable_video_names_the_first(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(b"no video")
    written(tmp_path, LINE)
    with pytest.raises(AnnotationError, match=r"no row is left \(unusable video: 1\); the first is a.mp4: .*not a"):
        build.build(job(tmp_path, videos=tmp_path / "clips"))


def test_intervals_past_the_end_are_said_when_rows_are_built(tmp_path):
    write_video(tmp_path / "clips/a.mp4", 5)
    line = {key: LINE[key] for key in ("video", "query", "start")}
    written(tmp_path, {**line, "end": 9.0}, {**line, "end": 5.5}, {**line, "end": 4.0})
    arguments = ["generic", "--annotations", str(tmp_path), "--videos", str(tmp_path / "clips"), "--out"]
    build.build(job(tmp_path, videos=tmp_path / "clips"))
    manifest = json.loads((tmp_path / "rows/manifest.json").read_text())
    first = "generic/train/a.mp4/0: the interval ends at 9.00 s and the video at 5.00 s"
    assert manifest["splits"]["train"]["past_end"] == {"rows": 1, "first": first}
    assert (
        "1 rows have an interval that ends over a second after the video" in (tmp_path / "rows/README.md").read_text()
    )
    done = CliRunner().invoke(build_app, [*arguments, str(tmp_path / "clipped"), "--past-end", "clip"])
    assert not done.exception, done.exception
    assert "past_end" not in json.loads((tmp_path / "clipped/manifest.json").read_text())["splits"]["train"]
