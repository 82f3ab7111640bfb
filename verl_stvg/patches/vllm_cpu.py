"""Weights of vLLM's linear layers on a CPU, which later weight syncs must find.

Versions: vLLM 0.24.0. ``tests/engine/test_training.py`` fails without it.
"""


def keep_linear_weights() -> None:
    """vLLM's CPU linear layers repack the weight and drop the original, so that no later weight sync finds it."""
    from vllm.model_executor.layers import utils

    stock = utils.dispatch_cpu_unquantized_gemm

    def dispatch_cpu_unquantized_gemm(layer, remove_weight):
        return stock(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm
