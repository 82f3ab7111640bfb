"""A small copy of every annotation set on disk, in its published layout, beside the videos that it names.

Readers have tests of their own; these copies are what the whole command line is run on. Each holds the oddities that a
build has to live with, and says what must come out of it.
"""

import functools
import io
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np

from tests.data_builders.sets import test_qa as qa
from tests.data_builders.sets import test_temporal as temporal
from tests.data_builders.sets import test_tubes as tubes

SIZE = (64, 48)
RATE = 5
_FORMATS = {".mp4": "mp4", ".mkv": "matroska"}
_SEEDS = {"train": 1, "val": 2, "test": 3}


@dataclass(frozen=True)
class Layout:
    """What a set's folder holds and what its rows have to be.

    Attributes:
        files: content of each annotation file by its path; the ending says how it is written.
        videos: by split, so that no file of training equals one of evaluation; seconds, or seconds and frame rate.
        rows: of each split.
        expected: some fields of ground truth, ``videos`` entry and ``extra_info`` by uid without the set's name.
        dropped: counts of each split by reason.
        options: of the build.
        targets: object ID by uid without the set's name.
        findings: how often `check` finds what.
        serious: whether one of the findings is, so that `check` ends with status 1.
    """

    files: Mapping[str, Any]
    videos: Mapping[str, Mapping[str, float | tuple[float, int]]]
    rows: Mapping[str, int]
    expected: Mapping[str, Mapping[str, Any]]
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    targets: Mapping[str, int] = field(default_factory=dict)
    findings: Mapping[str, int] = field(default_factory=dict)
    serious: bool = False


@dataclass(frozen=True)
class Fixture:
    """A layout on disk.

    Attributes:
        name: of the set.
        annotations: folder of its files.
        videos: root of its videos.
        options: of the build, besides annotations, videos and out.
        layout: what was written, and what has to come out.
    """

    name: str
    annotations: Path
    videos: Path
    options: tuple[str, ...]
    layout: Layout

    def build(self, out: Path) -> list[str]:
        """Arguments of ``verl-stvg`` that build the set."""
        places = ["--annotations", self.annotations, "--videos", self.videos, "--out", out, "--workers", 1]
        return list(map(str, ["build", self.name, *places, *self.options]))


def write(name: str, folder: Path) -> Fixture:
    """Write annotations and videos of a set and say what to expect of them."""
    layout = LAYOUTS[name]()
    for path, content in layout.files.items():
        _put(folder / "annotations" / path, _encoded(path, content))
    for split, videos in layout.videos.items():
        for number, (path, length) in enumerate(videos.items()):
            seconds, rate = length if isinstance(length, tuple) else (length, RATE)
            seed = _SEEDS[split] + len(_SEEDS) * number  # no two files are equal: they would be one video
            _put(folder / "videos" / path, _video(seconds, rate, seed, PurePosixPath(path).suffix))
    options = layout.options
    if layout.targets:
        lines = [{"uid": f"{name}/{uid}", "object_id": target} for uid, target in layout.targets.items()]
        _put(folder / "targets.jsonl", qa.lines(*lines).encode())
        options += ("--targets", str(folder / "targets.jsonl"))
    return Fixture(name, folder / "annotations", folder / "videos", options, layout)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _encoded(path: str, content: Any) -> bytes:
    ending = PurePosixPath(path).suffix
    if ending == ".pkl":
        return pickle.dumps(content)
    if isinstance(content, str):
        return content.encode()
    return (qa.lines(*content) if ending == ".jsonl" else json.dumps(content)).encode()


@functools.cache
def _video(seconds: float, rate: int, seed: int, ending: str) -> bytes:
    """Noise that moves; equal arguments, equal bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format=_FORMATS[ending], options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for k in range(round(seconds * rate)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, k, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _spans(*intervals: tuple[float, float], **more: Any) -> dict[str, Any]:
    return {"intervals": [list(map(float, one)) for one in intervals], **more}


_NO_TRUTH = {"intervals": None, "start": None, "end": None}
_DROP = ("--bad-entries", "drop")
LAYOUTS: dict[str, Callable[[], Layout]] = {}


def _layout(make: Callable[[], Layout]) -> Callable[[], Layout]:
    LAYOUTS[make.__name__] = make
    return make


# --- times ------------------------------------------------------------------------------------------------------------


@_layout
def activitynet() -> Layout:
    """Blanks before sentences, integers, reversed, empty, past the duration; val_1 and val_2 are of the same videos."""
    dog = {"duration": 19.6, "timestamps": [[0, 4], [8.5, 3]], "sentences": [" A dog runs.", " It stops."]}
    return Layout(
        files={
            "train.json": temporal.ACTIVITYNET,
            "val_1.json": {"v_bXdq2zI1Ms0": dog},
            "val_2.json": {"v_bXdq2zI1Ms0": dog | {"timestamps": [[0, 5], [3, 8.5]]}},
        },
        videos={"train": {"v_QOlSCBRmfWY.mp4": 82.8}, "val": {"v_bXdq2zI1Ms0.mp4": 19.6}},
        rows={"train": 3, "val": 2, "test": 2},
        expected={
            "train/v_QOlSCBRmfWY/0": _spans((0.83, 19.86), duration=82.73, query="a young woman is seen"),
            "train/v_QOlSCBRmfWY/1": _spans((17, 60), sentence="The girl dances."),
            "train/v_QOlSCBRmfWY/4": _spans((56.26, 82.75)),
            "val/v_bXdq2zI1Ms0/1": _spans((8.5, 3)),
            "test/v_bXdq2zI1Ms0/1": _spans((3, 8.5)),
        },
        dropped={"train": {"reversed interval": 1, "empty interval": 1}},
        findings={"past the stated end": 1, "ground truth": 1, "same query, another truth": 2},
        serious=True,
    )


@_layout
def activitynet_rtl() -> Layout:
    """Times within answers, one answer without; val names videos without the prefix of the files."""
    return Layout(
        files={
            "activitynet_train_gpt-4-0613_temp_6_f10009.json": qa.RTL_TRAIN,
            "annot_val_1_q229.json": qa.RTL_VAL,
        },
        videos={
            "train": {"v_QOlSCBRmfWY.mp4": 83, "v_bXdq2zI1Ms0.mkv": 73.2},
            "val": {"v_v_abcdefgh9.mp4": 90},
        },
        rows={"train": 2, "val": 2},
        expected={
            "train/v_QOlSCBRmfWY/0": _spans((0.83, 19.86), duration=82.73, video="v_QOlSCBRmfWY.mp4"),
            "train/v_bXdq2zI1Ms0/0": _spans((10, 20), video="v_bXdq2zI1Ms0.mkv"),
            "val/v_v_abcdefgh9/1": _spans((9, 12)),
        },
        dropped={"train": {"malformed entry": 1, "reversed interval": 1}},
        options=_DROP,
    )


@_layout
def charades_sta() -> Layout:
    """Reversed; past the stated end; past the end of the file, which no answer can reach; names without an ending."""
    return Layout(
        files={
            "charades_sta_train.txt": temporal.CHARADES + "LEOL6 20.0 23.5##person closes the door.\n",
            "charades_sta_test.txt": "3MSZA 24.3 30.4##person turn a light on.\n",
            "durations.json": {"HJZEW": 30.62},
        },
        videos={
            "train": {f"Charades_v1_480/{name}.mp4": s for name, s in (("AO8RW", 7), ("LEOL6", 21), ("HJZEW", 31))},
            "test": {"Charades_v1_480/3MSZA.mp4": 31},
        },
        rows={"train": 4, "test": 1},
        expected={
            "train/AO8RW/0": _spans((0, 6.9), duration=7.0, video="Charades_v1_480/AO8RW.mp4"),
            "train/HJZEW/0": _spans((24.9, 31.5), duration=30.62),
            "train/LEOL6/1": _spans((20, 23.5), duration=21.0),
            "test/3MSZA/0": _spans((24.3, 30.4), duration=31.0),
        },
        dropped={"train": {"reversed interval": 1}},
        findings={"past the stated end": 2, "not covered": 1},
        serious=True,
    )


@_layout
def cosmo_cap() -> Layout:
    """The same caption twice in a video; an end past the duration, which the template's paper clips."""
    row = temporal.SPAN_ROW | {"duration": 19.95}
    return Layout(
        files={"anno_cosmo_cap.jsonl": [row, row, row | {"query": "Hands fold it.", "span": [18, 21.5]}]},
        videos={"train": {"QtWT8rxUuNk.mp4": 20}},
        rows={"train": 3},
        expected={
            "train/QtWT8rxUuNk/0": _spans((1, 4.5), query="a purple hanger  is shown"),
            "train/QtWT8rxUuNk/2": _spans((18, 19.95)),
        },
        findings={"duplicate": 1},
    )


@_layout
def didemo() -> Layout:
    """Means of several annotators, in steps of five seconds; the last step is not full; endings that no file has."""
    row = temporal.DIDEMO_ROW
    stem = row["video"].partition(".")[0]
    return Layout(
        files={
            "train_data.json": [row, row | {"description": "the last thing we see.", "times": [[5, 5]] * 4}],
            "val_data.json": [row | {"video": "123@N00_1_a.mov.mp4", "times": [[0, 1], [1, 1]]}],
            "test_data.json": [row | {"video": "987@N01_2_b.3gp", "times": [[2, 5]]}],
            "durations.json": {stem: 29.53},
        },
        videos={
            "train": {f"{stem}.mp4": 29.6},
            "val": {"123@N00_1_a.mp4": 12},
            "test": {"987@N01_2_b.mp4": 30},
        },
        rows={"train": 2, "val": 1, "test": 1},
        expected={
            f"train/{stem}/0": _spans((2.5, 8.75), duration=29.53),
            f"train/{stem}/1": _spans((25, 29.53)),
            "val/123@N00_1_a/0": _spans((2.5, 10), duration=12.0),
            "test/987@N01_2_b/0": _spans((10, 30)),
        },
    )


@_layout
def hirest_grounding() -> Layout:
    """Videos without a moment for the goal are passed over and need no file; one video answers two goals."""
    return Layout(
        **_hirest(),
        rows={"train": 3, "val": 1, "test": 2},
        expected={
            "train/5V3dI2zp1xA.mp4/0": _spans((5, 12), duration=20.7, query="make oatmeal pancake mix"),
            "train/UM1OUc60YIU.mp4/0": _spans((6, 19)),
            "val/cVal0000001.mp4/0": _spans((5, 12)),
            "test/t1.mp4/0": _NO_TRUTH,
        },
        findings={"no ground truth": 2},
    )


@_layout
def hirest_step() -> Layout:
    """Empty, reversed and overlong steps; steps of a video under two goals are there twice; no steps at all."""
    return Layout(
        **_hirest(),
        rows={"train": 4, "val": 1, "test": 2},
        expected={
            "train/5V3dI2zp1xA.mp4/0/0": _spans((5, 6), annotated='{"goal": "Make Oatmeal Pancake Mix", "index": 0}'),
            "train/5V3dI2zp1xA.mp4/0/3": _spans((12, 20.7)),
            "val/cVal0000001.mp4/0/0": _spans((5, 6)),
            "test/t1.mp4/0/1": _spans((6, 9), query="put in the tea"),
        },
        dropped={"train": {"empty interval": 2, "reversed interval": 2}},
        findings={"duplicate": 2},
    )


def _hirest() -> dict[str, Any]:
    bounds = ([5, 6], [7, 7], [12, 10], [12, 21])
    steps = [step | {"absolute_bounds": s} for step, s in zip(temporal.HIREST_VIDEO["steps"], bounds, strict=True)]
    video = temporal.HIREST_VIDEO | {"v_duration": 20.7, "bounds": [5, 12], "steps": steps}
    mix, pancakes = (dict(videos) for videos in temporal.HIREST.values())
    mix["5V3dI2zp1xA.mp4"] = pancakes["5V3dI2zp1xA.mp4"] = video
    pancakes["UM1OUc60YIU.mp4"] = pancakes["UM1OUc60YIU.mp4"] | {"v_duration": 20.0, "bounds": [6, 19]}
    return {
        "files": {
            "all_data_train.json": {"Make Oatmeal Pancake Mix": mix, "Make Pancakes": pancakes},
            "all_data_val.json": {"Make Tea": {"cVal0000001.mp4": video | {"steps": steps[:1]}}},
            "all_data_test.json": temporal.HIREST_TEST,
            "formatted_moment_evaluation_gt.json": temporal.HIREST_TEST_STEPS,
        },
        "videos": {
            "train": {"5V3dI2zp1xA.mp4": 20.8, "UM1OUc60YIU.mp4": 20},
            "val": {"cVal0000001.mp4": 20.8},
            "test": {"t1.mp4": 12.6, "t2.mp4": 12.6},
        },
    }


@_layout
def internvid_vtime() -> Layout:
    """Videos that are cut already, at 3 frames per second, with colons in their names."""
    row = temporal.SPAN_ROW | {"vid": "7v2tBIXg5DM_00:00:44:800_00:01:04:800", "duration": 20}
    return Layout(
        files={"anno_internvid_vtime_query_gpt4o_mini.jsonl": [row]},
        videos={"train": {f"videos_crop_3fps_480_noaudio/{row['vid']}.mp4": (20, 3)}},
        rows={"train": 1},
        expected={f"train/{row['vid']}/0": _spans((1, 4.5), duration=20.0, video_start=None, source_fps=3.0)},
    )


@_layout
def queryd() -> Layout:
    """Two real pickles of all splits, a list of those meant, ids with a prefix, one duration known, a reversed span."""
    times = {"video-9uP7WjixVFM": [[2.9, 5.3], [10, 4.5]]}
    return Layout(
        files={
            "train_list.txt": "video-9uP7WjixVFM\nvideo-_b-d2JbRm-w\n",
            "raw_captions_combined_filtered-v2.pkl": temporal.QUERYD_CAPTIONS,
            "times_captions_combined_filtered-v2.pkl": temporal.QUERYD_TIMES | times,
            "durations.json": {"9uP7WjixVFM": 11.89},
        },
        videos={"train": {"9uP7WjixVFM.mp4": 12, "_b-d2JbRm-w.mkv": 4}},
        rows={"train": 2},
        expected={
            "train/9uP7WjixVFM/0": _spans((2.9, 5.3), duration=11.89, query="she smiles and holds up the bottle"),
            "train/_b-d2JbRm-w/0": _spans((0, 2.004), duration=4.0, video="_b-d2JbRm-w.mkv"),
        },
        dropped={"train": {"reversed interval": 1}},
    )


@_layout
def qvhighlights() -> Layout:
    """Several windows of a query, the last past the end; a test split without windows; dots in names."""
    row = temporal.QV_ROW | {"duration": 15, "relevant_windows": [[8, 11], [0, 2], [14, 16]]}
    val, test = row | {"vid": "2I9-kvemtSU_510.0_660.0"}, row | {"vid": "9c1zrRCzLHc_0.0_150.0"}
    return Layout(
        files={
            "highlight_train_release.jsonl": [
                row,
                row | {"qid": 2580, "query": "A cake.", "relevant_windows": [[0, 2]]},
            ],
            "highlight_val_release.jsonl": [val],
            "highlight_test_release.jsonl": [temporal.changed(test, "relevant_windows", temporal.GONE)],
        },
        videos={split: {f"{one['vid']}.mp4": 15} for split, one in (("train", row), ("val", val), ("test", test))},
        rows={"train": 4, "val": 1, "test": 1},
        expected={
            "train/NUsG9BgSes0_210.0_360.0/2579/0": _spans((8, 11), duration=15.0),
            "train/NUsG9BgSes0_210.0_360.0/2579/2": _spans((14, 15)),
            "train/NUsG9BgSes0_210.0_360.0/2580": _spans((0, 2)),
            "val/2I9-kvemtSU_510.0_660.0/2579": _spans((8, 11), (0, 2), (14, 16)),
            "test/9c1zrRCzLHc_0.0_150.0/2579": _NO_TRUTH,
        },
        options=("--several-intervals", "split"),
        findings={"no ground truth": 1, "past the stated end": 1, "same query, another truth": 2},
    )


@_layout
def tacos() -> Layout:
    """Names of one camera of several; a sentence twice in a video, at other times."""
    row = temporal.TACOS_ROW | {"duration": 21.1}
    val, test = row | {"vid": "s13-d21"}, row | {"vid": "s27-d34"}
    return Layout(
        files={
            "train.jsonl": [row, row | {"qid": 4, "relevant_windows": [[3, 4.5]]}],
            "val.jsonl": [val],
            "test.jsonl": [test],
        },
        videos={
            split: {f"{one['vid']}-cam-002.mp4": 21.2} for split, one in (("train", row), ("val", val), ("test", test))
        },
        rows={"train": 2, "val": 1, "test": 1},
        expected={
            "train/s33-d50/0": _spans((12.347, 17), duration=21.1, video="s33-d50-cam-002.mp4"),
            "train/s33-d50/1": _spans((3, 4.5)),
            "val/s13-d21/0": _spans((12.347, 17)),
            "test/s27-d34/0": _spans((12.347, 17)),
        },
        findings={"same query, another truth": 1},
    )


@_layout
def temporal_r1() -> Layout:
    """A YAML of two lists, one drawn from; fractions with a length, and above 1 without one; a list by itself."""
    one = qa.TVG | {"video_length": 20}
    config = [
        {"json_path": "anet.json", "data_folder": "activitynet"},
        {"json_path": "charades.jsonl", "data_folder": "Charades/videos", "sampling_strategy": "first:1"},
    ]
    return Layout(
        files={
            "train.yaml": json.dumps({"datasets": config}),
            "anet.json": [one, one | {"problem": "When does she bow?", "solution": [0.5, 0.25]}],
            "charades.jsonl": [qa.CHARADES, qa.CHARADES | {"video": "NOONE.mp4"}],
            "val.json": [one | {"video": "activitynet/v_eval0000000.mp4", "solution": [0.1, 0.35]}],
            "test.jsonl": [one | {"video": "activitynet/v_bXdq2zI1Ms0.mp4"}],
        },
        videos={
            "train": {"activitynet/v_QOlSCBRmfWY.mp4": 20, "Charades/videos/AO8RW.mp4": 10},
            "val": {"activitynet/v_eval0000000.mp4": 20},
            "test": {"activitynet/v_bXdq2zI1Ms0.mp4": 20},
        },
        rows={"train": 2, "val": 1, "test": 1},
        expected={
            "train/anet/anet_train/v_QOlSCBRmfWY.mp4/0": _spans((5, 10), duration=20.0),
            "train/charades/charades_train/AO8RW.mp4/0": _spans((1, 10.4), duration=10.0),
            "val/val/anet_train/activitynet/v_eval0000000.mp4/0": _spans((2, 7)),
            "test/test/anet_train/activitynet/v_bXdq2zI1Ms0.mp4/0": _spans((5, 10)),
        },
        dropped={"train": {"reversed interval": 1}},
        findings={"past the stated end": 1},
    )


@_layout
def timerft() -> Layout:
    """Paths that begin with another machine's folders, colons in names, a file cut from a longer video, a late end."""
    whole, cut = temporal.TIMERFT_ROW | {"duration": 9.3}, temporal.TIMERFT_CUT
    return Layout(
        files={
            "train_2k5.json": [whole, cut, temporal.changed(whole, "pred", temporal.GONE) | {"sentence": "A hook."}]
        },
        videos={"train": {"timerft_data/QtWT8rxUuNk.mp4": 9.4, cut["video"].rpartition("/videos/")[2]: 63.8}},
        rows={"train": 3},
        expected={
            "train/timerft_data/QtWT8rxUuNk.mp4/0": _spans((1, 4), duration=9.3),
            f"train/{cut['video'].rpartition('/videos/')[2]}/0": _spans((59.1, 64.2), duration=63.7, video_start=None),
        },
        findings={"past the stated end": 1},
    )


@_layout
def tvgbench() -> Layout:
    """A part of a file, whose times count from its start, beside a whole file; one late end."""
    late = temporal.TVG_ROW | {"answer": "25.1-30.5", "question": "a person stands up."}
    return Layout(
        files={"tvgbench.json": [temporal.TVG_ROW, temporal.TVG_EGO, late]},
        videos={"test": {"tvgbench_data/KWZSA.mp4": 30.2, "tvgbench_data/bbd99850-bcb0.mp4": 72}},
        rows={"test": 3},
        expected={
            "test/tvgbench_data/KWZSA.mp4/0": _spans((13.4, 28.1), duration=30.12, video_start=None, video_end=None),
            "test/tvgbench_data/bbd99850-bcb0.mp4/0": _spans((0.81, 12.09), video_start=0.93, video_end=70.88),
        },
        findings={"past the stated end": 1},
    )


# --- questions and one's own ------------------------------------------------------------------------------------------


@_layout
def generic() -> Layout:
    """Names without an ending, several intervals, a clip with a tube, a question, a split without ground truth."""
    tube = {"first_frame": 15, "boxes": [[-2, 4, 30, 40.5], [0, 4, 32, 40]]}
    part = {"video": "more/b.mkv", "query": "A man waves.", "clip": [2, 8], "start": 1, "end": 3, "tube": tube}
    question = {"video": "c.mp4", "query": "What stops?", "start": 2, "end": 4, "options": ["a car", "a bus"]}
    return Layout(
        files={
            "train.jsonl": [
                {"video": "a.mp4", "query": "The red car stops.", "start": 1, "end": 2.5, "extra": {"source": "mine"}},
                {"video": "a", "query": "It moves on.", "id": 17, "intervals": [[0, 1], [4, 5.5]]},
                part | {"prompt": "When does the man wave?"},
            ],
            "val.jsonl": [question | {"answer": "B"}],
            "test.jsonl": [{"video": "d.mp4", "query": "A dog barks."}],
        },
        videos={"train": {"a.mp4": 6, "more/b.mkv": 9}, "val": {"c.mp4": 6}, "test": {"d.mp4": 6}},
        rows={"train": 4, "val": 1, "test": 1},
        expected={
            "train/a.mp4/0": _spans((1, 2.5), duration=6.0, query="the red car stops"),
            "train/17/0": _spans((0, 1)),
            "train/17/1": _spans((4, 5.5)),
            "train/more/b.mkv/0": _spans((1, 3), duration=6.0, video_start=2.0, video_end=8.0, boxes=None),
            "val/c.mp4/0": _spans((2, 4), answer="B", options=["a car", "a bus"]),
            "test/d.mp4/0": _NO_TRUTH,
        },
        options=("--several-intervals", "split"),
        findings={"no ground truth": 1, "same query, another truth": 1},
    )


@_layout
def nextgqa() -> Layout:
    """Segments beside the questions, several of them, before the start and past the end; mapped names of videos."""
    glad = "4152556613,400,640,480,how is {},glad,{},TC,sad,glad,shy,weary,afraid"
    rows = [
        qa.BOY,
        qa.BOY.replace("pick", "put").replace(",1,CW", ",6,CW"),
        glad.format("she", 0),
        glad.format("he", 4),
    ]
    other = {"2574374895": {"duration": 24, "location": {"1": [[2, 5.5]]}, "fps": 30}}
    return Layout(
        files={
            "val.csv": "\n".join((qa.HEADER, *rows)) + "\n",
            "gsub_val.json": qa.GSUB,
            "test.csv": f"{qa.HEADER}\n{qa.BOY.replace('4882821564', '2574374895')}\n",
            "gsub_test.json": other,
            "map_vid_vidorID.json": qa.NAMES,
        },
        videos={
            "val": {"1164/4882821564.mp4": 90, "0000/4152556613.mp4": 16.4},
            "test": {"1101/2574374895.mp4": 24},
        },
        rows={"val": 4, "test": 1},
        expected={
            "val/4882821564/1": _spans((5.5, 9), answer="B", duration=90.0, video="1164/4882821564.mp4"),
            "val/4882821564/6": _spans((1, 3.5), (20.2, 31)),
            "val/4152556613/0": _spans((-0.1, 11)),
            "test/2574374895/1": _spans((2, 5.5), option="B"),
        },
        findings={"before the start": 1, "past the stated end": 1},
    )


@_layout
def rextime() -> Layout:
    """Videos of two collections; an empty span in val; a test split whose truth is a placeholder."""
    row = qa.REX | {"duration": 20.5}
    late = row | {"qid": "anet_val93", "question": "Why does she smile?", "span": [17, 22], "ans": "C"}
    empty = qa.REX_QVH | {"duration": 15, "span": [1, 1]}
    test = row | {"qid": "t1", "vid": "v_bXdq2zI1Ms0", "span": [-1, -1], "ans": ""}
    return Layout(
        files={
            "rextime_train.json": [row, late],
            "rextime_val.json": [empty, empty | {"qid": "qvh_val242", "question": "And then?", "span": [2, 9]}],
            "rextime_test_release.json": [test],
        },
        videos={
            "train": {"v_ZMTi498qnPc.mp4": 21},
            "val": {"2I9-kvemtSU_510.0_660.0.mp4": 15},
            "test": {"v_bXdq2zI1Ms0.mp4": 20.6},
        },
        rows={"train": 2, "val": 2, "test": 1},
        expected={
            "train/anet_val92": _spans((5, 8), answer="A", duration=20.5),
            "val/qvh_val241": _spans((1, 1), answer="D"),
            "test/t1": _NO_TRUTH | {"answer": None, "options": qa.REX["options"]},
        },
        findings={"past the stated end": 1, "no ground truth": 1},
    )


# --- tubes and masks --------------------------------------------------------------------------------------------------

_OVER = {"bbox": [[-3, 5, 20, 30], [50, 10, 20, 30]] * 56, "img_size": [48, 64, 3]}
_OVER_XYXY = [[-3.0, 5.0, 17.0, 35.0], [50.0, 10.0, 70.0, 40.0]] * 56
_HALVES = _OVER | {"bbox": sorted(_OVER["bbox"])}
_HALVES_XYXY = sorted(_OVER_XYXY)


@_layout
def hc_stvg_v1() -> Layout:
    """Captions, frames that count from 1, boxes over the border, a matroska file, a row that no target is known for."""
    one, two = tubes.V1 | {"width": 64, "height": 48}, tubes.changed(tubes.V2 | _HALVES, ["English"], tubes.GONE)
    two["caption"] = "The man opens the door."
    return Layout(
        files={
            "anno_v1/train.json": {"55_vfjywN5CN0Y.mp4": one, "9_uE0oXX7l4aQ.mp4": one},
            "anno_v1/test.json": {"3_5MxjqHfkWFI.mkv": two},
        },
        videos={
            "train": {"55_vfjywN5CN0Y.mp4": (20, 30), "9_uE0oXX7l4aQ.mp4": (20, 30)},
            "test": {"3_5MxjqHfkWFI.mkv": (20, 25)},
        },
        rows={"train": 1, "test": 1},
        expected={
            "train/55_vfjywN5CN0Y.mp4": _spans(
                (one["st_time"], one["ed_time"]), object_id=4, duration=20.0, boxes=None
            ),
            "test/3_5MxjqHfkWFI.mkv": _spans((0, 4.5), object_id=1, first_frame=0, boxes=_HALVES_XYXY),
        },
        dropped={"train": {"no target ID": 1}},
        targets={"train/55_vfjywN5CN0Y.mp4": 4, "test/3_5MxjqHfkWFI.mkv": 1},
    )


@_layout
def hc_stvg_v2() -> Layout:
    """English beside a caption, names that end in .mkv where the file does not, part folders, a test split without
    truth, and a film of which one clip is in training and another in val, with a tube longer than its time.
    """
    both, film = tubes.V2 | _OVER | {"caption": "another wording"}, tubes.V2 | _OVER | {"st_frame": 26, "st_time": 1}
    return Layout(
        files={
            "anno_v2/train_v2.json": {"20_D8Vhxbho1fY.mp4": both, "3_5MxjqHfkWFI.mkv": film},
            "anno_v2/val_v2.json": {"21_D8Vhxbho1fY.mkv": film},
            "anno_v2/query_v2.json": {"7_aMYcLyh9OhU.mkv": "The man picks him up ."},
        },
        videos={
            "train": {"1/20_D8Vhxbho1fY.mp4": (20, 25), "2/3_5MxjqHfkWFI.mp4": (20, 25)},
            "val": {"2/21_D8Vhxbho1fY.mkv": (20, 25)},
            "test": {"15/7_aMYcLyh9OhU.mp4": (20, 25)},
        },
        rows={"train": 2, "val": 1, "test": 1},
        expected={
            "train/20_D8Vhxbho1fY.mp4": _spans((0, 4.5), object_id=2, sentence="The man opens the door."),
            "train/3_5MxjqHfkWFI.mkv": _spans((1, 4.5), object_id=0, video="2/3_5MxjqHfkWFI.mp4"),
            "val/21_D8Vhxbho1fY.mkv": _spans((1, 4.5), object_id=3, first_frame=25, boxes=_OVER_XYXY),
            "test/7_aMYcLyh9OhU.mkv": _NO_TRUTH | {"object_id": None, "duration": 20.0},
        },
        targets={"train/20_D8Vhxbho1fY.mp4": 2, "train/3_5MxjqHfkWFI.mkv": 0, "val/21_D8Vhxbho1fY.mkv": 3},
        findings={"evaluation video in training": 1, "no ground truth": 1, "tube": 1},
        serious=True,
    )


@_layout
def mevis() -> Layout:
    """Masks of one and of several objects in 10 frames, from whose first and last mask the interval follows; a test
    split without masks.
    """
    frames = [f"{k:05d}" for k in range(10)]
    meta = {"videos": {vid: one | {"frames": frames} for vid, one in tubes.MEVIS["videos"].items()}}
    masks = {one: track + [None] * (len(frames) - len(track)) for one, track in tubes.MASKS.items()}
    bare = {"videos": {"c5a1e3b47f02": {"frames": frames, "expressions": {"4": {"exp": "Dog, turning."}}}}}
    videos = {"4e2f6e4f6f5b.mp4": 2, "0ab4afe7fb46.mp4": 2}
    return Layout(
        files={
            "train/meta_expressions.json": meta,
            "train/mask_dict.json": masks,
            "valid_u/meta_expressions.json": meta,
            "valid_u/mask_dict.json": masks,
            "valid/meta_expressions.json": bare,
        },
        videos={"train": videos, "val": videos, "test": {"c5a1e3b47f02.mp4": 2}},
        rows={"train": 3, "val": 3, "test": 1},
        expected={
            "train/4e2f6e4f6f5b/0": {"duration": 2.0, "intervals": [[0.0, 0.2]]},
            "val/4e2f6e4f6f5b/1": {"query": "both birds", "duration": 2.0, "intervals": [[0.0, 0.4]]},
            "test/c5a1e3b47f02/4": _NO_TRUTH | {"query": "dog, turning"},
        },
        options=("--template", "time_r1"),
        findings={"no ground truth": 1, "evaluation video in training": 3},
        serious=True,
    )


@_layout
def st_align() -> Layout:
    """A part of a file in frames, without a rate and with one, and the tube, annotated in frames of the whole file."""
    boxes = [[float(10 + k), 20.0, float(40 + k), 60.0] for k in range(3)]
    rated = tubes.changed(tubes.ALIGN, ["meta", "fps"], 25)
    rated["conversations"] = [{"from": "human", "value": "<video>\nWhat runs?"}]
    return Layout(
        files={"st-align/stvg.json": [tubes.ALIGN, rated]},
        videos={"test": {"vidor/0004/7771650716.mp4": (12, 25)}},
        rows={"test": 2},
        expected={
            f"test/vidor/0004/7771650716.mp4/{k}": _spans(
                (1, 1.12), duration=4.0, video_start=2.0, video_end=6.0, first_frame=25, boxes=boxes
            )
            for k in range(2)
        },
        options=("--template", "stvg_boxes"),
    )


@_layout
def vidstg() -> Layout:
    """Sentences beside VidOR's boxes; a segment in the middle of its video; a target that has no box there."""
    vids = {"train": "7771650716", "val": "2400171624", "test": "5840014160"}
    entries = {split: tubes.STG | {"vid": vid, "questions": []} for split, vid in vids.items()}
    lost = tubes.changed(entries["train"], ["captions", 0, "target_id"], 99)
    boxes = {"train": "training/0004", "val": "training/0005", "test": "validation/1001"}
    return Layout(
        files={
            "train_annotations.json": [tubes.STG, lost],
            "val_annotations.json": [entries["val"]],
            "test_annotations.json": [entries["test"]],
            **{f"vidor/{boxes[split]}/{vid}.json": tubes.vidor() for split, vid in vids.items()},
        },
        videos={split: {f"{boxes[split][-4:]}/{vid}.mp4": (12, 25)} for split, vid in vids.items()},
        rows={"train": 3, "val": 1, "test": 1},
        expected={
            "train/7771650716/0/declarative/0": _spans(
                (1, 1.12),
                duration=4.0,
                video="0004/7771650716.mp4",
                video_start=2.0,
                video_end=6.0,
                first_frame=25,
                boxes=[[float(x), 0.0, float(x + 20), 30.0] for x in (75, 76, 77)],
            ),
            "train/7771650716/0/interrogative/1": _spans((1, 1.12), query="who is behind the dog?"),
            "val/2400171624/0/declarative/0": _spans((1, 1.12), first_frame=25),
            "test/5840014160/0/declarative/0": _spans((1, 1.12), first_frame=25),
        },
        dropped={"train": {"malformed entry": 1}},
        options=("--template", "stvg_boxes", *_DROP),
    )
