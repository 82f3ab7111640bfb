"""What a validation says of its data sources: means over all prompts that were asked, and what is missing.

verl averages over the answers that came. An answer whose rollout failed is in none of its numbers, and a prompt that
lost some of its answers is averaged under another key (``mean@5`` beside ``mean@8``). Here every prompt that was asked
counts once: with the mean of its answers, or, without any, with 0, as `verl-stvg eval` counts it.

Keys, by data source: ``held_out/<source>/<part>/mean``, and the counts `COUNTS`, ``held_out/<source>/<count>``.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

COUNTS = ("prompts", "unanswered", "asked", "missing")
"""Prompts that were asked, those of them without any answer, answers that were asked for, those of them that failed."""

PREFIXES = ("held_out/", "val-core/", "val-aux/")
"""Beginnings of the keys that `read` looks at."""

_MEAN = re.compile(r"held_out/(.+)/([^/]+)/mean")
_COUNT = re.compile(rf"held_out/(.+)/({'|'.join(COUNTS)})")
_VERL = re.compile(r"val-(?:core|aux)/(.+)/([^/]+)/mean@(\d+)")


@dataclass
class HeldOut:
    """Numbers of one data source at one validation.

    Attributes:
        means: of the reward (``reward``) and its parts; NaN where one was no number.
        counts: by the names of `COUNTS`; empty if the log has verl's own keys only.
        apart: verl's means of groups that lost answers, by part and answers left; only where there are no counts.
    """

    means: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    apart: dict[str, dict[int, float]] = field(default_factory=dict)


def metrics(
    sources: Sequence[str], uids: Sequence[str], infos: Mapping[str, Sequence], expected: Mapping[tuple[str, str], int]
) -> dict[str, float]:
    """What a validation logs, see above.

    Args:
        sources: data source of each answer.
        uids: of each answer's prompt.
        infos: the reward (``reward``) and its parts, one value for each answer; None where an answer has no such part.
        expected: answers that were asked for, by data source and uid of every prompt.
    """
    answers: dict[str, dict[str, list[int]]] = {source: {} for source, _ in expected}
    for place, (source, uid) in enumerate(zip(map(str, sources), map(str, uids), strict=True)):
        answers.setdefault(source, {}).setdefault(uid, []).append(place)
    asked: dict[str, dict[str, int]] = defaultdict(dict)
    for (source, uid), count in expected.items():
        asked[source][uid] = count
    found: dict[str, float] = {}
    for source, by_uid in answers.items():
        prompts = len(asked[source])
        for name, values in infos.items():
            if name == "score" and "reward" in infos:  # the reward once more, as a reward function calls it
                continue
            means = []
            for places in by_uid.values():
                known = [float(values[place]) for place in places if isinstance(values[place], Real)]
                if known:
                    means.append(math.fsum(known) / len(known))
            if means or name == "reward":  # of a source without any answer the parts are not known
                found[f"held_out/{source}/{name}/mean"] = math.fsum(means) / prompts
        counts = (
            prompts,
            sum(uid not in by_uid for uid in asked[source]),
            sum(asked[source].values()),
            sum(max(0, count - len(by_uid.get(uid, ()))) for uid, count in asked[source].items()),
        )
        found |= {f"held_out/{source}/{name}": count for name, count in zip(COUNTS, counts, strict=True)}
    return found


def read(data: Mapping[str, float | None]) -> dict[str, HeldOut]:
    """Numbers of a validation by data source, from a line of the log; empty if it holds none.

    The reward is called ``reward``; a ``score`` beside it is the same number and is left out. In a log without our keys
    a mean is verl's; where groups lost answers it is that of the largest groups.
    """
    found: dict[str, HeldOut] = defaultdict(HeldOut)
    verl: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for key, value in data.items():
        if not key.startswith(PREFIXES):
            continue
        number = math.nan if value is None else float(value)
        if match := _MEAN.fullmatch(key):
            found[match[1]].means[match[2]] = number
        elif match := _COUNT.fullmatch(key):
            found[match[1]].counts[match[2]] = int(number)
        elif match := _VERL.fullmatch(key):
            verl[match[1]][match[2]][int(match[3])] = number
    if not found:
        for source, parts in verl.items():
            found[source] = HeldOut(
                means={part: by_size[max(by_size)] for part, by_size in parts.items()},
                apart={part: by_size for part, by_size in parts.items() if len(by_size) > 1},
            )
    for one in found.values():
        if "reward" in one.means:
            one.means.pop("score", None)
    return dict(found)


def overall(sources: Mapping[str, HeldOut], part: str) -> float | None:
    """Mean of a part over the prompts of all data sources; None if it is not known.

    Where the log does not say how many prompts a source has, sources count equally.
    """
    known = [one for one in sources.values() if math.isfinite(one.means.get(part, math.nan))]
    if not known:
        return None
    weights = [one.counts.get("prompts", 0) for one in known]
    if not all(weights):
        weights = [1] * len(known)
    return math.fsum(one.means[part] * weight for one, weight in zip(known, weights, strict=True)) / sum(weights)
