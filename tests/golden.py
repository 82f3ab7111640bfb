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

from reward_fns import stvg_r1, temporal_r1, time_r1, videochat_r1
from verl_stvg.video import plan

TOLERANCE = 1e-6


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


def _smart_nframes(total_frames: int, video_fps: float, opts: dict[str, Any]) -> int | dict[str, str]:
    try:
        return plan.smart_nframes(total_frames, video_fps, **opts)
    except ValueError:  # where the original raises it too
        return {"error": "ValueError"}


# name in the files -> (function, values that are documented as safe where the original raises)
# A `reward` is called with (completion, ground truth), a `function` with its input as keywords.
NOTHING = (0.0,)
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
    "videochat_r1.smart_nframes": (_smart_nframes, ()),
    "videochat_r1.smart_resize": (plan.smart_resize, ()),
}

# Parsers, metrics and sharding that are no rewards: they are skipped until their packages bring them. VideoMind's frame
# count is another rule than ours (it rounds to the nearest even number), although the recorded cases do not tell.
NOT_REWARDS = frozenset(
    {
        "eval_custom_row_iou",
        "eval_extract_time",
        "eval_mvbench_mcq",
        "eval_r1_extract_option",
        "eval_r1_extract_timestamps",
        "eval_r1_row_iou",
        "eval_tvg_metrics",
        "nextgqa.eval_ground",
        "nextgqa.get_tIoU",
        "rextime.eval_submission",
        "rextime.temporal_iou_paired",
        "videochat_r1.eval.parse_timestamp_output",
        "videochat_r1.split_data",
        "videomind.check_ans",
        "videomind.eval_auto",
        "videomind.iou_iop",
        "videomind.parse_query",
        "videomind.parse_span",
        "videomind.shard",
        "videomind.smart_nframes",
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
    if name in NOT_REWARDS:
        return "skipped"
    if name not in FUNCTIONS:
        return f"no function for {name!r}: add it to FUNCTIONS or NOT_REWARDS in tests/golden.py"
    found, expected = run_case(case), case["expected"]
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
