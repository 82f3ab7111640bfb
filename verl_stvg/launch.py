"""Runs a training command so that nothing it started outlives it, and says in one line per step how it goes.

Ray and vLLM detach what they start; after a failure, or when the terminal is closed, gigabytes stay behind. The
launcher makes itself the reaper of every descendant (``PR_SET_CHILD_SUBREAPER``), so that all of them can be found
and ended whatever they did.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import psutil

from verl_stvg import python
from verl_stvg.resume import APPEND_METRICS, keep_metrics, resumed_step

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 10.0
_TAIL_LINES = 30


def train(arguments: list[str], run_dir: Path) -> int:
    """Run ``python -m verl.trainer.main_ppo`` with these arguments; log and metrics go to ``run_dir``.

    Checkpoints go to ``run_dir/checkpoints`` unless ``trainer.default_local_dir`` says otherwise. Where the run goes on
    from one of them, the metrics up to it and the log so far are kept, the latter as ``train.N.log``.

    Returns:
        the exit status of the run; 130 after Ctrl-C.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    given = dict(argument.lstrip("+").split("=", 1) for argument in arguments if "=" in argument)
    if "trainer.default_local_dir" not in given:
        given["trainer.default_local_dir"] = str(run_dir.absolute() / "checkpoints")
        arguments = [*arguments, f"trainer.default_local_dir={given['trainer.default_local_dir']}"]
    resumed = resumed_step({key.removeprefix("trainer."): value for key, value in given.items()})
    metrics, log = run_dir / "metrics.jsonl", run_dir / "train.log"
    environment = {"VERL_FILE_LOGGER_PATH": str(metrics.absolute())}
    seen = 0
    if resumed is None:
        metrics.unlink(missing_ok=True)
    else:
        logger.info("going on from step %d of %s", resumed, given["trainer.default_local_dir"])
        seen = keep_metrics(metrics, resumed)
        environment[APPEND_METRICS] = "yes"
        if log.exists():
            log.rename(run_dir / f"train.{len(list(run_dir.glob('train.*.log'))) + 1}.log")
    record = {
        "arguments": arguments,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "resumed_from": resumed,
        "status": None,
    }
    for name, key in (
        ("train_files", "data.train_files"),
        ("val_files", "data.val_files"),
        ("model", "actor_rollout_ref.model.path"),
    ):
        record[name] = str(Path(given[key]).resolve()) if key in given else None
    write = (run_dir / "run.json").write_text
    write(json.dumps(record, indent=2))
    command = python.module("verl.trainer.main_ppo", *arguments)
    # on a cluster that runs already, processes have the environment it was started in, and this on top
    command += [f"++ray_kwargs.ray_init.runtime_env.env_vars.{name}='{environment[name]}'" for name in environment]
    record["status"] = supervise(command, log, metrics, {**environment, "HYDRA_FULL_ERROR": "0"}, seen)
    write(json.dumps(record, indent=2))
    return record["status"]


def supervise(
    command: list[str], log: Path, metrics: Path | None = None, environment: dict | None = None, seen: int = 0
) -> int:
    """Run a command with its output in ``log``, report new lines of ``metrics``, and end every process it leaves.

    Args:
        seen: lines of ``metrics`` that are not new.

    Returns:
        the command's exit status; 130 after Ctrl-C, 143 after SIGTERM.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    previous = (
        signal.signal(signal.SIGTERM, _terminate) if threading.current_thread() is threading.main_thread() else None
    )
    logger.info("running %s; full log in %s", " ".join(command), log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**python.environment(), **(environment or {})},
        )
        try:
            while process.poll() is None:
                time.sleep(0.5)
                seen = _report(metrics, seen)
            _report(metrics, seen)
            status = process.returncode
        except KeyboardInterrupt:
            logger.warning("interrupted; ending the run")
            status = 130
        except SystemExit as stop:
            status = int(stop.code)
        finally:
            left = end_descendants(before)
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
    if status not in (0, 130, 143):
        logger.error("%s\nthe run failed with status %s; full log in %s", failure(log), status, log)
    if left:
        logger.info("ended %d processes that the run had started", left)
    return status


def _terminate(number, frame):
    raise SystemExit(128 + number)


def end_descendants(keep: set[int] = frozenset()) -> int:
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


def _report(metrics: Path | None, seen: int) -> int:
    if metrics is None or not metrics.exists():
        return seen
    lines = metrics.read_text(encoding="utf-8").splitlines()
    for line in lines[seen:]:
        record = json.loads(line)
        logger.info("step %s  %s", record["step"], summary(record["data"]))
    return len(lines)


SHOWN = {
    "reward": "critic/score/mean",
    "tIoU": "reward/temporal_iou/mean",
    "ID": "reward/id_match/mean",
    "kl": "actor/kl_loss",
    "parity": "training/rollout_probs_diff_mean",
    "length": "response_length/mean",
    "s": "timing_s/step",
}


def summary(data: dict) -> str:
    """One line of a step's metrics, in the order people look at them; validation means come last."""
    parts = [f"{name} {data[key]:.3g}" for name, key in SHOWN.items() if key in data]
    for key, value in data.items():
        if key.startswith(("val-core/", "val-aux/")) and key.endswith("/mean@1"):
            parts.append(f"held-out {key.split('/')[-2]} {value:.3f}")
    return "  ".join(parts)
