"""What a run is busy with: its processes say so in its log, and the launcher on the terminal.

From the command to the first step a run reads rows, starts Ray, loads models and starts an engine, for minutes in which
verl prints nothing that tells them apart. Each of these parts writes one line when it begins (`begin`) to the standard
error of its process, which Ray brings to the run's log from whatever node it is. `Progress` reads them there.
"""

import functools
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

TELL = "VERL_STVG_PHASES"
"""Environment variable that asks the processes of a run for their phases; without it they write nothing."""
START = "loading Python and verl"
"""The phase that a run begins with."""
TRAINING = "training"
PATIENCE = 60.0
"""Seconds without a line after which the terminal is told what goes on."""

_MARK = f"{__name__}: "
_LINE = re.compile(
    rb"(?:\x1b\[\d+m)?(?:\([^()]*\))?(?:\x1b\[0m)? ?" + re.escape(_MARK.encode()) + rb"([^\x1b\r]{1,200})"
)
"""A phase in the run's log, where Ray puts the name and the process ID of an actor before each of its lines."""


def begin(phase: str) -> None:
    """Write to the run's log which phase begins, if the launcher has asked for it."""
    if not os.environ.get(TELL):
        return
    sys.stderr.write(f"\n{_MARK}{phase}\n")
    sys.stderr.flush()


# --- in the run's processes -------------------------------------------------------------------------------------------


def mend_trainer(module) -> None:
    """Let either of verl's trainers (``trainer_base``, ``ray_trainer``) say what it begins."""
    trainer = module.PPOTrainer if hasattr(module, "PPOTrainer") else module.RayPPOTrainer
    rows = "_init_dataloader" if hasattr(trainer, "_init_dataloader") else "_create_dataloader"
    _say(trainer, rows, "reading the rows", then="starting the workers that hold the models")
    _say(trainer, "_load_checkpoint", "loading the checkpoint, if there is one")
    _say(trainer, "_validate", "validating")
    _say(trainer, "_start_profiling", TRAINING)  # the first call of every step in both
    _say(trainer, "_save_checkpoint", "saving a checkpoint")


def mend_models(engine_workers) -> None:
    """Let the first worker of each model say that it loads it."""
    _say(engine_workers.TrainingWorker, "reset", _model)


def mend_engine(llm_server) -> None:
    """Let the trainer say that it starts the rollout's engine."""
    _say(llm_server.LLMServerManager, "_initialize_llm_servers", lambda self: f"starting {self.rollout_config.name}")


def mend_loops(agent_loop) -> None:
    """Let the trainer say that it starts the workers that ask the engine."""
    _say(agent_loop.AgentLoopManager, "_init_agent_loop_workers", "starting the agent loops")


def _model(worker) -> str | None:
    if os.environ.get("RANK", "0") != "0":
        return None
    if worker.config.model_type == "value_model":
        return "loading the critic"
    return "loading the reference model" if worker.engine_config.forward_only else "loading the actor's model"


def _say(owner: type, name: str, phase: str | Callable[..., str | None], then: str | None = None) -> None:
    """Let a method of a class say its phase before it runs, and ``then`` after it.

    Args:
        owner: the class.
        name: of the method; an asynchronous one says its phase when it is called.
        phase: or what makes it of the object; None says nothing.
        then: the phase that begins after the method.
    """
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def method(self, *args, **kwargs):
        text = phase if isinstance(phase, str) else phase(self)
        if text is not None:
            begin(text)
        result = stock(self, *args, **kwargs)
        if then is not None:
            begin(then)
        return result

    setattr(owner, name, method)


# --- in the launcher --------------------------------------------------------------------------------------------------


class Progress:
    """A line when a phase begins for the first time, with the seconds since the start, and one while nothing happens.

    On a terminal that is one line for every `PATIENCE` seconds; elsewhere the time doubles after each, so that a log
    of days holds a dozen of them and a run that stands still is told all the same.

    Args:
        log: the run's, which need not be there yet.
        terminal: whether lines go to a terminal.
        now: the clock, seconds.
    """

    def __init__(self, log: Path, terminal: bool, now: Callable[[], float] = time.monotonic):
        self._log, self._terminal, self._now = log, terminal, now
        self._start = self._begun = self._told = now()
        self._phase, self._known = START, {START}
        self._seen, self._rest, self._patience = 0, b"", PATIENCE

    def look(self) -> None:
        """Tell what is new in the log, or what still goes on."""
        for line in self._lines():
            if (found := _LINE.match(line)) is not None:
                self._enter(found[1].decode("utf-8", errors="replace").strip())
        waited = self._now() - self._told
        if waited >= self._patience:
            logger.info("%s still %s, for %.0f s", self._clock(), self._phase, self._now() - self._begun)
            self._told = self._now()
            if not self._terminal:
                self._patience *= 2

    def stepped(self) -> None:
        """Note that a step is over and was told."""
        self._phase = TRAINING
        self._begun = self._told = self._now()

    def _enter(self, phase: str) -> None:
        if phase not in self._known:
            self._known.add(phase)
            logger.info("%s %s", self._clock(), phase)
            self._told = self._now()
        if phase != self._phase:
            self._phase, self._begun = phase, self._now()

    def _clock(self) -> str:
        return f"{self._now() - self._start:5.0f} s "

    def _lines(self) -> list[bytes]:
        """Lines that the log has more than at the last look; the rest of a half-written one is waited for."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as file:
            file.seek(self._seen)
            text = file.read()
        self._seen += len(text)
        *lines, self._rest = (self._rest + text).split(b"\n")
        return lines
