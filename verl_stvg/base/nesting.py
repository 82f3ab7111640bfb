"""JSON from other hands, refused by its depth before it is read.

Deep nesting costs a reader memory: ijson keeps the whole way to every open bracket, which is the square of the depth.
What it reads are records with lists in lists; more than `DEEPEST` brackets within each other are no such file.
"""

import json
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

DEEPEST = 64
"""Most brackets within each other. The deepest of our files, and of the annotation files that we read, has seven."""
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, np.int64)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_BLOCK = 1 << 16


class TooDeep(ValueError):
    """JSON with more brackets within each other than `DEEPEST`."""

    def __init__(self):
        super().__init__(f"more than {DEEPEST} brackets within each other")


class Depth:
    """Follows the depth of JSON that comes in blocks. Brackets in texts are none."""

    def __init__(self):
        self._depth, self._inside, self._escaping = 0, 0, False

    def follow(self, block: bytes) -> None:
        """Go on through the next bytes.

        Raises:
            TooDeep: here.
        """
        if self._escaping:
            block, self._escaping = block[1:], not block
        block = _ESCAPED.sub(b"", block)
        self._escaping |= block.endswith(b"\\")
        parts = block.split(b'"')
        brackets = b"".join(parts[self._inside :: 2]).translate(None, _OTHERS)
        self._inside ^= (len(parts) - 1) & 1
        if brackets:
            depths = self._depth + _STEP[np.frombuffer(brackets, np.uint8)].cumsum()
            self._depth = int(depths[-1])
            if depths.max() > DEEPEST:
                raise TooDeep


class Shallow:
    """A binary file of JSON that raises `TooDeep` while it is read, before whoever reads it has those bytes."""

    def __init__(self, file: IO[bytes]):
        self._file, self._depth = file, Depth()

    def read(self, size: int = -1) -> bytes:
        """As the file's."""
        block = self._file.read(size)
        self._depth.follow(block)
        return block


def is_shallow(value: Any, deepest: int = DEEPEST) -> bool:
    """Whether no more than so many lists and objects of JSON lie within each other."""
    if not isinstance(value, dict | list):
        return True
    within = value.values() if isinstance(value, dict) else value
    return deepest > 0 and all(is_shallow(one, deepest - 1) for one in within)


def loads(text: str | bytes, object_pairs_hook: Callable | None = None) -> Any:
    """`json.loads`.

    Raises:
        TooDeep: too many brackets within each other.
        ValueError: no JSON.
    """
    count = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if count > DEEPEST:
        raw, depth = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), Depth()
        for start in range(0, len(raw), _BLOCK):
            depth.follow(raw[start : start + _BLOCK])
    return json.loads(text, object_pairs_hook=object_pairs_hook)
