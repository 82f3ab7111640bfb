"""From annotation files to rows, findings and a page: the command line on small sets in the published layouts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reward_fns import RECIPES
from reward_fns.registry import find_recipe
from verl_stvg.cli.app import app
from verl_stvg.data_builders import build, check, check_pairs, check_videos, make_row, templates
from verl_stvg.data_builders.job import SPLITS
from verl_stvg.data_builders.records import Record
from verl_stvg.data_builders.sets import NAMES, all_sets
from verl_stvg.data_builders.videos import UnknownVideo, VideoRoot
from verl_stvg.rows.row import plan_of
from verl_stvg.video.decode import probe

LINES = """\
AO8RW 0.0 6.9##a person is putting a book on a shelf.
AO8RW 2.5 4.0##Person opens the door.
Y6R7T 6.0 11.4##a person washes a cup in the sink.
Y6R7T 7.0 3.0##a person closes the window.
Y6R7T 9.0 9.0##a person smiles.
3MSZA 1.0 5.0##person turns a light on.
"""


def write_video(path: Path, seconds: float = 10, seed: int = 0, size: tuple[int, int] = (112, 84)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(round(10 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, k, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("AO8RW.mp4", "Y6R7T.mp4", "more/3MSZA.mkv")):
        write_video(root / name, 10, seed)
    return root


@pytest.fixture
def annotations(tmp_path) -> Path:
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "charades_sta_train.txt").write_text(LINES)
    (folder / "charades_sta_test.txt").write_text(LINES.replace("a person is", "somebody is"))
    return folder


def run(*arguments: object):
    """Exit status, what was logged, and the error, of a command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):  # what `main` makes of it
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_charades_from_text_to_rows(annotations, videos, tmp_path):
    out = tmp_path / "out"
    assert run("build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "manifest.json",
        "test.parquet",
        "train.parquet",
    ]
    rows = rows_of(out / "train.parquet")
    assert [r["extra_info"]["uid"] for r in rows] == [
        "charades_sta/train/AO8RW/0",
        "charades_sta/train/AO8RW/1",
        "charades_sta/train/Y6R7T/0",
        "charades_sta/train/3MSZA/0",
    ]
    first, last = rows[0], rows[-1]
    assert first["data_source"] == "time_r1/charades_sta"
    [turn] = first["prompt"]
    assert '"a person is putting a book on a shelf"' in turn["content"] and turn["content"].endswith("<video>")
    truth = {key: value for key, value in first["reward_model"]["ground_truth"].items() if value is not None}
    assert truth == {
        "uid": "charades_sta/train/AO8RW/0",
        "start": 0.0,
        "end": 6.9,
        "duration": 10.0,
        "intervals": [[0.0, 6.9]],
    }
    assert last["videos"][0]["video"] == "more/3MSZA.mkv" and first["videos"][0]["total_pixels"] == 3584 * 784
    extra = first["extra_info"]
    assert (extra["num_frames"], extra["source_fps"], extra["width"], extra["height"]) == (100, 10.0, 112, 84)
    plan = plan_of(first["videos"][0], probe(videos / "AO8RW.mp4"))
    assert extra["visual_tokens"] == plan.num_tokens and len(extra["content"]) == 32
    assert extra["sentence"] == "a person is putting a book on a shelf." and extra["query"] == extra["sentence"][:-1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["splits"]["train"]["dropped"] == {"empty interval": 1, "reversed interval": 1}
    assert (out / manifest["video_root"]).resolve() == videos
    assert "| train | 4 | 3 | empty interval: 1; reversed interval: 1 |" in (out / "README.md").read_text()


def test_evaluation_is_never_altered(annotations, videos, tmp_path):
    out = tmp_path / "out"
    options = ["--past-end", "clip", "--reversed-intervals", "swap", "--empty-intervals", "drop"]
    assert (
        run("build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out, *options)[0] == 0
    )
    found = [r["reward_model"]["ground_truth"]["intervals"] for r in rows_of(out / "test.parquet")]
    assert found == [[[0.0, 6.9]], [[2.5, 4.0]], [[6.0, 11.4]], [[7.0, 3.0]], [[9.0, 9.0]], [[1.0, 5.0]]]
    trained = [r["reward_model"]["ground_truth"]["intervals"] for r in rows_of(out / "train.parquet")]
    assert trained == [[[0.0, 6.9]], [[2.5, 4.0]], [[6.0, 10.0]], [[3.0, 7.0]], [[1.0, 5.0]]]


def test_same_input_same_bytes(annotations, videos, tmp_path):
    """Whatever the worker count, the order of files on disk, the locale and the time."""
    hashes = set()
    for name, workers, language in (("one", 1, "C.UTF-8"), ("two", 2, "C")):
        out = tmp_path / name / "rows"
        out.parent.mkdir()
        command = [sys.executable, "-m", "verl_stvg.cli.app", "build", "charades_sta", "--annotations", annotations]
        command += ["--videos", videos, "--out", out, "--workers", workers]
        environment = {**os.environ, "LC_ALL": language, "PYTHONHASHSEED": str(workers)}
        subprocess.run([str(part) for part in command], check=True, env=environment, capture_output=True)
        hashes.add(tuple((file.name, file.read_bytes()) for file in sorted(out.iterdir())))
    assert len(hashes) == 1


def test_a_complete_folder_is_kept_and_another_is_not_touched(annotations, videos, tmp_path):
    out = tmp_path / "out"
    command = ["build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out]
    assert run(*command)[0] == 0
    stamp = (out / "train.parquet").stat().st_mtime_ns
    assert run(*command)[0] == 0 and (out / "train.parquet").stat().st_mtime_ns == stamp
    status, said = run(*command, "--template", "videotg_r1")
    assert status == 2 and "was built from something else (template" in said
    (out / "train.parquet").write_bytes(b"PAR1")
    assert run(*command)[0] == 2


def test_an_interrupted_build_goes_on(annotations, videos, tmp_path, monkeypatch):
    out, looked = tmp_path / "out", []
    source = all_sets()["charades_sta"]
    job = build.Job(source, annotations, out, videos, ("train",))
    monkeypatch.setattr(build, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build.build(job)
    assert not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr("verl_stvg.data_builders.videos.hash_file", lambda path: looked.append(path))
    build.build(job)
    assert looked == [] and len(rows_of(out / "train.parquet")) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_videos_nothing_is_looked_into(tmp_path):
    (tmp_path / "durations.json").write_text(json.dumps({"AO8RW": 31.5, "Y6R7T": 30.0, "3MSZA": 20.0}))
    (tmp_path / "train.txt").write_text(LINES)
    out = tmp_path / "out"
    assert (
        run("build", "charades_sta", "--annotations", tmp_path / "train.txt", "--split", "train", "--out", out)[0] == 0
    )
    first = rows_of(out / "train.parquet")[0]
    assert first["videos"][0]["video"] == "AO8RW.mp4" and first["extra_info"]["num_frames"] is None
    assert first["reward_model"]["ground_truth"]["duration"] == 31.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINES + "AO8RW 0.0##half a line\n" * 7, "7 entries of charades_sta cannot be used"),
        (LINES.replace("3MSZA", "../secret"), "points outside of the video root"),
        (LINES.replace("3MSZA", "/etc/passwd"), "points outside of the video root"),
        (LINES.replace("3MSZA", "NOONE"), "NOONE: no such video"),
        (LINES.replace(" 6.9", " nan"), "end: input should be a finite number"),
        ("", "charades_sta_train.txt: no entries"),
    ],
)
def test_bad_lines_are_one_error_and_nothing_is_written(content, said, annotations, videos, tmp_path):
    (annotations / "charades_sta_train.txt").write_text(content)
    out = tmp_path / "out"
    status, message = run("build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out)
    assert status == 2 and said in message and "charades_sta" in message and not out.exists()
    if "7 entries" in said:
        assert "charades_sta_train.txt: line 7: " in message and "and 2 more" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"v_1": {"duration": 10.0, "timestamps": [[0, 1]], "sentences": ["a"', "train.json: not valid JSON"),
        (b'{"v_1": {"duration": 10.0}, "v_1": {}}', "key 'v_1' occurs twice"),
        (b'["v_1"]', "holds no JSON an object"),
        ('{"v_1": {"duration": 1.0, "sentences": ["caf\u00e9"]}}'.encode("latin-1"), "train.json: not valid JSON"),
        (b'{"v_1": {"duration": 10.0, "timestamps": [[0, 1]]}}', "sentences: missing"),
        (
            b'{"v_1": {"duration": "x", "timestamps": [[0, 1]], "sentences": ["a"]}}',
            "duration: input should be a valid",
        ),
    ],
)
def test_broken_json_is_one_error(content, said, tmp_path):
    (tmp_path / "train.json").write_bytes(content)
    status, message = run("build", "activitynet", "--annotations", tmp_path, "--out", tmp_path / "out")
    assert status == 2 and said in message and not (tmp_path / "out").exists()


def test_bad_entries_can_be_dropped_and_counted(annotations, videos, tmp_path):
    (annotations / "charades_sta_train.txt").write_text(LINES + "half a line\nNOONE 1.0 2.0##who\n")
    out = tmp_path / "out"
    command = ["build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out]
    assert run(*command, "--bad-entries", "drop")[0] == 0
    dropped = json.loads((out / "manifest.json").read_text())["splits"]["train"]["dropped"]
    assert dropped == {"empty interval": 1, "malformed entry": 1, "reversed interval": 1, "unknown video": 1}


def test_an_unusable_video_is_left_out_and_named(annotations, tmp_path):
    root = tmp_path / "clips"
    for name in ("AO8RW", "3MSZA"):
        write_video(root / f"{name}.mp4")
    (root / "Y6R7T.mp4").write_bytes(b"<html>")
    out = tmp_path / "out"
    assert run("build", "charades_sta", "--annotations", annotations, "--videos", root, "--out", out)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["splits"]["train"]["dropped"] == {"unusable video": 3}
    assert list(manifest["unusable_videos"]) == ["Y6R7T.mp4"] and "Y6R7T.mp4" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "val"], "charades_sta has no split val; it has train, test"),
        (["--template", "time"], "'time' is not one of 'stvg_r1', "),
        (["--template", "stvg_r1"], "asks for the ID of an object, which annotations do not have; give --targets"),
        (["--past-end", "cut"], "'cut' is not one of 'keep', 'clip', 'drop'"),
        (["--rule", "fps"], "'fps' is not one of 'grid', "),
        (["--duration-from", "file"], "duration_from=file needs the files"),
        (["--videos", "nowhere"], "nowhere: no such folder (that is "),
    ],
)
def test_arguments_that_do_not_fit(arguments, said, annotations, tmp_path):
    command = ["build", "charades_sta", "--annotations", annotations, "--out", tmp_path / "out"]
    status, message = run(*command, *arguments)
    assert status == 2 and said in message


def test_values_that_do_not_fit(annotations, tmp_path):
    with pytest.raises(ValueError, match="no template 'time'; choose one of"):
        templates.find("time")
    for more, said in (
        ({"policies": make_row.Policies(past_end="cut")}, "past_end='cut' is unknown; choose one of keep, clip, drop"),
        ({"rule": "fps"}, "rule='fps' is unknown"),
    ):
        with pytest.raises(ValueError, match=said):
            build.build(build.Job(all_sets()["charades_sta"], annotations, tmp_path / "out", **more))


# --- videos and rows --------------------------------------------------------------------------------------------------


def test_videos_are_found_by_their_whole_stem(tmp_path):
    for name in ("10_abc.mkv", "1_abc.mp4", "a/x.mp4", "b/x.webm", "v_1.2.mp4", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    root = VideoRoot(tmp_path)
    assert root.find("1_abc.mkv") == "1_abc.mp4" and root.find("10_abc") == "10_abc.mkv"
    assert root.find("v_1.2") == "v_1.2.mp4" and root.find("a/x") == "a/x.mp4"
    for name, said in (("x", "2 files have that name"), ("abc", "no such video"), ("../a/x.mp4", "outside")):
        with pytest.raises(UnknownVideo, match=said):
            root.find(name)


def record(**fields) -> Record:
    given = {"where": "entry 0", "key": "k", "video": "v.mp4", "query": "Somebody waves.", "duration": 10.0}
    return Record(**given | {"intervals": ((1.0, 3.0),)} | fields)


def maker(template: str = "time_r1", split: str = "train", **fields) -> make_row.RowMaker:
    return make_row.RowMaker("set", split, templates.find(template), **fields)


def spans(found: list[dict]) -> list:
    return [one["reward_model"]["ground_truth"]["intervals"] for one in found]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("drop", None),
        ("split", [[[1.0, 3.0]], [[5.0, 6.0]]]),
        ("first", [[[1.0, 3.0]]]),
        ("hull", [[[1.0, 6.0]]]),
    ],
)
def test_several_intervals(policy, expected):
    one = record(intervals=((1.0, 3.0), (5.0, 6.0)))
    here = maker(policies=make_row.Policies(several_intervals=policy))
    if expected is None:
        with pytest.raises(make_row.Drop, match="several intervals"):
            here.rows(one, make_row.Video("v.mp4"))
    else:
        found = here.rows(one, make_row.Video("v.mp4"))
        assert spans(found) == expected
        assert len({r["extra_info"]["uid"] for r in found}) == len(found)
    for other in (maker(split="test"), maker("videochat_r1_gqa")):
        whole = record(intervals=one.intervals, options=("yes", "no"), answer="B")
        assert spans(other.rows(whole, make_row.Video("v.mp4"))) == [[[1.0, 3.0], [5.0, 6.0]]]


def test_rows_that_cannot_be_scored_may_be_left_out_of_evaluation():
    policies = make_row.Policies(unusable_truth="drop")
    here, asked = maker(split="test", policies=policies), maker("stvg_r1", "val", policies=policies)
    assert spans(here.rows(record(), make_row.Video("v.mp4"))) == [[[1.0, 3.0]]]
    for one, made, reason in (
        (record(intervals=()), here, "no ground truth"),
        (record(intervals=((3.0, 1.0),)), here, "reversed interval"),
        (record(), asked, "no target ID"),
    ):
        with pytest.raises(make_row.Drop, match=reason):
            made.rows(one, make_row.Video("v.mp4"))
        kept = make_row.RowMaker("set", made.split, made.template)
        assert len(kept.rows(one, make_row.Video("v.mp4"))) == 1


def test_units_other_than_seconds():
    facts = make_row.Facts(100, 25.0, 64, 48, "0" * 32)
    frames = record(unit="frames", intervals=((25, 50),), duration=None)
    assert spans(maker().rows(frames, make_row.Video("v.mp4", facts))) == [[[1.0, 2.0]]]
    with pytest.raises(make_row.Drop, match="duration unknown"):
        maker().rows(frames, make_row.Video("v.mp4"))
    part = record(unit="frames", intervals=((25, 50),), clip=(50, 90), duration=None)
    [found] = maker().rows(part, make_row.Video("v.mp4", facts))
    entry = found["videos"][0]
    assert spans([found]) == [[[1.0, 2.0]]] and (entry["video_start"], entry["video_end"]) == (2.0, 3.6)
    fractions = record(unit="fractions", intervals=((0.25, 0.5),), duration=None)
    assert spans(maker().rows(fractions, make_row.Video("v.mp4", facts))) == [[[1.0, 2.0]]]


def test_a_part_of_a_video_has_its_own_clock():
    facts = make_row.Facts(1000, 25.0, 64, 48, "0" * 32)
    [found] = maker().rows(record(clip=(10.0, 30.0), duration=None), make_row.Video("v.mp4", facts))
    entry = found["videos"][0]
    assert (entry["video_start"], entry["video_end"]) == (10.0, 30.0)
    assert found["reward_model"]["ground_truth"]["duration"] == 20.0
    assert found["extra_info"]["visual_tokens"] == plan_of(entry, facts.info).num_tokens
    assert plan_of(entry, facts.info).num_frames == 40


def test_targets_and_tubes():
    tube = {"first_frame": 3, "boxes": ((0.0, 0.0, 10.0, 20.0), (1.0, 0.0, 11.0, 20.0))}
    with_tube = record(tube=tube)
    [found] = maker("stvg_r1", targets={"set/train/k": {"object_id": 4, "visible": [[0.0, 2.0]]}}).rows(
        with_tube, make_row.Video("v.mp4")
    )
    truth = found["reward_model"]["ground_truth"]
    assert (
        truth["object_id"] == 4
        and truth["visible"] == [[0.0, 2.0]]
        and "boxes" not in truth
        and found["data_source"] == "stvg_r1/set"
    )
    with pytest.raises(make_row.Drop, match="no target ID"):
        maker("stvg_r1").rows(with_tube, make_row.Video("v.mp4"))
    with pytest.raises(make_row.Drop, match="give --videos"):
        maker("stvg_boxes").rows(with_tube, make_row.Video("v.mp4"))
    seen = make_row.Video("v.mp4", make_row.Facts(300, 24.0, 64, 48, "0" * 32))
    [found] = maker("stvg_boxes").rows(with_tube, seen)
    truth = found["reward_model"]["ground_truth"]
    assert (truth["first_frame"], truth["boxes"]) == (3, [[0.0, 0.0, 10.0, 20.0], [1.0, 0.0, 11.0, 20.0]])
    with pytest.raises(make_row.Drop, match="needs a tube"):
        maker("stvg_boxes").rows(record(), make_row.Video("v.mp4"))


def test_several_targets():
    known = {"set/train/k": {"object_ids": [4, 7]}}
    [found] = maker("stvg_r1_multi", targets=known).rows(record(), make_row.Video("v.mp4"))
    assert found["reward_model"]["ground_truth"]["object_ids"] == [4, 7]
    with pytest.raises(make_row.Drop, match="no target ID"):
        maker("stvg_r1_multi").rows(record(), make_row.Video("v.mp4"))


def test_rows_name_the_track_file_of_their_video(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/v.tracks.json.gz").touch()
    here = maker("time_r1", tracks=(tmp_path, "../tracks"), marker_style="centred")
    [found] = here.rows(record(), make_row.Video("a/v.mkv"))
    assert found["videos"][0]["tracks"] == "../tracks/a/v.tracks.json.gz"
    assert found["videos"][0]["marker_style"] == "centred"
    with pytest.raises(make_row.Drop, match="no track file"):
        here.rows(record(), make_row.Video("b/v.mkv"))
    (tmp_path / "a/v.mkv.tracks.json.gz").touch()
    [found] = here.rows(record(), make_row.Video("a/v.mkv"))
    assert found["videos"][0]["tracks"] == "../tracks/a/v.mkv.tracks.json.gz"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"uid": "a"}', "line 1 lacks uid"),
        ('{"uid": "a", "object_id": -1}', "line 1 lacks uid"),
        ('{"uid": "a", "object_ids": []}', "line 1 lacks uid"),
        ('{"uid": "a", "object_id": 1}\n{"uid": "a", "object_id": 2}', "line 2: a has two targets"),
    ],
)
def test_targets_that_cannot_be_right(line, said, annotations, videos, tmp_path):
    (tmp_path / "targets.jsonl").write_text(line + "\n")
    command = ["build", "charades_sta", "--annotations", annotations, "--videos", videos, "--template", "stvg_r1"]
    status, message = run(*command, "--targets", tmp_path / "targets.jsonl", "--out", tmp_path / "out")
    assert status == 2 and said in message


def test_grid_rate_keeps_whole_seconds_per_unit():
    assert [make_row.grid_rate(seconds) for seconds in (10, 384, 385, 768, 769, 1200)] == [2, 2, 1, 1, 2 / 3, 0.5]
    [found] = maker(rule="grid").rows(record(duration=900.0), make_row.Video("v.mp4"))
    assert found["videos"][0]["fps"] == 2 / 3


@pytest.mark.parametrize("name", sorted(templates.TEMPLATES))
def test_every_template_has_a_reward_that_reads_its_answer(name):
    template = templates.find(name)
    assert template.recipe in RECIPES
    text = "".join(turn["content"] for turn in template.messages("who {query} waves", ("yes", "no")))
    assert text.count("<video>") == 1 and "who {query} waves" in text and "{options}" not in text
    if template.needs == "options":
        assert "(A) yes; (B) no" in text


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_perfect_answer_earns_everything(name):
    truth = {"object_id": 2, "object_ids": [2, 5], "start": 1.25, "end": 3.5, "duration": 10.0, "visible": [[0, 10]]}
    truth |= {"intervals": [[1.25, 3.5], [5.0, 6.0]], "option": "B", "answer": "B"}
    truth |= {"first_frame": 10, "boxes": [[1.0, 2.0, 30.0, 40.0], [1.0, 2.0, 31.0, 40.0]], "picture": [64, 48]}
    recipe = find_recipe(recipe=name)
    recipe.check(truth)
    best = sum(weight for _, weight in recipe.parts.values())
    assert recipe.score(templates.perfect_answer(name, truth), truth)["score"] == pytest.approx(best, abs=1e-5)


def test_names_of_sets_are_those_of_their_modules():
    assert list(all_sets()) == list(NAMES) == sorted(NAMES)
    for name, source in all_sets().items():
        assert source.name == name and source.template in templates.TEMPLATES
        assert set(source.splits) <= set(SPLITS) and source.title and source.home


def test_the_documentation_knows_every_set_template_and_policy():
    text = (Path(__file__).parent.parent.parent / "docs/data.md").read_text()
    for name in (*NAMES, *templates.TEMPLATES):
        assert f"| `{name}` |" in text, name
    for policy in make_row.CHOICES:
        assert f"--{policy.replace('_', '-')}" in text, policy


def test_rows_load_with_datasets(annotations, videos, tmp_path):
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    assert run("build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out)[0] == 0
    files = {split: str(out / f"{split}.parquet") for split in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 4 and loaded["test"][0]["extra_info"]["split"] == "test"
    assert loaded["train"].features == loaded["test"].features


# --- check and show ---------------------------------------------------------------------------------------------------


def test_check_says_what_is_wrong(annotations, videos, tmp_path):
    (annotations / "charades_sta_train.txt").write_text(
        "AO8RW 0.0 6.9##one.\nAO8RW 0.0 6.9##One\nAO8RW 1.0 2.0##one\n3MSZA 8.0 14.0##too late\n3MSZA 1.0 2.0##fine\n"
    )
    (annotations / "charades_sta_test.txt").write_text("Y6R7T 1.0 2.0##fine\n")
    root = tmp_path / "clips"
    for file in ("AO8RW.mp4", "Y6R7T.mp4", "more/3MSZA.mkv"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes((videos / file).read_bytes())
    out = tmp_path / "out"
    assert run("build", "charades_sta", "--annotations", annotations, "--videos", root, "--out", out)[0] == 0
    files = [out / "train.parquet", out / "test.parquet"]
    findings, counts = check.check(files)
    assert (counts.rows, counts.videos) == (6, 3)
    assert [(f.row, f.problem, f.serious) for f in findings] == [
        (1, "duplicate", False),
        (2, "same query, another truth", False),
        (3, "past the stated end", False),
        (3, "not covered", True),
    ]
    (root / "Y6R7T.mp4").write_bytes((root / "AO8RW.mp4").read_bytes())  # an evaluation video under another name
    (root / "more/3MSZA.mkv").write_bytes(b"<html>")
    report = tmp_path / "findings.jsonl"
    assert run("check", *files, "--report", report)[0] == 1
    found = [json.loads(line) for line in report.read_text().splitlines()]
    kinds = [(f["row"], f["problem"]) for f in found]
    assert [(row_, "evaluation video in training") in kinds for row_ in (0, 1, 2, 3)] == [True, True, True, False]
    assert (3, "video") in kinds and (4, "video") in kinds


def test_check_passes_good_rows(videos, tmp_path):
    (tmp_path / "train.txt").write_text("AO8RW 0.0 6.9##one.\n3MSZA 1.0 2.0##two\n")
    out = tmp_path / "out"
    command = ["build", "charades_sta", "--annotations", tmp_path / "train.txt", "--split", "train"]
    assert run(*command, "--videos", videos, "--out", out)[0] == 0
    assert run("check", out / "train.parquet", "--workers", 2)[0] == 0
    assert run("check", tmp_path / "none.parquet") == (
        2,
        f"{tmp_path / 'none.parquet'}: no such file; build the rows first, or correct the path",
    )


def test_check_names_a_ground_truth_that_earns_nothing(videos, annotations, tmp_path):
    out = tmp_path / "out"
    command = ["build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out]
    assert run(*command, "--reversed-intervals", "keep", "--template", "videotg_r1_nothink")[0] == 0
    findings, _ = check.check([out / "train.parquet"], decode=False)
    assert [(f.row, f.problem) for f in findings] == [(3, "ground truth")]
    assert "'end' is 3.0, before 'start' 7.0" in findings[0].detail


def test_leaks_are_seen_by_the_youtube_id():
    marks = [
        {kind: value for kind, value in check_pairs._marks(seen, {})}
        for seen in (named("1_dQw4w9WgXcQ.mp4"), named("v_dQw4w9WgXcQ.mp4"), named("3MSZA.mp4"))
    ]
    assert [found["name"] for found in marks] == ["1_dQw4w9WgXcQ", "v_dQw4w9WgXcQ", "3MSZA"]
    assert [found.get("YouTube id") for found in marks] == ["dQw4w9WgXcQ", "dQw4w9WgXcQ", None]


def named(video: str) -> check_videos.Seen:
    return check_videos.Seen(0, 0, "", f"/videos/{video}", Path(video).stem, b"", b"", False, None, ())


def test_the_page_shows_rows_with_frames_intervals_and_findings(annotations, videos, tmp_path):
    out, page, report = tmp_path / "out", tmp_path / "rows.html", tmp_path / "findings.jsonl"
    run("build", "charades_sta", "--annotations", annotations, "--videos", videos, "--out", out)
    files = [out / "train.parquet", out / "test.parquet"]
    run("check", *files, "--report", report)
    assert run("show", *files, "--out", page, "--findings", report)[0] == 0
    text = page.read_text()
    assert text.count("<article") == 10 and text.count("data:image/jpeg") == 80
    assert text.count('class="frame inside"') > 10 and "0.00 to 6.90 s" in text
    assert "evaluation video in training" in text and 'src="http' not in text
    assert run("show", *files, "--out", page, "--limit", 3)[0] == 0
    assert page.read_text().count("<article") == 3
