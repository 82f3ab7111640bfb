"""Drawing by bin and rollouts by bin: laws of shares and counts, resuming in verl's own data loader, verl's groups."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.engine.test_training import lines, metrics_of
from verl_stvg.launch import run
from verl_stvg.rows.masks import BINS, CurriculumError
from verl_stvg.training.sampler import FEWEST, BinSampler, Draw, bins_of, rollout_counts, rollouts_of

WEIGHT = st.one_of(st.just(0.0), st.floats(0.1, 5))
ROWS = st.lists(st.sampled_from(BINS), min_size=3, max_size=60)


def usual(count: int) -> list[str]:
    return [BINS[k % 3] for k in range(count)]


# --- drawing ----------------------------------------------------------------------------------------------------------


@given(ROWS, st.fixed_dictionaries(dict.fromkeys(BINS, WEIGHT)), st.fixed_dictionaries(dict.fromkeys(BINS, WEIGHT)))
def test_shares_follow_the_weights_and_rows_take_turns(bins, start, end):
    if any(not any(weights[name] for name in set(bins)) for weights in (start, end)):
        with pytest.raises(CurriculumError, match="gives weight to no bin that has rows"):
            BinSampler(bins, Draw(start, end), batch=1)
        return
    draw = Draw(start, end, steps=20)
    sampler, counts, expected = BinSampler(bins, draw, batch=3), Counter(), Counter()
    seen = Counter()
    for k in range(120):
        weights = draw.weights(k // 3)
        total = sum(weights[name] for name in bins)
        expected.update({name: weights[name] * bins.count(name) / total for name in BINS})
        row = sampler._next()
        assert weights[bins[row]] > 0
        counts[bins[row]] += 1
        seen[row] += 1
        assert all(abs(counts[name] - expected[name]) < 2 for name in BINS)
    for name in BINS:
        turns = [seen[k] for k, one in enumerate(bins) if one == name]
        assert not turns or max(turns) - min(turns) <= 1


def test_easy_first_then_hard():
    draw = Draw({"easy": 1, "normal": 0.5, "hard": 0}, {"easy": 0.1}, steps=10, seed=3)
    assert draw.weights(0) == {"easy": 1, "normal": 0.5, "hard": 0}
    assert draw.weights(5) == pytest.approx({"easy": 0.55, "normal": 0.75, "hard": 0.5})
    assert draw.weights(10) == draw.weights(99) == pytest.approx({"easy": 0.1, "normal": 1, "hard": 1})
    bins = usual(60)
    rows = list(BinSampler(bins, draw, batch=4))
    steps = [[bins[row] for row in rows[k : k + 4]] for k in range(0, 60, 4)]
    assert "hard" not in steps[0] and steps[0].count("easy") > 1
    assert sum(one.count("hard") for one in steps[10:]) > 3 * sum(one.count("easy") for one in steps[10:])
    assert Draw(start={"hard": 3}).weights(0) == Draw().weights(7) == dict.fromkeys(BINS, 1)
    even = list(BinSampler(bins, Draw(), batch=4))
    assert sorted(even) == list(range(60)) and even != list(BinSampler(bins, Draw(seed=1), batch=4))


class Rows(torch.utils.data.Dataset):
    """Rows that are their own number; verl's dataset as far as its factory of samplers reads it."""

    def __init__(self, bins):
        self.dataframe = {"extra_info": [{"uid": str(k), "bin": name} for k, name in enumerate(bins)]}

    def __len__(self):
        return len(self.dataframe["extra_info"])

    def __getitem__(self, item):
        return item


def loader(bins, batch: int, workers: int, **config):
    """The data loader as verl's trainer makes it."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo import utils

    from verl_stvg.training import sampler

    class module:
        create_rl_sampler = staticmethod(utils.create_rl_sampler)

    sampler.mend(module)
    rows = Rows(bins)
    data = OmegaConf.create({"train_batch_size": 4, "shuffle": True, "seed": 1} | config)
    made = module.create_rl_sampler(data, rows)
    return StatefulDataLoader(
        rows, batch_size=batch, num_workers=workers, drop_last=True, sampler=made, collate_fn=lambda found: list(found)
    )


DRAW = {"start": {"easy": 1, "normal": 0.5, "hard": 0}, "end": {"easy": 0.1}, "steps": 6, "seed": 3}


def batches(made, count: int) -> list[list[int]]:
    """As verl takes them, from epoch to epoch."""
    found, rows = [], iter(made)
    while len(found) < count:
        batch = next(rows, None)
        if batch is None:
            rows = iter(made)
        else:
            found.append(batch)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [4, 1])
def test_saved_at_any_step_it_goes_on_with_the_same_rows(workers, batch):
    """In the middle of an epoch, at its end and beyond; with a batch of 1, verl's own where groups are filtered."""
    bins, count = usual(22), 16 * 4 // batch
    whole = batches(loader(bins, batch, workers, draw=DRAW), count)
    assert len(loader(bins, batch, 0, draw=DRAW)) == 20 // batch
    stops = (5, 7) if workers else range(1, 12)
    for stop in (stop * 4 // batch for stop in stops):
        first = loader(bins, batch, workers, draw=DRAW)
        found, rows = [], iter(first)
        while len(found) < stop:
            try:
                found.append(next(rows))
            except StopIteration:
                rows = iter(first)
        state = first.state_dict()
        second = loader(bins, batch, workers, draw=DRAW)
        second.load_state_dict(state)
        assert found + batches(second, count - stop) == whole
    assert {row for batch in whole for row in batch} == set(range(22))


def test_a_state_of_other_rows_is_refused():
    state = BinSampler(usual(20), Draw(), 4).state_dict()
    with pytest.raises(CurriculumError, match="was made with .*'hard': 1.*resume with the same"):
        BinSampler(usual(21), Draw(), 4).load_state_dict(state | {"rows": {"hard": 1, "normal": 1, "easy": 1}})


def test_verl_still_has_no_hook_for_a_sampler():
    """On the day it has one, `mend` can go."""
    import inspect

    from verl.trainer.ppo import utils

    source = inspect.getsource(inspect.unwrap(utils.create_rl_sampler))
    assert "class_path" not in source


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"draw": {"begin": {}}}, "data.draw knows no begin; its keys are start, end, steps, seed"),
        ({"draw": {"start": {"tough": 1}}}, "data.draw.start knows no bin tough"),
        ({"draw": {"end": {"hard": -1}}}, "data.draw.end.hard=-1 must be a number, at least 0"),
        ({"draw": {"start": 3}}, "data.draw.start=3 must name numbers by bin"),
        ({"draw": {"steps": 1.5}}, "data.draw.steps=1.5 must be a whole number"),
        ({"draw": {}, "train_batch_size": 40}, "6 rows are fewer than data.train_batch_size=40"),
        ({"rollouts": {"hard": 8, "easy": 4}}, "data.rollouts has no number for normal"),
        (
            {"rollouts": {"hard": 8, "normal": 1, "easy": 4}},
            "data.rollouts.normal=1 must be a whole number, at least 2",
        ),
        ({"rollouts": {"hard": 8.5, "normal": 4, "easy": 4}}, "data.rollouts.hard=8.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, message):
    with pytest.raises(CurriculumError, match=message):
        loader(usual(6), 1, 0, **config)


@pytest.mark.parametrize("config", [{"draw": {}}, {"rollouts": {"hard": 8, "normal": 8, "easy": 8}}])
def test_rows_without_a_bin_are_refused(config):
    (key,) = config
    with pytest.raises(
        CurriculumError, match=f"row '1': data.{key} needs extra_info.bin.*finds None.*docs/selection.md"
    ):
        loader(["easy", None, "hard", "easy"], 1, 0, **config)


DRAW_AS_STATED = {
    "start": {"hard": 1.0, "normal": 1.0, "easy": 1.0},
    "end": {"hard": 1.0, "normal": 1.0, "easy": 1.0},
    "steps": 0,
    "seed": 42,
    "enabled": None,
}


@pytest.mark.parametrize(
    ("given_", "drawn"),
    [
        ({}, False),
        ({"enabled": True}, True),
        ({"start": {"hard": 1.0, "normal": 1.0, "easy": 0.5}}, True),
        ({"seed": 1}, True),
        ({"seed": 1, "enabled": False}, False),
    ],
)
def test_draws_begin_where_a_key_of_the_recipe_is_changed(given_, drawn):
    assert (Draw.of({"draw": DRAW_AS_STATED | given_}) is not None) == drawn
    with pytest.raises(CurriculumError, match="data.draw.enabled=yes must be true, false or null"):
        Draw.of({"draw": DRAW_AS_STATED | given_ | {"enabled": "yes"}})


def test_rollouts_that_are_all_null_are_verls():
    assert rollouts_of({"rollouts": dict.fromkeys(BINS)}) is None
    assert rollouts_of({"rollouts": {"hard": 8, "normal": 4, "easy": 2}}) == {"hard": 8, "normal": 4, "easy": 2}
    with pytest.raises(CurriculumError, match="data.rollouts knows no tough; its keys are hard, normal, easy"):
        rollouts_of({"rollouts": {"tough": 8}})
    with pytest.raises(CurriculumError, match="data.rollouts=8 must hold keys; they are hard, normal, easy"):
        rollouts_of({"rollouts": 8})


def test_without_settings_the_sampler_is_verls():
    made = loader(["easy", None], 1, 0)
    assert type(made.sampler).__module__.startswith("torchdata") and rollouts_of(OmegaConf.create({})) is None


# --- rollouts ---------------------------------------------------------------------------------------------------------

ASKED = st.fixed_dictionaries(dict.fromkeys(BINS, st.integers(FEWEST, 32)))


@given(st.lists(st.sampled_from(BINS), min_size=1, max_size=40), ASKED, st.integers(FEWEST, 16))
def test_rollouts_change_hands_and_their_number_stays(bins, asked, n):
    counts = rollout_counts(bins, asked, n)
    assert sum(counts) == n * len(bins) and min(counts) >= FEWEST
    by_bin = {name: {count for one, count in zip(bins, counts, strict=True) if one == name} for name in bins}
    for one in by_bin:
        assert max(by_bin[one]) - min(by_bin[one]) <= 1
        for other in by_bin:
            if asked[one] > asked[other]:
                assert max(by_bin[one]) >= min(by_bin[other])
    if sum(asked[name] for name in bins) == n * len(bins):
        assert counts == [asked[name] for name in bins]


def test_rollouts_by_hand():
    asked = {"hard": 12, "normal": 8, "easy": 4}
    assert rollout_counts(["hard", "easy", "normal", "normal"], asked, 8) == [12, 4, 8, 8]
    assert rollout_counts(["hard"] * 4, asked, 8) == [8] * 4
    assert rollout_counts(["hard", "easy", "easy"], asked, 8) == [15, 5, 4]  # 18 / 14 of what is over 2
    assert rollout_counts(["hard", "easy"], dict.fromkeys(BINS, 2), 3) == [3, 3]


def test_rollouts_of_a_batch_stand_where_verl_reads_them():
    """Through the batch's way: verl's collation, chunks for its workers, one prompt of a chunk."""
    from tensordict import NonTensorStack
    from verl.utils import tensordict_utils as tu

    from verl_stvg.training.manager import share_rollouts
    from verl_stvg.training.replay_buffer import ROLLOUTS

    rows = Rows(["hard", "easy", "normal", "normal"]).dataframe["extra_info"]
    batch = tu.get_tensordict({"uid": np.array(list("abcd"), dtype=object), "extra_info": np.array(rows, dtype=object)})
    tu.assign_non_tensor_data(batch, "global_steps", 3)
    share_rollouts(batch, {"hard": 12, "normal": 8, "easy": 4}, 8)
    found = []
    for chunk in batch.chunk(2):
        assert isinstance(chunk[ROLLOUTS], NonTensorStack) or isinstance(chunk.get(ROLLOUTS), NonTensorStack)
        for i in range(len(chunk)):
            value = dict(chunk.items())[ROLLOUTS][i].data
            assert isinstance(value, int)
            found.append(value)
    assert found == [12, 4, 8, 8]


_SCORES = st.integers(0, 24).map(lambda eighths: eighths / 8)  # exact in float32


@given(st.lists(st.lists(_SCORES, min_size=2, max_size=7), min_size=1, max_size=4), st.booleans())
def test_verls_groups_may_differ_in_size(groups, by_std):
    """The advantage of a rollout depends on its own group alone, whatever the sizes of the others."""
    from verl.protocol import DataProto
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    keys = [f"u{g}_{s}_0" for g, scores in enumerate(groups) for s in range(len(scores))]
    order = np.random.default_rng(0).permutation(len(keys))
    keys = [keys[k] for k in order]
    scores = np.array([score for group in groups for score in group])[order]
    rewards = torch.zeros(len(keys), 3)
    rewards[:, 1] = torch.tensor(scores)
    mask = torch.tensor([[1, 1, 0]]).repeat(len(keys), 1)
    data = DataProto.from_dict(
        {"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": np.array([key.split("_")[0] for key in keys], dtype=object)},
    )
    found = compute_advantage_for_multi_trajectories(
        data, keys, core_algos.AdvantageEstimator.GRPO, num_repeat=99, norm_adv_by_std_in_grpo=by_std
    ).batch["advantages"]
    for row, key in enumerate(keys):
        group = torch.tensor(groups[int(key.split("_")[0][1:])])
        wanted = torch.tensor(scores[row]) - group.mean()
        wanted = wanted / (group.std() + 1e-6) if by_std else wanted
        assert found[row, :2].tolist() == pytest.approx([float(wanted)] * 2, abs=2e-3) and found[row, 2] == 0


def test_rollouts_that_could_not_be_kept_are_refused():
    from verl_stvg.training.manager import checked_rollouts

    def config(mode="sync", filtering=False, n=8, **data):
        return OmegaConf.create(
            {
                "data": data,
                "trainer": {"v1": {"trainer_mode": mode}},
                "algorithm": {"filter_groups": {"enable": filtering}},
                "actor_rollout_ref": {"rollout": {"n": n}},
            }
        )

    asked = {"hard": 12, "normal": 8, "easy": 4}
    assert checked_rollouts(config(rollouts=asked)) == asked and checked_rollouts(config("colocate_async")) is None
    for wrong in (config("colocate_async", rollouts=asked), config(filtering=True, rollouts=asked)):
        with pytest.raises(ValueError, match="one by one; use trainer_mode=sync without filtering"):
            checked_rollouts(wrong)
    with pytest.raises(ValueError, match="rollout.n of at least 2"):
        checked_rollouts(config(n=1, rollouts=asked))


def test_bins_are_read_from_rows():
    assert bins_of([{"bin": "easy"}, {"bin": "hard"}], "data.draw") == ["easy", "hard"]
    with pytest.raises(CurriculumError, match="row None: data.draw needs"):
        bins_of([None], "data.draw")


# --- on the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_draws_and_shares_out_as_said_and_goes_on_where_it_was(tmp_path, rows, model):
    """Two steps and a checkpoint, then a third by the same command."""
    table = pq.read_table(rows / "train.parquet").to_pylist()
    bins = usual(len(table))
    for row, bin_ in zip(table, bins, strict=True):
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
        row["extra_info"] |= {"bin": bin_, "difficulty": 0.5}
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "train.parquet")
    start, rollouts = {"easy": 1, "normal": 0.5, "hard": 0}, {"hard": 6, "normal": 4, "easy": 2}
    for steps in (2, 3):
        status = run.train(
            [
                *("--config-path", "pkg://verl_stvg.recipes.stvg_r1", "--config-name", "stvg_r1", "+variant=tiny"),
                f"data.train_files={tmp_path}/train.parquet",
                f"data.val_files={rows}/val.parquet",
                f"data.video_cache.folder={tmp_path}/frames",
                "data.train_batch_size=6",
                "data.draw={start: {easy: 1, normal: 0.5, hard: 0}, end: {easy: 0.2}, steps: 2}",
                "data.rollouts={hard: 6, normal: 4, easy: 2}",
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.n=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=6",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
                "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
                f"trainer.total_training_steps={steps}",
                "trainer.val_before_train=false",
                "trainer.test_freq=-1",
                "trainer.save_freq=2",
                f"trainer.default_local_dir={tmp_path}/run/checkpoints",
                f"trainer.rollout_data_dir={tmp_path}/rollouts",
            ],
            tmp_path / "run",
        )
        assert status == 0, (tmp_path / "run/train.log").read_text(errors="replace")[-6000:]
    sampler, metrics = BinSampler(bins, Draw(start, {"easy": 0.2}, steps=2), batch=6), metrics_of(tmp_path / "run")
    for step in (1, 2, 3):
        drawn = [sampler._next() for _ in range(6)]
        counts = rollout_counts([bins[k] for k in drawn], rollouts, 4)
        expected = {table[k]["extra_info"]["uid"]: count for k, count in zip(drawn, counts, strict=True)}
        assert Counter(line["gts"]["uid"] for line in lines(tmp_path / f"rollouts/{step}.jsonl")) == expected
        by_bin = {name: [count for k, count in zip(drawn, counts, strict=True) if bins[k] == name] for name in BINS}
        for name, found in by_bin.items():
            assert metrics[step].get(f"curriculum/{name}/prompts", 0) == len(found)
            assert metrics[step].get(f"curriculum/{name}/trajectories", 0) == sum(found)
        assert metrics[step]["rollout/missing"] == 0
        assert metrics[step]["training/rollout_probs_diff_mean"] < 1e-4
