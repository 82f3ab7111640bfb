"""The manager of agent loops in verl's V1 trainer: metrics, keys instead of pixels, rollouts by bin.

The manager is where verl lets a plugin into the trainer's process (``rollout.agent.agent_loop_manager_class``), so it
brings along the metrics (`verl_stvg.training.metrics`) and the workers, whose trajectories carry keys and no pixels.
"""

import ray
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from verl_stvg.patches import equal_rewards
from verl_stvg.rows.settings import switch_cache_off, why_pixels_must_travel
from verl_stvg.training.metrics import log_metrics
from verl_stvg.training.replay_buffer import ROLLOUTS, check_filtering
from verl_stvg.training.sampler import FEWEST, bins_of, rollout_counts, rollouts_of
from verl_stvg.training.worker import VideoGroundingWorker


class VideoGroundingLoopManager(AgentLoopManagerTQ):
    """verl's manager with `VideoGroundingWorker`, in a trainer that logs ``reward/<part>/mean`` and `video_metrics`.

    Where the rollout is not vLLM's, the cache is switched off, with a warning, and pixels travel as in verl.

    ``data.rollouts`` gives the prompts of each bin a number of rollouts of their own (`rollout_counts`).
    """

    def __init__(self, config, *args, **kwargs):
        log_metrics()
        equal_rewards.mend(config)
        check_filtering(config)
        self.rollouts = checked_rollouts(config)
        reason = why_pixels_must_travel(config)
        if reason:
            switch_cache_off(config, reason)
        super().__init__(config, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(VideoGroundingWorker)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch a batch, of training prompts those with a number of rollouts of their own where it is asked for."""
        if self.rollouts and "validate" not in prompts:
            share_rollouts(prompts, self.rollouts, self.config.actor_rollout_ref.rollout.n)
        super().generate_sequences(prompts)

    @classmethod
    def create(cls, *args, config, **kwargs):
        """The manager of a run; with ``trainer.use_v1=false`` a `verl_stvg.training.legacy.LegacyLoopManager`."""
        if config.trainer.use_v1:
            return super().create(*args, config=config, **kwargs)
        from verl_stvg.training.legacy import LegacyLoopManager  # loads the older trainer

        return LegacyLoopManager.create(*args, config=config, **kwargs)


def share_rollouts(prompts: TensorDict, asked: dict[str, int], n: int) -> None:
    """Give the prompts of a training batch numbers of rollouts by bin, where verl looks for them.

    Args:
        prompts: of the batch, with ``extra_info``; gets the column `ROLLOUTS`.
        asked: rollouts of a prompt by the bin of its row, before they are scaled.
        n: rollouts of a prompt on average.
    """
    counts = rollout_counts(bins_of(list(prompts["extra_info"]), "data.rollouts"), asked, n)
    prompts[ROLLOUTS] = NonTensorStack(*counts)


def checked_rollouts(config) -> dict[str, int] | None:
    """Rollouts by bin that ``data.rollouts`` asks for, None where it does not.

    Raises:
        ValueError: the trainer would dispatch prompts one by one, so that their rollouts cannot change hands.
    """
    asked = rollouts_of(config.data)
    if asked is None:
        return None
    mode = config.trainer.v1.trainer_mode
    if mode != "sync" or (config.algorithm.get("filter_groups") or {}).get("enable"):
        raise ValueError(
            f"data.rollouts shares out the rollouts of a whole batch, and with trainer.v1.trainer_mode={mode} or "
            "algorithm.filter_groups.enable=true verl sends prompts out one by one; use trainer_mode=sync without "
            "filtering, or leave data.rollouts out"
        )
    if config.actor_rollout_ref.rollout.n < FEWEST:
        raise ValueError(f"data.rollouts needs actor_rollout_ref.rollout.n of at least {FEWEST}")
    return asked
