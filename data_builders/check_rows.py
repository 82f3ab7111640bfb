"""What is wrong with one row, as far as it shows without its video."""

from collections.abc import Iterator, Mapping
from typing import Any

from verl_stvg.data_builders import tubes
from verl_stvg.data_builders.templates import perfect_answer
from verl_stvg.rows.row import Row, read_entries
from verl_stvg.video.clock import FrameClock

_ENOUGH = 1e-3  # of the reward, for the digits of a perfect answer


def row_problems(row: Row) -> Iterator[tuple[str, str, bool]]:
    """(problem, detail, serious) of what can be seen without the video."""
    truth = row.truth
    text = "".join(turn["content"] for turn in row["prompt"] or ())
    if text.count("<video>") != len(row["videos"] or ()) or not row["videos"]:
        yield "placeholders", f"{text.count('<video>')} <video> for {len(row['videos'] or ())} videos", True
    if truth.get("start") is None and truth.get("option") is None and truth.get("answer") is None:
        yield "no ground truth", "cannot be trained on or scored here", not row.is_evaluation
        return
    yield from _tube_problems(row)
    try:
        recipe = row.recipe()
        recipe.check(truth, row.name)
    except ValueError as error:
        yield "ground truth", str(error), True
        return
    best = sum(weight for _, weight in recipe.parts.values())
    possible = _from_zero(truth)
    score = recipe.score(perfect_answer(recipe.name, possible), possible)
    if score["score"] < best * (1 - _ENOUGH):
        parts = ", ".join(f"{name} {score[name]:.3f}" for name in recipe.parts)
        yield "reward", f"a perfect answer earns {score['score']:.3f} of {best:g} ({parts})", not row.is_evaluation
    for start, end in row.intervals:
        if row.duration and end > row.duration:
            over = f"ends at {end:.2f} s, the video is said to last {row.duration:.2f} s"
            yield "past the stated end", over, False
        if start < 0:
            yield "before the start", f"begins at {start:.2f} s", False


def _tube_problems(row: Row) -> Iterator[tuple[str, str, bool]]:
    """(problem, detail, serious) of a row's tube, as far as the row records its file; `check_videos` has the rest.

    Where the answer has no boxes they are what evaluation scores, and a published truth is nobody's to correct.
    """
    truth, extra = row.truth, row.extra
    entry = next((entry for _, entry, _ in read_entries(row["videos"])), {})
    asked = "boxes" in row.data_source.partition("/")[0]
    if asked and truth.get("boxes") and entry.get("video_start") and extra.get("first_frame_of") != "shown":
        begin = f"{entry['video_start']:g} s"
        detail = f"first_frame counts frames of the file, and the row shows it from {begin} on; build the rows again"
        yield "frame numbers", detail, True
    clock = recorded_clock(extra)
    if clock is not None:
        for problem, detail, serious in tubes.faults(truth, extra, entry, clock):
            yield problem, detail, serious and not row.is_evaluation


def recorded_clock(extra: Mapping[str, Any]) -> FrameClock | None:
    """The clock of a row's file; None where the row does not record it, or an older version did."""
    constant, times = extra.get("constant_rate"), extra.get("frame_times")
    if constant is None or not extra.get("num_frames") or not extra.get("source_fps") or not (constant or times):
        return None
    return FrameClock(int(extra["num_frames"]), extra["source_fps"], times and tuple(times), extra.get("file_end"))


def _from_zero(truth: dict) -> dict:
    """The ground truth as far as an answer can say it: no answer names a time before the start."""
    spans = [[max(0.0, time) for time in span] for span in truth.get("intervals") or ()]
    times = {name: max(0.0, truth[name]) for name in ("start", "end") if name in truth}
    return truth | times | ({"intervals": spans} if spans else {})
