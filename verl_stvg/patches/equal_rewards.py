"""Groups of equal rewards get an advantage of exactly 0; verl 0.9.1 leaves them the rounding error of their mean.

In float32 the mean of eight equal rewards often differs from the reward in its last bits, because the sums on the way
are rounded. verl subtracts the mean and divides by a deviation of the same size, so that a group that teaches nothing
pushes the policy: advantages reach 0.19 with eight rewards, 0.32 with twelve (``python -m benchmarks equal_rewards``).

Each of verl's estimators that compares a rollout with the mean of its group is given such a group as a group of ones,
or of zeros where the reward is 0: their sums, means and deviations are exact, and verl's own arithmetic gives 0.
Nothing else is changed: advantages of other groups are verl's to the bit, but for the two estimators that then whiten
the whole batch, in whose mean and deviation the rounding errors no longer are.

Left alone, because they are exact or their algorithm has no such 0: ``grpo_passk`` (differences of two rewards), the
two optimal token baselines (a mean by token, none where the longest answer is alone), and ``gae``, ``remax`` and
``reinforce_plus_plus``, which know no groups. Tests: ``tests/patches/test_equal_rewards.py`` says when verl no longer
needs this.
"""

import functools
import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

logger = logging.getLogger(__name__)

ESTIMATORS = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg", "reinforce_plus_plus_baseline")
"""verl's names of the estimators that subtract a mean of the group; ``gdpo`` calls the first, once for each part."""


def mend(config) -> None:
    """Let verl's `ESTIMATORS` of this process give groups of equal rewards 0; idempotent.

    Args:
        config: of the run. With ``algorithm.exact_zero_advantage=false`` (default true) nothing is changed.
    """
    if not config.algorithm.get("exact_zero_advantage", True):
        logger.info("algorithm.exact_zero_advantage is false: equal rewards keep the rounding errors of their mean")
        return
    from verl.trainer.ppo import core_algos

    for name in ESTIMATORS:
        stock = core_algos.ADV_ESTIMATOR_REGISTRY[name]
        if hasattr(stock, "__wrapped__"):
            return
        core_algos.ADV_ESTIMATOR_REGISTRY[name] = exact(stock)
        setattr(core_algos, stock.__name__, core_algos.ADV_ESTIMATOR_REGISTRY[name])  # verl calls GRPO's by its name


def exact(estimator):
    """An estimator of verl that sees groups of equal rewards as `with_ones` has them."""

    @functools.wraps(estimator)
    def mended(token_level_rewards, response_mask, index, *args, **kwargs):
        return estimator(with_ones(token_level_rewards, index), response_mask, index, *args, **kwargs)

    return mended


def with_ones(token_level_rewards, index: Sequence[Hashable]):
    """The rewards, in which groups of two or more equal scores score 1 each, or 0 where they did.

    Scores are equal if their float32 sums over the tokens are, as verl sums them. A score of
    `verl_stvg.training.reward` stands at one token, so that its sum is the score itself: two answers whose float64
    scores differ by less than float32 resolves are equal here, and in the metric ``reward/zero_variance_groups``.

    Args:
        token_level_rewards: tensor (B, T), float32; not changed.
        index: (B,) group of each row. Groups of one, and those whose score is not finite, stay as they are.
    """
    scores = token_level_rewards.sum(dim=-1).tolist()
    groups = defaultdict(list)
    for row, group in enumerate(index):
        groups[group].append(row)
    rewards = token_level_rewards.clone()
    for rows in groups.values():
        score = scores[rows[0]]
        if len(rows) > 1 and math.isfinite(score) and all(scores[row] == score for row in rows):
            rewards[rows] = 0.0
            rewards[rows, 0] = float(score != 0.0)
    return rewards
