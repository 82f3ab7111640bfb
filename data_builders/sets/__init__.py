"""The annotation sets: one module each, which knows the published layout and nothing else.

A set says for each split which files it needs and reads them into `Record`; see `AnnotationSet`. To add one, write a
module with `SETS`, name it in `NAMES`, and put a small fixture in the published layout into its test.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from verl_stvg.data_builders.records import Entries

__all__ = ["NAMES", "AnnotationSet", "Source", "all_sets", "described", "find"]


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
        read: takes the files of a split, as many as the set says and in that order, None for one that is not required
            and not there, and the split's name; yields records in the file's order.
        template: of the prompts, unless the user names another.
        named: takes the same files; further ones, which the annotation names.
    """

    name: str
    title: str
    home: str
    splits: Mapping[str, tuple[Source, ...]]
    read: Callable[[tuple[Any, ...], str], Entries]
    template: str
    named: Callable[[tuple[Any, ...]], list[Path]] = lambda files: []


NAMES = {
    "activitynet": "activitynet",
    "activitynet_rtl": "activitynet_rtl",
    "charades_sta": "charades_sta",
    "cosmo_cap": "cosmo_cap",
    "didemo": "didemo",
    "generic": "generic",
    "hc_stvg_v1": "hc_stvg",
    "hc_stvg_v2": "hc_stvg",
    "hirest_grounding": "hirest",
    "hirest_step": "hirest",
    "internvid_vtime": "internvid_vtime",
    "mevis": "mevis",
    "nextgqa": "nextgqa",
    "queryd": "queryd",
    "qvhighlights": "qvhighlights",
    "rextime": "rextime",
    "st_align": "st_align",
    "tacos": "tacos",
    "temporal_r1": "temporal_r1",
    "timerft": "timerft",
    "tvgbench": "tvgbench",
    "vidstg": "vidstg",
}
"""Module of every set, so that the command line knows the names without importing them."""


def find(name: str) -> AnnotationSet:
    """The set of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in NAMES:
        raise ValueError(f"no annotation set {name!r}; choose one of {', '.join(NAMES)}")
    return all_sets()[name]


def described(source: AnnotationSet) -> str:
    """What a set is, its home, files, their form and pitfalls: the docstrings of its module and of its reader.

    Lines with an indent are to be shown as they are; all others may be wrapped.
    """
    texts = inspect.getdoc(sys.modules[source.read.__module__]), inspect.getdoc(source.read)
    purpose, form = (re.sub("``?", "", text or "") for text in texts)
    splits = "\n".join(f"  {split:5}  {'; '.join(map(_file, files))}" for split, files in source.splits.items())
    return (
        f"{source.title}.\n\n{purpose}\n\nPublished: {source.home}. Default template: {source.template}.\n\n"
        f"Files in the annotation folder, by split:\n\n{splits}\n\nForm: {form}"
    )


def _file(source: Source) -> str:
    return " or ".join(source.names) + ("" if source.required else " (optional)")


@cache
def all_sets() -> dict[str, AnnotationSet]:
    """Every set by its name."""
    modules = [importlib.import_module(f"{__name__}.{module}") for module in dict.fromkeys(NAMES.values())]
    by_name = {source.name: source for module in modules for source in module.SETS}
    return {name: by_name[name] for name in NAMES}
