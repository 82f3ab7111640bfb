"""Files of programs that ground objects: the challenge of HC-STVG, and STVG-R1."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from verl_stvg.eval.benchmarks.base import Prediction
from verl_stvg.eval.importers.entries import Entry, Reader, box_of, times_of
from verl_stvg.rows.answers import Answer

BLOCK = re.compile(r"^ID: (.*)$", re.MULTILINE)
"""Names the row of a block of STVG-R1's text."""
_PREDICTED = re.compile(r"^Prediction: +(None|\d+), \[(.*)\]$", re.MULTILINE)
_QUERY = re.compile(r"^Query: (.*)$", re.MULTILINE)
_OUTPUT = re.compile(r"^Model Output: ", re.MULTILINE)
_RULE = "-" * 80


def _hc_stvg(content: Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """HC-STVG's challenge: by video first and last frame and a box for each, counted from 1 as in the annotation."""
    for video, one in content.items():
        span = int(one["st_frame"]) - 1, int(one["ed_frame"]) - 1
        tube = {int(frame) - 1: box_of(box) for frame, box in one["bbox"].items()}
        if len(tube) != span[1] - span[0] + 1 or min(tube) != span[0]:
            counts["wrong_tube_length"] += 1
        yield Entry(Prediction(tube=tube, span=span), (video,))


def _stvg_r1(content: str | Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """STVG-R1's ``prediction.txt``, or its pickled checkpoint; answers are read again from the model's output."""
    if not isinstance(content, str):
        for name, one in content["predictions"].items():
            yield Entry(Answer("", (one["model_output"],)), (name,), query=one["query"])
        return
    *blocks, rest = content.split(f"\n{_RULE}\n")
    counts["half_written"] += bool(rest.strip())
    for block in blocks:
        name, query, predicted, output = (pattern.search(block) for pattern in (BLOCK, _QUERY, _PREDICTED, _OUTPUT))
        said = Answer("", (block[output.end() :],)) if output is not None else _line_prediction(predicted)
        if name is None:
            raise ValueError(f"a block without `ID: `, {block!r:.60}")
        yield Entry(said, (name.group(1),), query=query and query.group(1))


def _line_prediction(found: re.Match | None) -> Prediction:
    """The prediction that a block states, of a file without the model's output."""
    if found is None or found.group(1) == "None":
        return Prediction()
    times = times_of(found.group(2).split(","))
    return replace(times, object_ids=(int(found.group(1)),))


FORMATS: dict[str, Reader] = {"hc_stvg": _hc_stvg, "stvg_r1": _stvg_r1}
