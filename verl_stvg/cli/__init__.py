"""The command line, one file for each command."""

from verl_stvg.moved import names_of

__getattr__ = names_of("verl_stvg.cli.app", "main")
