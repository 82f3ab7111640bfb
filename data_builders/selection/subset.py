"""The rows to train on: a share of those that the stages left, spread over sets and difficulties as these are.

It writes the uids it chose and the rows themselves, with their difficulty and bin, which the curriculum reads. Sets and
bins keep their proportions; within them a hash of seed and uid decides, so that the same judgements and seed give the
same rows anywhere. Source: VideoTG-R1 notes, 2.1; the size, the strata and the seed are ours.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_stvg.base.digest import sha256
from verl_stvg.base.lock import whole
from verl_stvg.data_builders.selection import difficulty, draw
from verl_stvg.data_builders.selection.folder import (
    JUDGED,
    MANIFEST,
    read_judged,
    some,
    write_json,
)
from verl_stvg.data_builders.selection.pool import Pool, SelectionError, pool, with_fields, write_rows
from verl_stvg.rows.row import Row

UIDS, TRAIN = "uids.txt", "train.parquet"
FORMAT_VERSION = 1  # raise it whenever the same arguments would give other files
FIELDS = {"difficulty": pa.float64(), "bin": pa.string()}
"""Fields of ``extra_info`` that chosen rows have beyond those of the rows."""


@dataclass(frozen=True)
class Rules:
    """How many are chosen.

    Attributes:
        share: of all rows, before anything was left out; ours, after "about 10 %".
        size: number of rows instead of the share.
        easy_share: of the easy rows that may be chosen; 1 keeps their natural share.
        seed: of the draw; ours.
    """

    share: float = 0.10
    size: int | None = None
    easy_share: float = 1.0
    seed: int = 42

    def __post_init__(self):
        if not 0 < self.share <= 1 or not 0 <= self.easy_share <= 1:
            raise ValueError(f"share={self.share} and easy_share={self.easy_share} are shares, between 0 and 1")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size}: at least one row must be chosen")


@dataclass(frozen=True)
class Judgements:
    """What the stages found: folders of stages, or files of JSON lines with these keys; None where one was not run.

    Attributes:
        reflection: ``uid``, ``drop_reason``; a reason leaves the row out.
        difficulty: ``uid``, ``iou``, ``difficulty``, ``bin``, ``drop_reason``; the same.
        variance: ``uid``, ``kept``, ``drop_reason``; what is not kept is left out.
        uids: a file of uids, one per line; all others are left out.
    """

    reflection: Path | None = None
    difficulty: Path | None = None
    variance: Path | None = None
    uids: Path | None = None


def select(
    files: Iterable[Path], out: Path, found: Judgements, rules: Rules | None = None, video_root: Path | None = None
) -> dict:
    """Choose rows, write them into a folder that appears when all of it is written, and return its manifest.

    Files: ``uids.txt``, ``train.parquet`` in the order of the rows, ``manifest.json``. A folder that holds the same
    already is kept.

    Args:
        files: the rows that were judged.
        out: folder that is made.
        found: what is known about them.
        rules: how many are chosen.
        video_root: see `verl_stvg.rows.files.root_of`.

    Raises:
        ValueError: rows that nobody judged, rows of a benchmark, or a folder that holds something else.
    """
    rules, source = rules or Rules(), pool(files, video_root)
    sets = {row.uid: row.dataset for row in _training(source)}
    hard = read_judged(found.difficulty, ("iou", "difficulty", "bin", "drop_reason")) if found.difficulty else {}
    dropped = _left_out(sets, found, hard)
    left = [uid for uid in sets if uid not in dropped]
    bins = {uid: hard[uid]["bin"] if hard else None for uid in left}
    strata = Counter((sets[uid], bins[uid]) for uid in left)
    allowed = {name: int(Fraction(str(rules.easy_share)) * n) if name[1] == "easy" else n for name, n in strata.items()}
    size = rules.size or int(Fraction(str(rules.share)) * len(sets))
    parts = draw.shares(allowed, size)
    chosen: set[str] = set()
    members: dict[tuple, list[str]] = {name: [] for name in strata}
    for uid in draw.shuffled(rules.seed, left):
        members[sets[uid], bins[uid]].append(uid)
    for name, uids in members.items():
        chosen.update(uids[: parts[name]])
    if not chosen:
        raise SelectionError(
            f"{out}: no row is chosen ({len(sets)} rows, {len(left)} left, size {size}); raise --share"
        )
    counts = {
        "asked": size,
        "rows": len(sets),
        "left": len(left),
        "dropped": dict(sorted(Counter(dropped.values()).items())),
        "strata": {
            "/".join(filter(None, name)): {"left": strata[name], "chosen": parts[name]}
            for name in sorted(strata, key=str)
        },
    }
    made_by = {"how": "stratified", "rules": asdict(rules), "judgements": _hashes(found)}
    return write(source, out, chosen, hard, made_by | counts)


def write(source: Pool, out: Path, chosen: set[str], hard: Mapping[str, dict], made_by: Mapping[str, Any]) -> dict:
    """Write chosen rows with their difficulty and bin, and return the manifest.

    Args:
        source: rows.
        out: folder that is made.
        chosen: uids of rows.
        hard: ``difficulty`` and ``bin`` by uid, empty if they are not known.
        made_by: what chose them, as it stands in the manifest.

    Raises:
        FolderInUse: another process is writing the folder.
        SelectionError: uids without a row, or a folder that holds something else.
    """
    uids: list[str] = []

    def rows() -> Iterator[dict]:
        for row in _training(source):
            if row.uid in chosen:
                uids.append(row.uid)
                judged = hard.get(row.uid, {})
                yield {**row, "extra_info": {**row.extra, **{name: judged.get(name) for name in FIELDS}}}

    with whole(out) as work:
        write_rows(work / TRAIN, rows(), with_fields(source.schema, "extra_info", FIELDS))
        if lost := sorted(chosen - set(uids)):
            raise SelectionError(f"{len(lost)} chosen uids are no rows of these files: {some(lost)}; give all files")
        (work / UIDS).write_text("".join(f"{uid}\n" for uid in uids), encoding="utf-8", newline="\n")
        manifest = {
            "format_version": FORMAT_VERSION,
            "stage": "subset",
            **made_by,
            "chosen": len(uids),
            "video_root": os.path.relpath(source.root, out.resolve()),
            "sha256": {name: sha256(work / name) for name in (TRAIN, UIDS)},
        }
        write_json(work / MANIFEST, manifest)
        if out.exists():
            _same(out, json.loads((work / MANIFEST).read_text(encoding="utf-8")))
    return manifest


def _same(out: Path, manifest: Mapping[str, Any]) -> None:
    path = out / MANIFEST
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if different := [key for key in manifest if there.get(key) != manifest[key]]:
        raise SelectionError(
            f"{out}: holds something else ({', '.join(different)}); remove it, or choose another --out"
        )


def _training(source: Pool) -> Iterator[Row]:
    for row in map(Row.of, source.rows()):
        if row.is_evaluation:
            split = row.extra["split"]
            raise SelectionError(f"{row.uid}: a row of the split {split} is for evaluation; give training rows only")
        yield row


def _left_out(sets: Mapping[str, str], found: Judgements, hard: Mapping[str, dict]) -> dict[str, str]:
    """Why rows are left out, by uid; the first reason counts."""
    reasons: dict[str, str] = {}
    if found.reflection:
        judged = read_judged(found.reflection, ("drop_reason",))
        _check_all(sets, judged, found.reflection)
        reasons = {uid: judged[uid]["drop_reason"] for uid in sets if judged[uid]["drop_reason"]} | reasons
    if found.difficulty:
        _check_all(sets, hard, found.difficulty)
        for uid in sets:
            if (one := hard[uid]["bin"]) is not None and one not in difficulty.BINS:
                raise SelectionError(
                    f"{found.difficulty}: {uid}: bin {one!r} is none of {', '.join(difficulty.BINS)}; correct it"
                )
        reasons = {uid: hard[uid]["drop_reason"] for uid in sets if hard[uid]["drop_reason"]} | reasons
    if found.variance:
        judged = read_judged(found.variance, ("kept", "drop_reason"))
        _check_all(sets, judged, found.variance)
        reasons = {uid: judged[uid]["drop_reason"] for uid in sets if not judged[uid]["kept"]} | reasons
    if found.uids:
        if not found.uids.is_file():
            raise SelectionError(f"{found.uids}: no such file; --uids is a file with one uid per line")
        listed = set(found.uids.read_text(encoding="utf-8").splitlines())
        if lost := sorted(listed - sets.keys()):
            raise SelectionError(f"{found.uids}: {len(lost)} uids are no rows of these files: {some(lost)}")
        reasons = {uid: "not in the list" for uid in sets if uid not in listed} | reasons
    return reasons


def _check_all(sets: Mapping[str, str], judged: Mapping[str, Any], path: Path) -> None:
    if lost := [uid for uid in sets if uid not in judged]:
        raise SelectionError(
            f"{path}: says nothing about {len(lost)} of {len(sets)} rows: {some(lost)}; judge them too"
        )


def _hashes(found: Judgements) -> dict[str, str | None]:
    paths = {name: path / JUDGED if path and path.is_dir() else path for name, path in vars(found).items()}
    return {name: sha256(path) if path else None for name, path in paths.items()}
