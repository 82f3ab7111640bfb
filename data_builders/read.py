"""Annotation files, read piece by piece, with errors that say which file and where in it.

Files come from many hands: cut off, in another encoding, with a key twice. `json.load` reads the last of two equal keys
and keeps the first out of sight, and holds a file of a hundred megabytes in memory several times over.
"""

import csv
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from verl_stvg.base import nesting


class AnnotationError(ValueError):
    """An annotation file that cannot be read at all; the message names the file, the place and the remedy."""


class Twice(AnnotationError):
    """A key that a file has twice."""


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and content of every line that is not blank, in UTF-8.

    Raises:
        AnnotationError: no such file, or not UTF-8.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise AnnotationError(
                    f"{path}: line {number} is not UTF-8 ({error.reason}); convert the file to UTF-8"
                ) from error
            if text:
                yield number, text


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Number, from 1, and object of every line of a JSONL file.

    Raises:
        AnnotationError: no such file, not UTF-8, or a line that is not one JSON object.
    """
    for number, line in text_lines(path):
        try:
            found = nesting.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or a tower of brackets
            raise AnnotationError(f"{path}: line {number}: {error}; {_AGAIN}") from error
        if not isinstance(found, dict):
            raise AnnotationError(f"{path}: line {number} is not a JSON object; {_AGAIN}")
        yield number, found


def json_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Position, from 0, and value of every element of the list that a JSON file holds, one at a time.

    Raises:
        AnnotationError: no such file, or it is cut off, not UTF-8, or holds no list.
    """
    yield from enumerate(_parsed(path, "item", ijson.items, "["))


def json_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of every entry of the object that a JSON file holds, one at a time, in the file's order.

    Raises:
        AnnotationError: no such file, or it is cut off, not UTF-8, holds no object, or has a key twice.
    """
    seen = set()
    for key, value in _parsed(path, "", ijson.kvitems, "{"):
        if key in seen:
            raise Twice(f"{path}: key {key!r} occurs twice; remove one of the two")
        seen.add(key)
        yield key, value


def json_whole(path: Path) -> Any:
    """Everything a JSON file holds; for small ones that stand beside the annotation, such as durations.

    Raises:
        AnnotationError: no such file, or it is cut off, not UTF-8, or has a key twice.
    """
    with _opened(path) as file:
        try:
            return nesting.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{path}: {error}; {_AGAIN}") from error


def json_start(path: Path) -> str:
    """First character of a JSON file that is not blank: ``[``, ``{`` or what else."""
    with _opened(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("latin-1")


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str | None, Any]]]:
    """Line, from 1, and fields of every row of a CSV file with a header; those beyond the header stand under None.

    Raises:
        AnnotationError: no such file, not UTF-8, or a column is missing.
    """
    with _opened(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise AnnotationError(f"{path}: has no column {', '.join(missing)}; {_AGAIN}")
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise AnnotationError(f"{path}: line {reader.line_num}: {error}; {_AGAIN}") from error


def plain_pickle(path: Path) -> Any:
    """What a pickle holds, if that is nothing but dictionaries, lists, tuples, sets, texts and numbers.

    A pickle is a program. This one is allowed to build containers and nothing else: whatever it wants to import or call
    is refused before it happens.

    Raises:
        AnnotationError: no such file, no pickle, or one that asks for more than plain data.
    """
    with _opened(path) as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8").load()
        except AnnotationError as error:
            raise AnnotationError(f"{path}: {error}") from error
        except Exception as error:  # a damaged pickle raises anything
            raise AnnotationError(f"{path}: not a readable pickle ({error!r}); {_AGAIN}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise AnnotationError(
            f"this pickle wants to import {module}.{name}; only plain data is read. Do not load it: get the file from "
            "its publisher, or convert it to JSON where you trust it"
        )


_AGAIN = "download or export the file again"


def _opened(path: Path) -> io.BufferedReader:
    if not path.is_file():
        raise AnnotationError(f"{path}: no such file; correct --annotations, or download it")
    return path.open("rb")


def _parsed(path: Path, prefix: str, parse, opening: str) -> Iterator[Any]:
    if (start := json_start(path)) != opening:
        kind = "a list" if opening == "[" else "an object"
        raise AnnotationError(f"{path}: holds no JSON {kind}, it begins with {start!r}; {_AGAIN}")
    with _opened(path) as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        try:
            yield from parse(nesting.Shallow(file), prefix, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError, nesting.TooDeep) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AnnotationError(f"{path}: not valid JSON near byte {file.tell()} ({said}); {_AGAIN}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise Twice(f"key {key!r} occurs twice")
    return found
