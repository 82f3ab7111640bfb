"""From raw mp4 files to rows with target IDs, stage by stage through the command line, on clips with known objects."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data_builders.test_build import run
from verl_stvg.data_builders.objects import draw, pipeline
from verl_stvg.data_builders.objects.track import Options
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.rows.row import located, plan_of
from verl_stvg.training.reward import compute_score
from verl_stvg.video.decode import probe, read_frames
from verl_stvg.video.tracks import TrackError, load

CLIPS = 10
MODELS = [
    "--detector",
    "tests.support.colours:detector",
    "--segmenter",
    "tests.support.colours:segmenter",
    "--classes",
    "all",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A synthetic set, whose annotation has HC-STVG's layout, as HC-STVG names its files."""
    folder = synthetic.build(tmp_path_factory.mktemp("data") / "set", CLIPS, 1, seed=3, progress=False)
    (folder / "anno_v2").mkdir()
    (folder / "annotations_train.json").rename(folder / "anno_v2/train_v2.json")
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> Path:
    """What ``objects run`` makes of it."""
    out = tmp_path_factory.mktemp("made") / "objects"
    status, said = run("objects", "run", "hc_stvg_v2", *given(data), "--out", out, *MODELS)
    assert status == 0, said
    return out


def given(data: Path) -> list:
    return ["--annotations", data, "--videos", data / "videos", "--split", "train"]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_target_is_found_from_raw_video_to_row(data, made):
    targets = lines_of(made / "targets.jsonl")
    sentences = {f"hc_stvg_v2/train/{video}": entry["English"] for video, entry in annotations(data).items()}
    assert [line["uid"] for line in targets] == list(sentences)
    rows = pq.read_table(made / "rows/train.parquet").to_pylist()
    assert len(rows) == CLIPS
    for line, row in zip(targets, rows, strict=True):
        tracks = load(made / f"shown/{Path(line['uid']).name}.tracks.json.gz")
        labels = {track.object_id: track.label for track in tracks.tracks}
        assert labels[line["object_id"]] in sentences[line["uid"]]  # "the pink circle moves left"
        assert line["share"] > 0.9 and line["mean_iou"] > 0.8
        truth = row["reward_model"]["ground_truth"]
        assert truth["uid"] == line["uid"] and truth["object_id"] == line["object_id"]
        answer = f"Target ID: {line['object_id']}, Time range: {truth['start']} to {truth['end']}"
        text = f"<think>It is so.</think><answer>{answer}</answer>"
        assert compute_score(row["data_source"], text, truth)["score"] == pytest.approx(3.0)


def annotations(data: Path) -> dict:
    return json.loads((data / "anno_v2/train_v2.json").read_text())


def test_rows_show_the_numbers(data, made):
    row = pq.read_table(made / "rows/train.parquet").to_pylist()[0]
    entry = located(row["videos"][0], data / "videos")
    info = probe(entry["video"])
    with_numbers, plan = plan_of(entry, info), plan_of({**entry, "tracks": None}, info)
    assert (
        Path(with_numbers.marks[0]).resolve() == (made / f"shown/{Path(entry['video']).name}.tracks.json.gz").resolve()
    )
    changed = (read_frames(entry["video"], with_numbers) != read_frames(entry["video"], plan)).any(axis=(1, 2, 3))
    tracks = load(Path(with_numbers.marks[0]))
    assert changed.tolist() == [bool(tracks.at(index)) for index in plan.frame_indices]


def test_a_second_run_skips_what_is_there(data, made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.tracks.json.gz")}
    status, said = run(
        "objects", "track", "--videos", data / "videos", "--out", made / "tracks", *MODELS, *videos(data)
    )
    assert status == 0 and {path: path.stat().st_mtime_ns for path in before} == before
    status, said = run(
        "objects", "track", "--videos", data / "videos", "--out", made / "tracks", *MODELS, "--step", 10, *videos(data)
    )
    assert status == 2 and "train_00000.mp4.tracks.json.gz: made with other options; choose another folder" in said


def videos(data: Path) -> list[str]:
    return sorted(annotations(data))


def test_stages_one_by_one_give_the_same(data, made, tmp_path):
    names, tracks, shown = videos(data)[:3], tmp_path / "tracks", tmp_path / "shown"
    assert run("objects", "track", *names, "--videos", data / "videos", "--out", tracks, *MODELS)[0] == 0
    assert run("objects", "filter", "--tracks", tracks, "--out", shown)[0] == 0
    for path in pipeline.track_files(shown):
        assert path.read_bytes() == (made / "shown" / path.name).read_bytes()
    found = tmp_path / "boxes.jsonl"
    command = ["--videos", data / "videos", "--out", found, "--detector", MODELS[1], "--classes", "all"]
    assert run("objects", "detect", names[0], *command)[0] == 0
    lines = lines_of(found)
    assert {line["frame"] % 15 for line in lines} == {0} and lines[0].keys() == {
        "video",
        "frame",
        "box",
        "label",
        "score",
    }
    out = tmp_path / "targets.jsonl"
    assert run("objects", "assign", "hc_stvg_v2", *given(data), "--tracks", shown, "--out", out)[0] == 0
    assert lines_of(out) == lines_of(made / "targets.jsonl")[:3]
    rejected = lines_of(tmp_path / "targets.rejected.jsonl")
    assert len(rejected) == CLIPS - 3 and all(
        "no such file; track the video first" in line["reason"] for line in rejected
    )


def test_a_video_that_cannot_be_tracked_costs_a_line(data, tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    name = videos(data)[0]
    (root / name).write_bytes((data / "videos" / name).read_bytes())
    (root / "broken.mp4").write_bytes(b"<html>")
    assert run("objects", "track", "--videos", root, "--out", tmp_path / "tracks", *MODELS)[0] == 1
    [line] = lines_of(tmp_path / "tracks/quarantine.jsonl")
    assert line["path"] == str(root / "broken.mp4") and line["stage"] == "track" and "not a readable" in line["reason"]
    assert len(pipeline.track_files(tmp_path / "tracks")) == 1


def test_a_model_that_cannot_be_had_is_no_fault_of_the_videos(data, tmp_path):
    wrong = ["--detector", "tests.support.colours:eyes", *MODELS[2:]]
    status, said = run("objects", "track", "--videos", data / "videos", "--out", tmp_path / "tracks", *wrong)
    assert status == 2 and "tests.support.colours defines no eyes" in said and not (tmp_path / "tracks").exists()


def test_pictures_of_objects(data, made, tmp_path):
    name = videos(data)[0]
    shown = made / f"shown/{name}.tracks.json.gz"
    out = tmp_path / "look.mp4"
    assert run("objects", "show", data / "videos" / name, "--tracks", shown, "--out", out)[0] == 0
    assert probe(out).num_frames == synthetic.NUM_FRAMES and (tmp_path / "look.jpg").stat().st_size > 5_000
    command = ["--videos", data / "videos", "--tracks", made / "shown", "--out", tmp_path / "marked"]
    assert run("objects", "render", name, *command)[0] == 0
    plain, marked = frames_of(data / "videos" / name), frames_of(tmp_path / "marked" / name)
    assert plain.shape == marked.shape
    tracks = load(shown)
    differs = np.abs(plain.astype(int) - marked).max(axis=(1, 2, 3)) > 120
    assert differs.tolist() == [bool(tracks.at(index)) for index in range(len(plain))]
    with pytest.raises(TrackError, match="track this video"):
        draw.render(data / "videos" / videos(data)[1], drop_frames(tracks), tmp_path / "no.mp4")


def drop_frames(tracks):
    from dataclasses import replace

    return replace(tracks, num_frames=tracks.num_frames + 1)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_boxes_of_a_larger_original_are_scaled(data, made):
    """Annotations in pixels of the original, videos that were made smaller: the tube follows the video."""
    from verl_stvg.data_builders.records import Record

    line = lines_of(made / "targets.jsonl")[0]
    entry = annotations(data)[Path(line["uid"]).name]
    boxes = tuple((2.0 * x, 2.0 * y, 2.0 * (x + w), 2.0 * (y + h)) for x, y, w, h in entry["bbox"])
    tube = {"first_frame": entry["st_frame"] - 1, "boxes": boxes}
    size = {"width": 2 * synthetic.WIDTH, "height": 2 * synthetic.HEIGHT}
    record = Record(where="", key="k", video="v", query="q", tube=tube, extra=size)
    found = pipeline._target(record, load(made / f"shown/{Path(line['uid']).name}.tracks.json.gz"), pipeline.Rule())
    assert (found["object_id"], found["share"]) == (line["object_id"], line["share"])
    late = record.model_copy(update={"tube": record.tube.model_copy(update={"first_frame": 90})})
    reason = pipeline._target(late, load(made / f"shown/{Path(line['uid']).name}.tracks.json.gz"), pipeline.Rule())
    assert "at the rate it was annotated at" in reason["reason"]


def test_options_are_those_of_the_command_line(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        pipeline, "track_all", lambda root, names, out, models, options, *rest: seen.append(options) or []
    )
    run(
        "objects",
        "track",
        "--videos",
        data / "videos",
        "--out",
        tmp_path,
        "--faithful",
        "--classes",
        "dog, cat",
        "--step",
        7,
    )
    assert seen == [Options(step=7, mode=("dog", "cat"), faithful=True)]
