"""The annotation sets: one module each, which knows the published layout and nothing else.

A set says for each split which files it needs and reads them into `Record`; see `AnnotationSet`. To add one, write a
module with a `SET`, name it in `_MODULES`, and put a small fixture in the published layout into its test.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data_builders.records import Entries


@dataclass(frozen=True)
class Source:
    """A file that a split needs.

    Attributes:
        names: it goes by, relative to the annotation folder; the first that is there is taken.
        required: its absence is an error; otherwise the reader gets None.
    """

    names: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class AnnotationSet:
    """An annotation set.

    Attributes:
        name: on the command line, and in uids and data sources.
        title: one line about it.
        home: where its files are published.
        splits: files of each split (``train``, ``val``, ``test``), the annotation first.
        read: takes the files of a split, in that order, and the split's name; yields records in the file's order.
        template: of the prompts, unless the user names another.
    """

    name: str
    title: str
    home: str
    splits: Mapping[str, tuple[Source, ...]]
    read: Callable[[tuple[Path | None, ...], str], Entries]
    template: str


_MODULES = ("charades_sta",)


@cache
def all_sets() -> dict[str, AnnotationSet]:
    """Every set by its name."""
    found = {}
    for module in _MODULES:
        for one in importlib.import_module(f"{__name__}.{module}").SETS:
            found[one.name] = one
    return dict(sorted(found.items()))
