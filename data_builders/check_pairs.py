"""What is wrong with rows beside other rows: the same row twice, and videos of evaluation in training."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from verl_stvg.data_builders.check_videos import Looks, Seen
from verl_stvg.data_builders.videos import Facts
from verl_stvg.video.identity import ENDINGS

_YOUTUBE = re.compile(r"(?:^|[_/])([A-Za-z0-9_-]{11})(?:[._/]|$)")


def _content(one: Seen, looks: Looks) -> str | None:
    """Hash of the video's bytes; None if they could not be read."""
    facts = looks[one.video][0] if one.video in looks else None
    return facts.content if isinstance(facts, Facts) else None


def _stem(name: str) -> str:
    """A video's path without the ending; dots elsewhere in it stay."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in ENDINGS else name


def twins(files: list[Path], seen: list[Seen], looks: Looks) -> Iterator[tuple[Seen, str, str, bool]]:
    """Rows that ask the same about the same video, with the same answer or another; uids that are there twice.

    The same video is one of the same bytes; where they are not known, one of the same name.

    Args:
        files: of the rows, by the number that `Seen.file` has; named in the messages.
        seen: what was seen of each row, in the order of the files.
        looks: what is known of each video.

    Yields:
        The later of two rows, the problem, a detail that names the other one, and whether it spoils training.
    """
    uids: dict[str, Seen] = {}
    asked: dict[tuple, Seen] = {}
    for one in seen:
        if one.place:
            continue
        first = uids.setdefault(one.uid, one)
        if first is not one:
            yield _beside(files, one, "uid twice", first, True)
        content = _content(one, looks)
        video = ("name", one.name) if content is None else ("bytes", content)
        first = asked.setdefault((video, one.same, one.evaluation), one)
        if first is not one:
            same = first.truth == one.truth
            yield _beside(files, one, "duplicate" if same else "same query, another truth", first, False)


def _beside(
    files: list[Path], one: Seen, problem: str, other: Seen, serious: bool, what: str = ""
) -> tuple[Seen, str, str, bool]:
    return one, problem, f"{what}as {files[other.file]} row {other.row} ({other.uid})", serious


def leaks(files: list[Path], seen: list[Seen], looks: Looks) -> Iterator[tuple[Seen, str, str, bool]]:
    """Training rows whose video is also one of evaluation: by its bytes, its name, or the YouTube id within it.

    Where both videos were read and differ, their names prove nothing: then it is worth knowing that they have one name.

    Args:
        files: as in `twins`.
        seen: rows of training and of evaluation.
        looks: what is known of each video.

    Yields:
        The training row, the problem, a detail that names the other row, and whether it spoils the evaluation.
    """
    evaluated: dict[tuple[str, str], Seen] = {}
    stems: dict[str, Seen] = {}
    for one in seen:
        if one.evaluation:
            for mark in _marks(one, looks):
                evaluated.setdefault(mark, one)
            stems.setdefault(_stem(one.name), one)
            if _content(one, looks) is None:
                evaluated["name", one.name] = one
    for one in seen:
        if one.evaluation or not one.name:
            continue
        for mark in _marks(one, looks):
            if (other := evaluated.get(mark)) and (mark[0] != "name" or not _differ(one, other, looks)):
                yield _beside(files, one, "evaluation video in training", other, True, f"{one.which}same {mark[0]} ")
                break
        else:
            if other := stems.get(_stem(one.name)):
                bytes_ = "other bytes" if _differ(one, other, looks) else "bytes that could not be compared"
                what = f"{one.which}same name but {bytes_} "
                yield _beside(files, one, "name of an evaluation video", other, False, what)


def _differ(one: Seen, other: Seen, looks: Looks) -> bool:
    contents = _content(one, looks), _content(other, looks)
    return None not in contents and contents[0] != contents[1]


def _marks(one: Seen, looks: Looks) -> Iterator[tuple[str, str]]:
    if content := _content(one, looks):
        yield "bytes", content
    yield "name", one.name
    if found := _YOUTUBE.search(PurePosixPath(_stem(one.name)).name):
        yield "YouTube id", found[1]
