"""The command `verl-stvg plan`: what a recipe will take on so many GPUs, with every assumption behind it."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg.base import recipe_names, status
from verl_stvg.base.lock import write_whole

logger = logging.getLogger(__name__)


def plan(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Folder below recipes/; further arguments are verl's (KEY=VALUE).")],
    gpus: Annotated[int, typer.Option(min=1, help="In all.")] = 8,
    hbm: Annotated[float, typer.Option(min=1, help="Memory of a GPU, GB.")] = 80,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="At most.")] = 8,
    rows: Annotated[
        list[Path] | None, typer.Option(help="Rows of `verl-stvg build`; without them, the paper's typical clip.")
    ] = None,
    assume: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Instead of an assumption that the table lists.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="metrics.jsonl of a run with this model: its stages instead of assumptions.")
    ] = None,
    measured_gpus: Annotated[int, typer.Option(min=1, help="That it ran on.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Everything as JSON too.")] = None,
) -> None:
    """Say what a recipe will take: tokens of a prompt, memory of a GPU, seconds of a step, hours of an epoch, disk; and
    warn of what would fail (exit status 1). Estimates: every assumption is printed with its value and can be replaced.
    """
    recipe_names.check(recipe, context.args)
    from rich.console import Console
    from rich.table import Table

    from verl_stvg.launch import capacity, model_shape, row_sizes
    from verl_stvg.rows.fit import checked

    nodes = math.ceil(gpus / gpus_per_node)
    if gpus % nodes:
        raise ValueError(
            f"{gpus} GPUs do not make {nodes} equal nodes of at most {gpus_per_node}; choose another number"
        )
    config = compose(recipe, [f"trainer.n_gpus_per_node={gpus // nodes}", f"trainer.nnodes={nodes}", *context.args])
    patch = model_shape.shape_of(config.actor_rollout_ref.model.path).patch
    if rows:
        data = row_sizes.read_rows(rows, patch, checked(config.data.get("fit")))
    elif recipe in row_sizes.CLIPS:
        data = row_sizes.CLIPS[recipe].data(patch)
    else:
        raise ValueError(f"no typical clip is known for {recipe}; give --rows")
    given = capacity.Assumptions.of(dict(_pair(text) for text in assume or ()))
    seen = (*capacity.measured_stages(measured), measured_gpus) if measured else None
    free = shutil.disk_usage(_existing(config.data.video_cache.folder)).free
    found = capacity.plan(config, data, hbm, given, seen, free)

    console = Console()

    def show(title: str, values: dict[str, float], unit: str) -> None:
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in values.items():
            table.add_row(name, f"{value:,.0f}" if value >= 100 else f"{value:.3g}", unit)
        console.print(table)

    console.print(
        f"[bold]{recipe}[/], {config.actor_rollout_ref.model.path}, {nodes} x {gpus // nodes} GPUs of {hbm:g} GB"
    )
    console.print(f"{data.rows:,} rows on {data.videos:,} videos: {data.source}")
    show("tokens", found.tokens, "")
    for phase, parts in found.memory.items():
        show(f"memory: {phase}", {**parts, "together": sum(parts.values())}, "GB")
    how = f"from {measured}, scaled by tokens and GPUs" if measured else "estimated from the assumptions below"
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
    if out:
        everything = {"recipe": recipe, "gpus": gpus, "hbm_gb": hbm, **found.as_dict()}
        everything["assumptions"] = {field.name: value for field, value in given.listed()}
        write_whole(out, json.dumps(everything, indent=2) + "\n")
    if found.warnings:
        raise typer.Exit(status.FINDINGS)


def compose(recipe: str, overrides: list[str]):
    """A recipe's configuration, as `python -m verl.trainer.main_ppo` composes it.

    Raises:
        ValueError: an override does not fit.
    """
    import hydra
    from hydra.errors import HydraException

    with hydra.initialize_config_module(f"verl_stvg.recipes.{recipe}", version_base=None):
        try:
            return hydra.compose(recipe, overrides)
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
