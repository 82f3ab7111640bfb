"""What vLLM imports in every one of its processes (entry-point group ``vllm.general_plugins``).

Imports no verl, which not every vLLM process has loaded. Mends the video clock, and lets vLLM's own processes end
with the process that started them: after a failed run verl and Ray leave them behind, several gigabytes each.
"""

import multiprocessing
import os
import threading
import time

import wrapt

from verl_stvg import python

_POLL_SECONDS = 1.0
_watching = False


def register() -> None:
    """Mend this vLLM process; idempotent. On a CPU also let it take new weights."""
    from vllm.platforms import current_platform

    from verl_stvg.video import positions

    python.guard_spawn()
    wrapt.register_post_import_hook(python.guard_vllm, "vllm.model_executor.models.registry")
    positions.mend_transformers()
    positions.mend_vllm()
    if current_platform.is_cpu():
        _keep_linear_weights()
    if multiprocessing.parent_process() is not None:
        _end_with_parent()


def _keep_linear_weights() -> None:
    """vLLM's CPU linear layers repack the weight and drop the original, so that no later weight sync finds it."""
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm

    def dispatch_cpu_unquantized_gemm(layer, remove_weight):
        return stock(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


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
