"""Selection: worked tables, laws of judging and choosing, and the whole way on planted clips with the tiny model."""

import dataclasses
import json
import math
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from reward_fns import RECIPES
from tests.support.planted import build_planted
from verl_stvg.cli.select import app
from verl_stvg.data_builders.row_schema import ROW_SCHEMA
from verl_stvg.data_builders.selection import (
    boundary_reflection,
    difficulty,
    draw,
    folder,
    report,
    subset,
    time_r1_filter,
    variance,
)
from verl_stvg.data_builders.selection.boundary_reflection import Rules, evidence, judged, read_reply
from verl_stvg.data_builders.selection.samples import first_two_numbers, overlap, read_intervals, sample_of
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.templates import perfect_answer
from verl_stvg.rows.answers import Answer

# --- rows and answers ------------------------------------------------------------------------------------------------


def one_row(uid: str = "s/train/0", recipe: str = "videotg_r1", dataset: str = "s", **changes) -> dict:
    """A row of the builders' schema; changes go to its ground truth."""
    truth = {"uid": uid, "duration": 60.0, "start": 10.0, "end": 20.0, "intervals": [[10.0, 20.0]]} | changes
    empty = {field.name: None for field in ROW_SCHEMA.field("reward_model").type.field("ground_truth").type}
    extra = {field.name: None for field in ROW_SCHEMA.field("extra_info").type}
    extra |= {
        "uid": uid,
        "dataset": dataset,
        "split": "train",
        "index": int(uid.rpartition("/")[2]),
        "query": "a man runs",
    }
    extra |= {"duration": truth["duration"], "num_frames": 600, "source_fps": 10.0, "width": 112, "height": 84}
    extra["constant_rate"] = True
    video = {field.name: None for field in ROW_SCHEMA.field("videos").type.value_type}
    return {
        "data_source": f"{recipe}/{dataset}",
        "prompt": [{"role": "user", "content": "when does a man run?<video>"}],
        "videos": [video | {"video": "a/b.mp4", "rule": "grid", "fps": 2.0}],
        "ability": "temporal grounding",
        "reward_model": {"style": "rule", "ground_truth": empty | truth},
        "extra_info": extra | {"template": "videotg_r1/1"},
    }


def write_parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    return path


def write_answers(out: Path, texts: dict[str, list[str]], name: str = "all", **made_by) -> None:
    path = out / "answers" / name
    path.mkdir(parents=True)
    lines = [
        Answer(uid, tuple(found)).line() if found else Answer(uid, error="no such video").line()
        for uid, found in texts.items()
    ]
    (path / "predictions.jsonl").write_text("".join(lines))
    (path / "run.json").write_text(json.dumps({"model": "m", "weights": "w", "sampling": {"samples": 1}} | made_by))


# --- boundary reflection ----------------------------------------------------------------------------------------------

WORKED = [  # VideoTG-R1 notes, 1.3: guard 1, min_len 1, tau_out 0.5, G = [10, 20], D = 60
    ("[]", False),
    ("[(11, 19)]", False),
    ("[(7, 23)]", False),
    ("[(0, 30)]", True),
    ("[(40, 48)]", True),
    ("[(21, 21.5)]", False),
    ("20.8", False),
    ("35", True),
    ("[(48, 40)]", True),
    ("[(70, 80)]", False),
]


@pytest.mark.parametrize(("list_", "partial"), WORKED)
def test_worked_table_of_reflection(list_, partial):
    answer = Answer("s/train/0", (f"<think>x</think><answer>{list_}</answer>",))
    found = judged(sample_of(one_row()), answer, Rules())
    assert found["parse_ok"] and found["is_partial"] is partial
    assert found["drop_reason"] == ("partial" if partial else None) and bool(found["outside"]) is partial


@pytest.mark.parametrize(
    ("truth", "reply", "reason", "parse_ok"),
    [
        (
            {"start": 0.0, "end": 57.5, "intervals": [[0.0, 57.5]]},
            "[(0, 59), (59, 60)]",
            None,
            True,
        ),  # nothing is outside
        ({"start": 70.0, "end": 80.0, "intervals": [[70.0, 80.0]]}, "[(1, 9)]", "bad_gt", True),
        ({"start": 20.0, "end": 20.0, "intervals": [[20.0, 20.0]]}, "[(1, 9)]", "bad_gt", True),
        ({"start": 20.0, "end": 10.0, "intervals": [[20.0, 10.0]]}, "[(1, 9)]", "bad_gt", True),
        ({"start": None, "end": None, "intervals": None}, "[(1, 9)]", "bad_gt", True),
        ({"intervals": [[10.0, 20.0], [40.0, 50.0]]}, "[(41, 49), (9, 21)]", None, True),  # the union of windows
        ({"intervals": [[10.0, 20.0], [40.0, 50.0]]}, "[(25, 35)]", "partial", True),
        ({}, "I see (0:35, 0:40) as well", None, False),  # kept, and counted
    ],
)
def test_edges_of_reflection(truth, reply, reason, parse_ok):
    found = judged(sample_of(one_row(**truth)), Answer("u", (f"<answer>{reply}</answer>",)), Rules())
    assert (found["drop_reason"], found["parse_ok"]) == (reason, parse_ok)


def test_video_that_cannot_be_used_is_not_partly_annotated():
    found = judged(sample_of(one_row()), Answer("u", error="cut off"), Rules())
    assert found["drop_reason"] == "video_error" and not found["is_partial"] and not found["parse_ok"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>1 to 2</think><answer>[(3.50, 8.00), (41.25, 47)]</answer>", [(3.5, 8.0), (41.25, 47.0)]),
        ("<answer>[[3, 8], [9 s, 12 s]]</answer>", [(3.0, 8.0), (9.0, 12.0)]),
        ("<answer>3.5 to 8, and 9s - 12.25 seconds</answer>", [(3.5, 8.0), (9.0, 12.25)]),
        ("<answer>at 5 and at 35.5 seconds</answer>", [(5.0,), (35.5,)]),
        ("<answer>(5, 9) but not 35 to 40</answer>", [(5.0, 9.0)]),
        ("<answer>[]</answer>", []),
        ("<answer></answer>", []),
        ("<answer>There are none.</answer>", []),
        ("<answer>No</answer>", []),
        ("[(1, 2)]", [(1.0, 2.0)]),
        ("<answer>[(1, 2)]</answer><answer>[]</answer>", []),
        ("<answer>the man runs</answer>", None),
        ("<answer>01:05 to 01:10</answer>", None),
        ("there are 3 more", None),
        ("<answer>[(1, 2)]", None),
        ("", None),
        ("<answer>" + "(1, 2)" * 2000 + "</answer>", None),
        ("<answer>1.2.3 to 4</answer>", None),
    ],
)
def test_replies_of_reflection(text, found):
    assert read_reply(text) == found


@given(st.text(alphabet="()[],.-:0123456789 toandsecn\n<answer>/٣"))
def test_no_reply_raises(text):
    for wrapped in (text, f"<answer>{text}</answer>"):
        found = read_reply(wrapped)
        assert found is None or all(math.isfinite(time) and 1 <= len(item) <= 2 for item in found for time in item)


TIME = st.floats(0, 80).map(lambda value: round(value, 2))
ITEM = st.one_of(st.tuples(TIME, TIME), st.tuples(TIME))
SPANS = st.lists(st.tuples(TIME, TIME), max_size=3).map(lambda found: boundary_reflection.clipped(found, 60.0))


@given(st.lists(ITEM, max_size=6), SPANS, st.randoms())
def test_order_of_predictions_does_not_matter(items, spans, random):
    found = evidence(items, spans, 60.0, Rules())
    turned = [item[::-1] for item in items]
    random.shuffle(turned)
    assert sorted(evidence(turned, spans, 60.0, Rules())) == sorted(found)


@given(st.lists(ITEM, max_size=6), SPANS)
def test_evidence_is_outside_and_stricter_rules_find_less(items, spans):
    found = evidence(items, spans, 60.0, Rules())
    for item in found:
        if len(item) == 2:
            start, end = item
            inside = sum(max(0.0, min(end, e) - max(start, s)) for s, e in boundary_reflection.united(spans))
            assert 0 <= start and end <= 60 and end - start >= 1 and inside <= 0.5 * (end - start) + 1e-9
        else:
            assert not any(start <= item[0] <= end for start, end in spans)
    for stricter in (Rules(guard=3.0), Rules(tau_out=0.9), Rules(min_len=4.0)):
        assert set(evidence(items, spans, 60.0, stricter)) <= set(found)
    assert evidence([*spans], spans, 60.0, Rules()) == []


def test_reversed_intervals_can_count_for_nothing():
    assert evidence([(48.0, 40.0), (5.0, 2.0)], [(10.0, 20.0)], 60.0, Rules()) == [(2.0, 5.0), (40.0, 48.0)]
    assert evidence([(48.0, 40.0), (2.0, 5.0), (33.0,)], [(10.0, 20.0)], 60.0, Rules(reversed="drop")) == [
        (2, 5),
        (33,),
    ]
    with pytest.raises(ValueError, match="swap, drop"):
        Rules(reversed="keep")


def test_prompts_name_what_they_must():
    row = boundary_reflection.asked(one_row(intervals=[[10.0, 20.0], [40.0, 50.0]]), "prompted")
    (turn,) = row["prompt"]
    assert turn["content"].endswith("<video>") and "a man runs" in turn["content"]
    assert "10.00 to 20.00 seconds and 40.00 to 50.00 seconds" in turn["content"] and "[]" in turn["content"]
    blanked = boundary_reflection.asked(one_row(), "blanked")
    assert blanked["videos"][0]["hidden"] == [[10, 20]] and "10.00" not in blanked["prompt"][0]["content"]
    own = boundary_reflection.asked(
        one_row(intervals=[[10.5, 20.5], [19.0, 30.0], [59.5, 70.0]]), "blanked", own_prompt=True
    )
    assert own["videos"][0]["hidden"] == [[10, 30], [59, 60]] and own["prompt"] == one_row()["prompt"]
    first = one_row()
    first["prompt"] = [{"role": "system", "content": "JSON"}, {"role": "user", "content": "<video>when?"}]
    assert [t["content"][:7] for t in boundary_reflection.asked(first, "prompted")["prompt"]] == ["<video>"]


def test_blanking_needs_to_know_the_video():
    row = one_row()
    row["extra_info"]["num_frames"] = None
    with pytest.raises(ValueError, match="s/train/0.*--videos"):
        boundary_reflection.asked(row, "blanked")
    with pytest.raises(ValueError, match="choose one of prompted, blanked"):
        boundary_reflection.stage("masked")
    with pytest.raises(ValueError, match="blanked"):
        boundary_reflection.stage("prompted", own_prompt=True)


def test_health_suspects_prompts_not_annotations():
    lines = [
        {"dataset": "a", "drop_reason": "partial" if k < 7 else None, "parse_ok": True, "error": None}
        for k in range(10)
    ]
    lines += [
        {"dataset": "b", "drop_reason": "partial" if k < 2 else None, "parse_ok": k > 0, "error": None}
        for k in range(10)
    ]
    first, second = boundary_reflection.health(lines, Rules())
    assert first.startswith("a: 70.0% of 10") and "prompt" in first
    assert second == "b: 20.0% of 10 rows partly annotated, 1 replies unreadable"


# --- difficulty -------------------------------------------------------------------------------------------------------


def says(start: float, end: float) -> str:
    return f"<think>x</think><answer>{start} to {end}</answer>"


@pytest.mark.parametrize(
    ("texts", "iou", "std", "bin_", "parse_ok"),
    [
        ([says(10, 20)], 1.0, 0.0, "easy", True),
        ([says(10, 17)], 0.7, 0.0, "easy", True),
        ([says(10, 16.9)], 0.69, 0.0, "normal", True),
        ([says(10, 13)], 0.3, 0.0, "normal", True),
        ([says(10, 12.9)], 0.29, 0.0, "hard", True),
        ([says(30, 40)], 0.0, 0.0, "hard", True),
        (["no idea"], 0.0, 0.0, "hard", False),
        ([says(10, 20), says(30, 40), says(10, 15), "no idea"], 0.375, math.sqrt(0.171875), "normal", False),
    ],
)
def test_difficulty_of_a_row(texts, iou, std, bin_, parse_ok):
    line = difficulty.judged(sample_of(one_row()), Answer("u", tuple(texts)), difficulty.Rules())
    difficulty.put_in_bins([line], difficulty.Rules())
    assert line["iou"] == pytest.approx(iou) and line["difficulty"] == pytest.approx(1 - iou)
    assert line["iou_std"] == pytest.approx(std) and line["n_samples"] == len(texts)
    assert (line["bin"], line["parse_ok"], line["drop_reason"]) == (bin_, parse_ok, None)


def test_unreadable_reply_does_not_take_the_iou_before_it():
    rules, sample = difficulty.Rules(), sample_of(one_row())
    texts = [says(10, 20), "", says(20, 10), says(10, 20)]
    assert [difficulty.judged(sample, Answer("u", (text,)), rules)["iou"] for text in texts] == [1.0, 0.0, 0.0, 1.0]


def test_first_two_numbers_as_time_r1_does():
    rules, answer = difficulty.Rules(first_numbers=True), Answer("u", ("From 10 s until 15 s, as 2 of them say",))
    assert difficulty.judged(sample_of(one_row()), answer, rules)["iou"] == pytest.approx(0.5)
    assert difficulty.judged(sample_of(one_row()), answer, difficulty.Rules())["iou"] == 0.0
    assert first_two_numbers("only 7") is None and first_two_numbers("9" * 400 + " 1") is None


@pytest.mark.parametrize(
    ("truth", "reason"), [({"intervals": None, "start": None}, "bad_gt"), ({"intervals": [[5, 5]]}, "bad_gt")]
)
def test_rows_without_a_truth_have_no_difficulty(truth, reason):
    line = difficulty.judged(sample_of(one_row(**truth)), Answer("u", (says(1, 2),)), difficulty.Rules())
    difficulty.put_in_bins([line], difficulty.Rules())
    assert (line["iou"], line["difficulty"], line["bin"], line["drop_reason"]) == (None, None, None, reason)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.2, 0.5, 1.0])), min_size=1, max_size=60))
def test_quantile_bins_have_their_shares(found):
    lines = [{"uid": f"{k:03}", "dataset": name, "iou": iou} for k, (name, iou) in enumerate(found)]
    difficulty.put_in_bins(lines, difficulty.Rules(mode="quantile", hard=0.25, easy=0.75))
    for name in {line["dataset"] for line in lines}:
        members = [line for line in lines if line["dataset"] == name]
        counts = {one: [line["iou"] for line in members if line["bin"] == one] for one in difficulty.BINS}
        assert len(counts["hard"]) == math.ceil(len(members) / 4)
        assert len(counts["easy"]) == len(members) - math.ceil(3 * len(members) / 4)
        assert max(counts["hard"]) <= min(counts["easy"] or [1.0])


def test_bins_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="threshold, quantile"):
        difficulty.Rules(mode="rank")
    with pytest.raises(ValueError, match="hard=0.8"):
        difficulty.Rules(hard=0.8)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_perfect_answers_are_read_from_every_reward(recipe):
    truth = {"start": 10.0, "end": 20.0, "duration": 60.0, "intervals": [(10.0, 20.0)], "object_id": 3}
    truth |= {"object_ids": [3, 4], "answer": "B", "option": "B", "first_frame": 2, "boxes": [[0, 0, 5, 5]]}
    truth["picture"] = [100, 100]
    if recipe in ("r1v", "temporal_r1_mcq"):
        with pytest.raises(ValueError, match="variance"):
            read_intervals("", recipe)
        return
    assert overlap(read_intervals(perfect_answer(recipe, truth), recipe), ((10.0, 20.0),)) == 1.0
    assert read_intervals("no idea", recipe) is None


def test_several_windows_are_compared_as_unions():
    assert overlap([(0.0, 10.0)], ((0.0, 5.0), (10.0, 15.0))) == pytest.approx(1 / 3)
    assert overlap([(5.0, 2.0)], ((0.0, 5.0), (10.0, 15.0))) == 0.0


# --- variance ---------------------------------------------------------------------------------------------------------


def mcq(*letters: str) -> list[str]:
    return [f'<think>x</think><answer>{{"option": "{letter}"}}</answer>' for letter in letters]


def gqa(*answers: tuple[str, float, float]) -> list[str]:
    return [
        f'<think>x</think><answer>{{"option": "{o}", "start_time": "{s}", "end_time": "{e}"}}</answer>'
        for o, s, e in answers
    ]


@pytest.mark.parametrize(
    ("recipe", "texts", "task", "kept", "reason"),
    [
        ("temporal_r1_mcq", mcq("B", "B", "B", "B"), "mcq", False, "low variance, good"),
        ("temporal_r1_mcq", mcq("A", "C", "A", "D"), "mcq", False, "low variance, poor"),
        ("temporal_r1_mcq", mcq("A", "B", "A", "B"), "mcq", True, None),
        ("videotg_r1", [says(30, 40), says(41, 42), "?", says(1, 2)], "tvg", False, "low variance, poor"),
        ("videotg_r1", [says(10, 20), says(10, 19.5), says(10, 20), says(10, 19)], "tvg", False, "low variance, good"),
        ("videotg_r1", [says(10, 20), says(30, 40), says(10, 15), says(12, 30)], "tvg", True, None),
        ("temporal_r1_gqa", gqa(("B", 10, 20), ("B", 10, 20)), "gqa", False, "low variance, good"),
        ("temporal_r1_gqa", gqa(("B", 10, 20), ("A", 10, 20)), "gqa", True, None),
        ("temporal_r1_gqa", gqa(("A", 10, 20), ("A", 30, 40)), "gqa", True, None),
    ],
)
def test_variance_keeps_what_varies(recipe, texts, task, kept, reason):
    line = variance.judged(sample_of(one_row(recipe=recipe, option="B")), Answer("u", tuple(texts)), variance.Rules())
    assert (line["task"], line["kept"], line["drop_reason"]) == (task, kept, reason)
    assert all(len(values) == len(texts) for values in line["rewards"].values())
    assert not any(name.startswith("format") for name in line["rewards"])


def test_ranks_of_the_notes():
    line = variance.judged(
        sample_of(one_row(recipe="temporal_r1_mcq", option="B")),
        Answer("u", tuple(mcq("A", "B", "B", "B"))),
        variance.Rules(),
    )
    assert line["rank"] == pytest.approx(0.75 * 0.25)
    line = variance.judged(sample_of(one_row()), Answer("u", (says(10, 20), says(30, 40))), variance.Rules())
    assert line["rank"] == line["std"] == pytest.approx(0.5)
    line = variance.judged(
        sample_of(one_row(recipe="temporal_r1_gqa", option="B")),
        Answer("u", tuple(gqa(("B", 10, 20), ("A", 30, 40)))),
        variance.Rules(),
    )
    assert line["rank"] == pytest.approx(1.0)
    tasks = {variance.task_of(recipe.asks): name for name, recipe in RECIPES.items()}
    assert tasks.keys() == set(variance.TASKS)
    assert variance.task_of(RECIPES["stvg_r1"].asks) == "stvg"
    assert variance.task_of(RECIPES["stvg_boxes"].asks) == "stvg"
    assert variance.task_of(RECIPES["time_r1"].asks) == "tvg"


def test_quotas_keep_the_most_varied_and_break_ties_by_uid():
    lines = [
        {"uid": uid, "task": "tvg", "rank": rank, "kept": True, "drop_reason": None}
        for uid, rank in (("c", 0.3), ("a", 0.3), ("b", 0.5), ("d", 0.1))
    ]
    variance.keep(lines, variance.Rules(quotas={"tvg": 2}))
    assert {line["uid"] for line in lines if line["kept"]} == {"a", "b"}
    assert {line["drop_reason"] for line in lines if not line["kept"]} == {"quota"}
    with pytest.raises(ValueError, match="unknown task vqa"):
        variance.Rules(quotas={"vqa": 1})
    with pytest.raises(ValueError, match="--samples"):
        variance.judged(sample_of(one_row()), Answer("u", (says(1, 2),)), variance.Rules())


# --- Time-R1 ----------------------------------------------------------------------------------------------------------


def test_cold_start_draws_around_the_centre():
    lines = [{"uid": f"{k:05}", "iou": k % 101 / 100} for k in range(10100)]
    drawn = time_r1_filter.cold_start(lines)
    assert len(drawn) == 2500 == len(set(drawn)) and drawn == time_r1_filter.cold_start(lines[::-1])
    assert drawn != time_r1_filter.cold_start(lines, seed=43)
    ious = np.array([int(uid) % 101 / 100 for uid in drawn])
    assert ious.min() > 0
    few = [int(uid) % 101 / 100 for uid in time_r1_filter.cold_start(lines, time_r1_filter.Rules(size=300))]
    grid = np.arange(1, 101) / 100
    weights = np.exp(-((grid - 0.3) ** 2) / (2 * 0.2**2))
    assert np.mean(few) == pytest.approx((grid * weights).sum() / weights.sum(), abs=0.03)
    assert 0.15 < np.std(few) < 0.2  # cut at 0, the Gaussian is narrower than 0.2


def test_later_rounds_thin_evenly_what_is_neither_lost_nor_solved():
    ious = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.71, 1.0, None]
    lines = [{"uid": str(k), "iou": iou} for k, iou in enumerate(ious)]
    assert time_r1_filter.next_round(lines) == ["1", "2", "3", "4", "5", "6", "7"]
    assert time_r1_filter.next_round(lines, time_r1_filter.Rules(size=4)) == ["1", "3", "5", "7"]
    assert time_r1_filter.next_round(lines, time_r1_filter.Rules(size=1)) == ["7"]


# --- folders: freezing, folds, merging --------------------------------------------------------------------------------

STAGE = difficulty.stage()


def rows_file(path: Path, count: int = 6, dataset: str = "s", **changes) -> Path:
    return write_parquet(path, [one_row(f"{dataset}/train/{k}", dataset=dataset, **changes) for k in range(count)])


def test_rows_are_frozen_and_other_rows_are_refused(tmp_path):
    file, out = rows_file(tmp_path / "rows" / "train.parquet"), tmp_path / "out"
    manifest = folder.prepare(STAGE, [file], out)
    assert manifest["rows"]["count"] == 6 and manifest["datasets"] == {"s": 6}
    frozen = (out / "rows.parquet").read_bytes()
    assert folder.prepare(STAGE, [file], out) == manifest and (out / "rows.parquet").read_bytes() == frozen
    for other in (
        rows_file(tmp_path / "other" / "train.parquet", 5),
        rows_file(tmp_path / "truth" / "train.parquet", start=11.0),
        write_parquet(tmp_path / "order" / "train.parquet", [one_row(f"s/train/{k}") for k in (1, 0, 2, 3, 4, 5)]),
    ):
        with pytest.raises(ValueError, match="holds other rows.*choose another folder"):
            folder.prepare(STAGE, [other], out, video_root=file.parent)
    with pytest.raises(ValueError, match="stage was 'difficulty'"):
        folder.prepare(variance.stage(), [file], out)
    with pytest.raises(ValueError, match="is there twice"):
        folder.prepare(STAGE, [file, file], tmp_path / "twice")
    with pytest.raises(ValueError, match="no such file"):
        folder.prepare(STAGE, [tmp_path / "none.parquet"], tmp_path / "none")


def test_folds_come_together_and_missing_rows_are_named(tmp_path):
    file, out = rows_file(tmp_path / "rows" / "train.parquet"), tmp_path / "out"
    folder.prepare(STAGE, [file], out)
    texts = {f"s/train/{k}": [says(10, 10 + k)] for k in range(6)}
    with pytest.raises(folder.MissingAnswers, match="6 of 6 rows.*s/train/0.*and 1 more"):
        folder.judge(STAGE, out)
    with pytest.raises(ValueError, match="6 of 6 rows have no answer.*without --model no model is asked"):
        CliRunner().invoke(app, ["difficulty", str(file), "--out", str(out)], catch_exceptions=False)
    write_answers(out, {uid: texts[uid] for uid in ("s/train/5", "s/train/4", "s/train/3")}, "fold1")
    with pytest.raises(folder.MissingAnswers, match="3 of 6 rows have no answer: s/train/0, s/train/1, s/train/2"):
        folder.judge(STAGE, out)
    assert not (out / "judged.jsonl").exists()
    write_answers(out, {uid: texts[uid] for uid in ("s/train/0", "s/train/1", "s/train/2", "s/train/3")}, "fold0")
    write_answers(out, {}, "fold9")
    lines = folder.judge(STAGE, out)  # one row is in two folds, with the same answer
    assert [line["uid"] for line in lines] == list(texts) and [line["index"] for line in lines] == list(range(6))
    assert [round(line["iou"], 6) for line in lines] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    written = [json.loads(line) for line in (out / "judged.jsonl").read_text().splitlines()]
    assert written == lines and list(lines[0])[:11] == [
        *("uid", "dataset", "index", "video_path", "duration", "query", "span", "model", "prompt_version"),
        *("raw_response", "error"),
    ]
    assert folder.read_summary(out)["datasets"]["s"]["rows"] == 6


@pytest.mark.parametrize(
    ("texts", "made_by", "message"),
    [
        ({"s/train/0": ["another answer"]}, {}, "answers 's/train/0' otherwise"),
        ({"t/train/0": [says(1, 2)]}, {}, "1 answers belong to none of the rows: t/train/0"),
        ({}, {"weights": "others"}, "made otherwise than the folds before it .weights"),
        ({}, {"sampling": {"samples": 2}}, "made otherwise.*sampling"),
    ],
)
def test_answers_that_do_not_belong_together(tmp_path, texts, made_by, message):
    out = tmp_path / "out"
    folder.prepare(STAGE, [rows_file(tmp_path / "rows" / "train.parquet")], out)
    write_answers(out, {f"s/train/{k}": [says(10, 10 + k)] for k in range(6)}, "fold0")
    write_answers(out, texts, "fold1", **made_by)
    with pytest.raises(ValueError, match=message):
        folder.judge(STAGE, out)
    (out / "answers" / "fold1" / "run.json").unlink()
    with pytest.raises(ValueError, match="run.json: no such file"):
        folder.judge(STAGE, out)


def test_files_of_several_sets_and_roots_are_one_pool(tmp_path):
    files = [rows_file(tmp_path / "rows" / name / "train.parquet", 3, name) for name in ("a", "b")]
    (tmp_path / "rows" / "a" / "manifest.json").write_text(json.dumps({"video_root": "../../videos/a"}))
    source = folder.pool(files)
    assert source.root == tmp_path
    assert [row["videos"][0]["video"] for row in source.rows()][2:4] == ["videos/a/a/b.mp4", "rows/b/a/b.mp4"]
    manifest = folder.prepare(STAGE, files, tmp_path / "deep" / "er" / "out")
    assert manifest["datasets"] == {"a": 3, "b": 3} and manifest["video_root"] == "../../.."
    clip = synthetic.row(synthetic.make_clip(0, "train", 0), 0, "train", 0)
    pq.write_table(pa.Table.from_pylist([clip], synthetic.ROW_SCHEMA), tmp_path / "rows" / "synthetic.parquet")
    mixed = folder.pool([*files, tmp_path / "rows" / "synthetic.parquet"])
    manifest = folder.prepare(boundary_reflection.stage("blanked"), mixed.files, tmp_path / "mixed")
    assert manifest["datasets"] == {"a": 3, "b": 3, "synthetic": 1}
    hidden = [row["videos"][0]["hidden"] for row in pq.read_table(tmp_path / "mixed" / "rows.parquet").to_pylist()]
    assert hidden[0] == [[10, 20]] and len(hidden[-1]) == 1


# --- choosing ---------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), st.integers(0, 50)), st.integers(0, 300)
)
def test_shares_are_proportional(counts, size):
    parts, total = draw.shares(counts, size), sum(counts.values())
    assert sum(parts.values()) == min(size, total) and parts.keys() == counts.keys()
    for name, count in counts.items():
        assert 0 <= parts[name] <= count
        assert not total or abs(parts[name] - min(size, total) * count / total) < 1


def test_draws_depend_on_seed_and_uid_only():
    uids = [f"u{k}" for k in range(2000)]
    values = [draw.uniform(1, uid) for uid in uids]
    assert 0 < min(values) < 0.01 and 0.99 < max(values) < 1 and np.mean(values) == pytest.approx(0.5, abs=0.02)
    order = draw.shuffled(7, uids)
    assert order == draw.shuffled(7, reversed(uids)) != draw.shuffled(8, uids)
    assert [uid for uid in order if uid in set(uids[:50])] == draw.shuffled(7, uids[:50])


@pytest.fixture
def judged_pool(tmp_path) -> dict[str, Path]:
    """Two sets of 60 and 20 rows, reflected, answered eight times and with a difficulty."""
    files = [
        rows_file(tmp_path / "rows" / name / "train.parquet", count, name) for name, count in (("a", 60), ("b", 20))
    ]
    found = {"files": files, "root": tmp_path}
    uids = [f"{name}/train/{k}" for name, count in (("a", 60), ("b", 20)) for k in range(count)]
    number = {uid: int(uid.rpartition("/")[2]) for uid in uids}
    replies = {
        "reflection": {
            uid: ["<answer>[(40, 50)]</answer>" if number[uid] % 4 == 0 else "<answer>[]</answer>"] for uid in uids
        },
        "difficulty": {uid: [says(10, 10 + number[uid] % 11)] if number[uid] != 1 else [] for uid in uids},
        "variance": {uid: [says(10, 20), says(30, 40) if number[uid] % 3 else says(10, 20)] for uid in uids},
    }
    for name, stage in (
        ("reflection", boundary_reflection.stage()),
        ("difficulty", STAGE),
        ("variance", variance.stage()),
    ):
        found[name] = tmp_path / name
        folder.prepare(stage, files, found[name])
        write_answers(found[name], replies[name])
        folder.judge(stage, found[name])
    return found


def test_subset_keeps_sets_and_bins_in_proportion(judged_pool):
    files, root = judged_pool["files"], judged_pool["root"]
    found = subset.Judgements(judged_pool["reflection"], judged_pool["difficulty"])
    manifest = subset.select(files, root / "chosen", found, subset.Rules(share=0.25))
    assert manifest["dropped"] == {"partial": 20, "video_error": 2} and manifest["left"] == 58
    assert manifest["asked"] == manifest["chosen"] == 20
    assert sum(part["chosen"] for name, part in manifest["strata"].items() if name[0] == "a") in (14, 15, 16)
    for part in manifest["strata"].values():
        assert abs(part["chosen"] - 20 * part["left"] / 58) < 1
    rows = pq.read_table(root / "chosen" / "train.parquet").to_pylist()
    uids = (root / "chosen" / "uids.txt").read_text().splitlines()
    assert uids == [row["extra_info"]["uid"] for row in rows] and len(set(uids)) == 20
    known = folder.read_judged(judged_pool["difficulty"], ("bin",))
    for row in rows:
        extra = row["extra_info"]
        assert extra["index"] % 4 and (extra["difficulty"], extra["bin"]) == tuple(
            known[extra["uid"]][k] for k in ("difficulty", "bin")
        )
        assert row["videos"][0]["video"].startswith(f"{extra['dataset']}/a/b.mp4")
    again = subset.select(files[::-1], root / "again", found, subset.Rules(share=0.25))
    assert (
        sorted((root / "again" / "uids.txt").read_text().splitlines()) == sorted(uids)
        and again["strata"] == manifest["strata"]
    )
    assert subset.select(files, root / "chosen", found, subset.Rules(share=0.25))["sha256"] == manifest["sha256"]
    with pytest.raises(ValueError, match="holds something else .*rules"):
        subset.select(files, root / "chosen", found, subset.Rules(share=0.25, seed=1))
    assert not list(root.glob(".*"))


def test_subset_of_what_varies_of_a_list_and_of_few_easy_rows(judged_pool):
    files, root = judged_pool["files"], judged_pool["root"]
    varied = subset.select(
        files, root / "varied", subset.Judgements(variance=judged_pool["variance"]), subset.Rules(share=1.0)
    )
    assert varied["chosen"] == 53 and varied["dropped"] == {"low variance, good": 27}
    rows = pq.read_table(root / "varied" / "train.parquet").to_pylist()
    assert {row["extra_info"]["bin"] for row in rows} == {None}
    listed = subset.select(
        files, root / "listed", subset.Judgements(uids=root / "varied" / "uids.txt"), subset.Rules(size=10)
    )
    assert listed["chosen"] == 10 and listed["left"] == 53
    few = subset.select(
        files,
        root / "few",
        subset.Judgements(difficulty=judged_pool["difficulty"]),
        subset.Rules(share=1, easy_share=0),
    )
    assert (
        not any(part["chosen"] for name, part in few["strata"].items() if name.endswith("easy")) and few["chosen"] < 78
    )


def test_curriculum_reads_what_selection_writes(judged_pool):
    from verl_stvg.rows.masks import RowFacts

    subset.select(
        judged_pool["files"],
        judged_pool["root"] / "chosen",
        subset.Judgements(difficulty=judged_pool["difficulty"]),
        subset.Rules(share=0.5),
    )
    rows = pq.read_table(judged_pool["root"] / "chosen" / "train.parquet").to_pylist()
    assert {RowFacts.of(row).bin for row in rows} == {"hard", "normal", "easy"}


def test_choosing_refuses_gaps_and_benchmarks(judged_pool, tmp_path):
    files, root = judged_pool["files"], judged_pool["root"]
    lines = (root / "difficulty" / "judged.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "short.jsonl").write_text("".join(lines[:-3]))
    with pytest.raises(ValueError, match="says nothing about 3 of 80 rows: b/train/17, b/train/18, b/train/19"):
        subset.select(files, root / "x", subset.Judgements(difficulty=tmp_path / "short.jsonl"))
    (tmp_path / "twice.jsonl").write_text("".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="line 81: a second line about 'a/train/0'"):
        subset.select(files, root / "x", subset.Judgements(difficulty=tmp_path / "twice.jsonl"))
    (tmp_path / "keys.jsonl").write_text('{"uid": "a/train/0", "iou": 0.5}\n')
    with pytest.raises(ValueError, match="line 1 lacks difficulty, bin, drop_reason; see docs"):
        subset.select(files, root / "x", subset.Judgements(difficulty=tmp_path / "keys.jsonl"))
    (tmp_path / "bin.jsonl").write_text("".join(lines).replace('"bin": "hard"', '"bin": "tough"'))
    with pytest.raises(ValueError, match="bin 'tough' is none of hard, normal, easy"):
        subset.select(files, root / "x", subset.Judgements(difficulty=tmp_path / "bin.jsonl"))
    rows = [one_row("s/val/0")]
    rows[0]["extra_info"]["split"] = "val"
    with pytest.raises(ValueError, match="s/val/0: a row of the split val"):
        subset.select([write_parquet(tmp_path / "val.parquet", rows)], root / "x", subset.Judgements())
    assert not (root / "x").exists()
    with pytest.raises(ValueError, match="no row is chosen"):
        subset.select(files[1:], root / "x", subset.Judgements(), subset.Rules(share=0.01))


# --- killed at any moment ---------------------------------------------------------------------------------------------

WHOLE_WAY = """
import os, signal, sys
from pathlib import Path

import pandas  # as pyarrow does at its first table; here once, before the forks

from verl_stvg.data_builders.selection import difficulty, folder, subset

rename = Path.rename

def whole_way(root, kill_at):
    left = kill_at

    def dying(self, target):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = dying
    stage, rows = difficulty.stage(), [root / "rows" / "train.parquet"]
    folder.prepare(stage, rows, root / "out")
    folder.judge(stage, root / "out")
    subset.select(rows, root / "chosen", subset.Judgements(difficulty=root / "out"), subset.Rules(share=0.5))

def forked(root, kill_at):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    whole_way(root, kill_at)
    os._exit(0)

statuses = []
for kill_at, root in enumerate(map(Path, sys.argv[1:])):
    statuses.append(forked(root, kill_at))
    assert forked(root, 0) == 0
print(*statuses)
"""


def test_killed_at_every_file_it_ends_with_the_same_ones(tmp_path, run_python):
    """Killed before one of its files is put in its place, and called again; the first folder is never killed."""
    roots = [tmp_path / str(kill_at) for kill_at in range(8)]
    for root in roots:
        rows_file(root / "rows" / "train.parquet", 12)
        write_answers(root / "out", {f"s/train/{k}": [says(10, 10 + k % 11)] for k in range(12)})
    statuses = [int(status) for status in run_python(WHOLE_WAY, *roots).stdout.split()]
    assert statuses == [0] + 6 * [-signal.SIGKILL] + [0]  # there are six files and folders
    found = []
    for root in roots:
        paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
        found.append({str(path): (root / path).read_bytes() for path in visible})
    assert {"out/judged.jsonl", "out/summary.json", "chosen/train.parquet", "chosen/uids.txt"} <= found[0].keys()
    assert all(files == found[0] for files in found)


# --- command and page -------------------------------------------------------------------------------------------------


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_judge_choose_and_show(tmp_path, caplog):
    caplog.set_level("INFO")
    file = rows_file(tmp_path / "rows" / "train.parquet", 12)
    (tmp_path / "rows" / "a").mkdir()
    clip = synthetic.make_clip(0, "train", 0)
    synthetic.write_video(tmp_path / "rows" / "a" / "b.mp4", synthetic.render_frames(clip, range(24)))
    uids = [f"s/train/{k}" for k in range(12)]
    reflect, hard, varied = (tmp_path / name for name in ("reflect", "hard", "varied"))
    assert "12 of 12 rows have no answer" in command("reflect", file, "--out", reflect)
    write_answers(
        reflect, {uid: [f"<think>&<b></think><answer>[({k}, {3 * k + 1})]</answer>"] for k, uid in enumerate(uids)}
    )
    write_answers(hard, {uid: [says(10, 10 + k)] if k else [] for k, uid in enumerate(uids)})
    write_answers(varied, {uid: [says(10, 20), says(10, 20 - k)] for k, uid in enumerate(uids)})
    command("reflect", file, "--out", reflect, "--guard", "2")
    command("difficulty", file, "--out", hard, "--bins", "quantile")
    command("variance", file, "--out", varied, "--quota", "tvg=3")
    command(
        "subset", file, "--out", tmp_path / "chosen", "--reflection", reflect, "--difficulty", hard, "--share", "0.5"
    )
    command("time-r1", file, "--out", tmp_path / "cold", "--difficulty", hard, "--size", "5")
    command(
        "time-r1", tmp_path / "cold" / "train.parquet", "--out", tmp_path / "next", "--difficulty", hard, "--round", "1"
    )
    assert pq.read_table(tmp_path / "cold" / "train.parquet").num_rows == 5
    assert set((tmp_path / "next" / "uids.txt").read_text().split()) <= set(
        (tmp_path / "cold" / "uids.txt").read_text().split()
    )
    assert sum(json.loads(line)["kept"] for line in (varied / "judged.jsonl").open()) == 3
    folders = (reflect, hard, varied, tmp_path / "chosen", tmp_path / "cold")
    command("report", *folders, "--out", tmp_path / "page.html", "--limit", "2")
    page = (tmp_path / "page.html").read_text()
    assert "dropped: quota" in page and "Choice: chosen" in page and "&lt;b&gt;" in page and "<b></think>" not in page
    assert "data:image/jpeg" in page and str(tmp_path) not in page and "http" not in page
    assert "partly annotated" in (reflect / "report.html").read_text()
    assert "--quota tvg is not of the form" in command("variance", file, "--out", varied, "--quota", "tvg")
    assert "was prepared for" in command("variance", file, "--out", hard) or "stage was" in command(
        "variance", file, "--out", hard
    )
    assert "neither a judged stage nor a choice" in command("report", tmp_path / "rows")


# --- the whole way on planted clips -----------------------------------------------------------------------------------


def auc(high: list[float], low: list[float]) -> float:
    return sum((h > k) + 0.5 * (h == k) for h in high for k in low) / (len(high) * len(low))


@pytest.mark.slow
def test_planted_clips_with_the_tiny_model(model, tmp_path):
    """Reflection finds second occurrences, difficulty ranks rare words above common ones; folds, one engine, no vLLM.

    The tiny model knows one prompt, which has no word for "it does not happen". So reflection goes by `blanked` with
    the rows' own prompt. What the model says where nothing is left to find is an interval that ends before it starts:
    taken as an interval it costs precision, taken as nothing it does not (docs/selection.md has the numbers).
    """
    from verl_stvg.inference import engines
    from verl_stvg.inference.generate import generate
    from verl_stvg.inference.settings import Settings
    from verl_stvg.video.store import FrameStore

    planted = build_planted(tmp_path / "data", range(72), seed=5)  # a part of those of docs/selection.md
    settings = Settings(
        model=str(model), engine="transformers", max_tokens=40, batch=12, store=FrameStore(str(tmp_path / "cache"))
    )
    engine = engines.start(settings)
    found = {}
    for name, stage in (
        ("difficulty", difficulty.stage()),
        ("reflection", boundary_reflection.stage("blanked", own_prompt=True)),
    ):
        out = tmp_path / name
        folder.prepare(stage, [tmp_path / "data" / "train.parquet"], out)
        for index in range(3):  # the third is past the end
            part = dataclasses.replace(settings, fold_size=36, fold_index=index)
            generate([out / "rows.parquet"], out / "answers" / f"fold{index}", part, engine)
        found[name] = {line["uid"]: line for line in folder.judge(stage, out)}
    common = list(synthetic.COLORS)[:3]
    hard = {uid: line["difficulty"] for uid, line in found["difficulty"].items() if not planted[uid]["twice"]}
    rare = [value for uid, value in hard.items() if planted[uid]["color"] not in common]
    assert auc(rare, [value for uid, value in hard.items() if planted[uid]["color"] in common]) > 0.6
    twice = {uid for uid in planted if planted[uid]["twice"]}
    swapped = {uid for uid, line in found["reflection"].items() if line["is_partial"]}
    stage = boundary_reflection.stage("blanked", Rules(reversed="drop"), own_prompt=True)
    dropped = {line["uid"] for line in folder.judge(stage, tmp_path / "reflection") if line["is_partial"]}
    assert dropped <= swapped and len(swapped & twice) > 0.6 * len(twice)
    assert len(dropped & twice) > 0.6 * len(twice)
    known = {uid for uid in dropped if planted[uid]["color"] in common}  # it finds them as far as it knows the words
    assert len(known & twice) > 0.6 * len(known)
    manifest = subset.select(
        [tmp_path / "data" / "train.parquet"],
        tmp_path / "chosen",
        subset.Judgements(tmp_path / "reflection", tmp_path / "difficulty"),
        subset.Rules(size=4),
    )
    assert manifest["chosen"] == 4
    assert report.write([tmp_path / "difficulty", tmp_path / "reflection", tmp_path / "chosen"], tmp_path / "page.html")
