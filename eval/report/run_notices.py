"""Sentences on what is missing from a training run's folder, or contradicts itself."""

import math
from collections.abc import Sequence

from verl_stvg.eval.report.training import Run, dumped_mean, logged_name, title
from verl_stvg.training import held_out

_TOLERANCE = 1e-3
_NAMED_STEPS = 5


def notices(run: Run) -> list[str]:
    """All sentences on a run."""
    return [*_missing(run), *_other_clips(run), *_lost_answers(run), *_disagreements(run)]


def steps_in_words(steps: Sequence[int]) -> str:
    """``step 4``, or ``steps 4, 8, 12``; of many the first few and how many more."""
    few = ", ".join(map(str, steps[:_NAMED_STEPS]))
    more = f" and {len(steps) - _NAMED_STEPS} more" if len(steps) > _NAMED_STEPS else ""
    return f"step{'s' if len(steps) > 1 else ''} {few}{more}"


def _missing(run: Run) -> list[str]:
    """Answers that were asked for and are not there, by data source."""
    told = []
    for source in run.sources:
        counts = {step: sets[source].counts for step, sets in run.logged.items() if source in sets}
        found = [
            f"{one['missing']} of {one['asked']} at step {step} (all of {one['unanswered']} of {one['prompts']} clips)"
            for step, one in counts.items()
            if one.get("missing")
        ]
        if found:
            more = f"; and at {len(found) - _NAMED_STEPS} more steps" if len(found) > _NAMED_STEPS else ""
            told.append(
                f"Held-out answers of {source} are missing; their rollouts failed, and train.log says why: "
                f"{'; '.join(found[:_NAMED_STEPS])}{more}. A clip without any counts as 0, as in `verl-stvg eval`."
            )
    return told


def _other_clips(run: Run) -> list[str]:
    """A notice if the held-out means of the steps are not over the same clips."""
    if len(run.validations) < 2:
        return []
    sizes = {step: len(answers) + run.unanswered(step, "score") for step, answers in run.validations.items()}
    union = {uid for answers in run.validations.values() for uid in answers}
    known = all(run.counted(step) for step in run.validations)
    if (
        len(set(sizes.values())) == 1
        and (known or len(union) == max(sizes.values()))
        and len(union) <= max(sizes.values())
    ):
        return []
    listed = [f"{size} at step {step}" for step, size in sizes.items()]
    few = ", ".join(listed[:_NAMED_STEPS]) + (", …" if len(listed) > _NAMED_STEPS else "")
    told = "" if known else " The log does not say how many were asked."
    return [
        f"Not all validations are of the same clips: {few}; {len(union)} in all.{told} A point of a held-out curve is "
        "the mean over the clips of its step; before and after are compared on the clips of both."
    ]


def _lost_answers(run: Run) -> list[str]:
    """A notice where verl's means, all that there is, leave out clips that lost some of their answers."""
    if run.validations:
        return []
    steps = [step for step, sets in run.logged.items() if any(one.apart for one in sets.values())]
    if not steps:
        return []
    return [
        f"Some clips lost answers at {steps_in_words(steps)}: verl logs their means apart, without their number, so "
        "the held-out means are those of the clips that lost none."
    ]


def _disagreements(run: Run) -> list[str]:
    """A notice for every part whose logged held-out mean is not that of the dumped answers at some step."""
    told = []
    for part in run.parts:
        off = [step for step in run.validations if _disagrees(run, step, part)]
        if off:
            told.append(
                f"{title(part)}: the mean in metrics.jsonl is not that of the answers in validation/ at "
                f"{steps_in_words(off)}; the answers are shown."
            )
    return told


def _disagrees(run: Run, step: int, part: str) -> bool:
    """Whether a dump's mean cannot be the one that was logged: it differs or, where the log does not say how many clips
    each of its means is over, lies outside of them.
    """
    dumped, name = dumped_mean(run, step, part), logged_name(part)
    sets = run.logged.get(step, {})
    logged = held_out.overall(sets, name)
    if dumped is None or logged is None:
        return False
    if run.counted(step):
        return abs(dumped - logged) > _TOLERANCE
    means = [value for one in sets.values() for value in (one.means.get(name), *one.apart.get(name, {}).values())]
    means = [value for value in means if value is not None and math.isfinite(value)]
    return not min(means) - _TOLERANCE <= dumped <= max(means) + _TOLERANCE
