"""Which build of vLLM is installed, and which device a run is on because of it.

The installed vLLM decides: its CPU build can answer on no GPU, and its GPU build on no CPU. Imports the standard
library only, because every process that imports verl asks.
"""

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from verl_stvg.base.extras import install

CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""vLLM reserves gigabytes and pins every core otherwise; both stay overridable."""


@dataclass(frozen=True)
class Device:
    """Where a run of this machine is.

    Attributes:
        cpu: whether verl runs on our CPU platform; otherwise verl chooses by itself.
        because: the reason, as the end of a sentence.
        problem: why no run can start here, with the remedy; empty where one can.
        note: what is unusual and no fault; empty where nothing is.
    """

    cpu: bool
    because: str
    problem: str = ""
    note: str = ""


def installed() -> tuple[str, bool] | None:
    """Version of the installed vLLM, and whether it is the CPU build; None where there is no vLLM.

    The CPU build is a distribution of its own, ``vllm-cpu``, or, built from source, one whose version ends in ``+cpu``.
    """
    try:
        found = version("vllm")
        return found, "cpu" in found
    except PackageNotFoundError:
        pass
    try:
        return version("vllm-cpu") + "+cpu", True
    except PackageNotFoundError:
        return None


def device(gpus: int) -> Device:
    """The device of a run on this machine.

    Args:
        gpus: how many this machine sees.
    """
    named, build = os.environ.get("VERL_PLATFORM", "").strip().lower(), installed()
    if named:
        because = f"VERL_PLATFORM={named}"
        if build is None or build[1] == (named == "cpu"):
            return Device(named == "cpu", because)
        kind, other = ("CPU", "gpu") if build[1] else ("GPU", "cpu")
        return Device(
            named == "cpu", because, f"{because} and vLLM is the {kind} build; unset it, or run `{install(other)}`"
        )
    if build is None:
        return Device(False, "vLLM is not installed")
    if build[1]:
        note = f"GPUs are visible ({gpus}) and not used; to train on them, run `{install('gpu')}`" if gpus else ""
        return Device(True, "the installed vLLM is the CPU build", note=note)
    problem = (
        "vLLM is the GPU build and this machine sees no GPU: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES; or train "
        "on the GPUs of a Ray cluster (RAY_ADDRESS); or, to train on this CPU, make a new environment and run there "
        f"`{install('cpu')}`"
    )
    return Device(False, "the installed vLLM is the GPU build", "" if gpus else problem)
