"""The golden runner itself: both schemas, misses, skipped names, errors of the original, exit status, last line."""

import json

import pytest

from tests import golden

ANSWER = "<think>a</think><answer>Target ID: 2, Time range: 5 to 8</answer>"
TRUTH = {"object_id": 2, "start": 5.0, "end": 11.0, "duration": 20.0}
REFUSED = {"error": "ValueError"}
GOOD = [
    {"reward": "stvg_r1_total", "completion": ANSWER, "ground_truth": TRUTH, "expected": 2.5 + 1e-7},
    {"reward": "stvg_r1_parse", "completion": "", "ground_truth": TRUTH, "expected": [None, None, None]},
    {
        "reward": "stvg_r1_parse",
        "completion": ANSWER.replace("2", "2" * 5000),
        "ground_truth": TRUTH,
        "expected": {"error": "ValueError"},
    },
    {
        "function": "videochat_r1.gqa.rewards",
        "input": {"completion": "<answer>B</answer>", "answer": "(B)", "gt_intervals": [[1, 2]]},
        "expected": {"iou": 0.0, "answer": 1.0, "format": 0.0},
    },
    {
        "function": "time_r1.iou_timestamp_reward",
        "input": {"completions": ["<answer>4 to 4</answer>"], "gts": [[4, 4]], "durations": [60]},
        "expected": {"error": "UnboundLocalError"},
    },
    *(  # the count itself, rounded to an even one: qwen-vl-utils, and VideoMind's copy
        {
            "function": name,
            "input": {"total_frames": 450, "video_fps": 30.0, "opts": {"nframes": nframes}},
            "expected": expected,
        }
        for name in ("videochat_r1.smart_nframes", "videomind.smart_nframes", "smart_nframes")
        for nframes, expected in (
            (8, 8),
            (9, 8),
            (11, 12),
            (1, {"error": "ValueError"}),
            (452, {"error": "ValueError"}),
        )
    ),
    {
        "reward": "eval_extract_time",  # Temporal-R1 deletes the example of TimeChat's prompt
        "completion": "A specific example is : 20.8 - 30.0 seconds. It happens in 5 - 9 seconds",
        "ground_truth": None,
        "expected": [[5.0, 9.0]],
    },
    {
        "reward": "stvg_r1_total",
        "completion": ANSWER.replace("ID: 2", "ID: " + "2" * 5000),
        "ground_truth": TRUTH,
        "expected": {"error": "ValueError"},
    },
    {
        "reward": "time_r1_iou_v2",
        "completion": "<answer>5 to " + "9" * 400 + "</answer>",
        "ground_truth": TRUTH,
        "expected": float("nan"),
    },
]
MISSES = [
    {"reward": "stvg_r1_total", "completion": ANSWER, "ground_truth": TRUTH, "expected": 2.6},
    {"reward": "stvg_r1_total", "completion": ANSWER, "ground_truth": TRUTH, "expected": {"error": "ValueError"}},
    {"reward": "no_such_reward", "completion": ANSWER, "ground_truth": TRUTH, "expected": 0.0},
    {"reward": "stvg_r1_parse", "completion": ANSWER, "ground_truth": TRUTH, "expected": [2, 5.0]},
    {  # an option that nobody knows is a miss with its name, and the other cases run
        "function": "videochat_r1.smart_nframes",
        "input": {"total_frames": 450, "video_fps": 30.0, "opts": {"n": 8}},
        "expected": 8,
    },
]
SKIPPED = [{"reward": "one_day", "completion": "", "ground_truth": None, "expected": []}]


@pytest.mark.parametrize(
    ("cases", "status", "last"),
    [
        (GOOD, 0, f"{len(GOOD)} passed, 0 failed, 0 skipped"),
        (GOOD + SKIPPED, 0, f"{len(GOOD)} passed, 0 failed, 1 skipped"),
        (GOOD + MISSES, 1, f"{len(GOOD)} passed, {len(MISSES)} failed, 0 skipped"),
    ],
)
def test_golden_runner(tmp_path, capsys, monkeypatch, cases, status, last):
    monkeypatch.setattr(golden, "PENDING", frozenset({"one_day"}))
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    assert golden.main([str(path)]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    assert sum(line.startswith(str(path)) for line in lines) == (len(MISSES) if status else 0)


def test_golden_runner_without_files():
    assert golden.main([]) == 2


def test_tables_do_not_overlap():
    assert not golden.FUNCTIONS.keys() & golden.PENDING
