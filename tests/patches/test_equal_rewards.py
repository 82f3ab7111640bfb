"""Equal rewards push nothing: verl's group estimators as `verl_stvg.patches.equal_rewards` mends them."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

from verl_stvg.patches import equal_rewards
from verl_stvg.training.metrics import reward_metrics
from verl_stvg.training.replay_buffer import PollingReplayBuffer

IOU = 0.42857142857142855  # of "4.00 to 8.00" with 5.0 to 11.0
PLAIN = [name for name in equal_rewards.ESTIMATORS if name != "reinforce_plus_plus_baseline"]
LENGTH = 5
_REWARDS = st.one_of(st.floats(0, 3), st.floats(0, 1).map(lambda iou: 2 + iou), st.sampled_from([0.0, 1.0, 2 + IOU]))


def rows_of(groups: list[list[float]]) -> dict:
    """Token-level rewards, masks and group names of a batch, the rows of the groups mixed; answers differ in length."""
    order = np.random.default_rng(0).permutation(sum(map(len, groups)))
    scores = np.array([score for group in groups for score in group])[order]
    names = np.array([f"u{k}" for k, group in enumerate(groups) for _ in group], dtype=object)[order]
    lengths = 1 + order % LENGTH
    rewards, mask = torch.zeros(len(order), LENGTH), torch.zeros(len(order), LENGTH, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        rewards[row, length - 1] = float(scores[row])
    return {"token_level_rewards": rewards, "response_mask": mask, "index": names}


def stock_estimator(name: str):
    """verl's own, whether or not this process has mended it."""
    from verl.trainer.ppo import core_algos

    found = core_algos.ADV_ESTIMATOR_REGISTRY[name]
    return getattr(found, "__wrapped__", found)


@pytest.mark.parametrize("by_std", [True, False])
@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
def test_verl_still_pushes_equal_rewards(name, by_std):
    """When this fails, verl gives equal rewards 0 itself, and `verl_stvg.patches.equal_rewards` can go."""
    rows = rows_of([[2.6] * 8, [0.6] * 12, [2.7] * 7])
    found, _ = stock_estimator(name)(**rows, norm_adv_by_std_in_grpo=by_std)
    assert found.abs().max() > (0.1 if by_std else 1e-8)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=30)
@example(score=2 + IOU, n=8, others=[[0.1, 0.2]])
@example(score=0.0, n=2, others=[])
@given(score=_REWARDS, n=st.integers(2, 16), others=st.lists(st.lists(_REWARDS, min_size=1, max_size=5), max_size=2))
def test_equal_rewards_get_exactly_zero_and_all_others_what_verl_gives_them(name, score, n, others):
    """Whatever the reward, the size of the group and what else is in the batch."""
    rows = rows_of([[score] * n, *others])
    before = rows["token_level_rewards"].clone()
    found, returns = equal_rewards.exact(stock_estimator(name))(**rows)
    wanted, _ = stock_estimator(name)(**rows)
    for uid in set(rows["index"]):
        ours = rows["index"] == uid
        same = rows["token_level_rewards"].sum(-1)[ours].unique().numel() == 1 and ours.sum() > 1
        assert torch.equal(found[ours], torch.zeros_like(found[ours]) if same else wanted[ours])
    assert torch.equal(found, returns) and torch.equal(rows["token_level_rewards"], before)


@settings(max_examples=30)
@given(groups=st.lists(st.tuples(_REWARDS, st.integers(2, 16)), min_size=1, max_size=3))
def test_a_batch_of_equal_groups_is_whitened_to_zero(groups):
    """Reinforce++ with a baseline divides by the batch's deviation, which is then made of rounding errors alone."""
    rows = rows_of([[score] * n for score, n in groups])
    found, _ = equal_rewards.exact(stock_estimator("reinforce_plus_plus_baseline"))(**rows)
    assert torch.equal(found, torch.zeros_like(found))


def test_whitening_keeps_what_other_groups_differ_by():
    """The mean and deviation of the batch are those without rounding errors; the algorithm is verl's."""
    rows = rows_of([[2 + IOU] * 8, [0.0, 1.0, 2.0, 2.5]])
    found, _ = equal_rewards.exact(stock_estimator("reinforce_plus_plus_baseline"))(**rows)
    wanted, _ = stock_estimator("reinforce_plus_plus_baseline")(**rows)
    assert torch.allclose(found, wanted, atol=1e-5) and found.abs().max() > 0.5


@pytest.fixture
def stock_verl(monkeypatch):
    """verl's module with its own estimators, as they are before a run; restored afterwards."""
    from verl.trainer.ppo import core_algos

    for name in list(core_algos.ADV_ESTIMATOR_REGISTRY):
        own = stock_estimator(name)
        monkeypatch.setitem(core_algos.ADV_ESTIMATOR_REGISTRY, name, own)
        monkeypatch.setattr(core_algos, own.__name__, own)
    return core_algos


def pushed(core_algos, estimator: str, rows: dict, **config) -> torch.Tensor:
    """Advantages of a batch, by the way both of verl's trainers go."""
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    given_ = {"token_level_rewards": rows["token_level_rewards"], "response_mask": rows["response_mask"]}
    given_["prompts"] = torch.ones(len(rows["index"]), 2, dtype=torch.int64)
    given_["attention_mask"] = torch.cat([given_["prompts"], rows["response_mask"]], dim=1)
    scores = rows["token_level_rewards"].sum(-1).tolist()
    columns = {"uid": rows["index"], "temporal_iou": np.array([round(score - 2, 6) for score in scores], dtype=object)}
    columns["format"] = np.array([1.0] * len(scores), dtype=object)
    keys = [f"{uid}_{place}_0" for place, uid in enumerate(rows["index"])]
    config = OmegaConf.create(config)
    data = DataProto.from_dict(given_, non_tensors=columns)
    found = compute_advantage_for_multi_trajectories(
        data, keys, core_algos.AdvantageEstimator(estimator), config=config
    )
    assert torch.equal(found.batch["token_level_rewards"], rows["token_level_rewards"])  # metrics read them
    return found.batch["advantages"]


@pytest.mark.parametrize("name", ["grpo", "gdpo", *equal_rewards.ESTIMATORS[1:]])
def test_a_run_is_mended_once_by_its_configuration(stock_verl, name):
    rows = rows_of([[2.6] * 8, [2.7] * 7])
    options = {"gdpo_reward_keys": ["temporal_iou", "format"]}
    before = pushed(stock_verl, name, rows, **options)
    equal_rewards.mend(OmegaConf.create({"algorithm": {"exact_zero_advantage": False}}))
    assert torch.equal(pushed(stock_verl, name, rows, **options), before)
    for _ in range(2):
        equal_rewards.mend(OmegaConf.create({"algorithm": {}}))
    assert pushed(stock_verl, name, rows, **options).eq(0).all()
    assert stock_verl.get_adv_estimator_fn(name) is getattr(stock_verl, stock_verl.get_adv_estimator_fn(name).__name__)
    assert not hasattr(stock_estimator(name), "__wrapped__")  # not wrapped twice
    if name in ("grpo", "grpo_vectorized", "gdpo"):  # the others may be exact for these rewards
        assert before.abs().max() > 0.01


def test_the_switch_is_a_known_truth_value():
    from verl_stvg.launch.config_checks import other_kinds
    from verl_stvg.launch.key_checks import ADDED_KEYS

    (problem,) = other_kinds(OmegaConf.create({"algorithm": {"exact_zero_advantage": "off"}}))
    assert problem.endswith("write algorithm.exact_zero_advantage=false")
    assert "algorithm.exact_zero_advantage" in ADDED_KEYS


def test_the_names_are_verls_and_no_estimator_is_forgotten():
    """A new estimator of verl's has to be looked at: does it subtract a mean of the group?"""
    from verl.trainer.ppo.core_algos import AdvantageEstimator

    left_alone = {"gae", "remax", "reinforce_plus_plus", "grpo_passk", "gdpo"}
    left_alone |= {"optimal_token_baseline", "tir_optimal_token_baseline"}
    assert {one.value for one in AdvantageEstimator} == {*equal_rewards.ESTIMATORS, *left_alone}


@settings(max_examples=30)
@given(score=_REWARDS, n=st.integers(2, 16))
def test_pass_at_k_is_exact_by_itself(score, n):
    rows = rows_of([[score] * n])
    found, _ = stock_estimator("grpo_passk")(**rows, config=OmegaConf.create({}))
    assert found.eq(0).all()


@settings(max_examples=50)
@given(
    group=st.one_of(
        st.lists(_REWARDS, min_size=1, max_size=8),
        st.builds(lambda score, n: [score, np.nextafter(score, 9.0), *[score] * n], _REWARDS, st.integers(0, 6)),
    )
)
def test_the_metric_counts_the_groups_that_push_nothing(group):
    """Also where float64 scores differ by less than float32, in which verl has them, resolves."""
    rows = rows_of([group])
    found, _ = equal_rewards.exact(stock_estimator("grpo"))(**rows)
    metrics = reward_metrics([f"u0_{k}_0" for k in range(len(group))], [{"score": score} for score in group])
    if len(group) > 1:
        assert metrics["reward/zero_variance_groups"] == float(found.eq(0).all())


def test_scores_that_are_not_finite_stay_visible():
    rows = rows_of([[float("inf")] * 3, [float("nan")] * 3])
    found, _ = equal_rewards.exact(stock_estimator("grpo"))(**rows)
    assert found.isnan().any(dim=-1).all()


def dropped(monkeypatch, buffer_class, groups: list[list[float]], metric: str) -> set[str]:
    """Groups that a replay buffer of verl's filters out, by a part of the reward."""
    import transfer_queue as tq

    infos = {f"u{g}_{k}_0": {"iou": value} for g, group in enumerate(groups) for k, value in enumerate(group)}
    extra = {key: {"reward_extra_info": info} for key, info in infos.items()}

    def kv_batch_get(keys, **_):
        columns = {"extra_fields": NonTensorStack(*[extra[key] for key in keys])}
        return TensorDict(columns, batch_size=[len(keys)])

    monkeypatch.setattr(tq, "kv_batch_get", kv_batch_get)
    filtering = {"enable": True, "metric": metric, "max_inflight_gen_batches": 1}
    kwargs = {"trainer_mode": "sync", "trainer_config": {}, "max_off_policy_threshold": 8}
    kwargs |= {"max_off_policy_strategy": "drop", "refill_fn": lambda count: None}
    sampler = {"filter_groups": filtering, "train_batch_size": 1} if buffer_class is PollingReplayBuffer else {}
    stock = {} if sampler else {"filter_groups_metric": metric, "train_batch_size": 1, "gen_batch_size": 1}
    buffer = buffer_class(sampler_kwargs=OmegaConf.create(sampler), **kwargs, **stock)
    buffer.partitions["train"] = dict.fromkeys(infos)
    buffer.finished_keys["train"] = {f"u{g}" for g in range(len(groups))}
    found, counts = buffer._dapo_filtered_keys("train")
    assert sum(counts.values()) == len(found) and buffer._dapo_filtered_keys("train") == (found, counts)
    return found


def test_verl_still_keeps_groups_of_equal_values(monkeypatch):
    """When this fails, verl's filtering compares values, and `PollingReplayBuffer._dapo_filtered_keys` can go."""
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    assert dropped(monkeypatch, ReplayBuffer, [[0.5] * 6, [0.1] * 6], "iou") == {"u0"}


def test_groups_of_equal_values_are_filtered_whatever_their_size(monkeypatch):
    groups = [[0.1] * n for n in range(2, 17)] + [[0.1] * 5 + [0.2], [0.3]]
    assert dropped(monkeypatch, PollingReplayBuffer, groups, "iou") == {f"u{k}" for k in range(15)}
    with pytest.raises(RuntimeError, match="missing DAPO metric 'jou'"):
        dropped(monkeypatch, PollingReplayBuffer, groups, "jou")
