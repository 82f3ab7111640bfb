"""What verl imports in every process (entry-point group ``verl.plugins``): registers all that verl_stvg adds to it.

verl logs an exception raised here at DEBUG level and goes on without the plugin; a run would then train on a stock
clock, or fail an hour later. So a failure leaves as `PluginError`, which verl's ``except Exception`` does not catch.
"""

import logging

logger = logging.getLogger(__name__)


class PluginError(BaseException):
    """Registration failed; not an ``Exception``, because verl would swallow that."""


def register() -> None:
    """Mend the positions, register the agent loop and the pre-flight check, and the CPU platform where nothing else is
    there.
    """
    from verl_stvg import cpu, packing, preflight
    from verl_stvg.video import positions

    positions.mend_transformers()
    packing.mend_verl()  # before anything imports verl's workers
    if cpu.wanted():
        cpu.register()
    preflight.install()
    from verl_stvg import rollout  # noqa: F401  (registers the agent loop)


try:
    register()
except Exception as error:
    raise PluginError(
        f"verl_stvg could not register itself with verl: {error!r}. Run `verl-stvg doctor`; to use verl without the "
        "plugin, set VERL_USE_EXTERNAL_PLUGINS=none."
    ) from error
