"""Starts Python so that it imports from where this process does, and never from the folder it happens to stand in.

``python -c`` and ``python -m`` put the current folder first on the path. Whoever works in a downloaded data folder
would then run a file there that has the name of a module we need. Python's own remedy (``-P``) came with 3.11, and
``-I`` also ignores PYTHONPATH, where users name their decoders. So a process of ours begins with `_CLEAN`, which takes
that folder off the path before anything is imported.

Imports the standard library only: the decoding process starts through here, too.
"""

import functools
import multiprocessing.util
import os
import subprocess
import sys
import threading
import time

_CLEAN = "import sys; sys.path[:] = [path for path in sys.path if path]; "
"""Takes '', which stands for the current folder, off the path; `sys` is part of the interpreter, no file."""
_HOOK = "__path_hook__"  # ends what editable installations put on the path: no folder
_WATCH, _LOOK_SECONDS = "verl_stvg-parent-watch", 0.5


def code(text: str, *arguments: str) -> list[str]:
    """Command that runs Python code, with arguments in ``sys.argv[1:]``."""
    return [sys.executable, "-c", _CLEAN + text, *arguments]


def module(name: str, *arguments: str, attached: bool = False) -> list[str]:
    """Command that runs a module as ``python -m`` does, with arguments in ``sys.argv[1:]``.

    Args:
        name: of the module.
        arguments: texts.
        attached: it ends when this process has ended, see `end_with_parent`.
    """
    first = f"from verl_stvg.base import python; python.end_with_parent({os.getpid()}); " if attached else ""
    return code(f"{first}import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", *arguments)


def environment(path: bool = False) -> dict[str, str]:
    """This process's environment for another Python.

    An empty entry of PYTHONPATH, as ``PYTHONPATH=$PYTHONPATH:/some/folder`` leaves it, means the current folder, and is
    left out.

    Args:
        path: whether the other one is to import from all folders that are on this one's path now. Otherwise it finds
            what PYTHONPATH names and what is installed.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if path:
        entries = [os.path.abspath(entry) for entry in sys.path if entry and not entry.endswith(_HOOK)]
        ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        entries += [] if ours in entries else [ours]  # after all others: there may be more in it than this package
        entries = [entry for entry in entries if os.pathsep not in entry]  # would be read as two
    kept = os.pathsep.join(filter(None, entries))
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**rest, "PYTHONPATH": kept} if kept else rest


def answer_of(command: list[str], seconds: float) -> tuple[str, str]:
    """What a command of ours writes to standard output, and why it gives no answer; one of the two is empty.

    Args:
        command: see `code` and `module`.
        seconds: after which it is ended.
    """
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {seconds} s"
    if done.returncode:
        return "", next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
    return done.stdout, ""


def end_with_parent(parent: int | None = None) -> None:
    """End this process at once when its parent has ended, however that was; idempotent.

    A thread looks after it, because a parent-death signal would come when only the parent's thread ends.

    Args:
        parent: its process ID, if it may have ended already; default: the parent of now.
    """
    parent = parent or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=watch, name=_WATCH, daemon=True).start()


def guard_spawn() -> None:
    """Let multiprocessing's new processes start the same way; idempotent.

    They get the path of this process, but only once they have imported a part of the standard library.
    """
    util = multiprocessing.util
    if hasattr(util.spawnv_passfds, "__wrapped__"):
        return
    stock = util.spawnv_passfds

    @functools.wraps(stock)
    def spawnv_passfds(path, args, passfds):
        args = list(args)
        if "-c" in args:
            place = args.index("-c") + 1
            args[place] = _CLEAN + args[place]
        return stock(path, args, passfds)

    util.spawnv_passfds = spawnv_passfds


def guard_ray(job_config) -> None:
    """Keep the folder in which a driver stands off the path of Ray's workers, unless it is on the driver's own.

    Ray puts it first there. Idempotent.

    Args:
        job_config: the module ``ray.job_config``.
    """
    stock = job_config.JobConfig._get_proto_job_config
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def _get_proto_job_config(self):
        own = {os.path.abspath(path) for path in sys.path if path}
        self._py_driver_sys_path = [path for path in self._py_driver_sys_path if os.path.abspath(path) in own]
        return stock(self)

    job_config.JobConfig._get_proto_job_config = _get_proto_job_config


def guard_vllm(registry) -> None:
    """Let vLLM look at the classes of models in a process that is started the same way.

    Args:
        registry: the module ``vllm.model_executor.models.registry``.
    """
    registry._SUBPROCESS_COMMAND = module(registry.__name__)
