"""What vLLM imports in every one of its processes (entry-point group ``vllm.general_plugins``).

Mends the video clock, and lets vLLM's own processes end with the process that started them: after a failed run verl
and Ray leave them behind, several gigabytes each.
"""

import multiprocessing
import os
import threading
import time

_POLL_SECONDS = 1.0
_watching = False


def register() -> None:
    """Mend this vLLM process; idempotent. On a CPU also let it take new weights."""
    from vllm.platforms import current_platform

    from verl_stvg.video import positions

    positions.mend_transformers()
    positions.mend_vllm()
    if current_platform.is_cpu():
        from verl_stvg import cpu

        cpu.keep_linear_weights()
    if multiprocessing.parent_process() is not None:
        _end_with_parent()


def _end_with_parent() -> None:
    """Leave when the parent process is gone. A thread, because a parent-death signal would fire when only its thread
    ends.
    """
    global _watching
    if _watching:
        return
    _watching = True
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="verl_stvg-parent-watch", daemon=True).start()
