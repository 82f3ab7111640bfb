"""Referred masks (MeViS): the tracked masks of all answered IDs against the annotated ones, in every frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pycocotools import mask as coco

from verl_stvg.data_builders.records import Record
from verl_stvg.data_builders.sets import find
from verl_stvg.eval.benchmarks.base import Item, Prediction, Predictions, Values, only
from verl_stvg.eval.benchmarks.tracked import Library, Masks, Sources, Tracked, identity
from verl_stvg.eval.metrics.masks import j_f
from verl_stvg.video.rle import AnyRLE, encoded


@dataclass(frozen=True)
class Referred(Tracked):
    """A row that asks for the objects that an expression refers to. Its true masks are in the annotation folder."""

    main: ClassVar[str] = "J&F"

    @property
    def has_truth(self) -> bool:
        return True

    @classmethod
    def measure(cls, items: Sequence[Item], said: Predictions, sources: Sources) -> tuple[Values, list[str]]:
        return measure(only(cls, items), said, sources.library, sources.masks)


def annotated(dataset: str, split: str, folder: Path) -> dict[str, Masks]:
    """Annotated masks of a split by uid: those of all objects of an expression, united, for each frame.

    Args:
        dataset: name of the set.
        split: of the set.
        folder: of its annotation files.

    Raises:
        ValueError: a file that is missing or cannot be read.
    """
    source = find(dataset)
    files = []
    for one in source.splits[split]:
        file = next((folder / name for name in one.names if (folder / name).exists()), None)
        if file is None:
            raise ValueError(f"{folder}: has no {' or '.join(one.names)}; give the folder of {dataset}'s annotations")
        files.append(file)
    return {
        f"{dataset}/{split}/{record.key}": record.masks
        for record in source.read(tuple(files), split)
        if isinstance(record, Record) and record.masks is not None
    }


def measure(
    items: Sequence[Tracked], said: Predictions, library: Library, masks: Mapping[str, Masks] | None
) -> tuple[Values, list[str]]:
    """Return J, F and J&F per expression, (N,), and the F1 of its IDs where the true ones are known.

    The answered time does not matter, as in the benchmark: the objects are masked in every frame. A frame of the video
    that its tracks lack has no mask.

    Args:
        items: of a set with masks.
        said: what was read from each answer; None for nothing.
        library: of track files, whose masks the answered IDs are.
        masks: annotated, by uid; None if they are not given.

    Raises:
        ValueError: masks of a row are not known, or tracks have another size than its masks.
    """
    table: Values = {}
    notes = []
    if masks is None:
        notes.append("J&F is not scored: it needs the annotated masks; give the annotation folder (--masks).")
    elif not all(map(library.knows, items)):
        notes.append("J&F is not scored: rows name no track files; give their folder (--tracks).")
    else:
        values = np.array([_j_f(item, one, library, masks) for item, one in zip(items, said, strict=True)])
        table |= {"J&F": values.mean(axis=1), "J": values[:, 0], "F": values[:, 1]}
    if any(item.object_ids for item in items):
        table["ID F1"] = identity(items, said)
    if not table:
        raise ValueError(f"nothing of these rows can be scored: {' '.join(notes)}")
    return table, notes


def _j_f(item: Item, one: Prediction | None, library: Library, masks: Mapping[str, Masks]) -> tuple[float, float]:
    if item.uid not in masks:
        raise ValueError(f"row {item.uid}: its masks are not in the annotation folder; is it the right release?")
    true = masks[item.uid]
    if one is None:
        return 0.0, 0.0
    tracks = library.objects(item).tracks
    chosen = [track for track in tracks.tracks if track.object_id in one.object_ids]
    found = [_united([track.masks[k] for track in chosen if k in track.masks]) for k in range(len(true))]
    try:
        return j_f(found, [[mask] for mask in true], (tracks.height, tracks.width))
    except ValueError as error:
        raise ValueError(f"row {item.uid}: {error}; track the video at the size of its masks") from error


def _united(masks: Sequence[AnyRLE]) -> AnyRLE | None:
    if len(masks) < 2:
        return masks[0] if masks else None
    return coco.merge([encoded(mask) for mask in masks])
