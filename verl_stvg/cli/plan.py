"""The command `verl-stvg plan`: what a recipe will take on so many GPUs, with every assumption behind it."""

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_stvg.base import recipe_names, status
from verl_stvg.base.lock import write_whole
from verl_stvg.cli.options import in_folder, parse_size, warn_of_old

if TYPE_CHECKING:
    from verl_stvg.launch.capacity import Assumptions, Plan

logger = logging.getLogger(__name__)
_REST = "Rows of `verl-stvg build`, without them the paper's typical clip; and keys of verl's configuration."


def gigabytes(text: str) -> float:
    """Memory of a GPU for the planner: ``80G`` is what a data sheet calls 80 GB. A bare number, once GB, still is."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        warn_of_old(f"--hbm {text}", f"--hbm {text}G")
        text += "G"
    return parse_size(text) / 2**30


def plan(
    recipe: Annotated[str, typer.Argument(help="Folder below recipes/.")],
    rows: Annotated[list[str] | None, typer.Argument(metavar="ROWS.parquet|KEY=VALUE", help=_REST)] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Total GPUs.")] = 8,
    hbm: float = typer.Option("80G", parser=gigabytes, metavar="SIZE", help="Memory of a GPU, e.g. 80G."),
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Maximum GPUs per node.")] = 8,
    assume: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Instead of an assumption that the table lists.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="metrics.jsonl of a run with this model: its stages instead of assumptions.")
    ] = None,
    measured_gpus: Annotated[int, typer.Option(min=1, help="GPUs of the measured run.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder of plan.json, which has everything too.")] = None,
) -> None:
    """Say what a recipe will take: tokens of a prompt, memory of a GPU, seconds of a step, hours of an epoch, disk; and
    warn of what would fail (exit status 1). Estimates: every assumption is printed with its value and can be replaced.
    """
    overrides = [text for text in rows or () if "=" in text or not text.endswith(".parquet")]
    files = [Path(text) for text in rows or () if text not in overrides]
    recipe_names.check(recipe, overrides)
    from verl_stvg.rows import files as row_files

    for file in files:
        row_files.schema_of(file)  # before what takes long
    from verl_stvg.launch import capacity, model_shape, row_sizes
    from verl_stvg.rows.fit import checked

    nodes = math.ceil(gpus / gpus_per_node)
    if gpus % nodes:
        raise ValueError(
            f"{gpus} GPUs do not make {nodes} equal nodes of at most {gpus_per_node}; choose another number"
        )
    config = compose(recipe, [f"trainer.n_gpus_per_node={gpus // nodes}", f"trainer.nnodes={nodes}", *overrides])
    patch = model_shape.shape_of(config.actor_rollout_ref.model.path).patch
    if files:
        data = row_sizes.read_rows(files, patch, checked(config.data.get("fit")))
    elif recipe in row_sizes.CLIPS:
        data = row_sizes.CLIPS[recipe].data(patch)
    else:
        raise ValueError(f"no typical clip is known for {recipe}; give ROWS.parquet")
    given = capacity.Assumptions.of(dict(_pair(text) for text in assume or ()))
    seen = (*capacity.measured_stages(measured), measured_gpus) if measured else None
    free = shutil.disk_usage(_existing(config.data.video_cache.folder)).free
    found = capacity.plan(config, data, hbm, given, seen, free)
    machines = f"{nodes} x {gpus // nodes} GPUs of {hbm:g} GB"
    _print(
        f"[bold]{recipe}[/], {config.actor_rollout_ref.model.path}, {machines}\n"
        f"{data.rows:,} rows on {data.videos:,} videos: {data.source}",
        found,
        given,
        f"from {measured}, scaled by tokens and GPUs" if measured else "estimated from the assumptions below",
    )
    if out:
        everything = {"recipe": recipe, "gpus": gpus, "hbm_gb": hbm, **found.as_dict()}
        everything["assumptions"] = {field.name: value for field, value in given.listed()}
        write_whole(in_folder(out, "plan.json"), json.dumps(everything, indent=2) + "\n")
    if found.warnings:
        raise typer.Exit(status.FINDINGS)


def _print(title: str, found: "Plan", given: "Assumptions", how: str) -> None:
    """The plan as tables.

    Args:
        title: lines above them.
        found: the plan.
        given: its assumptions.
        how: the seconds of a step are known.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def show(title: str, values: dict[str, float], unit: str) -> None:
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in values.items():
            table.add_row(name, f"{value:,.0f}" if value >= 100 else f"{value:.3g}", unit)
        console.print(table)

    console.print(title)
    show("tokens", found.tokens, "")
    for phase, parts in found.memory.items():
        show(f"memory: {phase}", {**parts, "together": sum(parts.values())}, "GB")
    show(f"a step, {how}", {**found.seconds, "together": sum(found.seconds.values())}, "s")
    show("a run", found.epoch, "")
    show("disk", found.disk, "")
    table = Table(
        "assumption", "value", "unit", "source", title="assumptions (--assume NAME=VALUE)", title_justify="left"
    )
    for field, value in given.listed():
        changed = "given" if field.default != value else field.metadata["source"]
        table.add_row(field.name, f"{value:g}", field.metadata["unit"], changed)
    console.print(table)
    for warning in found.warnings:
        console.print(f"[red]warning:[/] {warning}")


def compose(recipe: str, overrides: list[str]):
    """A recipe's configuration, as `python -m verl.trainer.main_ppo` composes it.

    Raises:
        ValueError: an override does not fit.
    """
    import hydra
    from hydra.errors import HydraException

    with hydra.initialize_config_module(f"verl_stvg.recipes.{recipe}", version_base=None):
        try:
            return hydra.compose(recipe, recipe_names.respelt(overrides))
        except HydraException as error:
            raise ValueError(str(error)) from error


def _pair(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--assume {text}: write NAME=NUMBER") from None


def _existing(folder: str | None) -> Path:
    """The cache's folder, or the nearest one above it that is there."""
    from verl_stvg.video.store import default_folder

    path = Path(folder or default_folder()).expanduser().absolute()
    return next(one for one in (path, *path.parents) if one.exists())
