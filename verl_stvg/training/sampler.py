"""Which bins of rows a run draws from as it goes on, and how many rollouts the rows of each bin get.

verl's data loader draws rows at random or in the order of the file, and 0.9.1 has no hook for another way, so `mend`
gives its factory one. Rollouts per prompt go by a column that verl's agent loop reads (``__rollout_n__``); verl cuts a
step into updates of ``ppo_mini_batch_size * rollout.n`` trajectories and fills up what is over with empty ones, so
here the rollouts of a step only change hands: their number stays that of `rollout.n`.

Both read `extra_info.bin`, which data selection writes. All numbers are ours.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, wraps
from typing import Any

import numpy as np

from verl_stvg.rows.masks import BINS, CurriculumError
from verl_stvg.rows.settings import section

FEWEST = 2
"""Rollouts that a group must have for an advantage."""
_EQUAL = dict.fromkeys(BINS, 1.0)


@dataclass(frozen=True)
class Draw:
    """How often rows of each bin are drawn: verl's ``data.draw``.

    Attributes:
        start: weight of a row by its bin at the first step, 1 where a bin is not named; 0: it is not drawn.
        end: the same from step ``steps`` on; in between the weights change linearly.
        steps: of training, each ``data.train_batch_size`` rows long.
        seed: of the order within the bins.
        enabled: whether rows are drawn so; None: where another key is not as it stands here.
    """

    start: Mapping[str, float] = field(default_factory=dict)
    end: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    seed: int = 42
    enabled: bool | None = field(default=True, compare=False)

    def __post_init__(self):
        if self.enabled not in (None, True, False):
            raise CurriculumError(f"data.draw.enabled={self.enabled} must be true, false or null")
        for key in ("start", "end"):
            object.__setattr__(self, key, _EQUAL | _by_bin(f"data.draw.{key}", getattr(self, key), least=0))
        for key in ("steps", "seed"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise CurriculumError(f"data.draw.{key}={value} must be a whole number, at least 0")

    @classmethod
    def of(cls, data_config: Mapping[str, Any]) -> "Draw | None":
        """What verl's ``data`` configuration asks for; None where it asks for nothing.

        Raises:
            CurriculumError: unknown keys or values.
        """
        made = section(data_config, "draw", cls, CurriculumError)
        return made if made and (made != cls() if made.enabled is None else made.enabled) else None

    def weights(self, step: int) -> dict[str, float]:
        """Weight of a row by its bin at a step, counted from 0."""
        progress = min(step / self.steps, 1.0) if self.steps else 1.0
        return {name: (1 - progress) * self.start[name] + progress * self.end[name] for name in BINS}


class BinSampler:
    """Rows in the order in which they are drawn, for torchdata's data loader: stateful, and the same after a resume.

    The share of a bin follows its weight and its number of rows, to within two rows at any time, so that no batch lacks
    a bin by chance. Within a bin each row comes once before any comes again, in an order that follows from the seed. An
    epoch has as many rows as the set, less those that fill no batch; the draws go on from epoch to epoch.

    Args:
        bins: of the rows, in their order.
        draw: see there.
        batch: rows of a training step.

    Raises:
        CurriculumError: fewer rows than a batch, or weights that are 0 for all bins that have rows.
    """

    def __init__(self, bins: Sequence[str], draw: Draw, batch: int):
        self.draw, self.batch = draw, batch
        self.rows = {name: [k for k, one in enumerate(bins) if one == name] for name in BINS}
        self.length = len(bins) // batch * batch
        if not self.length:
            raise CurriculumError(f"{len(bins)} rows are fewer than data.train_batch_size={batch}; lower it")
        for key in ("start", "end"):
            if not any(getattr(draw, key)[name] for name, rows in self.rows.items() if rows):
                raise CurriculumError(f"data.draw.{key} gives weight to no bin that has rows: {self._counts()}")
        self.drawn = 0
        self.taken: dict[str, int] = dict.fromkeys(BINS, 0)
        self.owed: dict[str, float] = dict.fromkeys(BINS, 0.0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        """The rows that are left of this epoch, or a whole one at its end."""
        while True:
            yield self._next()
            if self.drawn % self.length == 0:
                return

    def _next(self) -> int:
        weights = self.draw.weights(self.drawn // self.batch)
        shares = {name: weights[name] * len(rows) for name, rows in self.rows.items()}
        total = sum(shares.values())
        for name, share in shares.items():
            self.owed[name] += share / total
        name = max((name for name in BINS if shares[name]), key=lambda bin_: self.owed[bin_])
        self.owed[name] -= 1.0
        self.drawn += 1
        lap, place = divmod(self.taken[name], len(self.rows[name]))
        self.taken[name] += 1
        return self.rows[name][_order(self.draw.seed, BINS.index(name), lap, len(self.rows[name]))[place]]

    def _counts(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where it is; a few numbers."""
        return {"drawn": self.drawn, "taken": dict(self.taken), "owed": dict(self.owed), "rows": self._counts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            CurriculumError: the state of other rows.
        """
        if state["rows"] != self._counts():
            raise CurriculumError(
                f"the checkpoint was made with {state['rows']} rows by bin, and there are {self._counts()}; resume "
                "with the same data.train_files"
            )
        self.drawn, self.taken, self.owed = state["drawn"], dict(state["taken"]), dict(state["owed"])


@lru_cache(maxsize=len(BINS))
def _order(seed: int, bin_: int, lap: int, count: int) -> list[int]:
    return np.random.default_rng([seed, bin_, lap]).permutation(count).tolist()


@dataclass(frozen=True)
class Rollouts:
    """Rollouts of a prompt by the bin of its row, before they are scaled: verl's ``data.rollouts``, all or none."""

    hard: int | None = None
    normal: int | None = None
    easy: int | None = None

    def __post_init__(self):
        given = {name: count for name, count in asdict(self).items() if count is not None}
        _by_bin("data.rollouts", given, least=FEWEST)
        if given and (missing := [name for name in BINS if name not in given]):
            raise CurriculumError(f"data.rollouts has no number for {', '.join(missing)}; name all bins")


def rollouts_of(data_config: Mapping[str, Any]) -> dict[str, int] | None:
    """Rollouts of a prompt by the bin of its row, as ``data.rollouts`` asks for them; None where it does not.

    Raises:
        CurriculumError: a bin without a number, unknown ones, or fewer than `FEWEST`.
    """
    made = section(data_config, "rollouts", Rollouts, CurriculumError)
    return asdict(made) if made and made != Rollouts() else None


def rollout_counts(bins: Sequence[str], asked: Mapping[str, int], n: int) -> list[int]:
    """Rollouts of each prompt of a step: as asked for their bins, scaled so that they add up to ``n`` per prompt.

    What is over `FEWEST` is scaled, and rounded by largest remainders, so that every prompt gets at least `FEWEST`;
    where what is asked adds up already, it is what each gets.

    Args:
        bins: of the prompts.
        asked: rollouts by bin.
        n: of a prompt on average, at least `FEWEST`.
    """
    over = [asked[bin_] - FEWEST for bin_ in bins]
    left, whole = (n - FEWEST) * len(bins), sum(over)
    wanted = [left * one / whole if whole else left / len(bins) for one in over]
    counts = [math.floor(one) for one in wanted]
    first = sorted(range(len(bins)), key=lambda k: counts[k] - wanted[k])  # stable: of equal ones the first
    for k in first[: left - sum(counts)]:
        counts[k] += 1
    return [FEWEST + count for count in counts]


def bins_of(rows: Sequence[Mapping[str, Any] | None], asks: str) -> list[str]:
    """The bins of rows, from their ``extra_info``.

    Raises:
        CurriculumError: a row without one; names the row and the setting that asks for it.
    """
    found = []
    for extra in rows:
        bin_ = (extra or {}).get("bin")
        if bin_ not in BINS:
            raise CurriculumError(
                f"row {(extra or {}).get('uid')!r}: {asks} needs extra_info.bin, one of {', '.join(BINS)}, and finds "
                f"{bin_}; select data first (docs/selection.md), or leave {asks} out"
            )
        found.append(bin_)
    return found


def mend(utils) -> None:
    """Let verl's factory of samplers make a `BinSampler` where ``data.draw`` asks for it; all others stay verl's."""
    stock = utils.create_rl_sampler

    @wraps(stock)
    def create_rl_sampler(data_config, dataset):
        draw = Draw.of(data_config)
        if rollouts_of(data_config):
            bins_of(dataset.dataframe["extra_info"], "data.rollouts")  # before anything is started
        if draw is None:
            return stock(data_config, dataset)
        return BinSampler(bins_of(dataset.dataframe["extra_info"], "data.draw"), draw, data_config.train_batch_size)

    utils.create_rl_sampler = create_rl_sampler


def _by_bin(key: str, given: Any, least: int) -> dict[str, Any]:
    """Numbers by bin, checked."""
    if not isinstance(given, Mapping):
        raise CurriculumError(f"{key}={given} must name numbers by bin, for example {{hard: 2, normal: 2, easy: 2}}")
    found = dict(given)
    if unknown := sorted(map(str, found.keys() - set(BINS))):
        raise CurriculumError(f"{key} knows no bin {', '.join(unknown)}; bins are {', '.join(BINS)}")
    for name, value in found.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole if least else whole or isinstance(value, float)) or not least <= value < math.inf:
            kind = "a whole number" if least else "a number"
            raise CurriculumError(f"{key}.{name}={value} must be {kind}, at least {least}")
    return found
