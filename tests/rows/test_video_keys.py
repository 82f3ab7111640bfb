"""Entries of ``videos``: one form, and the same words for what is none, whoever reads the rows."""

import json
from pathlib import Path, PurePosixPath

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.data_builders.test_build import run, write_video
from verl_stvg.data_builders import check, show
from verl_stvg.data_builders.selection.pool import pool, write_rows
from verl_stvg.data_builders.selection.samples import sample_of
from verl_stvg.data_builders.testing.tiny_parts import make_processor
from verl_stvg.eval.benchmarks.items import item_of, read_rows
from verl_stvg.eval.report.clips import Rows
from verl_stvg.launch import row_sizes
from verl_stvg.rows.cache_fill import Job, read_jobs
from verl_stvg.rows.prompts import messages_of, plan_video_part
from verl_stvg.rows.row import ROOT_KEY, VIDEO_KEYS, RowError, entries_of, entry_of, located
from verl_stvg.training.dataset import VideoGroundingDataset
from verl_stvg.video.frame_rules import PROCESSOR_MAX_PIXELS, PROCESSOR_MIN_PIXELS

QWEN = {"rule": "qwen_vl_utils"}


def row(videos: list | None, uid: str = "own/train/0", split: str = "train", query: str = "somebody waves") -> dict:
    truth = {"uid": uid, "start": 1.0, "end": 3.0, "duration": 10.0, "intervals": [[1.0, 3.0]]}
    extra = {"uid": uid, "index": 0, "split": split, "query": query, "duration": 10.0, "dataset": "own"}
    extra |= {"num_frames": 100, "source_fps": 10.0, "width": 112, "height": 84, "constant_rate": True}
    return {
        "data_source": "time_r1/own",
        "prompt": [{"role": "user", "content": "<video>" * len(videos or ()) + "When?"}],
        "videos": videos,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": extra,
    }


def write(file: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos of 10 s."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate("ab"):
        write_video(folder / f"{name}.mp4", seed=seed)
    return folder


@pytest.fixture(scope="module")
def processor():
    """The tiny model's, with the limits of Qwen2.5-VL's."""
    made = make_processor()
    made.video_processor.size = {"shortest_edge": PROCESSOR_MIN_PIXELS, "longest_edge": PROCESSOR_MAX_PIXELS}
    return made


def dataset(file: Path, processor) -> VideoGroundingDataset:
    settings = {"max_prompt_length": 4096, "check_videos": "exist", "video_cache": {"enabled": False}}
    return VideoGroundingDataset(str(file), processor.tokenizer, OmegaConf.create(settings), processor)


# --- one entry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("a/b.mp4", {"video": "a/b.mp4"}),
        (PurePosixPath("a.mp4"), {"video": "a.mp4"}),
        ({"video": "a.mp4", "type": "video", "nothing": None, "path": None}, {"video": "a.mp4"}),
        (QWEN | {"video": "a.mp4", "nframes": 8.0, "fps": None}, QWEN | {"video": "a.mp4", "nframes": 8.0}),
        ({"video": "a.mp4", "hidden": [[0, 2]], "shown": None}, {"video": "a.mp4", "hidden": [[0, 2]]}),
    ],
)
def test_forms_of_a_video(video, expected):
    assert entry_of(video) == expected == entry_of(entry_of(video))


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"path": "a.mp4"}, r"'path' \(the Video feature of `datasets`\) is not read; write bytes to a file"),
        ({"path": None, "bytes": b"..."}, "a video with 'bytes'"),
        ({"path": "a.mp4", "bytes": b"..."}, "a video with 'path' and 'bytes'"),
        ({"video": "a.mp4", "path": "b.mp4"}, "a video with 'path'"),
        ({"video": ["1.jpg", "2.jpg"]}, "a list of 2 frames is no video; encode them as one file"),
        (["1.jpg", "2.jpg", "3.jpg"], "a list of 3 frames is no video; encode them as one file"),
        (b"bytes", "bytes is no form of a video"),
        (7, "int is no form of a video"),
        (None, "NoneType is no form of a video"),
        ({}, "a video has no file name"),
        ({"video": ""}, "a video has no file name"),
        ({"fps": 2.0}, "a video has no file name"),
        ({"video": "file:///a.mp4"}, "'file:///a.mp4' is a URL, .* give its path, without 'file://'"),
        ({"video": "https://x.org/a.mp4"}, "is a URL, and files are read; download"),
    ],
)
def test_other_forms_are_refused_by_name(video, said):
    with pytest.raises(ValueError, match=said):
        entry_of(video)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_pixel": 50_176}, r"'max_pixel' is no key of a video; did you mean 'max_pixels'\?"),
        ({"max_frame": 16, "colour": 3}, r"'max_frame' .* 'max_frames'\?; 'colour' is no key of a video; the keys are"),
        ({"patch": 16}, "'patch' is no key of a video"),
        ({"type": "image"}, "'type' is no key of a video"),
        ({"nframes": 0}, "nframes must be a positive number, got 0"),
        ({"resized_height": -3, "resized_width": 28}, "resized_height must be a positive number, got -3"),
        ({"max_pixels": "50176"}, "max_pixels must be a positive number, got '50176'"),
        ({"fps": True}, "fps must be a positive number, got True"),
        ({"fps": float("nan")}, "fps must be a positive number, got nan"),
        ({"video_start": "1 s"}, "video_start must be a number of seconds, got '1 s'"),
        ({"video_end": float("inf")}, "video_end must be a number of seconds, got inf"),
        ({"tracks": 3}, "tracks must be a text, got 3"),
        ({"hidden": [2, 4]}, r"hidden must be a list of \[first, last\] of temporal units"),
        ({"shown": [2]}, r"shown must be \[first, last\] of temporal units"),
        ({"rule": "linspace"}, "choose one of grid, qwen_vl_utils"),
        ({"nframes": 8}, "set rule to 'qwen_vl_utils', or fps in place of nframes"),
        (QWEN | {"nframes": 8, "fps": 2.0}, "nframes=8 and fps=2.0 exclude each other"),
        ({"resized_height": 140}, "resized_height needs resized_width beside it"),
    ],
)
def test_keys_and_values_that_are_none_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        entry_of({"video": "a.mp4"} | options)


@given(key=st.text(), value=st.integers() | st.text() | st.booleans())
def test_no_key_is_dropped_without_a_word(key, value):
    assume(key not in (*VIDEO_KEYS, "path", "bytes", "type"))
    assert entry_of({"video": "a.mp4", key: None}) == {"video": "a.mp4"}
    with pytest.raises(ValueError) as error:
        entry_of({"video": "a.mp4", key: value})
    assert repr(key) in str(error.value)


@given(key=st.sampled_from(VIDEO_KEYS[1:]), data=st.data())
def test_a_key_with_a_letter_missing_is_recognised(key, data):
    assume(len(key) > 4)
    gone = data.draw(st.integers(0, len(key) - 1))
    with pytest.raises(ValueError, match="did you mean '"):
        entry_of({"video": "a.mp4", key[:gone] + key[gone + 1 :]: 1})


def test_entries_say_where_they_stand():
    assert entries_of(None) == entries_of([]) == []
    assert entries_of(["a.mp4", {"video": "b.mp4", "tracks": "t.gz"}], "/r") == [
        {"video": "/r/a.mp4"},
        {"video": "/r/b.mp4", "tracks": "/r/t.gz"},
    ]
    with pytest.raises(ValueError, match=r"^rows.parquet: row 3: videos\[1\]: 'fp' is no key of a video"):
        entries_of(["a.mp4", {"video": "b.mp4", "fp": 1}], where="rows.parquet: row 3")
    with pytest.raises(ValueError, match="^rows.parquet: row 3: 'fp' is no key of a video"):
        entries_of([{"video": "b.mp4", "fp": 1}], where="rows.parquet: row 3")
    for videos in ("a.mp4", {"video": "a.mp4"}):
        with pytest.raises(ValueError, match="videos is no list; write"):
            entries_of(videos)


# --- all readers ------------------------------------------------------------------------------------------------------

WRONG = [
    ([{"video": "a.mp4", "max_pixel": 50_176}], "'max_pixel' is no key of a video; did you mean 'max_pixels'?"),
    ([{"video": "a.mp4"}, {"video": "b.mp4", "max_frame": 16}], "videos[1]: 'max_frame' is no key of a video"),
    ([{"path": "a.mp4", "bytes": None}], "a video with 'path' (the Video feature of `datasets`) is not read"),
    ([{"video": ["1.jpg", "2.jpg"]}], "a list of 2 frames is no video"),
    ([{"video": "a.mp4", "nframes": 8}], "nframes=8 fixes the number of frames, and rule 'grid'"),
    ([{"video": "a.mp4", "resized_width": 28}], "resized_width needs resized_height beside it"),
]


@pytest.mark.parametrize(("videos", "said"), WRONG)
def test_every_reader_refuses_in_the_same_words(videos, said, folder, processor, caplog):
    one = row(videos)
    file = write(folder / "wrong.parquet", one)
    [found] = check.check([file])[0]
    assert (found.row, found.problem, found.serious) == (0, "video entry", True) and found.detail.startswith(said)
    assert [job.refused.startswith(f"{file}: row 0: {said}") for job in read_jobs([file])] == [True]
    assert run("cache", "build", file, "--cache", folder / "cache", "--workers", 1)[0] == 1
    assert f"{file}: row 0: {said}" in caplog.text
    with pytest.raises(RowError) as error:
        dataset(file, processor)
    assert f"row 0 (uid own/train/0): {said}" in str(error.value)
    readers = (messages_of, sample_of, lambda _: row_sizes.read_rows([file]), lambda _: Rows([file])["own/train/0"])
    for read in (*readers, lambda _: list(pool([file]).rows())):
        with pytest.raises(ValueError) as error:
            read(json.loads(json.dumps(one)))
        assert said in str(error.value)
    assert show.write([file], folder / "rows.html") == 1
    assert "video entry: " in (folder / "rows.html").read_text()


@pytest.mark.parametrize("several", [True, False])
def test_videos_that_datasets_wrote_are_refused_undecoded(several, folder, processor):
    """Its files say that they hold videos, and its reader would decode them."""
    entry, kind = {"path": str(folder / "a.mp4"), "bytes": None}, datasets.Video()
    table = datasets.Dataset.from_list([row([entry]) if several else row([entry]) | {"videos": entry}])
    table.cast_column("videos", datasets.List(kind) if several else kind).to_parquet(folder / "hf.parquet")
    with pytest.raises(RowError) as error:
        dataset(folder / "hf.parquet", processor)
    assert ("'path' (the Video feature" if several else "videos is no list") in str(error.value)


def test_a_wrong_row_among_right_ones(folder):
    """It is one finding, and the other rows are looked at."""
    right, late = row(["a.mp4"]), row(["b.mp4"], "own/train/2", query="too late")
    late["reward_model"]["ground_truth"] |= {"end": 30.0, "intervals": [[1.0, 30.0]]}
    names = [json.loads(json.dumps(one)) for one in (right, row([["1.jpg"]], "own/train/1"), late)]
    for one in names[::2]:
        one["videos"] = [{"video": name} for name in one["videos"]]
    names[1]["videos"] = [{"video": "a.mp4", "fsp": 2}]
    findings, counts = check.check([write(folder / "mixed.parquet", *names)])
    assert [(found.row, found.problem) for found in findings if found.serious] == [
        (1, "video entry"),
        (2, "not covered"),
    ]
    assert (counts.rows, counts.videos) == (3, 2)


def test_names_alone_are_read_by_all(folder, processor, tmp_path):
    """EasyR1's form."""
    plain = write(folder / "names.parquet", row(["a.mp4"]), row(["b.mp4"], "own/train/1", query="another"))
    assert [found for found in check.check([plain])[0] if found.serious] == []
    assert read_jobs([plain]) == [Job(str(folder / name), ()) for name in ("a.mp4", "b.mp4")]
    part = dataset(plain, processor)[1]["raw_prompt"][0]["content"][0]
    assert part == {"type": "video", "video": str(folder / "b.mp4")}
    assert messages_of(row(["b.mp4"]) | {ROOT_KEY: str(folder)})[0]["content"][0] == part
    assert [item_of(one).video for one in read_rows([plain])] == ["a.mp4", "b.mp4"]
    assert Rows([plain]).videos() == {"own/train/0": "a.mp4", "own/train/1": "b.mp4"}
    assert row_sizes.read_rows([plain]).videos == 2
    assert show.write([plain], folder / "rows.html") == 2
    assert "data:image/jpeg" in (folder / "rows.html").read_text()
    source = pool([plain])
    write_rows(tmp_path / "rows.parquet", source.rows(), source.schema)
    assert [one["videos"] for one in pq.read_table(tmp_path / "rows.parquet").to_pylist()] == [
        [{"video": "a.mp4"}],
        [{"video": "b.mp4"}],
    ]


def test_what_is_asked_for_is_planned_by_all(folder, processor):
    """Frames and size of a row are those of its message, and of what the cache is filled with."""
    asked = QWEN | {"nframes": 7, "resized_height": 70, "resized_width": 100}
    file = write(folder / "asked.parquet", row([asked | {"video": "a.mp4"}]))
    part = dataset(file, processor)[0]["raw_prompt"][0]["content"][0]
    plan = plan_video_part(part)
    assert (plan.num_frames, plan.height, plan.width) == (8, 56, 112)
    assert dict(read_jobs([file])[0].options) == asked
    assert row_sizes.read_rows([file]).longest == plan.num_tokens
    with pytest.raises(ValueError, match="'max_frame' is no key of a video"):
        plan_video_part(part | {"max_frame": 4})
    assert plan_video_part(part | {"patch": 16}).grid_thw == (4, 4, 6)


# --- several videos of a row ------------------------------------------------------------------------------------------


def test_every_video_of_a_row_is_looked_at(folder):
    two = row([{"video": "a.mp4"}, {"video": "gone.mp4"}])
    [found] = check.check([write(folder / "two.parquet", two)])[0]
    assert (found.problem, found.serious) == ("video", True)
    assert found.detail.startswith("videos[1]: ") and str(folder / "gone.mp4") in found.detail
    (folder / "damaged.mp4").write_bytes((folder / "a.mp4").read_bytes()[:4000])
    mask = {"hidden": [[0, 99]]}
    spoilt = [
        {"video": "damaged.mp4"},
        {"video": "b.mp4", "video_start": 20.0},
        {"video": "b.mp4"} | mask,
    ]
    found = check.check([write(folder / "spoilt.parquet", row(spoilt))])[0]
    assert [(one.problem, one.detail[:9]) for one in found] == [
        ("video", "videos[0]"),
        ("frames", "videos[1]"),
        ("frames", "videos[2]"),
    ]
    findings, counts = check.check([write(folder / "good.parquet", row([{"video": "a.mp4"}, {"video": "b.mp4"}]))])
    assert findings == [] and (counts.rows, counts.videos) == (1, 2)


def test_what_a_row_says_of_its_video_it_says_of_the_first(folder):
    write_video(folder / "short.mp4", seconds=4)
    first = check.check([write(folder / "first.parquet", row([{"video": "short.mp4"}, {"video": "a.mp4"}]))])[0]
    assert {found.problem for found in first} == {"length", "another video"}
    assert all(found.detail.startswith("videos[0]: ") for found in first)
    assert check.check([write(folder / "second.parquet", row([{"video": "a.mp4"}, {"video": "short.mp4"}]))])[0] == []


def test_a_second_video_is_a_leak_and_tells_rows_apart(folder):
    (folder / "copy.mp4").write_bytes((folder / "b.mp4").read_bytes())
    training = write(
        folder / "train.parquet",
        row([{"video": "a.mp4"}, {"video": "copy.mp4"}]),
        row([{"video": "a.mp4"}, {"video": "copy.mp4"}], "own/train/1"),
        row([{"video": "a.mp4"}, {"video": "a.mp4"}], "own/train/2"),
    )
    held_out = write(folder / "test.parquet", row([{"video": "b.mp4"}], "own/test/0", "test"))
    findings = check.check([training, held_out])[0]
    leaks = [found for found in findings if found.problem == "evaluation video in training"]
    assert [found.row for found in leaks] == [0, 1]
    assert all(found.detail.startswith("videos[1]: same bytes as ") for found in leaks)
    assert [found.row for found in findings if found.problem == "duplicate"] == [1]


def test_paths_start_from_the_root():
    assert located("a.mp4", "/r") == {"video": "/r/a.mp4"} and located("/q/a.mp4", "/r") == {"video": "/q/a.mp4"}
