"""Run golden cases, recorded from the original functions, against ours: `python -m tests.golden FILE...`.

Two schemas are read: {reward, completion, ground_truth, expected} and {function, input, expected}. An `expected` of the
form {"error": ...} says that the original raises; ours has to return its documented safe value, and likewise where the
original gives NaN or infinity. Numbers agree within 1e-6. Prints each miss and a last line `N passed, M failed, K
skipped`; exits with 1 if any case failed.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reward_fns import stvg_r1, temporal_r1, time_r1, videochat_r1
from verl_stvg.eval.metrics import answers, gqa, readers, temporal, videomind
from verl_stvg.video import plan

TOLERANCE = 1e-6
REFUSED = {"error": "ValueError"}


def _span(interval: list[float], duration: float | None = None) -> dict[str, Any]:
    return {"start": interval[0], "end": interval[1], "duration": duration}


def _stvg_parse(completion: str, truth: Any) -> list[float | None]:
    return list(stvg_r1.parse(completion) or (None, None, None))


def _stvg_total(completion: str, truth: Any) -> float:
    return stvg_r1.RECIPES[0].score(completion, truth)["score"]


def _tvg_accuracy(completion: str, truth: Any) -> float:
    return temporal_r1.tvg_accuracy(completion, truth["solution"], truth["video_length"])


def _tvg_score(completion: str, truth: Any) -> float:
    return 0.5 * _tvg_accuracy(completion, truth) + 0.5 * temporal_r1.format(completion)


def _r1v_accuracy(completion: str, truth: str) -> float:
    return temporal_r1.r1v_accuracy(completion, {"answer": truth})


def _r1v_score(completion: str, truth: str) -> float:
    return 0.5 * _r1v_accuracy(completion, truth) + 0.5 * temporal_r1.r1v_format(completion)


def _videochat_gqa(completion: str, answer: str, gt_intervals: list[list[float]]) -> dict[str, float]:
    truth = {"answer": answer, "intervals": gt_intervals}
    return {
        "iou": videochat_r1.gqa_iou(completion, truth),
        "answer": videochat_r1.gqa_answer(completion, truth),
        "format": videochat_r1.gqa_format(completion, truth),
    }


def _or_error(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that refuses its input with a ValueError, where the original raises too, give that as a value."""

    def call(**given: Any) -> Any:
        try:
            return function(**given)
        except ValueError:
            return REFUSED

    return call


def _smart_nframes(rule: Callable[..., int]) -> Callable[..., Any]:
    return _or_error(lambda total_frames, video_fps, opts: rule(total_frames, video_fps, **opts))


def _eval_iou(texts: list[str], truths: list[list[float]]) -> np.ndarray:
    found = [readers.extract_time(text) for text in texts]
    return temporal.iou_hull(temporal.as_intervals(pair[0] if pair else None for pair in found), truths)


def _eval_r1_row_iou(completion: str, truth: list[float]) -> float:
    return float(_eval_iou([readers.extract_timestamps(completion)], [truth])[0])


def _eval_tvg_metrics(completions: list[str], truths: list[list[float]]) -> dict[str, float]:
    return {name: 100 * value for name, value in temporal.summary(_eval_iou(completions, truths)).items()}


def _videomind_iou_iop(pred: list[list[float]], span: list[list[float]]) -> dict[str, float]:
    iou, iop = videomind.iou_iop(pred, span)
    tops = {f"iou_top{k}": float(iou[:k].max()) for k in videomind.TOP_K}
    return {**tops, "iop_top1": float(iop[0])}


def _nextgqa_eval_ground(
    gt: dict[str, dict[str, Any]], pred: dict[str, list[float]], qa: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """The script's table, from the values of our columns (NExT-GQA)."""
    spans = {f"{video}_{key}": found for video, one in gt.items() for key, found in one["location"].items()}
    right = [qa[key]["answer"] == qa[key]["prediction"] for key in spans]
    values = gqa.grounded_qa([pred[key] for key in spans], list(spans.values()), right, point_rule="nextgqa")
    table = {"Acc@GQA": values["Acc@GQA"], "mIoP": values["IoP"], "mIoU": values["IoU"]}
    table |= {f"{name}@{m}": temporal.reaches(values[name], m) for name in ("IoP", "IoU") for m in (0.3, 0.5)}
    return {name: round(100 * float(found.mean()), 1) for name, found in table.items()}


def _rextime_eval_submission(submission: list[dict[str, Any]], gt: list[dict[str, Any]]) -> dict[str, float]:
    """The script's table, from the values of our columns."""
    windows = [row["pred_relevant_windows"][0] for row in submission]
    right = [row.get("ans") == truth["ans"] for row, truth in zip(submission, gt, strict=True)]
    values = gqa.grounded_qa(windows, [row["relevant_windows"] for row in gt], right)
    table = {f"MR-full-R1@{m}": temporal.reaches(values["IoU"], m) for m in (0.3, 0.5)} | {
        "MR-full-mIoU": values["IoU"]
    }
    percent = {name: round(100 * float(found.mean()), 2) for name, found in table.items()}
    answered = {"VQA": values["Acc@QA"], "VQA,mIoU@0.5": values["Acc@IoU"]} if "ans" in submission[0] else {}
    return percent | {name: float(found.mean()) for name, found in answered.items()}


def _rextime_iou(pred: list[float], gt: list[float]) -> float:
    return float(temporal.iou_hull([pred], [gt])[0])


# name in the files -> (function, values that are documented as safe where the original raises)
# A `reward` is called with (completion, ground truth), a `function` with its input as keywords.
NOTHING = (0.0,)
ERROR = (REFUSED,)
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "stvg_r1_parse": (_stvg_parse, ([None, None, None],)),
    "stvg_r1_temporal": (stvg_r1.temporal, NOTHING),
    "stvg_r1_spatial": (stvg_r1.spatial, NOTHING),
    "stvg_r1_accuracy": (stvg_r1.accuracy, NOTHING),
    "stvg_r1_format": (stvg_r1.format, NOTHING),
    "stvg_r1_total": (_stvg_total, (0.0, 1.0)),  # the format is paid by layout alone
    "time_r1_iou": (time_r1.iou, NOTHING),
    "time_r1_iou_v2": (time_r1.iou_v2, NOTHING),
    "time_r1_format": (time_r1.format, NOTHING),
    "time_r1.iou_timestamp_reward": (
        lambda completions, gts, durations: time_r1.iou_batch(completions, gts),
        NOTHING,
    ),
    "tvg_accuracy": (_tvg_accuracy, NOTHING),
    "tvg_format": (temporal_r1.format, NOTHING),
    "tvg_score": (_tvg_score, NOTHING),
    "r1v_accuracy": (_r1v_accuracy, NOTHING),
    "r1v_format": (temporal_r1.r1v_format, NOTHING),
    "r1v_score": (_r1v_score, NOTHING),
    "videochat_r1.tg.iou_timestamp_reward": (
        lambda completion, gt, duration: videochat_r1.iou(completion, _span(gt, duration)),
        NOTHING,
    ),
    "videochat_r1.tg.format_reward": (videochat_r1.format, NOTHING),
    "videochat_r1.gqa.rewards": (_videochat_gqa, NOTHING),
    "videochat_r1.smart_nframes": (_smart_nframes(plan.smart_nframes), ERROR),
    "videochat_r1.smart_resize": (plan.smart_resize, ()),
    "videochat_r1.eval.parse_timestamp_output": (
        lambda text: list(readers.parse_timestamp_output(text) or (None, None)),
        (),
    ),
    "eval_r1_extract_timestamps": (lambda completion, truth: readers.extract_timestamps(completion), ()),
    "eval_r1_row_iou": (_eval_r1_row_iou, NOTHING),
    "eval_extract_time": (lambda completion, truth: readers.extract_time(completion), ([],)),
    "smart_nframes": (_smart_nframes(plan.smart_nframes), ERROR),
    "extract_time": (readers.extract_time, ([],)),
    "eval_custom_row_iou": (lambda completion, truth: float(_eval_iou([completion], [truth])[0]), NOTHING),
    "eval_tvg_metrics": (_eval_tvg_metrics, NOTHING),
    "nextgqa.eval_ground": (_nextgqa_eval_ground, ERROR),
    "rextime.temporal_iou_paired": (_rextime_iou, NOTHING),
    "rextime.eval_submission": (_rextime_eval_submission, ERROR),
    "videomind.check_ans": (answers.check_ans, (None,)),
    "videomind.eval_auto": (_or_error(videomind.eval_auto), ERROR),
    "videomind.iou_iop": (_or_error(_videomind_iou_iop), ERROR),
    "videomind.smart_nframes": (_smart_nframes(videomind.smart_nframes), ERROR),
}

# Names in the files that have no function here, because no command needs one; they are skipped.
PENDING: frozenset[str] = frozenset(
    {
        "eval_mvbench_mcq",
        "eval_r1_extract_option",
        "nextgqa.get_tIoU",
        "videochat_r1.split_data",
        "videomind.parse_query",
        "videomind.parse_span",
        "videomind.shard",
    }
)


def run_case(case: dict[str, Any]) -> Any:
    """Return what ours gives for one case; KeyError for a name that is not in the table."""
    if "reward" in case:
        return FUNCTIONS[case["reward"]][0](case["completion"], case["ground_truth"])
    return FUNCTIONS[case["function"]][0](**case["input"])


def agrees(found: Any, expected: Any) -> bool:
    """Tell whether two results are equal, numbers within the tolerance, through lists and mappings."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict) and found.keys() == expected.keys() and all(map(agrees, *_values(found, expected)))
        )
    if isinstance(expected, list):
        same_length = isinstance(found, list | tuple) and len(found) == len(expected)
        return same_length and all(map(agrees, found, expected))
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return found == expected
    return isinstance(found, int | float) and (found == expected or abs(found - expected) <= TOLERANCE)


def is_safe(found: Any, safe: tuple[Any, ...]) -> bool:
    """Tell whether a result is one of the safe values, or a list or mapping of several results that holds one."""
    if any(agrees(found, value) for value in safe):
        return True
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return any(agrees(part, value) for part in parts for value in safe)


def is_unusable(expected: Any) -> bool:
    """Tell whether the original raised, or gave NaN or infinity alone or among other numbers."""
    if isinstance(expected, dict):
        return set(expected) == {"error"} or any(map(is_unusable, expected.values()))
    if isinstance(expected, list):
        return any(map(is_unusable, expected))
    return isinstance(expected, float) and not math.isfinite(expected)


def _values(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[list[Any]]:
    keys = sorted(expected)
    yield [found[key] for key in keys]
    yield [expected[key] for key in keys]


def check_case(case: dict[str, Any]) -> str | None:
    """Return "skipped", a sentence that describes the miss, or None for a pass."""
    name = case.get("reward") or case.get("function")
    if name in PENDING:
        return "skipped"
    if name not in FUNCTIONS:
        return f"no function for {name!r}: add it to FUNCTIONS or PENDING in tests/golden.py"
    expected = case["expected"]
    try:
        found = run_case(case)
    except Exception as error:  # whatever it is, the other cases are run as well
        return f"{name}: raises {error!r}, expected {expected!r}"
    if agrees(found, expected):
        return None
    if is_unusable(expected):
        safe = FUNCTIONS[name][1]
        return None if is_safe(found, safe) else f"{name}: found {found!r}, safe is {safe!r}"
    return f"{name}: found {found!r}, expected {expected!r}"


def main(paths: list[str]) -> int:
    """Run all files, print the misses and the count, return the exit status."""
    if not paths:
        print("usage: python -m tests.golden FILE...")
        return 2
    passed = failed = skipped = 0
    for path in paths:
        for number, case in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))):
            outcome = check_case(case)
            if outcome is None:
                passed += 1
            elif outcome == "skipped":
                skipped += 1
            else:
                failed += 1
                given = json.dumps(case.get("input", case.get("completion")))
                print(f"{path}[{number}] {case.get('case', '')} {outcome}\n    on {given[:400]}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
