"""Content of a file of predictions, and which program wrote it."""

import io
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_stvg.base import nesting
from verl_stvg.eval.importers.annotation import ANNOTATION
from verl_stvg.eval.importers.lmms_eval import JOINT
from verl_stvg.eval.importers.tubes import BLOCK

LINE_MARKS: dict[str, set[str]] = {
    "verl": {"output", "gts"},
    "answers": {"uid", "texts"},
    "lmms_eval": {"doc_id", "filtered_resps"},
    "moment_detr": {"pred_relevant_windows"},
    "time_r1": {"pred", "target", "output_text"},
    "videomind": {"pred", "conf"},
}
OBJECT_MARKS: dict[str, set[str]] = {"timechat": {"timestamp", "query", "vid"}}


def read_content(file: Path, counts: Counter) -> Any:
    """JSON of a file, whole or by line; text of others; the predictions of a pickled checkpoint."""
    if file.suffix in (".pkl", ".pickle"):
        with file.open("rb") as stream:
            return _Plain(io.BytesIO(stream.read())).load()
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    if file.suffix == ".txt" and BLOCK.search(text):
        return text
    if not text.strip():
        raise ValueError(f"{file}: is empty; was the program ended before its first prediction?")
    try:
        whole = nesting.loads(text)
    except ValueError:
        return _lines(file, text, counts)
    return [whole] if isinstance(whole, dict) and "\n" not in text.strip() and _is_line(whole) else whole


def _lines(file: Path, text: str, counts: Counter) -> list[dict]:
    found = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = nesting.loads(line)
        except ValueError as error:
            if number == len(lines) and found:
                counts["half_written"] += 1
                continue
            raise ValueError(f"{file}: line {number} is no JSON ({error}); remove it or predict again") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{file}: line {number} is no JSON object; remove it or predict again")
        found.append(entry)
    return found


class _Inert:
    """What a pickle wanted to make of a class: nothing happens."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None:
        pass


class _Plain(pickle.Unpickler):
    """A pickle is a program; this one makes plain data, and nothing of any class it names."""

    def find_class(self, module: str, name: str) -> Any:
        return set if (module, name) == ("builtins", "set") else _Inert


def detect(file: Path, content: Any) -> str:
    """The format of a file's content.

    Raises:
        ValueError: none is known that looks like it, or several are.
    """
    if isinstance(content, str) or (isinstance(content, dict) and "processed_items" in content):
        return "stvg_r1"
    entries = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    first = next(iter(entries), None)
    if isinstance(content, dict):
        if isinstance(first, dict) and {"timestamps", "sentences"} <= first.keys():
            return ANNOTATION
        if isinstance(first, dict) and {"bbox", "st_frame"} <= first.keys():
            return ANNOTATION if isinstance(first["bbox"], list) else "hc_stvg"
        if JOINT in next(iter(content), ""):
            return "temporal_r1"
        return _only(file, first, OBJECT_MARKS, "by_uid")
    if isinstance(first, dict):
        return _only(file, first, LINE_MARKS, "lines")
    raise ValueError(f"{file}: the format cannot be told; name it with --format, or see the documentation for `lines`")


def _only(file: Path, first: Any, marks: Mapping[str, set[str]], otherwise: str) -> str:
    """The one format whose fields a first entry has."""
    found = [form for form, fields in marks.items() if isinstance(first, dict) and fields <= first.keys()]
    if len(found) > 1:
        raise ValueError(
            f"{file}: may be of the format {' or '.join(found)}, as its first entry has the fields of both; name the "
            "right one with --format"
        )
    return found[0] if found else otherwise


def _is_line(found: dict) -> bool:
    return any(fields <= found.keys() for fields in LINE_MARKS.values()) or bool({"uid", "qid", "id", "vid"} & {*found})
