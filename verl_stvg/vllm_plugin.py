"""What vLLM imports in every one of its processes (entry-point group ``vllm.general_plugins``).

Imports no verl, which not every vLLM process has loaded. Mends the video clock, and lets vLLM's own processes end
with the process that started them: after a failed run verl and Ray leave them behind, several gigabytes each.
"""

import math
import multiprocessing
from collections.abc import Sequence

import wrapt

from verl_stvg.base import python
from verl_stvg.patches.banned_tokens import Banned


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
        python.end_with_parent()


class BanningWorker:
    """What evaluation adds to vLLM's workers (``worker_extension_cls``): they say what the rollout can say, no more."""

    def ban(self, vocabulary: int, ids: Sequence[int]) -> None:
        """Take tokens out of the logits, as verl does in the rollout; see `verl_stvg.patches.banned_tokens.Banned`."""
        banned, model = Banned(vocabulary, tuple(ids)), self.model_runner.get_model()
        stock = model.compute_logits

        def compute_logits(*args, **kwargs):
            logits = stock(*args, **kwargs)
            return logits if logits is None else banned.out_of(logits, -math.inf)

        model.compute_logits = compute_logits


def _keep_linear_weights() -> None:
    """vLLM's CPU linear layers repack the weight and drop the original, so that no later weight sync finds it."""
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm

    def dispatch_cpu_unquantized_gemm(layer, remove_weight):
        return stock(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm
