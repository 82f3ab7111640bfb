"""Runs a training command so that nothing it started outlives it, and says in one line per phase and step how it goes.

Ray and vLLM detach what they start; after a failure, or when the terminal is closed, gigabytes stay behind. The
launcher makes itself the reaper of every descendant (``PR_SET_CHILD_SUBREAPER``), so that all of them can be found
and ended whatever they did.
"""

import contextlib
import ctypes
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path

import psutil

from verl_stvg.base import nesting, python, recipe_names
from verl_stvg.base.lock import alone, write_whole
from verl_stvg.launch.phases import TELL, Progress
from verl_stvg.patches.metrics_file import APPEND_METRICS
from verl_stvg.training import held_out
from verl_stvg.training.resume import keep_metrics, resumed_step

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 10.0
_TAIL_LINES = 30


def train(arguments: list[str], run_dir: Path) -> int:
    """Run ``python -m verl.trainer.main_ppo`` with these arguments; log and metrics go to ``run_dir``.

    Checkpoints go to ``run_dir/checkpoints`` unless ``trainer.default_local_dir`` says otherwise. Where the run goes on
    from one of them, the metrics up to it are kept. What an earlier start has left is set aside (`set_aside`). A run
    that has come to its end and is asked for no further steps is left as it is.

    Returns:
        the exit status of the run; 129 after SIGHUP (a closed terminal), 130 after Ctrl-C, 143 after SIGTERM; 0 for a
        run that was at its end.

    Raises:
        ValueError: another run is in the folder; ``run.json`` of an earlier one cannot be read; no checkpoint where one
            is named.
    """
    with alone(run_dir):
        return _train(arguments, run_dir)


def _train(arguments: list[str], run_dir: Path) -> int:
    given = recipe_names.values(arguments)
    if "trainer.default_local_dir" not in given:
        folder = given["trainer.default_local_dir"] = str(run_dir.absolute() / "checkpoints")
        quote = "'" * any(sign in folder for sign in ",[]{}()")  # hydra would take it apart
        arguments = [*arguments, f"trainer.default_local_dir={quote}{folder}{quote}"]
    resumed = resumed_step({key.removeprefix("trainer."): value for key, value in given.items()})
    if at_its_end(run_dir / "run.json", arguments, given, resumed):
        logger.info(
            "%s: the run has come to its last step, %d; nothing to do. Raise trainer.total_training_steps or "
            "trainer.total_epochs to go on, or give another folder to begin anew",
            run_dir,
            resumed,
        )
        return 0
    metrics, log = run_dir / "metrics.jsonl", run_dir / "train.log"
    environment = {"VERL_FILE_LOGGER_PATH": str(metrics.absolute()), TELL: "yes"}
    shown = _fit_of(run_dir / "run.json") if resumed is not None else None
    set_aside(run_dir, resumed)
    if resumed is not None:
        logger.info("going on from step %d of %s", resumed, given["trainer.default_local_dir"])
        environment[APPEND_METRICS] = "yes"
    record = {
        "arguments": arguments,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "resumed_from": resumed,
        "status": None,
    }
    if shown:  # of the checkpoints that are there, until the run has written its own
        record["fit"] = shown
    for name, key in (
        ("train_files", "data.train_files"),
        ("val_files", "data.val_files"),
        ("model", "actor_rollout_ref.model.path"),
    ):
        record[name] = absolute_paths(given[key]) if key in given else None
    _write(run_dir / "run.json", record)
    command = python.module("verl.trainer.main_ppo", *recipe_names.respelt(arguments), attached=True)
    # on a cluster that runs already, processes have the environment it was started in, and this on top
    command += [f"++ray_kwargs.ray_init.runtime_env.env_vars.{name}='{environment[name]}'" for name in environment]
    seen = metrics.stat().st_size if metrics.exists() else 0
    ended = supervise(command, log, metrics, {**environment, "HYDRA_FULL_ERROR": "0"}, seen)
    # the run has written into it how its videos are shown, see `verl_stvg.launch.preflight.record_fit`
    _write(run_dir / "run.json", json.loads((run_dir / "run.json").read_text(encoding="utf-8")) | {"status": ended})
    return ended


def _fit_of(path: Path) -> dict | None:
    """How videos are shown in the run that wrote a ``run.json``; None where that is missing or says nothing."""
    found = nesting.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found.get("fit") if isinstance(found, dict) else None


def _write(path: Path, record: dict) -> None:
    write_whole(path, json.dumps(record, indent=2))


def absolute_paths(value: str) -> str | list[str]:
    """Absolute paths of an argument that names one file, or a list of them: ``[a.parquet,b.parquet]``."""
    if not value.startswith("["):
        return str(Path(value).resolve())
    return [str(Path(name.strip().strip("'\"")).resolve()) for name in value.strip("[]").split(",") if name.strip()]


def at_its_end(path: Path, arguments: list[str], given: dict[str, str], resumed: int | None) -> bool:
    """Whether a run has come to its end and these arguments ask for no further steps.

    Without ``trainer.total_training_steps`` they do not if they, the recipes and the training rows are what they were.

    Args:
        path: its ``run.json``.
        arguments: of the start that is asked for.
        given: the same by key.
        resumed: step of the checkpoint that it would go on from; None if it would begin anew.

    Raises:
        ValueError: the file is no JSON.
    """
    if resumed is None or not path.is_file() or given.get("trainer.resume_mode", "auto") != "auto":
        return False
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); move it away to go on from step {resumed}") from error
    if not isinstance(earlier, dict) or earlier.get("status") != 0:
        return False
    if given.get("trainer.val_only", "false").lower() == "true":
        return False
    total = given.get("trainer.total_training_steps", "")
    if total.isdecimal():
        return int(total) <= resumed
    named = absolute_paths(given["data.train_files"]) if "data.train_files" in given else []
    sources = [*recipe_names.FOLDER.rglob("*.yaml"), *map(Path, [named] if isinstance(named, str) else named)]
    changed = max(source.stat().st_mtime for source in sources if source.exists())
    return earlier.get("arguments") == arguments and changed <= path.stat().st_mtime


EARLIER = re.compile(r"(?:train|run|metrics|parity|validation)\.(\d+)(?:\.\w+)?")
"""Names under which files of earlier starts are kept, with the number of the start."""


def set_aside(run_dir: Path, resumed: int | None) -> None:
    """Give what an earlier start has left in a run's folder a number, the same for all of it: ``train.1.log``,
    ``run.1.json``, ``metrics.1.jsonl``, ``validation.1/``. Nothing is deleted.

    A run that goes on from step N keeps metrics and held-out answers up to N where they are; only those of the steps
    that will be repeated move.
    """
    numbers = [int(found[1]) for path in run_dir.iterdir() if (found := EARLIER.fullmatch(path.name))]
    number = max(numbers, default=0) + 1
    for stem, ending in (("train", "log"), ("run", "json")):
        if (run_dir / f"{stem}.{ending}").exists():
            (run_dir / f"{stem}.{ending}").rename(run_dir / f"{stem}.{number}.{ending}")
    metrics, validation = run_dir / "metrics.jsonl", run_dir / "validation"
    if resumed is not None:
        keep_metrics(metrics, resumed, run_dir / f"metrics.{number}.jsonl")
        if (run_dir / "parity.jsonl").exists():
            keep_metrics(run_dir / "parity.jsonl", resumed, run_dir / f"parity.{number}.jsonl")
        dumps = validation.glob("*.jsonl")
        repeated = [path for path in dumps if path.stem.isdecimal() and int(path.stem) > resumed]
        for path in repeated:
            (run_dir / f"validation.{number}").mkdir(exist_ok=True)
            path.rename(run_dir / f"validation.{number}" / path.name)
    else:
        for stem in ("metrics", "parity"):
            if (run_dir / f"{stem}.jsonl").exists():
                (run_dir / f"{stem}.jsonl").rename(run_dir / f"{stem}.{number}.jsonl")
        if validation.exists():
            validation.rename(run_dir / f"validation.{number}")


def supervise(
    command: list[str], log: Path, metrics: Path | None = None, environment: dict | None = None, seen: int = 0
) -> int:
    """Run a command with its output in ``log``, tell its phases and steps, and end every process it leaves.

    Args:
        command: program and arguments.
        log: of its output, in which `verl_stvg.launch.phases` looks.
        metrics: file to which a line is added for each step; None for none.
        environment: on top of this process's.
        seen: bytes of ``metrics`` that are not new.

    Returns:
        the command's exit status; 129 after SIGHUP (a closed terminal), 130 after Ctrl-C, 143 after SIGTERM. A signal
        that is ignored, as SIGHUP under ``nohup``, stays ignored.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *_STOPS)} if main else {}
    for number in _STOPS:
        if previous.get(number, signal.SIG_IGN) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    logger.info("running %s; full log in %s", " ".join(command), log)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**python.environment(), **(environment or {})},
            )
        status = _watched(process, log, metrics, seen)
    except KeyboardInterrupt:
        logger.warning("interrupted; ending the run")
        status = 130
    except SystemExit as stop:
        status = int(stop.code or 0)
        logger.warning("stopped by %s; ending the run", signal.Signals(status - 128).name)
    finally:
        for number in previous:  # a second one must not stop the ending half-way
            signal.signal(number, signal.SIG_IGN)
        left = end_descendants(before)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status not in (0, 129, 130, 143):
        logger.error("%s\nthe run failed with status %s; full log in %s", failure(log), status, log)
    if left:
        logger.info("ended %d processes that the run had started", left)
    return status


def _watched(process: subprocess.Popen, log: Path, metrics: Path | None, seen: int) -> int:
    """Tell the phases and steps of a process until it ends; arguments of `supervise`. Returns its exit status."""
    progress = Progress(log, terminal=sys.stdout.isatty())
    while process.poll() is None:
        time.sleep(0.5)
        progress.look()
        earlier, seen = seen, report_progress(metrics, seen)
        if seen != earlier:
            progress.stepped()
    progress.look()
    seen = report_progress(metrics, seen)
    if metrics is not None and metrics.exists() and metrics.stat().st_size > seen:
        logger.warning("the last line of %s is half-written", metrics)
    return process.returncode


_STOPS = (signal.SIGTERM, signal.SIGHUP)


def _stop(number, frame):
    for one in _STOPS:  # a terminal that closes may send more than one
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


def end_descendants(keep: Collection[int] = ()) -> int:
    """End every descendant of this process except ``keep``: first politely, then with SIGKILL.

    Returns:
        how many there were.
    """
    ended = 0
    for hard in (False, True, True):
        family = [child for child in psutil.Process().children(recursive=True) if child.pid not in keep]
        if not hard:
            ended = len(family)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill() if hard else child.terminate()
        psutil.wait_procs(family, timeout=_GRACE_SECONDS if not hard else 3)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return ended


def failure(log: Path) -> str:
    """The message a failed run ends with: the last exception of its log, without the frames."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.partition("\x1b[0m ")[2] if line.startswith("\x1b[36m(") else line for line in lines]
    starts = [i for i, line in enumerate(lines) if _is_error(line)]
    if not starts:
        return "\n".join(lines[-_TAIL_LINES:])
    ours = [i for i in starts if lines[i].startswith("verl_stvg.") or ": sample " in lines[i]]
    start = (ours or starts)[-1]
    end = start + 1
    while end < len(lines) and lines[end].strip() and (lines[end][:1].isspace() or end == start):
        end += 1
    return "\n".join(lines[start:end])


def _is_error(line: str) -> bool:
    name = line.split(":", 1)[0]
    return ":" in line and name.replace(".", "").replace("_", "").isalnum() and name.endswith(("Error", "Exception"))


def report_progress(metrics: Path | None, seen: int) -> int:
    """Log a line for every step that a metrics file has more than its first ``seen`` bytes.

    Only what is new is read. A line is over at its line feed and nowhere else; the rest of a half-written one is waited
    for. A line that is no step's is told, and the run goes on.

    Returns:
        bytes that are seen now.
    """
    if metrics is None or not metrics.exists():
        return seen
    size = metrics.stat().st_size
    if size < seen:  # begun anew
        seen = 0
    if size == seen:
        return seen
    with metrics.open("rb") as file:
        file.seek(seen)
        text = file.read()
    whole = text.rfind(b"\n") + 1
    for line in text[:whole].split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            logger.info("step %s  %s", record["step"], summary(record["data"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s: a line is not a step's metrics (%r): %s", metrics, error, line[:80])
    return seen + whole


SHOWN = {
    "kl": "actor/kl_loss",
    "parity": "training/rollout_probs_diff_mean",
    "length": "response_length/mean",
    "s": "timing_s/step",
}
"""What a step's line says after the reward and its parts."""
_PART = re.compile(r"reward/([^/]+)/mean")


def summary(data: dict) -> str:
    """One line of a step's metrics, in the order people look at them: the reward, its parts by their names, what else
    is in `SHOWN`, and held-out means last, by data source where there are several. verl's logger writes null for what
    is not a number.
    """
    keys = {"reward": "critic/score/mean"}
    keys |= {found[1]: key for key in data if (found := _PART.fullmatch(key)) and found[1] not in ("score", "reward")}
    parts = [f"{name} {_number(data[key], '.3g')}" for name, key in (keys | SHOWN).items() if key in data]
    if data.get("rollout/missing"):
        parts.append(f"missing {data['rollout/missing']:.0f} answers")
    if data.get("parity/outside_gate"):
        parts.append(f"parity is over its gate of {data['parity/gate']:g}, see parity.jsonl")
    sources = held_out.read(data)
    for source, found in sources.items():
        means = "  ".join(f"{part} {_number(value, '.3f')}" for part, value in found.means.items())
        parts.append(f"held-out {f'{source}: ' if len(sources) > 1 else ''}{means}")
        if missing := found.counts.get("missing"):
            parts.append(f"missing {missing} of {found.counts['asked']} answers")
    return "  ".join(parts)


def _number(value: float | None, digits: str) -> str:
    return "not a number" if value is None or not math.isfinite(value) else f"{value:{digits}}"
