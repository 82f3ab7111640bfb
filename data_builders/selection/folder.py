"""What a stage leaves in its folder: frozen rows, answers, judgements; and how they come together again.

    rows.parquet, manifest.json   the rows that are asked, their order and their hash        `prepare`
    answers/<fold>/               `run.json` and `predictions.jsonl`, by `verl_stvg.inference.generate`
    judged.jsonl, summary.json    one line per row, in the order of the rows, and the counts  `judge`

A fold number means the same rows only as long as the row list stands still, so it is written once and every later run
is compared with it. Files appear whole or not at all: a run that is killed and started again ends with the same ones.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.base.lock import alone, replacing, write_whole
from verl_stvg.data_builders.read import json_lines
from verl_stvg.data_builders.selection.pool import SelectionError, as_read, pool, with_fields
from verl_stvg.data_builders.selection.samples import Sample, sample_of
from verl_stvg.moved import names_of
from verl_stvg.rows import answers
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.files import read_rows
from verl_stvg.rows.row import entries_of

__getattr__ = names_of(__name__, dict.fromkeys(("Pool", "write_rows"), "verl_stvg.data_builders.selection.pool"))

ROWS, MANIFEST, ANSWERS, JUDGED, SUMMARY = "rows.parquet", "manifest.json", "answers", "judged.jsonl", "summary.json"
FORMAT_VERSION = 1  # raise it whenever the same arguments would give other files
_SHOWN = 5
_PLAN_TYPES = {"rule": pa.string(), "fps": pa.float64()}


@dataclass(frozen=True)
class Stage:
    """A way of asking and judging.

    Attributes:
        name: of the stage.
        asking: all that the asked rows depend on besides the rows, as it stands in the manifest.
        rules: of judging, as they stand in the summary.
        ask: the row that is asked, from a row whose ``video_root`` is the folder that the paths of its videos start
            from.
        judge: what an answer says about a row, the keys that follow those of `line_of`.
        finish: changes the lines by what only all of them together can say.
        notes: what a reader of the summary should know, from all lines.
        video_fields: columns that asked rows have in ``videos`` beyond those of the rows.
    """

    name: str
    asking: Mapping[str, Any]
    rules: Mapping[str, Any]
    ask: Callable[[dict], dict]
    judge: Callable[[Sample, Answer], dict]
    finish: Callable[[list[dict]], None] = lambda lines: None
    notes: Callable[[list[dict]], list[str]] = lambda lines: []
    video_fields: Mapping[str, pa.DataType] = field(default_factory=dict)


# --- rows -------------------------------------------------------------------------------------------------------------


def prepare(
    stage: Stage,
    files: Iterable[Path],
    out: Path,
    video_root: Path | None = None,
    fit: Mapping[str, float | str] | None = None,
) -> dict:
    """Freeze the rows that a stage asks, or see that they are those that were frozen; returns the manifest.

    Args:
        stage: that asks.
        files: of the rows.
        out: folder of the stage.
        video_root: see `verl_stvg.rows.files.root_of`.
        fit: keys of the plan in place of those of the rows, see `verl_stvg.rows.fit`; None: those that were frozen.

    Raises:
        SelectionError: the folder holds other rows or another stage, or there are no rows.
    """
    source = pool(files, video_root)
    if fit is None:
        fit = read_manifest(out).get("fit") if (out / MANIFEST).is_file() else None
    fields = {key: _PLAN_TYPES.get(key, pa.int64()) for key in fit or ()}
    schema = with_fields(source.schema, "videos", {**fields, **stage.video_fields})
    truths, datasets = hashlib.sha256(), Counter()

    def asked() -> Iterator[dict]:
        for row in source.rows():
            sample = sample_of(row)
            datasets[sample.dataset] += 1
            if fit:
                row["videos"] = entries_of(row["videos"], where=sample.uid, fit=fit)
            truths.update(json.dumps([sample.uid, row["reward_model"]], sort_keys=True).encode())
            yield stage.ask(row | {"video_root": str(source.root)})

    with alone(out, wait=True):  # folds may be asked at the same time
        there = out / MANIFEST
        frozen = there.is_file()
        with contextlib.nullcontext() if frozen else _new_rows(out / ROWS, schema) as writer:
            hashed = answers.hash_rows(as_read(asked(), schema, writer))
            if not datasets:
                raise SelectionError(f"{', '.join(map(str, source.files))}: no rows; build them again")
        manifest = {
            "format_version": FORMAT_VERSION,
            "stage": stage.name,
            "asking": dict(stage.asking),
            "rows": {"count": datasets.total(), "hash": hashed, "truth": truths.hexdigest()[:16]},
            "datasets": dict(sorted(datasets.items())),
            "video_root": os.path.relpath(source.root, out.resolve()),
            **({"fit": dict(fit)} if fit else {}),
        }
        if frozen:
            _same(out, json.loads(there.read_text(encoding="utf-8")), json.loads(json.dumps(manifest)))
            return manifest
        write_json(there, manifest)  # last: a folder without it is not prepared
        return manifest


@contextlib.contextmanager
def _new_rows(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        yield writer


def _same(out: Path, there: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    if different := [key for key in manifest if there.get(key) != manifest[key]]:
        said = "; ".join(f"{key} was {there.get(key)!r} and is {manifest[key]!r}" for key in different)
        raise SelectionError(
            f"{out}: holds other rows ({said}); they cannot be asked further here: choose another folder or remove it"
        )


# --- answers and judgements -------------------------------------------------------------------------------------------


def line_of(sample: Sample, answer: Answer, made_by: Mapping[str, Any], version: str) -> dict:
    """What every line of judgements begins with; source: VideoTG-R1 notes, 1.4.

    Args:
        sample: the row.
        answer: to it; the first of its texts is kept.
        made_by: what made the answers, of which ``model`` is kept.
        version: of the prompt.
    """
    return {
        "uid": sample.uid,
        "dataset": sample.dataset,
        "index": sample.index,
        "video_path": sample.video,
        "duration": sample.duration,
        "query": sample.query,
        "span": [list(span) for span in sample.spans],
        "model": made_by.get("model"),
        "prompt_version": version,
        "raw_response": answer.texts[0] if answer.texts else None,
        "error": answer.error,
    }


def judge(stage: Stage, out: Path) -> list[dict]:
    """Judge all answers of a folder, write `judged.jsonl` and `summary.json`, and return the lines.

    Lines are in the order of the rows, with the keys of `line_of`, then those of the stage.

    Raises:
        SelectionError: another stage's folder, rows without an answer, answers without a row, or answers of different
            models.
    """
    manifest = read_manifest(out)
    if manifest["stage"] != stage.name or manifest["asking"] != json.loads(json.dumps(dict(stage.asking))):
        raise SelectionError(
            f"{out}: was prepared for {manifest['stage']} with {manifest['asking']}, not for {stage.name} with "
            f"{dict(stage.asking)}; give the same options, or choose another folder"
        )
    found, made_by = read_answers(out)
    lines, missing = [], []
    for row in read_rows(out / ROWS):
        sample = sample_of(row)
        answer = found.pop(sample.uid, None)
        if answer is None:
            missing.append(sample.uid)
        elif not missing:
            version = stage.asking.get("prompt_version") or sample.template
            lines.append(line_of(sample, answer, made_by, version) | stage.judge(sample, answer))
    if missing:
        raise MissingAnswers(
            f"{out}: {len(missing)} of {manifest['rows']['count']} rows have no answer: {some(missing)}; run the "
            "remaining folds (or the interrupted one again)"
        )
    if found:
        raise SelectionError(
            f"{out / ANSWERS}: {len(found)} answers belong to none of the rows: {some(list(found))}; remove the "
            "folder that does not belong there"
        )
    stage.finish(lines)
    with alone(out, wait=True):
        write_lines(out / JUDGED, lines)
        write_json(out / SUMMARY, _summary(stage, manifest, made_by, lines))
    return lines


class MissingAnswers(SelectionError):
    """Rows that have no answer yet."""


def read_answers(out: Path) -> tuple[dict[str, Answer], dict[str, Any]]:
    """All answers of a folder by uid, and what made them.

    Raises:
        SelectionError: folds were answered by different models or settings, or differently twice.
    """
    found: dict[str, Answer] = {}
    made_by: dict[str, Any] = {}
    for folder in sorted(path.parent for path in (out / ANSWERS).glob("*/predictions.jsonl")):
        run = folder / "run.json"
        if not run.is_file():
            raise SelectionError(f"{run}: no such file, so nobody knows what made these answers; answer them again")
        made = answers.made(run)
        if different := [key for key in _OF_ALL_FOLDS if made_by and made.get(key) != made_by[key]]:
            raise SelectionError(f"{folder}: was made otherwise than the folds before it ({', '.join(different)})")
        made_by = made_by or {key: made.get(key) for key in ("model", *_OF_ALL_FOLDS, "versions")}
        for uid, answer in answers.read(folder / "predictions.jsonl").items():
            if found.setdefault(uid, answer) != answer:
                raise SelectionError(f"{folder}: answers {uid!r} otherwise than another fold; remove one of the two")
    return found, made_by


# not the model, which may have different paths on different machines
_OF_ALL_FOLDS = ("weights", "sampling", "template", "opened")


def read_manifest(out: Path) -> dict:
    """The manifest of a prepared folder.

    Raises:
        SelectionError: there is none.
    """
    if not (out / MANIFEST).is_file() or not (out / ROWS).is_file():
        raise SelectionError(f"{out}: no folder of a selection stage; name the folder that --out made")
    return json.loads((out / MANIFEST).read_text(encoding="utf-8"))


def read_summary(out: Path) -> dict:
    """The summary of a judged folder.

    Raises:
        SelectionError: it is not judged yet.
    """
    if not (out / SUMMARY).is_file():
        raise SelectionError(f"{out}: not judged yet; run its stage to the end first")
    return json.loads((out / SUMMARY).read_text(encoding="utf-8"))


def _summary(stage: Stage, manifest: Mapping[str, Any], made_by: Mapping[str, Any], lines: list[dict]) -> dict:
    by_set: dict[str, Counter] = defaultdict(Counter)
    for line in lines:
        counts = by_set[line["dataset"]]
        counts["rows"] += 1
        counts["unreadable"] += not line["parse_ok"] and line["error"] is None
        if line["drop_reason"]:
            counts[f"dropped: {line['drop_reason']}"] += 1
    return {
        "stage": stage.name,
        "asking": dict(stage.asking),
        "rules": dict(stage.rules),
        "made_by": dict(made_by),
        "rows": manifest["rows"],
        "datasets": {name: dict(sorted(counts.items())) for name, counts in sorted(by_set.items())},
        "notes": stage.notes(lines),
    }


def read_judged(path: Path, needed: Iterable[str]) -> dict[str, dict]:
    """Judgements by uid, from a stage's folder or from any file of JSON lines with the needed keys.

    Raises:
        ValueError: no such file, a line that lacks a key, or two lines about one row.
    """
    file = path / JUDGED if path.is_dir() else path
    if not file.is_file():
        here = " has no judgements yet" if path.is_dir() else " is no folder of a stage and no file"
        raise SelectionError(
            f"{file}: no such file, so {path}{here}; run that stage of `verl-stvg select` to its end, or correct the "
            "path"
        )
    found: dict[str, dict] = {}
    for number, line in json_lines(file):
        if lacks := [key for key in ("uid", *needed) if key not in line]:
            raise SelectionError(
                f"{file}: line {number} lacks {', '.join(lacks)}; see docs/selection.md for the schema"
            )
        if found.setdefault(line["uid"], line) is not line:
            raise SelectionError(f"{file}: line {number}: a second line about {line['uid']!r}; remove one of the two")
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, all or none."""
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def some(uids: list[str]) -> str:
    """The first few of some uids, for a message."""
    return ", ".join(uids[:_SHOWN]) + (f" and {len(uids) - _SHOWN} more" if len(uids) > _SHOWN else "")
