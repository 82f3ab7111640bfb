"""What the page says of a training run: what it changed on held-out clips, and the curves of its log."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from verl_stvg.eval.report import charts, clips, replies, runs, training
from verl_stvg.eval.report.clips import Clip, Looked, Said, Voice
from verl_stvg.eval.report.rows import Rows
from verl_stvg.eval.report.run_notices import steps_in_words
from verl_stvg.eval.report.training import Run

UNKNOWN = "not read"
"""Of an answer whose reward is not one that the page knows."""

_OTHER_CURVES = (
    ("actor/kl_loss", "KL to the reference", "nats per token", None),
    ("response_length/mean", "Answer length", "tokens, mean", None),
    ("reward/zero_variance_groups", "Groups without spread", "share of groups", (0, 1)),
    ("reward/groups_of_one", "Groups of one answer", "share of groups", (0, 1)),
    ("actor/grad_norm", "Gradient norm", "before clipping", None),
    ("actor/entropy", "Entropy", "nats per token", None),
    ("training/rollout_probs_diff_mean", "Actor − rollout", "mean |Δp| per token", None),
    ("actor/pg_loss", "Policy loss", "clipped surrogate", None),
    ("actor/pg_clipfrac", "Clipped tokens", "share of tokens", None),
    ("actor/ppo_kl", "Change within a batch", "KL to the policy that answered, nats per token", None),
    ("timing_s/step", "Time per step", "seconds", None),
)
"""Diagnostics: key of verl's log, heading, unit, value axis."""
_SHOWN_IF_ANY = {"reward/groups_of_one"}
"""Diagnostics that are drawn only if they are above 0 at some step."""
_OF_LATER_UPDATES = {"actor/pg_clipfrac", "actor/ppo_kl"}
"""Diagnostics that say nothing where a batch is trained on once, with the policy that answered."""


def section(folder: Path, count: int) -> dict:
    """What the page says of a training run and of its held-out clips."""
    run = runs.read_run(folder)
    numbers = training.headline(run)
    measured, chosen = _measured_parts(run)
    looked = _run_clips(run, count)
    return {
        **_curves(run, folder, numbers),
        "kind": "run",
        "title": f"{_run_name(run, folder)}: what the training changed",
        "heads": {part: training.title(part) for part in run.parts if numbers[part]["before"] is not None},
        "spread": measured,
        "flows": chosen,
        "families": _families(run, looked.rows),
        "looked": looked,
    }


def curves_section(folder: Path) -> dict:
    """The curves of a run that an evaluation lies in."""
    run = runs.read_run(folder)
    return {
        **_curves(run, folder, training.headline(run)),
        "kind": "curves",
        "title": f"The training of {_run_name(run, folder)}",
        "looked": Looked([], [], Rows([])),
    }


def _curves(run: Run, folder: Path, numbers: dict) -> dict:
    return {
        "numbers": numbers,
        "parts": {part: training.title(part) for part in run.parts},
        "full_score": run.full_score,
        "facts": _facts(run, numbers),
        "notices": [*run.notices, *_gaps(run), *_parity(run)],
        "arguments": [str(argument) for argument in run.record.get("arguments") or ()],
        "reward_charts": _reward_charts(run),
        "other_charts": [
            charts.curve(title, unit, run.curve(key), {}, {}, span) for key, title, unit, span in _drawn(run)
        ],
        "validations": [
            {"step": step, "values": [run.held_out(part).get(step) for part in ("score", *run.parts)]}
            for step in run.held_out("score")
        ],
        "sources": _by_source(run) if len(run.sources) > 1 else [],
        "worst": "lowest reward",
        "resamples": training.RESAMPLES,
    }


def _drawn(run: Run) -> list[tuple]:
    """Diagnostics that say something about this run."""
    once = training.updates_per_batch(run) == 1
    return [
        (key, *rest)
        for key, *rest in _OTHER_CURVES
        if (any(run.series(key).values()) or (run.series(key) and key not in _SHOWN_IF_ANY | _OF_LATER_UPDATES))
        and not (once and key in _OF_LATER_UPDATES)
    ]


def _by_source(run: Run) -> list[dict]:
    """Means of each held-out set at each validation, as they were logged."""
    means = {part: run.held_out_by_source(part) for part in ("score", *run.parts)}
    return [
        {
            "name": source,
            "step": step,
            "end": step in (min(run.logged), max(run.logged)),
            "values": [means[part].get(source, {}).get(step) for part in means],
            "clips": sets[source].counts.get("prompts"),
            "missing": sets[source].counts.get("missing"),
        }
        for source in run.sources
        for step, sets in sorted(run.logged.items())
        if source in sets
    ]


def _gaps(run: Run) -> list[str]:
    """A sentence on every drawn metric that was not a number at some step."""
    names = {f"reward/{part}/mean": training.title(part) for part in run.parts}
    names |= {"critic/score/mean": "Reward"} | {key: title for key, title, _, _ in _OTHER_CURVES}
    found = []
    for key, name in names.items():
        steps = [step for step, value in run.curve(key).items() if not np.isfinite(value)]
        if steps:
            drawn = "is a gap in its curve" if len(steps) < len(run.curve(key)) else "has no curve"
            found.append(f"{name} ({key}) is not a number at {steps_in_words(steps)}, and {drawn}.")
    return found


def _parity(run: Run) -> list[str]:
    """Sentences on where the trained policy is not the sampled one, or where that cannot be told."""
    bound = run.series("parity/gate")
    steps = [step for step, outside in run.series("parity/outside_gate").items() if outside]
    found = []
    if steps:
        found.append(
            f"Actor − rollout is over its gate of {bound[steps[0]]:g} at {steps_in_words(steps)}: the policy that "
            "is trained is not the one that is sampled. parity.jsonl in the run's folder has the worst tokens."
        )
    if run.series("parity/truncated"):
        found.append(
            "Actor − rollout has no gate in this run: it samples with top_k or top_p, so the rollout's probabilities "
            "are those among the tokens that are left, and larger than the actor's, which are among all tokens. With "
            "top_k=-1 and top_p=1 the gate holds."
        )
    return found


def _run_name(run: Run, folder: Path) -> str:
    return str(run.record.get("recipe") or folder.resolve().name)


def _facts(run: Run, numbers: dict) -> list[dict]:
    """Name, value and note of each fact of the run that is known."""
    seconds = run.series("timing_s/step")
    generation = list(run.series("timing_s/gen").values())
    facts = [("Training steps", str(numbers["steps"]), "")]
    if numbers["group_size"]:
        facts.append(("Group size", str(numbers["group_size"]), "answers per prompt"))
    if numbers["clips"]:
        facts.append(("Held-out clips", str(numbers["clips"]), ", ".join(path.name for path in _val_files(run))))
    if run.recipes:
        facts.append(("Reward", ", ".join(run.recipes), ""))
    if seconds:
        note = f"median; {charts.number(float(np.median(generation)))} s of it generation" if generation else "median"
        facts.append(("Time per step", f"{charts.number(numbers['seconds_per_step'])} s", note))
        facts.append(("Time in steps", charts.clock(sum(seconds.values())), "without start and end"))
    if numbers["rollout_probs_diff"] is not None:
        facts.append(
            ("Actor − rollout", charts.number(numbers["rollout_probs_diff"]), "mean |Δp| per token, worst step")
        )
    if computed := list(run.series("actor/shared_prompt/computed_share").values()):
        note = "of the update's tokens; answers to a prompt share the rest"
        facts.append(("Computed", f"{np.mean(computed):.0%}", note))
    if run.record.get("model"):
        facts.append(("Model", Path(run.record["model"]).name, "start of the training"))
    if run.record.get("started"):
        day, _, time = str(run.record["started"]).partition("T")
        facts.append(("Started", day, f"{time[:5]} UTC" if time else ""))
    if run.record:
        ended = {None: "going on, or killed", 0: "finished", 129: "its terminal was closed"}
        ended |= {130: "interrupted", 143: "stopped by SIGTERM"}
        status = run.record.get("status")
        facts.append(("State", ended.get(status, f"failed, status {status}"), ""))
    return [dict(zip(("name", "value", "note"), fact, strict=True)) for fact in facts]


def _reward_charts(run: Run) -> list[dict]:
    found = []
    for part in ("score", *run.parts):
        key = f"reward/{part}/mean"
        if part == "score" and not run.series(key):
            key = "critic/score/mean"
        logged, held_out = run.series(key), run.held_out(part)
        if logged or held_out:
            full = run.full_score if part == "score" else 1
            span = (0, full) if full is not None else None
            if span and not all(span[0] <= value <= span[1] for value in (*logged.values(), *held_out.values())):
                span = None  # weights of its own, or a part that may be below 0
            unit = f"{span[0]} to {charts.tick(span[1])}" if span else "weighted" if part == "score" else ""
            title = "Reward (sum)" if part == "score" else training.title(part)
            found.append(charts.curve(title, unit, run.curve(key), run.series(f"reward/{part}/std"), held_out, span))
    return found


def _measured_parts(run: Run) -> tuple[dict | None, list[dict]]:
    """Histogram of the first part of held-out clips that is a measure, and of every part that is right or wrong how
    many clips kept, gained, lost and never had it; several answers to one clip count by majority.
    """
    before, after = training.ends(run)
    if not after:
        return None, []
    measured, flows = None, []
    for part in (part for part in run.parts if part != "format"):
        title = training.title(part)
        uids = [uid for uid in after if part in before[uid].values and part in after[uid].values]
        if not uids:
            continue
        then, now = ([answers[uid].values[part] for uid in uids] for answers in (before, after))
        one_each = all(answer.samples == 1 for answer in (*before.values(), *after.values()))
        if _is_measure(part, (*then, *now), one_each):
            measured = measured or charts.histogram(title, [("before", "before", then), ("after", "after", now)])
        else:
            flows.append(
                {"title": title, "rows": _flow([(a >= 0.5, b >= 0.5) for a, b in zip(then, now, strict=True)])}
            )
    return measured, flows


def _families(run: Run, rows: Rows) -> list[dict]:
    """Means before and after by groups of held-out clips, for every kind of groups that the rows name."""
    before, after = training.ends(run)
    found = []
    for name, groups in rows.sorts().items():
        members: dict[str, list[str]] = {}
        for uid in before:
            members.setdefault(groups.get(uid, "not named"), []).append(uid)
        if len(members) < 2:
            continue
        table = []
        for group, uids in sorted(members.items()):
            cells = [[_mean(answers, uids, part) for answers in (before, after)] for part in run.parts]
            table.append({"label": group, "count": len(uids), "cells": cells})
        found.append({"name": name, "rows": table})
    return found


def _mean(answers: Mapping[str, training.Answer], uids: Sequence[str], part: str) -> float | None:
    values = [answers[uid].values[part] for uid in uids if uid in answers and part in answers[uid].values]
    return float(np.mean(values)) if values else None


def _is_measure(part: str, values: Iterable[float], one_each: bool) -> bool:
    """Whether a part takes values between 0 and 1; means of several answers do anyway, so then the name tells."""
    return "iou" in part if not one_each else any(value not in (0.0, 1.0) for value in values)


def _flow(pairs: list[tuple[bool, bool]]) -> list[dict]:
    table = {
        "kept": ("right before and after", (True, True)),
        "gained": ("became right", (False, True)),
        "lost": ("became wrong", (True, False)),
        "never": ("wrong before and after", (False, False)),
    }
    return [
        {
            "name": name,
            "kind": kind,
            "count": pairs.count(pair),
            "share": charts.percent(pairs.count(pair) / len(pairs)),
        }
        for kind, (name, pair) in table.items()
    ]


def _run_clips(run: Run, count: int) -> Looked:
    """Clips of the first and the last validation."""
    before, after = training.ends(run)
    files, told = [], []
    if before and _val_files(run):
        files = _val_files(run)
    elif before and run.record:
        told = ["run.json names no held-out rows, so no frames are shown."]
    rows = Rows(files, run.arguments.get("data.video_root"))
    rows.notices.extend(told)
    voices = [Voice("before", "before", f"step {min(run.validations)}")] if before else []
    if after:
        voices.append(Voice("after", "after", f"step {max(run.validations)}"))
    then, now = ({uid: answer.values["score"] for uid, answer in answers.items()} for answers in (before, after))
    chosen = []
    for uid, selections in clips.pick(then, now, count).items():
        first, last = before[uid], after.get(uid)
        row = rows.get(uid)
        of_row = training.recipe_of(row.data_source) if row is not None else None
        recipe = run.recipes[0] if len(run.recipes) == 1 else of_row
        said = {
            voice.kind: _answered(answers[uid], recipe, run, row)
            for voice, answers in zip(voices, (before, after), strict=False)
        }
        gain = now[uid] - then[uid] if last is not None else None
        query, duration = first.prompt.strip(), first.truth.get("duration")
        truth = replies.of_record(first.truth)
        chosen.append(Clip(uid, query, duration, truth, said, selections, now.get(uid, then[uid]), gain))
    if any(said.error == UNKNOWN for clip in chosen for said in clip.said.values()):
        rows.notices.append("What the answers say is not drawn: their reward is no recipe of reward_fns.")
    return Looked(chosen, voices, rows)


def _val_files(run: Run) -> list[Path]:
    """Files of the held-out rows; none if they are not known."""
    files = run.record.get("val_files") or []
    return [Path(file) for file in ([files] if isinstance(files, str) else files)]


def _answered(answer: training.Answer, recipe: str | None, run: Run, row: Mapping | None) -> Said:
    parts: Mapping[str, str] = {"score": "reward"} | {part: training.title(part) for part in run.parts}
    values = tuple((title, charts.fixed(answer.values[part])) for part, title in parts.items() if part in answer.values)
    if recipe is None:
        return Said(None, answer.text, values, UNKNOWN, answer.samples)
    return Said(replies.read(recipe, answer.text, row=row), answer.text, values, samples=answer.samples)
