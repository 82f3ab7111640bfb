"""verl's own tests, with the plugin and without it: which of them does the plugin break.

Run from a clone of verl at the tag that is installed (``git clone --branch v0.9.1``), whose ``tests/**/*_on_cpu.py``
need no GPU. Tests that want models of a hub fail on both sides where there is no network. A test that differs is run
once more on its own, on both sides, because some of them depend on time. Two processes run all files, one each side,
since importing verl takes longer than most tests; where a file ends its process, another goes on behind it.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks import Options, Row

PATTERN = "*_on_cpu.py"
SECONDS = 180  # of a test, after which pytest ends its process
WITHOUT = {"VERL_USE_EXTERNAL_PLUGINS": "none", "VLLM_PLUGINS": ""}
"""Environment in which neither verl nor vLLM loads the plugin."""
QUIET = {"HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
_LINE = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_GOOD = ("PASSED", "SKIPPED", "XFAIL")


def files_of(repository: Path) -> list[str]:
    """Files of tests, relative to the repository.

    Raises:
        ValueError: there are none.
    """
    found = sorted(path.relative_to(repository).as_posix() for path in (repository / "tests").rglob(PATTERN))
    if not found:
        raise ValueError(f"{repository}: holds no tests/**/{PATTERN}; give a clone of verl at the installed version")
    return found


def outcomes(repository: Path, files: list[str], plugin: bool) -> dict[str, str]:
    """What became of each test that was begun, by its name: pytest's word for it.

    Args:
        repository: clone of verl.
        files: of tests, or names of single tests, as pytest has them.
        plugin: whether verl and vLLM load it.
    """
    found: dict[str, str] = {}
    while files:
        some, whole = _run(repository, files, plugin)
        found |= some
        reached = [place for place, file in enumerate(files) if any(name.startswith(file) for name in some)]
        files = [] if whole else files[max(reached, default=0) + 1 :]
    return found


def _run(repository: Path, files: list[str], plugin: bool) -> tuple[dict[str, str], bool]:
    """Outcomes by test of one process, and whether it came to its end."""
    chosen = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    given = {**QUIET, **chosen, **({} if plugin else WITHOUT)}
    options = ["-v", "-p", "no:cacheprovider", "--no-header", "--tb=no", "--color=no", "-o", "asyncio_mode=auto"]
    options += ["-o", f"faulthandler_timeout={SECONDS}", "-o", "faulthandler_exit_on_timeout=true"]
    command = [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", *files]
    with tempfile.TemporaryFile("w+", errors="replace") as said:  # a pipe would wait for all that a test leaves behind
        process = subprocess.run(command, cwd=repository, env=given, stdout=said, stderr=subprocess.STDOUT, check=False)
        said.seek(0)
        lines = said.readlines()
    return {found[1]: found[2] for line in lines if (found := _LINE.match(line))}, process.returncode in (0, 1)


def broken(with_plugin: dict[str, str], without: dict[str, str]) -> list[str]:
    """Tests that are in order without the plugin, and are not, or were not reached, with it."""
    return [name for name, word in without.items() if word in _GOOD and with_plugin.get(name) not in _GOOD]


def measure(options: Options) -> Iterable[Row]:
    """Yield a row for each test that the plugin breaks or mends, and one for all of them."""
    if options.folder is None:
        yield Row("verl's own tests with the plugin", "not run: give --folder, a clone of verl")
        return
    files = files_of(options.folder)
    ours, other = (outcomes(options.folder, files, plugin) for plugin in (True, False))
    for name in [*broken(ours, other), *broken(other, ours)]:
        again = [outcomes(options.folder, [name], plugin) for plugin in (True, False)]
        for one, found in zip((ours, other), again, strict=True):
            one[name] = found.get(name, "not reached")
        if ours[name] != other[name]:
            yield Row(
                f"{name}, with the plugin vs without", ours[name], other[name], None, "in order", ours[name] in _GOOD
            )
    good = [sum(word in _GOOD for word in one.values()) for one in (ours, other)]
    name = f"tests of {len(files)} files in order, of {len(ours.keys() | other.keys())}, with the plugin vs without"
    yield Row(name, *good, None, "none broken", not broken(ours, other))
