"""ST-Align benchmark, its STVG task: a question about an event, its frames, and a box for each; test only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import json_items
from verl_stvg.data_builders.records import Entries, Problem, Record, boxes_xyxy, is_number, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

_TUBE = "<bboxes>"


def read(files: tuple[Path], split: str) -> Entries:
    """JSON list of ``{video_path, conversations, meta: {split, width, height, time_token, spatial_token}}``.

    Pitfalls: all frames are those of the whole file; ``meta.split`` is the part that is shown, first and last frame
    included; the tube is a dictionary of frame, as text, to x, y, width, height; other spatial tokens are single boxes
    that stand for themselves in the question. There is no frame rate. The benchmark is the first 2,000 entries; all
    are read, and ``extra`` says which one each is.

    Without a rate the part that is shown and the event, which is counted from its start, are in frames. Where a file
    says ``fps``, in an entry or in its ``meta``, they are in seconds. Our assumptions: ``<s>`` and ``<e>`` are points
    in time, as the benchmark's own measure takes them, so that frame k stands for k / fps; the query is the whole
    first turn without ``<video>``, because nothing says which part of it is the sentence; tokens of boxes in it stay,
    with the boxes, xyxy pixels, in ``extra`` under the token.
    """
    counts: dict[str, int] = {}
    for number, entry in json_items(files[0]):
        video = entry.get("video_path") if isinstance(entry, dict) else None
        if not isinstance(video, str):
            yield Problem(f"entry {number}", f"video_path: missing, or not a text: {entry!r:.60}")
            continue
        counts[video] = counts.get(video, 0) + 1
        yield _record(f"entry {number} ({video})", f"{video}/{counts[video] - 1}", number, video, entry)


def _record(where: str, key: str, number: int, video: str, entry: Mapping[str, Any]) -> Record | Problem:
    turns, meta = entry.get("conversations"), entry.get("meta")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return Problem(where, f"conversations: no turn in it, found {turns!r:.60}")
    if not isinstance(text := turns[0].get("value"), str):
        return Problem(where, f"conversations.0.value: not a text, found {text!r:.60}")
    if not isinstance(meta, dict):
        return Problem(where, f"meta: not an object, found {meta!r:.60}")
    shown, times, places = (meta.get(name) for name in ("split", "time_token", "spatial_token"))
    if not isinstance(shown, list) or len(shown) != 2 or any(type(frame) is not int for frame in shown):
        return Problem(where, f"meta.split: not two frames, found {shown!r:.60}")
    if not isinstance(times, dict) or any(type(times.get(token)) is not int for token in ("<s>", "<e>")):
        return Problem(where, f"meta.time_token: no frames <s> and <e>, found {times!r:.60}")
    boxes = places if isinstance(places, dict) else {}
    tube = _tube(boxes.get(_TUBE))
    if isinstance(tube, str):
        return Problem(where, f"meta.spatial_token.{_TUBE}: {tube}")
    fps = entry.get("fps", meta.get("fps"))
    if fps is not None and (not is_number(fps) or fps <= 0):
        return Problem(where, f"fps: no frame rate, found {fps!r:.60}")
    interval, (first, last) = (times["<s>"], times["<e>"]), shown
    inside = tuple(frame - first for frame in interval)
    fields: dict[str, Any] = {"unit": "frames", "intervals": (inside,), "clip": (first, last + 1)}
    if fps is not None:
        fields = {
            "intervals": (tuple(frame / fps for frame in inside),),
            "clip": (first / fps, (last + 1) / fps),
            "duration": (last + 1 - first) / fps,
        }
    named = [token for token in boxes if token != _TUBE and token in text]
    return record(
        where,
        key=key,
        video=video,
        query=text.replace("<video>", ""),
        tube=tube,
        extra={
            "entry": number,
            "split_first": first,
            "split_last": last,
            "fps": fps,
            "width": meta.get("width"),
            "height": meta.get("height"),
            **{token: json.dumps(boxes_xyxy([boxes[token]])[0]) for token in named},
        },
        **fields,
    )


def _tube(found: Any) -> dict[str, Any] | str:
    """Fields of the tube, or what is wrong with it."""
    if not isinstance(found, dict) or not found:
        return f"no boxes by frame, found {found!r:.60}"
    if odd := [frame for frame in found if not (frame.isascii() and frame.isdecimal())]:
        return f"not the number of a frame: {odd[0]!r:.60}"
    boxes = sorted((int(frame), box) for frame, box in found.items())
    frames = [frame for frame, _ in boxes]
    for before, after in zip(frames[:-1], frames[1:], strict=True):
        if after != before + 1:
            return f"frames are not consecutive, {after} follows {before}"
    return {"first_frame": frames[0], "boxes": boxes_xyxy([box for _, box in boxes])}


SETS = (
    AnnotationSet(
        "st_align",
        "ST-Align benchmark, STVG task: questions about events in VidOR videos, one tube each; the first 2,000 count",
        "appletea2333/ST-Align-Benchmark (Hugging Face)",
        {"test": (Source(("stvg.json", "st-align/stvg.json")),)},
        read,
        "stvg_r1",
    ),
)
