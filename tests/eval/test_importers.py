"""Prediction files in the forms that other programs write, each scored to the value that it is worth.

The files are made here, small, with the field names, nesting and oddities of the programs' own output.
"""

import json
import math
import random

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data_builders.sets import test_qa, test_temporal, test_tubes
from tests.data_builders.test_build import run as build_rows
from tests.eval.test_score import command, lines, moment, read, said, value, write
from tests.support import set_fixtures
from verl_stvg.data_builders import build
from verl_stvg.data_builders.sets import all_sets
from verl_stvg.data_builders.templates import TEMPLATES
from verl_stvg.eval.benchmarks.items import item_of, read_rows
from verl_stvg.eval.importers import content, foreign
from verl_stvg.eval.lmms_eval_tasks import utils
from verl_stvg.eval.score import score

ROWS = [
    moment("V1/0", (1.0, 5.0), query="person opens door"),
    moment("V1/1", (2.0, 6.0), query="person sits"),
    moment("V1/2", (12.0, 16.0), query="person sits"),
    moment("V2/0", (3.0, 9.0), query="person sits"),
]
TIMES = [tuple(row["reward_model"]["ground_truth"]["intervals"][0]) for row in ROWS]


def made(folder, name, split, template=None):
    """Rows of a set from annotation files that lie in a folder, without videos."""
    job = build.Job(
        all_sets()[name], folder, folder / "rows", splits=(split,), template=template and TEMPLATES[template]
    )
    build.build(job)
    return folder / "rows" / f"{split}.parquet"


def scored(file, rows, form="auto"):
    found = read(file, rows, form)
    return found, score(rows, found.answers, counts=found.counts, notes=found.notes)


# --- TimeChat and TimeSuite -------------------------------------------------------------------------------------------


def timechat(numbers, shift=0.0):
    """The object of both programs: by number in the annotation; keys in the order in which samples were drawn."""
    queries = [row["extra_info"]["query"] for row in ROWS]
    videos = [row["videos"][0]["video"] for row in ROWS]
    return {
        str(k): {"timestamp": [[TIMES[k][0] + shift, TIMES[k][1] + shift]], "query": f"{queries[k]}.", "vid": videos[k]}
        for k in numbers
    }


@given(st.permutations(range(4)))
def test_timechat_in_whatever_order_samples_were_drawn(tmp_path_factory, order):
    """`person sits` is there twice in V1: numbers put the two in the annotation's order."""
    file = write(tmp_path_factory.mktemp("t") / "fmt_charades_test_f96_result.json", timechat(order))
    found, scores = scored(file, ROWS)
    assert found.forms == ("timechat",) and found.counts == {}
    assert value(scores, "mIoU") == pytest.approx(1)


def test_timechat_counts_what_has_no_time(tmp_path):
    content = timechat(range(4)) | {"3": {"timestamp": [], "query": "person sits", "vid": "V2.mp4"}}
    _, scores = scored(write(tmp_path / "p.json", content), ROWS)
    assert value(scores, "mIoU") == pytest.approx(3 / 4)
    assert scores.counts["unreadable"] == 1 and scores.counts["missing"] == 0


def test_timechat_numbers_of_a_part_of_the_annotation(tmp_path):
    """With a row's number in the rows' own file, one of two equal queries is told apart; else it is left out."""
    _, scores = scored(write(tmp_path / "p.json", timechat([0, 2])), ROWS)
    assert value(scores, "mIoU") == pytest.approx(2 / 4) and scores.items[2]["values"]["mIoU"] == pytest.approx(1)
    elsewhere = {"800": timechat([0])["0"], "802": timechat([2])["2"]}
    found, scores = scored(write(tmp_path / "q.json", elsewhere), ROWS)
    assert found.counts == {"ambiguous": 1} and value(scores, "mIoU") == pytest.approx(1 / 4)
    assert any("fit several rows" in note and "V1.mp4 person sits" in note for note in scores.notes)


# --- lmms-eval --------------------------------------------------------------------------------------------------------

REPLY = "The event happens in the {} - {} seconds."


def charades_samples(with_doc):
    """`--log_samples` of lmms-eval's own Charades-STA: its metrics hold the reply by `video>>>caption>>>times`."""
    for k, row in enumerate(ROWS):
        doc = {"video": row["videos"][0]["video"], "caption": row["extra_info"]["query"], "timestamp": list(TIMES[k])}
        reply = REPLY.format(*TIMES[k])
        metric = {f"{doc['video']}>>>{doc['caption']}>>>{doc['timestamp']}": reply}
        yield {
            "doc_id": k,
            "target": str(doc["timestamp"]),
            "filtered_resps": [[reply]] if with_doc else reply,
            "doc_hash": "0f",
            "input": f"Please find the visual event: {doc['caption']}. Please return its start time and end time.",
        } | ({"doc": doc} if with_doc else {"charades_sta_IOU@3": metric, "charades_sta_mIOU": metric})


@pytest.mark.parametrize("with_doc", [False, True])
def test_lmms_evals_own_charades(with_doc, tmp_path):
    samples = list(charades_samples(with_doc))
    random.Random(0).shuffle(samples)  # several ranks
    found, scores = scored(write(tmp_path / "1_samples_temporal_grounding_charades.jsonl", lines(*samples)), ROWS)
    assert found.forms == ("lmms_eval",)
    for name in ("mIoU", "R1@0.7", "mIoU (Temporal-R1)"):
        assert value(scores, name) == pytest.approx(1), name


def test_lmms_evals_own_timelens(tmp_path):
    samples = [
        {
            "doc_id": k,
            "target": str([list(TIMES[k])]),
            "filtered_resps": REPLY.format(*TIMES[k]),
            "input": "q",
            "timelens_mIOU": {f"charades/{row['videos'][0]['video']}>>>{row['extra_info']['query']}>>>"
                              f"{[list(TIMES[k])]}": REPLY.format(*TIMES[k])},
        }
        for k, row in enumerate(ROWS)
    ]  # fmt: skip
    samples[3]["filtered_resps"] = "I do not know."
    _, scores = scored(write(tmp_path / "s.jsonl", lines(*samples)), ROWS)
    assert value(scores, "mIoU") == pytest.approx(3 / 4) and scores.counts["unreadable"] == 1


def ours(rows, with_doc, numbers):
    """`--log_samples` of our tasks: the truth as target, the prompt as input, and the metrics."""
    for row, number in zip(rows, numbers, strict=True):
        truth = row["reward_model"]["ground_truth"]
        reply = said(f"{truth['start']:.4f}", f"{truth['end']:.4f}")
        yield {
            "doc_id": number,
            "target": utils.doc_to_target(row),
            "filtered_resps": reply,
            "input": row["prompt"][-1]["content"].replace("<video>", "").strip(),
            "m_tIoU": 1.0,
        } | ({"doc": {"extra_info": {"uid": row["extra_info"]["uid"]}}} if with_doc else {})


@pytest.fixture(scope="module")
def tubes(tmp_path_factory):
    """Rows of HC-STVG; three of them with one query at one time, which only their places tell apart."""
    folder = tmp_path_factory.mktemp("hc")
    entry = test_tubes.V2 | set_fixtures._OVER | {"English": "The man opens the door."}
    names = {f"{k}_D8Vhxbho1fY.mkv": entry for k in (20, 21, 22)}
    names["23_D8Vhxbho1fY.mkv"] = entry | {"English": "The man opens the door and leaves."}
    write(folder / "val_v2.json", names)
    return pq.read_table(made(folder, "hc_stvg_v2", "val", "time_r1")).to_pylist()


@pytest.mark.parametrize("with_doc", [False, True])
def test_our_tasks_in_lmms_eval(with_doc, tubes, tmp_path):
    samples = list(ours(tubes, with_doc, range(4)))
    found, scores = scored(write(tmp_path / "s.jsonl", lines(*reversed(samples))), tubes)
    assert found.forms == ("lmms_eval",) and not found.counts
    assert [item["uid"] for item in scores.items] == list(found.answers)[::-1]
    assert value(scores, "m_tIoU") == pytest.approx(1, abs=0.02)  # annotated seconds are a frame shorter than the tube


def test_samples_of_our_tasks_that_nothing_tells_apart(tubes, tmp_path):
    samples = list(ours(tubes[:2], False, (70, 71)))  # numbers of another file
    found = read(write(tmp_path / "s.jsonl", lines(*samples, *ours(tubes[3:], False, (3,)))), tubes)
    assert found.counts == {"ambiguous": 2} and list(found.answers) == [tubes[3]["extra_info"]["uid"]]


def test_samples_of_another_task_are_refused(tmp_path):
    samples = {"doc_id": 0, "target": "B", "filtered_resps": "B", "input": "Which?"}
    with pytest.raises(ValueError, match="not of the format lmms_eval .*target 'B' of doc_id 0 is no time"):
        read(write(tmp_path / "s.jsonl", lines(samples)), ROWS)


# --- lighthouse, Moment-DETR, ReXTime ---------------------------------------------------------------------------------


def windows(row, qid, *found):
    return {
        "qid": qid,
        "query": row["extra_info"]["query"].capitalize() + ".",
        "vid": row["videos"][0]["video"].removesuffix(".mp4"),
        "pred_relevant_windows": [[*one, 0.9] for one in found],
    }


def test_lighthouse_numbers_are_its_own(tmp_path):
    """Its qid 77 is not the 77 of the rows; video and query say which row is meant."""
    rows = [moment("V1/0", (1.0, 5.0), query="a", annotated={"qid": 77}), moment("V1/1", (2.0, 6.0), query="b")]
    text = lines(windows(rows[0], 12404, (1, 5), (0, 9)), windows(rows[1], 77, (2, 6)))
    found, scores = scored(write(tmp_path / "hl_charades_submission.jsonl", text), rows)
    assert found.forms == ("moment_detr",) and value(scores, "mIoU") == pytest.approx(1)
    text = lines(windows(rows[0], 77, (1, 5)), windows(rows[1], "V1_0", (2, 6)))  # that of TACoS: video and place
    assert value(scored(write(tmp_path / "q.jsonl", text), rows)[1], "mIoU") == pytest.approx(1)
    other = windows(rows[0], 77, (1, 5)) | {"vid": "V9"}
    with pytest.raises(ValueError, match="none of 1 predictions is for one of the 2 rows"):
        read(write(tmp_path / "r.jsonl", lines(other)), rows)


def test_qvhighlights_test_with_its_published_truth(tmp_path):
    entry = test_temporal.QV_ROW
    write(tmp_path / "highlight_test_with_gt.jsonl", lines(entry, entry | {"qid": 2580, "relevant_windows": [[4, 10]]}))
    rows = list(read_rows([made(tmp_path, "qvhighlights", "test")]))
    submission = lines(windows(rows[0], 2579, (0, 8), (0, 1)), windows(rows[1], 2580, (4, 7)))
    found, scores = scored(write(tmp_path / "hl_test_submission.jsonl", submission), rows)
    assert found.counts == {} and [one["values"]["mIoU"] for one in scores.items] == pytest.approx([1, 0.5])
    annotation = tmp_path / "highlight_test_with_gt.jsonl"
    found, scores = scored(annotation, rows)
    assert found.forms == ("annotation",) and value(scores, "mIoU") == pytest.approx(1)


def test_rextimes_own_truth_and_submission(tmp_path):
    """The JSON lines of its script are read by the builder; a submission to it has windows and letters."""
    write(tmp_path / "rextime_val.jsonl", lines(test_qa.REX_TRUTH, test_qa.REX_TRUTH | {"qid": "anet_val93"}))
    rows = list(read_rows([made(tmp_path, "rextime", "val", "videotg_r1")]))
    submission = [{"qid": "anet_val92", "pred_relevant_windows": [[5, 8]], "ans": "A"}] + [
        {"qid": "anet_val93", "pred_relevant_windows": [[5, 6.5]], "ans": "B"}
    ]
    _, scores = scored(write(tmp_path / "submission.jsonl", lines(*submission)), rows)
    names = ("mIoU", "Acc@QA", "Acc@IoU", "mIoU (VideoMind)", "Acc@IoU (VideoMind)")
    assert [value(scores, name) for name in names] == pytest.approx([0.75, 0.5, 0.5, 0.75, 0.5])
    for form in ("auto", "annotation"):
        found, scores = scored(tmp_path / "rextime_val.jsonl", rows, form)
        assert found.forms == ("annotation",)
        assert value(scores, "mIoU") == value(scores, "Acc@GQA") == pytest.approx(1)


def test_a_build_says_which_rows_can_only_be_answered(tmp_path, caplog):
    bare = {name: one for name, one in test_temporal.QV_ROW.items() if name != "relevant_windows"}
    write(tmp_path / "highlight_test_release.jsonl", lines(bare, bare | {"qid": 2580}))
    write(tmp_path / "highlight_val_release.jsonl", lines(test_temporal.QV_ROW))
    with caplog.at_level("WARNING"):
        status, _ = build_rows("build", "qvhighlights", "--annotations", tmp_path, "--out", tmp_path / "rows")
    words = "2 rows have no public ground truth; they can be answered, but not scored here"
    assert status == 0 and words in caplog.text
    assert f"test: {words}." in (tmp_path / "rows" / "README.md").read_text()
    splits = json.loads((tmp_path / "rows" / "manifest.json").read_text())["splits"]
    assert splits["test"]["without_truth"] == 2 and "without_truth" not in splits["val"]
    rows = list(read_rows([tmp_path / "rows" / "test.parquet"]))
    with pytest.raises(ValueError, match="has no ground truth: its publisher scores this split"):
        score(rows, {})


# --- VideoMind --------------------------------------------------------------------------------------------------------

BROKEN = (
    *((math.nan, 3.0), (math.inf, 3.0), (2.0, math.inf), (-math.inf, math.inf), (3.0, 3.0), (9.0, 2.0), (-5.0, 1e9)),
    *((1e38, 3e38), (-3e38, 3e38), (1e39, 2e39), (0.0, 1e-45), (-10.0, -5.0), (1e-8, 2e-8), (16777216.0, 16777217.0)),
)
REPLIES = (
    "Answer: B",
    "None",
    "\nA",
    "\tB",
    "Z",
    "(F)",
    "?",
    "AB",
    "\xe9",
    "5",
    "A\nB",
    "a,",
    "((A))",
    ".C",
    ")D",
    "The",
)


def videomind(seed, count=500):
    """Rows of NExT-GQA and the dump of `infer_auto.py` for them, a quarter of it with what models should not say."""
    draw = random.Random(seed)
    for k in range(count):
        duration = draw.uniform(5, 180)
        truth = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            start, end = sorted(round(draw.uniform(0, duration), draw.choice((0, 1, 2))) for _ in range(2))
            truth.append([start, end if start < end else start + 1])
        pred = [sorted(draw.uniform(0, duration) for _ in range(2)) for _ in range(draw.choice((1, 2, 5, 5, 6)))]
        start, end = truth[0]
        kind = draw.randrange(8)
        if kind < 2:
            pred[0] = [start + draw.uniform(-2, 2), end + draw.uniform(-2, 2)]
        elif kind == 2:  # on the border of a threshold
            pred[0] = [start, start + (end - start) * draw.choice((0.3, 0.5, 0.7))]
        elif kind < 5:
            pred[0] = list(draw.choice((*BROKEN, (end, start), (start, start), (duration, duration))))
        answer, options = draw.choice("ABCDE"), [f"option {k}" for k in range(5)]
        reply = draw.choice(
            (answer, f"({answer}) it", f"({answer}", f"{answer}.", answer.lower(), draw.choice("ABCDE"))
        )
        if draw.random() < 0.25:
            reply = draw.choice(REPLIES)
        row = moment(
            f"{k:05d}/{k}",
            (start, end),
            duration,
            "videochat_r1_gqa",
            "nextgqa",
            answer=answer,
            options=options,
            intervals=truth,
            query=f"why {k}",
        )
        yield (
            row,
            {
                "video_path": f"videos/{k:05d}.mp4",
                "duration": duration,
                "query": f"why {k}",
                "question": f"why {k}?",
                "options": options,
                "ans": answer,
                "span": truth,
                "task": "CW",
                "pred": pred,
                "conf": [0.5] * len(pred),
                "response": reply,
            },
        )


GOLDEN = {
    0: {
        "mIoU": 0.36091708900410907,
        "IoU@0.3": 0.482,
        "IoU@0.5": 0.362,
        "mIoP": 0.5224186892318934,
        "IoP@0.3": 0.566,
        "IoP@0.5": 0.534,
        "Acc@QA": 0.666,
        "Acc@GQA": 0.338,
        "Acc@IoU": 0.234,
    },
    1: {
        "mIoU": 0.3516946691846228,
        "IoU@0.3": 0.47,
        "IoU@0.5": 0.36,
        "mIoP": 0.5016059130302684,
        "IoP@0.3": 0.564,
        "IoP@0.5": 0.51,
        "Acc@QA": 0.634,
        "Acc@GQA": 0.326,
        "Acc@IoU": 0.23,
    },
}


@pytest.mark.parametrize("seed", GOLDEN)
def test_videominds_columns_are_those_of_its_script(seed, tmp_path):
    """`GOLDEN` is what `eval_auto.py` computes in torch float32 for the same files, before it rounds."""
    rows, dumped = zip(*videomind(seed), strict=True)
    _, scores = scored(write(tmp_path / "output_0.json", list(dumped)), rows)
    found = {name: value(scores, f"{name} (VideoMind)") for name in GOLDEN[seed]}
    assert found == pytest.approx(GOLDEN[seed], abs=1e-9)
    assert scores.counts["not_finite"] > 10 and value(scores, "mIoU") > found["mIoU"]


# --- TACoS of 2D-TAN --------------------------------------------------------------------------------------------------


def test_tacos_of_2d_tan_as_rows_and_as_predictions(tmp_path):
    file = write(tmp_path / "test.json", test_temporal.TACOS_2DTAN)
    rows = list(read_rows([made(tmp_path, "tacos", "test")]))
    for name in ("test.json", "renamed.json"):
        found, scores = scored(write(tmp_path / name, file.read_text()), rows)
        assert found.forms == ("annotation",) and value(scores, "mIoU") == pytest.approx(1)


def test_tacos_of_2d_tan_against_rows_of_the_other_selection(tmp_path):
    """The same number within a video is another sentence there, so video and sentence say which row is meant."""
    windows_of = {"He took out a knife.": [1, 4], "Something left out by 2D-TAN.": [2, 5], "He cut the orange.": [6, 8]}
    entries = [
        {"vid": "s34-d28", "query": query, "duration": 10.0, "relevant_windows": [window]}
        for query, window in windows_of.items()
    ]
    write(tmp_path / "test.jsonl", lines(*entries))
    rows = list(read_rows([made(tmp_path, "tacos", "test")]))
    content = {
        "s34-d28.avi": {
            "timestamps": [[180, 240], [30, 120]],
            "sentences": ["He cut the orange.", "He took out a knife."],
            "fps": 30,
            "num_frames": 300,
        }
    }
    _, scores = scored(write(tmp_path / "val.json", content), rows)
    assert [one["values"]["mIoU"] for one in scores.items] == pytest.approx([1, 0, 1])
    assert scores.counts["missing"] == 1


# --- which form, and what fits no row ---------------------------------------------------------------------------------


def test_names_may_be_numbers_and_an_order_that_is_relied_on_is_said(tmp_path):
    write(tmp_path / "charades_sta_test.txt", "5 1.0 5.0##person sits.\n5 2.0 6.0##person sits.\n")
    write(tmp_path / "durations.json", {"5": 20.0})
    file = made(tmp_path, "charades_sta", "test")
    lines = [{"vid": 5, "query": "person sits.", "start": start, "end": start + 4.0} for start in (1.0, 2.0)]
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command(predictions, "--rows", file, "--out", tmp_path / "out")[0] == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["metrics"]["mIoU"]["value"] == pytest.approx(1)
    assert any("in the order of the rows" in note for note in scores["notes"])


def test_the_page_names_the_form_and_quotes_what_is_left_out(tmp_path):
    file = tmp_path / "rows.parquet"
    write(tmp_path / "charades_sta_test.txt", "V1 1.0 5.0##person opens door.\nV1 2.0 6.0##person sits.\n")
    write(tmp_path / "durations.json", {"V1": 20.0})
    file = made(tmp_path, "charades_sta", "test")
    content = {
        "0": {"timestamp": [[1, 5]], "query": "person opens door.", "vid": "V1.mp4"},
        "1": {"timestamp": [[2, 6]], "query": "person flies.", "vid": "V1.mp4"},
    }
    predictions = write(tmp_path / "p.json", content)
    status, words = command(predictions, "--rows", file, "--out", tmp_path / "out")
    assert status == 1, words  # something to look at
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["made_by"]["format"] == ["timechat"] and scores["counts"]["extra"] == 1
    assert "Predictions are read as: timechat." in scores["notes"]
    assert any("1 predictions fit no row" in note and "V1.mp4 person flies." in note for note in scores["notes"])


def test_a_file_that_may_be_of_two_forms_is_refused(tmp_path):
    line = {"qid": "V1_0", "vid": "V1", "query": "person opens door", "pred_relevant_windows": [[1, 5, 1]]}
    line |= {"pred": [[0, 1]], "conf": [1.0]}
    file = write(tmp_path / "p.jsonl", lines(line))
    with pytest.raises(ValueError, match="may be of the format moment_detr or videomind.*--format"):
        read(file, ROWS)
    assert read(file, ROWS, "moment_detr").answers["charades_sta/test/V1/0"].interval == (1, 5)


def test_fewer_lines_than_rows_that_they_fit_are_left_out(tmp_path):
    line = {"vid": "V1", "query": "person sits", "interval": [2, 6]}
    named = {"uid": "charades_sta/test/V1/0", "interval": [1, 5]}
    found, scores = scored(write(tmp_path / "p.jsonl", lines(line, named)), ROWS)
    assert found.counts == {"ambiguous": 1} and value(scores, "mIoU") == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match=r"none of 1 predictions .*'V1 person sits'"):
        read(write(tmp_path / "q.jsonl", lines(line)), ROWS)


@pytest.mark.parametrize("field", [None, 7, math.nan, True, "x", [], [None], [[1, "x"]], [[1]], {}, {"0": [None]}])
def test_broken_entries_end_in_a_message_or_in_zeros(field, tmp_path):
    """An object with the marks of a form and anything else in it raises nothing but ValueError."""
    items = [item_of(row) for row in ROWS]
    for form, marks in (*content.LINE_MARKS.items(), *content.OBJECT_MARKS.items()):
        for changed in ([], *([mark] for mark in sorted(marks)), sorted(marks)):
            line = {mark: "V1_0" for mark in marks} | {"qid": "V1_0"} | dict.fromkeys(changed, field)
            written = {"0": line} if form in content.OBJECT_MARKS else [line]
            try:
                found = foreign.read([write(tmp_path / f"{form}.json", written)], items)
            except ValueError as error:
                assert f"{form}.json" in str(error)
                continue
            assert found.answers.keys() <= {item.uid for item in items} and form in found.forms
