"""Clips to look at: which ones, and everything that a page draws of them.

A clip is a query, the frames that the model was given (with the IDs that were drawn on them), boxes, and one time line
with the truth and what each voice said: a voice is a model, or one model at one step of its training. The choice of
clips is fair by construction: what is not the best or the worst is drawn at random, with a seed that the page names.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from verl_stvg.data_builders.objects.boxes import Size, TurnedBoxes, annotated_size, scales
from verl_stvg.eval.report import charts
from verl_stvg.eval.report.boxes import Objects, named_boxes, objects_of, outlines, tags
from verl_stvg.eval.report.replies import Reply
from verl_stvg.eval.report.rows import Rows
from verl_stvg.rows.row import Row, plan_of
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.thumbnails import choose, jpeg

PICK = 8
"""Clips per selection."""
PICK_SEED = 0
NUM_FRAMES = 8
FRAME_SIDE = 288
"""Longer side of a frame's JPEG, pixels."""
MAX_TEXT = 6000
"""Characters of one answer on the page."""


@dataclass(frozen=True)
class Voice:
    """Who answers: a CSS class, a name, and what to add to it where there is room."""

    kind: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Said:
    """What a voice said about a clip.

    Attributes:
        reply: as it was read; None if it could not be.
        text: of the answer.
        values: heading and number, ready to print.
        error: what is wrong, or why there is no reply; empty for nothing.
        samples: that the numbers are means of.
    """

    reply: Reply | None
    text: str
    values: tuple[tuple[str, str], ...]
    error: str = ""
    samples: int = 1


@dataclass(frozen=True)
class Clip:
    """A row, its truth, and what was said.

    Attributes:
        uid: of the row.
        query: if the row is not there to say it.
        duration: seconds of what is shown; None if unknown.
        truth: None if there is none.
        said: by the voice's kind.
        picked: selections that it is in.
        final: what it is sorted by.
        gain: of the last voice over the first; None with one voice.
    """

    uid: str
    query: str
    duration: float | None
    truth: Reply | None
    said: Mapping[str, Said]
    picked: Sequence[str]
    final: float
    gain: float | None


@dataclass(frozen=True)
class Looked:
    """Clips of a section before they are drawn."""

    clips: list[Clip]
    voices: list[Voice]
    rows: Rows


def pick(first: Mapping[str, float], last: Mapping[str, float], count: int = PICK) -> dict[str, list[str]]:
    """Choose clips to look at: uid to the selections it is in, `random`, `improved`, `worsened`, `worst`.

    Clips that changed most come first, then the others, in random order. The random ones are drawn from all clips, so
    they are a fair sample and may be in another selection too. Clips of equal value come in random order, so that the
    worst are a fair sample of what is equally bad.

    Args:
        first: value of each clip before, or of the first model.
        last: value after, or of the last model, for the same clips; empty if there is only one.
        count: of clips per selection.
    """
    uids = sorted(first)
    drawn = [uids[k] for k in np.random.default_rng(PICK_SEED).permutation(len(uids))]
    values = last or first
    gains = {uid: last[uid] - first[uid] for uid in drawn if uid in last}
    selections = {
        "random": drawn[:count],
        "improved": sorted((uid for uid in gains if gains[uid] > 0), key=lambda uid: -gains[uid])[:count],
        "worsened": sorted((uid for uid in gains if gains[uid] < 0), key=lambda uid: gains[uid])[:count],
        "worst": sorted(drawn, key=lambda uid: values[uid])[:count],
    }
    picked = defaultdict(list)
    for name, chosen in selections.items():
        for uid in chosen:
            picked[uid].append(name)
    return {uid: picked[uid] for uid in sorted(picked, key=lambda uid: -abs(gains.get(uid, 0.0)))}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def draw(clips: Sequence[Clip], voices: Sequence[Voice], rows: Rows, budget: int) -> tuple[list[dict], list[str]]:
    """Everything the page draws of clips, and notices about what is missing.

    Args:
        clips: in the page's order.
        voices: in the order of the time lines.
        rows: of the clips.
        budget: bytes per picture; quality is lowered to keep it.
    """
    drawn, unseen, untracked, turned = [], [], [], []
    for clip in clips:
        row, frames, size, objects, factors = None, [], (3, 2), None, None
        try:
            row = rows[clip.uid] if clip.uid in rows else None
        except ValueError as error:
            unseen.append(str(error))
        if row is not None and row.videos:
            video = Path(row.videos[0]["video"])
            try:
                objects = objects_of(row, rows.folder(clip.uid))
                frames, size = _frames(row.videos[0], budget, *_spans(clip))
                factors = scales(annotated_size(json.loads(row.extra.get("annotated") or "{}")), size)
            except TurnedBoxes as error:
                turned.append(f"{clip.uid}: {error}")
            except ValueError as error:  # of the video, its tracks, or a plan that cannot be made of them
                unseen.append(str(error).replace(str(video), video.name))
        if frames and clip.truth is not None and clip.truth.object_ids and objects is None:
            untracked.append(clip.uid)
        _mark(frames, size, clip, objects, factors)
        one = _drawn(clip, voices, row, objects)
        for frame in frames:
            frame["at"] = charts.percent(frame["time"] / one["duration"]) if one["duration"] else None
        drawn.append(one | {"frames": frames, "size": size})
    notices = []
    if lost := sum(clip.uid not in rows for clip in clips) if len(rows) else 0:
        notices.append(f"{lost} of {len(clips)} clips are not in the rows' files, which were built again since.")
    if unseen:
        notices.append(f"The frames of {len(unseen)} of {len(clips)} clips cannot be shown. The first: {unseen[0]}")
    if turned:
        notices.append(f"Annotated boxes of {len(turned)} of {len(clips)} clips are not drawn. The first: {turned[0]}")
    if untracked:
        notices.append(
            f"There are no boxes for {len(untracked)} of {len(clips)} clips: their rows name no track file, and the "
            "rows' folder holds no tracks/<video>.json for them."
        )
    return drawn, notices


def _mark(
    frames: Sequence[dict], size: tuple[int, int], clip: Clip, objects: Objects | None, factors: Size | None
) -> None:
    """Add to each frame who names its time, and the boxes of what they name.

    Args:
        frames: of the clip.
        size: (width, height) of the video.
        clip: the clip.
        objects: of the video.
        factors: from pixels of the annotation, in which boxes are answered, too; None leaves those boxes out.
    """
    replies = {"truth": clip.truth} | {kind: said.reply for kind, said in clip.said.items()}
    replies = {kind: reply for kind, reply in replies.items() if reply is not None}
    for frame in frames:
        frame["kinds"] = [
            kind
            for kind, reply in replies.items()
            if any(start <= frame["time"] < end for start, end in reply.intervals)
        ]
        boxes = objects.at(frame["index"]) if objects is not None else {}
        named = named_boxes(frame["index"], frame["kinds"], replies, boxes, factors)
        frame["boxes"] = outlines(named, size)
        frame["tags"] = tags(named, frame["boxes"], [box for box in boxes.values() if box is not None], size)


def _drawn(clip: Clip, voices: Sequence[Voice], row: Row | None, objects: Objects | None) -> dict:
    """What the page says of a clip, besides its frames."""
    row = row or Row({})
    extra, duration = row.extra, clip.duration or row.duration
    lanes = [_lane(voice, clip.said[voice.kind], clip.truth, duration, objects) for voice in voices]
    return {
        "uid": clip.uid,
        "query": extra.get("query") or clip.query,
        "options": extra.get("options") or [],
        "picked": clip.picked,
        "errors": sorted({said.error for said in clip.said.values()}),
        "gain": clip.gain,
        "final": clip.final,
        "lanes": [_truth_lane(clip.truth, duration), *lanes],
        "duration": duration,
        "ticks": _ticks(duration) if duration else [],
        "answers": [_answer(voice, clip.said[voice.kind]) for voice in voices],
    }


def _ticks(duration: float) -> list[dict]:
    ticks = charts.ticks(0, duration, 8)
    return [{"at": charts.percent(value / duration), "text": charts.tick(value)} for value in ticks]


def _answer(voice: Voice, said: Said) -> dict:
    return {
        "kind": voice.kind,
        "name": ", ".join(part for part in (voice.name, voice.detail) if part),
        "text": said.text[:MAX_TEXT],
        "cut": max(0, len(said.text) - MAX_TEXT),
        "values": said.values,
        "error": said.error,
        "samples": said.samples,
    }


def _spans(clip: Clip) -> tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]]:
    """Intervals of a clip's truth, and of all that was said; without a truth, those that were said and none."""
    said = [span for one in clip.said.values() if one.reply is not None for span in one.reply.intervals]
    return (clip.truth.intervals, said) if clip.truth is not None and clip.truth.intervals else (said[:1], said[1:])


def _frames(
    entry: dict,
    budget: int,
    events: Sequence[tuple[float, float]] = (),
    claims: Sequence[tuple[float, float]] = (),
) -> tuple[list[dict], tuple[int, int]]:
    """Some of the frames that the model is given (`choose`), and the video's (width, height).

    Raises:
        ValueError: the video cannot be decoded within the limits of `verl_stvg.video.child`, or no plan can be made.
    """
    decoder = shared_decoder()
    info = decoder.probe(entry["video"])
    plan = plan_of(entry, info)
    begin = entry.get("video_start") or 0.0
    places = choose([time - begin for time in plan.timestamps], NUM_FRAMES, events, claims)
    scale = min(1.0, FRAME_SIDE / max(info.width, info.height))
    small = replace(
        plan,
        frame_indices=tuple(plan.frame_indices[k] for k in places),
        timestamps=tuple(plan.timestamps[k] for k in places),
        height=max(1, round(info.height * scale)),
        width=max(1, round(info.width * scale)),
    )
    frames = [
        {"time": time - begin, "text": f"{time - begin:.1f}", "index": index, "source": jpeg(image, budget)}
        for index, time, image in zip(
            small.frame_indices, small.timestamps, decoder.read(entry["video"], small), strict=True
        )
    ]
    return frames, (info.width, info.height)


def _truth_lane(truth: Reply | None, duration: float | None) -> dict:
    lane = {"kind": "truth", "name": "truth", "verdict": "", "note": ""}
    if truth is None:
        return lane | {"bars": [], "who": "none known", "when": ""}
    return lane | {"bars": _bars(truth, duration), "who": _who(truth), "when": _when(truth)}


def _lane(voice: Voice, said: Said, truth: Reply | None, duration: float | None, objects: Objects | None) -> dict:
    """One bar of a clip's time line, and what it says."""
    lane = {"kind": voice.kind, "name": voice.name, "verdict": "", "note": ""}
    if said.reply is None:
        return lane | {"bars": [], "who": said.error or "unreadable", "when": ""}
    reply = said.reply
    if truth is not None and (truth.object_ids or truth.option):
        lane["verdict"] = "right" if (reply.object_ids, reply.option) == (truth.object_ids, truth.option) else "wrong"
    notes = [_note(start, end, duration) for start, end in reply.intervals]
    if objects is not None and objects.ids and not set(reply.object_ids) <= objects.ids:
        notes.append("no such object")
    lane["note"] = next((note for note in notes if note), "")
    return lane | {"bars": _bars(reply, duration), "who": _who(reply), "when": _when(reply)}


def _note(start: float, end: float, duration: float | None) -> str:
    if duration and start >= duration:
        return "past the clip's end"
    if end <= start:
        return "ends before it starts" if end < start else "empty span"
    return ""


def _bars(reply: Reply, duration: float | None) -> list[dict]:
    """Place of each span on the time line, per cent of the clip; what lies outside of it has none."""
    bars = []
    if not duration:
        return bars
    for start, end in reply.intervals:
        left, right = charts.percent(start / duration), charts.percent(end / duration)
        if right > left:
            bars.append({"left": left, "width": round(right - left, 2)})
    return bars


def _who(reply: Reply) -> str:
    ids = ", ".join(text if len(text) < 9 else f"{text[:8]}…" for text in map(str, reply.object_ids))
    option = reply.option or ""
    parts = [f"ID {ids}" if ids else "", option if len(option) > 1 else option and f"option {option}"]
    return ", ".join(part if len(part) < 60 else f"{part[:58]}…" for part in parts if part)


def _when(reply: Reply) -> str:
    spans = [f"{charts.seconds(start)} to {charts.seconds(end)} s" for start, end in reply.intervals]
    return ", ".join(spans) if len(spans) < 4 else f"{len(spans)} spans, {spans[0]} and on"
