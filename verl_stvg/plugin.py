"""What verl imports in every process (entry-point group ``verl.plugins``): registers all that verl_stvg adds to it.

A run starts a dozen processes and most of them need little of it, so each addition waits for the module it belongs to:
importing verl costs hardly more with the plugin than without.

verl logs an exception raised here at DEBUG level and goes on without the plugin; a run would then train on a stock
clock, or fail an hour later. So a failure leaves as `PluginError`, which verl's ``except Exception`` does not catch.
"""

import functools
from collections.abc import Callable

from verl_stvg.base import extras


class PluginError(BaseException):
    """Registration failed; not an ``Exception``, because verl would swallow that."""


def when_imported(module: str, action: Callable) -> None:
    """Call ``action(module)`` once the module is imported, or now if it is; a failure is a `PluginError`."""
    import wrapt

    @functools.wraps(action)
    def loud(imported):
        try:
            action(imported)
        except Exception as error:
            raise PluginError(
                f"verl_stvg could not register itself with verl: {action.__name__} on {module}: {error!r}. Run "
                "`verl-stvg doctor`; to use verl without the plugin, set VERL_USE_EXTERNAL_PLUGINS=none."
            ) from error

    wrapt.register_post_import_hook(loud, module)


def register() -> None:
    """Mend positions and packing; register agent loop, metrics and checks, and the CPU if there is nothing else."""
    from verl_stvg.base import python
    from verl_stvg.launch import phases, preflight
    from verl_stvg.patches import (
        banned_tokens,
        checkpoints,
        cpu_platform,
        frame_loads,
        frozen_tower,
        linear_schedule,
        metrics_file,
        packed_positions,
        text_alone,
        transformers_positions,
        vllm_positions,
        weight_sockets,
    )
    from verl_stvg.training import known_log_probs, sampler, shared_attention, sharing

    python.guard_spawn()
    when_imported("ray.job_config", python.guard_ray)
    when_imported("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", transformers_positions.mend_modeling)
    when_imported("transformers.models.qwen2_5_vl.processing_qwen2_5_vl", transformers_positions.mend_processing)
    when_imported("verl.utils.tensordict_utils", packed_positions.mend)
    when_imported("verl.utils.config", preflight.install)
    when_imported("verl.workers.engine_workers", frozen_tower.mend_worker)
    when_imported("verl.workers.engine.fsdp.transformer_impl", frozen_tower.mend_engine)
    when_imported("verl.workers.engine_workers", banned_tokens.mend_worker)
    when_imported("verl.workers.engine.fsdp.transformer_impl", banned_tokens.mend_engine)
    when_imported("verl.workers.engine.fsdp.transformer_impl", linear_schedule.mend_engine)
    when_imported("verl.workers.engine.base", frame_loads.report_loads)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server", vllm_positions.mend_server)
    when_imported("verl.workers.engine_workers", checkpoints.mend_workers)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server", weight_sockets.mend_receiver)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_rollout", weight_sockets.mend_sender)
    when_imported("verl.utils.checkpoint.checkpoint_manager", checkpoints.mend_rotation)
    when_imported("verl.utils.checkpoint.fsdp_checkpoint_manager", checkpoints.mend_loading)
    when_imported("verl.trainer.ppo.v1.trainer_base", checkpoints.mend_trainer)
    when_imported("verl.trainer.ppo.ray_trainer", checkpoints.mend_trainer)
    when_imported("verl.trainer.ppo.ray_trainer", checkpoints.mend_epoch_border)
    when_imported("verl.utils.tracking", metrics_file.mend_metrics_file)
    when_imported("verl.trainer.ppo.v1.trainer_base", phases.mend_trainer)
    when_imported("verl.trainer.ppo.ray_trainer", phases.mend_trainer)
    when_imported("verl.workers.engine_workers", phases.mend_models)
    when_imported("verl.workers.rollout.llm_server", phases.mend_engine)
    when_imported("verl.experimental.agent_loop.agent_loop", phases.mend_loops)
    when_imported("verl.trainer.ppo.utils", sampler.mend)
    when_imported("verl.models.transformers.qwen2_vl", text_alone.mend)
    when_imported("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", shared_attention.keep_forward)
    when_imported("verl.workers.engine_workers", sharing.mend_worker)
    when_imported("verl.workers.engine.fsdp.transformer_impl", register_shared_prompts)
    when_imported("verl.trainer.ppo.v1.trainer_base", sharing.mend_trainer)
    when_imported("verl.trainer.ppo.v1.trainer_base", known_log_probs.mend_trainer)
    when_imported("verl.experimental.agent_loop", register_agent_loop)
    if cpu_platform.wanted():
        cpu_platform.register(when_imported)


def register_agent_loop(module) -> None:
    """Importing the module registers its loop with verl."""
    import verl_stvg.training.agent_loop  # noqa: F401


def register_shared_prompts(module) -> None:
    """Importing the engine imports verl's, which is there by now."""
    from verl_stvg.training import shared_prompt

    shared_prompt.install(module)


try:
    register()
except Exception as error:
    lacking = isinstance(error, ModuleNotFoundError) and extras.missing(error.name or "", ("cpu", "gpu"))
    raise PluginError(
        f"verl_stvg could not register itself with verl: {lacking or repr(error)}. Run `verl-stvg doctor`; to use verl "
        "without the plugin, set VERL_USE_EXTERNAL_PLUGINS=none."
    ) from error
