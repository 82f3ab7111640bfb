"""Temporal-R1's own form: a YAML file that names lists of prompts with normalised solutions, or one list by itself."""

import math
import posixpath
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from verl_stvg.data_builders.read import AnnotationError, json_items, json_lines
from verl_stvg.data_builders.records import Entries, Problem, Record, flaw, once, record
from verl_stvg.data_builders.sets import AnnotationSet, Source

SEED = 0
"""Of ``random:N``, for every list anew: the same lines are drawn whenever, and beside whatever, a list is read."""
UNMEASURED = "charades_train"
"""The source that goes without ``video_length``: its length is that of the decoded file."""
KEYS = ("json_path", "data_folder", "sampling_strategy")
STRATEGY = re.compile(r"all|(first|end|random):(\d{1,12})(%?)", re.ASCII)


def read(files: tuple[Path], split: str) -> Entries:
    """YAML with ``datasets``, each with ``json_path`` (beside the YAML if relative), ``data_folder`` and, if not all
    of it is wanted, ``sampling_strategy``: ``first:N``, ``end:N`` or ``random:N``, N also in ``%``, rounded up. Or one
    such ``.json`` or ``.jsonl`` by itself. An item of a list is ``{dataset, video, problem, solution: [s, e],
    video_length}``. Videos, and ``data_folder``, are relative to the video root.

    Pitfalls: ``solution`` is in fractions of the video, here multiplied by ``video_length`` and kept as
    ``solution_start`` and ``solution_end``; without a length (charades_train only, any other source needs one)
    ``intervals`` are the fractions, until the file has been measured; fractions above 1 occur; ``problem`` is the whole
    user text. The original takes every folder by the ``dataset`` of a list's first item and cannot draw at random;
    here a list may mix sources, ``data_folder`` belongs to its list, and random lines come in the list's order, from
    a fixed seed.
    """
    (path,) = files
    if path.suffix in (".yaml", ".yml"):
        yield from once(_configured(path))
    else:
        yield from once(_listed(path, ""))


def lists(files: tuple[Path]) -> list[Path]:
    """The lists that a YAML names."""
    (path,) = files
    if path.suffix not in (".yaml", ".yml"):
        return []
    paths = [entry.get("json_path") for entry in _config(path) if isinstance(entry, dict)]
    return [path.parent / one for one in paths if isinstance(one, str)]


def _configured(path: Path) -> Entries:
    for number, entry in enumerate(_config(path)):
        at = f"{path}: datasets[{number}]"
        if not isinstance(entry, dict):
            raise AnnotationError(f"{at}: needs the keys {', '.join(KEYS)}, found {entry!r:.60}")
        if unknown := [key for key in entry if key not in KEYS]:
            raise AnnotationError(f"{at}: unknown key {unknown[0]!r}; the keys are {', '.join(KEYS)}")
        for key in ("json_path", "data_folder"):
            if not isinstance(entry.get(key), str):
                raise AnnotationError(f"{at}: {key} must be a path, found {entry.get(key)!r:.60}")
        strategy = entry.get("sampling_strategy", "all")
        match = STRATEGY.fullmatch(strategy) if isinstance(strategy, str) else None
        if not match or (match[2] and int(match[2]) == 0):
            forms = "all, first:N, end:N or random:N with N from 1 on, also in %"
            raise AnnotationError(f"{at}: sampling_strategy must be {forms}, found {strategy!r:.60}")
        yield from _listed(path.parent / entry["json_path"], entry["data_folder"], match)


def _config(path: Path) -> list[Any]:
    if not path.is_file():
        raise AnnotationError(f"{path}: no such file; correct --annotations")
    try:
        found = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise AnnotationError(f"{path}: not valid YAML ({error}); correct the file") from error
    if not isinstance(found, dict) or not isinstance(found.get("datasets"), list) or not found["datasets"]:
        raise AnnotationError(f"{path}: needs a key datasets with a list that is not empty")
    if unknown := [key for key in found if key != "datasets"]:
        raise AnnotationError(f"{path}: unknown key {unknown[0]!r}; the only key is datasets")
    return found["datasets"]


def _listed(path: Path, folder: str, strategy: re.Match[str] | None = None) -> Entries:
    taken = _taken(path, strategy)
    counts: dict[tuple[str, str], int] = {}
    for position, (place, item) in enumerate(_items(path)):
        where = f"{path.name} {place}"
        if problem := flaw(item, ("dataset", "video", "problem", "solution")):
            if position in taken:
                yield Problem(where, problem)
            continue
        named = str(item["dataset"]), str(item["video"])
        count = counts.get(named, 0)
        counts[named] = count + 1
        if position in taken:
            key = f"{path.stem}/{'/'.join(named)}/{count}"
            yield _item(f"{where} ({item['video']})", key, folder, item)


def _item(where: str, key: str, folder: str, item: dict) -> Record | Problem:
    solution, length = item["solution"], item.get("video_length")
    if not isinstance(item["dataset"], str):
        return Problem(where, f"dataset: is not a text, found {item['dataset']!r:.60}")
    if not isinstance(solution, list) or len(solution) != 2 or not all(map(_is_number, solution)):
        return Problem(where, f"solution: is not a pair of numbers, found {solution!r:.60}")
    if length is None and item["dataset"] != UNMEASURED:
        return Problem(where, f"video_length: missing or null, which only {UNMEASURED} may be")
    if length is not None and not (_is_number(length) and length > 0):
        return Problem(where, f"video_length: is not a number of seconds above 0, found {length!r:.60}")
    video = item["video"]
    return record(
        where,
        {"query": "problem", "prompt": "problem", "intervals.0": "solution"},
        key=key,
        video=posixpath.join(folder, video) if isinstance(video, str) else video,
        query=item["problem"],
        unit="fractions" if length is None else "seconds",
        intervals=(solution,) if length is None else ((solution[0] * length, solution[1] * length),),
        duration=length,
        prompt=item["problem"],
        extra={"dataset": item["dataset"], "solution_start": solution[0], "solution_end": solution[1]},
    )


def _taken(path: Path, strategy: re.Match[str] | None) -> range | set[int]:
    """Positions of a list that a strategy takes, a match of `STRATEGY`; None takes all."""
    if strategy is None or strategy[1] is None:
        return range(2**63)
    order, number, percent = strategy.groups()
    total = sum(1 for _ in _items(path))
    wanted = min(total, math.ceil(int(number) * total / 100) if percent else int(number))
    if order == "random":
        return set(random.Random(SEED).sample(range(total), wanted))
    return range(wanted) if order == "first" else range(total - wanted, total)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        yield from ((f"line {number}", item) for number, item in json_lines(path))
    elif path.suffix == ".json":
        yield from ((f"entry {number}", item) for number, item in json_items(path))
    else:
        raise AnnotationError(f"{path}: json_path must end in .json or .jsonl; rename or convert the file")


def _is_number(found: Any) -> bool:
    return type(found) in (int, float) and -1e12 < found < 1e12


SETS = (
    AnnotationSet(
        "temporal_r1",
        "Temporal-R1's training form: prompts with normalised solutions, 12,408 of them on Charades in its release",
        "appletea2333/temporal_r1; code: appletea233/Temporal-R1; videos: Charades v1, 480p, or the list's own",
        {
            split: (Source((f"{split}.yaml", f"{split}.json", f"{split}.jsonl", *more)),)
            for split, more in (("train", ("charades_train.json",)), ("val", ()), ("test", ()))
        },
        read,
        "temporal_r1",
        lists,
    ),
)
