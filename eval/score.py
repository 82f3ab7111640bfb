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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from verl_stvg.eval import baselines
from verl_stvg.eval.benchmarks import Benchmark, find
from verl_stvg.eval.benchmarks.items import Item, Prediction, Stored, item_of, read_answer, read_rows
from verl_stvg.eval.benchmarks.masks import annotated
from verl_stvg.eval.benchmarks.tracked import Library, Masks, Sources
from verl_stvg.eval.metrics.intervals import bootstrap
from verl_stvg.eval.metrics.rows import SHOWN, by_id
from verl_stvg.eval.scores import Scores, groups, items_of
from verl_stvg.inference.settings import chosen
from verl_stvg.moved import names_of
from verl_stvg.rows import answers as answer_files
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.row import Row
from verl_stvg.training.reward import compute_score

__getattr__ = names_of(__name__, dict.fromkeys(("SCORES", "ITEMS", "DURATIONS", "LENGTHS"), "verl_stvg.eval.scores"))
logger = logging.getLogger(__name__)

RUN, PREDICTIONS = "run.json", "predictions.jsonl"
_CHOICE = {"fold_size": None, "fold_index": 0, "limit": None}
_COUNTED = ("answered", "missing", "errors", "unreadable", "cut_off", "extra", "duplicates", "half_written")


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


@_uncollected()
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
    benchmark, found = _items(rows, benchmark)
    told: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0) | dict(counts or {}))
    beyond = [item for item in found if not benchmark.counts(item)]
    items = [item for item in found if benchmark.counts(item)]
    _check(items, beyond, answers, told)

    texts = [_text(answers.get(item.uid)) for item in items]
    said = [_read(item, answers.get(item.uid), text, told) for item, text in zip(items, texts, strict=True)]
    library = Library(tracks)
    shown = Library() if tracks is not None and items[0].tracks is not None else library
    sources = Sources(library, texts, masks, benchmark.scripts, [_stored(answers.get(item.uid)) for item in items])
    values, unscored = benchmark.kind.measure(items, said, sources)
    values |= benchmark.kind.variants(items, said, sources, values)
    if any(name.endswith("(lenient)") for name in values):
        unscored.append("Some answers are not in the prompt's form; columns (lenient) hold what they mean.")
    notes = [*notes, *_notes(items, beyond, benchmark, answers, told), *unscored]
    matrix = np.stack(list(values.values()), axis=1)
    return Scores(
        benchmark.name,
        items[0].split,
        benchmark.kind.main if benchmark.kind.main in values else next(iter(values)),
        dict(told),
        _with_bounds(list(values), matrix, [item.video for item in items]),
        groups(items, benchmark, list(values), matrix),
        baselines.of(benchmark.kind, items, library, shown, list(map(item_of, train)) if train is not None else None),
        items_of(items, said, answers, list(values), matrix),
        notes,
        {"verl_stvg": version("verl-stvg"), "numpy": np.__version__, "tracks": tracks and tracks.name},
    )


def _items(rows: Iterable[Mapping[str, Any]], benchmark: Benchmark | str | None) -> tuple[Benchmark, list[Item]]:
    """The benchmark, and the rows as items of its kind."""
    rows = list(rows)
    kind = benchmark.kind if isinstance(benchmark, Benchmark) else None
    items = [item_of(row, kind) for row in rows]
    if not isinstance(benchmark, Benchmark):
        benchmark, kinds = find(benchmark, items), zip(items, rows, strict=True)
        items = [item if isinstance(item, benchmark.kind) else item_of(row, benchmark.kind) for item, row in kinds]
    return benchmark, list(by_id(items, lambda item: item.uid).values())


def _with_bounds(names: Sequence[str], matrix: np.ndarray, videos: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean of each metric with the interval of a bootstrap over videos, from (items, metrics) values."""
    found = bootstrap(matrix, groups=videos if len(set(videos)) < len(videos) else None)
    rows = zip(names, found.T.tolist(), strict=True)
    return {name: dict(zip(("value", "low", "high"), row, strict=True)) for name, row in rows}


def score_files(
    files: Sequence[Path],
    answers: Mapping[str, Answer | Prediction],
    benchmark: str | None = None,
    tracks: Path | None = None,
    masks: Path | None = None,
    train: Sequence[Path] = (),
    counts: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
) -> Scores:
    """Score answers to the rows of files; other arguments are those of `score`.

    Args:
        files: of rows.
        masks: folder of the annotations that hold them (MeViS).
        train: files of rows.
        rows: those of the files that were asked; None for all.

    Raises:
        ValueError: as `score`, or a file that cannot be read.
    """
    rows = read_rows(files) if rows is None else rows
    truth = None
    if masks is not None:
        rows = list(rows)
        first = Row.of(rows[0] if rows else {})
        truth = annotated(first.dataset, first.extra.get("split") or "", masks)
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
    counts = {"half_written": int(_half_written(path))}
    found = score_files(files, answers, benchmark, tracks, masks, train, counts, rows=asked)
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
    known = {row.uid: row for row in map(Row.of, rows)}
    means: dict[str, dict[str, list[float]]] = {}
    for uid, answer in answers.items():
        if uid not in known or not answer.texts:
            continue
        source, row = known[uid].data_source, known[uid]
        scored = [compute_score(source, text, row.given_truth, row.extra) for text in answer.texts]
        for part in scored[0]:
            values = means.setdefault(source, {}).setdefault(part, [])
            values.append(float(np.mean([one[part] for one in scored])))
    return {source: {part: float(np.mean(values)) for part, values in parts.items()} for source, parts in means.items()}


# --- rows and answers -------------------------------------------------------------------------------------------------


def _check(items: Sequence[Item], beyond: Sequence[Item], answers: Mapping[str, Any], told: Counter) -> None:
    """See that rows have a truth, and answers rows; counts those that have none."""
    for item in items:
        if not item.has_truth:
            raise ValueError(
                f"row {item.uid} has no ground truth: its publisher scores this split; score another split, or send "
                "the predictions there"
            )
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
    return notes + benchmark.kind.notes(items, told)


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
