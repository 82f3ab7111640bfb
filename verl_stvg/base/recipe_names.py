"""Which recipes and variants there are, looked up in their folder: a misspelt name costs no start-up of verl."""

import difflib
import itertools
import logging
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
BASE = FOLDER / "_base.yaml"
"""Values that all recipes start from."""
VARIANTS = "variant"
RENAMED = {
    "data.curriculum.r0": "data.curriculum.hidden_at_start",
    "data.curriculum.rho": "data.curriculum.all_shown_after",
    "data.curriculum.k": "data.curriculum.decay_rate",
}
"""Keys of the last release -> their names now."""
_STATED = ("data.video_cache.", "data.curriculum.", "data.draw.", "data.rollouts.")
"""Sections whose keys all stand in `BASE`; the last release wanted a ``+`` before some."""
logger = logging.getLogger(__name__)


def recipes() -> list[str]:
    """Names of the recipes: folders with a yaml of their name."""
    return sorted(path.parent.name for path in FOLDER.glob("*/*.yaml") if path.stem == path.parent.name)


def variants() -> list[str]:
    """Names of the variants: what ``+variant=`` takes."""
    return sorted(path.stem for path in (FOLDER / VARIANTS).glob("*.yaml"))


def listed(names: Sequence[str], folder: str | None = None) -> str:
    """A paragraph for each name: the name, and the first sentence of the comment that its yaml begins with.

    Args:
        names: of recipes or variants.
        folder: below ``recipes/``; default: each recipe's own.
    """
    width = max(map(len, names))
    lines = []
    for name in names:
        text = _sentence(FOLDER / (folder or name) / f"{name}.yaml")
        lines += textwrap.wrap(f"{name:{width}}  {text}", 76, initial_indent="  ", subsequent_indent=" " * (width + 4))
    return "\n".join(lines)


def _sentence(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        comment = list(itertools.takewhile(lambda line: line.startswith("#"), file))
    text = " ".join(line.lstrip("# ").rstrip() for line in comment if "@package" not in line)
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".")


def check(recipe: str, overrides: Sequence[str] = (), config_name: str | None = None) -> None:
    """Refuse a recipe, or a variant in the arguments for verl, that is not there.

    Variants are looked up below ``recipes/variant`` only where the arguments name no other place to search.

    Args:
        recipe: folder below ``recipes/``.
        overrides: arguments for verl, such as ``+variant=[tiny,lora]``.
        config_name: yaml in the folder; default: the recipe's own name.

    Raises:
        ValueError: names what there is instead.
    """
    if not (FOLDER / recipe / f"{config_name or recipe}.yaml").is_file():
        yamls = sorted(path.stem for path in (FOLDER / recipe).glob("*.yaml"))
        if config_name and yamls:
            raise ValueError(f"recipe {recipe} has no {config_name}.yaml; it has {', '.join(yamls)}")
        raise ValueError(f"no recipe {recipe!r} below recipes/; {_instead(recipe, recipes())}")
    if any("searchpath" in text or text.startswith(("--config-dir", "-cd")) for text in overrides):
        return
    known = variants()
    for text in overrides:
        key, _, value = text.partition("=")
        names = [name.strip(" '\"") for name in value.strip("[]").split(",")]
        for name in names if key.lstrip("+") == VARIANTS else ():
            if name not in (*known, "null"):
                raise ValueError(f"{text}: no variant {name!r} below recipes/{VARIANTS}/; {_instead(name, known)}")


def respelt(overrides: Iterable[str]) -> list[str]:
    """Arguments for verl as they are spelt now: new names of keys, no ``+`` before keys that are there. It warns."""
    found = []
    for text in overrides:
        key, equals, value = text.partition("=")
        new = RENAMED.get(key.lstrip("+"), key.lstrip("+"))
        old = key in RENAMED or (key.startswith("+") and not key.startswith("++") and new.startswith(_STATED))
        if old and equals:
            logger.warning("%s: write %s; the old spelling goes with the next release", text, f"{new}={value}")
        found.append(f"++{new}={value}" if old and equals else text)
    return found


def values(overrides: Iterable[object]) -> dict[str, str]:
    """What arguments for verl set, by key: texts, without the quotes that hydra wants around some."""
    pairs = (str(text).lstrip("+").partition("=") for text in overrides)
    return {key: _unquoted(value) for key, equals, value in pairs if equals}


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _instead(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'did you mean {near[0]}? There' if near else 'there'} are {', '.join(known)}"
