"""Boundary reflection's mode ``prompted`` with a model that follows its instruction, on clips of another seed."""

import pytest

from tests.support.planted import build_planted
from tests.support.prompted_model import answer, draw, guide_labels, samples_of, teach
from verl_stvg.data_builders.selection import boundary_reflection, folder


def test_what_is_taught():
    """Every track is named once; where the target comes twice, each occurrence is the answer to the other."""
    clips, twice, frames = draw(9, 4)
    samples = samples_of(clips, twice)
    assert len(samples) == 12 and len(frames) == 4 and sum(sample.other is not None for sample in samples) == 4
    for sample in samples:
        found = boundary_reflection.read_reply(answer(sample))
        assert found == ([(sample.other.start, sample.other.end)] if sample.other else [])
        labels = set(guide_labels(clips[sample.clip], sample))
        assert 4 in labels and bool(labels & {1, 2, 3}) == (sample.other is not None)


@pytest.mark.long
def test_a_model_that_follows_the_instruction_finds_what_is_planted(model, tmp_path):
    from verl_stvg.inference.generate import generate
    from verl_stvg.inference.settings import Settings
    from verl_stvg.video.store import FrameStore

    teach(model, tmp_path / "taught")
    planted = build_planted(tmp_path / "data", range(60), seed=5)
    stage, out = boundary_reflection.stage("prompted"), tmp_path / "out"
    folder.prepare(stage, [tmp_path / "data" / "train.parquet"], out)
    store = FrameStore(str(tmp_path / "frames"))
    settings = Settings(str(tmp_path / "taught"), engine="transformers", batch=12, max_tokens=40, store=store)
    generate([out / "rows.parquet"], out / "answers" / "all", settings)
    lines = folder.judge(stage, out)
    twice = {uid for uid in planted if planted[uid]["twice"]}
    found = {line["uid"] for line in lines if line["is_partial"]}
    assert all(line["parse_ok"] for line in lines)
    assert len(found & twice) > 0.8 * len(twice) and len(found & twice) > 0.9 * len(found)
