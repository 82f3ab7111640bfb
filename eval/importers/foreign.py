"""Predictions of any program, brought to the rows they answer.

Every format is read into the same two things: what was predicted, and what names the row (an ID, or a video with its
query and, where the same query occurs twice, its annotated times). Where a program names nothing but the place of its
row in the annotation, the annotated times have to agree. Nothing is guessed beyond that: what fits no row, or several
that cannot be told apart, is counted and quoted.
"""

import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from verl_stvg.base import nesting
from verl_stvg.data_builders.records import Record
from verl_stvg.data_builders.sets import NAMES, Source, find
from verl_stvg.eval.benchmarks.items import Interval, Item, Prediction, Stored, read_answer
from verl_stvg.eval.metrics.lenient import read_time
from verl_stvg.eval.metrics.readers import extract_time
from verl_stvg.eval.metrics.rows import SHOWN
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.chat_template import of_dump
from verl_stvg.video.identity import ENDINGS

_ALIKE = 0.3  # seconds: annotated times of a table that was stored in float16 are that far off
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBERED = re.compile(r"_(\d+)\Z")
_BLOCK = re.compile(r"^ID: (.*)$", re.MULTILINE)
_PREDICTED = re.compile(r"^Prediction: +(None|\d+), \[(.*)\]$", re.MULTILINE)
_QUERY = re.compile(r"^Query: (.*)$", re.MULTILINE)
_OUTPUT = re.compile(r"^Model Output: ", re.MULTILINE)
_RULE = "-" * 80
_BRACKETS = dict.fromkeys(map(ord, "()."))
_JOINT = ">>>"
_LMMS_EVAL_DOCS = (("video", "caption", "timestamp"), ("video_path", "query", "span"))  # Charades-STA, TimeLens

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
        prompt: the text that was asked, which holds the query.

    Raises:
        TypeError: a reply that is no text.
        source: what the file holds, for messages.
    """

    said: Said
    names: tuple[str, ...] = ()
    video: str | None = None
    query: str | None = None
    truth: Interval | None = None
    place: int | None = None
    source: Any = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        texts = self.said.texts if isinstance(self.said, Answer) else ()
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"a reply should be text, found {wrong[0]!r:.60}")

    def __str__(self) -> str:
        """What it is called, for messages."""
        named = self.names[:1] or (self.video, self.query)
        place = () if any(named) else (f"number {self.place}",)
        return " ".join(str(one) for one in (*named, *place) if one is not None)


@dataclass(frozen=True)
class Found:
    """Predictions that were read.

    Attributes:
        answers: by uid.
        counts: of what was wrong with them: `extra` fit no row, `ambiguous` several.
        forms: that were read, names of `FORMATS` or `ANNOTATION`.
        notes: sentences that say which form was read, and quote predictions that were left out.
    """

    answers: dict[str, Said]
    counts: dict[str, int]
    forms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    strangers: list[Entry] = []
    alike: dict[tuple[str, ...], list[tuple[Entry, str]]] = {}
    first: Entry | None = None

    def keep(entry: Entry, uid: str, chosen: str) -> None:
        nonlocal first
        if uid not in found:
            first = first or entry
            found[uid] = replace(entry.said, uid=uid) if isinstance(entry.said, Answer) else entry.said
            return
        both = _joined(found[uid], entry.said, chosen == "verl")
        counts["duplicates"] += both is None
        found[uid] = both or found[uid]

    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file of predictions; correct the path")
        chosen = ANNOTATION if form == "auto" and _is_annotation(file, items) else form
        content = _content(file, counts) if chosen != ANNOTATION else None
        chosen = detect(file, content) if chosen == "auto" else chosen
        if chosen == ANNOTATION:
            counts["annotated"] += 1
        try:
            for entry in _annotation(file, items) if chosen == ANNOTATION else FORMATS[chosen](content, counts):
                forms.setdefault(chosen)
                fitting = rows.find(entry)
                if len(fitting) == 1:
                    keep(entry, fitting[0].uid, chosen)
                elif fitting:
                    alike.setdefault(tuple(item.uid for item in fitting), []).append((entry, chosen))
                else:
                    strangers.append(entry)
        except (LookupError, ArithmeticError, TypeError, AttributeError, ValueError) as error:
            if chosen == ANNOTATION and isinstance(error, ValueError):  # of the set's reader, which names the place
                raise
            raise ValueError(
                f"{file}: not of the format {chosen} ({error!r}); name the right one with --format"
            ) from error
    ambiguous: list[Entry] = []
    in_order = 0
    for uids, entries in alike.items():
        if len(entries) % len(uids):  # not one for each of them
            ambiguous += [entry for entry, _ in entries]
            continue
        for number, (entry, chosen) in enumerate(entries):  # in the order of the rows, as both come from one annotation
            keep(entry, uids[number % len(uids)], chosen)
        in_order += len(entries)
    counts["extra"] += len(strangers)
    counts["ambiguous"] += len(ambiguous)
    if (strangers or ambiguous) and not found:
        lost = strangers + ambiguous
        raise ValueError(
            f"{files[0]}: none of {len(lost)} predictions is for one of the {len(items)} rows; they are for "
            f"{list(map(str, lost[:SHOWN]))}, rows are {[item.uid for item in items[:SHOWN]]}; give the rows that were "
            "answered"
        )
    if not forms:
        raise ValueError(f"{files[0]}: holds no predictions; was the program ended before its first one?")
    if found and forms.keys() - {"verl", "answers"}:
        _check_readable(files[0], items, next(iter(forms)), first, found)
    return Found(found, dict(+counts), tuple(forms), _notes(forms, strangers, ambiguous, in_order))


def _notes(
    forms: Iterable[str], strangers: Sequence[Entry], ambiguous: Sequence[Entry], in_order: int
) -> tuple[str, ...]:
    notes = [f"Predictions are read as: {', '.join(forms)}."]
    if in_order:
        notes.append(
            f"{in_order:,} predictions of rows with the same video and query are taken in the order of the rows."
        )
    for lost, why in ((strangers, "fit no row"), (ambiguous, "fit several rows that cannot be told apart")):
        if lost:
            quoted = "; ".join(_short(str(entry)) for entry in lost[:SHOWN])
            notes.append(f"{len(lost):,} predictions {why} and are left out, such as {quoted}.")
    return tuple(notes)


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

    def find(self, entry: Entry) -> list[Item]:
        """The row of an entry; none, or several that nothing in the entry tells apart.

        IDs are often numbers of one program or another. Where the file also has a video and a query, and rows with
        both, the row that an ID names has to be one of them; else only the video is compared, unless the ID is a uid.
        """
        if entry.prompt is not None:
            return self._by_target(entry)
        described = self._described(entry)
        for name in entry.names:
            for table in (self._by_uid, self._by_key, self._by_qid):
                if len(named := table.get(name, ())) != 1:
                    continue
                there = any(named[0] is one for one in described)
                if there or not described and (table is self._by_uid or _is_of_video(named[0], entry.video)):
                    return named
        return described or self._at_place(entry)

    def _described(self, entry: Entry) -> list[Item]:
        """Rows with the video and the query of an entry; those with its truth, or at its place, if there are any."""
        if entry.video is None or entry.query is None:
            return []
        found = self._by_query.get((_stem(entry.video), _plain(entry.query)), [])
        if len(found) > 1 and entry.truth is not None:
            found = [item for item in found if _agrees(item, entry.truth)] or found
        if len(found) > 1 and entry.place is not None and entry.place < len(self.items):
            found = [item for item in found if item is self.items[entry.place]] or found
        return found

    def _at_place(self, entry: Entry) -> list[Item]:
        if entry.place is None or entry.truth is None or entry.place >= len(self.items):
            return []
        return [item for item in self.items[entry.place : entry.place + 1] if _agrees(item, entry.truth)]

    def _by_target(self, entry: Entry) -> list[Item]:
        """Rows with the truth of an entry whose query stands in its prompt; the one at its place, if there are several.

        The place may be one of all rows, or of those of one sentence type (VidSTG).
        """
        found = self._by_times.get(entry.truth, [])
        asked = [item for item in found if item.query in entry.prompt]
        longest = max((len(item.query) for item in asked), default=0)  # "sits" stands in "sits down" as well
        asked = [item for item in asked if len(item.query) == longest]
        if len(asked) > 1:
            at_place = [rows[entry.place] for rows in self._numberings if entry.place < len(rows)]
            asked = [item for item in asked if any(item is one for one in at_place)] or asked
        return asked

    @cached_property
    def _numberings(self) -> list[list[Item]]:
        kinds = {item.extra.get("kind") for item in self.items}
        return [list(self.items), *([one for one in self.items if one.extra.get("kind") == kind] for kind in kinds)]

    @cached_property
    def _by_times(self) -> dict[Interval, list[Item]]:
        """By the first annotated interval, as lmms-eval's log has it: to two decimals."""
        table: dict[Interval, list[Item]] = {}
        for item in self.items:
            for start, end in item.intervals[:1]:
                table.setdefault((float(f"{start:.2f}"), float(f"{end:.2f}")), []).append(item)
        return table

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


def _is_of_video(item: Item, video: str | None) -> bool:
    return video is None or _stem(item.video) == _stem(video)


def _agrees(item: Item, truth: Interval) -> bool:
    return any(max(abs(one[0] - truth[0]), abs(one[1] - truth[1])) <= _ALIKE for one in item.intervals)


def _without_ending(name: str) -> str:
    path = PurePosixPath(name)
    return name[: -len(path.suffix)] if path.suffix.lower() in ENDINGS else name


def _stem(video: object) -> str:
    return _without_ending(PurePosixPath(str(video)).name).removesuffix("-cam-002")


def _plain(query: object) -> str:
    return " ".join(str(query).lower().split()).strip(" .?!")


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
        ValueError: none is known that looks like it, or several are.
    """
    if isinstance(content, str) or (isinstance(content, dict) and "processed_items" in content):
        return "stvg_r1"
    entries = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    first = next(iter(entries), None)
    if isinstance(content, dict):
        if isinstance(first, dict) and {"timestamps", "sentences"} <= first.keys():
            return ANNOTATION
        if isinstance(first, dict) and {"bbox", "st_frame"} <= first.keys():
            return ANNOTATION if isinstance(first["bbox"], list) else "hc_stvg"
        if _JOINT in next(iter(content), ""):
            return "temporal_r1"
        return _only(file, first, _OBJECT_MARKS, "by_uid")
    if isinstance(first, dict):
        return _only(file, first, _LINE_MARKS, "lines")
    raise ValueError(f"{file}: the format cannot be told; name it with --format, or see the documentation for `lines`")


def _only(file: Path, first: Any, marks: Mapping[str, set[str]], otherwise: str) -> str:
    """The one format whose fields a first entry has."""
    found = [form for form, fields in marks.items() if isinstance(first, dict) and fields <= first.keys()]
    if len(found) > 1:
        raise ValueError(
            f"{file}: may be of the format {' or '.join(found)}, as its first entry has the fields of both; name the "
            "right one with --format"
        )
    return found[0] if found else otherwise


_LINE_MARKS: dict[str, set[str]] = {
    "verl": {"output", "gts"},
    "answers": {"uid", "texts"},
    "lmms_eval": {"doc_id", "filtered_resps"},
    "moment_detr": {"pred_relevant_windows"},
    "time_r1": {"pred", "target", "output_text"},
    "videomind": {"pred", "conf"},
}
_OBJECT_MARKS: dict[str, set[str]] = {"timechat": {"timestamp", "query", "vid"}}


def _is_line(found: dict) -> bool:
    return any(fields <= found.keys() for fields in _LINE_MARKS.values()) or bool(
        {"uid", "qid", "id", "vid"} & {*found}
    )


# --- formats ----------------------------------------------------------------------------------------------------------


def _answers(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Ours: `verl_stvg.rows.answers`."""
    for line in content:
        texts, error = tuple(line.get("texts", ())), line.get("error")
        yield Entry(Answer(line["uid"], texts, tuple(line.get("finish", ())), (), error), (line["uid"],))


def _verl(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Answers that verl dumps while it validates (``trainer.validation_data_dir``), samples of a row together."""
    for line in content:
        uid = line["gts"]["uid"]
        yield Entry(Answer(uid, (of_dump(line),)), (uid,))


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
        video, query, truth = _named_by(name)
        times = _times(text.split("-"))
        said = replace(times, text=text) if times.intervals else Stored("", (text,))
        yield Entry(said, (), video, query, truth, source=text)


def _videomind(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """VideoMind's ``output_*.json``: ranked intervals, and a reply to a question, of which the first letter counts."""
    for one in content:
        said = replace(_times(one.get("pred") or []), ranked=True)
        if one.get("response") is not None:
            first = one["response"].strip().split(" ", 1)[0].translate(_BRACKETS)[:1].upper()
            letter = first if first.isascii() and first.isalpha() else None
            said = replace(said, option=letter, reply=one["response"])
        names = tuple(str(one[key]) for key in ("qid", "id") if one.get(key) is not None)
        span = (one.get("span") or [None])[0]
        query = one.get("question") or one.get("query")
        video = one.get("vid") or one.get("video_path")
        yield Entry(said, names, video, query, tuple(span) if span else None, source=one)


def _timechat(content: Mapping[str, Any], counts: Counter) -> Iterator[Entry]:
    """TimeChat's and TimeSuite's ``fmt_*_result.json``: by number of the annotation intervals, video and query.

    The first interval is scored; an empty list is a reply in which none was found. Numbers only put the same query of a
    video in the annotation's order, as the program may have drawn its samples at random.
    """
    numbers = {name: int(name) if name.isdecimal() else None for name in content}
    if None not in numbers.values():
        content = {name: content[name] for name in sorted(content, key=numbers.get)}
    for name, one in content.items():
        yield Entry(
            replace(_times(one["timestamp"]), ranked=True),
            video=one["vid"],
            query=one["query"],
            place=numbers[name],
            source={name: one},
        )


def _lmms_eval(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """lmms-eval's ``*_samples_<task>.jsonl`` (``--log_samples``): replies as its tasks read them (``filtered_resps``).

    Rows of its own tasks of temporal grounding (Charades-STA, TimeLens) are named by `video>>>query>>>times`, which is
    what these tasks log as a metric, or by ``doc`` of older versions; of such replies the times are those that
    `readers.extract_time` reads, because the prompt was not the row's. Rows of our tasks are named by their truth
    (``target``) and the prompt (``input``).
    """
    for line in content:
        texts = tuple(_leaves(line["filtered_resps"]))
        doc = line["doc"] if isinstance(line.get("doc"), dict) else {}
        key = _lmms_eval_key(line, doc)
        if key is not None:
            video, query, annotated = key
            said = Prediction(tuple(map(tuple, extract_time(texts[0]))), text=texts[0]) if texts else Prediction()
            yield Entry(said, (), video, query, annotated, source=texts[0] if texts else line)
            continue
        said = Answer("", texts) if texts else Prediction()
        uid = doc.get("extra_info", {}).get("uid")
        if uid is not None:
            yield Entry(said, (uid,), source=line)
            continue
        start, _, end = line["target"].partition(" to ")
        truth = (_number(start), _number(end))
        if None in truth:
            raise KeyError(f"target {line['target']!r} of doc_id {line['doc_id']} is no time")
        yield Entry(said, truth=truth, place=int(line["doc_id"]), prompt=str(line.get("input", "")), source=line)


def _lmms_eval_key(line: Mapping[str, Any], doc: Mapping[str, Any]) -> tuple[str, str, Interval | None] | None:
    """Video, query and annotated interval of a sample of lmms-eval's own tasks; None for one of ours."""
    for value in line.values():
        key = next(iter(value), None) if isinstance(value, dict) and len(value) == 1 else None
        if isinstance(key, str) and key.count(_JOINT) == 2:
            return _named_by(key)
    for video, query, times in _LMMS_EVAL_DOCS:
        if {video, query, times} <= doc.keys():
            return doc[video], doc[query], _first_interval(doc[times])
    return None


def _named_by(key: str) -> tuple[str, str, Interval | None]:
    """Video, query and annotated interval of lmms-eval's `video>>>query>>>times`, of one pair of times or several."""
    video, query, annotated = key.split(_JOINT)
    return video, query, _first_interval(annotated)


def _first_interval(annotated: Any) -> Interval | None:
    times = str(annotated).replace("[", " ").replace("]", " ").strip("() ").split(",")[:2]
    numbers = [_number(time.strip(" ()")) for time in times]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and None not in numbers else None


def _leaves(found: Any) -> Iterator[str]:
    """Texts of lists in lists, which lmms-eval wraps replies in."""
    if isinstance(found, list):
        for one in found:
            yield from _leaves(one)
    elif isinstance(found, str):
        yield found


def _moment_detr(content: list[dict], counts: Counter) -> Iterator[Entry]:
    """Submissions of QVHighlights (Moment-DETR, lighthouse) and ReXTime: ranked windows with scores, and a letter."""
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
            said = _of_record(record, by_uid.get(uid))
            yield Entry(said, (uid,), record.video, record.query, said.interval, source=record.where)


def _of_record(record: Record, item: Item | None) -> Prediction:
    if item is None:  # the rows are of another version of the set, in which it may have another number
        return Prediction(record.intervals if record.unit == "seconds" else ())
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
    "timechat": _timechat,
    "lmms_eval": _lmms_eval,
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
