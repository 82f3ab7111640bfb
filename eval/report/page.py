"""One self-contained HTML page about training runs and evaluations, so that a number can be checked against clips.

A mean that rises says little by itself: it may come from fewer malformed answers, from answers that are all alike, or
from grounding. The page therefore sets numbers, with intervals, beside their spread over clips, the kinds of errors,
the curves of every reward part, and clips with truth and answers drawn on frames and on one time line. This module puts
the page together; the folders are read by `verl_stvg.eval.report.runs` and `verl_stvg.eval.report.evaluations`, clips
by `verl_stvg.eval.report.clips`, and all markup stands in `report*.html`, rendered by jinja2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import numpy as np

from verl_stvg.base.lock import write_whole
from verl_stvg.eval.report import charts, clips, evaluations, replies, runs
from verl_stvg.eval.report.clips import NUM_FRAMES, PICK, PICK_SEED, Clip, Rows, Said, Voice
from verl_stvg.eval.report.evaluations import Evaluation
from verl_stvg.eval.report.runs import Run, summarise

__all__ = ["summarise", "write"]

IMAGE_BYTES = 2_600_000
"""JPEG bytes of the whole page; base64 makes a third more of it."""
MAX_MODELS = 6
"""Evaluations of one benchmark that colours and columns can tell apart."""
UNKNOWN = "not read"
"""Of an answer whose reward is not one that the page knows."""

_PICKED = {"improved": "Most improved", "worsened": "Most worsened", "random": "At random"}
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


@dataclass(frozen=True)
class _Looked:
    """Clips of a section before they are drawn."""

    clips: list[Clip]
    voices: list[Voice]
    rows: Rows


def write(folders: Path | Sequence[Path], out: Path) -> Path:
    """Write the page of training runs and evaluations, and return its path.

    Evaluations of one benchmark are compared with the first of them. An evaluation in the folder of a run, or below it,
    brings the run's curves along.

    Args:
        folders: of runs (``metrics.jsonl``) and of evaluations (``scores.json``).
        out: the page.

    Raises:
        ValueError: a folder that is neither, files of it that cannot be read, evaluations on other rows, or too many of
            them; names file, line and remedy. Missing videos, tracks or rows are told on the page instead.
    """
    folders = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    out = Path(out)
    scored, trained = _told_apart(folders)
    compared = _compared(scored)
    pictured = len(compared) + len(trained)
    count = max(2, PICK // max(1, pictured))

    sections = [_evaluation_section(found, count) for found in compared]
    sections += [_run_section(folder, count) for folder in trained]
    known = {folder.resolve() for folder in trained}
    above = dict.fromkeys(found for folder in scored if (found := _run_above(folder)) is not None)
    sections += [_curves_section(folder) for folder in above if folder not in known]

    budget = IMAGE_BYTES // max(1, sum(len(one["looked"].clips) for one in sections) * NUM_FRAMES)
    for section in sections:
        _draw(section, budget)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "signed", "fixed", "hundredths", "points", "thousands")
    environment.filters.update({name: getattr(charts, name) for name in names})
    page = environment.get_template("page.html").render(
        title=" · ".join(dict.fromkeys(section["title"] for section in sections)),
        sections=sections,
        plot={"width": charts.WIDTH, "height": charts.HEIGHT},
        pick_seed=PICK_SEED,
    )
    write_whole(out, page)
    return out


def _told_apart(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Folders of evaluations, and folders of runs."""
    scored, trained = [], []
    for folder in folders:
        if (folder / "scores.json").is_file():
            scored.append(folder)
        elif (folder / "predictions.jsonl").is_file():
            raise ValueError(f"{folder}: its answers are not scored; run `verl-stvg score` on it first")
        else:
            trained.append(folder)
    if not scored and not trained:
        raise ValueError("no folder; give one of a run or of an evaluation")
    return scored, trained


def _compared(folders: Sequence[Path]) -> list[list[Evaluation]]:
    """Evaluations by benchmark, with names that tell them apart."""
    found = [evaluations.read(folder) for folder in folders]
    names = evaluations.names([(one.made_by.get("model"), one.folder) for one in found])
    by_benchmark: dict[str, list[Evaluation]] = {}
    for one, name in zip(found, names, strict=True):
        by_benchmark.setdefault(one.benchmark, []).append(replace(one, name=name))
    for benchmark, group in by_benchmark.items():
        if len(group) > MAX_MODELS:
            raise ValueError(
                f"{len(group)} evaluations of {benchmark}, and a page compares {MAX_MODELS} at most; give fewer folders"
            )
        evaluations.check_same_rows(group)
    return list(by_benchmark.values())


def _run_above(folder: Path) -> Path | None:
    """The run that a folder is, or lies in."""
    folder = folder.resolve()
    return next((one for one in (folder, *folder.parents) if (one / "metrics.jsonl").is_file()), None)


def _draw(section: dict, budget: int) -> None:
    looked = section.pop("looked")
    drawn, notices = clips.draw(looked.clips, looked.voices, looked.rows, budget)
    section["clips"] = drawn
    section["voices"] = looked.voices
    if drawn:
        section["notices"] += [*looked.rows.notices, *notices]
    labels = {**_PICKED, "worst": section["worst"][0].upper() + section["worst"][1:], "all": "All shown"}
    if len(looked.voices) > 1:  # what the page shows at first: all, those that changed most before the others
        labels = {"all": labels["all"], **labels}
    counts = {name: sum(name == "all" or name in clip["picked"] for clip in drawn) for name in labels}
    section["labels"] = labels
    section["groups"] = [
        {"name": name, "label": label, "count": counts[name]} for name, label in labels.items() if counts[name]
    ]


# --- evaluations ------------------------------------------------------------------------------------------------------


def _evaluation_section(found: list[Evaluation], count: int) -> dict:
    """What the page says of the evaluations of one benchmark."""
    kinds = ["m2"] if len(found) == 1 else [f"m{k}" for k in range(1, len(found) + 1)]
    metric = evaluations.main_metric(found)
    rows = Rows(dict.fromkeys(path for one in found for path in one.rows_files), _video_root(found))
    names = [one.name for one in found]
    benchmark = found[0].benchmark
    if len(found) == 1:
        title = f"{names[0]} on {benchmark}"
    else:
        title = f"{' and '.join(names)} on {benchmark}" if len(found) == 2 else f"{len(found)} models on {benchmark}"
    spread = [
        (kind, one.name, [item.values[metric] for item in one.items.values()]) for one, kind in _zip(found, kinds)
    ]
    whole = all(value in (0.0, 1.0) for _, _, values in spread for value in values)
    present = [metric for one in found for metric in one.scores["metrics"]]
    return {
        "kind": "evaluation",
        "title": title,
        "models": [
            {"kind": kind, "name": one.name, "facts": evaluations.facts(one, len(found) == 1)}
            for one, kind in _zip(found, kinds)
        ],
        "rows": len(found[0].items),
        "metric": metric,
        "table": evaluations.table(found, kinds),
        "baselines": evaluations.baseline_names(found),
        "differences": evaluations.differences(found, kinds, rows.videos()),
        "spread": None if whole else charts.histogram(metric, spread),
        "errors": evaluations.errors(found, kinds),
        "families": evaluations.groups(found, kinds, metric),
        "sentences": evaluations.sentences(found),
        "clean": not any(item.error in evaluations.UNREAD for one in found for item in one.items.values()),
        "definitions": [
            (name, text)
            for name, text in evaluations.DEFINITIONS.items()
            if any(one.startswith(name) or (name[0] == "_" and name in one) for one in present)
        ],
        "made": [{"name": one.name, "text": evaluations.pretty(one.made_by)} for one in found if one.made_by],
        "notices": [],
        "worst": f"lowest {metric}",
        "looked": _evaluated_clips(found, kinds, metric, rows, count),
    }


def _zip(found: Sequence[Evaluation], kinds: Sequence[str]) -> Iterable[tuple[Evaluation, str]]:
    return zip(found, kinds, strict=True)


def _video_root(found: Sequence[Evaluation]) -> str | None:
    return next((one.made_by["video_root"] for one in found if one.made_by.get("video_root")), None)


def _evaluated_clips(found: list[Evaluation], kinds: list[str], metric: str, rows: Rows, count: int) -> _Looked:
    first, last = found[0], found[-1]
    # A row without an answer shows nothing; how many there are is said above.
    shown = {
        uid: item.values[metric]
        for uid, item in first.items.items()
        if not any(one.items[uid].error in evaluations.UNANSWERED for one in found)
    } or {uid: item.values[metric] for uid, item in first.items.items()}
    after = {uid: last.items[uid].values[metric] for uid in shown} if len(found) > 1 else {}
    picked = clips.pick(shown, after, count)
    chosen = []
    for uid, selections in picked.items():
        truth = first.items[uid].truth
        said = {kind: _said(one, uid, rows) for one, kind in _zip(found, kinds)}
        gain = after[uid] - shown[uid] if after else None
        duration = float(truth["duration"]) if truth.get("duration") else None
        final = after.get(uid, shown[uid])
        chosen.append(Clip(uid, uid, duration, replies.of_record(truth), said, selections, final, gain))
    return _Looked(chosen, [Voice(kind, one.name) for one, kind in _zip(found, kinds)], rows)


def _said(one: Evaluation, uid: str, rows: Rows) -> Said:
    item, answer = one.items[uid], one.said.get(uid)
    text = (answer.texts[0] if answer.texts else answer.error or "") if answer is not None else ""
    reply = replies.of_record(item.prediction)
    if reply is not None and "frames" in item.prediction and (recipe := _recipe_of(rows, uid)) is not None:
        again = replies.read(recipe, text, row=_asked(rows, uid))  # the boxes are in the answer alone
        reply = replace(reply, tube=again.tube) if again is not None else reply
    shown = [name for name in item.values if not evaluations.is_variant(name) and "@0" not in name]
    values = [(name, charts.hundredths(item.values[name])) for name in shown]
    error = evaluations.ERRORS[item.error] if item.error else ""
    return Said(reply, text, tuple(values), error)


# --- runs -------------------------------------------------------------------------------------------------------------


def _run_section(folder: Path, count: int) -> dict:
    """What the page says of a training run and of its held-out clips."""
    run = runs.read_run(folder)
    numbers = runs.headline(run)
    measured, chosen = _measured_parts(run)
    looked = _run_clips(run, count)
    return {
        **_curves(run, folder, numbers),
        "kind": "run",
        "title": f"{_run_name(run, folder)}: what the training changed",
        "heads": {part: runs.title(part) for part in run.parts if numbers[part]["before"] is not None},
        "spread": measured,
        "flows": chosen,
        "families": _families(run, looked.rows),
        "looked": looked,
    }


def _curves_section(folder: Path) -> dict:
    """The curves of a run that an evaluation lies in."""
    run = runs.read_run(folder)
    return {
        **_curves(run, folder, runs.headline(run)),
        "kind": "curves",
        "title": f"The training of {_run_name(run, folder)}",
        "looked": _Looked([], [], Rows([])),
    }


def _curves(run: Run, folder: Path, numbers: dict) -> dict:
    return {
        "numbers": numbers,
        "parts": {part: runs.title(part) for part in run.parts},
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
        "resamples": runs.RESAMPLES,
    }


def _drawn(run: Run) -> list[tuple]:
    """Diagnostics that say something about this run."""
    once = runs.updates_per_batch(run) == 1
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
    names = {f"reward/{part}/mean": runs.title(part) for part in run.parts}
    names |= {"critic/score/mean": "Reward"} | {key: title for key, title, _, _ in _OTHER_CURVES}
    found = []
    for key, name in names.items():
        steps = [step for step, value in run.curve(key).items() if not np.isfinite(value)]
        if steps:
            drawn = "is a gap in its curve" if len(steps) < len(run.curve(key)) else "has no curve"
            found.append(f"{name} ({key}) is not a number at {runs.steps_in_words(steps)}, and {drawn}.")
    return found


def _parity(run: Run) -> list[str]:
    """Sentences on where the trained policy is not the sampled one, or where that cannot be told."""
    bound = run.series("parity/gate")
    steps = [step for step, outside in run.series("parity/outside_gate").items() if outside]
    found = []
    if steps:
        found.append(
            f"Actor − rollout is over its gate of {bound[steps[0]]:g} at {runs.steps_in_words(steps)}: the policy that "
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
        training, held_out = run.series(key), run.held_out(part)
        if training or held_out:
            full = run.full_score if part == "score" else 1
            span = (0, full) if full is not None else None
            if span and not all(span[0] <= value <= span[1] for value in (*training.values(), *held_out.values())):
                span = None  # weights of its own, or a part that may be below 0
            unit = f"{span[0]} to {charts.tick(span[1])}" if span else "weighted" if part == "score" else ""
            title = "Reward (sum)" if part == "score" else runs.title(part)
            found.append(charts.curve(title, unit, run.curve(key), run.series(f"reward/{part}/std"), held_out, span))
    return found


def _measured_parts(run: Run) -> tuple[dict | None, list[dict]]:
    """Histogram of the first part of held-out clips that is a measure, and of every part that is right or wrong how
    many clips kept, gained, lost and never had it; several answers to one clip count by majority.
    """
    before, after = runs.ends(run)
    if not after:
        return None, []
    measured, flows = None, []
    for part in (part for part in run.parts if part != "format"):
        title = runs.title(part)
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
    before, after = runs.ends(run)
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


def _mean(answers: Mapping[str, runs.Answer], uids: Sequence[str], part: str) -> float | None:
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


def _run_clips(run: Run, count: int) -> _Looked:
    """Clips of the first and the last validation."""
    before, after = runs.ends(run)
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
        recipe = run.recipes[0] if len(run.recipes) == 1 else _recipe_of(rows, uid)
        said = {
            voice.kind: _answered(answers[uid], recipe, run, _asked(rows, uid))
            for voice, answers in zip(voices, (before, after), strict=False)
        }
        gain = now[uid] - then[uid] if last is not None else None
        query, duration = first.prompt.strip(), first.truth.get("duration")
        truth = replies.of_record(first.truth)
        chosen.append(Clip(uid, query, duration, truth, said, selections, now.get(uid, then[uid]), gain))
    if any(said.error == UNKNOWN for clip in chosen for said in clip.said.values()):
        rows.notices.append("What the answers say is not drawn: their reward is no recipe of reward_fns.")
    return _Looked(chosen, voices, rows)


def _val_files(run: Run) -> list[Path]:
    """Files of the held-out rows; none if they are not known."""
    files = run.record.get("val_files") or []
    return [Path(file) for file in ([files] if isinstance(files, str) else files)]


def _recipe_of(rows: Rows, uid: str) -> str | None:
    """Recipe that a row's answers are scored by, as its data source says; None if that is not known."""
    row = rows.get(uid)
    return None if row is None else runs.recipe_of(row.data_source)


def _asked(rows: Rows, uid: str) -> Mapping | None:
    row = rows.get(uid)
    return None if row is None else row.asked


def _answered(answer: runs.Answer, recipe: str | None, run: Run, row: Mapping | None) -> Said:
    parts: Mapping[str, str] = {"score": "reward"} | {part: runs.title(part) for part in run.parts}
    values = tuple((title, charts.fixed(answer.values[part])) for part, title in parts.items() if part in answer.values)
    if recipe is None:
        return Said(None, answer.text, values, UNKNOWN, answer.samples)
    return Said(replies.read(recipe, answer.text, row=row), answer.text, values, samples=answer.samples)
