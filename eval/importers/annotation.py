"""The annotation itself, as if a program had predicted it: a check of rows and metrics, which is worth everything."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from verl_stvg.data_builders.records import Record
from verl_stvg.data_builders.sets import NAMES, Source, find
from verl_stvg.eval.benchmarks.base import Item, Prediction
from verl_stvg.eval.importers.entries import Entry

ANNOTATION = "annotation"
"""Format of the file that rows are built from; it is read by the set's own builder, not from its content."""


def is_annotation(file: Path, items: Sequence[Item]) -> bool:
    """Whether a file is the annotation that the rows are of: its name says so, and the set's reader finds the rows.

    Predictions may go by such a name too (test.jsonl), but readers of annotations refuse what they do not know.
    """
    if not any(file.name == PurePosixPath(name).name for name in _source(items).names):
        return False
    uids = {item.uid for item in items}
    try:
        return any(entry.names[0] in uids and entry.truth is not None for entry in read_annotation(file, items))
    except (ValueError, KeyError, TypeError, AttributeError):  # predictions in the file's place
        return False


def _source(items: Sequence[Item]) -> Source:
    first = items[0] if items else None
    splits = find(first.dataset).splits if first is not None and first.dataset in NAMES else {}
    return splits[first.split][0] if first is not None and first.split in splits else Source(())


def read_annotation(file: Path, items: Sequence[Item]) -> Iterator[Entry]:
    """What is annotated, as if it had been predicted: a check of rows and metrics, which is worth everything.

    Raises:
        ValueError: the rows are of no annotation set, or the set's reader cannot read the file.
    """
    source = _source(items)
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
    unit = record.unit
    times = tuple((_in_seconds(start, unit, item), _in_seconds(end, unit, item)) for start, end in record.intervals)
    return Prediction(times, item.true_ids, record.answer, tube)


def _in_seconds(bound: float, unit: str, item: Item) -> float:
    if unit == "fractions":
        return bound * item.duration
    return item.clock.seconds(int(bound)) - item.shown if unit == "frames" and item.clock else bound
