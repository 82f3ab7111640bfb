"""`python -m benchmarks kills` in short: killed and started again, a command ends with the undisturbed run's files."""

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import kills
from verl_stvg.data_builders.objects import pipeline
from verl_stvg.data_builders.objects.track import Options


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> list[kills.Variant]:
    """One command each of build, select and assign."""
    folder = tmp_path_factory.mktemp("material")
    found = {(one.command, one.name.partition(",")[0]): one for one in kills.material(folder, None)}
    chain = found["track", "track with 2 workers"]
    models = pipeline.Models("tests.support.colours:detector", "tests.support.colours:segmenter")
    names = [f"train_{k:05d}.mp4" for k in range(3)]
    list(pipeline.track_all(folder / "clips/videos", names, folder / "tracks", models, Options(mode="all")))
    assign = replace(
        chain,
        steps=lambda trial: chain.steps(trial)[-1:],
        prepare=lambda trial: shutil.copytree(folder / "tracks", trial / "shown"),
    )
    judged = found["select", "answers there"]
    return [found["build", "annotations"], replace(judged, steps=lambda trial: judged.steps(trial)[:1]), assign]


def test_two_moments_each_of_build_select_and_assign(tmp_path, variants):
    moments = []
    for variant in variants:
        trials = kills.Kills(tmp_path / "trial", random.Random(3))
        whole = trials.whole(variant)
        assert whole.contents
        for _ in range(2):
            trial = trials.trial(variant, whole)
            assert trial.wrong == [], trial
            moments.append(trial.moment)
    assert len(set(moments)) == 6 and all(moments)


def test_what_is_lost_changed_or_left_over_is_found(tmp_path, variants, monkeypatch):
    monkeypatch.setattr(kills, "_GONE_SECONDS", 0.0)
    trials, variant = kills.Kills(tmp_path / "trial", random.Random(0)), variants[0]
    mark = trials._fresh(variant)
    for name in ("same", "changed", "more", "cache/verl_stvg/timelines/.x", "frames/x.tmp", "frames/x.frames"):
        path = tmp_path / "trial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    hashes = kills.contents(tmp_path / "trial", variant)
    assert hashes.keys() == {"same", "changed", "more"}
    whole = kills.Whole({"same": hashes["same"], "changed": "-", "less": "-"}, [])
    trial = kills.Trial(variant)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={kills._MARK: mark})
    try:
        trials._compare(trial, whole, mark)
        assert process.wait(timeout=60) != 0  # it is ended, so that the next trial begins without it
    finally:
        process.kill()
    assert sorted(trial.wrong[:5]) == [
        "cache/verl_stvg/timelines/.x is left over",
        "changed has other bytes",
        "frames/x.tmp is left over",
        "less is missing",
        "more is left over",
    ]
    assert len(trial.wrong) == 6 and trial.wrong[5].startswith("a process is left over: ")


def test_files_that_may_differ_are_left_out_and_no_others(tmp_path):
    training = next(kills._training(Path("clips"), Path("model")))
    folder = tmp_path / "trial"
    (folder / "train/checkpoints").mkdir(parents=True)
    for name in ("run.json", "run.1.json", "train.log", "train.1.log", "metrics.1.jsonl"):
        (folder / "train" / name).write_text("x")
    for name in ("checkpoints/run.json", "metrics.jsonl"):
        (folder / "train" / name).write_text('{"step": 1, "data": {"a": 1, "timing_s/step": 2.5}}\n')
    found = kills.contents(folder, training)
    assert found.keys() == {"train/checkpoints/run.json", "train/metrics.jsonl"}
    (folder / "train/metrics.jsonl").write_text('{"step": 1, "data": {"a": 1, "timing_s/step": 7.5}}\n')
    assert kills.contents(folder, training) == found
    (folder / "train/metrics.jsonl").write_text('{"step": 1, "data": {"a": 2, "timing_s/step": 7.5}}\n')
    assert kills.contents(folder, training) != found


def test_the_moments_are_shared_among_commands():
    assert kills.counts(100, kills.SHARES) == kills.SHARES
    assert kills.counts(25, ["build", "select"]) == {"build": 15, "select": 10}
    assert kills.counts(2, kills.SHARES).keys() == kills.SHARES.keys()
    assert kills.parts(25, [4, 1]) == [20, 5] and kills.parts(17, [1, 1]) == [8, 9]
