"""Fuzz: rows, track files and prediction files that were changed at random, and what their readers make of them.

The material is our own and harmless: a good file, of which bytes are changed, keys removed and values exchanged, with
fixed seeds. Whatever comes of it, a reader either reads it or refuses it with an error that names the file or the row;
it raises nothing else, and takes neither much time nor much memory. The tests run a short version.
"""

import functools
import gzip
import json
import random
import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

from benchmarks import Options, Row
from benchmarks.rewards import TYPICAL, typical
from verl_stvg.data_builders import check, show
from verl_stvg.data_builders.row_schema import ROW_SCHEMA
from verl_stvg.data_builders.selection.folder import pool
from verl_stvg.data_builders.selection.samples import sample_of
from verl_stvg.eval.benchmarks.items import item_of, read_rows
from verl_stvg.eval.importers import foreign
from verl_stvg.eval.report import clips
from verl_stvg.eval.score import score
from verl_stvg.rows import answers, cache_fill
from verl_stvg.rows.answers import Answer
from verl_stvg.video import tracks
from verl_stvg.video.store import FrameStore
from verl_stvg.video.tracks import Track, Tracks
from verl_stvg.workers import work

ROWS, FILES = 20_000, 5_000
"""Rows that are changed, and files of each other kind."""
ROWS_PER_FILE = 50
SECONDS, MEMORY = 10.0, 1024
"""Most that a file may take: seconds in one reader, and MiB of any process."""
_BATCH = 20  # files for which a worker is asked at once
_PAGE = 6  # rows on a page, and jobs of a cache, of a file

VIDEOS = ("a.mp4", "b.mp4")
LENGTH, RATE, SIZE = 20, 12, (64, 48)

_STRANGE: dict[type, tuple[Any, ...]] = {
    float: (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 0.0, -1.0, 0.5, 1e9, 1e18),
    int: (0, -1, 1, 2**31, 2**62, -(2**62)),
    str: ("", " ", "\0", "a" * 5000, "..", "/", "é" * 300, "<video>", "nan", "[" * 3000, "1e999", "{}", VIDEOS[0]),
    bool: (True, False),
    type(None): (None,),
}
_OTHER = (None, True, 0, -1, 1e308, float("nan"), "", "x", [], {}, [[]], [None], {"a": None}, [[[[1]]]], 2**70)
_RETYPED: tuple[Callable[[Any], Any], ...] = (
    str,
    lambda value: [value],
    lambda value: {"value": value},
    lambda value: None,
    lambda value: str(value).encode(),
    lambda value: datetime(2020, 1, 1),
    lambda value: 1.5,
    lambda value: 3,
    lambda value: True,
)


# --- changes ----------------------------------------------------------------------------------------------------------


def places(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """The way to every value within lists and dictionaries."""
    if way:
        yield way
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, within in pairs:
        yield from places(within, (*way, key))


def at(value: Any, way: tuple) -> Any:
    """What is at the end of a way."""
    return functools.reduce(lambda found, key: found[key], way, value)


def unshared(value: Any) -> Any:
    """A copy in which no list or dictionary is at two places."""
    if isinstance(value, dict):
        return {key: unshared(one) for key, one in value.items()}
    return [unshared(one) for one in value] if isinstance(value, list) else value


def changed(value: Any, rng: random.Random, same_type: bool, count: int = 1) -> Any:
    """A copy with some changes: values removed, exchanged, repeated, or replaced by strange ones.

    Args:
        value: of dictionaries and lists, as JSON has it.
        rng: decides.
        same_type: values keep their type, or become None; as columns of a parquet file do.
        count: of changes.
    """
    value = unshared(value)
    for _ in range(count):
        ways = list(places(value))
        if not ways:
            return value
        way = rng.choice(ways)
        holder, key = at(value, way[:-1]), way[-1]
        what, old = rng.randrange(5), at(value, way)
        if what == 0:
            del holder[key]
        elif what == 1:
            alike = [one for one in ways if one[: len(way)] != way and way[: len(one)] != one]
            if same_type:
                alike = [one for one in alike if type(at(value, one)) is type(old) and type(old) in _STRANGE]
            if alike:
                other = rng.choice(alike)
                holder[key], at(value, other[:-1])[other[-1]] = at(value, other), old
        elif what == 2 and isinstance(old, list) and old:
            old += unshared(old)
        elif same_type:
            holder[key] = rng.choice((*_STRANGE.get(type(old), ()), None))
        else:
            holder[key] = unshared(rng.choice((*_STRANGE.get(type(old), ()), *_OTHER)))
    return value


def retyped(rows: list[dict], rng: random.Random) -> list[dict]:
    """Rows in which one column, or field of it, is of another type everywhere."""
    way = tuple(key for key in rng.choice(list(places(rows[0]))) if isinstance(key, str))
    convert = rng.choice(_RETYPED)
    return [_converted(row, way, convert) for row in rows]


def _converted(value: Any, way: tuple, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_converted(one, way, convert) for one in value]
    if value is None or not way:
        return None if value is None else convert(value)
    return {**value, way[0]: _converted(value[way[0]], way[1:], convert)} if isinstance(value, dict) else value


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some of them changed, left out or repeated."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        first, last = sorted(rng.randrange(len(found) + 1) for _ in range(2))
        what = rng.randrange(4)
        if what == 0 and found:
            found[min(first, len(found) - 1)] = rng.randrange(256)
        elif what == 1:
            del found[first : min(last, first + 40)]
        elif what == 2:
            found[first:first] = found[first : min(last, first + 40)]
        elif what == 3 and rng.random() < 0.2:
            del found[first:]
    return bytes(found)


# --- good files -------------------------------------------------------------------------------------------------------


def write_videos(folder: Path) -> None:
    """The videos that the rows name: small, and right."""
    for number, name in enumerate(VIDEOS):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            stream.options = {"preset": "ultrafast", "threads": "1"}
            for k in range(LENGTH * RATE):
                picture = np.full((SIZE[1], SIZE[0], 3), (k + 100 * number) % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())


def good_row(number: int, recipe: str, dataset: str = "fuzz") -> dict:
    """A row as `verl-stvg build` writes it."""
    uid, truth = f"{dataset}/train/{number}", TYPICAL[recipe][0]
    fields = {name: dict.fromkeys(one.name for one in _struct(name)) for name in ("videos", "extra_info")}
    known = dict.fromkeys(one.name for one in ROW_SCHEMA.field("reward_model").type.field("ground_truth").type)
    budget = {"rule": "grid", "fps": 2.0, "min_pixels": 3136, "max_pixels": 12_544}
    width, height = SIZE
    facts = {"num_frames": LENGTH * RATE, "source_fps": float(RATE), "width": width, "height": height}
    said = {"uid": uid, "index": number, "dataset": dataset, "split": "train", "duration": float(LENGTH)}
    more = {"query": f"query {number}", "sentence": f"query {number}", "options": ["yes", "no"], "constant_rate": True}
    intervals = [[truth["start"], truth["end"]]] if "start" in truth else truth.get("intervals")
    return {
        "data_source": f"{recipe}/{dataset}",
        "prompt": [{"role": "user", "content": "<video>When?"}],
        "videos": [{**fields["videos"], **budget, "video": VIDEOS[number % len(VIDEOS)]}],
        "ability": "temporal grounding",
        "reward_model": {"style": "rule", "ground_truth": {**known, "uid": uid, **truth, "intervals": intervals}},
        "extra_info": {**fields["extra_info"], **said, **facts, **more, "annotated": '{"width": 64, "height": 48}'},
    }


def _struct(name: str) -> pa.StructType:
    kind = ROW_SCHEMA.field(name).type
    return kind.value_type if pa.types.is_list(kind) else kind


def good_tracks() -> dict:
    """What a track file holds."""
    masks = [np.zeros((SIZE[1], SIZE[0]), np.uint8) for _ in range(6)]
    for k, mask in enumerate(masks):
        mask[4 : 20 + k, 8 : 30 + k] = 1
    encoded = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    found = Tracks(SIZE[1], SIZE[0], 12, float(RATE), tuple(_tracks(encoded)), {"detector": "none"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tracks.json.gz")
        tracks.save(found, path)
        return json.loads(gzip.decompress(path.read_bytes()))


def _tracks(encoded: list) -> Iterator[Track]:
    for number in (1, 2):
        yield Track(number, "person", 0.5, {k * number: mask for k, mask in enumerate(encoded)})


def good_predictions(rows: list[dict], recipe: str) -> dict[str, Any]:
    """Predictions for rows in the forms of `verl_stvg.eval.importers.foreign`: a list is one JSON object per line."""
    texts = typical(recipe, len(rows), 0)
    named = [(row["extra_info"]["uid"], row["videos"][0]["video"], row["extra_info"]["query"]) for row in rows]
    span = [5.0, 11.0]
    keyed = {">>>".join((video, query, "(5.0, 11.0)")): "5.0-11.0" for _, video, query in named}
    tube = {"st_frame": 11, "ed_frame": 12, "bbox": {"11": [0, 0, 9, 9], "12": [0, 0, 9, 9]}}
    return {
        "answers": [{"uid": uid, "texts": [text]} for (uid, *_), text in zip(named, texts, strict=True)],
        "verl": [{"gts": {"uid": uid}, "output": text} for (uid, *_), text in zip(named, texts, strict=True)],
        "lines": [{"vid": video, "query": query, "interval": span, "object_id": 2} for _, video, query in named],
        "tubes": [{"uid": uid, "start": 5.0, "end": 11.0, "tube": {"3": [0, 0, 9, 9]}} for uid, *_ in named],
        "by_uid": {uid: {"intervals": [span], "option": "B"} for uid, *_ in named},
        "hc_stvg": {video: tube for _, video, _ in named},
        "time_r1": [
            {"qid": f"{video}_{k}", "output_text": text, "pred": span, "target": span}
            for k, ((_, video, _), text) in enumerate(zip(named, texts, strict=True))
        ],
        "temporal_r1": keyed,
        "videomind": [
            {"vid": v, "query": q, "pred": [span], "conf": [1.0], "response": "(B)", "span": [span]}
            for _, v, q in named
        ],
        "moment_detr": [
            {"qid": uid, "vid": v, "query": q, "pred_relevant_windows": [[*span, 0.9]]} for uid, v, q in named
        ],
        "timechat": {str(k): {"timestamp": [span], "vid": v, "query": q} for k, (_, v, q) in enumerate(named)},
        "lmms_eval": [
            {"doc_id": k, "filtered_resps": ["5 to 11"], "doc": {}, "target": "5.0 to 11.0", "input": q}
            for k, (_, _, q) in enumerate(named)
        ],
    }


# --- readers ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of some files.

    Attributes:
        outcomes: how often each reader read a file (``read``), refused it, or raised something else (``crash``).
        crashes: of each kind one, with its seed and the last lines of its traceback.
        found: rows in which the check found something.
        seconds: of the slowest reader of a file.
        memory: MiB of the largest process.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: dict[str, str] = field(default_factory=dict)
    found: int = 0
    seconds: float = 0.0
    memory: float = 0.0

    def add(self, other: "Tally") -> None:
        """Count another one, too."""
        self.outcomes.update(other.outcomes)
        self.crashes = other.crashes | self.crashes
        self.found += other.found
        self.seconds, self.memory = max(self.seconds, other.seconds), max(self.memory, other.memory)

    def attempt(self, name: str, seed: int, path: Path, read: Callable[[], object]) -> Any:
        """What a reader gives, and count what came of it; an error that names neither file nor row is a crash."""
        begin = time.monotonic()
        try:
            found, outcome = read(), "read"
        except Exception as error:  # counting them is what this run is for
            found, outcome = None, "refused" if _is_refusal(error, path) else "crash"
            if outcome == "crash":
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                self.crashes.setdefault(kind, f"seed {seed}: {error!s:.300}")
        self.outcomes[f"{name} {outcome}"] += 1
        self.seconds = max(self.seconds, time.monotonic() - begin)
        return found


def _is_refusal(error: Exception, path: Path) -> bool:
    """Whether an error is one for a person to read."""
    said = str(error)
    return isinstance(error, ValueError) and (path.name in said or re.search(r"\brow\b", said) is not None)


def fuzz_rows(seed: int, folder: Path, tally: Tally) -> None:
    """Change the rows of a file, and let check, page, cache, scoring and selection read it."""
    rng = random.Random(f"rows/{seed}")
    names = list(TYPICAL)
    rows = [good_row(k, rng.choice(names)) for k in range(ROWS_PER_FILE)]
    if rng.random() < 0.3:
        rows = retyped(rows, rng)
    share = rng.choice((0.03, 0.3, 0.9))
    rows = [changed(row, rng, True, rng.choice((1, 1, 2, 4))) if rng.random() < share else row for row in rows]
    path = folder / f"rows_{seed}.parquet"
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, TypeError, OverflowError):
        tally.outcomes["rows that no parquet file takes"] += 1
        return
    page, store = folder / f"rows_{seed}.html", FrameStore(str(folder / "frames"), 10**8)
    found = tally.attempt("check", seed, path, lambda: check.check([path], folder))
    if found is not None:
        findings, counts = found
        tally.found += len({finding.row for finding in findings if finding.row is not None})
        if counts.rows != len(rows):
            tally.crashes.setdefault("check: rows that are not counted", f"seed {seed}: {counts.rows}")
    tally.attempt("show", seed, path, lambda: show.write([path], page, folder, _PAGE))
    jobs = tally.attempt("cache", seed, path, lambda: cache_fill.read_jobs([path], folder)) or []
    tally.attempt("frames", seed, path, lambda: cache_fill.build_chunk(jobs[:_PAGE], store))
    tally.attempt("clips", seed, path, lambda: _clips(path, folder))
    tally.attempt("score", seed, path, lambda: [item_of(row) for row in read_rows([path], folder)])
    tally.attempt("select", seed, path, lambda: [sample_of(row) for row in pool([path], folder).rows()])
    for file in (path, page):
        file.unlink(missing_ok=True)


def fuzz_row_files(seed: int, folder: Path, tally: Tally) -> None:
    """Change bytes of a file of rows and check it, without its videos."""
    rng, path = random.Random(f"row files/{seed}"), folder / f"bytes_{seed}.parquet"
    path.write_bytes(damaged(_good_row_file(), rng))
    tally.attempt("check", seed, path, lambda: check.check([path], folder, videos=False))
    path.unlink()


@functools.cache
def _good_row_file() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([good_row(k, recipe) for k, recipe in enumerate(TYPICAL)]), sink)
    return sink.getvalue().to_pybytes()


def _clips(path: Path, folder: Path) -> None:
    rows = clips.Rows([path], folder)
    found = [f"fuzz/train/{k}" for k in range(_PAGE)]
    clips.draw([clips.Clip(uid, "", None, None, {}, (), 0.0, None) for uid in found], (), rows, 10_000)


def fuzz_tracks(seed: int, folder: Path, tally: Tally) -> None:
    """Change a track file and load it."""
    rng, path = random.Random(f"tracks/{seed}"), folder / f"{seed}.tracks.json.gz"
    record = _good_tracks()
    what = rng.randrange(4)
    if what < 2:
        record = changed(record, rng, False, rng.choice((1, 1, 2, 4)))
    data = json.dumps(record).encode()
    packed = gzip.compress(damaged(data, rng) if what == 2 else data)
    path.write_bytes(damaged(packed, rng) if what == 3 else packed)

    def read() -> None:
        found = tracks.load(path)
        for frame in range(0, min(found.num_frames, 12)):
            found.boxes(frame)

    tally.attempt("tracks", seed, path, read)
    path.unlink()


@functools.cache
def _good_tracks() -> dict:
    return good_tracks()


def fuzz_predictions(seed: int, folder: Path, tally: Tally) -> None:
    """Change a file of predictions, read it as each program of its form does, and score it."""
    rng, path = random.Random(f"predictions/{seed}"), folder / f"{seed}.json"
    recipe, dataset = rng.choice((("time_r1", "charades_sta"), ("stvg_boxes", "hc_stvg_v2"), ("r1v", "nextgqa")))
    rows = [good_row(k, recipe, dataset) for k in range(len(VIDEOS))]
    form, content = rng.choice(list(good_predictions(rows, recipe).items()))
    if rng.random() < 0.6:
        content = changed(content, rng, False, rng.choice((1, 1, 2, 4)))
    lines = [json.dumps(line) for line in content] if isinstance(content, list) else [json.dumps(content)]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(damaged(data, rng) if rng.random() < 0.4 else data)
    items = [item_of(row) for row in rows]
    tally.attempt("answers", seed, path, lambda: answers.read(path))
    given = rng.choice(("auto", "auto", form)) if form != "tubes" else "auto"
    found = tally.attempt("predictions", seed, path, lambda: foreign.read([path], items, given))
    if found is not None:
        tally.attempt("scores", seed, path, lambda: score(rows, found.answers, counts=found.counts, notes=found.notes))
    texts = [answer.texts for answer in found.answers.values() if isinstance(answer, Answer)] if found else []
    assert all(isinstance(text, str) for one in texts for text in one)
    path.unlink()


KINDS: dict[str, Callable[[int, Path, Tally], None]] = {
    "rows": fuzz_rows,
    "files of rows": fuzz_row_files,
    "track files": fuzz_tracks,
    "prediction files": fuzz_predictions,
}


def run(kind: str, seeds: Iterable[int], folder: Path) -> Tally:
    """Fuzz some files of a kind in this process; ``folder`` holds the videos (`write_videos`)."""
    tally = Tally()
    for seed in seeds:
        KINDS[kind](seed, folder, tally)
    tally.memory = max(map(_peak, _family()), default=0.0)
    return tally


def _family() -> Iterator[Path]:
    """Status files of this process and of its children."""
    own = Path("/proc/self").resolve().name
    for path in Path("/proc").glob("[0-9]*/status"):
        if path.parent.name == own or re.search(rf"^PPid:\s+{own}$", _text(path), re.MULTILINE):
            yield path


def _peak(status: Path) -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _text(status), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def _some(kind: str, folder: str, batches: list[range]) -> list[Tally]:
    return [run(kind, batch, Path(folder)) for batch in batches]


def measure(options: Options) -> Iterable[Row]:
    """Yield counts by outcome, crashes, and the worst time and memory."""
    with tempfile.TemporaryDirectory() as name:
        write_videos(Path(name))
        for kind, count in zip(KINDS, (ROWS // ROWS_PER_FILE, FILES, FILES, FILES), strict=True):
            tally, first = Tally(), options.seed * count
            batches = [range(k, min(k + _BATCH, first + count)) for k in range(first, first + count, _BATCH)]
            for found in work(functools.partial(_some, kind, name), batches, workers=2):
                for one in found:
                    tally.add(one)
            units = ROWS if kind == "rows" else count
            yield from _rows(f"fuzz: {units:,} {kind}", tally)


def _rows(name: str, tally: Tally) -> Iterator[Row]:
    for outcome, count in sorted(tally.outcomes.items()):
        yield Row(f"{name}: {outcome}", count)
    if tally.found:
        yield Row(f"{name}: rows with findings", tally.found)
    for kind, example in tally.crashes.items():
        yield Row(f"{name}: {kind}: {example}", 1, goal="0", met=False)
    yield Row(f"{name}: kinds of crash", len(tally.crashes), goal="0", met=not tally.crashes)
    yield Row(f"{name}: seconds of the slowest file", tally.seconds, goal=f"{SECONDS:g}", met=tally.seconds <= SECONDS)
    yield Row(f"{name}: MiB of the largest process", tally.memory, goal=f"{MEMORY}", met=tally.memory <= MEMORY)
