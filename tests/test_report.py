"""The report says what the run's files say, stands alone, escapes what a model wrote, and survives missing pieces."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_builders import synthetic
from eval import report
from reward_fns import RECIPES
from verl_stvg.video import thumbnails

NUM_VAL, STEPS, GROUP = 12, 12, 8
SOURCE = "verl_stvg/synthetic"
HOSTILE = '<think><script>alert("x")</script></think><answer>Target ID: 9&9, Time range: 1 to 2</answer>'


def answer(rng, truth, skill):
    """A plausible answer: with probability `skill` near the truth, else anywhere; now and then without its format."""
    start, end = truth["start"], truth["end"]
    if rng.random() > skill:
        start, end = sorted(rng.uniform(0, truth["duration"], 2))
    object_id = truth["object_id"] if rng.random() < 0.25 + 0.7 * skill else int(rng.integers(1, 10))
    start, end = (float(np.clip(t + rng.normal(0, 0.3), 0, truth["duration"])) for t in (start, end))
    text = synthetic.format_answer(object_id, start, end, "looking for it")
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
                "actor/entropy": None,  # verl writes null for NaN
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


def test_the_headline_is_the_mean_of_the_dumps(run_dir):
    numbers = report.summarise(run_dir)
    dumps = {}
    for step in (0, STEPS):
        lines = (run_dir / "validation" / f"{step}.jsonl").read_text().splitlines()
        dumps[step] = {line["gts"]["uid"]: line for line in map(json.loads, lines)}
    for part in report.PARTS:
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
    for part, name in report.PARTS.items():
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


def test_boxes_are_those_of_the_named_object_at_the_named_time(run_dir, data):
    run = report.read_run(run_dir)
    clips, notices = report._clips(run)
    assert not notices
    drawn = 0
    for clip in clips:
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
                box = boxes[0]
                assert (box["x"], box["y"], box["width"], box["height"]) == (x0, y0, x1 - x0, y1 - y0)
                drawn += 1
            sizes = [(box["x"], box["y"], box["width"], box["height"]) for box in frame["boxes"]]
            assert len(set(sizes)) == len(sizes)  # none hides another
            assert all(box["width"] > 0 and box["height"] > 0 for box in frame["boxes"])
    assert drawn > 10


def test_frames_are_those_of_their_times(run_dir, data):
    clips, _ = report._clips(report.read_run(run_dir))
    clip = clips[0]
    index = int(clip["uid"][-5:])
    spec = synthetic.make_clip(3, "val", index)
    for frame in clip["frames"]:
        raw = np.frombuffer(base64.b64decode(frame["source"].partition(",")[2]), np.uint8)
        image = cv2.imdecode(raw, cv2.IMREAD_COLOR)[..., ::-1]
        true = synthetic.render_frames(spec, [round(frame["time"] * synthetic.SOURCE_FPS)])[0]
        true = cv2.resize(true, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - true).mean() < 6


def test_selections(run_dir):
    run = report.read_run(run_dir)
    before, after = run.validations[0], run.validations[STEPS]
    picked = report.pick_clips(before, after)
    gains = {uid: after[uid].values["score"] - before[uid].values["score"] for uid in before}
    improved = [uid for uid in picked if "improved" in picked[uid]]
    assert improved and min(gains[uid] for uid in improved) > 0
    assert min(gains[u] for u in improved) >= max(gains[u] for u in gains if u not in improved)
    worst = [uid for uid in picked if "worst" in picked[uid]]
    assert max(after[u].values["score"] for u in worst) <= min(
        after[u].values["score"] for u in after if u not in worst
    )
    assert sum("random" in names for names in picked.values()) == report.PICK
    assert report.pick_clips(after, before) != picked and report.pick_clips(before, after) == picked
    assert not any("improved" in names for names in report.pick_clips(before, {}).values())


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
    uids = report.pick_clips(*report._ends(report.read_run(run_dir)))
    (copy / "videos" / f"{next(iter(uids)).rpartition('-')[2]}.mp4").write_bytes(b"broken")
    page = read(run_dir)
    assert f"The frames of 1 of {len(uids)} clips cannot be shown" in page.text and "not a readable video" in page.text
    assert len(page.of("img")) == (len(uids) - 1) * report.NUM_FRAMES
    shutil.rmtree(copy / "videos")
    page = read(run_dir)
    assert f"The frames of {len(uids)} of {len(uids)} clips cannot be shown" in page.text
    assert not page.of("img") and len(page.of("article")) == len(uids) and str(copy) not in page.text
    shutil.rmtree(copy / "tracks")
    assert "There are no boxes" in read(run_dir).text
    shutil.rmtree(copy)
    page = read(run_dir)
    assert "The held-out rows (val.parquet) are gone" in page.text and len(page.of("article")) == len(uids)
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
    for part in report.PARTS:
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
        worse = [record | dict.fromkeys(("score", *report.PARTS), 0.0) | {"output": "zzz"} for record in records]
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
    assert len(line) <= report.MAX_POINTS


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
        (lambda r: r["gts"].pop("object_id"), "line 2: object_id is missing"),
        (lambda r: r.pop("output"), "line 2: output is missing"),
        (lambda r: r.pop("temporal_iou"), "line 2: no temporal_iou; this page reads"),
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
    low, high = report._span(values)
    assert low <= min(values) and high >= max(values) and low < high
    ticks = report._ticks(low, high, 4)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] == pytest.approx(low, abs=1e-9 * (high - low))


def test_pictures_keep_to_their_budget():
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    sizes = [len(thumbnails._jpeg(noise, budget)) for budget in (10**6, 12_000)]
    assert sizes[1] < sizes[0] and sizes[1] <= 12_000 * 4 / 3 + 30


def test_numbers_read_as_people_write_them():
    texts = [report._number(value) for value in (None, 0.0, -0.25, 3.94e-6, 12345.0, 31.4)]
    assert texts == ["", "0", "−0.25", "3.94×10⁻⁶", "1.23×10⁴", "31.4"]
