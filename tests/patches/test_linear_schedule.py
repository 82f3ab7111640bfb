"""The linear schedule equals transformers', is built by verl's own engine class, and goes on after a resume."""

from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_stvg.patches import linear_schedule


def settings(**given):
    stock = {
        "total_training_steps": 10,
        "lr_warmup_steps": 0,
        "lr_warmup_steps_ratio": 0.0,
        "min_lr_ratio": 0.0,
        "zero_indexed_step": True,
        "lr_scheduler_type": "linear",
    }
    return SimpleNamespace(**{**stock, **given})


def optimizer(lr: float = 1e-6) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(made, steps: int) -> list[float]:
    """Learning rate of each update."""
    found = []
    for _ in range(steps):
        found.append(made.get_last_lr()[0])
        made.optimizer.step()
        made.step()
    return found


def test_ten_steps():
    made = linear_schedule.linear_schedule(optimizer(1.0), settings())
    assert rates(made, 10) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert made.get_last_lr() == [0.0]


@hypothesis.settings(max_examples=30)
@given(total=st.integers(1, 300), warmup=st.integers(0, 40), by_ratio=st.booleans())
def test_equals_transformers(total, warmup, by_ratio):
    from transformers import get_linear_schedule_with_warmup

    warmup = min(warmup, total - 1)
    asked = {"lr_warmup_steps_ratio": (warmup + 0.5) / total} if by_ratio else {"lr_warmup_steps": warmup}
    ours = linear_schedule.linear_schedule(optimizer(), settings(total_training_steps=total, **asked))
    theirs = get_linear_schedule_with_warmup(optimizer(), warmup, total)
    assert rates(ours, total + 3) == pytest.approx(rates(theirs, total + 3), abs=1e-18)


def test_least_rate_and_counting_from_one():
    made = linear_schedule.linear_schedule(optimizer(1.0), settings(min_lr_ratio=0.5, zero_indexed_step=False))
    assert rates(made, 10) == pytest.approx([0.95 - 0.05 * step for step in range(10)])


def test_goes_on_after_a_resume():
    whole = rates(linear_schedule.linear_schedule(optimizer(), settings()), 10)
    first = linear_schedule.linear_schedule(optimizer(), settings())
    rates(first, 4)
    saved, weights = first.state_dict(), first.optimizer.state_dict()
    second = linear_schedule.linear_schedule(optimizer(), settings())
    second.optimizer.load_state_dict(weights)
    second.load_state_dict(saved)
    assert rates(second, 6) == pytest.approx(whole[4:])


@pytest.mark.parametrize("asked", [{"total_training_steps": -1}, {"lr_warmup_steps": 10}])
def test_a_schedule_without_an_end_is_refused(asked):
    with pytest.raises(ValueError, match="trainer.total_training_steps"):
        linear_schedule.linear_schedule(optimizer(), settings(**asked))


@pytest.mark.slow
def test_verl_builds_it_from_the_recipes_keys():
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine.fsdp import transformer_impl

    class Engine(transformer_impl.FSDPEngine):
        pass

    linear_schedule.mend_engine(SimpleNamespace(FSDPEngine=Engine))

    def built(kind: str):
        config = omega_conf_to_dataclass(
            {"_target_": "verl_stvg.patches.linear_schedule.optimizer_config", "lr": 1e-6, "lr_scheduler_type": kind}
        )
        config.total_training_steps = 10
        return Engine._build_lr_scheduler(SimpleNamespace(optimizer_config=config, rank=1), optimizer())

    assert rates(built("linear"), 10) == pytest.approx([1e-6 - 1e-7 * step for step in range(10)])
    assert rates(built("constant"), 10) == pytest.approx([1e-6] * 10)
    assert rates(built("cosine"), 11)[-1] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(Exception, match="choose linear, constant or cosine"):
        built("linaer")


@pytest.mark.slow
def test_verl_still_has_no_linear_schedule():
    """Use verl's own key, and remove `verl_stvg.patches.linear_schedule`, when this fails."""
    from verl.workers.config import FSDPOptimizerConfig

    with pytest.raises(AssertionError):
        FSDPOptimizerConfig(lr=1e-6, lr_scheduler_type="linear")
