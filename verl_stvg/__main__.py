"""Entry point of ``verl-stvg`` and of ``python -m verl_stvg``: the command line, or which extra it needs."""

import sys

from verl_stvg.base import extras, status


def main() -> None:
    """Run the command line; status 2 and one sentence where the libraries of the command line are not installed."""
    try:
        from verl_stvg.cli.app import main as run
    except ModuleNotFoundError as error:
        sentence = extras.missing(error.name or "", ("data", "eval", "cpu", "gpu"))
        if sentence is None:
            raise
        sys.stderr.write(f"verl-stvg: {sentence}\n")
        sys.exit(status.CANNOT)
    run()


if __name__ == "__main__":
    main()
