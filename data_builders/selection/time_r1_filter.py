"""Time-R1's choice of training rows: a cold start around one IoU, and a filter between rounds of training.

The cold start draws rows whose zero-shot IoU is near 0.3. After each round the current rows are answered again by the
model that was trained, rows it answers well or not at all leave for good, and what is left is thinned evenly. Time-R1
calls 100 IoU the difficulty, so that a high one is easy; here it is the key ``iou``. Source: STVG-R1 notes, 6.4.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.selection import subset
from verl_stvg.data_builders.selection.draw import uniform
from verl_stvg.data_builders.selection.folder import SelectionError, pool, read_judged, some
from verl_stvg.rows.row import Row


@dataclass(frozen=True)
class Rules:
    """The published numbers: rows that are kept, centre and width of the Gaussian, highest IoU that stays."""

    size: int = 2500
    centre: float = 0.3
    width: float = 0.2
    highest: float = 0.7


def cold_start(lines: Iterable[Mapping[str, Any]], rules: Rules | None = None, seed: int = 42) -> list[str]:
    """The uids of a first draw: without replacement, weighted by a Gaussian of the IoU; an IoU of 0 is never drawn.

    Each row's chance is its own (a hash of seed and uid decides), so the draw does not depend on the order of rows.

    Args:
        lines: with ``uid`` and ``iou``, as `difficulty` writes them.
        rules: the numbers.
        seed: of the draw; ours.
    """
    rules = rules or Rules()
    keys = {
        # The largest log(u) / weight are a weighted draw without replacement (Efraimidis and Spirakis, 2006).
        line["uid"]: math.log(uniform(seed, line["uid"])) / weight
        for line in lines
        if line["iou"] and (weight := math.exp(-((line["iou"] - rules.centre) ** 2) / (2 * rules.width**2)))
    }
    return sorted(sorted(keys, key=lambda uid: (-keys[uid], uid))[: rules.size])


def next_round(lines: Iterable[Mapping[str, Any]], rules: Rules | None = None) -> list[str]:
    """The uids that stay for the next round: 0 < IoU <= 0.7, sorted from high to low, evenly spaced by rank.

    Args:
        lines: about the rows of the last round, answered by the model it made.
        rules: the numbers.
    """
    rules = rules or Rules()
    left = sorted(
        (line for line in lines if line["iou"] and 0 < line["iou"] <= rules.highest),
        key=lambda line: (-line["iou"], line["uid"]),
    )
    if len(left) > rules.size:
        step = (len(left) - 1) / max(1, rules.size - 1)
        left = [left[round(k * step)] for k in range(rules.size)]
    return sorted(line["uid"] for line in left)


def select(
    files: Iterable[Path],
    out: Path,
    judged: Path,
    round_: int,
    rules: Rules | None = None,
    seed: int = 42,
    video_root: Path | None = None,
) -> dict:
    """Write the rows of a round as `subset.write` does, and return the manifest.

    Args:
        files: rows; for a later round those of the one before.
        out: folder that is made.
        judged: folder of the stage `difficulty` on them, or its lines.
        round_: 0 for the cold start.
        rules: the numbers.
        seed: of the cold start's draw.
        video_root: see `verl_stvg.rows.files.root_of`.

    Raises:
        SelectionError: rows that nobody judged, or no row that may stay.
    """
    rules, source = rules or Rules(), pool(files, video_root)
    lines = read_judged(judged, ("iou", "difficulty", "bin"))
    uids = [Row.of(row).uid for row in source.rows()]
    if lost := [uid for uid in uids if uid not in lines]:
        raise SelectionError(
            f"{judged}: says nothing about {len(lost)} of {len(uids)} rows: {some(lost)}; judge them too"
        )
    here = [lines[uid] for uid in uids]
    chosen = next_round(here, rules) if round_ else cold_start(here, rules, seed)
    if not chosen:
        raise SelectionError(f"{judged}: no row has an IoU that may stay; look at the report of the stage")
    made_by = {"how": "time_r1", "round": round_, "rules": asdict(rules), "seed": seed, "rows": len(uids)}
    return subset.write(source, out, set(chosen), lines, made_by)
