"""`python -m benchmarks [NAME ...] [--json FILE]`: run measurements, print one row for each, optionally write JSON.

Exits with 1 if a goal is missed. The JSON file records the machine and the Python version next to the rows.
"""

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import Row

# name on the command line -> module with measure(options)
MODULES = {
    "rewards": "benchmarks.rewards",
    "build": "benchmarks.build",
    "cache": "benchmarks.cache",
    "markers": "benchmarks.markers",
    "data_plane": "benchmarks.data_plane",
    "decode": "benchmarks.decode",
    "objects": "benchmarks.objects",
    "score": "benchmarks.score",
    "generate": "benchmarks.generate",
    "fuzz": "benchmarks.fuzz",
    "kills": "benchmarks.kills",
    "equal_rewards": "benchmarks.equal_rewards",
    "demo_seeds": "benchmarks.demo_seeds",
    "training_step": "benchmarks.training_step",
    "shared_prompt": "benchmarks.shared_prompt",
    "verl_suite": "benchmarks.verl_suite",
}

HEADER = ("name", "ours", "other", "ratio", "goal", "met")


def parser() -> argparse.ArgumentParser:
    """Return the command line; options that only one measurement reads name it."""
    command = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    command.add_argument("names", nargs="*", metavar="NAME", help=f"measurements, default all: {', '.join(MODULES)}")
    command.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine to FILE")
    command.add_argument(
        "--originals",
        type=Path,
        metavar="DIR",
        help="rewards: folder with clones of the original repositories, compared with ours; see docs/rewards.md",
    )
    command.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="verl_suite: a clone of verl at the installed version, whose tests run",
    )
    command.add_argument(
        "--fuzz", type=int, default=1_000_000, metavar="N", help="rewards: fuzzed completions, default 1,000,000"
    )
    command.add_argument(
        "--moments",
        type=int,
        default=100,
        metavar="N",
        help="kills: how many, default 100, of which 35 are of build and 3 of train, which takes minutes for each",
    )
    command.add_argument(
        "--only",
        nargs="+",
        choices=("build", "select", "eval", "track", "train"),
        metavar="COMMAND",
        help="kills: of build, select, eval, track and train; default: all",
    )
    command.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="kills, equal_rewards: folder of the tiny model; default: made anew, which takes 3 minutes",
    )
    command.add_argument(
        "--seeds",
        type=int,
        default=10,
        metavar="N",
        help="demo_seeds: how many, from --seed on, default 10; 10 minutes each",
    )
    command.add_argument(
        "--cells",
        nargs="+",
        metavar="N/PROMPT/ANSWER",
        help="shared_prompt: rollouts, tokens of the prompt and of an answer, such as 8/2012/100; default: all, hours",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of generated inputs")
    return command


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, numbers with three significant digits or thousands separators."""
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    return row.name, _number(row.ours), _number(row.other), _number(row.ratio), row.goal or "-", met


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine() -> dict[str, object]:
    """Return what the figures depend on: processor, system, Python."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"processor": model, "system": platform.platform(), "python": platform.python_version()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named measurements and return the exit status."""
    options = parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in MODULES]
    if unknown:
        parser().error(f"unknown measurement {unknown[0]!r}; known are {', '.join(MODULES)}")
    rows: list[Row] = []
    print(" | ".join(HEADER), flush=True)
    for name in options.names or MODULES:
        for row in importlib.import_module(MODULES[name]).measure(options):
            rows.append(row)
            print(" | ".join(cells(row)), flush=True)
    if options.json:
        report = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
