"""Predictions of any program, brought to the rows they answer.

Every format is read into the same two things: what was predicted, and what names the row (an ID, or a video with its
query and, where the same query occurs twice, its annotated times). Where a program names nothing but the place of its
row in the annotation, the annotated times have to agree. Nothing is guessed beyond that: what fits no row, or several
that cannot be told apart, is counted and quoted.

    entries     a prediction with what names its row; values that all files write alike
    content     a file's JSON, text or pickle, and which program wrote it
    matching    rows by everything that names them
    ours, tubes, moments, lmms_eval, annotation
                what files of a family of programs hold
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verl_stvg.eval.benchmarks.base import Item, Prediction, Stored
from verl_stvg.eval.benchmarks.items import read_answer
from verl_stvg.eval.importers import lmms_eval, moments, ours, tubes
from verl_stvg.eval.importers.annotation import ANNOTATION, is_annotation, read_annotation
from verl_stvg.eval.importers.content import detect, read_content
from verl_stvg.eval.importers.entries import Entry, Reader, Said
from verl_stvg.eval.importers.matching import Rows
from verl_stvg.eval.metrics.lenient import read_time
from verl_stvg.eval.metrics.readers import extract_time
from verl_stvg.eval.metrics.rows import SHOWN
from verl_stvg.rows.answers import Answer

FORMATS: dict[str, Reader] = ours.FORMATS | tubes.FORMATS | moments.FORMATS | lmms_eval.FORMATS
"""What reads each format but `ANNOTATION`."""


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
    found = _Collected(Rows(items))
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file of predictions; correct the path")
        found.add(file, form, items)
    ambiguous, in_order = found.in_order_of_rows()
    found.counts["extra"] += len(found.strangers)
    found.counts["ambiguous"] += len(ambiguous)
    lost = found.strangers + ambiguous
    if lost and not found.answers:
        raise ValueError(
            f"{files[0]}: none of {len(lost)} predictions is for one of the {len(items)} rows; they are for "
            f"{list(map(str, lost[:SHOWN]))}, rows are {[item.uid for item in items[:SHOWN]]}; give the rows that were "
            "answered"
        )
    if not found.forms:
        raise ValueError(f"{files[0]}: holds no predictions; was the program ended before its first one?")
    if found.first is not None and found.forms.keys() - {"verl", "answers"}:
        _check_readable(files[0], items, next(iter(found.forms)), found.first, found.answers)
    notes = _notes(found.forms, found.strangers, ambiguous, in_order)
    return Found(found.answers, dict(+found.counts), tuple(found.forms), notes)


@dataclass
class _Collected:
    """Predictions of files that are being read.

    Attributes:
        rows: that they may be for.
        answers: by uid.
        counts: of what was wrong.
        forms: that were read, in order.
        strangers: predictions that fit no row.
        alike: predictions, with their forms, that fit several rows, by the uids of these.
        first: the first prediction that fits a row.
    """

    rows: Rows
    answers: dict[str, Said] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    forms: dict[str, None] = field(default_factory=dict)
    strangers: list[Entry] = field(default_factory=list)
    alike: dict[tuple[str, ...], list[tuple[Entry, str]]] = field(default_factory=dict)
    first: Entry | None = None

    def add(self, file: Path, form: str, items: Sequence[Item]) -> None:
        """Read a file.

        Raises:
            ValueError: it is of another format, or cannot be read.
        """
        form = ANNOTATION if form == "auto" and is_annotation(file, items) else form
        content = read_content(file, self.counts) if form != ANNOTATION else None
        form = detect(file, content) if form == "auto" else form
        self.counts["annotated"] += form == ANNOTATION
        try:
            for entry in read_annotation(file, items) if form == ANNOTATION else FORMATS[form](content, self.counts):
                self.forms.setdefault(form)
                fitting = self.rows.find(entry)
                if len(fitting) == 1:
                    self.keep(entry, fitting[0].uid, form)
                elif fitting:
                    self.alike.setdefault(tuple(item.uid for item in fitting), []).append((entry, form))
                else:
                    self.strangers.append(entry)
        except (LookupError, ArithmeticError, TypeError, AttributeError, ValueError) as error:
            if form == ANNOTATION and isinstance(error, ValueError):  # of the set's reader, which names the place
                raise
            raise ValueError(
                f"{file}: not of the format {form} ({error!r}); name the right one with --format"
            ) from error

    def keep(self, entry: Entry, uid: str, form: str) -> None:
        """Take a prediction for a row, beside one that is there where both can be kept."""
        if uid not in self.answers:
            self.first = self.first or entry
            self.answers[uid] = replace(entry.said, uid=uid) if isinstance(entry.said, Answer) else entry.said
            return
        both = _joined(self.answers[uid], entry.said, form == "verl")
        self.counts["duplicates"] += both is None
        self.answers[uid] = both or self.answers[uid]

    def in_order_of_rows(self) -> tuple[list[Entry], int]:
        """Give predictions that fit several rows to these in their order, as both come from one annotation.

        Returns:
            those that are not as many as their rows, or a multiple of it, and how many were given to rows.
        """
        ambiguous: list[Entry] = []
        taken = 0
        for uids, entries in self.alike.items():
            if len(entries) % len(uids):
                ambiguous += [entry for entry, _ in entries]
                continue
            for number, (entry, form) in enumerate(entries):
                self.keep(entry, uids[number % len(uids)], form)
            taken += len(entries)
        return ambiguous, taken


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
