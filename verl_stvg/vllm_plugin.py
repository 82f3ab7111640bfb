"""What vLLM imports in every one of its processes (entry-point group ``vllm.general_plugins``).

Imports no verl, which not every vLLM process has loaded. Mends the video clock, and lets vLLM's own processes end
with the process that started them: after a failed run verl and Ray leave them behind, several gigabytes each.
"""

import multiprocessing

import wrapt

from verl_stvg import moved
from verl_stvg.base import python
from verl_stvg.patches import transformers_positions, vllm_cpu, vllm_positions

__getattr__ = moved.names_of(__name__, {"BanningWorker": "verl_stvg.patches.banned_tokens"})


def register() -> None:
    """Mend this vLLM process; idempotent. On a CPU also let it take new weights."""
    from vllm.platforms import current_platform

    python.guard_spawn()
    wrapt.register_post_import_hook(python.guard_vllm, "vllm.model_executor.models.registry")
    transformers_positions.mend_transformers()
    vllm_positions.mend_vllm()
    if current_platform.is_cpu():
        vllm_cpu.keep_linear_weights()
    if multiprocessing.parent_process() is not None:
        python.end_with_parent()
