"""The command line, ``verl-stvg``: one command per thing a user does, each a thin call into the module that does it."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg import data_cli, eval_cli, plan_cli, recipe_names, score_cli, status
from verl_stvg.cache_cli import app as cache_app
from verl_stvg.lock import turn
from verl_stvg.objects_cli import app as objects_app
from verl_stvg.select_cli import app as select_app


class Commands(typer.core.TyperGroup):
    """The commands; the two ends that typer would give a status of its own, without a word, are ours."""

    def invoke(self, context: typer.Context) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            _say("verl-stvg: interrupted")
            raise typer.Exit(status.INTERRUPTED) from None
        except EOFError as error:
            raise ValueError(f"a file ends too early: {error}") from error


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
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
    """Entry point: what a user can mend becomes one message, and every end has its status (`verl_stvg.status`)."""
    status.end_quietly_when_unheard()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.captureWarnings(True)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except (ValueError, OSError) as error:
        _say(f"verl-stvg: {_words(error)}")
        sys.exit(status.CANNOT)
    except BaseException:  # a fault of ours, or of what we build on; Python's own status for it means findings here
        _say(traceback.format_exc())
        sys.exit(status.CANNOT)


def _words(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _say(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")
    sys.stderr.flush()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="Folder below recipes/.")],
    run_dir: Annotated[Path, typer.Option(help="Folder for the log and the metrics.")],
    config_name: Annotated[str | None, typer.Option(help="Yaml in the recipe's folder; default: its own name.")] = None,
) -> None:
    """Train with a recipe; further arguments are verl's (KEY=VALUE). Ends every process the run started, however it
    ends. Exit status of the run: 0 if it came to its end; 2 if it was refused before it began.
    """
    recipe_names.check(recipe, context.args, config_name)
    from verl_stvg import launch

    status.Output.goes_on = True
    arguments = ["--config-path", f"pkg://recipes.{recipe}", "--config-name", config_name or recipe, *context.args]
    ended = launch.train(arguments, run_dir)
    raise typer.Exit(ended if ended >= 0 else 128 - ended)  # a signal that ended it, as shells count


@app.command()
def doctor(
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to ask; default: RAY_ADDRESS, else this machine only.")
    ] = None,
    remove_leftovers: Annotated[
        bool, typer.Option("--remove-leftovers", help="Delete files that ended runs left on this machine, and end.")
    ] = False,
) -> None:
    """Check this machine, and every node of a Ray cluster, for what a run needs; exit status 1 if a row is red."""
    from verl_stvg import doctor as checks

    if remove_leftovers:
        checks.remove_leftovers()
        raise typer.Exit()
    if not checks.report(ray_address or os.environ.get("RAY_ADDRESS")):
        raise typer.Exit(status.FINDINGS)


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

    with turn(out):
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
