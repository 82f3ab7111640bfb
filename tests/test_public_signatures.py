"""What others import keeps its signature: ``tests/public_signatures.txt`` has one line for each name."""

import importlib
import inspect
import re
from pathlib import Path

FILE = Path(__file__).with_name("public_signatures.txt")
MODULES = (
    "reward_fns",
    "reward_fns.adapters",
    "reward_fns.measures",
    "verl_stvg.data_builders.sets",
    *(f"verl_stvg.eval.metrics.{name}" for name in ("masks", "temporal", "tubes")),
    "verl_stvg.video.cache",
    "verl_stvg.video.frame_rules",
    "verl_stvg.video.plan",
    "verl_stvg.video.tracks",
)
"""Modules that README and docs name for use from Python."""
HOW = "python -m tests.test_public_signatures"


def names_of(module: str) -> list[str]:
    """``__all__`` of a module, or its public functions and classes where it has none."""
    home = importlib.import_module(module)
    own = [name for name, value in vars(home).items() if getattr(value, "__module__", None) == module]
    return sorted(getattr(home, "__all__", [name for name in own if not name.startswith("_")]))


def unannotated(signature: inspect.Signature) -> str:
    bare = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def lines() -> list[str]:
    """Module, name and parameters of everything public; of a value, its type.

    Annotations are left out: how numpy's are written differs from version to version.
    """
    found = []
    for module in MODULES:
        for name in names_of(module):
            value = getattr(importlib.import_module(module), name)
            error = isinstance(value, type) and issubclass(value, Exception)  # whose arguments are anything
            signed = callable(value) and not error
            signature = unannotated(inspect.signature(value)) if signed else f": {type(value).__name__}"
            found.append(f"{module} {name}{re.sub(r' at 0x[0-9a-f]+', '', signature)}")
    return found


def test_public_signatures_are_those_of_the_file():
    kept, now = FILE.read_text(encoding="utf-8").splitlines(), lines()
    gone, new = sorted(set(kept) - set(now)), sorted(set(now) - set(kept))
    assert kept == now, (
        f"public signatures changed: {gone} -> {new}. Keep the old ones working, or, if the change is meant, say so in "
        f"CHANGELOG.md and run `{HOW}`"
    )


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
