"""The report says what the run's files say, stands alone, escapes what a model wrote, and survives missing pieces."""

import base64
import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reward_fns import RECIPES
from verl_stvg.data_builders.row_schema import ROW_SCHEMA
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.eval.benchmarks.items import Prediction, read_rows
from verl_stvg.eval.metrics.intervals import bootstrap
from verl_stvg.eval.report import charts, clips, comparison, evaluations, of_evaluation, of_run, replies, runs, training
from verl_stvg.eval.report import page as report
from verl_stvg.eval.score import score
from verl_stvg.rows.answers import Answer, append
from verl_stvg.video import thumbnails, tracks

NUM_VAL, STEPS, GROUP = 12, 12, 8
SOURCE = "verl_stvg/synthetic"
PARTS = {"temporal_iou": "Temporal IoU", "id_match": "ID accuracy", "format": "Format"}
HOSTILE = '<think><script>alert("x")</script></think><answer>Target ID: 9&9, Time range: 1 to 2</answer>'


def answer(rng, truth, skill):
    """A plausible answer: with probability `skill` near the truth, else anywhere; now and then without its format."""
    start, end = truth["start"], truth["end"]
    if rng.random() > skill:
        start, end = sorted(rng.uniform(0, truth["duration"], 2))
    object_id = truth["object_id"] if rng.random() < 0.25 + 0.7 * skill else int(rng.integers(1, 10))
    start, end = (float(np.clip(t + rng.normal(0, 0.3), 0, truth["duration"])) for t in (start, end))
    text = synthetic.TASKS["stvg_r1"].completion(object_id, start, end, "looking for it")
    return text if rng.random() < 0.75 + 0.25 * skill else text.replace("</think>", "")


def make_run(run_dir, data, steps=STEPS, seed=0, hostile=None):
    """Write a run's folder as verl and the launcher do, with answers that get better; returns the folder."""
    rng = np.random.default_rng(seed)
    rows = pq.read_table(data / "val.parquet").to_pylist()
    recipe = RECIPES["stvg_r1"]
    (run_dir / "validation").mkdir(parents=True)
    lines = []
    for step in range(steps + 1):
        skill = 0.15 + 0.65 * step / steps
        metrics = {}
        if step:
            means = {"temporal_iou": 0.1 + 0.7 * skill, "id_match": 0.2 + 0.7 * skill, "format": 0.8 + 0.2 * skill}
            means = {name: float(np.clip(mean + rng.normal(0, 0.03), 0, 1)) for name, mean in means.items()}
            means["score"] = sum(means.values())
            metrics |= {f"reward/{name}/mean": mean for name, mean in means.items()}
            metrics |= {f"reward/{name}/std": 0.3 for name in means}
            metrics |= {
                "critic/score/mean": means["score"],
                "reward/zero_variance_groups": float(rng.uniform(0, 0.3)),
                "actor/kl_loss": 2e-4 * step * float(rng.uniform(0.8, 1.2)),
                "actor/grad_norm": float(rng.uniform(0.5, 2)),
                "actor/pg_loss": float(rng.normal(0, 0.02)),
                "training/rollout_probs_diff_mean": float(rng.uniform(1e-6, 4e-6)),
                "response_length/mean": 31 + float(rng.normal(0, 0.4)),
                "timing_s/step": 10 + float(rng.uniform(0, 2)),
                "timing_s/gen": 4.0,
            }
        if step % (steps // 4) == 0:
            records = []
            for row in rows:
                truth = row["reward_model"]["ground_truth"]
                output = hostile if hostile and step == steps else answer(rng, truth, skill)
                scored = recipe.score(output, truth)
                gts = truth | {"uid": row["extra_info"]["uid"]}
                record = {"input": "user\nprompt", "output": output, "gts": gts, "step": step}
                records.append(record | scored | {"reward": scored["score"], "uid": f"{rng.integers(2**32):x}"})
            rng.shuffle(records)
            dump = "".join(json.dumps(record) + "\n" for record in records)
            (run_dir / "validation" / f"{step}.jsonl").write_text(dump)
            for name in ("reward", "temporal_iou", "id_match", "format"):
                section = "val-core" if name == "reward" else "val-aux"
                mean = float(np.mean([record[name] for record in records]))
                metrics[f"{section}/{SOURCE}/{name}/mean@1"] = mean
            metrics["val-aux/num_turns/mean"] = 2
        lines.append(json.dumps({"step": step, "data": metrics}) + "\n")
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    record = {
        "recipe": "tiny",
        "arguments": ["--config-name", "tiny", f"actor_rollout_ref.rollout.n={GROUP}", "+a.b=<c>"],
        "train_files": str(data / "train.parquet"),
        "val_files": str(data / "val.parquet"),
        "model": "models/tiny-qwen",
        "started": "2025-01-01T10:00:00+00:00",
        "status": 0,
    }
    (run_dir / "run.json").write_text(json.dumps(record))
    return run_dir


def add_tracks(data):
    """Write rows of the held-out clips as `verl-stvg build` does, with track files and tubes; returns the file."""
    rows = pq.read_table(data / "val.parquet").to_pylist()
    for row in rows:
        truth, extra = row["reward_model"]["ground_truth"], row["extra_info"]
        stem = Path(row["videos"][0]["video"]).stem
        record = json.loads((data / "tracks" / f"{stem}.json").read_text())
        objects = [
            tracks.Track(one["object_id"], one["shape"], None, dict(zip(one["frames"], one["masks"], strict=True)))
            for one in sorted(record["objects"], key=lambda one: one["object_id"])
        ]
        found = tracks.Tracks(*record["size"], record["num_frames"], float(record["fps"]), tuple(objects))
        tracks.save(found, data / "objects" / f"{stem}.tracks.json.gz")
        target = next(one for one in record["objects"] if one["object_id"] == truth["object_id"])
        first, last = target["visible_frames"]
        boxes = dict(zip(target["frames"], target["boxes_xyxy"], strict=True))
        truth |= {"intervals": [[truth["start"], truth["end"]]], "first_frame": first}
        truth["boxes"] = [[float(side) for side in boxes[frame]] for frame in range(first, last + 1)]
        extra |= {"dataset": "synthetic", "split": "val"}
        row["videos"][0] |= {"tracks": f"objects/{stem}.tracks.json.gz", "marker_style": "centred"}
    path = data / "tracked.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)
    return path


def evaluate(folder, rows_file, skill, model="models/tiny-qwen", seed=0, change=None):
    """Write the folder of an evaluation as `verl-stvg eval` does, with answers of that skill; returns the folder."""
    rng = np.random.default_rng(seed)
    rows = list(read_rows([rows_file]))
    said = {}
    for row in rows:
        uid = row["extra_info"]["uid"]
        said[uid] = Answer(uid, (answer(rng, row["reward_model"]["ground_truth"], skill),), ("stop",), (31,))
    if change is not None:
        change(said)
    folder.mkdir(parents=True)
    record = {
        "rows": [str(rows_file)],
        "video_root": None,
        "model": model,
        "sampling": {"engine": "vllm", "samples": 1, "temperature": 0.0, "max_tokens": 256},
        "versions": {"verl-stvg": "0.1.0", "vllm": "0.24.0"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    append(folder / "predictions.jsonl", said.values())
    score(rows, said).write(folder)
    return folder


@pytest.fixture(scope="module")
def rows_file(data):
    return add_tracks(data)


@pytest.fixture(scope="module")
def evaluations_of(tmp_path_factory, rows_file):
    """Folders of two models' evaluations, the second the better one."""
    folder = tmp_path_factory.mktemp("evaluations")
    return [
        evaluate(folder / name, rows_file, skill, f"models/{name}") for name, skill in (("base", 0.3), ("tuned", 0.9))
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("report") / "data", 1, NUM_VAL, seed=3, progress=False)


@pytest.fixture
def run_dir(tmp_path, data):
    return make_run(tmp_path / "run", data)


class Page(HTMLParser):
    """Checks nesting, and keeps tags, attributes and text."""

    void = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] not in (["style"], ["script"]) else ""

    def of(self, tag, **attrs):
        return [a for t, a in self.tags if t == tag and all(v in (a.get(k) or "").split() for k, v in attrs.items())]


def read(run_dir):
    return Page(report.write(run_dir, run_dir / "out" / "report.html").read_text())


def drawn_section(run_dir):
    section = of_run.section(run_dir, clips.PICK)
    report._draw(section, 50_000)
    return section


def scores(answers):
    return {uid: answer.values["score"] for uid, answer in answers.items()}


def test_the_headline_is_the_mean_of_the_dumps(run_dir):
    numbers = report.summarise(run_dir)
    dumps = {}
    for step in (0, STEPS):
        lines = (run_dir / "validation" / f"{step}.jsonl").read_text().splitlines()
        dumps[step] = {line["gts"]["uid"]: line for line in map(json.loads, lines)}
    for part in PARTS:
        before, after = (np.array([dumps[step][uid][part] for uid in dumps[0]]) for step in (0, STEPS))
        row = numbers[part]
        assert row["before"] == pytest.approx(before.mean())
        assert row["after"] == pytest.approx(after.mean())
        assert row["gain"] == pytest.approx(after.mean() - before.mean())
        for name in ("before", "after", "gain"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        # the percentile bootstrap of a mean is about as wide as the normal interval
        deviation = (after - before).std() / np.sqrt(NUM_VAL)
        assert row["gain_high"] - row["gain_low"] == pytest.approx(3.92 * deviation, rel=0.2)
    assert (numbers["steps"], numbers["clips"], numbers["group_size"]) == (STEPS, NUM_VAL, GROUP)
    assert (numbers["first_validation"], numbers["last_validation"]) == (0, STEPS)
    assert 10 < numbers["seconds_per_step"] < 12 and 1e-6 < numbers["rollout_probs_diff"] < 4e-6
    assert json.loads(json.dumps(numbers)) == numbers
    assert report.summarise(run_dir) == numbers


def test_the_page_stands_alone_and_shows_the_run(run_dir):
    page = read(run_dir)
    text = (run_dir / "out" / "report.html").read_text()
    assert len(text) < 5_000_000
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|https?://", text)
    numbers = report.summarise(run_dir)
    for part, name in PARTS.items():
        assert name in page.text and f"{numbers[part]['gain']:+.2f}".replace("-", "−") in page.text
    assert len(page.of("figure", **{"class": "plot"})) == 4 + 7 + 1  # reward, diagnostics without entropy, histogram
    cards = page.of("article")
    assert {card["data-picked"] for card in cards} and len(cards) <= NUM_VAL
    assert len(page.of("img")) == len(cards) * report.NUM_FRAMES
    assert page.of("rect", **{"class": "truth"}) and page.of("rect", **{"class": "after"})
    assert str(run_dir) not in text and "No such" not in page.text and not page.of("div", **{"class": "notices"})
    assert "+a.b=<c>" in page.text


def test_the_page_does_not_depend_on_the_order_of_the_dump(run_dir):
    first = report.write(run_dir, run_dir / "a.html").read_text()
    for path in (run_dir / "validation").glob("*.jsonl"):
        path.write_text("".join(sorted(path.read_text().splitlines(keepends=True))))
    assert report.write(run_dir, run_dir / "b.html").read_text() == first


def sides(box):
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def test_boxes_are_those_of_the_named_object_at_the_named_time(run_dir, data):
    run = runs.read_run(run_dir)
    section = drawn_section(run_dir)
    assert not section["notices"]
    drawn = 0
    for clip in section["clips"]:
        stem = clip["uid"].rpartition("-")[2]
        record = json.loads((data / "tracks" / f"{stem}.json").read_text())
        target = next(o for o in record["objects"] if o["object_id"] == record["target_id"])
        truth = run.validations[0][clip["uid"]].truth
        for frame in clip["frames"]:
            boxes = [box for box in frame["boxes"] if box["kind"] == "truth"]
            index = round(frame["time"] * record["fps"])
            inside = truth["start"] <= frame["time"] < truth["end"]
            assert len(boxes) == inside
            if inside:
                x0, y0, x1, y1 = target["boxes_xyxy"][target["frames"].index(index)]
                left, top, right, bottom = sides(boxes[0])  # around the object, or at the picture's edge
                edge = 0.02 * clip["size"][0]
                assert left < x0 or left < edge
                assert top < y0 or top < edge
                assert right > x1 or right > clip["size"][0] - edge
                assert bottom > y1 or bottom > clip["size"][1] - edge
                assert max(x0 - left, y0 - top, right - x1, bottom - y1) < 0.1 * clip["size"][0]
                assert str(target["object_id"]) in [tag["text"] for tag in frame["tags"]]
                drawn += 1
            sizes = [(box["x"], box["y"], box["width"], box["height"]) for box in frame["boxes"]]
            assert len(set(sizes)) == len(sizes)  # none hides another
            assert all(box["width"] > 0 and box["height"] > 0 for box in frame["boxes"])
    assert drawn > 10


def test_frames_are_those_of_their_times(run_dir, data):
    clip = drawn_section(run_dir)["clips"][0]
    index = int(clip["uid"][-5:])
    spec = synthetic.make_clip(3, "val", index)
    for frame in clip["frames"]:
        raw = np.frombuffer(base64.b64decode(frame["source"].partition(",")[2]), np.uint8)
        image = cv2.imdecode(raw, cv2.IMREAD_COLOR)[..., ::-1]
        true = synthetic.render_frames(spec, [round(frame["time"] * synthetic.SOURCE_FPS)])[0]
        true = cv2.resize(true, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - true).mean() < 6


def test_selections(run_dir):
    run = runs.read_run(run_dir)
    before, after = scores(run.validations[0]), scores(run.validations[STEPS])
    picked = clips.pick(before, after)
    gains = {uid: after[uid] - before[uid] for uid in before}
    chosen = {
        name: [uid for uid in picked if name in picked[uid]] for name in ("improved", "worsened", "worst", "random")
    }
    assert chosen["improved"] and min(gains[uid] for uid in chosen["improved"]) > 0
    assert min(gains[u] for u in chosen["improved"]) >= max(gains[u] for u in gains if u not in chosen["improved"])
    assert all(gains[uid] < 0 for uid in chosen["worsened"])
    assert max(after[u] for u in chosen["worst"]) <= min(after[u] for u in after if u not in chosen["worst"])
    assert len(chosen["random"]) == clips.PICK
    assert clips.pick(after, before) != picked and clips.pick(before, after) == picked
    alone = clips.pick(before, {})
    assert not any({"improved", "worsened"} & set(names) for names in alone.values())
    assert clips.pick(dict(reversed(before.items())), {}) == alone  # the order of the rows decides nothing


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "",
        "<answer>Target ID: 1, Time range: 7 to 2</answer>",
        f"<answer>Target ID: {'9' * 4000}, Time range: {'9' * 400} to {'8' * 500}</answer>",
        "<answer>Target ID: 1, Time range: 900 to 1000</answer>",
        "x" * 100_000,
    ],
)
def test_any_answer_is_shown_and_escaped(tmp_path, data, text):
    run_dir = make_run(tmp_path / "run", data, hostile=text)
    page = read(run_dir)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert text[:200] in page.text and not re.search(r"\b(?:nan|inf)\b", page.text)
    assert (run_dir / "out" / "report.html").stat().st_size < 5_000_000
    lefts = [re.findall(r"(?:left|width):([-\d.]+)%", a["style"]) for _, a in page.tags if "%" in a.get("style", "")]
    assert all(0 <= float(value) <= 100 for values in lefts for value in values)


def test_videos_that_are_gone_are_told(tmp_path, data):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    run_dir = make_run(tmp_path / "run", copy)
    uids = clips.pick(*map(scores, training.ends(runs.read_run(run_dir))))
    (copy / "videos" / f"{next(iter(uids)).rpartition('-')[2]}.mp4").write_bytes(b"broken")
    page = read(run_dir)
    assert f"The frames of 1 of {len(uids)} clips cannot be shown" in page.text and "not a readable video" in page.text
    assert len(page.of("img")) == (len(uids) - 1) * report.NUM_FRAMES
    shutil.rmtree(copy / "tracks")
    assert f"There are no boxes for {len(uids) - 1} of" in read(run_dir).text
    shutil.rmtree(copy / "videos")
    page = read(run_dir)
    assert f"The frames of {len(uids)} of {len(uids)} clips cannot be shown" in page.text
    assert not page.of("img") and len(page.of("article")) == len(uids) and str(copy) not in page.text
    shutil.rmtree(copy)
    page = read(run_dir)
    assert "The rows (val.parquet) are gone" in page.text and len(page.of("article")) == len(uids)
    (run_dir / "run.json").unlink()
    page = read(run_dir)
    assert "There is no run.json" in page.text and page.of("figure")


def test_a_run_that_goes_on_has_a_page(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    for step in (STEPS // 4, STEPS // 2, STEPS * 3 // 4, STEPS):
        (run_dir / "validation" / f"{step}.jsonl").unlink()
    page = read(run_dir)
    assert "half-written" in page.text and "nothing to compare it with yet" in page.text
    numbers = report.summarise(run_dir)
    assert numbers["last_validation"] is None and numbers["temporal_iou"]["after"] is None
    assert numbers["temporal_iou"]["before_low"] is not None and numbers["steps"] == 2
    shutil.rmtree(run_dir / "validation")
    assert "There are no held-out answers" in read(run_dir).text
    path.write_bytes(b"".join(lines[1:3]))
    page = read(run_dir)
    assert "has not validated yet" in page.text
    assert report.summarise(run_dir)["first_validation"] is None


def test_logged_means_serve_where_there_are_no_dumps(run_dir):
    from_dumps = report.summarise(run_dir)
    shutil.rmtree(run_dir / "validation")
    numbers = report.summarise(run_dir)
    for part in PARTS:
        for name in ("before", "after", "gain"):
            assert numbers[part][name] == pytest.approx(from_dumps[part][name])
        assert numbers[part]["gain_low"] is None
    assert (numbers["first_validation"], numbers["last_validation"]) == (0, STEPS)
    page = read(run_dir)
    assert not page.of("article") and len(page.of("figure")) == 11


def test_a_dump_that_disagrees_with_the_log_is_told(run_dir):
    path = run_dir / "validation" / f"{STEPS}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    page = read(run_dir)
    assert f"is not that of the answers in validation/ at step {STEPS}" in page.text
    assert report.summarise(run_dir)["clips"] == NUM_VAL - 3


def test_several_answers_per_clip_are_averaged(run_dir):
    once = report.summarise(run_dir)
    for path in (run_dir / "validation").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        worse = [record | dict.fromkeys(("score", *PARTS), 0.0) | {"output": "zzz"} for record in records]
        path.write_text("".join(json.dumps(record) + "\n" for record in records + worse))
    twice = report.summarise(run_dir)
    assert twice["clips"] == NUM_VAL
    assert twice["temporal_iou"]["after"] == pytest.approx(once["temporal_iou"]["after"] / 2)
    assert "one of 2 answers" in read(run_dir).text


def test_long_runs_are_binned(run_dir):
    lines = [json.dumps({"step": s, "data": {"reward/score/mean": s / 1000}}) for s in range(1, 5001)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = read(run_dir)
    assert "mean of up to 13 steps" in page.text and "weighted" in page.text  # 5 is above the plain sum's 3
    line = page.of("polyline", **{"class": "train"})[1]["points"].split()  # the first is the legend's
    assert len(line) <= charts.MAX_POINTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl: no such file; give the folder"),
        ("", "metrics.jsonl: holds no complete line; wait"),
        ('{"step": 1, "da', "metrics.jsonl: holds no complete line; wait"),
        ('{"step": 1, "data": {}}\n{"step": 2\n{"step": 3, "data": {}}\n', "metrics.jsonl, line 2: not JSON"),
        ('{"step": 1, "data": {}}\n[1]\n', "metrics.jsonl, line 2: not a JSON object"),
        ('{"step": "1", "data": {}}\n', "metrics.jsonl, line 1: not of the form"),
        (b'{"step": 1, "data": {}}\n\xff\n', "metrics.jsonl, line 2: not JSON"),
    ],
)
def test_broken_metrics_are_refused(tmp_path, content, message):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for call in (report.summarise, lambda folder: report.write(folder, tmp_path / "page.html")):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(tmp_path)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["gts"].pop("uid"), "line 2: key 'gts' holds no 'uid'"),
        (lambda r: r["gts"].pop("object_id"), "line 2: ground truth of row 'synthetic-3-val_"),
        (lambda r: r.pop("output"), "line 2: output is missing"),
        (lambda r: r.pop("temporal_iou"), "line 2: no temporal_iou; every answer"),
    ],
)
def test_broken_dumps_are_refused(run_dir, change, message):
    path = run_dir / "validation" / "0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[1])
    change(record)
    path.write_text("".join([lines[0], json.dumps(record) + "\n", *lines[2:]]))
    with pytest.raises(ValueError, match=re.escape(message)):
        report.summarise(run_dir)


def test_failed_rollouts_are_left_out_and_told(run_dir):
    path = run_dir / "validation" / "0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(json.loads(lines[0]) | {"id_match": None}) + "\n", *lines[1:]]))
    assert report.summarise(run_dir)["clips"] == NUM_VAL - 1
    assert "1 answers of validation/0.jsonl have no reward" in read(run_dir).text


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1.0, 2.0], [1e-7, 3e-6], [30.1, 30.9], [0.0, 1e9]])
def test_axes_hold_their_values(values):
    low, high = charts.value_span(values)
    assert low <= min(values) and high >= max(values) and low < high
    ticks = charts.ticks(low, high, 4)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] == pytest.approx(low, abs=1e-9 * (high - low))


def test_pictures_keep_to_their_budget():
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    sizes = [len(thumbnails.jpeg(noise, budget)) for budget in (10**6, 12_000)]
    assert sizes[1] < sizes[0] and sizes[1] <= 12_000 * 4 / 3 + 30


def test_numbers_read_as_people_write_them():
    texts = [charts.number(value) for value in (None, 0.0, -0.25, 3.94e-6, 12345.0, 31.4)]
    assert texts == ["", "0", "−0.25", "3.94×10⁻⁶", "1.23×10⁴", "31.4"]


# --- evaluations ------------------------------------------------------------------------------------------------------


def page_of(folders, tmp_path):
    return Page(report.write(folders, tmp_path / "page.html").read_text())


def spoil(said):
    """No answer to one row, an unusable video, and one that cannot be read and was cut off."""
    uids = list(said)
    del said[uids[1]]
    said[uids[2]] = Answer(uids[2], error="videos/2.mp4: no such video")
    said[uids[3]] = Answer(uids[3], (HOSTILE.replace("Target", "target&"),), ("length",), (256,))


def test_an_evaluation_has_a_page(tmp_path, evaluations_of):
    page = page_of(evaluations_of[1], tmp_path)
    text = (tmp_path / "page.html").read_text()
    found = json.loads((evaluations_of[1] / "scores.json").read_text())
    assert "tuned on synthetic val" in page.text and "Every row has an answer" in page.text
    for metric, row in found["metrics"].items():
        assert metric in page.text and f"{100 * row['value']:.1f}" in page.text
        assert f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in page.text
    for name in found["baselines"]:
        assert name in page.text
    assert "By video duration" in page.text and "By interval length" in page.text and "greedy" in page.text
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|url\(|@import|https?://", text) and len(text) < 5_000_000
    cards = page.of("article")
    assert {name for card in cards for name in card["data-picked"].split()} == {"random", "worst"}
    assert len(page.of("img")) == len(cards) * report.NUM_FRAMES
    assert page.of("rect", **{"class": "truth"}) and page.of("rect", **{"class": "m2"})
    assert not page.of("div", **{"class": "notices"}) and "Differences" not in page.text
    assert report.write(evaluations_of[1], tmp_path / "again.html").read_text() == text


def test_a_comparison_pairs_its_differences(tmp_path, evaluations_of):
    base, tuned = (evaluations.read(folder) for folder in evaluations_of)
    metric = evaluations.main_metric([base, tuned])
    assert metric == "m_vIoU"
    rows = {row["metric"]: row["cells"][0] for row in comparison.differences([base, tuned], ["m1", "m2"], {})}
    gains = [tuned.items[uid].values[metric] - item.values[metric] for uid, item in base.items.items()]
    expected = bootstrap(gains, resamples=comparison.RESAMPLES)
    assert (rows[metric]["gain"], rows[metric]["low"], rows[metric]["high"]) == pytest.approx(expected)
    assert rows[metric]["gain"] == pytest.approx(tuned.value(metric) - base.value(metric))
    assert rows[metric]["clear"] == (expected[1] > 0 or expected[2] < 0)
    itself = comparison.differences([base, base], ["m1", "m2"], {})
    assert all(cell["gain"] == cell["low"] == cell["high"] == 0 for row in itself for cell in row["cells"])
    one_video = comparison.differences([base, tuned], ["m1", "m2"], dict.fromkeys(base.items, "a.mp4"))[0]["cells"][0]
    assert one_video["low"] == pytest.approx(one_video["high"])  # nothing to draw from
    unknown = dataclasses.replace(base, scores=base.scores | {"metrics": base.scores["metrics"] | {metric: {}}})
    [cell] = next(
        row["cells"] for row in comparison.differences([unknown, tuned], ["m1", "m2"], {}) if row["metric"] == metric
    )
    assert cell["gain"] is None

    page = page_of(evaluations_of, tmp_path)
    assert "base and tuned on synthetic val" in page.text and "Differences to base" in page.text
    assert f"{100 * rows[metric]['gain']:+.1f}" in page.text
    picked = {name for card in page.of("article") for name in card["data-picked"].split()}
    assert {"random", "improved", "worst"} <= picked
    assert len(page.of("details", **{"class": "answer"})) == 2 * len(page.of("article"))
    turned = page_of(evaluations_of[::-1], tmp_path)
    assert f"{-100 * rows[metric]['gain']:+.1f}".replace("-", "−") in turned.text


def test_a_metric_that_is_no_mean_has_no_interval_of_its_difference(evaluations_of):
    base, tuned = (evaluations.read(folder) for folder in evaluations_of)
    tuned.scores["metrics"]["m_tIoU"]["value"] += 0.01
    first, *rest = comparison.differences([base, tuned], ["m1", "m2"], {})
    assert first["metric"] == "m_tIoU" and first["cells"][0]["low"] is None and first["cells"][0]["gain"] is not None
    assert all(row["cells"][0]["low"] is not None for row in rest)


def test_what_went_wrong_is_said_in_sentences(tmp_path, rows_file):
    folder = evaluate(tmp_path / "evaluation", rows_file, 0.8, change=spoil)
    page = page_of(folder, tmp_path)
    assert f"Answers that cannot be read, which count as 0: 1 of {NUM_VAL}." in page.text
    assert f"Rows whose video or prompt cannot be used, which count as 0: 1 of {NUM_VAL}." in page.text
    assert f"cut off at the greatest length: 1 of {NUM_VAL}." in page.text
    assert "1 rows have no answer" in page.text and "Every row has an answer" not in page.text
    for kind in ("unreadable", "unusable video", "no answer"):
        assert kind in page.text
    found = evaluations.read(folder)
    shares = {row["name"]: row["cells"][0]["count"] for row in comparison.errors([found], ["m2"])}
    assert sum(shares.values()) == NUM_VAL and shares["no answer"] == shares["unreadable"] == 1
    errors = {kind for card in page.of("article") for kind in card["data-errors"].split("|")}
    assert not {"no answer", "unusable video"} & errors  # such a clip has nothing to show
    assert [tag for tag, _ in page.tags].count("script") == 1 and "<script>alert" in page.text


def test_frames_are_as_the_model_saw_them(evaluations_of, rows_file):
    section = of_evaluation.section([evaluations.read(evaluations_of[1])], 4)
    rows = section["looked"].rows
    marked = clips._frames(rows[section["looked"].clips[0].uid].videos[0], 10**6)
    plain = clips._frames({**rows[section["looked"].clips[0].uid].videos[0], "tracks": None}, 10**6)
    assert [frame["index"] for frame in marked[0]] == [frame["index"] for frame in plain[0]]
    assert any(a["source"] != b["source"] for a, b in zip(marked[0], plain[0], strict=True))  # the IDs
    report._draw(section, 10**6)
    boxes = [box for clip in section["clips"] for frame in clip["frames"] for box in frame["boxes"]]
    assert {box["kind"] for box in boxes} == {"truth", "m2"}


def test_boxes_of_a_scored_answer_are_read_once(tmp_path, rows_file, monkeypatch):
    """What the page draws is what the scores were made of; the text is not read again."""
    rows = list(read_rows([rows_file]))
    tube = {k: (1.25 + k, 2.0, 30.04, 40.0) for k in (9, 3)}
    said = {row["extra_info"]["uid"]: Prediction(((1.0, 2.0),), tube=tube) for row in rows}
    score(rows, said).write(tmp_path)
    monkeypatch.setattr(replies, "read_answer", None)
    section = of_evaluation.section([evaluations.read(tmp_path)], 2)
    for clip in section["looked"].clips:
        reply = clip.said["m2"].reply
        assert reply.intervals == ((1.0, 2.0),)
        assert reply.tube == {9: [10.2, 2.0, 30.0, 40.0], 3: [4.2, 2.0, 30.0, 40.0]}


def test_part_of_a_file_has_its_own_clock(rows_file):
    uid = pq.read_table(rows_file).column("extra_info").to_pylist()[0]["uid"]
    entry = clips.Rows([rows_file])[uid].videos[0]
    frames, _ = clips._frames({**entry, "video_start": 2.0, "video_end": 6.0}, 10**6, [(1.0, 2.0)])
    whole, _ = clips._frames(entry, 10**6)
    assert frames[0]["time"] < 1 and frames[-1]["time"] < 4 < whole[-1]["time"]
    assert all(frame["index"] == round((frame["time"] + 2) * synthetic.SOURCE_FPS) for frame in frames)


def test_an_evaluation_brings_the_curves_of_its_run(tmp_path, data, evaluations_of):
    run_dir = make_run(tmp_path / "run", data)
    shutil.copytree(evaluations_of[1], run_dir / "eval" / "synthetic")
    page = page_of(run_dir / "eval" / "synthetic", tmp_path)
    assert "The training of tiny" in page.text and "what the training changed" not in page.text
    assert len(page.of("figure", **{"class": "plot"})) == 4 + 7 + 1
    both = page_of([run_dir / "eval" / "synthetic", run_dir], tmp_path)
    assert "what the training changed" in both.text and "The training of tiny" not in both.text
    assert len(both.of("nav")) == 1 and len((tmp_path / "page.html").read_text()) < 5_000_000


def test_evaluations_without_their_rows_and_answers_have_a_page(tmp_path, evaluations_of):
    folder = tmp_path / "evaluation"
    shutil.copytree(evaluations_of[0], folder)
    (folder / "predictions.jsonl").unlink()
    record = json.loads((folder / "run.json").read_text()) | {"rows": ["gone.parquet"]}
    (folder / "run.json").write_text(json.dumps(record))
    page = page_of(folder, tmp_path)
    assert "There is no predictions.jsonl" in page.text and "The rows (gone.parquet) are gone" in page.text
    assert not page.of("img") and page.of("article")
    (folder / "run.json").unlink()
    assert page_of(folder, tmp_path).of("article")


def copy_with(source, target, name, change):
    shutil.copytree(source, target)
    path = target / name
    change(path)
    return target


def lines_of(path):
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scores.json", lambda path: path.unlink(), "its answers are not scored; run `verl-stvg score`"),
        ("scores.json", lambda path: path.write_text("{"), "scores.json: not JSON"),
        ("scores.json", lambda path: path.write_text('{"metrics": {}}'), "scores.json: holds no metrics"),
        ("scores.json", lambda path: path.write_text('{"metrics": {"a": {}}}'), "metric 'a' has no value"),
        ("items.jsonl", lambda path: path.unlink(), "items.jsonl: no such file; score"),
        ("items.jsonl", lambda path: path.write_text(path.read_text()[:-40]), "items.jsonl: its last line is cut off"),
        ("items.jsonl", lambda path: path.write_text(""), "items.jsonl: is empty"),
        ("items.jsonl", lambda path: path.write_text("{}\n"), "items.jsonl, line 1: no uid"),
        ("items.jsonl", lambda path: path.write_text(2 * lines_of(path)[0]), "items.jsonl, line 2: a second item"),
        (
            "items.jsonl",
            lambda path: path.write_text(json.dumps(json.loads(lines_of(path)[0]) | {"error": "bored"}) + "\n"),
            "items.jsonl, line 1: error 'bored' is none of",
        ),
        ("predictions.jsonl", lambda path: path.write_text("{}\n"), "predictions.jsonl: line 1 is no answer"),
    ],
)
def test_broken_evaluations_are_refused(tmp_path, evaluations_of, name, change, message):
    folder = copy_with(evaluations_of[0], tmp_path / "evaluation", name, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        report.write(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_what_cannot_be_compared_is_refused(tmp_path, evaluations_of):
    def shorten(path):
        path.write_text("".join(lines_of(path)[:-1]))

    other = copy_with(evaluations_of[1], tmp_path / "other", "items.jsonl", shorten)
    with pytest.raises(ValueError, match=r"its rows are not those of .* \(1 are only in one"):
        report.write([evaluations_of[0], other], tmp_path / "page.html")
    with pytest.raises(ValueError, match="7 evaluations of synthetic val, and a page compares 6 at most"):
        report.write(7 * [evaluations_of[0]], tmp_path / "page.html")
    with pytest.raises(ValueError, match="no folder"):
        report.write([], tmp_path / "page.html")


def test_models_are_told_apart():
    def named(*pairs):
        return evaluations.names([(model, Path(folder)) for model, folder in pairs])

    assert named(("Qwen/Qwen2.5-VL-3B", "/a/x"), ("runs/r/global_step_8/actor", "/a/y")) == [
        "Qwen2.5-VL-3B",
        "global_step_8",
    ]
    assert named(("m", "/a/x"), ("m", "/a/y")) == ["x", "y"]
    assert named(("m", "/a/x"), (None, "/b/x")) == ["m", "x"]
    assert named(("m", "/a/x"), ("m", "/b/x")) == ["a/x", "b/x"]
    assert named(("m", "/a/x"), ("m", "/a/x")) == ["1: a/x", "2: a/x"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_answers_of_every_recipe_are_read(recipe):
    assert replies.read(recipe, "nothing") is None
    truth = {"intervals": [[1.0, 2.5]], "object_id": None, "object_ids": [4, 2], "answer": "(B)", "duration": 9.0}
    assert replies.of_record(truth) == replies.Reply(((1.0, 2.5),), (2, 4), "B")
    assert replies.of_record({"start": 1, "end": 2, "object_id": 0}) == replies.Reply(((1.0, 2.0),), (0,))
    assert replies.of_record({"intervals": None, "duration": 3.0}) is None


def rename(run_dir, source, parts):
    """Let a run be of another data source, with other reward parts for those of `stvg_r1`."""
    names = dict(zip(PARTS, parts, strict=True))
    for path in (run_dir / "metrics.jsonl", *(run_dir / "validation").glob("*.jsonl")):
        text = path.read_text().replace(SOURCE, source)
        for name, other in names.items():
            text = text.replace(f"/{name}/", f"/{other}/").replace(f'"{name}"', f'"{other}"')
        path.write_text(text)


def test_runs_of_other_recipes_show_their_parts(run_dir):
    text = "<think></think><glue>[(1.0, 2.0), (3.0, 4.5)]</glue><answer>Answer (B)</answer>"
    rename(run_dir, "videochat_r1_gqa/nextgqa", ("temporal_iou", "option", "format"))
    for path in (run_dir / "validation").glob("*.jsonl"):
        records = [json.loads(line) for line in lines_of(path)]
        for record in records:
            record["gts"] |= {"answer": "B", "intervals": [[record["gts"]["start"], record["gts"]["end"]]]}
            record["gts"].pop("object_id")
            record["output"] = text
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    page = read(run_dir)
    assert "Option accuracy" in page.text and "ID accuracy" not in page.text and "videochat_r1_gqa" in page.text
    assert "1.00 to 2.00 s, 3.00 to 4.50 s" in page.text and "option B" in page.text
    assert report.summarise(run_dir)["option"]["gain_low"] is not None


def test_a_reward_of_ones_own_has_a_page(run_dir):
    rename(run_dir, "mine/clips", ("closeness", "luck", "rhyme"))
    (run_dir / "run.json").write_text(json.dumps({"val_files": "gone.parquet"}))
    page = read(run_dir)
    assert {"Closeness", "Luck", "Rhyme"} <= set(page.text.split()) and "weighted" in page.text
    assert "What the answers say is not drawn" in page.text and "not read" in page.text
    assert set(report.summarise(run_dir)) >= {"closeness", "luck", "rhyme"}


def test_a_source_of_ones_own_is_read_by_the_recipe_of_the_run():
    row = {
        "data_source": "mine/clips",
        "reward_model": {"ground_truth": {"start": 1.0, "end": 2.0}},
        "extra_info": {"uid": "a", "duration": 9.0},
        "videos": None,
    }
    read = replies.read("timezero", "<think>x</think><answer>1.00 to 2.00</answer>", row=row)
    assert read.intervals == ((1.0, 2.0),)


def test_rows_that_cannot_be_read_are_told_on_the_page(tmp_path, data):
    rows = pq.read_table(data / "val.parquet").to_pylist()
    rows[0]["videos"][0]["max_pixel"] = 100
    uids = [row["extra_info"]["uid"] for row in rows[:2]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = clips.Rows([tmp_path / "rows.parquet"])
    assert found.get(uids[0]) is None and found.get(uids[1]) is not None and found.get("other") is None
    assert found.videos()[uids[0]] == uids[0]


# --- what validations are over, long logs, broken numbers -------------------------------------------------------------


def rewrite(run_dir, change):
    """Change the metrics of every step of a run's log."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in lines_of(path)]
    for line in lines:
        change(line["step"], line["data"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def lose(run_dir, gone, counts=True):
    """Let clips have no answer at some steps: neither the dumps nor verl's means have them; our counts say so.

    Args:
        gone: step to uids.
        counts: the log has them; older ones have not.
    """

    def change(step, data):
        path = run_dir / "validation" / f"{step}.jsonl"
        if not path.exists():
            return
        records = [json.loads(line) for line in lines_of(path)]
        left = [record for record in records if record["gts"]["uid"] not in gone.get(step, ())]
        path.write_text("".join(json.dumps(record) + "\n" for record in left))
        lost = len(records) - len(left)
        for key in [key for key in data if key.endswith("mean@1")]:
            part = key.split("/")[-2]
            data[key] = float(np.mean([record[part] for record in left]))
            if counts:
                data[f"held_out/{SOURCE}/{part}/mean"] = data[key] * len(left) / len(records)
        if counts:
            found = {"prompts": len(records), "unanswered": lost, "asked": len(records), "missing": lost}
            data.update({f"held_out/{SOURCE}/{name}": count for name, count in found.items()})

    rewrite(run_dir, change)


def test_clips_without_an_answer_are_worth_nothing_and_are_told(run_dir):
    whole = runs.read_run(run_dir)
    lost = list(whole.validations[0])[:3]
    lose(run_dir, dict.fromkeys(range(STEPS + 1), lost))
    run, numbers = runs.read_run(run_dir), report.summarise(run_dir)
    for part in PARTS:
        for step, end in ((0, "before"), (STEPS, "after")):
            mean = np.mean([a.values[part] * (uid not in lost) for uid, a in whole.validations[step].items()])
            assert run.held_out(part)[step] == pytest.approx(mean)  # as `verl-stvg eval` counts
            assert numbers[part][end] == pytest.approx(mean)
    assert numbers["clips"] == NUM_VAL and len(run.notices) == 1
    text = read(run_dir).text
    assert f"Held-out answers of {SOURCE} are missing" in text
    assert f"3 of {NUM_VAL} at step 0 (all of 3 of {NUM_VAL} clips)" in text
    shutil.rmtree(run_dir / "validation")  # the log says the same
    assert runs.read_run(run_dir).held_out("id_match") == pytest.approx(run.held_out("id_match"))


def test_before_and_after_are_compared_on_all_clips_that_were_asked(run_dir):
    whole = runs.read_run(run_dir)
    first, second = list(whole.validations[0])[:2]
    lose(run_dir, {0: [first], STEPS: [second]})
    found = training.paired(runs.read_run(run_dir), "temporal_iou")
    for step, gone, values in ((0, first, found[0]), (STEPS, second, found[1])):
        assert values == [a.values["temporal_iou"] * (uid != gone) for uid, a in whole.validations[step].items()]


def test_an_older_log_says_that_the_clips_differ(run_dir):
    lose(run_dir, {STEPS: list(runs.read_run(run_dir).validations[0])[:3]}, counts=False)
    (notice,) = runs.read_run(run_dir).notices
    assert f"Not all validations are of the same clips: {NUM_VAL} at step 0" in notice
    assert f"{NUM_VAL - 3} at step {STEPS}; {NUM_VAL} in all. The log does not say how many were asked" in notice
    assert report.summarise(run_dir)["clips"] == NUM_VAL - 3


def test_other_rows_after_a_stop_are_told_and_not_mixed(run_dir):
    lose(run_dir, {})
    assert runs.read_run(run_dir).notices == []
    path = run_dir / "validation" / f"{STEPS}.jsonl"
    path.write_text(path.read_text().replace('"uid": "synthetic-3-val', '"uid": "other-val'))
    numbers = report.summarise(run_dir)
    assert any("Not all validations are of the same clips" in notice for notice in runs.read_run(run_dir).notices)
    assert numbers["clips"] == 0 and numbers["last_validation"] == STEPS and numbers["id_match"]["after"] is not None


def test_groups_that_lost_answers_are_told_where_only_verls_means_are_logged(run_dir):
    shutil.rmtree(run_dir / "validation")
    before = runs.read_run(run_dir).held_out("id_match")

    def change(_, data):
        for key in [key for key in data if key.endswith("mean@1")]:
            data[key.replace("mean@1", "mean@8")] = data.pop(key)
            data[key.replace("mean@1", "mean@5")] = 1.0

    rewrite(run_dir, change)
    run = runs.read_run(run_dir)
    assert run.held_out("id_match") == before  # not the mean of two means
    assert any("Some clips lost answers at steps 0, 3, 6, 9, 12" in notice for notice in run.notices)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("wrong", [False, True])
def test_two_held_out_sets_are_named_and_agree(tmp_path, counts, wrong):
    """Sets of unlike size and other parts: the mean over clips is not that over sets, and neither is wrong."""
    sets = {"time_r1/charades": (30, 0.9, "temporal_iou_v2"), "stvg_r1/vidstg": (10, 0.1, "id_match")}
    parts = [part for _, _, part in sets.values()]
    data, records = {}, []
    for source, (size, value, part) in sets.items():
        data |= {f"val-core/{source}/reward/mean@1": 1 + value, f"val-aux/{source}/{part}/mean@1": value}
        if counts:
            found = {"prompts": size, "unanswered": 0, "asked": size, "missing": 0}
            data |= {f"held_out/{source}/{name}": count for name, count in found.items()}
            data |= {f"held_out/{source}/reward/mean": 1 + value, f"held_out/{source}/{part}/mean": value}
        value += 0.05 * wrong
        scored = dict.fromkeys(parts) | {part: value, "score": 1 + value, "reward": 1 + value}  # null: another set's
        gts = {"start": 1.0, "end": 2.0, "duration": 9.0, "object_id": 1}
        records += [{"input": "q", "output": "a", "gts": gts | {"uid": f"{source}/{k}"}} | scored for k in range(size)]
    (tmp_path / "validation").mkdir()
    for step in (0, 10):
        (tmp_path / f"validation/{step}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [{"step": step, "data": data} for step in (0, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.json").write_text(json.dumps({"val_files": ["a.parquet", "b.parquet"]}))
    run = runs.read_run(tmp_path)
    told = ["ID accuracy", "Temporal IoU, weighted by closeness"] if wrong else []
    assert sorted(notice.partition(":")[0] for notice in run.notices) == told
    assert run.held_out_by_source("temporal_iou_v2") == {"time_r1/charades": {0: 0.9, 10: 0.9}}
    assert run.held_out_by_source("id_match") == {"stvg_r1/vidstg": {0: 0.1, 10: 0.1}}
    mean = (30 * 1.9 + 10 * 1.1) / 40 + 0.05 * wrong
    assert run.held_out("score") == pytest.approx({0: mean, 10: mean})
    assert report.summarise(tmp_path)["clips"] == 40
    page = read(tmp_path)
    assert all(text in page.text for text in ("Held-out sets", "time_r1/charades", "stvg_r1/vidstg"))
    assert "a.parquet, b.parquet" in page.text


def test_a_metric_that_is_not_a_number_is_a_gap_and_is_told(run_dir):
    def change(step, data):
        if step in (3, 4):
            data["actor/kl_loss"] = None  # verl's logger writes null
        if step == 5:
            data["reward/id_match/mean"] = math.nan
        data["actor/entropy"] = None

    whole = {a["aria-label"] for a in read(run_dir).of("svg") if "over training steps" in a.get("aria-label", "")}
    rewrite(run_dir, change)
    page = read(run_dir)
    assert "KL to the reference (actor/kl_loss) is not a number at steps 3, 4, and is a gap in its curve" in page.text
    assert "ID accuracy (reward/id_match/mean) is not a number at step 5, and is a gap in its curve" in page.text
    steps = ", ".join(map(str, range(5)))
    assert (
        f"Entropy (actor/entropy) is not a number at steps {steps} and {STEPS + 1 - 5} more, and has no curve"
        in page.text
    )
    assert {a["aria-label"] for a in page.of("svg") if "over training steps" in a.get("aria-label", "")} == whole
    run = runs.read_run(run_dir)
    drawn = charts.curve("KL", "", run.curve("actor/kl_loss"), {}, {}, None)
    assert [len(line.split()) for line in drawn["lines"]] == [2, STEPS - 4] and drawn["dots"] == []
    assert json.loads(drawn["hover"])["training"][2][2] == "not a number"
    assert charts.curve("x", "", {1: 1.0, 2: math.nan, 3: 2.0}, {1: 0.1, 3: 0.1}, {}, None)["dots"] != []


def test_every_line_of_a_log_is_looked_at_once(run_dir, monkeypatch):
    """However many validations there are, so that a page costs as much as its log is long."""
    looked = []
    stock = runs.held_out.read
    monkeypatch.setattr(runs.held_out, "read", lambda data: looked.append(1) or stock(data))
    report.write(run_dir, run_dir / "report.html")
    assert len(looked) == len(lines_of(run_dir / "metrics.jsonl"))
