"""What an answer or a ground truth says, in the one form that pages draw: spans, object IDs, an option, boxes.

Of a scored evaluation it is what ``items.jsonl`` holds. Dumps of a training run have texts only, which are read here by
the parsers that score them, so that a page shows what was scored and nothing that only an eye would read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from verl_stvg.eval.benchmarks.items import Item, Prediction, item_of, read_answer
from verl_stvg.rows.row import Row

_LETTERS = 26

Reply = Prediction
"""Intervals in seconds of what is shown, IDs, an option (or the text of an answer without options), and boxes by
zero-based frame of the file."""


def of_record(record: Mapping[str, Any]) -> Reply | None:
    """A ground truth, or a prediction of ``items.jsonl``; None if it says nothing."""
    intervals = record.get("intervals")
    if not intervals and record.get("start") is not None:
        intervals = [(record["start"], record["end"])]
    objects = [record["object_id"]] if record.get("object_id") is not None else record.get("object_ids") or ()
    option = record.get("option") or record.get("answer")
    reply = Reply(
        tuple((float(start), float(end)) for start, end in intervals or ()),
        tuple(sorted(int(one) for one in objects)),
        str(option).strip().strip("()") if option else None,
        {int(frame): box for frame, box in record["tube"].items()} if record.get("tube") else None,
    )
    return reply if reply != Reply() else None


def read(recipe: str, text: str, num_options: int = 0, row: Mapping[str, Any] | None = None) -> Reply | None:
    """A completion, read as it is scored; None if it cannot be read.

    Args:
        recipe: of the answer.
        text: of the answer.
        num_options: of the question; 0: any letter is one.
        row: that was asked, see `item_of`. It says which frames of the file answered boxes are of; without it boxes are
            drawn by the keys of the answer, and thousandths of a picture are pixels of one of 1000x1000.
    """
    item = Item("", "", "", recipe, "", "", 0.0, size=(1000, 1000))
    if row is not None and (known := Row.of(row)).uid is not None and known.duration:
        source = f"{recipe}/{known.data_source}"  # which may name no recipe
        item = item_of(replace(known, raw={**known, "data_source": source}))
    return read_answer(item, text, num_options or _LETTERS)
