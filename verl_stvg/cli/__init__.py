"""The command line, one file for each command."""

from verl_stvg.moved import names_of

__getattr__ = names_of(__name__, {"main": "verl_stvg.cli.app"})
