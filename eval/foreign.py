"""Predictions of any program, brought to the rows they answer.

Every format is read into the same two things: what was predicted, and what names the row (an ID, or a video with its
query and, where the same query occurs twice, its annotated times). Where a program names nothing but the place of its
row in the annotation, the annotated times have to agree. Nothing is guessed beyond that: what no row answers to is
counted.
"""

import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from data_builders.records import Record
from data_builders.sets import NAMES, Source, find
from eval.benchmarks.items import Interval, Item, Prediction, Stored, read_answer
from eval.metrics.lenient import read_time
from eval.metrics.readers import extract_time
from verl_stvg import nesting
from verl_stvg.answers import Answer
from verl_stvg.video.identity import ENDINGS

_ALIKE = 0.3  # seconds: annotated times of a table that was stored in float16 are that far off
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBERED = re.compile(r"_(\d+)\Z")
_BLOCK = re.compile(r"^ID: (.*)$", re.MULTILINE)
_PREDICTED = re.compile(r"^Prediction: +(None|\d+), \[(.*)\]$", re.MULTILINE)
_QUERY = re.compile(r"^Query: (.*)$", re.MULTILINE)
_OUTPUT = re.compile(r"^Model Output: ", re.MULTILINE)
_RULE = "-" * 80

Said = Answer | Prediction


@dataclass(frozen=True)
class Entry:
    """A prediction and what names its row.

    Attributes:
        said: what was predicted; an answer's uid is not used. `Prediction()` is one that cannot be read.
        names: IDs, any of which may be the row's.
        video: name of its video.
        query: its sentence.
        truth: its annotated interval, seconds.
        place: number of its row in the annotation, from 0.
        source: what the file holds, for messages.
    """

    said: Said
    names: tuple[str, ...] = ()
    video: str | None = None
    query: str | None = None
    truth: Interval | None = None
    place: int | None = None
    source: Any = None


@dataclass(frozen=True)
class Found:
    """Predictions by uid, in the order of the files, and counts of what was wrong with them."""

    answers: dict[str, Said]
    counts: dict[str, int]


def read(files: Sequence[Path], items: Sequence[Item], form: str = "auto") -> Found:
    """Read files of predictions of one program, such as its shards; a later file may add what an earlier one lacks.

    Of two predictions for a row the first counts, unless one holds an option and the other a time (NExT-GQA keeps them
    apart) or they are samples of one dump of verl.

    Args:
        files: of one format.
        items: rows that were answered.
        form: of `FORMATS`, or `auto`.

    Raises:
        ValueError: no such file or format, or a file of another format; the message says which and what is wrong.
    """
    if form not in ("auto", ANNOTATION, *FORMATS):
        raise ValueError(f"no format {form!r}; choose one of {', '.join((*FORMATS, ANNOTATION))}, or auto")
    counts: Counter[str] = Counter()
    rows = _Rows(items)
    found: dict[str, Said] = {}
    forms: dict[str, None] = {}
    first: Entry | None = None
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file of predictions; correct the path")
        chosen = ANNOTATION if form == "auto" and _is_annotation(file, items) else form
        content = _content(file, counts) if chosen != ANNOTATION else None
        chosen = detect(file, content) if chosen == "auto" else chosen
        if chosen == ANNOTATION:
            counts["annotated"] += 1
        try:
            entries = _annotation(file, items) if chosen == ANNOTATION else FORMATS[chosen](content, counts)
            for entry in entries:
                forms.setdefault(chosen)
                uid = rows.uid(entry)
                if uid is None:
                    counts["extra"] += 1
                    rows.strangers.append(next(iter((*entry.names, entry.video, entry.query)), None))
                elif uid not in found:
                    first = first or entry
                    found[uid] = replace(entry.said, uid=uid) if isinstance(entry.said, Answer) else entry.said
                else:
                    both = _joined(found[uid], entry.said, chosen == "verl")
                    counts["duplicates"] += both is None
                    found[uid] = both or found[uid]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{file}: not of the format {chosen} ({error!r}); name the right one with --format"
            ) from error
    if rows.strangers and not found:
        raise ValueError(
            f"{files[0]}: none of {len(rows.strangers)} predictions is for one of the {len(items)} rows; they are for "
            f"{rows.strangers[:3]}, rows are {[item.uid for item in items[:3]]}; give the rows that were answered"
        )
    if not forms:
        raise ValueError(f"{files[0]}: holds no predictions; was the program ended before its first one?")
    if found and forms.keys() - {"verl", "answers"}:
        _check_readable(files[0], items, next(iter(forms)), first, found)
    return Found(found, dict(counts))


def _check_readable(file: Path, items: Sequence[Item], form: str, first: Entry, found: Mapping[str, Said]) -> None:
    """Refuse predictions of which none can be read, and quote the first.

    Dumps of verl and answers of ours are not asked: they hold replies to the prompt, and a model that has not learned
    its form is scored.

    Raises:
        ValueError: nothing can be read.
    """
    by_uid = {item.uid: item for item in items}
    if any(_says_something(by_uid[uid], said) for uid, said in found.items()):
        return
    uid, said = next(iter(found.items()))
    quoted = said.texts[0] if isinstance(said, Answer) and said.texts else first.source
    raise ValueError(
        f"{file}: none of {len(found)} predictions can be read (format {form}), such as that for {uid}: "
        f"{_short(quoted)}; looked for {_wanted(by_uid[uid], said)}. See Files of other programs in docs/evaluation.md"
    )


def _says_something(item: Item, said: Said) -> bool:
    if isinstance(said, Prediction):
        return said.finite() is not None
    if said.error is not None:
        return True
    readers = [lambda text: read_answer(item, text), read_time, *([extract_time] if isinstance(said, Stored) else [])]
    return any(reader(text) for text in said.texts for reader in readers)


def _wanted(item: Item, said: Said) -> str:
    if isinstance(said, Answer):
        return (
            f"an answer to the row's prompt (reward {item.recipe}), or any way to write a start and an end in seconds"
        )
    return (
        "text (or output, response), start and end, interval, intervals, timestamp, object_id, object_ids, option or "
        "tube, times in seconds"
    )


def _short(quoted: Any) -> str:
    text = quoted if isinstance(quoted, str) else json.dumps(quoted, ensure_ascii=False, default=str)
    return f"{text[:200]!r}" + ("..." if len(text) > 200 else "")


def _joined(first: Said, second: Said, samples: bool) -> Said | None:
    """Two predictions for a row as one; None if they say the same kind of thing."""
    if isinstance(first, Answer) and isinstance(second, Answer):
        return replace(first, texts=first.texts + second.texts) if samples else None
    if isinstance(first, Answer) or isinstance(second, Answer):
        return None
    if first.option is None and not second.intervals and second.option is not None:
        return replace(first, option=second.option)
    if not first.intervals and first.option is not None and second.option is None and second.intervals:
        return replace(first, intervals=second.intervals)
    return None


# --- rows by name -----------------------------------------------------------------------------------------------------


class _Rows:
    """Rows by everything that names them."""

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.strangers: list[str | None] = []
        self._taken: set[str] = set()

    def uid(self, entry: Entry) -> str | None:
        """The row of an entry; None if there is none, or more than one that cannot be told apart."""
        for name in entry.names:
            for table in (self._by_uid, self._by_key, self._by_qid):
                if len(found := table.get(name, ())) == 1:
                    return found[0].uid
        if entry.video is not None and entry.query is not None:
            found = self._by_query.get((_stem(entry.video), _plain(entry.query)), ())
            if entry.truth is not None and len(found) > 1:
                found = [item for item in found if _agrees(item, entry.truth)] or found
            # The same query of the same video: in the order of the rows, as both come from one annotation.
            free = [item for item in found if item.uid not in self._taken] or found[:1]
            if free:
                self._taken.add(free[0].uid)
                return free[0].uid
        if entry.place is not None and entry.truth is not None and entry.place < len(self.items):
            item = self.items[entry.place]
            return item.uid if _agrees(item, entry.truth) else None
        return None

    @cached_property
    def _by_uid(self) -> dict[str, list[Item]]:
        return {item.uid: [item] for item in self.items}

    @cached_property
    def _by_key(self) -> dict[str, list[Item]]:
        """By the ID in the set, which others join with a low line, and write without ending or with a 0 (STVG-R1)."""
        table: dict[str, list[Item]] = {}
        for item in self.items:
            key = item.uid.removeprefix(f"{item.dataset}/{item.split}/")
            stem = _without_ending(key)
            for name in dict.fromkeys((key, key.replace("/", "_"), stem, f"{stem}_0")):
                table.setdefault(name, []).append(item)
        return table

    @cached_property
    def _by_qid(self) -> dict[str, list[Item]]:
        table: dict[str, list[Item]] = {}
        for item in self.items:
            for name in ("qid", "id", "annotation_id"):
                if item.extra.get(name) is not None:
                    table.setdefault(str(item.extra[name]), []).append(item)
        return table

    @cached_property
    def _by_query(self) -> dict[tuple[str, str], list[Item]]:
        table: dict[tuple[str, str], list[Item]] = {}
        for item in self.items:
            table.setdefault((_stem(item.video), _plain(item.query)), []).append(item)
        return table


def _agrees(item: Item, truth: Interval) -> bool:
    return any(max(abs(one[0] - truth[0]), abs(one[1] - truth[1])) <= _ALIKE for one in item.intervals)


def _without_ending(name: str) -> str:
    path = PurePosixPath(name)
    return name[: -len(path.suffix)] if path.suffix.lower() in ENDINGS else name


def _stem(video: str) -> str:
    return _without_ending(PurePosixPath(video).name).removesuffix("-cam-002")


def _plain(query: str) -> str:
    return " ".join(query.lower().split()).strip(" .?!")


# --- files ------------------------------------------------------------------------------------------------------------


def _content(file: Path, counts: Counter) -> Any:
    """JSON of a file, whole or by line; text of others; the predictions of a pickled checkpoint."""
    if file.suffix in (".pkl", ".pickle"):
        with file.open("rb") as stream:
            return _Plain(io.BytesIO(stream.read())).load()
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    if file.suffix == ".txt" and _BLOCK.search(text):
        return text
    if not text.strip():
        raise ValueError(f"{file}: is empty; was the program ended before its first prediction?")
    try:
        whole = nesting.loads(text)
    except ValueError:
        return _lines(file, text, counts)
    return [whole] if isinstance(whole, dict) and "\n" not in text.strip() and _is_line(whole) else whole


def _lines(file: Path, text: str, counts: Counter) -> list[dict]:
    found = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = nesting.loads(line)
        except ValueError as error:
            if number == len(lines) and found:
                counts["half_written"] += 1
                continue
            raise ValueError(f"{file}: line {number} is no JSON ({error}); remove it or predict again") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{file}: line {number} is no JSON object; remove it or predict again")
        found.append(entry)
    return found


class _Inert:
    """What a pickle wanted to make of a class: nothing happens."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None:
        pass


class _Plain(pickle.Unpickler):
    """A pickle is a program; this one makes plain data, and nothing of any class it names."""

    def find_class(self, module: str, name: str) -> Any:
        return set if (module, name) == ("builtins", "set") else _Inert


def detect(file: Path, content: Any) -> str:
    """The format of a file's content.

    Raises:
        ValueError: none is known that looks like it.
    """
    if isinstance(content, str) or (isinstance(content, dict) and "processed_items" in content):
        return "stvg_r1"
    first = next(iter(content.values() if isinstance(content, dict) else content), None)
    if isinstance(content, dict):
        if isinstance(first, dict) and {"timestamps", "sentences"} <= first.keys():
            return ANNOTATION
        if isinstance(first, dict) and {"bbox", "st_frame"} <= first.keys():
            return ANNOTATION if isinstance(first["bbox"], list) else "hc_stvg"
        if ">>>" in next(iter(content), ""):
            return "temporal_r1"
        return "by_uid"
    if isinstance(first, dict):
        for form, keys in _MARKS.items():
            if keys <= first.keys():
                return form
    raise ValueError(f"{file}: the format cannot be told; name it with --format, or see the documentation for `lines`")


_MARKS: dict[str, set[str]] = {
    "verl": {"output", "gts"},
    "answers": {"uid", "texts"},
    "moment_detr": {"pred_relevant_windows"},
    "time_r1": {"pred", "target", "output_text"},
    "videomind": {"pred", "conf"},
    "lines": set(),
}


def _is_line(found: dict) -> bool:
    return any(keys and keys <= found.keys() for keys in _MARKS.values()) or bool(
        {"uid", "qid", "id", "vid"} & {*found}
    )


# --- formats ----------------------------------------------------------------------------------------------------------


def _answers(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Ours: `verl_stvg.answers`."""
    for line in content:
        texts, error = tuple(line.get("texts", ())), line.get("error")
        yield Entry(Answer(line["uid"], texts, tuple(line.get("finish", ())), (), error), (line["uid"],))


def _verl(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Answers that verl dumps while it validates (``trainer.validation_data_dir``), samples of a row together."""
    for line in content:
        uid = line["gts"]["uid"]
        yield Entry(Answer(uid, (line["output"],)), (uid,))


def _plain_lines(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Objects with uid (or qid, id, or vid or video with query) and text, interval(s), object_id(s), option or tube."""
    for line in content:
        names = tuple(str(line[key]) for key in ("uid", "qid", "id") if line.get(key) is not None)
        video = next((line[key] for key in ("vid", "video") if line.get(key)), None)
        query = next((line[k] for k in ("query", "sentence") if line.get(k)), None)
        yield Entry(_said(line), names, video, query, source=line)


def _by_uid(content: Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """One object: by ID a text, an interval, several, or an object as in `lines`; NExT-GQA's files of both kinds."""
    for name, value in content.items():
        if isinstance(value, str):
            said: Said = Answer("", (value,))
        elif isinstance(value, list):
            said = _times(value)
        elif "prediction" in value and "answer" in value:
            said = Prediction(option=_letter(value["prediction"]))
        else:
            said = _said(value)
        yield Entry(said, (name,), source={name: value})


def _hc_stvg(content: Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """HC-STVG's challenge: by video first and last frame and a box for each, counted from 1 as in the annotation."""
    for video, one in content.items():
        span = int(one["st_frame"]) - 1, int(one["ed_frame"]) - 1
        tube = {int(frame) - 1: _box(box) for frame, box in one["bbox"].items()}
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
        name, query, predicted, output = (pattern.search(block) for pattern in (_BLOCK, _QUERY, _PREDICTED, _OUTPUT))
        said = Answer("", (block[output.end() :],)) if output is not None else _line_prediction(predicted)
        yield Entry(said, (name.group(1),), query=query and query.group(1))


def _line_prediction(found: re.Match | None) -> Prediction:
    """The prediction that a block states, of a file without the model's output."""
    if found is None or found.group(1) == "None":
        return Prediction()
    times = _times(found.group(2).split(","))
    return replace(times, object_ids=(int(found.group(1)),))


def _time_r1(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Time-R1's ``tg_*.jsonl``, whose ``qid`` ends in the place of the row in the annotation."""
    for line in content:
        place = _NUMBERED.search(line["qid"])
        yield Entry(
            Answer("", (line["output_text"],)),
            (line["qid"],),
            truth=tuple(map(float, line["target"])),
            place=int(place.group(1)) if place is not None else None,
        )


def _temporal_r1(content: Mapping[str, str], counts: Counter) -> Iterator[Entry]:
    """Temporal-R1's (lmms-eval's) object by ``video>>>caption>>>times``: ``start-end`` (R1 mode), or the bare reply."""
    for name, text in content.items():
        video, query, annotated = name.split(">>>")
        truth = tuple(float(time) for time in annotated.strip("[]() ").split(","))
        times = _times(text.split("-"))
        said = replace(times, text=text) if times.intervals else Stored("", (text,))
        yield Entry(said, (), video, query, truth, source=text)


def _videomind(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """VideoMind's ``output_*.json``: ranked intervals, and the reply to a question."""
    for one in content:
        said = replace(_times(one.get("pred") or []), ranked=True)
        if one.get("response") is not None:
            first = one["response"].strip().lstrip("(")[:1].upper()
            said = replace(said, option=first if first.isascii() and first.isalpha() else None)
        names = tuple(str(one[key]) for key in ("qid", "id") if one.get(key) is not None)
        span = (one.get("span") or [None])[0]
        query = one.get("question") or one.get("query")
        video = one.get("vid") or one.get("video_path")
        yield Entry(said, names, video, query, tuple(span) if span else None, source=one)


def _moment_detr(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Submissions of QVHighlights (Moment-DETR) and ReXTime: ranked windows with scores, and a letter."""
    for one in content:
        windows = [window[:2] for window in one.get("pred_relevant_windows") or ()]
        said = replace(_times(windows), option=_letter(one["ans"]) if "ans" in one else None, ranked=True)
        yield Entry(said, (str(one["qid"]),), one.get("vid"), one.get("query"), source=one)


ANNOTATION = "annotation"
"""Format of the file that rows are built from; it is read by the set's own builder, not from its content."""


def _is_annotation(file: Path, items: Sequence[Item]) -> bool:
    """Whether a file is the annotation that the rows are of: its name says so, and the set's reader finds the rows.

    Predictions may go by such a name too (test.jsonl), but readers of annotations refuse what they do not know.
    """
    if not any(file.name == PurePosixPath(name).name for name in _annotation_source(items).names):
        return False
    uids = {item.uid for item in items}
    try:
        return any(entry.names[0] in uids and entry.said.intervals for entry in _annotation(file, items))
    except (ValueError, KeyError, TypeError, AttributeError):  # predictions in the file's place
        return False


def _annotation_source(items: Sequence[Item]) -> Source:
    one = items[0] if items else None
    known = one is not None and one.dataset in NAMES and one.split in find(one.dataset).splits
    return find(one.dataset).splits[one.split][0] if known else Source(())


def _annotation(file: Path, items: Sequence[Item]) -> Iterator[Entry]:
    """What is annotated, as if it had been predicted: a check of rows and metrics, which is worth everything.

    Raises:
        ValueError: the rows are of no annotation set, or the set's reader cannot read the file.
    """
    source = _annotation_source(items)
    if not source.names:
        raise ValueError(
            f"{file}: the rows are of {items[0].dataset if items else 'nothing'}, whose files nobody reads"
        )
    dataset, split = items[0].dataset, items[0].split
    whole = file.resolve().as_posix()
    folders = [file.parent, *(Path(whole.removesuffix(name)) for name in source.names if whole.endswith(f"/{name}"))]
    others = (
        next((folder / name for folder in folders for name in one.names if (folder / name).exists()), None)
        for one in find(dataset).splits[split][1:]
    )
    by_uid = {item.uid: item for item in items}
    for record in find(dataset).read((file, *others), split):
        if isinstance(record, Record):
            uid = f"{dataset}/{split}/{record.key}"
            yield Entry(_of_record(record, by_uid.get(uid)), (uid,), source=record.where)


def _of_record(record: Record, item: Item | None) -> Prediction:
    if item is None:
        return Prediction()
    tube = None
    if record.tube is not None:
        tube = {record.tube.first_frame + k: tuple(box) for k, box in enumerate(record.tube.boxes)}
    times = [tuple(_in_seconds(time, record.unit, item) for time in one) for one in record.intervals]
    return Prediction(tuple(times), item.object_ids or _ids(item.object_id), record.answer, tube)


def _ids(object_id: int | None) -> tuple[int, ...]:
    return () if object_id is None else (object_id,)


def _in_seconds(bound: float, unit: str, item: Item) -> float:
    if unit == "fractions":
        return bound * item.duration
    return item.clock.seconds(int(bound)) - item.shown if unit == "frames" and item.clock else bound


FORMATS: dict[str, Callable[[Any, Counter], Iterator[Entry]]] = {
    "answers": _answers,
    "verl": _verl,
    "lines": _plain_lines,
    "by_uid": _by_uid,
    "hc_stvg": _hc_stvg,
    "stvg_r1": _stvg_r1,
    "time_r1": _time_r1,
    "temporal_r1": _temporal_r1,
    "videomind": _videomind,
    "moment_detr": _moment_detr,
}


# --- values -----------------------------------------------------------------------------------------------------------


_TIMES = ("intervals", "interval", "timestamps", "timestamp", "span", "relevant_windows")
_BOUNDS = (("start", "end"), ("start_time", "end_time"), ("start_s", "end_s"))


def _said(line: Mapping[str, Any]) -> Said:
    """The prediction of an object; one that says nothing that can be read is empty."""
    text = next((line[key] for key in ("text", "output", "response") if isinstance(line.get(key), str)), None)
    if text is not None:
        return Answer("", (text,))
    times = next((line[key] for key in _TIMES if line.get(key) is not None), None)
    if times is None:
        times = next(
            ([line[a], line[b]] for a, b in _BOUNDS if line.get(a) is not None and line.get(b) is not None), None
        )
    ids = line.get("object_ids") if line.get("object_ids") is not None else [line.get("object_id")]
    return replace(
        _times(times if isinstance(times, list) else []),
        object_ids=tuple(one for one in ids if type(one) is int),
        option=_letter(line.get("option", line.get("ans"))),
        tube=_tube(line.get("tube")),
    )


def _times(found: Sequence[Any]) -> Prediction:
    """An interval, or several; what is none is left out, and NaN is kept for scoring to count."""
    if found and not isinstance(found[0], list | tuple):
        found = [found]
    intervals = []
    for one in found:
        times = [_number(time) for time in one]
        if len(times) == 2 and None not in times:
            intervals.append(tuple(times))
    return Prediction(tuple(intervals))


def _tube(found: Any) -> dict[int, tuple] | None:
    """Boxes by zero-based frame: an object of them, or their first frame and their list."""
    if isinstance(found, dict) and isinstance(found.get("boxes"), list):
        first = int(found["first_frame"])
        return {first + k: _box(box) for k, box in enumerate(found["boxes"])} or None
    return {int(frame): _box(box) for frame, box in found.items()} or None if isinstance(found, dict) else None


def _box(found: Any) -> tuple[float, float, float, float]:
    """A box; one that is none overlaps nothing."""
    numbers = [_number(side) for side in found] if isinstance(found, list | tuple) else []
    return tuple(numbers) if len(numbers) == 4 and None not in numbers else (0.0, 0.0, 0.0, 0.0)


def _number(found: Any) -> float | None:
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        return float(found)
    except (ValueError, OverflowError):
        return None


def _letter(found: Any) -> str | None:
    """The letter of an option that is one, or its number from 0."""
    if type(found) is int and 0 <= found < len(_LETTERS):
        return _LETTERS[found]
    letter = found.strip().strip("()").upper() if isinstance(found, str) else ""
    return letter if len(letter) == 1 and letter in _LETTERS else None
