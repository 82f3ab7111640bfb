"""Clips to look at: which ones, and everything that a page draws of them.

A clip is a query, the frames that the model was given (with the IDs that were drawn on them), boxes, and one time line
with the truth and what each voice said: a voice is a model, or one model at one step of its training. The choice of
clips is fair by construction: what is not the best or the worst is drawn at random, with a seed that the page names.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.base import nesting
from verl_stvg.data_builders.objects.boxes import Size, TurnedBoxes, annotated_size, scales
from verl_stvg.eval.benchmarks import BENCHMARKS, SORTS
from verl_stvg.eval.report import charts
from verl_stvg.eval.report.replies import Reply
from verl_stvg.rows.cache_fill import entries_of, plan_of, root_of
from verl_stvg.rows.shape import row_shape_problems
from verl_stvg.video import tracks as track_files
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.thumbnails import choose, jpeg

PICK = 8
"""Clips per selection."""
PICK_SEED = 0
NUM_FRAMES = 8
FRAME_SIDE = 288
"""Longer side of a frame's JPEG, pixels."""
SHOWN = (112.0, 150.0)
"""Greatest width and height of a frame on a wide page, CSS pixels (`page.html`); outlines are placed for it."""
_GAP, _STEP = 2.4, 3.4  # from an object to its first outline, and from one outline to the next, CSS pixels
_TAG = (6.5, 5.0, 12.0)  # of a label: width of a character, of its margins, and height, CSS pixels
MAX_TEXT = 6000
"""Characters of one answer on the page."""

Boxes = Mapping[int | None, Sequence[float]]
"""Boxes xyxy of a frame by object ID; None is the truth's own."""


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


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What a page needs of a row: the entry of ``videos`` with absolute paths, and its dictionaries."""

    entry: dict
    extra: dict
    truth: dict
    data_source: str
    folder: Path

    @property
    def asked(self) -> dict:
        """The row as `verl_stvg.eval.benchmarks.items.item_of` takes it."""
        truth = {"ground_truth": self.truth}
        videos = [self.entry] if self.entry else []
        return {
            "data_source": self.data_source,
            "videos": videos,
            "reward_model": truth,
            "extra_info": self.extra,
        }


class Rows:
    """Rows of parquet files, found by uid; files that are gone are told in `notices`."""

    def __init__(self, files: Iterable[Path], video_root: str | Path | None = None):
        self.notices: list[str] = []
        self._found: dict[str, tuple[int, int]] = {}
        self._tables: list[tuple[Path, Path, pa.Table]] = []
        for file in files:
            if not file.is_file():
                self.notices.append(f"The rows ({file.name}) are gone, so no frames are shown; the answers are.")
                continue
            try:
                table = pq.read_table(file, columns=["data_source", "videos", "reward_model", "extra_info"])
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file}: not a parquet file of rows ({error}); build the rows again") from error
            kind = table.schema.field("extra_info").type
            if not pa.types.is_struct(kind) or kind.get_field_index("uid") < 0:
                raise ValueError(f"{file}: its column extra_info has no uid ({kind}); build the rows again")
            uids = table.column("extra_info").combine_chunks().field("uid").to_pylist()
            self._found.update((str(uid), (len(self._tables), k)) for k, uid in enumerate(uids))
            self._tables.append((file, root_of(file, video_root), table))

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, uid: str) -> bool:
        return uid in self._found

    def __getitem__(self, uid: str) -> Row:
        place, k = self._found[uid]
        file, root, table = self._tables[place]
        row = table.slice(k, 1).to_pylist()[0]
        if wrong := row_shape_problems({**row, "prompt": []}):
            raise ValueError(f"{file}: row {k}: {wrong[0]}")
        entry = (entries_of(row["videos"], root, f"{file}: row {k}") or [{}])[0]
        truth = (row["reward_model"] or {}).get("ground_truth")
        return Row(entry, row["extra_info"], truth if isinstance(truth, dict) else {}, row["data_source"], file.parent)

    def get(self, uid: str) -> Row | None:
        """A row; None if it is not there, or not one that can be read, which `draw` tells."""
        try:
            return self[uid] if uid in self else None
        except ValueError:
            return None

    def sorts(self) -> dict[str, dict[str, str]]:
        """The group of each uid, by kind of group (`verl_stvg.eval.benchmarks` sorts rows by their annotation)."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for _, _, table in self._tables:
            info = table.column("extra_info").combine_chunks()
            names = ("uid", "dataset", "annotated")
            columns = [
                info.field(name).to_pylist() if info.type.get_field_index(name) >= 0 else [None] * len(info)
                for name in names
            ]
            for uid, dataset, annotated in zip(*columns, strict=True):
                fields = _fields(annotated)
                benchmark = BENCHMARKS.get(dataset)
                for field, name in {**SORTS, **(benchmark.sorts if benchmark else {})}.items():
                    if fields.get(field):
                        found[name][str(uid)] = str(fields[field])
        return dict(found)

    def videos(self) -> dict[str, str]:
        """Path of each row's video by uid; the uid itself where the row cannot be read."""
        paths = [[_path(videos) for videos in table.column("videos").to_pylist()] for _, _, table in self._tables]
        return {uid: paths[place][k] or uid for uid, (place, k) in self._found.items()}


def _fields(annotated: object) -> dict:
    """Further fields of a row's annotation; none where the text is no JSON object, which the row's own card says."""
    try:
        found = nesting.loads(annotated) if annotated else {}
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _path(videos: object) -> str | None:
    try:
        return (entries_of(videos) or [{}])[0].get("video")
    except ValueError:
        return None


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
        if row is not None and row.entry:
            video = Path(row.entry["video"])
            try:
                objects = _objects(row)
                frames, size = _frames(row.entry, budget, *_spans(clip))
                factors = scales(annotated_size(json.loads(row.extra.get("annotated") or "{}")), size)
            except TurnedBoxes as error:
                turned.append(f"{clip.uid}: {error}")
            except ValueError as error:  # of the video, its tracks, or a plan that cannot be made of them
                unseen.append(str(error).replace(str(video), video.name))
        if frames and clip.truth is not None and clip.truth.objects and objects is None:
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
    frames: Sequence[dict], size: tuple[int, int], clip: Clip, objects: "_Objects | None", factors: Size | None
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
        named = _named_boxes(frame["index"], frame["kinds"], replies, boxes, factors)
        frame["boxes"] = _outlines(named, size)
        frame["tags"] = _tags(named, frame["boxes"], [box for box in boxes.values() if box is not None], size)


def _drawn(clip: Clip, voices: Sequence[Voice], row: Row | None, objects: "_Objects | None") -> dict:
    """What the page says of a clip, besides its frames."""
    extra = row.extra if row is not None else {}
    duration = clip.duration or extra.get("duration")
    lanes = [_lane(voice, clip.said[voice.kind], clip.truth, duration, objects) for voice in voices]
    ticks = charts.ticks(0, duration, 8) if duration else []
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
        "ticks": [{"at": charts.percent(value / duration), "text": charts.tick(value)} for value in ticks],
        "answers": [_answer(voice, clip.said[voice.kind]) for voice in voices],
    }


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
    entry: Mapping,
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


@dataclass(frozen=True)
class _Objects:
    """IDs of a video's objects (none if they are not known), and the boxes of a frame."""

    ids: frozenset[int]
    at: Callable[[int], Boxes]


def _objects(row: Row) -> _Objects | None:
    """Boxes of a clip's objects, from the track file that the row names or the synthetic set's; None without any.

    Raises:
        TrackError: a track file that cannot be read.
        VideoError: the video of a tube in a part of it cannot be read.
    """
    ids, at = frozenset(), None
    beside = row.folder / "tracks" / f"{Path(row.entry['video']).stem}.json"
    if row.entry.get("tracks"):
        tracks = track_files.load(Path(row.entry["tracks"]))
        ids, at = frozenset(track.object_id for track in tracks.tracks), tracks.boxes
    elif beside.is_file():
        record = json.loads(beside.read_text(encoding="utf-8"))
        by_object = {
            int(found["object_id"]): dict(zip(found["frames"], found["boxes_xyxy"], strict=True))
            for found in record["objects"]
        }
        ids = frozenset(by_object)

        def at(index: int) -> Boxes:
            return {object_id: boxes[index] for object_id, boxes in by_object.items() if index in boxes}

    tube, first = row.truth.get("boxes") or [], row.truth.get("first_frame") or 0
    if not tube:
        return _Objects(ids, at) if at is not None else None
    if begin := row.entry.get("video_start"):
        first = shared_decoder().probe(row.entry["video"]).clock.in_file(first, begin, row.extra.get("first_frame_of"))
    return _Objects(
        ids,
        lambda index: {
            **(at(index) if at is not None else {}),
            **({None: tube[index - first]} if first <= index < first + len(tube) else {}),
        },
    )


@dataclass(frozen=True)
class _Named:
    """A box that the truth or a voice names in a frame: xyxy, and the IDs of its object, none if it has none."""

    kind: str
    ids: tuple[int, ...]
    box: Sequence[float]


def _named_boxes(
    index: int, inside: Sequence[str], replies: Mapping[str, Reply], boxes: Boxes, factors: Size | None
) -> list[_Named]:
    """Boxes of a frame: the truth's in the true span, each voice's objects or own boxes in its own span; truth first,
    then the last voice.
    """
    order = [kind for kind in ("truth", *reversed([k for k in replies if k != "truth"])) if kind in inside]
    true_ids = replies["truth"].objects if "truth" in replies else ()
    found = []
    for kind in order:
        reply = replies[kind]
        own = boxes.get(None) if kind == "truth" else reply.tube.get(index)
        if own is not None:
            own = factors and [side * factor for side, factor in zip(own, factors * 2, strict=True)]
        if own is not None:
            found.append(_Named(kind, tuple(true_ids[:1]), own))
        else:
            found += [_Named(kind, (number,), boxes[number]) for number in reply.objects if number in boxes]
    return found


def _outlines(named: Sequence[_Named], size: tuple[int, int]) -> list[dict]:
    """Outlines of boxes, outside of them so that the object and the number on it are seen, in pixels of the video.

    Those of one object lie one around the other, the truth outermost. At the picture's edge they are moved inside it.
    """
    unit = _pixels(size)
    totals, depth, found = Counter(one.ids for one in named), defaultdict(int), []
    for one in named:
        level = depth[one.ids]
        depth[one.ids] += 1
        out = unit * (_GAP + _STEP * (totals[one.ids] - 1 - level))
        room = (level + 0.5) / (2 * totals[one.ids] + 2)  # of a side that is too short for so many
        across, down = (min(unit * (1.2 + _STEP * level), side * room) for side in size)
        left, right = _cut(one.box[0] - out, one.box[2] + out, across, size[0] - across)
        top, bottom = _cut(one.box[1] - out, one.box[3] + out, down, size[1] - down)
        found.append(
            {
                "kind": one.kind,
                "x": round(left, 1),
                "y": round(top, 1),
                "width": round(right - left, 1),
                "height": round(bottom - top, 1),
            }
        )
    return found


def _tags(
    named: Sequence[_Named], outlines: Sequence[dict], boxes: Sequence[Sequence[float]], size: tuple[int, int]
) -> list[dict]:
    """The number of each object beside its outlines, where it covers neither an object nor another outline; places in
    per cent of the picture. Where there is no such place it is left out.
    """
    unit = _pixels(size)
    taken = [tuple(map(float, box)) for box in boxes]
    taken += [(one["x"], one["y"], one["x"] + one["width"], one["y"] + one["height"]) for one in outlines]
    found: dict[tuple[int, ...], dict] = {}
    for one, outline in zip(named, outlines, strict=True):
        if not one.ids or one.ids in found:
            continue
        text = str(one.ids[0])
        width, height = unit * (_TAG[0] * len(text) + _TAG[1]), unit * _TAG[2]
        left, top = outline["x"], outline["y"]
        right, bottom = left + outline["width"], top + outline["height"]
        gap = 1.5 * unit
        for x, y in (
            (min(left, size[0] - width), top - height - gap),
            (min(left, size[0] - width), bottom + gap),
            (right + gap, min(top, size[1] - height)),
            (left - width - gap, min(top, size[1] - height)),
        ):
            place = (x, y, x + width, y + height)
            if min(x, y) >= 0 and place[2] <= size[0] and place[3] <= size[1] and not _meets(place, taken):
                taken.append(place)
                left, top = (charts.percent(at / side) for at, side in zip((x, y), size, strict=True))
                found[one.ids] = {"text": text, "left": left, "top": top}
                break
    return list(found.values())


def _pixels(size: tuple[int, int]) -> float:
    """Pixels of the video under one CSS pixel of the page."""
    return max(side / shown for side, shown in zip(size, SHOWN, strict=True))


def _cut(low: float, high: float, least: float, most: float) -> tuple[float, float]:
    """A side of a box inside its limits, with a length of at least nothing."""
    low = min(max(low, least), most)
    return low, max(min(high, most), low)


def _meets(place: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    return any(
        place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3] for other in others
    )


def _truth_lane(truth: Reply | None, duration: float | None) -> dict:
    lane = {"kind": "truth", "name": "truth", "verdict": "", "note": ""}
    if truth is None:
        return lane | {"bars": [], "who": "none known", "when": ""}
    return lane | {"bars": _bars(truth, duration), "who": _who(truth), "when": _when(truth)}


def _lane(voice: Voice, said: Said, truth: Reply | None, duration: float | None, objects: _Objects | None) -> dict:
    """One bar of a clip's time line, and what it says."""
    lane = {"kind": voice.kind, "name": voice.name, "verdict": "", "note": ""}
    if said.reply is None:
        return lane | {"bars": [], "who": said.error or "unreadable", "when": ""}
    reply = said.reply
    if truth is not None and (truth.objects or truth.option):
        lane["verdict"] = "right" if (reply.objects, reply.option) == (truth.objects, truth.option) else "wrong"
    notes = [_note(start, end, duration) for start, end in reply.intervals]
    if objects is not None and objects.ids and not set(reply.objects) <= objects.ids:
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
    for start, end in reply.intervals if duration else ():
        left, right = charts.percent(start / duration), charts.percent(end / duration)
        if right > left:
            bars.append({"left": left, "width": round(right - left, 2)})
    return bars


def _who(reply: Reply) -> str:
    ids = ", ".join(text if len(text) < 9 else f"{text[:8]}…" for text in map(str, reply.objects))
    option = reply.option or ""
    parts = [f"ID {ids}" if ids else "", option if len(option) > 1 else option and f"option {option}"]
    return ", ".join(part if len(part) < 60 else f"{part[:58]}…" for part in parts if part)


def _when(reply: Reply) -> str:
    spans = [f"{charts.seconds(start)} to {charts.seconds(end)} s" for start, end in reply.intervals]
    return ", ".join(spans) if len(spans) < 4 else f"{len(spans)} spans, {spans[0]} and on"
