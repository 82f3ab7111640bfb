"""The command line, one file for each command."""

from verl_stvg.moved import names_of

_APP = ("main", "COMMANDS", "Commands", "Line", "DATA", "EVAL", "ENGINE", "load", "doctor", "report")
__getattr__ = names_of(__name__, dict.fromkeys(_APP, "verl_stvg.cli.app") | {"tiny_model": "verl_stvg.cli.data"})
