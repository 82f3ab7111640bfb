"""Folders of scored evaluations, read.

A folder holds what `verl-stvg eval` and `verl-stvg score` write: ``scores.json`` and ``items.jsonl``, and where a model
was run here, ``run.json`` and ``predictions.jsonl``. `comparison` sets them side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verl_stvg.eval.report.runs import is_number, read_lines, read_record
from verl_stvg.rows import answers

ERRORS = {
    None: "right",
    "time": "wrong time",
    "id": "wrong ID",
    "id+time": "wrong ID and time",
    "wrong option": "wrong option",
    "format": "unreadable",
    "video": "unusable video",
    "missing": "no answer",
}
"""Kinds of errors of ``items.jsonl``, in the page's order, and what the page calls them."""
UNANSWERED = ("missing", "video")
UNREAD = (*UNANSWERED, "format")


@dataclass(frozen=True)
class Item:
    """A line of ``items.jsonl``: what a row was worth and why, what was predicted, and what is true."""

    uid: str
    values: Mapping[str, float]
    error: str | None
    prediction: Mapping
    truth: Mapping


@dataclass(frozen=True)
class Evaluation:
    """A scored folder.

    Attributes:
        folder: of the files.
        name: of the model, as the page calls it; unique on the page.
        record: ``run.json``; empty if there is none.
        scores: ``scores.json``.
        items: by uid, in row order.
        said: answers by uid; empty if there is no ``predictions.jsonl``.
        notices: what is missing, in sentences.
    """

    folder: Path
    name: str
    record: dict
    scores: dict
    items: dict[str, Item]
    said: dict[str, answers.Answer]
    notices: list[str] = field(default_factory=list)

    @property
    def benchmark(self) -> str:
        """Name of the benchmark, and the split."""
        return " ".join(filter(None, (self.scores.get("benchmark") or "unnamed rows", self.scores.get("split"))))

    @property
    def made_by(self) -> dict:
        """What made the answers and the scores: ``run.json`` over what ``scores.json`` says."""
        return {**(self.scores.get("made_by") or {}), **self.record}

    @property
    def rows_files(self) -> list[Path]:
        """Parquet files of the rows."""
        return [Path(file) for file in self.made_by.get("rows") or ()]

    def value(self, metric: str) -> float | None:
        """Of a metric; None if it was not scored."""
        return (self.scores["metrics"].get(metric) or {}).get("value")


def read(folder: Path) -> Evaluation:
    """Read a scored folder.

    Raises:
        ValueError: ``scores.json`` or ``items.jsonl`` is missing or damaged, or a line is no item; names file, line and
            remedy.
    """
    path = folder / "scores.json"
    scores = read_record(path)
    if scores is None:
        raise ValueError(f"{path}: no such file; score the folder first (`verl-stvg score`)")
    if not isinstance(scores.get("metrics"), dict) or not scores["metrics"]:
        raise ValueError(f"{path}: holds no metrics; score the folder again")
    for metric, row in scores["metrics"].items():
        if not isinstance(row, dict) or not is_number(row.get("value")):
            raise ValueError(f"{path}: metric {metric!r} has no value; score the folder again")
    path = folder / "items.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; score the folder again")
    records, torn = read_lines(path)
    if torn or not records:
        raise ValueError(f"{path}: {'its last line is cut off' if torn else 'is empty'}; score the folder again")
    items = {}
    for place, found in records:
        item = _item(found, f"{path}, line {place}")
        if item.uid in items:
            raise ValueError(f"{path}, line {place}: a second item {item.uid!r}; score the folder again")
        items[item.uid] = item
    record = read_record(folder / "run.json") or {}
    path = folder / "predictions.jsonl"
    said = answers.read(path) if path.is_file() else {}
    notices = [] if said else ["There is no predictions.jsonl, so the answers' texts are not shown."]
    if any("frames" in item.prediction and "tube" not in item.prediction for item in items.values()):
        notices.append("Answered boxes are not drawn, because an earlier version scored this folder; score it again.")
    return Evaluation(folder, folder.resolve().name, record, scores, items, said, notices)


def _item(found: dict, where: str) -> Item:
    values, error = found.get("values"), found.get("error")
    if not isinstance(found.get("uid"), str) or not isinstance(values, dict):
        raise ValueError(f"{where}: no uid or no values; score the folder again")
    if error not in ERRORS:
        raise ValueError(f"{where}: error {error!r} is none of {', '.join(filter(None, ERRORS))}; score it again")
    numbers = {name: float(value) for name, value in values.items() if is_number(value)}
    return Item(found["uid"], numbers, error, found.get("prediction") or {}, found.get("truth") or {})


def names(found: Sequence[tuple[str | None, Path]]) -> list[str]:
    """Names that tell models apart: the models' own, else their folders', else as much of these paths as it takes.

    Args:
        found: of each evaluation the model's path or hub name, and the folder.
    """
    ways: list[Callable[[str | None, Path], str]] = [
        lambda model, folder: model_name(model) if model else folder.resolve().name,
        lambda model, folder: folder.resolve().name,
        lambda model, folder: "/".join(folder.resolve().parts[1:][-2:]),
        lambda model, folder: "/".join(folder.resolve().parts[1:][-3:]),
    ]
    tried = [[way(model, folder) for model, folder in found] for way in ways]
    numbered = [f"{k}: {name}" for k, name in enumerate(tried[-1], 1)]
    return next((chosen for chosen in tried if len(set(chosen)) == len(chosen)), numbered)


def model_name(model: str) -> str:
    """Last part of a model's path or hub name that says something: verl's checkpoints end in ``actor/huggingface``."""
    parts = [part for part in Path(model).parts if part not in ("actor", "huggingface", "/")]
    return parts[-1] if parts else model


def main_metric(evaluations: Sequence[Evaluation]) -> str:
    """The metric that clips are chosen by: the one that the scores name, else the first that every item has.

    Raises:
        ValueError: no metric has a value for every item.
    """
    first = evaluations[0]
    named = [first.scores["main"]] if first.scores.get("main") else []
    for metric in (*named, *first.scores["metrics"]):
        if all(metric in item.values for one in evaluations for item in one.items.values()):
            return metric
    raise ValueError(
        f"{first.folder / 'items.jsonl'}: no metric of scores.json has a value in every line; score the folder again"
    )


def check_same_rows(evaluations: Sequence[Evaluation]) -> None:
    """See that evaluations can be compared item by item.

    Raises:
        ValueError: their rows differ.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if differing := first.items.keys() ^ other.items.keys():
            raise ValueError(
                f"{other.folder}: its rows are not those of {first.folder} ({len(differing)} are only in one, such as "
                f"{min(differing)!r}); score both on the same rows, or write two reports"
            )
