"""The command line, ``verl-stvg``: one command per thing a user does, each a thin call into the module that does it.

A command's module is imported when the command runs, so that `verl-stvg --help` is quick and a command needs no more
than its own extra of the package.
"""

import importlib
import inspect
import logging
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from verl_stvg.base import extras, status

DATA, EVAL, ENGINE = ("data",), ("eval",), ("cpu", "gpu")


@dataclass(frozen=True)
class Line:
    """A command as `verl-stvg --help` lists it.

    Attributes:
        place: ``module:name`` of its function, or of a `typer.Typer` with commands of its own.
        summary: one line, unlike that of any other command.
        extras: of the package; the command needs one of them.
        passes_on: whether further arguments are verl's.
    """

    place: str
    summary: str
    extras: tuple[str, ...]
    passes_on: bool = False


COMMANDS = {
    "doctor": Line("verl_stvg.cli.app:doctor", "Check this machine, and every node of a Ray cluster.", DATA),
    "build": Line("verl_stvg.cli.data:build_app", "Make rows from the annotations of a data set.", DATA),
    "check": Line("verl_stvg.cli.data:check", "Find what would spoil a run in rows, before a GPU is rented.", DATA),
    "show": Line("verl_stvg.cli.data:show", "Make a page of rows: frames, time line, boxes, problems.", DATA),
    "objects": Line(
        "verl_stvg.cli.objects:app", "Detect, track and number objects; find the annotated ones.", ("objects",)
    ),
    "select": Line("verl_stvg.cli.select:app", "Choose training rows by a model's own answers.", DATA),
    "cache": Line("verl_stvg.cli.cache:app", "Decode videos before a run, and look after the frame cache.", DATA),
    "plan": Line("verl_stvg.cli.plan:plan", "Estimate memory, time and disk of a recipe.", ENGINE),
    "train": Line("verl_stvg.cli.train:train", "Train with a recipe, supervised.", ENGINE, passes_on=True),
    "eval": Line("verl_stvg.cli.eval:eval_", "Answer a benchmark's rows with a model, and score the answers.", ENGINE),
    "score": Line("verl_stvg.cli.score:score", "Score the predictions of any program against rows.", EVAL),
    "report": Line("verl_stvg.cli.app:report", "Make a page of runs and evaluations, or a comparison of them.", EVAL),
    "tiny-model": Line("verl_stvg.cli.data:tiny_model", "Make the model of 1 M parameters for dry runs.", ENGINE),
}


class Commands(TyperGroup):
    """The commands of `COMMANDS`; the two ends that typer would give a status of its own, without a word, are ours."""

    def __init__(self, **settings: Any):
        settings["commands"] = {name: TyperCommand(name, help=line.summary) for name, line in COMMANDS.items()}
        super().__init__(**settings)
        self.asked = ""

    def resolve_command(self, ctx, args: list[str]):
        """The command that was asked for, imported only now."""
        name, _, rest = super().resolve_command(ctx, args)
        self.asked = name or ""
        from verl_stvg.cli.options import spelt_now

        command = load(self.asked)
        below = 1 if rest and hasattr(command, "commands") else 0
        return self.asked, command, [*rest[:below], *spelt_now((self.asked, *rest[:below]), rest[below:])]

    def invoke(self, ctx):
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("verl-stvg: interrupted")
            raise typer.Exit(status.INTERRUPTED) from None
        except EOFError as error:
            raise ValueError(f"a file ends too early: {error}") from error
        except ModuleNotFoundError as error:
            sentence = extras.missing(error.name or "", COMMANDS[self.asked].extras)
            if sentence is None:
                raise
            raise ValueError(f"{self.asked}: {sentence}") from error


def load(name: str):
    """The command of that name, with all its options; imports its module."""
    line = COMMANDS[name]
    module, attribute = line.place.split(":")
    found = getattr(importlib.import_module(module), attribute)
    holder = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
    else:
        passing = {"allow_extra_args": True, "ignore_unknown_options": True} if line.passes_on else None
        holder.command(name, context_settings=passing)(found)
    command = typer.main.get_group(holder).commands[name]
    for one in getattr(command, "commands", {}).values():  # else a list of them cuts the first sentence off
        one.short_help = one.short_help or re.split(r"(?<=[.])\s", inspect.cleandoc(one.help or ""), maxsplit=1)[0]
    return command


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"verl-stvg {importlib.import_module('verl_stvg').__version__}")
        raise typer.Exit


@app.callback(epilog="`verl-stvg COMMAND --help` lists the arguments of a command.")
def _start(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Reinforcement learning for video grounding: annotations to rows, rows to a trained model, answers to scores."""


def main() -> None:
    """Run the command line: what a user can mend becomes one message, and every end has its status
    (`verl_stvg.base.status`).
    """
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


def doctor(
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to ask; default: RAY_ADDRESS, else this machine only.")
    ] = None,
    remove_leftovers: Annotated[
        bool, typer.Option("--remove-leftovers", help="Delete files that ended runs left on this machine, and end.")
    ] = False,
) -> None:
    """Check this machine, and every node of a Ray cluster, for what a run needs. Exit status 1 if a row is red."""
    from verl_stvg.launch import doctor as checks

    if remove_leftovers:
        checks.remove_leftovers()
        raise typer.Exit()
    if not checks.report(ray_address or os.environ.get("RAY_ADDRESS")):
        raise typer.Exit(status.FINDINGS)


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of `verl-stvg train`, `eval` or `score`; several are compared.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder in which the page, report.html, is made; default: the first folder.")
    ] = None,
) -> None:
    """One self-contained page: metrics with intervals, curves of training, errors, and clips with ground truth and
    predictions.
    """
    from verl_stvg.cli.options import in_folder
    from verl_stvg.eval.report import page

    path = page.write(folders, in_folder(out, "report.html") if out else folders[0] / "report.html")
    logging.getLogger(__name__).info("report: %s", path)


if __name__ == "__main__":
    main()
