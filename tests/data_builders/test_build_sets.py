"""Every annotation set through the command line: built, checked, loaded and shown."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.data_builders.test_build import rows_of, run
from tests.support import set_fixtures
from verl_stvg.data_builders.check_rows import row_problems
from verl_stvg.data_builders.sets import NAMES, all_sets
from verl_stvg.rows.row import Row


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Fixture and folder of rows of a set, built when first asked for."""
    found: dict[str, tuple[set_fixtures.Fixture, Path]] = {}

    def of(name: str) -> tuple[set_fixtures.Fixture, Path]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            fixture, out = set_fixtures.write(name, folder), folder / "rows"
            assert run(*fixture.build(out))[0] == 0
            found[name] = fixture, out
        return found[name]

    return of


def parquets(fixture: set_fixtures.Fixture, out: Path) -> list[Path]:
    return [out / f"{split}.parquet" for split in fixture.layout.rows]


def fields_of(row: dict) -> dict:
    return {**row["extra_info"], **row["videos"][0], **row["reward_model"]["ground_truth"]}


def test_every_set_has_a_fixture_that_expects_something_of_each_split():
    assert sorted(set_fixtures.LAYOUTS) == sorted(NAMES)
    for name, make in set_fixtures.LAYOUTS.items():
        layout = make()
        assert {uid.partition("/")[0] for uid in layout.expected} == set(layout.rows), name
        assert set(layout.rows) == set(all_sets()[name].splits), name


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_drops(name, built):
    fixture, out = built(name)
    splits = json.loads((out / "manifest.json").read_text())["splits"]
    assert {split: part["rows"] for split, part in splits.items()} == fixture.layout.rows
    dropped = {split: part["dropped"] for split, part in splits.items() if part["dropped"]}
    assert dropped == fixture.layout.dropped
    assert [len(rows_of(file)) for file in parquets(fixture, out)] == list(fixture.layout.rows.values())


@pytest.mark.parametrize("name", NAMES)
def test_ground_truth_and_video_of_rows(name, built):
    fixture, out = built(name)
    rows = {row["extra_info"]["uid"]: row for file in parquets(fixture, out) for row in rows_of(file)}
    for uid, expected in fixture.layout.expected.items():
        found = fields_of(rows[f"{name}/{uid}"])
        assert {key: found[key] for key in expected} == expected, uid
    for row in rows.values():
        video, extra = row["videos"][0], row["extra_info"]
        assert (fixture.videos / video["video"]).is_file()
        assert (extra["width"], extra["height"]) == set_fixtures.SIZE and extra["visual_tokens"] > 0
        assert row["data_source"].endswith(f"/{name}")
        truth = row["reward_model"]["ground_truth"]
        assert [truth["start"], truth["end"]] == (truth["intervals"] or [[None, None]])[0]


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_what_the_fixture_holds_and_show_shows_it(name, built):
    fixture, out = built(name)
    files, report, page = parquets(fixture, out), out.parent / "findings.jsonl", out.parent / "rows.html"
    status, _ = run("check", *files, "--workers", 1, "--report", report)
    found = [json.loads(line) for line in report.read_text().splitlines()]
    assert Counter(one["problem"] for one in found) == fixture.layout.findings, found
    assert status == int(fixture.layout.serious) == int(any(one["serious"] for one in found))
    assert run("show", *files, "--out", page, "--findings", report)[0] == 0
    text, count = page.read_text(), sum(fixture.layout.rows.values())
    assert text.count("<article") == count and text.count("data:image/jpeg") == 8 * count


def test_rows_of_all_sets_make_one_data_set(built, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {}
    for name in NAMES:
        fixture, out = built(name)
        files[name] = str(out / f"{'train' if 'train' in fixture.layout.rows else 'test'}.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert len({str(one.features) for one in loaded.values()}) == 1
    together = datasets.concatenate_datasets(list(loaded.values()))
    assert together.num_rows == sum(one.num_rows for one in loaded.values())
    assert {row["dataset"] for row in together["extra_info"]} == set(NAMES)


@pytest.mark.parametrize("name", ["hc_stvg_v2", "mevis", "queryd", "temporal_r1", "vidstg"])
def test_built_elsewhere_the_bytes_are_the_same(name, built, tmp_path):
    _, out = built(name)
    again = set_fixtures.write(name, tmp_path)
    assert run(*again.build(tmp_path / "rows"))[0] == 0
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "rows").iterdir()}


def test_check_asks_for_no_time_before_the_start(built):
    """Published segments that begin at -0.1 s are answered from 0 on; an answer cannot name what is before."""
    _, out = built("nextgqa")
    [row] = [row for row in rows_of(out / "val.parquet") if row["extra_info"]["uid"] == "nextgqa/val/4152556613/0"]
    assert [(problem, serious) for problem, _, serious in row_problems(Row(row))] == [("before the start", False)]
    row["reward_model"]["ground_truth"].update(intervals=[[-0.1, 11.0], [5.0, 3.0]])
    assert [problem for problem, _, serious in row_problems(Row(row)) if serious]


def test_findings_are_shown_however_the_file_is_named(built, tmp_path, monkeypatch):
    _, out = built("charades_sta")
    report, page = tmp_path / "findings.jsonl", tmp_path / "rows.html"
    monkeypatch.chdir(out)
    run("check", "train.parquet", "--workers", 1, "--report", report)
    assert run("show", out / "train.parquet", "--out", page, "--findings", report)[0] == 0
    assert "not covered" in page.read_text()
    assert run("show", out / "test.parquet", "--out", page, "--findings", report)[0] == 0
    assert "not covered" not in page.read_text() and "0 rows with findings" in page.read_text()


def test_boxes_are_shown_within_their_picture(built, tmp_path):
    """Annotated boxes may overshoot the image, and would lie over the next picture."""
    _, out = built("hc_stvg_v1")
    assert run("show", out / "test.parquet", "--out", tmp_path / "rows.html")[0] == 0
    boxes = re.findall(r"left:(.+?)%;top:(.+?)%;width:(.+?)%;height:(.+?)%", (tmp_path / "rows.html").read_text())
    found = {tuple(map(float, box)) for box in boxes}  # of frames 31 and 93
    assert found == {(78.12, 20.83, 21.88, 62.5), (0.0, 10.42, 26.56, 62.5)}
