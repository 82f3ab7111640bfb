"""The command ``verl-stvg train``: a recipe, supervised; its help lists the recipes and variants that there are."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg.base import recipe_names, status


def train(
    recipe: Annotated[str, typer.Option(help="One of the recipes below.")],
    run_dir: Annotated[Path, typer.Option(help="Folder for the log and the metrics.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of verl's configuration, as hydra takes them.")
    ] = None,
    config_name: Annotated[str | None, typer.Option(help="Yaml in the recipe's folder; default: its own name.")] = None,
) -> None:
    overrides = overrides or []
    recipe_names.check(recipe, overrides, config_name)
    if importlib.util.find_spec("verl") is None:
        raise ModuleNotFoundError(name="verl")
    from verl_stvg.launch import run

    status.Output.goes_on = True
    arguments = [
        "--config-path",
        f"pkg://verl_stvg.recipes.{recipe}",
        "--config-name",
        config_name or recipe,
        *overrides,
    ]
    ended = run.train(arguments, run_dir)
    raise typer.Exit(ended if ended >= 0 else 128 - ended)  # a signal that ended it, as shells count


train.__doc__ = f"""Train with a recipe of verl's configuration, and end every process that the run started, however it
ends. Exit status of the run: 0 if it came to its end; 2 if it was refused before it began.

\b
Recipes:
{recipe_names.listed(recipe_names.recipes())}

\b
Variants, added as +variant=NAME or +variant=[NAME,NAME], of which the later wins:
{recipe_names.listed(recipe_names.variants(), recipe_names.VARIANTS)}

\b
Example:
  verl-stvg train --recipe stvg_r1 --run-dir runs/first '+variant=[one_gpu,lora]' \\
      data.train_files=rows/train.parquet data.val_files=rows/val.parquet trainer.n_gpus_per_node=1
"""
