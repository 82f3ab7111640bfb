"""One bad row, file or video costs itself and nothing else: a short fuzz run, and the cases that it stands for."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from reward_fns import stvg_boxes
from tests.data_builders.test_build import run
from verl_stvg.data_builders import check, show
from verl_stvg.data_builders.row_schema import ROW_SCHEMA
from verl_stvg.data_builders.selection.folder import SelectionError, pool
from verl_stvg.eval.benchmarks.items import item_of, read_rows
from verl_stvg.eval.benchmarks.tubes import Tube
from verl_stvg.rows import cache_fill
from verl_stvg.rows.files import root_of
from verl_stvg.rows.row import entry_of
from verl_stvg.rows.shape import columns_are_sound, row_shape_problems
from verl_stvg.video.plan import MAX_TOKENS, plan_video
from verl_stvg.video.store import FrameStore

HUGE = 10**18


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("fuzz")
    fuzz.write_videos(found)
    return found


def write(path: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


# --- at random --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count"), [("rows", 6), ("files of rows", 60), ("track files", 150), ("prediction files", 150)]
)
def test_whatever_is_changed_is_read_or_refused(kind, count, folder):
    tally = fuzz.run(kind, range(count), folder)
    assert tally.crashes == {}
    assert {"read", "refused"} == {name.rpartition(" ")[2] for name in tally.outcomes}
    assert tally.found > 0 or kind != "rows"


def test_the_same_seed_makes_the_same_file():
    row = fuzz.good_row(0, "stvg_boxes")
    for same_type in (True, False):
        once, again = (repr(fuzz.changed(row, random.Random(3), same_type, 9)) for _ in range(2))
        assert once == again != repr(row)
    assert fuzz.damaged(b"x" * 99, random.Random(1)) == fuzz.damaged(b"x" * 99, random.Random(1))


def test_what_counts_as_a_crash(tmp_path):
    """An error of another kind, and one that says neither which file nor which row."""
    tally, path = fuzz.Tally(), tmp_path / "a.json"
    errors = (ValueError("a.json: cut off"), ValueError("row 3: no uid"), ValueError("nan"), KeyError("a.json"))
    for error in errors:
        tally.attempt("reader", 0, path, lambda error=error: (_ for _ in ()).throw(error).__next__())
    assert tally.outcomes == {"reader refused": 2, "reader crash": 2}
    assert sorted(tally.crashes)[0].startswith("reader: KeyError at test_fuzz.py:")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda within: st.lists(within, max_size=3) | st.dictionaries(st.text(max_size=5), within, max_size=3),
    max_leaves=10,
)


@given(row=JSON, key=st.sampled_from(["data_source", "prompt", "videos", "reward_model", "extra_info"]))
def test_the_shape_of_anything_can_be_asked(row, key):
    assert row_shape_problems(row)  # none of them is a row
    problems = row_shape_problems(fuzz.good_row(0, "time_r1") | {key: row})
    assert all(key in problem for problem in problems)


def test_good_rows_have_no_shape_problems():
    for recipe in fuzz.TYPICAL:
        assert row_shape_problems(fuzz.good_row(0, recipe)) == []


def seen_by_column(table: pa.Table) -> bool:
    batch = table.combine_chunks().to_batches()[0]
    fields = [batch.column("reward_model").field("ground_truth"), batch.column("extra_info")]
    named = [{kind.name: column.field(place) for place, kind in enumerate(column.type)} for column in fields]
    return columns_are_sound(batch.column("data_source"), *named)


@settings(max_examples=300)
@given(
    seeds=st.lists(st.integers(0, 2**31), max_size=3),
    recipes=st.lists(st.sampled_from(sorted(fuzz.TYPICAL)), min_size=1, max_size=3),
    same_type=st.booleans(),
)
def test_rows_that_are_sound_by_column_are_sound_one_by_one(seeds, recipes, same_type):
    rows = [fuzz.good_row(place, recipe) for place, recipe in enumerate(recipes)]
    for seed in seeds:
        rows[seed % len(rows)] = fuzz.changed(rows[seed % len(rows)], random.Random(seed), same_type, 9)
    try:
        table = pa.Table.from_pylist(rows, ROW_SCHEMA if same_type else None)
    except (pa.ArrowException, TypeError, OverflowError, AttributeError):
        return  # no parquet file has such rows
    if {"reward_model", "extra_info", "data_source"} - set(table.column_names):
        return
    if not all(pa.types.is_struct(table.schema.field(name).type) for name in ("reward_model", "extra_info")):
        return
    kind = table.schema.field("reward_model").type
    if kind.get_field_index("ground_truth") < 0 or not pa.types.is_struct(kind.field("ground_truth").type):
        return
    if seen_by_column(table):
        problems = [row_shape_problems({**row, "prompt": []}) for row in table.to_pylist()]
        assert not any(problems)
    else:
        assert seeds  # good rows are sound by column


# --- one bad row among good ones --------------------------------------------------------------------------------------


def truth(**values: object) -> Callable[[dict], None]:
    return lambda row: row["reward_model"]["ground_truth"].update(values)


def extra(**values: object) -> Callable[[dict], None]:
    return lambda row: row["extra_info"].update(values)


def video(**values: object) -> Callable[[dict], None]:
    return lambda row: row["videos"][0].update(values)


def column(**values: object) -> Callable[[dict], None]:
    return lambda row: row.update(values)


# the row's change, the kind of problem, what its detail says
BAD: dict[str, tuple[Callable[[dict], None], str, str]] = {
    "a time of 1e308": (truth(end=1e308), "row", "ground_truth.end: should be less"),
    "a time that is no number": (truth(start=float("nan")), "row", "ground_truth.start: should be"),
    "no second time": (truth(intervals=[[5.0, None]]), "row", "ground_truth.intervals.0.1: should be a number"),
    "no interval in a list": (truth(intervals=[None]), "row", "ground_truth.intervals.0: should be a list"),
    "no side of a box": (truth(boxes=[[1.0, None, 3.0, 4.0]]), "row", "ground_truth.boxes.0.1: should be a number"),
    "no truth": (column(reward_model=None), "no ground truth", "cannot be trained on"),
    "a start that is the end of the video": (truth(start=20.0, end=20.0, intervals=[[20.0, 20.0]]), "reward", ""),
    "no video": (column(videos=[]), "placeholders", "1 <video> for 0 videos"),
    "no videos": (column(videos=None), "placeholders", "1 <video> for 0 videos"),
    "a video without a name": (video(video=None), "video entry", "a video has no file name"),
    "a name that is too long": (video(video="a" * 5000), "video entry", "video must be a path that file systems know"),
    "a name that is no name": (video(tracks="\0"), "video entry", "tracks must be a path that file systems know"),
    "a budget of 1e18": (video(min_pixels=HUGE, max_pixels=HUGE), "frames", f"more than {MAX_TOKENS:,}"),
    "a negative budget": (video(max_pixels=-1), "video entry", "max_pixels must be a positive number"),
    "a billion frames a second": (video(fps=1e9), "frames", "over max_frames=768"),
    "a billion frames": (video(fps=1e9, max_frames=HUGE), "frames", f"more than {MAX_TOKENS:,}"),
    "no rate": (video(fps=float("nan")), "video entry", "fps must be a positive number"),
    "a part far away": (video(video_start=1e17), "frames", "is empty or outside of the video"),
    "no prompt": (column(prompt=None), "row", "prompt: should be a list"),
    "no text in the prompt": (column(prompt=[{"role": "user", "content": None}]), "row", "prompt.0.content: should be"),
    "nothing known": (column(extra_info=None), "row", "extra_info: should be an object"),
    "a uid of a book": (extra(uid="u" * 10_000), "row", "extra_info.uid: should have at most"),
    "notes that are no JSON": (extra(annotated="{"), "row", "extra_info.annotated: "),
    "notes with endless numbers": (extra(annotated='{"width": 1e999}'), "row", "extra_info.annotated: width should be"),
    "no frames": (extra(num_frames=0), "row", "extra_info.num_frames: should be greater"),
}


@pytest.fixture(scope="module")
def looked_at(folder) -> tuple[Path, list[str], list[check.Finding]]:
    """A file with a good row before and after each bad one, the names of its rows, and what is found in it."""
    rows = []
    for name, (change, *_) in BAD.items():
        good, bad = (fuzz.good_row(len(rows) + k, "stvg_r1") for k in range(2))
        change(bad)
        rows += [(good, "good"), (bad, name)]
    file = write(folder / "bad.parquet", *(row for row, _ in rows))
    findings, counts = check.check([file], folder)
    assert counts.rows == len(rows)
    return file, [name for _, name in rows], findings


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_row_is_a_finding(name, looked_at):
    _, problem, said = BAD[name]
    _, names, findings = looked_at
    found = [finding for finding in findings if names[finding.row] == name and finding.serious]
    assert any(finding.problem == problem and said in finding.detail for finding in found), found


def test_good_rows_among_bad_ones_are_good(looked_at):
    _, names, findings = looked_at
    assert [finding for finding in findings if names[finding.row] == "good" and finding.serious] == []


def test_bad_rows_are_shown(looked_at):
    file, names, _ = looked_at
    page = file.with_suffix(".html")
    assert show.write([file], page, limit=len(names)) == len(names)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") >= 8 * names.count("good")
    assert "row: prompt: should be a list" in text and "video: the row names none that can be shown" in text


def test_bad_rows_fail_and_the_cache_is_filled_with_the_others(looked_at, tmp_path):
    file, names, _ = looked_at
    jobs = cache_fill.read_jobs([file])
    outcomes = cache_fill.build_chunk(jobs, FrameStore(str(tmp_path / "frames")))
    assert {outcome.state for outcome in outcomes} >= {"built", "failed"}
    refused = [outcome.reason for outcome in outcomes if outcome.job.refused]
    said = f"{file}: row {names.index('a negative budget')}: max_pixels must be a positive number"
    assert len([reason for reason in refused if reason.startswith(said)]) == 1
    quarantine = cache_fill.note_failures(tmp_path, outcomes)
    listed = [json.loads(line)["path"] for line in quarantine.read_text(encoding="utf-8").splitlines()]
    assert listed and all(Path(path).is_absolute() for path in listed)


@pytest.mark.parametrize("name", [name for name, (_, problem, _) in BAD.items() if problem == "row"])
def test_a_bad_row_is_not_sound_by_column(name):
    bad = fuzz.good_row(0, "stvg_boxes")
    BAD[name][0](bad)
    table = pa.Table.from_pylist([bad, fuzz.good_row(1, "stvg_boxes")])
    assert not seen_by_column(table) or not row_shape_problems(table.to_pylist()[0] | {"prompt": []})


@pytest.mark.parametrize("name", [name for name, (_, problem, _) in BAD.items() if problem == "row"])
def test_readers_that_need_every_row_name_the_bad_one(name, folder):
    bad = fuzz.good_row(1, "stvg_r1")
    BAD[name][0](bad)
    file = write(folder / "one.parquet", fuzz.good_row(0, "stvg_r1"), bad)
    with pytest.raises(SelectionError, match=f"{file}: row 1: "):
        list(pool([file]).rows())
    if name == "nothing known":  # but by its ground truth, which has uid and duration
        assert [item_of(row).uid for row in read_rows([file])] == ["fuzz/train/0", "fuzz/train/1"]
    elif not name.endswith("prompt"):  # which is not scored
        with pytest.raises(ValueError, match=f"{file}: row 1: |row 'fuzz/train/1' has no uid"):
            [item_of(row) for row in read_rows([file])]


def test_boxes_of_another_kind_are_scored_as_they_are(folder):
    """Files of other programs hold double precision; theirs are not read as if they were ours."""
    row = fuzz.good_row(0, "stvg_boxes")
    file = write(folder / "double.parquet", row)
    [item] = [item_of(found, Tube) for found in read_rows([file])]
    assert item.boxes.tolist() == row["reward_model"]["ground_truth"]["boxes"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_that_are_no_rows_are_named(tmp_path):
    good = write(tmp_path / "good.parquet", fuzz.good_row(0, "time_r1")).read_bytes()
    for name, data in {"text": b"uid,start\n", "empty": b"", "cut": good[: len(good) // 2]}.items():
        file = tmp_path / f"{name}.parquet"
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"{file}: not a readable parquet file of rows"):
            check.check([file])


def test_findings_that_are_none_are_named(folder, tmp_path):
    file = write(folder / "named.parquet", fuzz.good_row(0, "time_r1"))
    for text in ("{", "[]\n", '{"file": "a"}\n'):
        (tmp_path / "findings.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="findings.jsonl: line 1"):
            show.write([file], tmp_path / "page.html", findings=tmp_path / "findings.jsonl")


def test_a_manifest_that_is_none_is_named(tmp_path):
    file = write(tmp_path / "rows.parquet", fuzz.good_row(0, "time_r1"))
    for text in ("{", '{"video_root": 3}'):
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="manifest.json: "):
            root_of(file)
    (tmp_path / "manifest.json").write_text('{"video_root": "videos"}', encoding="utf-8")
    assert root_of(file) == tmp_path / "videos"


# --- videos that are not there ----------------------------------------------------------------------------------------


def test_videos_that_are_not_there_are_said_once(folder, tmp_path, caplog):
    file = write(tmp_path / "rows.parquet", *(fuzz.good_row(k, "time_r1") for k in range(40)))
    for root in (tmp_path / "nowhere", tmp_path):
        [found] = check.check([file], root)[0]
        assert (found.row, found.problem, found.serious) == (None, "videos", True)
        assert f"none of the 2 videos of these rows is there, such as {root}/a.mp4" in found.detail
        assert "--no-videos" in found.detail and str(found).startswith(f"{file}: videos: ")
    check.write([found], tmp_path / "findings.jsonl")
    assert show.write([file], tmp_path / "page.html", folder, 2, tmp_path / "findings.jsonl") == 2
    assert "none of the 2 videos" in caplog.text
    findings, counts = check.check([file], folder)
    assert findings == [] and (counts.rows, counts.videos) == (40, 2)


def test_one_video_of_several_that_is_not_there_is_its_rows_problem(folder, tmp_path):
    (tmp_path / "a.mp4").symlink_to(folder / "a.mp4")
    file = write(tmp_path / "rows.parquet", *(fuzz.good_row(k, "time_r1") for k in range(4)))
    assert [(found.row, found.problem) for found in check.check([file])[0]] == [(1, "video"), (3, "video")]


def test_rows_are_checked_without_videos(folder, tmp_path):
    good, bad = fuzz.good_row(0, "time_r1"), fuzz.good_row(1, "time_r1")
    assert run("check", write(tmp_path / "good.parquet", good), "--no-videos")[0] == 0
    bad["prompt"] = []
    findings, counts = check.check([write(tmp_path / "bad.parquet", good, bad)], videos=False)
    assert [(found.row, found.problem) for found in findings] == [(1, "placeholders")]
    assert (counts.rows, counts.videos) == (2, 0)
    assert run("check", tmp_path / "bad.parquet", "--no-videos")[0] == 1


# --- what a row may ask for -------------------------------------------------------------------------------------------


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rule": st.sampled_from(["grid", "qwen_vl_utils"]),
            "fps": st.floats(1e-300, HUGE),
            **{
                key: st.integers(1, HUGE) | st.floats(1e-300, HUGE)
                for key in ("max_frames", "min_frames", "min_pixels", "max_pixels", "total_pixels")
            },
            **{key: st.floats(-HUGE, HUGE) for key in ("video_start", "video_end")},
        },
    )
)
def test_any_plan_is_bounded_or_refused(options):
    entry = entry_of({"video": "a.mp4", **options}) if options.get("video_start") != 0 else options
    chosen = {key: value for key, value in entry.items() if key != "video"}
    try:
        plan = plan_video(240, 12.0, 64, 48, **chosen)
    except ValueError:
        return
    assert 0 < plan.num_tokens <= MAX_TOKENS


def test_numbers_with_which_arithmetic_ends_are_refused():
    for value in (1e19, 10**400, -1e300):
        with pytest.raises(ValueError, match="video_end must be of a size up to 1e[+]18"):
            entry_of({"video": "a.mp4", "video_end": value})


def test_the_best_answer_to_an_endless_time_ends():
    row = {**fuzz.TYPICAL["stvg_boxes_seconds"][0], "end": 1e12}
    assert len(stvg_boxes.boxes_by_second(row)) <= 86_401
