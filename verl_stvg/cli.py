"""The command line, ``verl-stvg``: one command per thing a user does, each a thin call into the module that does it."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg import data_cli, eval_cli, plan_cli, score_cli
from verl_stvg.cache_cli import app as cache_app
from verl_stvg.objects_cli import app as objects_app
from verl_stvg.select_cli import app as select_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data_cli.build_app, name="build")
app.add_typer(cache_app, name="cache")
app.add_typer(objects_app, name="objects")
app.add_typer(select_app, name="select")
app.command()(data_cli.check)
app.command()(data_cli.show)
app.command(name="eval")(eval_cli.eval_)
app.command()(score_cli.score)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(plan_cli.plan)


def main() -> None:
    """Entry point: user mistakes (ValueError) become one message and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.captureWarnings(True)
    try:
        app()
    except ValueError as error:
        sys.exit(f"verl-stvg: {error}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="Folder below recipes/.")],
    run_dir: Annotated[Path, typer.Option(help="Folder for the log and the metrics.")],
    config_name: Annotated[str | None, typer.Option(help="Yaml in the recipe's folder; default: its own name.")] = None,
) -> None:
    """Train with a recipe; further arguments are verl's (KEY=VALUE). Ends every process the run started, however it
    ends.
    """
    from verl_stvg import launch

    arguments = ["--config-path", f"pkg://recipes.{recipe}", "--config-name", config_name or recipe, *context.args]
    raise typer.Exit(launch.train(arguments, run_dir))


@app.command()
def doctor(
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to ask; default: RAY_ADDRESS, else this machine only.")
    ] = None,
) -> None:
    """Check this machine, and every node of a Ray cluster, for what a run needs; exit status 1 if a row is red."""
    from verl_stvg import doctor as checks

    raise typer.Exit(0 if checks.report(ray_address or os.environ.get("RAY_ADDRESS")) else 1)


@app.command()
def tiny_model(
    out: Annotated[Path, typer.Argument(help="Folder of the model.")],
    seed: int = 0,
    task: Annotated[str, typer.Option(help="The prompt it knows, as in `build synthetic`.")] = "stvg_r1",
    rare_share: Annotated[
        float, typer.Option(help="How rare half of the colours are in its supervised pass; the less, the harder.")
    ] = 0.03,
) -> None:
    """Make the tiny Qwen2.5-VL: a real architecture of about 1 M parameters, warm-started on synthetic answers."""
    from data_builders import tiny_model as maker

    maker.make(out, seed=seed, config=maker.TinyConfig(task=task, rare_share=rare_share))


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of `verl-stvg train`, `eval` or `score`; several are compared.")
    ],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first folder.")] = None,
) -> None:
    """One self-contained page: metrics with intervals, curves of training, errors, and clips with ground truth and
    predictions.
    """
    from eval import report as page

    path = page.write(folders, out or folders[0] / "report.html")
    logging.getLogger(__name__).info("report: %s", path)


if __name__ == "__main__":
    main()
