"""Held-out means are over all prompts that were asked, and what is missing is counted, in both trainers of verl."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_stvg.launch.run import summary
from verl_stvg.training import held_out

SOURCE = "stvg_r1/x"


def validation(answers, n, source=SOURCE, name="temporal_iou"):
    """What verl hands over: sources and uids of the answers, reward and part, and the answers asked for."""
    uids = [uid for uid, values in answers.items() for _ in values]
    values = [value for one in answers.values() for value in one]
    infos = {"reward": [2 * value for value in values], name: values}
    return [source] * len(uids), uids, infos, {(source, uid): n for uid in answers}


def test_a_group_that_lost_answers_counts_as_one_prompt():
    answers = {f"u{k}": [0.25] * 8 for k in range(47)} | {"u47": [1.0] * 5}
    found = held_out.metrics(*validation(answers, 8))
    assert found[f"held_out/{SOURCE}/temporal_iou/mean"] == pytest.approx((47 * 0.25 + 1) / 48)
    assert [found[f"held_out/{SOURCE}/{name}"] for name in held_out.COUNTS] == [48, 0, 384, 3]


def test_a_prompt_without_any_answer_is_worth_nothing():
    found = held_out.metrics(*validation({f"u{k}": [0.8] if k < 12 else [] for k in range(16)}, 1))
    assert found[f"held_out/{SOURCE}/temporal_iou/mean"] == pytest.approx(0.8 * 12 / 16)
    assert found[f"held_out/{SOURCE}/reward/mean"] == pytest.approx(1.6 * 12 / 16)
    assert [found[f"held_out/{SOURCE}/{name}"] for name in held_out.COUNTS] == [16, 4, 16, 4]
    assert summary(found) == "held-out reward 1.200  temporal_iou 0.600  missing 4 of 16 answers"


def test_a_set_of_which_nothing_came_is_named():
    sources, uids, infos, expected = validation({"a": [0.5]}, 1)
    found = held_out.read(held_out.metrics(sources, uids, infos, expected | {("y", "b"): 4}))
    assert found["y"].means == {"reward": 0.0}
    assert found["y"].counts == {"prompts": 1, "unanswered": 1, "asked": 4, "missing": 4}
    assert found[SOURCE].counts["missing"] == 0
    nothing = held_out.metrics([], [], {"reward": []}, {("y", "b"): 4})
    assert summary(nothing) == "held-out reward 0.000  missing 4 of 4 answers"


def test_parts_are_of_the_sets_that_have_them():
    infos = {"reward": [1.0, 2.0], "id_match": [1.0, None], "option": [None, True], "pred": ["a", "b"]}
    found = held_out.read(held_out.metrics(["x", "y"], ["a", "b"], infos, {("x", "a"): 1, ("y", "b"): 1}))
    assert found["x"].means == {"reward": 1.0, "id_match": 1.0}
    assert found["y"].means == {"reward": 2.0, "option": 1.0}
    assert held_out.overall(found, "id_match") == 1.0 and held_out.overall(found, "reward") == 1.5
    assert held_out.overall(found, "tube_iou") is None


VALUES = st.lists(st.floats(0, 1), max_size=4)


@given(st.dictionaries(st.tuples(st.sampled_from(["a/b", "c"]), st.integers(0, 30)), VALUES, min_size=1), st.data())
def test_means_are_those_of_the_prompts_whatever_the_order_and_are_read_back(answers, data):
    rows = [(source, f"u{uid}", value) for (source, uid), values in answers.items() for value in values]
    rows = data.draw(st.permutations(rows))
    sources, uids, values = zip(*rows, strict=True) if rows else ((), (), ())
    expected = {(source, f"u{uid}"): 4 for source, uid in answers}
    logged = json.loads(json.dumps(held_out.metrics(sources, uids, {"reward": values}, expected)))
    found = held_out.read(logged)
    for source in {source for source, _ in answers}:
        prompts = [values for (one, _), values in answers.items() if one == source]
        mean = np.mean([np.mean(values) if values else 0.0 for values in prompts])
        assert found[source].means["reward"] == pytest.approx(mean, abs=1e-12)
        assert found[source].counts["missing"] == sum(4 - len(values) for values in prompts)
        assert found[source].counts["unanswered"] == sum(not values for values in prompts)
    mean = np.mean([np.mean(values) if values else 0.0 for values in answers.values()])
    assert held_out.overall(found, "reward") == pytest.approx(mean, abs=1e-12)


def test_what_was_not_a_number_stays_none():
    found = held_out.metrics(*validation({"a": [math.nan], "b": [1.0]}, 1))
    assert math.isnan(found[f"held_out/{SOURCE}/reward/mean"])
    read = held_out.read({f"held_out/{SOURCE}/reward/mean": None, f"held_out/{SOURCE}/prompts": 2})
    assert math.isnan(read[SOURCE].means["reward"]) and held_out.overall(read, "reward") is None


def test_both_trainers_of_verl_log_it():
    from omegaconf import OmegaConf
    from verl.trainer.ppo import ray_trainer
    from verl.trainer.ppo.v1 import trainer_base

    from verl_stvg.training import legacy, metrics

    metrics.log_metrics()
    metrics.log_metrics()
    answers = {f"u{k}": [0.25] * 8 for k in range(3)} | {"u3": [1.0] * 5, "u4": []}
    sources, uids, infos, expected = validation(answers, 8)
    update = trainer_base.PPOTrainer._val_metrics_update
    logged = update(None, sources, uids, infos, [2] * len(uids), expected_acc_counts=expected)
    assert logged[f"val-aux/{SOURCE}/temporal_iou/mean@8"] == 0.25  # verl's own, of the whole groups
    assert logged[f"val-aux/{SOURCE}/temporal_iou/mean@5"] == 1.0  # and apart
    assert logged[f"held_out/{SOURCE}/temporal_iou/mean"] == pytest.approx((3 * 0.25 + 1 + 0) / 5)
    assert logged[f"held_out/{SOURCE}/missing"] == 11 and logged[f"held_out/{SOURCE}/asked"] == 40
    logged = update(None, sources, uids, infos, [2] * len(uids))  # what is not known to be asked is not missing
    assert logged[f"held_out/{SOURCE}/missing"] == 0 and logged[f"held_out/{SOURCE}/asked"] == 29

    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"val_kwargs": {"n": 8}}}})
    legacy.log_metrics(config)
    sources, uids, infos, _ = validation({f"u{k}": [0.25] * 8 for k in range(3)}, 8)
    update = ray_trainer.RayPPOTrainer._val_metrics_update
    logged = update(SimpleNamespace(config=config), np.array(sources), uids, infos, [np.array([2])])
    assert logged[f"held_out/{SOURCE}/temporal_iou/mean"] == logged[f"val-aux/{SOURCE}/temporal_iou/mean@8"] == 0.25
    assert logged[f"held_out/{SOURCE}/missing"] == 0 and logged[f"held_out/{SOURCE}/asked"] == 24


def test_groups_of_one_are_counted_apart():
    from verl_stvg.training.metrics import reward_metrics

    def shares(scores):
        keys = [f"{uid}_{k}_0" for uid, values in scores.items() for k in range(len(values))]
        found = reward_metrics(keys, [{"score": value} for values in scores.values() for value in values])
        return found["reward/zero_variance_groups"], found["reward/groups_of_one"]

    assert shares({"a": [0.2], "b": [1.0], "c": [3.0]}) == (0, 1)
    assert shares({"a": [0.2], "b": [1.0, 1.0], "c": [3.0, 1.0], "d": [1.0, 0.0]}) == (0.25, 0.25)


def test_a_batch_is_made_of_the_groups_that_were_chosen_in_their_order(monkeypatch):
    from verl.trainer.ppo.v1 import replay_buffer

    from verl_stvg.training.replay_buffer import PollingReplayBuffer

    monkeypatch.setattr(replay_buffer.tq, "kv_clear", lambda **_: None)  # the queue of a running trainer
    buffer = PollingReplayBuffer(
        trainer_mode="sync",
        trainer_config=None,
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
    )
    buffer.prompt_global_steps["train"] = dict.fromkeys(["z", "y", "x", "w"], 1)
    snapshot = {key: {} for key in ("x_10_0", "y_0_0", "x_2_0", "v_0_0", "w_0_0", "z_1_0", "z_0_0")}
    batch = buffer._materialize_batch("train", ["x", "z", "v"], snapshot)
    assert list(batch.keys) == ["z_0_0", "z_1_0", "x_2_0", "x_10_0", "v_0_0"]
