"""What the yaml files of this folder name: between lmms-eval, which asks and averages, and our rows, parsers, metrics.

lmms-eval runs this file anew for each function that it takes, so nothing is shared between them. Folders are named by
environment variables (`docs/lmms_eval.md`):

    VERL_STVG_ROWS      of rows: ``<set>/<split>.parquet``, as ``verl-stvg build SET --out`` writes them
    VERL_STVG_VIDEOS    of videos, where the rows' manifest does not name it
    VERL_STVG_NUMBERED  of videos with object IDs drawn, of ``verl-stvg objects render``; for answers that give an ID
    VERL_STVG_TRACKS    of track files with all objects, of ``verl-stvg objects track``; likewise
"""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.objects.write import find_numbered
from verl_stvg.eval.benchmarks import temporal, tubes
from verl_stvg.eval.benchmarks.items import Item, item_of, read_answer
from verl_stvg.eval.benchmarks.tubes import Library
from verl_stvg.eval.lmms_eval_tasks.parts import cut
from verl_stvg.rows.files import root_of
from verl_stvg.rows.row import Row, entry_of
from verl_stvg.video.tracks import find_track

SPLITS = {"hc_stvg_v1": "test", "hc_stvg_v2": "val", "vidstg": "test"}
"""Of each set, the split with public ground truth that papers report."""


def __getattr__(name: str) -> dict[str, str]:
    """``data_files`` of a set: row file by split.

    Raises:
        ValueError: there is no such file.
    """
    if name not in SPLITS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return {SPLITS[name]: str(_row_file(name))}


# --- before a model is asked


def declarative(rows):
    """Rows of VidSTG whose sentence is declarative.

    Raises:
        ValueError: there are none.
    """
    return _of_kind(rows, "declarative")


def interrogative(rows):
    """Rows of VidSTG whose sentence is a question; see `declarative`."""
    return _of_kind(rows, "interrogative")


def doc_to_visual(doc: dict) -> list[str]:
    """Path of what a model is to see: the video, or the part of it that the row shows, cut beside the rows."""
    item, entry = _item(doc), entry_of(doc["videos"][0])
    video = _video(item)
    if "video_start" not in entry and "video_end" not in entry:
        return [str(video)]
    start = entry.get("video_start", 0.0)
    end = entry.get("video_end", start + item.duration)
    known = f"{video.resolve()}|{_PARTS}"  # numbered or not, of one size or another
    source = hashlib.sha256(known.encode()).hexdigest()[:12]
    out = _row_file(item.dataset).parent / "parts" / f"{video.stem}-{start:.3f}-{end:.3f}-{source}.mp4"
    return [str(cut(video, start, end, out))]


def doc_to_text(doc: dict) -> str:
    """The prompt for models that take a text and set the video before it; a system turn comes first.

    lmms-eval asks for the texts of all rows before it asks a model anything, so rows are checked here.

    Raises:
        ValueError: a row that cannot be asked or scored: a prompt whose answers give no time, no ground truth, no
            video, no boxes or tracks where an answer says where.
    """
    _check(_item(doc))
    return "\n".join(turn["content"].replace("<video>", "").strip() for turn in doc["prompt"])


def doc_to_messages(doc: dict) -> list[dict[str, Any]]:
    """The prompt for models that take messages: the row's turns, the video in its place."""
    (video,) = doc_to_visual(doc)
    messages = []
    for turn in doc["prompt"]:
        before, place, after = turn["content"].partition("<video>")
        parts = [{"type": "text", "text": before}, {"type": "video", "url": video}, {"type": "text", "text": after}]
        content = [part for part in parts if (part.get("text") if part["type"] == "text" else place)]
        messages.append({"role": turn["role"], "content": content})
    return messages


def doc_to_target(doc: dict) -> str:
    """The annotated interval, for the reader of a log."""
    (start, end), *_ = Row.of(doc).intervals
    return f"{start:.2f} to {end:.2f}"


# --- after it has answered


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """Metrics of one answer, 0 to 1; their means are what `verl-stvg score` prints. Unreadable answers get 0.

    Always m_tIoU, of frames, and R1@m, of seconds. For prompts that ask where (an ID, or boxes) m_vIoU and vIoU@R as
    well; in m_vIoU_repaired frames in which the answered object is not seen get the box that STVG-R1 takes.
    """
    item = _item(doc)
    said = read_answer(item, results[0])
    library = _library(_track_file(item)) if "object" in item.reward.asks else Library()
    values = temporal.measure([item], [said]) | tubes.measure([item], [said], library)[0]
    names = METRICS + PLACED_METRICS if item.reward.asks & _PLACED else METRICS
    return {name: float(values[name][0]) if name in values else 0.0 for name in names}


METRICS = ("m_tIoU", "R1@0.3", "R1@0.5", "R1@0.7")
PLACED_METRICS = ("m_vIoU", "vIoU@0.3", "vIoU@0.5", "m_vIoU_repaired")

_PLACED = {"object", "boxes"}
"""What prompts ask for that ask where."""

_PARTS = 2
"""Version of the parts of videos; those of version 1 had a constant rate whatever the video has."""


@lru_cache(maxsize=4)
def _library(track_file: Path) -> Library:
    """A library for the answers about one video: lmms-eval may score in several threads, and a library holds one."""
    return Library(_folder("VERL_STVG_TRACKS", "the track files of all objects"))


# --- rows and files


def _item(doc: dict) -> tubes.Tube:
    item = item_of(doc)
    if not isinstance(item, tubes.Tube):
        raise ValueError(
            f"{item.uid}: rows of {item.dataset} have no tubes; the tasks are those of {', '.join(SPLITS)}"
        )
    return item


def _check(item: tubes.Tube) -> None:
    asks = item.reward.asks
    if "time" not in asks or asks & {"option", "objects"}:
        raise ValueError(
            f"{item.uid}: answers for the reward {item.reward.form} give no single time; build with another template"
        )
    if not item.intervals:
        raise ValueError(f"{item.uid}: has no ground truth; build with --unusable-truth drop")
    if asks & _PLACED and item.boxes is None:
        raise ValueError(f"{item.uid}: has no annotated boxes; build with a temporal template, such as time_r1")
    if "object" in asks:
        _track_file(item)
    _video(item)


def _of_kind(rows, kind: str):
    kinds = [json.loads(info["annotated"])["kind"] for info in rows["extra_info"]]
    found = [index for index, one in enumerate(kinds) if one == kind]
    if not found:
        raise ValueError(f"none of {len(kinds)} rows of VidSTG is {kind}; build the whole annotation file")
    return rows.select(found)


def _folder(variable: str, what: str) -> Path:
    if not os.environ.get(variable):
        raise ValueError(f"the environment variable {variable} is not set; let it name the folder of {what}")
    return Path(os.environ[variable]).expanduser()


def _row_file(dataset: str) -> Path:
    folder = _folder("VERL_STVG_ROWS", "the rows") / dataset
    file = folder / f"{SPLITS[dataset]}.parquet"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; run `verl-stvg build {dataset} ... --out {folder}`")
    return file


def _video(item: Item) -> Path:
    """The file that a row is about; with the IDs drawn, if the answer is to give one."""
    root = root_of(_row_file(item.dataset), os.environ.get("VERL_STVG_VIDEOS"))
    if "object" in item.reward.asks:
        folder = _folder("VERL_STVG_NUMBERED", "the videos with IDs, which `verl-stvg objects render` writes")
        path, remedy = find_numbered(folder, item.video, root), "run `verl-stvg objects render`"
    else:
        path, remedy = root / item.video, "let VERL_STVG_VIDEOS name the folder of the videos"
    if not path.is_file():
        raise ValueError(f"{item.uid}: no video {path}; {remedy}")
    return path


def _track_file(item: Item) -> Path:
    root = root_of(_row_file(item.dataset), os.environ.get("VERL_STVG_VIDEOS"))
    path = find_track(_folder("VERL_STVG_TRACKS", "the track files of all objects"), item.video, root)
    if not path.is_file():
        raise ValueError(f"{item.uid}: no track file {path}; run `verl-stvg objects track`")
    return path
