"""Scores: answers against the rows they answer, as a table that says what it rests on.

Whatever happened to an answer, its row stays in the denominator: one that is missing, unreadable or an error counts as
0 and is counted by name. Every value of the table is the mean of one value per row, which `items.jsonl` holds, with the
interval of a bootstrap over videos, and beside it stand baselines that never look at the video.
"""

import contextlib
import gc
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from verl_stvg.base.lock import turn, write_whole
from verl_stvg.eval import baselines
from verl_stvg.eval.benchmarks import SORTS, Benchmark, find, tubes
from verl_stvg.eval.benchmarks.items import Item, Prediction, Stored, item_of, read_answer, read_rows
from verl_stvg.eval.benchmarks.masks import Masks, annotated
from verl_stvg.eval.benchmarks.tubes import Library
from verl_stvg.eval.metrics.intervals import bootstrap
from verl_stvg.eval.metrics.rows import SHOWN, by_id
from verl_stvg.inference.generate import chosen
from verl_stvg.rows import answers as answer_files
from verl_stvg.rows.answers import Answer
from verl_stvg.training.reward import compute_score

logger = logging.getLogger(__name__)

SCORES, ITEMS, RUN, PREDICTIONS = "scores.json", "items.jsonl", "run.json", "predictions.jsonl"
DURATIONS = (15, 30, 60, 120, 300)
"""Edges of the bins of video durations, seconds; a bin holds its lower edge. Ours, as the other edges."""
LENGTHS = (5, 10, 20, 30, 60)
"""Edges of the bins of annotated lengths, seconds."""
_CHOICE = {"fold_size": None, "fold_index": 0, "limit": None}
_COUNTED = ("answered", "missing", "errors", "unreadable", "cut_off", "extra", "duplicates", "half_written")


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Attributes:
        benchmark: name.
        split: of the rows.
        main: metric that people quote.
        counts: of rows by what became of their answers.
        metrics: by name, in the order of the table: value, and bounds of its 95 % interval; fractions.
        groups: by kind of group and group: means of all metrics, and ``count``.
        baselines: by name: metrics.
        items: one object per row, in the rows' order; see `score`.
        notes: what a reader has to know, in sentences.
        made_by: what the numbers depend on besides rows and answers.
    """

    benchmark: str
    split: str
    main: str
    counts: dict[str, int]
    metrics: dict[str, dict[str, float]]
    groups: dict[str, dict[str, dict[str, float]]]
    baselines: dict[str, dict[str, float]]
    items: list[dict[str, Any]] = field(repr=False)
    notes: list[str]
    made_by: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """All but the items, as ``scores.json`` holds it."""
        found = {name: getattr(self, name) for name in ("benchmark", "split", "main")}
        rest = ("counts", "metrics", "groups", "baselines", "notes", "made_by")
        return found | {"rows": len(self.items)} | {name: getattr(self, name) for name in rest}

    def write(self, folder: Path) -> None:
        """Write ``scores.json`` and ``items.jsonl``, both of one scoring however many processes do so."""
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in self.items)
        with turn(folder):
            write_whole(folder / ITEMS, lines)
            write_whole(folder / SCORES, json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n")

    def table(self) -> str:
        """The table in plain text: percent, the interval, and the baselines."""
        names = ["metric", "%", "95 % interval", *self.baselines]
        lines = [names]
        for name, found in self.metrics.items():
            beside = [one.get(name) for one in self.baselines.values()]
            interval = f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"
            others = ["" if value is None else f"{100 * value:.2f}" for value in beside]
            lines.append([name, f"{100 * found['value']:.2f}", interval, *others])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in self.counts.items() if count)
        head = f"{self.benchmark} {self.split}: {len(self.items):,} rows ({counts})"
        return "\n".join([head, *self.notes, text])


def score(
    rows: Iterable[Mapping[str, Any]],
    answers: Mapping[str, Answer | Prediction],
    benchmark: Benchmark | str | None = None,
    tracks: Path | None = None,
    *,
    masks: Mapping[str, Masks] | None = None,
    train: Iterable[Mapping[str, Any]] | None = None,
    counts: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Scores:
    """Score answers to rows.

    Of several samples the first counts. An item holds uid, values (of every metric), error (None, or `missing`,
    `video`, `format`, `time`, `id`, `id+time`, `wrong option`), prediction and truth.

    Args:
        rows: of a benchmark, of `items.read_rows` or the like.
        answers: by uid; what another program predicted may stand for an answer.
        benchmark: to score as; None for the one that the rows are of.
        tracks: folder of track files that make a tube, or masks, of an ID: unfiltered ones; None takes those that the
            rows name, whose IDs the model saw.
        masks: annotated masks by uid, for MeViS.
        train: rows that the constant window of the baseline is fitted on; None for the rows that are scored.
        counts: of what was found while the answers were read, to be told with the rest.
        notes: sentences on it, likewise.

    Raises:
        ValueError: no rows, a row twice, of several sets or without ground truth, answers to other rows only, track
            files that are missing or of another video.
    """
    with _uncollected():
        return _scored(rows, answers, benchmark, tracks, masks, train, counts or {}, notes)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk all rows again and again, none of them garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _scored(
    rows: Iterable[Mapping[str, Any]],
    answers: Mapping[str, Answer | Prediction],
    benchmark: Benchmark | str | None,
    tracks: Path | None,
    masks: Mapping[str, Masks] | None,
    train: Iterable[Mapping[str, Any]] | None,
    counts: Mapping[str, int],
    told_before: Sequence[str],
) -> Scores:
    items = list(by_id(map(item_of, rows), lambda item: item.uid).values())
    if not isinstance(benchmark, Benchmark):
        benchmark = find(benchmark, items)
    told: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
    told.update(counts)
    beyond = [item for item in items if not benchmark.counts(item)]
    items = [item for item in items if benchmark.counts(item)]
    _check_truth(items, benchmark)
    _check_answers(items, beyond, answers, told)

    texts = [_text(answers.get(item.uid)) for item in items]
    said = [_read(item, answers.get(item.uid), text, told) for item, text in zip(items, texts, strict=True)]
    library = Library(tracks)
    shown = Library() if tracks is not None and items[0].tracks is not None else library
    values, notes = benchmark.measure(items, said, library, masks)
    stored = [_stored(answers.get(item.uid)) for item in items]
    values |= benchmark.variants(items, said, texts, library if "m_vIoU" in values else None, stored)
    if any(name.endswith("(lenient)") for name in values):
        notes.append("Some answers are not in the prompt's form; columns (lenient) hold what they mean.")
    notes = [*told_before, *_notes(items, beyond, benchmark, answers, told), *notes]
    matrix = np.stack(list(values.values()), axis=1)
    videos = [item.video for item in items]
    middle, low, high = bootstrap(matrix, groups=videos if len(set(videos)) < len(videos) else None).tolist()
    return Scores(
        benchmark.name,
        items[0].split,
        benchmark.main if benchmark.main in values else next(iter(values)),
        dict(told),
        {
            name: {"value": value, "low": least, "high": most}
            for name, value, least, most in zip(values, middle, low, high, strict=True)
        },
        _groups(items, benchmark, list(values), matrix),
        baselines.of(benchmark, items, library, shown, [item_of(row) for row in train] if train is not None else None),
        _items(items, said, answers, benchmark, values, matrix),
        notes,
        {"verl_stvg": version("verl-stvg"), "numpy": np.__version__, "tracks": tracks and tracks.name},
    )


def score_files(
    files: Sequence[Path],
    answers: Mapping[str, Answer | Prediction],
    benchmark: str | None = None,
    tracks: Path | None = None,
    masks: Path | None = None,
    train: Sequence[Path] = (),
    counts: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Scores:
    """Score answers to the rows of files; `masks` is the folder of the annotations that hold them (MeViS).

    Raises:
        ValueError: as `score`, or a file that cannot be read.
    """
    return _score(read_rows(files), files, answers, benchmark, tracks, masks, train, counts, notes)


def _score(
    rows: Iterable[Mapping[str, Any]],
    files: Sequence[Path],
    answers: Mapping[str, Answer | Prediction],
    benchmark: str | None,
    tracks: Path | None,
    masks: Path | None,
    train: Sequence[Path],
    counts: Mapping[str, int] | None,
    notes: Sequence[str] = (),
) -> Scores:
    truth = None
    if masks is not None:
        rows = list(rows)
        info = rows[0]["extra_info"] if rows else {}
        truth = annotated(info.get("dataset"), info.get("split"), masks)
    fitted = read_rows(train) if train else None
    found = score(rows, answers, benchmark, tracks, masks=truth, train=fitted, counts=counts, notes=notes)
    found.made_by["rows"] = [str(Path(file).expanduser().resolve()) for file in files]
    return found


def score_run(
    folder: Path,
    benchmark: str | None = None,
    tracks: Path | None = None,
    masks: Path | None = None,
    train: Sequence[Path] = (),
) -> dict[str, Any]:
    """Score a folder that `verl-stvg eval` wrote, write the scores into it, and return what ``scores.json`` holds.

    Args:
        folder: with ``run.json``, which names the files of rows, and ``predictions.jsonl``.
        benchmark: as in `score`.
        tracks: as in `score`.
        masks: annotation folder, for MeViS.
        train: files of rows, as in `score`.

    Raises:
        ValueError: as `score`; a missing or damaged file.
    """
    run = _run(folder / RUN)
    files = [Path(file) for file in run["rows"]]
    asked = chosen(list(read_rows(files, run.get("video_root"))), *(run.get(k, d) for k, d in _CHOICE.items()))
    path = folder / PREDICTIONS
    answers = answer_files.read(path)
    found = _score(asked, files, answers, benchmark, tracks, masks, train, {"half_written": int(_half_written(path))})
    found.write(folder)
    logger.info("%s", found.table())
    return found.summary()


def rewards(rows: Iterable[Mapping[str, Any]], answers: Mapping[str, Answer]) -> dict[str, dict[str, float]]:
    """Return by data source the means of the reward and of its parts, as verl's validation logs them.

    They are those of ``val-core/<source>/reward/mean@n`` and ``val-aux/<source>/<part>/mean@n``: of samples, then of
    rows, in the order of the answers, so that those of a dump of verl give its numbers to the last digit. Rows without
    a text are left out, as verl knows no others.

    Raises:
        ValueError: a row without a reward, or whose ground truth it cannot use.
    """
    known = {row["extra_info"]["uid"]: row for row in rows}
    means: dict[str, dict[str, list[float]]] = {}
    for uid, answer in answers.items():
        if uid not in known or not answer.texts:
            continue
        source, truth = known[uid]["data_source"], known[uid]["reward_model"]["ground_truth"]
        scored = [compute_score(source, text, truth, known[uid]["extra_info"]) for text in answer.texts]
        for part in scored[0]:
            values = means.setdefault(source, {}).setdefault(part, [])
            values.append(np.mean([one[part] for one in scored]))
    return {source: {part: float(np.mean(values)) for part, values in parts.items()} for source, parts in means.items()}


# --- rows and answers -------------------------------------------------------------------------------------------------


def _check_truth(items: Sequence[Item], benchmark: Benchmark) -> None:
    for item in items:
        if not (item.intervals or benchmark.kind == "masks" or (benchmark.kind == "questions" and item.answer)):
            raise ValueError(
                f"row {item.uid} has no ground truth: its publisher scores this split; score another split, or send "
                "the predictions there"
            )


def _check_answers(items: Sequence[Item], beyond: Sequence[Item], answers: Mapping[str, Any], told: Counter) -> None:
    known = {item.uid for item in items}
    others = known | {item.uid for item in beyond}
    extra = [uid for uid in answers if uid not in others]
    told["extra"] += len(extra)
    if not items:
        raise ValueError("there are no rows to score; give the file of a benchmark's rows")
    if answers and not any(uid in known for uid in answers):
        raise ValueError(
            f"none of {len(answers)} answers is to one of the {len(items)} rows: answers are to {extra[:SHOWN]}, rows "
            f"are {[item.uid for item in items[:SHOWN]]}; give the rows that were answered"
        )


def _text(answer: Answer | Prediction | None) -> str | None:
    return answer.texts[0] if isinstance(answer, Answer) and answer.error is None and answer.texts else None


def _stored(answer: Answer | Prediction | None) -> str | None:
    """What a file of lmms-eval holds for an item."""
    return answer.text if isinstance(answer, Prediction) else _text(answer) if isinstance(answer, Stored) else None


def _read(item: Item, answer: Answer | Prediction | None, text: str | None, told: Counter) -> Prediction | None:
    """What an answer says, with what became of it counted."""
    if answer is None:
        told["missing"] += 1
        return None
    if isinstance(answer, Prediction):
        told["answered"] += 1
        found = answer.finite()
        if found is not answer and answer != Prediction():
            told["not_finite"] += 1
        told["unreadable"] += found is None
        return found
    if text is None:
        told["errors"] += 1
        return None
    told["answered"] += 1
    told["cut_off"] += bool(answer.finish) and answer.finish[0] == "length"
    found = read_answer(item, text)
    told["unreadable"] += found is None
    return found


def _notes(
    items: Sequence[Item], beyond: Sequence[Item], benchmark: Benchmark, answers: Mapping[str, Any], told: Counter
) -> list[str]:
    """Sentences about what is not as it should be."""
    notes = []
    split = items[0].split
    wanted = benchmark.published.get(split)
    if wanted is not None and wanted != len(items):
        told["published"] = wanted
        notes.append(f"Rows in the file: {len(items):,}; {benchmark.name} {split} has {wanted:,}.")
    if benchmark.published and split != benchmark.split:
        notes.append(f"The split is {split}; {benchmark.name} is customarily scored on {benchmark.split}.")
    if beyond:
        told["beyond"] = len(beyond)
        notes.append(f"{len(beyond):,} rows of the file are not part of the benchmark and are not scored.")
    if told["annotated"]:
        notes.append("The predictions are the annotation itself: numbers below 100 % are what no answer can reach.")
    lost = [item.uid for item in items if item.uid not in answers]
    if lost:
        notes.append(f"{len(lost):,} rows have no answer and count as 0, such as {', '.join(lost[:SHOWN])}.")
    if told["extra"]:
        known = {item.uid for item in (*items, *beyond)}
        extra = [uid for uid in answers if uid not in known]
        such = f", such as {', '.join(extra[:SHOWN])}" if extra else ""
        notes.append(f"{told['extra']:,} answers are to no row and are left out{such}.")
    if hopeless := sum(bool(item.intervals) and all(end <= start for start, end in item.intervals) for item in items):
        told["unanswerable"] = hopeless
        notes.append(f"{hopeless:,} rows have an annotated interval of no length, which no answer can meet.")
    lost_boxes, of_rows = tubes.out_of_reach(items) if benchmark.kind == "tubes" else (0, 0)
    if lost_boxes:
        told["boxes_out_of_reach"] = lost_boxes
        notes.append(
            f"{lost_boxes:,} annotated boxes of {of_rows:,} rows lie outside of the picture or have no area, and no "
            "answer can meet them."
        )
    if any(item.object_id is not None or item.object_ids for item in items):
        unknown = sum(item.object_id is None and not item.object_ids for item in items)
        if unknown:
            told["no_true_id"] = unknown
            notes.append(
                f"{unknown:,} rows have no true ID, because no tracked object met their tube; they count as 0."
            )
    return notes


def _half_written(path: Path) -> bool:
    """Whether the last line of a file has no end: its writer was killed."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return size > 0 and file.read(1) != b"\n"


def _run(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a folder that `verl-stvg eval` wrote, or use `verl-stvg score`")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run["rows"], list):
            raise TypeError("rows is no list of files")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: does not say which files of rows were answered ({error!r}); run eval again"
        ) from error
    return run


# --- what is written --------------------------------------------------------------------------------------------------


def _groups(items: Sequence[Item], benchmark: Benchmark, names: Sequence[str], matrix: np.ndarray) -> dict:
    sorts = {"video duration": (_bins([item.duration for item in items], DURATIONS), _labels(DURATIONS))}
    if all(item.intervals for item in items):
        lengths = [item.intervals[0][1] - item.intervals[0][0] for item in items]
        sorts["interval length"] = (_bins(lengths, LENGTHS), _labels(LENGTHS))
    asked = {key: name for key, name in SORTS.items() if any(item.extra.get(key) for item in items)}
    for key, name in (asked | dict(benchmark.sorts)).items():
        kinds = [str(item.extra.get(key)) for item in items]
        sorts[name] = (kinds, sorted(set(kinds)))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (labels, order) in sorts.items():
        found[name] = {}
        owner = np.array(labels)
        for kind in order:
            chosen_rows = matrix[owner == kind]
            if len(chosen_rows):
                means = dict(zip(names, chosen_rows.mean(axis=0).tolist(), strict=True))
                found[name][kind] = means | {"count": len(chosen_rows)}
    return found


def _bins(values: Sequence[float], edges: Sequence[float]) -> list[str]:
    labels = _labels(edges)
    return [labels[k] for k in np.searchsorted(edges, values, side="right").tolist()]


def _labels(edges: Sequence[float]) -> list[str]:
    return [
        f"under {edges[0]} s",
        *(f"{low} to {high} s" for low, high in zip(edges, edges[1:], strict=False)),
        f"{edges[-1]} s and more",
    ]


def _items(
    items: Sequence[Item],
    said: Sequence[Prediction | None],
    answers: Mapping[str, Answer | Prediction],
    benchmark: Benchmark,
    values: Mapping[str, np.ndarray],
    matrix: np.ndarray,
) -> list[dict[str, Any]]:
    names = list(values)
    found = []
    errors = benchmark.errors(items, [one or Prediction() for one in said], values)
    for item, one, row, wrong in zip(items, said, matrix.tolist(), errors, strict=True):
        found.append(
            {
                "uid": item.uid,
                "values": dict(zip(names, row, strict=True)),
                "error": wrong if one is not None else _why_none(answers.get(item.uid)),
                "prediction": _shown(one) if one is not None else None,
                "truth": _truth(item),
            }
        )
    return found


def _why_none(answer: Answer | Prediction | None) -> str:
    if answer is None:
        return "missing"
    return "video" if isinstance(answer, Answer) and (answer.error is not None or not answer.texts) else "format"


def _shown(one: Prediction) -> dict[str, Any]:
    ids = one.object_ids
    return {
        "intervals": [list(interval) for interval in one.intervals],
        "object_id": ids[0] if len(ids) == 1 else None,
        **({"object_ids": list(ids)} if len(ids) > 1 else {}),
        "option": one.option,
        **({"frames": [min(one.tube), max(one.tube)]} if one.tube else {}),
    }


def _truth(item: Item) -> dict[str, Any]:
    return {
        "intervals": [list(interval) for interval in item.intervals],
        "duration": item.duration,
        "object_id": item.object_id,
        **({"object_ids": list(item.object_ids)} if item.object_ids else {}),
        "answer": item.answer,
    }
