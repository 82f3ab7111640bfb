"""HC-STVG and VidSTG for lmms-eval: yaml files, prompts, parts of videos and numbers; with the library where it is."""

import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_builders.sets import test_tubes as published
from tests.data_builders.test_build import run
from tests.data_builders.test_target_id import rle
from tests.support import set_fixtures
from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.eval.lmms_eval_tasks import utils
from verl_stvg.eval.metrics import temporal, tubes
from verl_stvg.video.decode import probe
from verl_stvg.video.tracks import Track, Tracks, save, track_name

FOLDER = Path(utils.__file__).parent
TASKS = ("hc_stvg_v1", "hc_stvg_v2", "vidstg_declarative", "vidstg_interrogative")
TEMPORAL = {"m_tIoU", "R1@0.3", "R1@0.5", "R1@0.7"}
PLACED = TEMPORAL | {"m_vIoU", "vIoU@0.3", "vIoU@0.5", "m_vIoU_repaired"}

SIZE = set_fixtures.SIZE
HC = {  # 5 frames per second: the tube is frames 5 to 21
    "bbox": [[10, 5, 20, 30]] * 17,
    "st_frame": 6,
    "st_time": 1,
    "ed_time": 4.4,
    "img_num": 100,
    "img_size": [SIZE[1], SIZE[0], 3],
    "English": "The man opens the door.",
}
HC_VIDEOS = ("1/20_D8Vhxbho1fY.mkv", "2/21_D8Vhxbho1fY.mkv", "2/3_5MxjqHfkWFI.mkv")
VID = "1001/5840014160"
# Shown are frames 50 to 149 at 25 per second, and the tube is frames 75 to 99: 1 to 2 s of 4.
STG = {key: value for key, value in published.STG.items() if key not in ("width", "height")} | {
    "vid": "5840014160",
    "temporal_gt": {"begin_fid": 75, "end_fid": 100},
}
ROWS = (
    *(("stvg_r1", "hc_stvg_v2", "val"), ("time_r1", "hc_stvg_v2", "val"), ("temporal_r1", "hc_stvg_v2", "val")),
    *(("stvg_r1", "vidstg", "test"), ("time_r1", "vidstg", "test"), ("stvg_boxes", "vidstg", "test")),
)
TARGET, OTHER = (10, 5, 30, 35), (20, 5, 40, 35)  # IoU 1/3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Folder with videos, numbered videos, tracks, and rows of several templates."""
    folder = tmp_path_factory.mktemp("lmms")
    for name, seconds, rate in [(name, 20, 5) for name in HC_VIDEOS] + [(f"{VID}.mp4", 12, 25)]:
        video = folder / "videos" / name
        set_fixtures._put(video, set_fixtures._video(seconds, rate, 1, video.suffix))
        numbered = (folder / "numbered" / name).with_suffix(".mp4")
        set_fixtures._put(numbered, set_fixtures._video(seconds, rate, 2, ".mp4"))
        save(tracked(seconds * rate, rate), folder / "tracks" / track_name(name))
    anno = folder / "annotations"
    published.write(anno / "anno_v2/val_v2.json", {Path(name).name: HC for name in HC_VIDEOS})
    published.write(anno / "test_annotations.json", [STG])
    published.write(anno / f"vidor/validation/{VID}.json", vidor())
    target = {"uid": f"hc_stvg_v2/val/{Path(HC_VIDEOS[0]).name}", "object_id": 1}  # of others it is not known
    published.write(folder / "targets.jsonl", target)
    for template, name, split in ROWS:
        places = ("--annotations", anno, "--videos", folder / "videos", "--out", folder / template / name)
        if template == "stvg_r1":
            places += ("--targets", folder / "targets.jsonl")
        assert run("build", name, "--split", split, "--template", template, "--workers", 1, *places)[0] == 0
    return folder


def tracked(num_frames: int, fps: float) -> Tracks:
    """Object 1 where the target is, object 2 beside it, object 3 in the first frames only."""

    def track(number: int, box: tuple, frames: range) -> Track:
        x1, y1, x2, y2 = box
        mask = rle((x1, y1, x2 - 1, y2 - 1), size=SIZE[::-1])
        return Track(number, "person", 0.9, dict.fromkeys(frames, mask))

    everywhere = range(num_frames)
    tracks = track(1, TARGET, everywhere), track(2, OTHER, everywhere), track(3, OTHER, range(num_frames // 10))
    return Tracks(SIZE[1], SIZE[0], num_frames, float(fps), tracks)


def vidor() -> dict:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), TARGET, strict=True))
    return {"trajectories": [[{"tid": tid, "bbox": sides} for tid in (0, 7)] for _ in range(300)]}


@pytest.fixture
def rows(world, monkeypatch):
    """Rows of a template and a set, as lmms-eval would hand them over."""

    def of(template: str, name: str) -> list[dict]:
        for variable, place in (("ROWS", template), ("NUMBERED", "numbered"), ("TRACKS", "tracks")):
            monkeypatch.setenv(f"VERL_STVG_{variable}", str(world / place))
        [file] = getattr(utils, name).values()
        return pq.read_table(file).to_pylist()

    return of


def tag(interval: tuple[float, float], object_id: int | None = None) -> str:
    start, end = interval
    said = f"{start:.2f} to {end:.2f}"
    return f"<answer>{said if object_id is None else f'Target ID: {object_id}, Time range: {said}'}</answer>"


# --- the definitions


def config(task: str) -> dict:
    """A yaml file as lmms-eval reads it."""

    class Loader(yaml.FullLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: getattr(utils, node.value.removeprefix("utils.")))
    found = yaml.load((FOLDER / f"{task}.yaml").read_text(), Loader)
    if "include" in found:
        found = yaml.load((FOLDER / found.pop("include")).read_text(), Loader) | found
    return found


def test_every_file_is_a_task_or_their_group():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted((*TASKS, "vidstg"))
    assert set(config("vidstg")["task"]) == {task for task in TASKS if task.startswith("vidstg")}


@pytest.mark.parametrize("task", TASKS[1:])
def test_what_a_definition_names_is_there(task, rows):
    rows("time_r1", "hc_stvg_v2")
    found = config(task)
    assert found["task"] == task
    assert {one["metric"] for one in found["metric_list"]} == PLACED
    assert all(one["aggregation"] == "mean" and one["higher_is_better"] for one in found["metric_list"])
    [(split, file)] = found["dataset_kwargs"]["data_files"].items()
    assert split == found["test_split"] and Path(file).is_file()
    assert [name for name, value in found.items() if callable(value)] == [
        *("doc_to_visual", "doc_to_text", "doc_to_messages", "doc_to_target", "process_results"),
        *(["process_docs"] if task.startswith("vidstg") else []),
    ]


def test_kinds_of_sentences(rows):
    datasets = pytest.importorskip("datasets")
    given_rows = datasets.Dataset.from_list(rows("time_r1", "vidstg"))
    asked, said = utils.interrogative(given_rows), utils.declarative(given_rows)
    assert [row["query"] for row in said["extra_info"]] == ["a dog walks in front of a man"]
    assert [row["query"] for row in asked["extra_info"]] == ["what walks in front of a man?", "who is behind the dog?"]
    with pytest.raises(ValueError, match="none of 1 rows of VidSTG is interrogative"):
        utils.interrogative(said)


# --- prompts and videos


def test_messages_keep_turns_and_the_place_of_the_video(rows, world):
    row = rows("time_r1", "hc_stvg_v2")[0]
    [turn] = utils.doc_to_messages(row)
    assert turn["role"] == "user" and [part["type"] for part in turn["content"]] == ["text", "video"]
    assert turn["content"][0]["text"] == utils.doc_to_text(row) and "the man opens the door" in utils.doc_to_text(row)
    assert turn["content"][1]["url"] == str(world / "videos" / HC_VIDEOS[0])
    row = rows("temporal_r1", "hc_stvg_v2")[0]
    system, user = utils.doc_to_messages(row)
    assert (system["role"], [part["type"] for part in system["content"]]) == ("system", ["text"])
    assert [part["type"] for part in user["content"]] == ["video", "text"]
    assert utils.doc_to_text(row) == f"{system['content'][0]['text']}\n{user['content'][1]['text']}"
    assert utils.doc_to_target(row) == "1.00 to 4.40"


def test_an_answer_with_an_id_is_about_the_numbered_video(rows, world):
    row = rows("stvg_r1", "hc_stvg_v2")[1]
    assert utils.doc_to_visual(row) == [str(world / "numbered/2/21_D8Vhxbho1fY.mp4")]


def test_a_part_of_a_video_is_shown_as_a_file_of_its_own(rows, world):
    row = rows("time_r1", "vidstg")[0]
    [part] = map(Path, utils.doc_to_visual(row))
    assert part.parent == world / "time_r1/vidstg/parts" and list(part.parent.iterdir()) == [part]
    info = probe(part)
    assert (info.num_frames, info.fps, info.width, info.height) == (100, 25, *SIZE)
    source = VideoFrames(world / "videos" / f"{VID}.mp4")
    for frame in (0, 40, 99):  # noise that moves by a pixel each frame: another frame differs by far more
        here = VideoFrames(part).read(frame, frame + 1).astype(int)
        there, other = source.read(50 + frame, 51 + frame), source.read(frame, frame + 1)
        assert np.abs(here - there).mean() < 10 < np.abs(here - other).mean()

    made = part.stat().st_mtime_ns
    assert utils.doc_to_visual(row) == [str(part)] and part.stat().st_mtime_ns == made
    os.utime(world / "videos" / f"{VID}.mp4")
    assert utils.doc_to_visual(row) == [str(part)] and part.stat().st_mtime_ns > made
    assert utils.doc_to_visual(rows("stvg_r1", "vidstg")[0]) != [str(part)]


def test_a_part_may_have_one_bound_only(rows):
    """The other one is the file's start, or the end of what the row says is shown: here 2 to 6 s of 12."""
    row = rows("time_r1", "vidstg")[0]
    for unset, num_frames in (("video_start", 150), ("video_end", 100)):
        [part] = utils.doc_to_visual(row | {"videos": [row["videos"][0] | {unset: None}]})
        assert probe(part).num_frames == num_frames


# --- numbers

TRUE = (1.0, 4.4)


@pytest.mark.parametrize(
    ("answer", "tiou", "viou", "repaired"),
    [
        (tag(TRUE, 1), 1.0, 1.0, 1.0),
        (tag((1.0, 7.8), 1), 0.5, 0.5, 0.5),  # frames 5 to 38
        (tag((2.0, 4.4), 1), 12 / 17, 12 / 17, 12 / 17),
        (tag(TRUE, 2), 1.0, 1 / 3, 1 / 3),
        (tag(TRUE, 3), 1.0, 5 / 17 / 3, (5 / 3 + 12 / 3) / 17),  # in frames 5 to 9; then what overlaps most, object 2
        (tag(TRUE, 9), 1.0, 0.0, 1.0),  # nobody; then the first of the largest, object 1
        (tag((5.0, 9.0), 1), 0.0, 0.0, 0.0),
        (tag((4.4, 1.0), 1), 0.0, 0.0, 0.0),
        (f"<answer>Target ID: 1, Time range: 1.00 to {'9' * 400}</answer>", 0.0, 0.0, 0.0),
        (tag((1.0, 400.0), 1), 17 / 1995, 17 / 1995, 17 / 1995),
        (tag(TRUE), 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_numbers_of_answers_with_an_id(rows, answer, tiou, viou, repaired):
    found = utils.process_results(rows("stvg_r1", "hc_stvg_v2")[0], [answer])
    assert found.keys() == PLACED
    expected = {f"R1@{m}": float(tiou >= m) for m in (0.3, 0.5, 0.7)}
    expected |= {f"vIoU@{m}": float(viou > m) for m in (0.3, 0.5)}
    assert found == pytest.approx({"m_tIoU": tiou, "m_vIoU": viou, "m_vIoU_repaired": repaired, **expected})


def test_numbers_of_a_part_of_a_video(rows):
    row = rows("stvg_r1", "vidstg")[2]
    found = utils.process_results(row, [tag((1.5, 2.5), 1)])  # frames 88 to 112 of the file
    assert found["m_tIoU"] == found["m_vIoU"] == pytest.approx(12 / 38)
    row = rows("stvg_boxes", "vidstg")[2]
    boxes = {str(frame): list(TARGET if frame % 2 else OTHER) for frame in range(25, 50)}
    text = f'<answer>{{"time": [1, 2], "boxes": {boxes}}}</answer>'.replace("'", '"')
    found = utils.process_results(row, [text])
    assert found["m_tIoU"] == 1.0 and found["m_vIoU"] == found["m_vIoU_repaired"] == pytest.approx((13 + 12 / 3) / 25)


def test_prompts_for_times_give_times_only(rows):
    row = rows("temporal_r1", "hc_stvg_v2")[0]
    found = utils.process_results(row, ['<answer>{"start_time": "1.0", "end_time": "2.7"}</answer>'])
    assert found == {"m_tIoU": 9 / 17, "R1@0.3": 1.0, "R1@0.5": 1.0, "R1@0.7": 0.0}  # frames 5 to 13
    assert utils.process_results(row, [tag(TRUE)])["m_tIoU"] == 0.0  # the answer of another prompt
    assert utils.process_results(rows("time_r1", "vidstg")[0], [tag((1, 2))])["m_tIoU"] == 1.0


SECONDS = st.integers(0, 100).map(lambda k: k / 5)
ANSWERS = st.lists(st.none() | st.tuples(SECONDS, SECONDS, st.integers(1, 2)), min_size=1, max_size=6)


@settings(max_examples=30)
@given(answers=ANSWERS)
def test_means_are_those_of_the_metrics(answers, world):
    """Means of single answers, as lmms-eval takes them, equal the metrics of all answers at once."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, place in (("ROWS", "stvg_r1"), ("NUMBERED", "numbered"), ("TRACKS", "tracks")):
            patch.setenv(f"VERL_STVG_{variable}", str(world / place))
        row = pq.read_table(world / "stvg_r1/hc_stvg_v2/val.parquet").slice(0, 1).to_pylist()[0]
        texts = ["nothing" if one is None else tag(one[:2], one[2]) for one in answers]
        each = [utils.process_results(row, [text]) for text in texts]
    seconds = temporal.iou_hull(temporal.as_intervals(one and one[:2] for one in answers), [TRUE] * len(answers))
    boxes = {1: TARGET, 2: OTHER}
    said = [
        one and {k: boxes[one[2]] for k in range(round(5 * one[0]), min(100, round(5 * one[1])))} for one in answers
    ]
    frames, viou = tubes.scores(said, [tubes.consecutive(5, [TARGET] * 17)] * len(answers))
    expected = temporal.summary(seconds) | tubes.summary(frames, viou)
    del expected["mIoU"]
    assert {name: np.mean([one[name] for one in each]) for name in expected} == pytest.approx(expected)


# --- bad input


def test_what_cannot_be_asked_or_scored_is_refused_before_a_model_is_asked(rows, world, monkeypatch, tmp_path):
    row = rows("stvg_r1", "hc_stvg_v2")[0]
    uid = "hc_stvg_v2/val/20_D8Vhxbho1fY.mkv"
    assert utils.doc_to_text(row)
    spoilt = {
        "has no ground truth; build with --unusable-truth drop": {"intervals": None, "start": None, "end": None},
        "has no annotated boxes": {"boxes": None},
    }
    for said, change in spoilt.items():
        truth = row["reward_model"]["ground_truth"] | change
        with pytest.raises(ValueError, match=f"{uid}: {said}"):
            utils.doc_to_text(row | {"reward_model": {"ground_truth": truth}})
    with pytest.raises(ValueError, match="reward stvg_r1_multi give no single time; build with another template"):
        utils.doc_to_text(row | {"data_source": "stvg_r1_multi/hc_stvg_v2"})
    for variable, said in (("NUMBERED", "objects render"), ("TRACKS", "objects track")):
        with monkeypatch.context() as patch:
            patch.setenv(f"VERL_STVG_{variable}", str(tmp_path))
            with pytest.raises(ValueError, match=f"{uid}: no .* {tmp_path}.*; run `verl-stvg {said}`"):
                utils.doc_to_text(row)
            patch.delenv(f"VERL_STVG_{variable}")
            with pytest.raises(ValueError, match=f"VERL_STVG_{variable} is not set"):
                utils.doc_to_text(row)

    row = rows("time_r1", "hc_stvg_v2")[0]
    monkeypatch.setenv("VERL_STVG_VIDEOS", str(tmp_path))
    with pytest.raises(ValueError, match=f"{uid}: no video {tmp_path}.*VERL_STVG_VIDEOS"):
        utils.doc_to_text(row)


def test_missing_rows_are_named(rows, monkeypatch):
    rows("time_r1", "hc_stvg_v2")
    with pytest.raises(ValueError, match=r"hc_stvg_v1/test.parquet: no such file; run `verl-stvg build hc_stvg_v1"):
        _ = utils.hc_stvg_v1
    monkeypatch.delenv("VERL_STVG_ROWS")
    with pytest.raises(ValueError, match="VERL_STVG_ROWS is not set"):
        _ = utils.vidstg
    with pytest.raises(AttributeError, match="no attribute 'vidstg_v2'"):
        _ = utils.vidstg_v2


def test_a_part_outside_of_the_file_is_refused(rows, world):
    row = rows("time_r1", "vidstg")[0]
    entry = row["videos"][0] | {"video_start": 12.0, "video_end": 16.0}
    with pytest.raises(ValueError, match="has 12.00 s, and the row shows 12.00 to 16.00 s of it"):
        utils.doc_to_visual(row | {"videos": [entry]})


# --- the library itself


@pytest.mark.slow
@pytest.mark.parametrize("simple", [True, False])
def test_lmms_eval_prints_our_numbers(simple, rows, world, monkeypatch, tmp_path):
    """A model that knows some answers, through task index, requests, filters and aggregation of lmms-eval."""
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path))
    asked = defaultdict(list)

    class Model(lmms):
        is_simple = simple

        def generate_until(self, requests):
            said = []
            for request in requests:
                if simple:
                    text, kwargs, visual, number, task, split = request.args
                    video = visual(self.task_dict[task][split][number])
                else:
                    text, messages, kwargs, number, task, split = request.args
                    content = messages(self.task_dict[task][split][number])[-1]["content"]
                    video = [part["url"] for part in content if part["type"] == "video"]
                assert kwargs["until"] == [] and Path(*video).is_file() and "Target ID" in text
                asked[task].append(answers[task][number])
                said.append(asked[task][-1])
            return said

        def loglikelihood(self, requests):
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    answers = {
        "hc_stvg_v2": [tag(TRUE, 1), tag((1.0, 7.8), 2), "<think>\n\n</think>\n\nno idea"],
        "vidstg_declarative": [f"<think>A\n\nB</think>\n\n{tag((1, 2), 1)}"],
        "vidstg_interrogative": [tag((1.0, 3.0), 1), tag((1, 2), 2)],
    }
    docs = {"hc_stvg_v2": rows("stvg_r1", "hc_stvg_v2")}
    docs["vidstg_declarative"], *rest = [[one] for one in rows("stvg_r1", "vidstg")]
    docs["vidstg_interrogative"] = [row for one in rest for row in one]
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    assert set(manager.all_subtasks) == set(TASKS) and manager.all_groups == ["vidstg"]
    found = simple_evaluate(Model(), tasks=["hc_stvg_v2", "vidstg"], task_manager=manager, bootstrap_iters=0)["results"]
    assert asked == answers
    for task, texts in answers.items():
        each = [utils.process_results(row, [text]) for row, text in zip(docs[task], texts, strict=True)]
        expected = {name: np.mean([one[name] for one in each]) for name in PLACED}
        assert {name: found[task][f"{name},none"] for name in PLACED} == pytest.approx(expected, abs=1e-12), task
    assert found["hc_stvg_v2"]["m_tIoU,none"] == pytest.approx(0.5)
    assert found["vidstg_declarative"]["m_vIoU,none"] == pytest.approx(1.0, abs=0.02)
    shutil.rmtree(world / "stvg_r1/vidstg/parts")
