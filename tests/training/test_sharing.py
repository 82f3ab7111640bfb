"""Which trajectories share a micro batch and a rank, and what stands against it."""

import inspect
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from verl_stvg.training import groups, sharing
from verl_stvg.training.groups import cut, equalised, on_ranks


def test_a_group_is_cut_by_tokens():
    answers = [10, 20, 30, 5, 5]
    assert cut([0, 1, 2, 3, 4], "a", 100, answers) == [[0, 1, 2, 3, 4]]
    assert cut([0, 1, 2, 3, 4], "a", 100, answers, budget=135) == [[0, 1], [2, 3], [4]]
    assert cut([2, 0], "a", 100, answers, budget=130) == [[2], [0]]
    with pytest.raises(ValueError, match="the prompt a and one of its answers have 130 tokens"):
        cut([0, 1, 2], "a", 100, answers, budget=129, strict=True)
    assert cut([0, 1, 2], "a", 100, answers, budget=129) == [[0], [1], [2]]


def test_ranks_get_as_many_parts():
    assert equalised([[0, 1, 2, 3], [4, 5]], 4) == [[0], [1], [2, 3], [4, 5]]
    for count in range(2, 7):
        parts = equalised([[0, 1, 2, 3], [4, 5]], count)
        assert len(parts) == count and sorted(row for part in parts for row in part) == list(range(6))
        assert all(len({row < 4 for row in part}) == 1 for part in parts)


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    ranks=st.integers(1, 4),
    slices=st.integers(1, 3),
    data=st.data(),
)
def test_every_row_goes_to_one_rank(sizes, ranks, slices, data):
    rows = sum(sizes)
    fill = -rows % (ranks * slices)
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    made = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    made += [[rows + k] for k in range(fill)]
    total = rows + fill
    answers = data.draw(st.lists(st.integers(0, 50), min_size=total, max_size=total))
    parts = on_ranks(made, [100] * total, answers, ranks, slices)
    assert sorted(row for part in parts for row in part) == list(range(total))
    assert {len(part) for part in parts} == {total // ranks}
    # pieces of groups: no more than there must be
    room = total // (ranks * slices)
    pieces = Counter()
    for part in parts:
        for first in range(0, len(part), room):
            for k, group in enumerate(made):
                pieces[k] += bool(set(group) & set(part[first : first + room]))
    if all(size == sizes[0] for size in sizes) and not room % sizes[0] and not fill:
        assert set(pieces.values()) == {1}


def test_ranks_compute_as_many_tokens():
    made = [list(range(8 * k, 8 * k + 8)) for k in range(8)]
    prompts = [1000 if row < 32 else 3000 for row in range(64)]
    parts = on_ranks(made, prompts, [50] * 64, ranks=2, slices=2)
    assert [sum(prompts[row] for row in part) for part in parts] == [64_000, 64_000]


def test_a_prompt_with_more_rollouts_than_a_rank_has_rows_is_cut():
    parts = on_ranks([list(range(8)), list(range(8, 16))], [100] * 16, [10] * 16, ranks=8, slices=1)
    assert [sorted(part) for part in parts].count([0, 1]) == 1 and all(len(part) == 2 for part in parts)
    assert all(len({row < 8 for row in part}) == 1 for part in parts)


def config(**actor):
    return OmegaConf.create(
        {"actor": {"strategy": "fsdp2", "use_prefix_grouper": True, **actor}, "model": {"use_fused_kernels": False}}
    )


@pytest.mark.parametrize(
    "actor, model, distillation, reason",
    [
        ({"strategy": "megatron"}, {}, None, "actor.strategy=megatron"),
        ({"fsdp_config": {"ulysses_sequence_parallel_size": 2}}, {}, None, "ulysses_sequence_parallel_size=2"),
        ({"ulysses_sequence_parallel_size": 4}, {}, None, "ulysses_sequence_parallel_size=4"),
        ({"fsdp_config": {"pad_to_length": True}}, {}, None, "pad_to_length"),
        ({"shuffle": True}, {}, None, "actor.shuffle"),
        ({}, {"use_fused_kernels": True}, None, "use_fused_kernels"),
        ({}, {}, {"enabled": True}, "distillation"),
        ({}, {}, {"enabled": False}, None),
    ],
)
def test_what_stands_against_it_is_told_once(caplog, monkeypatch, actor, model, distillation, reason):
    monkeypatch.setattr(groups, "_told", set())
    section = config(**actor)
    section.model = model
    assert sharing.asked(section, distillation) is (reason is None)
    assert sharing.asked(section, distillation) is (reason is None)
    assert len(caplog.records) == (reason is not None)
    assert reason is None or reason in caplog.text


def test_without_the_key_nothing_is_said(caplog):
    assert not sharing.asked(config(use_prefix_grouper=False, strategy="megatron")) and not caplog.records


def test_the_older_trainer_goes_without(caplog, monkeypatch):
    monkeypatch.setattr(groups, "_told", set())
    run = OmegaConf.create({"actor_rollout_ref": config(), "trainer": {"use_v1": False}})
    assert sharing.with_older_trainer(run) == {sharing.KEY: False}
    assert f"{sharing.KEY} is set and has no effect, because trainer.use_v1 is false" in caplog.text
    run.trainer.use_v1 = True
    assert not sharing.with_older_trainer(run)
    run = OmegaConf.create({"actor_rollout_ref": config(use_prefix_grouper=False), "trainer": {"use_v1": False}})
    assert not sharing.with_older_trainer(run)


def test_the_trainer_keeps_prompts_whole():
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # as verl's own balance may leave it

    class Batch:
        keys = [f"prompt-{row // 3}_{row}_0" if row < 6 else f"pad_{row}_0" for row in order]
        tags = [{"prompt_len": 100, "response_len": 10, "seq_len": 110, "is_padding": row >= 6} for row in order]

        def __len__(self):
            return len(self.keys)

        def reorder(self, rows):
            self.keys = [self.keys[row] for row in rows]

    class Trainer:
        def __init__(self, section):
            self.config = OmegaConf.create({"actor_rollout_ref": section})
            self.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": [0, 1]})

        def _balance_batch(self, batch, metrics, logging_prefix):
            return batch

    module = SimpleNamespace(PPOTrainer=Trainer, log_seqlen_unbalance=lambda **given: {"rows": given["partitions"]})
    sharing.mend_trainer(module)
    section = config(ppo_mini_batch_size=2)
    section.rollout = {"n": 4}
    metrics = {}
    batch = Trainer(section)._balance_batch(Batch(), metrics)
    halves = [{key.split("_")[0] for key in half} for half in (batch.keys[:4], batch.keys[4:])]
    assert halves in ([{"prompt-0", "pad"}, {"prompt-1", "pad"}], [{"prompt-1", "pad"}, {"prompt-0", "pad"}])
    assert [len(rows) for rows in metrics["rows"]] == [4, 4]
    section.actor.use_prefix_grouper = False
    before = list(batch.keys)
    assert Trainer(section)._balance_batch(batch, {}).keys == before


def test_operations_of_prompts_that_were_not_computed_again_are_not_counted():
    def estimate_flops(lengths, seconds):
        return (3 * sum(lengths) + sum(length**2 for length in lengths)) / seconds, 1e15

    engine = SimpleNamespace(repeated_everywhere=lambda: [100, 100])
    counter = sharing.ComputedFlops(SimpleNamespace(estimate_flops=estimate_flops), engine)
    done, promised = counter.estimate_flops([110, 120, 130], 2.0)
    pairs = 100**2 + sum((100 + answer) ** 2 - 100**2 for answer in (10, 20, 30))
    assert (done, promised) == ((3 * (100 + 60) + pairs) / 2.0, 1e15)


def test_verl_still_reads_the_key_in_its_older_trainer_alone():
    """When this fails, verl may share prompts in its V1 trainer: compare, raise the pin, delete what is double."""
    import verl

    found = {
        path.relative_to(Path(verl.__file__).parent).as_posix()
        for path in Path(verl.__file__).parent.rglob("*.py")
        if "use_prefix_grouper" in path.read_text(encoding="utf-8")
    }
    allowed = ("experimental/", "trainer/ppo/ray_trainer.py", "trainer/ppo/prefix_grouper_utils.py", "workers/config/")
    assert all(name.startswith((*allowed, "models/transformers/monkey_patch.py")) for name in found), found
    assert "workers/config/actor.py" in found


def test_verl_still_has_no_way_without_the_pass():
    """When this fails, verl leaves the pass out by itself: raise the pin, delete `training/known_log_probs.py`."""
    from verl.trainer.ppo.v1 import trainer_base

    text = inspect.getsource(trainer_base)
    body = text[text.index("def _compute_old_log_prob") : text.index("def _compute_ref_log_prob")]
    assert (
        "return batch" in body
        and body.count("if bypass_recomputing_logprobs") == 1
        and "use_rollout_log_probs" not in text
    )
    assert body.count("return") == 2
