"""Options that several commands have, declared once, and help for what users write: folders, sizes, old spellings."""

import logging
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

logger = logging.getLogger(__name__)

Rows = Annotated[
    list[Path], typer.Argument(metavar="ROWS.parquet...", help="Rows of `verl-stvg build`, of one file or several.")
]
VideoRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder that paths in the rows start from; default: what manifest.json beside the rows says, else the "
        "folder of the rows."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one per processor.")]
Ray = Annotated[bool, typer.Option("--ray", help="Work on every node of the running Ray cluster.")]
Decoder = Annotated[str, typer.Option(help="pyav, decord, torchcodec or module:function, as in training.")]
Fit = Annotated[
    list[str] | None,
    typer.Option(
        "--fit",
        metavar="KEY=VALUE",
        help="Show videos by this key in place of the rows' own, as data.fit.KEY in training: fps, max_pixels, "
        "total_pixels and others; model=FOLDER takes a model's limits. Default: those of the training that made the "
        "checkpoint.",
    ),
]
Task = Annotated[
    Literal["stvg_r1", "temporal_r1", "time_r1", "videotg_r1"], typer.Option(help="Paper whose question is asked.")
]
Annotations = Annotated[Path, typer.Option(help="Folder of the published files, or one of them with --split.")]
Splits = Annotated[list[str] | None, typer.Option(help="train, val, test; default: all whose files are there.")]
MarkerStyle = Literal["stvg_r1", "centred"]
BenchmarkName = Literal[
    "hc_stvg_v1", "hc_stvg_v2", "vidstg", "st_align", "mevis", "synthetic", "charades_sta", "activitynet", "tvgbench",
    "qvhighlights", "didemo", "tacos", "activitynet_rtl", "nextgqa", "rextime",
]  # fmt: skip
Benchmark = Annotated[BenchmarkName | None, typer.Option(help="Metrics to compute; default: those of the rows' set.")]

_UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T"))}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``200G``, ``1.5T`` or ``4096``; K, M, G and T are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r} is not a size; write it like 200G, 1.5T or 4096")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def size_text(count: float) -> str:
    """A number of bytes for people: ``4.0 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def warn_of_old(old: str, new: str) -> None:
    """Say that a spelling of the last release is about to go."""
    logger.warning("%s: write %s; the old spelling goes with the next release", old, new)


def in_folder(out: Path, name: str) -> Path:
    """The file that a command writes into its ``--out``; a path with the file's ending is that file, as it was once.

    Args:
        out: what the user gave.
        name: of the file.
    """
    if out.suffix == Path(name).suffix and not out.is_dir():
        warn_of_old(f"--out {out}", f"--out {out.parent}, a folder, in which {name} is made")
        return out
    out.mkdir(parents=True, exist_ok=True)
    return out / name


def spelt_now(path: tuple[str, ...], arguments: list[str]) -> list[str]:
    """Arguments of a command as this release spells them; warns where they are those of the last one.

    Args:
        path: the command, such as ``("build", "synthetic")``.
        arguments: those after it.
    """
    if path in (("eval",), ("plan",)):
        return _rows_as_arguments(arguments)
    if path in (("tiny-model",), ("build", "synthetic")):
        return _folder_as_out(arguments)
    return arguments


def _rows_as_arguments(arguments: list[str]) -> list[str]:
    rest, rows, left = [], [], iter(arguments)
    for text in left:
        if text == "--rows":
            rows.append(next(left, ""))
        elif text.startswith("--rows="):
            rows.append(text.removeprefix("--rows="))
        else:
            rest.append(text)
    if rows:
        warn_of_old(f"--rows {rows[0]}", f"{rows[0]}, without --rows")
    return rest + rows


def _folder_as_out(arguments: list[str]) -> list[str]:
    """The argument that stands after no option, as ``--out``; every option of these commands has a value."""
    if any(text == "--out" or text.startswith("--out=") for text in arguments):
        return arguments
    for place, text in enumerate(arguments):
        after = arguments[place - 1] if place else ""
        if not text.startswith("-") and ("=" in after or not after.startswith("--")):
            warn_of_old(text, f"--out {text}")
            return [*arguments[:place], *arguments[place + 1 :], "--out", text]
    return arguments
