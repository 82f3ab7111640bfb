"""The answers that earn the most: completions that say exactly the ground truth, in the form that a reward reads."""

import json
from collections.abc import Mapping
from typing import Any

from reward_fns import stvg_boxes

THOUGHT = "It is so."
"""The whole reasoning of an answer that is perfect without any."""


def perfect_answer(recipe: str, truth: Mapping[str, Any]) -> str:
    """A completion that says exactly the ground truth, in the form that a reward of `reward_fns` reads.

    Args:
        recipe: name of the reward.
        truth: ground truth of a row.

    Raises:
        ValueError: no such reward.
    """
    start, end = (_seconds(truth[key]) if truth.get(key) is not None else "" for key in ("start", "end"))
    option = str(truth.get("option") or truth.get("answer"))
    glue = ", ".join(f"({_seconds(s)}, {_seconds(e)})" for s, e in truth.get("intervals") or ())
    boxes = {str(int(truth.get("first_frame") or 0) + k): list(box) for k, box in enumerate(truth.get("boxes") or ())}
    ids = " and ".join(str(int(found)) for found in truth.get("object_ids") or ())
    answers = {
        "stvg_r1": lambda: f"Target ID: {int(truth['object_id'])}, Time range: {start} to {end}",
        "stvg_r1_multi": lambda: f"Target ID: {ids}, Time range: {start} to {end}",
        "stvg_boxes": lambda: json.dumps({"time": [float(start), float(end)], "boxes": boxes}),
        "stvg_boxes_seconds": lambda: json.dumps(
            {"time": [float(start), float(end)], "boxes": stvg_boxes.boxes_by_second(truth)}
        ),
        "temporal_r1": lambda: json.dumps({"start_time": start, "end_time": end}),
        "temporal_r1_mcq": lambda: json.dumps({"option": option}),
        "temporal_r1_gqa": lambda: json.dumps({"option": option, "start_time": start, "end_time": end}),
        "r1v": lambda: option,
        "videochat_r1_gqa": lambda: f"{option}</answer><glue>[{glue}]</glue>",
        "videochat_r1_5": lambda: f"[({start}, {end})]",
        **dict.fromkeys(("timezero", "time_r1", "videochat_r1", "videotg_r1"), lambda: f"{start} to {end}"),
    }
    form = recipe.removesuffix("_nothink").removesuffix("_strict").removesuffix("_visible")
    if form not in answers:
        raise ValueError(f"no reward {recipe!r}; choose one of {', '.join(sorted(answers))}")
    body = answers[form]()
    answer = f"<answer>{body}" if body.endswith("</glue>") else f"<answer>{body}</answer>"
    return answer if recipe.endswith(("_nothink", "_r1_5")) else f"<think>{THOUGHT}</think>\n{answer}"


def _seconds(value: float) -> str:
    return f"{value:.6f}"
