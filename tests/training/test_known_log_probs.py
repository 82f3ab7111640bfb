"""Without a pass for old log-probabilities: the update's own serve, and every metric is what the pass would give."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils as tu

from tests.support import shared_prompts as small
from tests.support.shared_prompts import Engines, Prompt
from verl_stvg.training.known_log_probs import OWN, why_kept

KIND = "qwen3_vl"


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    with small.alone():
        yield Engines({KIND: small.make_model(KIND, tmp_path_factory.mktemp(KIND))})


@pytest.mark.parametrize("weighed", [True, False])
def test_the_updates_own_are_what_a_pass_gives(engines, weighed):
    loss = small.loss_of(entropy_coeff=0.01 if weighed else 0)
    batch = small.make_batch(KIND, [Prompt([5, 9, 3]), Prompt([4])], micro_batch_size_per_gpu=3)
    found = small.read(engines.get(True, KIND), batch)
    tu.assign_non_tensor(batch, calculate_entropy=weighed)
    passed = small.step(engines.get(True, KIND), batch, loss, old=found["log_probs"])
    tu.assign_non_tensor(batch, **{OWN: True})
    own = small.step(engines.get(True, KIND), batch, loss, old=torch.full_like(found["log_probs"], 9.0))
    (returned,) = own["metrics"].pop(OWN)
    for name, column in (("old_log_probs", "log_probs"), ("entropy", "entropy")):
        assert [len(row) for row in returned[name]] == batch["responses"].offsets().diff().tolist()
        torch.testing.assert_close(torch.cat(returned[name]), found[column], atol=1e-6, rtol=0)
    assert own["metrics"].keys() == passed["metrics"].keys()
    assert ("actor/entropy_loss" in own["metrics"]) is weighed
    torch.testing.assert_close(own["loss"], passed["loss"], atol=1e-6, rtol=0)
    for name, gradient in passed["gradients"].items():
        torch.testing.assert_close(own["gradients"][name], gradient, atol=1e-6, rtol=1e-4)


def config(**changes):
    usual = {
        "actor_rollout_ref.actor": {
            "strategy": "fsdp2",
            "use_prefix_grouper": True,
            "ppo_mini_batch_size": 2,
            "ppo_epochs": 1,
            "loss_agg_mode": "seq-mean-token-mean",
            "loss_scale_factor": None,
        },
        "actor_rollout_ref.rollout": {"n": 4, "calculate_log_probs": True},
        "actor_rollout_ref.model": {},
        "algorithm": {
            "use_kl_in_reward": False,
            "adv_estimator": "grpo",
            "rollout_correction": {"rollout_is": None, "rollout_rs": None, "bypass_mode": False},
        },
        "trainer": {"critic_warmup": 0, "v1": {"trainer_mode": "sync"}},
    }
    made = OmegaConf.create()
    for key, value in usual.items():
        OmegaConf.update(made, key, value)
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"actor_rollout_ref__actor__use_prefix_grouper": False}, "use_prefix_grouper is not in use"),
        ({"algorithm__own_old_log_probs": False}, "own_old_log_probs is false"),
        ({"actor_rollout_ref__actor__ppo_epochs": 2}, "ppo_epochs is 2"),
        ({"actor_rollout_ref__actor__ppo_mini_batch_size": 1}, "8 trajectories is 2 mini-batches"),
        ({"algorithm__use_kl_in_reward": True}, "use_kl_in_reward"),
        ({"algorithm__rollout_correction__rollout_is": "token"}, "rollout_correction"),
        ({"algorithm__rollout_correction__rollout_rs": "token_k1"}, "rollout_correction"),
        ({"algorithm__rollout_correction__bypass_mode": True}, "rollout_correction"),
        ({"algorithm__adv_estimator": "optimal_token_baseline"}, "optimal_token_baseline"),
        ({"trainer__critic_warmup": 5}, "critic_warmup"),
        ({"trainer__v1__trainer_mode": "separate_async"}, "trainer_mode"),
    ],
)
def test_the_pass_stays_where_it_is_needed(change, reason):
    found = why_kept(config(**change), rows=8)
    assert found is None if reason is None else reason in found


class Batch(SimpleNamespace):
    """What verl's trainer knows of the queue's rows."""

    def __len__(self):
        return len(self.keys)


class Queue:
    """verl's queue, in this process; fields that are not there are left out, as verl's does."""

    def __init__(self, batch, fields):
        self.batch, self.fields = batch, dict(fields)

    def kv_batch_put(self, keys, partition_id, fields):
        self.fields.update(dict(fields.items()))
        return self.batch

    def kv_batch_get(self, keys, partition_id, select_fields):
        found = {name: self.fields[name] for name in select_fields if name in self.fields}
        return TensorDict(found, batch_size=len(keys))


class Workers:
    """Two workers, who know the answers' log-probabilities and entropies, and note what they are asked."""

    def __init__(self, queue, columns):
        self.queue, self.columns, self.asked = queue, columns, []

    def compute_log_prob(self, batch):
        self.asked.append("pass")
        for name in ("log_probs", "entropy"):  # of whole sequences, each value at the place before its token
            whole = [torch.cat([torch.zeros(2), row, torch.zeros(1)]) for row in self.columns[name]]
            self.queue.fields[name] = torch.nested.as_nested_tensor(whole, layout=torch.jagged)
        return batch

    def update_actor(self, batch):
        self.asked.append("update")
        names = {"old_log_probs": "log_probs", "entropy": "entropy"}
        halves = [{name: self.columns[of][4 * k : 4 * k + 4] for name, of in names.items()} for k in range(2)]
        return {"metrics": {"mfu": [0.1], **({OWN: halves} if OWN in batch.extra_info else {})}}


def test_metrics_are_those_of_the_pass(monkeypatch):
    """Through verl's own trainer."""
    torch.manual_seed(0)
    lengths = [3, 5, 2, 4, 1, 6, 2, 3]
    columns = {name: [-torch.rand(length) for length in lengths] for name in ("log_probs", "rollout_log_probs")}
    columns["entropy"] = [torch.rand(length) for length in lengths]
    columns["response_mask"] = [torch.ones(length, dtype=torch.long) for length in lengths]
    columns["responses"] = [torch.arange(length) for length in lengths]
    sent = {
        name: torch.nested.as_nested_tensor(columns[name], layout=torch.jagged)
        for name in ("rollout_log_probs", "response_mask", "responses")
    }
    rest = {"calculate_entropy": False, "entropy_coeff": 0.0, "data_loader_seed": 1, "shuffle": False}

    def metrics_with(**change):
        batch = Batch(keys=[str(row) for row in range(8)], partition_id="train", extra_info={})
        queue, settings = Queue(batch, sent), config(**change)
        workers = Workers(queue, columns)
        monkeypatch.setattr(trainer_base, "tq", queue)
        OmegaConf.update(settings, "actor_rollout_ref.rollout.temperature", 1.0)
        for name, value in rest.items():
            OmegaConf.update(settings, f"actor_rollout_ref.actor.{name}", value)
        trainer, metrics = SimpleNamespace(config=settings, actor_rollout_wg=workers), {}
        trainer_base.PPOTrainer._compute_old_log_prob(trainer, batch, metrics)
        fields = ["rollout_log_probs", "response_mask", "old_log_probs"]
        data = trainer_base.DataProto(batch=queue.kv_batch_get(batch.keys, "train", fields).to_padded_tensor())
        correct = trainer_base.compute_rollout_correction_and_add_to_batch  # as the advantages call it
        metrics.update(correct(data, settings.algorithm.rollout_correction)[1])
        trainer_base.PPOTrainer._update_actor(trainer, batch, metrics)
        return metrics, workers.asked, queue.fields["old_log_probs"].values()

    kept, asked, old = metrics_with(algorithm__own_old_log_probs=False)
    assert asked == ["pass", "update"]
    left_out, asked, own = metrics_with()
    assert asked == ["update"] and torch.equal(own, old)
    assert left_out == pytest.approx(kept)
    assert {"actor/entropy", "training/rollout_probs_diff_max", "rollout_corr/kl"} <= kept.keys()
