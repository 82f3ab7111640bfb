"""Files of a model's answers: one JSON line per row, appended as answers come, so that a killed pass loses one batch.

    {"uid": "hc_stvg_v2/val/3", "texts": ["<think>...</answer>"], "finish": ["stop"], "tokens": [57]}
    {"uid": "hc_stvg_v2/val/4", "error": "videos/4.mp4: no such video"}

What made them stands in a JSON file beside them (`continues`); answers of another model, other rows or other settings
cannot be continued by mistake. It imports neither torch nor verl: whoever scores answers starts with it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_stvg.base import nesting
from verl_stvg.base.lock import write_whole
from verl_stvg.rows.row import Row

_OLDER = {"template": {}, "opened": ""}
"""What is meant by a file that was written before it had these keys."""


class AnswersError(ValueError):
    """An answers file that cannot be read or continued; the message names file, line and remedy."""


@dataclass(frozen=True)
class Answer:
    """What a model said about a row.

    Attributes:
        uid: of the row.
        texts: one per sample; none where there is an error. Each starts with what the chat template has written of it.
        finish: per sample, ``stop`` or ``length`` (cut off); empty if unknown.
        tokens: per sample, generated; empty if unknown.
        error: why there is no answer: the video or the prompt cannot be used.
    """

    uid: str
    texts: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    error: str | None = None

    def line(self) -> str:
        """The JSON line, without what is empty."""
        return json.dumps({key: value for key, value in asdict(self).items() if value}, ensure_ascii=False) + "\n"


def read(path: Path) -> dict[str, Answer]:
    """Answers of a file by uid, in the file's order. A last line that a killed run left half written is not one.

    Raises:
        AnswersError: a missing file, a line that is no answer, or two answers to one row.
    """
    if not path.is_file():
        raise AnswersError(f"{path}: no such file of answers")
    found: dict[str, Answer] = {}
    for number, line in enumerate(_whole_lines(path), 1):
        answer = _parsed(path, number, line)
        if answer.uid in found:
            raise AnswersError(f"{path}: line {number}: a second answer to {answer.uid!r}; remove one of them")
        found[answer.uid] = answer
    return found


def append(path: Path, answers: Iterable[Answer]) -> None:
    """Add answers to a file, whole or, if the process is killed, up to some line; cuts off a half-written last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.truncate(_end_of_last_line(file))
        file.write("".join(answer.line() for answer in answers).encode())
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, answers: Iterable[Answer]) -> None:
    """Replace a file of answers by these, at once."""
    write_whole(path, "".join(answer.line() for answer in answers))


def continues(path: Path, made_by: Mapping[str, Any]) -> None:
    """Note what makes the answers of a folder, or see that it is what made those that are there.

    Args:
        path: JSON file.
        made_by: rows (a hash), model, sampling and whatever else the answers depend on.

    Raises:
        AnswersError: the file says something else.
    """
    given = {**_OLDER, **json.loads(json.dumps(made_by))}
    if path.is_file():
        there = made(path)
        other = [key for key in sorted(there.keys() | given.keys()) if there.get(key) != given.get(key)]
        if other:
            said = "; ".join(f"{key} was {there.get(key)!r} and is {given.get(key)!r}" for key in other)
            raise AnswersError(f"{path.parent}: holds other answers ({said}); choose another folder or remove this one")
        return
    write_whole(path, json.dumps(given, indent=2, ensure_ascii=False) + "\n")


def made(path: Path) -> dict[str, Any]:
    """What makes the answers of a folder, from the file of `continues`."""
    return {**_OLDER, **json.loads(path.read_text(encoding="utf-8"))}


def hash_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of what a model is asked: uid, prompt and videos of each row, in order."""
    digest = hashlib.sha256()
    for row in rows:
        asked = [Row.of(row).uid, row["prompt"], row.get("videos")]
        digest.update(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def _whole_lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


def _end_of_last_line(file) -> int:
    file.seek(0, os.SEEK_END)
    end = file.tell()
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def parse(line: str) -> Answer:
    """The answer of a line.

    Raises:
        ValueError: it is none.
    """
    found = nesting.loads(line)
    if not isinstance(found, dict) or not isinstance(found.get("uid"), str):
        raise ValueError("an object with a uid that is text is expected")
    lists = [found.get(key, []) for key in ("texts", "finish", "tokens")]
    texts, finish, tokens = lists
    if not all(isinstance(given, list) for given in lists) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts must be a list of texts, finish and tokens lists")
    return Answer(found["uid"], tuple(texts), tuple(finish), tuple(tokens), found.get("error"))


def _parsed(path: Path, number: int, line: str) -> Answer:
    try:
        return parse(line)
    except ValueError as error:
        raise AnswersError(f"{path}: line {number} is no answer ({error}); remove it or generate it again") from error
