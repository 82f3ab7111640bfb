"""Exit statuses of ``verl-stvg``, the same for every command, so that a script can trust them.

0 says that all is well, and the numbers below what else there is. ``verl-stvg train`` ends with the status of the run.
"""

import os
import sys
from typing import TextIO

FINDINGS = 1
"""The command has done its work and found something to look at; its output names it."""
CANNOT = 2
"""The command could not do its work: wrong arguments, an input that cannot be read, a machine that lacks something."""
INTERRUPTED = 130
"""Ctrl-C; 128 and the number of the signal, as shells count."""
UNHEARD = 141
"""Nobody reads the output any more (``verl-stvg ... | head -1``); the status of programs that SIGPIPE ends."""


class Output:
    """A standard stream that ends the process without a word once its reader has gone.

    The process's own way out is kept: `SystemExit` is raised where the text was written, so that what is open is
    closed. Further text goes nowhere.
    """

    goes_on = False
    """Whether the process works on unheard instead, as a training run does, which has its log in a file."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, as a file does."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._unheard() or len(text)

    def flush(self) -> None:
        """Hand what was written to the system, as a file does."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._unheard()

    def _unheard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not self.goes_on:
            raise SystemExit(UNHEARD)


def end_quietly_when_unheard() -> None:
    """Let both standard streams of this process be an `Output`."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
