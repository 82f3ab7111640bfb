"""Which trajectories are computed together: rows of one prompt share a micro batch, and prompts stay whole on a rank.

Three steps, all on row numbers: `by_prompt` finds the rows of one prompt, `cut` makes parts of them that fit into a
micro batch, `equalised` divides parts until every rank has as many. `on_ranks` lays a batch out before it is
scattered, so that the rows of a prompt arrive on one rank and in one mini-batch.
"""

import logging
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)

_told: set[str] = set()


def once(message: str) -> None:
    """Warn of something the first time that this process meets it."""
    if message not in _told:
        _told.add(message)
        logger.warning(message)


def by_prompt(data) -> list[tuple[str, list[int]]]:
    """Each prompt's uid and rows, in the order of their first rows.

    Rows that share a uid and differ in the prompt's tokens, positions or pixels go into groups of their own; the first
    such uid is named in a warning.

    Args:
        data: TensorDict of verl's: ``uid``, nested ``prompts`` (B, P*), ``position_ids`` (B, axes, P* + R*) or
            (B, P* + R*), and ``multi_modal_inputs`` where the model has any.
    """
    prompts, positions = data["prompts"].unbind(), data["position_ids"].unbind()
    pixels = [_plain(one) or {} for one in data["multi_modal_inputs"]] if "multi_modal_inputs" in data.keys() else None
    groups: dict[str, list[list[int]]] = {}

    def same(row: int, other: int) -> bool:
        count = len(prompts[row])
        return (
            torch.equal(prompts[row], prompts[other])
            and torch.equal(positions[row][..., :count], positions[other][..., :count])
            and (pixels is None or _same_inputs(pixels[row], pixels[other]))
        )

    for row, uid in enumerate(data["uid"]):
        uid = str(_plain(uid))
        known = groups.setdefault(uid, [])
        for rows in known:
            if same(row, rows[0]):
                rows.append(row)
                break
        else:
            if known:
                once(
                    f"prompts differ although they share the uid {uid}; each is computed by itself. Give each prompt a "
                    "uid of its own"
                )
            known.append([row])
    return sorted(((uid, rows) for uid, known in groups.items() for rows in known), key=lambda one: one[1])


def _plain(value):
    """What verl's containers hold."""
    return getattr(value, "data", value) if type(value).__name__.startswith("NonTensor") else value


def _same_inputs(one: dict, other: dict) -> bool:
    """Whether two rows' inputs of the vision tower are the same, told by keys where videos travel as keys."""
    if one.keys() != other.keys():
        return False
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            if not (value is other[name] or torch.equal(value, other[name])):
                return False
        elif hasattr(value, "videos"):
            if value.videos != other[name].videos:
                return False
        elif value != other[name]:
            return False
    return True


def cut(
    group: Sequence[int],
    uid: str,
    prompt: int,
    answers: Sequence[int],
    budget: int | None = None,
    strict: bool = False,
) -> list[list[int]]:
    """A group in parts that a micro batch holds; every part computes the prompt once.

    Args:
        group: its rows.
        uid: of its prompt, for the message.
        prompt: tokens of the prompt.
        answers: tokens of each row's answer, of the whole batch.
        budget: tokens of a micro batch.
        strict: whether the budget also holds for one row alone.

    Raises:
        ValueError: the prompt and one answer are longer than a strict budget.
    """
    parts, used = [], 0
    for row in group:
        alone = prompt + answers[row]
        if strict and budget is not None and alone > budget:
            raise ValueError(
                f"the prompt {uid} and one of its answers have {alone} tokens, and a micro batch holds {budget}; raise "
                "ppo_max_token_len_per_gpu and log_prob_max_token_len_per_gpu, or lower data.max_prompt_length or "
                "data.max_response_length"
            )
        if not parts or (budget is not None and used + answers[row] > budget):
            parts.append([])
            used = prompt
        parts[-1].append(row)
        used += answers[row]
    return parts


def equalised(parts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """As many parts as asked for, by halving the largest; a rank cannot do with fewer than it has rows."""
    parts = [list(rows) for rows in parts]
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda place: len(parts[place]))
        rows = parts[largest]
        middle = (len(rows) + 1) // 2
        parts[largest : largest + 1] = [rows[:middle], rows[middle:]]
    return parts


def on_ranks(
    groups: Sequence[Sequence[int]], prompts: Sequence[int], answers: Sequence[int], ranks: int, slices: int
) -> list[list[int]]:
    """Rows of each rank, equally many, in the order of its mini-batches, groups whole where they fit.

    The largest groups are placed first, each where the fewest tokens are to be computed. A group that fits nowhere is
    cut, and its prompt is then computed more than once.

    Args:
        groups: rows of each prompt; all rows together divide by ``ranks * slices``.
        prompts: tokens of each row's prompt.
        answers: tokens of each row's answer.
        ranks: that the rows are scattered to.
        slices: mini-batches of a rank.
    """
    room = sum(map(len, groups)) // (ranks * slices)
    bins: list[list[int]] = [[] for _ in range(ranks * slices)]
    load = [0] * len(bins)

    def tokens(rows: Sequence[int]) -> int:
        return prompts[rows[0]] + sum(answers[row] for row in rows)

    for group in sorted(groups, key=lambda rows: (len(rows), tokens(rows)), reverse=True):
        rest = list(group)
        while rest:
            fitting = [place for place in range(len(bins)) if room - len(bins[place]) >= len(rest)]
            if fitting:
                place = min(fitting, key=load.__getitem__)
            else:
                place = min(range(len(bins)), key=lambda one: len(bins[one]))
            here, rest = rest[: room - len(bins[place])], rest[room - len(bins[place]) :]
            bins[place] += here
            load[place] += tokens(here)
    # mini-batch k of rank r is bin k * ranks + r
    return [[row for place in range(rank, len(bins), ranks) for row in bins[place]] for rank in range(ranks)]
