"""Readers of question answering sets and of free formats, on small files in the published layouts.

Values are made up; field names, nesting, file names and every oddity are those of the releases.
"""

import csv
import json
import random
import textwrap

import pytest

from verl_stvg.data_builders.read import AnnotationError
from verl_stvg.data_builders.records import Problem, Record, Tube
from verl_stvg.data_builders.sets import activitynet_rtl, generic, nextgqa, rextime, temporal_r1

MODULES = (nextgqa, rextime, activitynet_rtl, temporal_r1, generic)


def put(folder, name, content):
    """Write a file, JSON unless it is text already."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(*items):
    return "".join(json.dumps(item) + "\n" for item in items)


def keys(entries):
    return [entry.key for entry in entries if isinstance(entry, Record)]


def problems(entries):
    return [(entry.where, entry.what) for entry in entries if isinstance(entry, Problem)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_set_is_described_in_full(module):
    (one,) = module.SETS
    assert one.name == module.__name__.rpartition(".")[2]
    assert one.title and one.home and one.read is module.read and one.read.__doc__
    assert set(one.splits) <= {"train", "val", "test"} and all(one.splits.values())


# NExT-GQA

HEADER = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
GSUB = {
    "4882821564": {
        "duration": 90,
        "location": {"1": [[5.5, 9.0]], "6": [[1.0, 3.5], [20.2, 31]], "7": []},
        "fps": 29.97,
    },
    "4152556613": {"duration": 16, "location": {"0": [[-0.1, 11.0]], "4": [[0.0, 16.4]], "5": [["0", 2]]}, "fps": 25},
    "2574374895": {"duration": 24, "location": None, "fps": 30},
    "3425596660": {"duration": 24, "location": {"0": [[1, 2]]}},
}
NAMES = {"4882821564": "1164/4882821564", "4152556613": "0000/4152556613", "2574374895": "1101/2574374895"}
BOY = "4882821564,2697,640,480,why did the boy pick up one present,unwrap it,1,CW,share with girl,unwrap it,run,sit,cry"


@pytest.fixture
def gqa(tmp_path):
    """Read CSV rows (without the header) with the side files of above."""

    def read(*rows, gsub=GSUB, names=NAMES, header=HEADER):
        files = (
            put(tmp_path, "test.csv", "\n".join((header, *rows)) + "\n"),
            put(tmp_path, "gsub_test.json", gsub),
            put(tmp_path, "map_vid_vidorID.json", names),
        )
        return list(nextgqa.read(files, "test"))

    return read


def test_nextgqa_reads_a_question_its_segments_and_the_mapped_video(gqa):
    assert gqa(BOY) == [
        Record(
            where="line 2 (4882821564), question 1",
            key="4882821564/1",
            video="1164/4882821564",
            query="why did the boy pick up one present",
            intervals=((5.5, 9.0),),
            duration=90,
            options=("share with girl", "unwrap it", "run", "sit", "cry"),
            answer="B",
            extra={"type": "CW", "answer_text": "unwrap it", "matching_options": 1, "fps": 29.97},
        )
    ]


def test_nextgqa_keeps_all_segments_in_order(gqa):
    (found,) = gqa("4882821564,2697,640,480,what did he do,run,6,TN,share,unwrap it,run,sit,cry")
    assert found.intervals == ((1.0, 3.5), (20.2, 31.0)) and found.answer == "C"


def test_nextgqa_keeps_segments_that_stick_out(gqa):
    row = "4152556613,400,640,480,how is she,glad,{},TC,sad,glad,shy,weary,afraid"
    early, late = gqa(row.format(0), row.format(4))
    assert early.intervals == ((-0.1, 11.0),) and late.intervals == ((0.0, 16.4),) and late.duration == 16


def test_nextgqa_takes_the_first_of_equal_options_and_counts_them(gqa):
    (found,) = gqa("4882821564,2697,640,480,how is the baby,happy,1,TC,shy,calmer and happier,calm,happy, happy ")
    assert found.answer == "D" and found.extra["matching_options"] == 2
    assert found.options == ("shy", "calmer and happier", "calm", "happy", "happy")


def test_nextgqa_finds_the_answer_despite_blanks_at_its_ends(gqa):
    (found,) = gqa("4882821564,2697,640,480,how is the baby,happy ,1,TP,shy, happy,calm,sad,weary")
    assert found.answer == "B" and found.extra["answer_text"] == "happy " and found.extra["type"] == "TP"


def test_nextgqa_reads_quoted_commas(gqa):
    (found,) = gqa('4882821564,2697,640,480,"what, then, is it",a,1,CH,a,b,c,d,"e, or ""f"""')
    assert found.query == "what, then, is it" and found.options[4] == 'e, or "f"'


def test_nextgqa_tells_the_same_question_number_in_two_videos_apart(gqa):
    rows = ("{},1,1,1,q,a,{},CW,a,b,c,d,e".format(*pair) for pair in (("4152556613", 0), ("4152556613", 4)))
    assert keys(gqa(BOY, *rows)) == ["4882821564/1", "4152556613/0", "4152556613/4"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("4882821564,1,1,1,q,a,7,CW,a,b,c,d,e", "gsub_test.json: no segments of the question"),
        ("4882821564,1,1,1,q,a,99,CW,a,b,c,d,e", "gsub_test.json: no segments of the question"),
        ("2574374895,1,1,1,q,a,1,CW,a,b,c,d,e", "gsub_test.json: entry of the video: location: missing or null"),
        ("3425596660,1,1,1,q,a,0,CW,a,b,c,d,e", "video_id: map_vid_vidorID.json has no video for it, found None"),
        ("4882821564,1,1,1,q,z,1,CW,a,b,c,d,e", "answer: is none of the options, found 'z'"),
        ("4882821564,1,1,1,q,a,1,CW,a,b,c,d", "a4: missing or null"),
        ("4882821564,1,1,1,q,a,1,CW,a,b,c,d,e,f", "more fields than the header: ['f']"),
        ("4882821564,1,1,1,,a,1,CW,a,b,c,d,e", "question: string should have at least 1 character, found ''"),
        ("4882821564,1,1,1,q,a,1,CW,a,b,,d,e", "a2: string should have at least 1 character, found ''"),
        (
            "4152556613,1,1,1,q,a,5,CW,a,b,c,d,e",
            "gsub_test.json: location[0][0]: input should be a valid number, found '0'",
        ),
    ],
)
def test_nextgqa_bad_row_is_a_problem_and_the_rest_survives(gqa, row, what):
    first, bad, last = gqa(BOY, row, BOY.replace(",1,CW", ",6,CW"))
    assert isinstance(first, Record) and isinstance(last, Record)
    assert bad == Problem(f"line 3 ({row[:10]}), question {row.split(',')[6]}", what)


def test_nextgqa_second_row_of_one_question_is_a_problem(gqa):
    assert problems(gqa(BOY, BOY)) == [
        ("line 3 (4882821564), question 1", "names the same row as an earlier entry: '4882821564/1'")
    ]


def test_nextgqa_missing_column_side_file_or_closing_bracket_is_an_error(gqa, tmp_path):
    with pytest.raises(AnnotationError, match=r"test\.csv: has no column a4"):
        gqa(BOY, header=HEADER.removesuffix(",a4"))
    with pytest.raises(AnnotationError, match=r"gsub_test\.json: "):
        gqa(BOY, gsub=json.dumps(GSUB)[:-9])
    with pytest.raises(AnnotationError, match=r"map_vid_vidorID\.json: holds no JSON object"):
        gqa(BOY, names=[])
    for files in ((tmp_path / "test.csv", None, tmp_path), (tmp_path / "test.csv", tmp_path, None)):
        with pytest.raises(AnnotationError, match=r"test\.csv: needs (gsub_test|map_vid_vidorID)\.json beside it"):
            list(nextgqa.read(files, "test"))


LISTED = {
    "id": 0,
    "video": "1106/4260763967.mp4",
    "question": "why did the boy pick up one present",
    "options": ["(A) share with girl", "(B) unwrap it", "(C) run"],
    "duration": 90.5,
    "glue": [[5.5, 9.0], [12, 13]],
    "type": "CW",
    "answer": "(B)",
}


def test_nextgqa_reads_the_list_of_videochat_r1(tmp_path):
    path = put(tmp_path, "nextgqa_val.json", [LISTED, LISTED | {"id": 1, "question": "and then"}])
    first, second = nextgqa.read((path, None, None), "val")
    assert first == Record(
        where="entry 0 (1106/4260763967.mp4)",
        key="1106/4260763967.mp4/0",
        video="1106/4260763967.mp4",
        query="why did the boy pick up one present",
        intervals=((5.5, 9.0), (12.0, 13.0)),
        duration=90.5,
        options=("share with girl", "unwrap it", "run"),
        answer="B",
        extra={"id": 0, "type": "CW"},
    )
    assert second.key == "1106/4260763967.mp4/1"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"glue": None}, "glue: missing or null"),
        ({"glue": []}, "glue: no segments of the question"),
        ({"glue": "[[5.5, 9.0]]"}, "glue: input should be a valid tuple, found '[[5.5, 9.0]]'"),
        ({"answer": "(D)"}, "answer: is not the letter of an option in brackets, found '(D)'"),
        ({"answer": "B"}, "answer: is not the letter of an option in brackets, found 'B'"),
        ({"options": ["(A) x", "(C) y"], "answer": "(A)"}, "options: is not marked with its letter, found '(C) y'"),
        ({"options": ["(A) x", 3], "answer": "(A)"}, "options: is not marked with its letter, found 3"),
        ({"options": {"A": "x"}}, "answer: is not the letter of an option in brackets, found '(B)'"),
        ({"duration": "90"}, "duration: input should be a valid number, found '90'"),
    ],
)
def test_nextgqa_bad_item_of_the_list_is_a_problem(tmp_path, change, what):
    path = put(tmp_path, "nextgqa_val.json", [LISTED, LISTED | change, "x", LISTED])
    first, bad, text, last = nextgqa.read((path, None, None), "val")
    assert isinstance(first, Record) and isinstance(last, Record) and first.key != last.key
    assert bad.what == what and bad.where.startswith("entry 1")
    assert text == Problem("entry 2", "is not an object, found 'x'")


def test_nextgqa_truncated_list_is_an_error(tmp_path):
    path = put(tmp_path, "nextgqa_val.json", json.dumps([LISTED, LISTED])[:-30])
    with pytest.raises(AnnotationError, match=r"nextgqa_val\.json: not valid JSON"):
        list(nextgqa.read((path, None, None), "val"))


# ReXTime

REX = {
    "qid": "anet_val92",
    "vid": "v_ZMTi498qnPc",
    "duration": 100.5,
    "question": "What does the woman do before smiling at the camera?",
    "answer": "From <s0> to <e0>, <option>.",
    "source": "ActivityNet_val_2",
    "category": "sequential",
    "options": ["she waves", "she runs", "she sits", "she sings"],
    "span": [5, 8],
    "ans": "A",
}
REX_QVH = REX | {
    "qid": "qvh_val241",
    "vid": "2I9-kvemtSU_510.0_660.0",
    "duration": 150,
    "source": "qvhighlights_val",
    "ans": "D",
}


REX_TRUTH = {
    "qid": "anet_val92",
    "query": "What does the woman do before smiling at the camera?",
    "duration": 100.5,
    "vid": "v_ZMTi498qnPc",
    "relevant_windows": [[5, 8]],
    "ans": "A",
}


def rex(folder, items):
    return list(rextime.read((put(folder, "rextime_val.json", items),), "val"))


def test_rextime_reads_a_question_and_leaves_the_answer_template_alone(tmp_path):
    assert rex(tmp_path, [REX]) == [
        Record(
            where="entry 0 (anet_val92)",
            key="anet_val92",
            video="v_ZMTi498qnPc",
            query="What does the woman do before smiling at the camera?",
            intervals=((5.0, 8.0),),
            duration=100.5,
            options=("she waves", "she runs", "she sits", "she sings"),
            answer="A",
            extra={
                "collection": "activitynet",
                "answer_text": "From <s0> to <e0>, <option>.",
                "category": "sequential",
                "source": "ActivityNet_val_2",
            },
        )
    ]


def test_rextime_tells_the_collections_apart_by_the_length_of_the_id(tmp_path):
    anet, qvh = rex(tmp_path, [REX, REX_QVH])
    assert anet.extra["collection"] == "activitynet" and qvh.extra["collection"] == "qvhighlights"
    assert qvh.video == "2I9-kvemtSU_510.0_660.0" and keys((anet, qvh)) == ["anet_val92", "qvh_val241"]


@pytest.mark.parametrize("truth", [{}, {"span": None, "ans": None}, {"span": [-1, -1], "ans": ""}, {"span": [0, 0]}])
def test_rextime_test_has_no_truth_whatever_stands_in_its_place(tmp_path, truth):
    bare = {name: value for name, value in REX.items() if name not in ("span", "ans", "answer")} | truth
    (found,) = rextime.read((put(tmp_path, "rextime_test_release.json", [bare]),), "test")
    assert found.intervals == () and found.answer is None and found.extra["answer_text"] is None
    assert found.options == tuple(REX["options"])


def test_rextime_keeps_spans_that_end_late_or_are_empty(tmp_path):
    late, empty = rex(tmp_path, [REX | {"span": [0, 130]}, REX_QVH | {"span": [1, 1]}])
    assert late.intervals == ((0.0, 130.0),) and empty.intervals == ((1.0, 1.0),)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"span": None}, "span: missing or null"),
        ({"span": [5]}, "span[1]: field required, found (5,)"),
        ({"span": ["5", 8]}, "span[0]: input should be a valid number, found '5'"),
        ({"ans": "E"}, "ans: is not the letter of an option, found 'E'"),
        ({"ans": ["A"]}, "ans: is not the letter of an option, found ['A']"),
        ({"options": "she waves"}, "ans: is not the letter of an option, found 'A'"),
        ({"options": ["x", None, "y", "z"]}, "options[1]: input should be a valid string, found None"),
        ({"vid": 12}, "vid: input should be a valid string, found 12"),
        ({"qid": "anet_val92"}, "names the same row as an earlier entry: 'anet_val92'"),
    ],
)
def test_rextime_bad_entry_is_a_problem(tmp_path, change, what):
    first, bad, text, last = rex(tmp_path, [REX, REX | {"qid": "anet_val93"} | change, None, REX_QVH])
    assert isinstance(first, Record) and isinstance(last, Record)
    assert bad.what == what and bad.where.startswith("entry 1")
    assert text == Problem("entry 2", "is not an object, found None")


def test_rextime_reads_the_truth_of_its_script(tmp_path):
    """`rextime_val.jsonl` has no options: the letter stays, for submissions that have one."""
    first, other, bad, letter = rextime.read(
        (
            put(
                tmp_path,
                "rextime_val.jsonl",
                lines(
                    REX_TRUTH,
                    REX_TRUTH | {"qid": "qvh_val241", "vid": REX_QVH["vid"], "relevant_windows": [[0, 28], [30, 31]]},
                    REX_TRUTH | {"qid": "b", "relevant_windows": None},
                    REX_TRUTH | {"qid": "c", "ans": "A) she waves"},
                ),
            ),
        ),
        "val",
    )
    assert first == Record(
        where="line 1 (anet_val92)",
        key="anet_val92",
        video="v_ZMTi498qnPc",
        query="What does the woman do before smiling at the camera?",
        intervals=((5.0, 8.0),),
        duration=100.5,
        answer="A",
        extra={"collection": "activitynet"},
    )
    assert other.intervals == ((0.0, 28.0), (30.0, 31.0)) and other.extra["collection"] == "qvhighlights"
    assert bad == Problem("line 3", "relevant_windows: missing or null") and letter.what.startswith("ans: ")
    assert first.key == rex(tmp_path, [REX])[0].key


def test_rextime_truncated_file_is_an_error(tmp_path):
    with pytest.raises(AnnotationError, match=r"rextime_val\.json: not valid JSON"):
        rex(tmp_path, json.dumps([REX, REX_QVH])[:-1])


# ActivityNet-RTL

RTL_TRAIN = {
    "v_QOlSCBRmfWY": {
        "duration": 82.73,
        "QA": [
            {"q": "When does the dancer turn? ", "a": "<0.83> <19.86> She turns as the music rises."},
            {"q": "Why does she bow?", "a": "Because the dance is over."},
            {"q": "When does she leave?", "a": "Between <60> and <.5>, not <77.22>."},
        ],
    },
    "v_bXdq2zI1Ms0": {"duration": 73.1, "QA": [{"q": "When is it lit?", "a": "<10.> <20> It is then."}]},
}
RTL_VAL = [
    {"question_id": "1", "vid": "v_abcdefgh9", "duration": 90.0, "question": "When?", "answer": "<1.5> <8> So."},
    {"question_id": "2", "vid": "v_abcdefgh9", "duration": 90.0, "question": "When else?", "answer": "<9> <12> So."},
]


def rtl(folder, content, split):
    return list(activitynet_rtl.read((put(folder, f"{split}.json", content),), split))


def test_rtl_takes_the_first_two_times_of_a_training_answer(tmp_path):
    first, _, third, fourth = rtl(tmp_path, RTL_TRAIN, "train")
    assert first == Record(
        where="entry 'v_QOlSCBRmfWY', question 0",
        key="v_QOlSCBRmfWY/0",
        video="v_QOlSCBRmfWY",
        query="When does the dancer turn?",
        intervals=((0.83, 19.86),),
        duration=82.73,
        extra={"answer_text": "<0.83> <19.86> She turns as the music rises.", "times": 2},
    )
    assert third.intervals == ((60.0, 0.5),) and third.extra["times"] == 3
    assert fourth.intervals == ((10.0, 20.0),) and fourth.key == "v_bXdq2zI1Ms0/0"


def test_rtl_training_answer_without_times_is_a_problem(tmp_path):
    assert problems(rtl(tmp_path, RTL_TRAIN, "train")) == [
        (
            "entry 'v_QOlSCBRmfWY', question 1",
            "answer: needs two times in angle brackets, has 0, found 'Because the dance is over.'",
        )
    ]


def test_rtl_reads_the_validation_list_and_adds_the_prefix_of_the_files(tmp_path):
    first, second = rtl(tmp_path, RTL_VAL, "val")
    assert first == Record(
        where="entry 0 (v_abcdefgh9)",
        key="v_v_abcdefgh9/0",
        video="v_v_abcdefgh9",
        query="When?",
        intervals=((1.5, 8.0),),
        duration=90.0,
        extra={"question_id": "1", "answer_text": "<1.5> <8> So.", "times": 2},
    )
    assert second.key == "v_v_abcdefgh9/1"


def test_rtl_leaves_a_name_with_its_prefix_alone(tmp_path):
    (found,) = rtl(tmp_path, [RTL_VAL[0] | {"vid": "v_QOlSCBRmfWY"}], "val")
    assert found.video == "v_QOlSCBRmfWY"


@pytest.mark.parametrize(
    ("answer", "count"), [("<5> then", 1), ("<start> <end>", 0), ("5 8", 0), ("<-1> <4>", 1), (7, 0), ("<٣> <4>", 1)]
)
def test_rtl_counts_only_times(tmp_path, answer, count):
    (found,) = rtl(tmp_path, [RTL_VAL[0] | {"answer": answer}], "val")
    assert found.what == f"answer: needs two times in angle brackets, has {count}, found {answer!r}"


@pytest.mark.parametrize(
    ("entry", "where", "what"),
    [
        (3, "entry 'v_bad'", "is not an object, found 3"),
        ({"duration": 3}, "entry 'v_bad'", "QA: missing or null"),
        ({"QA": {"q": "x"}}, "entry 'v_bad'", "QA: is not a list, found {'q': 'x'}"),
        ({"QA": ["x"]}, "entry 'v_bad', question 0", "is not an object, found 'x'"),
        ({"QA": [{"q": "x"}]}, "entry 'v_bad', question 0", "a: missing or null"),
        (
            {"QA": [{"q": 3, "a": "<1> <2>"}]},
            "entry 'v_bad', question 0",
            "q: input should be a valid string, found 3",
        ),
    ],
)
def test_rtl_bad_training_entry_is_a_problem(tmp_path, entry, where, what):
    found = rtl(tmp_path, {"v_bad": entry, **RTL_TRAIN}, "train")
    assert found[0] == Problem(where, what)
    assert keys(found) == ["v_QOlSCBRmfWY/0", "v_QOlSCBRmfWY/2", "v_bXdq2zI1Ms0/0"]


def test_rtl_bad_validation_entry_is_a_problem(tmp_path):
    found = rtl(tmp_path, [RTL_VAL[0], {"vid": "x"}, [], RTL_VAL[0] | {"vid": 5}, RTL_VAL[1]], "val")
    assert problems(found) == [
        ("entry 1", "question, answer: missing or null"),
        ("entry 2", "is not an object, found []"),
        ("entry 3 (5)", "video: input should be a valid string, found 5"),
    ]
    assert keys(found) == ["v_v_abcdefgh9/0", "v_v_abcdefgh9/1"]


def test_rtl_truncated_file_is_an_error(tmp_path):
    for content, split in ((RTL_TRAIN, "train"), (RTL_VAL, "val")):
        with pytest.raises(AnnotationError, match=rf"{split}\.json: not valid JSON"):
            rtl(tmp_path, json.dumps(content)[:-12], split)


# Temporal-R1

TVG = {
    "dataset": "anet_train",
    "video": "v_QOlSCBRmfWY.mp4",
    "problem": 'To find the moment of "she turns", when does it happen?',
    "solution": [0.25, 0.5],
    "video_length": 80,
}
CHARADES = {"dataset": "charades_train", "video": "AO8RW.mp4", "problem": "When?", "solution": [0.1, 1.04]}


def tvg(folder, datasets, split="train", **lists):
    """Read a YAML config (text, or its `datasets`) with lists written beside it: one_json=[...] is one.json."""
    for name, content in lists.items():
        put(folder, name.replace("_", "."), content)
    text = datasets if isinstance(datasets, str) else json.dumps({"datasets": datasets})
    return list(temporal_r1.read((put(folder, f"{split}.yaml", text),), split))


def many(count):
    return [TVG | {"video": f"{i}.mp4"} for i in range(count)]


def drawn(folder, strategy, count=7):
    entry = {"json_path": "one.json", "data_folder": "", "sampling_strategy": strategy}
    return [found.video for found in tvg(folder, [entry], one_json=many(count))]


def test_temporal_r1_multiplies_fractions_by_the_length_and_joins_the_folder(tmp_path):
    config = """
    datasets:
      - json_path: one.json
        data_folder: /data/anet
        sampling_strategy: all
    """
    assert tvg(tmp_path, textwrap.dedent(config), one_json=[TVG]) == [
        Record(
            where="one.json entry 0 (v_QOlSCBRmfWY.mp4)",
            key="one/anet_train/v_QOlSCBRmfWY.mp4/0",
            video="/data/anet/v_QOlSCBRmfWY.mp4",
            query=TVG["problem"],
            intervals=((20.0, 40.0),),
            duration=80,
            prompt=TVG["problem"],
            extra={"dataset": "anet_train", "solution_start": 0.25, "solution_end": 0.5},
        )
    ]


def test_temporal_r1_charades_goes_without_length_and_keeps_its_fractions(tmp_path):
    (found,) = tvg(tmp_path, [{"json_path": "one.json", "data_folder": "charades"}], one_json=[CHARADES])
    assert (found.unit, found.intervals, found.duration) == ("fractions", ((0.1, 1.04),), None)
    assert found.video == "charades/AO8RW.mp4"
    assert found.extra == {"dataset": "charades_train", "solution_start": 0.1, "solution_end": 1.04}


def test_temporal_r1_keeps_fractions_above_one_and_reversed(tmp_path):
    items = [TVG | {"solution": [0.5, 1.5]}, TVG | {"solution": [0.5, 0.25]}]
    late, reversed_ = tvg(tmp_path, [{"json_path": "one.json", "data_folder": "x"}], one_json=items)
    assert late.intervals == ((40.0, 120.0),) and reversed_.intervals == ((40.0, 20.0),)


def test_temporal_r1_mixes_sources_in_a_list_and_a_source_in_lists(tmp_path):
    datasets = [{"json_path": "a.json", "data_folder": "one"}, {"json_path": "b.jsonl", "data_folder": "two"}]
    found = tvg(tmp_path, datasets, a_json=[TVG, CHARADES, TVG], b_jsonl=lines(TVG, CHARADES))
    assert [one.video for one in found] == [
        "one/v_QOlSCBRmfWY.mp4",
        "one/AO8RW.mp4",
        "one/v_QOlSCBRmfWY.mp4",
        "two/v_QOlSCBRmfWY.mp4",
        "two/AO8RW.mp4",
    ]
    assert found[2].key == "a/anet_train/v_QOlSCBRmfWY.mp4/1" and len(set(keys(found))) == 5
    assert found[4].where == "b.jsonl line 2 (AO8RW.mp4)"


@pytest.mark.parametrize(
    ("strategy", "videos"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("first:2", [0, 1]),
        ("first:99", [0, 1, 2, 3, 4, 5, 6]),
        ("end:2", [5, 6]),
        ("first:20%", [0, 1]),
        ("end:1%", [6]),
        ("end:100%", [0, 1, 2, 3, 4, 5, 6]),
        ("first:150%", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_temporal_r1_takes_head_or_tail_and_rounds_a_share_up(tmp_path, strategy, videos):
    assert drawn(tmp_path, strategy) == [f"{i}.mp4" for i in videos]


def test_temporal_r1_draws_the_same_lines_every_time_in_the_lists_order(tmp_path):
    expected = sorted(random.Random(0).sample(range(50), 5))
    random.seed(3)
    assert drawn(tmp_path, "random:5", 50) == drawn(tmp_path, "random:10%", 50) == [f"{i}.mp4" for i in expected]


def test_temporal_r1_key_does_not_depend_on_what_is_drawn(tmp_path):
    items = [TVG, TVG, TVG]
    found = tvg(tmp_path, [{"json_path": "one.json", "data_folder": "x", "sampling_strategy": "end:1"}], one_json=items)
    assert keys(found) == ["one/anet_train/v_QOlSCBRmfWY.mp4/2"]


def test_temporal_r1_line_drawn_twice_is_a_problem(tmp_path):
    entry = {"json_path": "one.json", "data_folder": "x"}
    found = tvg(tmp_path, [entry, entry | {"sampling_strategy": "first:1"}], one_json=[TVG, CHARADES])
    assert len(keys(found)) == 2
    assert problems(found) == [
        (
            "one.json entry 0 (v_QOlSCBRmfWY.mp4)",
            "names the same row as an earlier entry: 'one/anet_train/v_QOlSCBRmfWY.mp4/0'",
        )
    ]


@pytest.mark.parametrize(("name", "content"), [("train.json", [TVG]), ("train.jsonl", lines(TVG))])
def test_temporal_r1_reads_a_list_by_itself(tmp_path, name, content):
    (found,) = temporal_r1.read((put(tmp_path, name, content),), "train")
    assert found.video == "v_QOlSCBRmfWY.mp4" and found.key == "train/anet_train/v_QOlSCBRmfWY.mp4/0"


GOOD = {"json_path": "one.json", "data_folder": "x"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("datasets: [", r"train\.yaml: not valid YAML"),
        ("[]", r"train\.yaml: needs a key datasets"),
        ("datasets: []", r"train\.yaml: needs a key datasets"),
        ("datasets: {json_path: one.json}", r"train\.yaml: needs a key datasets"),
        ("datasets: !!python/object/apply:os.getcwd []", r"train\.yaml: not valid YAML"),
        ({"datasets": [GOOD], "seed": 1}, r"train\.yaml: unknown key 'seed'"),
        ([GOOD, "one.json"], r"train\.yaml: datasets\[1\]: needs the keys json_path, data_folder, sampling_strategy"),
        ([GOOD | {"sampling": "all"}], r"train\.yaml: datasets\[0\]: unknown key 'sampling'"),
        ([{"json_path": "one.json"}], r"train\.yaml: datasets\[0\]: data_folder must be a path, found None"),
        ([{"json_path": 3, "data_folder": "x"}], r"train\.yaml: datasets\[0\]: json_path must be a path, found 3"),
        ([GOOD | {"json_path": "one.csv"}], r"one\.csv: json_path must end in"),
        ([GOOD | {"json_path": "two.json"}], r"two\.json: no such file"),
        *(
            ([GOOD | {"sampling_strategy": strategy}], r"train\.yaml: datasets\[0\]: sampling_strategy must be")
            for strategy in ("some", "first", "first:", "first:0", "end:0%", "all:3", "last:3", "first:-1", 5, None)
        ),
    ],
)
def test_temporal_r1_bad_key_is_an_error_that_names_file_and_key(tmp_path, config, message):
    config = json.dumps(config) if isinstance(config, dict) else config
    with pytest.raises(AnnotationError, match=message):
        tvg(tmp_path, config, one_json=[TVG])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"problem": None}, "problem: missing or null"),
        ({"dataset": 3}, "dataset: is not a text, found 3"),
        ({"video": ["a"]}, "video: input should be a valid string, found ('a',)"),
        ({"problem": " "}, "problem: string should have at least 1 character, found ' '"),
        ({"solution": [0.1]}, "solution: is not a pair of numbers, found [0.1]"),
        ({"solution": ["0.1", 0.2]}, "solution: is not a pair of numbers, found ['0.1', 0.2]"),
        ({"solution": [True, 1]}, "solution: is not a pair of numbers, found [True, 1]"),
        ({"solution": [0, 1e300]}, "solution: is not a pair of numbers, found [0, 1e+300]"),
        ({"solution": "0.1 0.2"}, "solution: is not a pair of numbers, found '0.1 0.2'"),
        ({"video_length": None}, "video_length: missing or null, which only charades_train may be"),
        ({"video_length": 0}, "video_length: is not a number of seconds above 0, found 0"),
        ({"video_length": "80"}, "video_length: is not a number of seconds above 0, found '80'"),
    ],
)
def test_temporal_r1_bad_item_is_a_problem(tmp_path, change, what):
    found = tvg(tmp_path, [GOOD], one_json=[TVG, TVG | change, 4, CHARADES])
    assert found[1].where.startswith("one.json entry 1") and found[1].what.startswith(what)
    assert found[2] == Problem("one.json entry 2", "is not an object, found 4")
    assert keys(found) == ["one/anet_train/v_QOlSCBRmfWY.mp4/0", "one/charades_train/AO8RW.mp4/0"]


def test_temporal_r1_truncated_list_is_an_error(tmp_path):
    for strategy in ("all", "end:1"):
        with pytest.raises(AnnotationError, match=r"one\.json: not valid JSON"):
            tvg(tmp_path, [GOOD | {"sampling_strategy": strategy}], one_json=json.dumps([TVG, TVG])[:-5])
    with pytest.raises(AnnotationError, match=r"one\.jsonl: line 2"):
        tvg(tmp_path, [GOOD | {"json_path": "one.jsonl"}], one_jsonl=lines(TVG, TVG)[:-5])


# Generic


def own(folder, *items):
    return list(generic.read((put(folder, "train.jsonl", lines(*items)),), "train"))


def test_generic_example_of_the_documentation_makes_a_set(tmp_path, monkeypatch):
    text = generic.__doc__.split("run\n\n")[1].split("\nand ``train.jsonl``")[0]
    code = textwrap.dedent(text).strip("\n")
    assert len(code.splitlines()) == 10
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("file", "sentence", "from", "to"), ("a/b.mp4", 'he says "ä", then sits', "1.5", "4")]
        )
    exec(code, {})
    assert list(generic.read((tmp_path / "train.jsonl",), "train")) == [
        Record(
            where="line 1 (a/b.mp4)",
            key="a/b.mp4/0",
            video="a/b.mp4",
            query='he says "ä", then sits',
            intervals=((1.5, 4.0),),
        )
    ]


def test_generic_documents_every_field_it_knows():
    table = generic.__doc__.split("are required:\n\n")[1]
    listed = {name.rstrip(",") for row in table.splitlines() for name in row[4:15].split()}
    assert listed == set(generic.KNOWN)


def test_generic_reads_every_field(tmp_path):
    line = {
        "video": "a.mp4",
        "query": " the red car ",
        "intervals": [[1, 2.5], [4, 3]],
        "duration": 10,
        "id": 17,
        "clip": [30, 40],
        "tube": {"first_frame": 30, "boxes": [[0, 1.5, 10, 20], [1, 2, 11, 21]]},
        "masks": [{"size": [4, 4], "counts": "04L"}, None],
        "options": ["red", "blue"],
        "answer": "B",
        "prompt": "Which?",
        "extra": {"score": 0.5, "who": None},
    }
    assert own(tmp_path, line) == [
        Record(
            where="line 1 (a.mp4)",
            key="17",
            video="a.mp4",
            query="the red car",
            intervals=((1.0, 2.5), (4.0, 3.0)),
            duration=10,
            clip=(30.0, 40.0),
            tube=Tube(first_frame=30, boxes=((0, 1.5, 10, 20), (1, 2, 11, 21))),
            masks=({"size": [4, 4], "counts": "04L"}, None),
            options=("red", "blue"),
            answer="B",
            prompt="Which?",
            extra={"score": 0.5, "who": None},
        )
    ]


def test_generic_names_rows_by_id_or_by_video_and_count(tmp_path):
    line = {"video": "a.mp4", "query": "x", "start": 0, "end": 1}
    found = own(tmp_path, line, line | {"video": "b.mp4"}, line, line | {"id": "q1"}, line | {"id": 1}, line)
    assert keys(found) == ["a.mp4/0", "b.mp4/0", "a.mp4/1", "q1", "1", "a.mp4/4"]


def test_generic_same_id_twice_is_a_problem(tmp_path):
    line = {"video": "a.mp4", "query": "x", "id": 1}
    assert problems(own(tmp_path, line, line | {"id": "1"})) == [
        ("line 2 (a.mp4)", "names the same row as an earlier entry: '1'")
    ]


def test_generic_without_intervals_has_no_truth(tmp_path):
    (found,) = own(tmp_path, {"video": "a.mp4", "query": "x"})
    assert found.intervals == () and found.duration is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"interval": [1, 2]},
            "interval: unknown; fields are answer, clip, duration, end, extra, id, intervals, masks",
        ),
        ({"start": 1}, "start, end: one without the other"),
        ({"end": 1}, "start, end: one without the other"),
        ({"start": 1, "end": 2, "intervals": [[1, 2]]}, "intervals: beside start and end; give one of the two"),
        ({"start": "1", "end": 2}, "start: input should be a valid number, found '1'"),
        ({"start": None, "end": 2}, "start: input should be a valid number, found None"),
        ({"intervals": None}, "intervals: input should be a valid tuple, found None"),
        ({"intervals": [1, 2]}, "intervals[0]: input should be a valid tuple, found 1"),
        ({"intervals": [[1, 2, 3]]}, "intervals[0]: tuple should have at most 2 items"),
        ({"video": None}, "video: missing or null"),
        ({"query": 3}, "query: input should be a valid string, found 3"),
        ({"duration": 0}, "duration: input should be greater than 0, found 0"),
        ({"id": True}, "id: neither a text nor a whole number, found True"),
        ({"id": None}, "id: neither a text nor a whole number, found None"),
        ({"clip": [1]}, "clip[1]: field required"),
        ({"tube": []}, "tube: input should be"),
        ({"tube": {"boxes": [[0, 0, 1, 1]]}}, "tube.first_frame: field required"),
        ({"tube": {"first_frame": 0, "boxes": None}}, "tube.boxes: input should be a valid tuple, found None"),
        ({"tube": {"first_frame": 0, "boxes": []}}, "tube.boxes: tuple should have at least 1 item"),
        ({"tube": {"first_frame": 0, "boxes": [[0, 0, 1]]}}, "tube.boxes[0][3]: field required"),
        ({"tube": {"first_frame": 0.0, "boxes": [[0, 0, 1, 1]]}}, "tube.first_frame: input should be a valid integer"),
        ({"tube": {"first_frame": 0, "boxes": [[0, 0, 1, 1]], "fps": 5}}, "tube.fps: extra inputs are not permitted"),
        ({"answer": "A"}, "answer: is not the letter of an option, found 'A'"),
        ({"answer": "C", "options": ["x", "y"]}, "answer: is not the letter of an option, found 'C'"),
        ({"answer": "AB", "options": ["x", "y"]}, "answer: is not the letter of an option, found 'AB'"),
        ({"options": None}, "options: input should be a valid tuple, found None"),
        ({"extra": {"a": [1]}}, "extra.a"),
        ({"extra": 3}, "extra: input should be a valid dictionary, found 3"),
    ],
)
def test_generic_bad_line_is_a_problem(tmp_path, change, what):
    line = {"video": "a.mp4", "query": "x"}
    first, bad, last = own(tmp_path, line, line | change, line)
    assert isinstance(first, Record) and isinstance(last, Record) and first.key != last.key
    assert isinstance(bad, Problem), bad
    assert bad.where.startswith("line 2 (") and bad.what.startswith(what)


@pytest.mark.parametrize("number", [10**400, 1e999])
def test_number_beyond_all_bounds_is_a_problem(tmp_path, number):
    (mine,) = own(tmp_path, {"video": "a.mp4", "query": "x", "start": 0, "end": number})
    assert isinstance(mine, Problem) and mine.what.startswith("end: ")
    path = put(tmp_path, "train.jsonl", lines(CHARADES | {"solution": [0, number]}))
    (theirs,) = temporal_r1.read((path,), "train")
    assert theirs.what.startswith("solution: is not a pair of numbers")


def test_generic_truncated_file_is_an_error(tmp_path):
    path = put(tmp_path, "train.jsonl", lines({"video": "a.mp4", "query": "x"}, {"video": "a.mp4", "query": "x"})[:-6])
    with pytest.raises(AnnotationError, match=r"train\.jsonl: line 2"):
        list(generic.read((path,), "train"))
