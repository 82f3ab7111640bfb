"""A prompt computed once gives what verl's own engine gives: log-probabilities, entropy, loss, gradients, weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from verl.utils import tensordict_utils as tu

from tests.support import shared_prompts as small
from tests.support.shared_prompts import KINDS, LIMITS, Prompt
from verl_stvg.patches import banned_tokens
from verl_stvg.training import groups, shared_attention, shared_prompt

ROOT = Path(__file__).resolve().parent.parent.parent
UNEQUAL = [Prompt([9, 4, 0, 12]), Prompt([5, 6], videos=((3, 8, 8),))]


@pytest.fixture(scope="module", autouse=True)
def world():
    """A process group of this process alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: small.make_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def both(folder, batch, loss=None, most=8, budget=None, **kind):
    """Results of verl's engine, row by row, and of the sharing one."""
    found = []
    for shared in (False, True):
        engine = small.make_engine(shared, folder, **kind)
        mine = batch.clone()
        if shared:
            tu.assign_non_tensor(mine, micro_batch_size_per_gpu=most)
            if budget:
                tu.assign_non_tensor(mine, use_dynamic_bsz=True, max_token_len_per_gpu=budget)
        found.append(small.read(engine, mine) | small.step(engine, mine, loss or small.loss_of()))
    return found


def check(stock, shared):
    distances = small.apart(stock, shared)
    assert all(distances[name] <= limit for name, limit in LIMITS.items()), distances


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prompts, settings",
    [
        pytest.param(UNEQUAL, {}, id="unequal and an empty answer"),
        pytest.param(UNEQUAL, {"checkpointing": False}, id="without checkpointing"),
        pytest.param(UNEQUAL, {"lora": 4}, id="adapters"),
        pytest.param(
            [
                Prompt([7, 7, 7], videos=((2, 8, 8), (3, 4, 8))),
                Prompt([8, 3], images=((1, 8, 8),)),
                Prompt([6, 2], videos=()),
                Prompt([4], videos=()),
            ],
            {"most": 2},
            id="videos, an image, text alone, cut groups, a row alone",
        ),
    ],
)
def test_nothing_but_the_time_changes(folders, kind, prompts, settings):
    check(*both(folders[kind], small.make_batch(kind, prompts), **settings))
