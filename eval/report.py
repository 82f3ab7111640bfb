"""One self-contained HTML page about one training run, so that a curve can be checked against the clips behind it.

A mean that rises says little by itself: it may come from fewer malformed answers, from answers that are all alike, or
from grounding. The page therefore sets the held-out numbers, with intervals, beside the training curves of every reward
part and beside clips with truth and both answers drawn on frames and on one time line. This module reads the files of a
run and computes numbers and geometry; all markup stands in `report.html`, rendered by jinja2.

The page reads runs whose reward is `stvg_r1`: answers are parsed by that module, never here.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
import pyarrow.parquet as pq

from reward_fns import stvg_r1
from verl_stvg.video.decode import VideoError
from verl_stvg.video.thumbnails import thumbnails

PARTS = {"temporal_iou": "Temporal IoU", "id_match": "ID accuracy", "format": "Format"}
"""Reward parts of `stvg_r1` and their headings; each lies in [0, 1]."""
RESAMPLES = 5000
PICK = 8
"""Clips per selection: most improved, worst after, at random."""
PICK_SEED = 0
NUM_FRAMES = 8
FRAME_SIDE = 288
"""Longer side of a frame on the page, pixels."""
IMAGE_BYTES = 2_600_000
"""JPEG bytes of the whole page; base64 makes a third more of it."""
MAX_POINTS = 400
"""Points per curve; longer runs are averaged in bins."""
MAX_TEXT = 6000
"""Characters of one answer on the page."""

_PLOT_WIDTH, _PLOT_HEIGHT = 300, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 10, 24  # margins of a plot, in its own units


@dataclass(frozen=True)
class Answer:
    """One held-out answer: the text, the row's truth, and the reward with its parts (means of several answers)."""

    uid: str
    prompt: str
    text: str
    truth: Mapping[str, float]
    values: Mapping[str, float]
    samples: int = 1


@dataclass(frozen=True)
class Run:
    """What a run's folder holds: metrics by step, held-out answers by step and row uid, and `run.json`."""

    metrics: dict[int, dict[str, float]]
    validations: dict[int, dict[str, Answer]]
    record: dict
    notices: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, str]:
        """The run's KEY=VALUE arguments."""
        pairs = (str(argument).lstrip("+").split("=", 1) for argument in self.record.get("arguments") or ())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def series(self, key: str) -> dict[int, float]:
        """Values of one metric by step."""
        return {step: data[key] for step, data in self.metrics.items() if key in data}

    def held_out(self, part: str) -> dict[int, float]:
        """Held-out means by step: over the clips of a dump where there is one, else as verl logged them.

        verl's key is `val-core|val-aux/<data source>/<part>/mean@<n>`; several data sources count equally.
        """
        name = "reward" if part == "score" else part
        logged = defaultdict(list)
        for step, data in self.metrics.items():
            for key, value in data.items():
                fields = key.rsplit("/", 2)
                if key.startswith(("val-core/", "val-aux/")) and fields[1] == name and fields[2].startswith("mean@"):
                    logged[step].append(value)
        means = {step: float(np.mean(values)) for step, values in logged.items()}
        for step, answers in self.validations.items():
            means[step] = float(np.mean([answer.values[part] for answer in answers.values()]))
        return dict(sorted(means.items()))


def write(run_dir: Path, out: Path) -> Path:
    """Write the page of a run and return its path.

    Raises:
        ValueError: `metrics.jsonl` missing or empty, or a line of it or of a dump that cannot be read; names file, line
            and remedy. A half-written last line, missing videos, tracks or `run.json` are told on the page instead.
    """
    run_dir, out = Path(run_dir), Path(out)
    run = read_run(run_dir)
    numbers = _summarise(run)
    clips, notices = _clips(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, signed=_signed, fixed=_fixed)
    page = environment.get_template("report.html").render(
        run_name=str(run.record.get("recipe") or run_dir.resolve().name),
        numbers=numbers,
        parts=PARTS,
        facts=_facts(run, numbers),
        notices=run.notices + notices,
        arguments=[str(argument) for argument in run.record.get("arguments") or ()],
        reward_charts=_reward_charts(run),
        other_charts=_other_charts(run),
        histogram=_histogram(run),
        flows=_flows(run),
        validations=[
            {"step": step, "values": [run.held_out(part).get(step) for part in ("score", *PARTS)]}
            for step in run.held_out("score")
        ],
        clips=clips,
        groups=_groups(clips),
        plot={"width": _PLOT_WIDTH, "height": _PLOT_HEIGHT},
        resamples=RESAMPLES,
        num_frames=NUM_FRAMES,
        pick_seed=PICK_SEED,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def summarise(run_dir: Path) -> dict:
    """Numbers of a run's headline, as plain floats and ints; None for what the run does not hold.

    Returns:
        `steps`, `first_validation`, `last_validation` (steps; None without one, and None for a last that is the first),
        `clips`, `group_size`, `seconds_per_step` (median), `rollout_probs_diff` (largest of all steps), and for each of
        `temporal_iou`, `id_match`, `format`: `before`, `after`, `gain`, each with `_low` and `_high`, the bounds of a
        95 % percentile bootstrap over clips (paired for the gain).

    Raises:
        ValueError: as `write`.
    """
    return _summarise(read_run(Path(run_dir)))


def read_run(run_dir: Path) -> Run:
    """Read `metrics.jsonl`, `validation/<step>.jsonl` and `run.json` of a run's folder.

    Raises:
        ValueError: as `write`.
    """
    notices = []
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder that `verl-stvg train --run-dir` wrote to")
    records, torn = _read_lines(path)
    if torn:
        notices.append("The last line of metrics.jsonl is half-written and left out: the run goes on, or was ended.")
    if not records:
        raise ValueError(f"{path}: holds no complete line; wait for the first step, or see train.log why there is none")
    metrics: dict[int, dict[str, float]] = {}
    for number, record in records:
        step, data = record.get("step"), record.get("data")
        if not isinstance(step, int) or not isinstance(data, dict):
            raise ValueError(
                f'{path}, line {number}: not of the form {{"step": int, "data": {{...}}}}; '
                "the file must come from verl's file logger (trainer.logger=[console,file])"
            )
        metrics.setdefault(step, {}).update((key, float(value)) for key, value in data.items() if _is_number(value))

    validations = {}
    for path in sorted(run_dir.glob("validation/*.jsonl"), key=lambda path: (len(path.stem), path.stem)):
        if not path.stem.isdecimal():
            raise ValueError(f"{path}: dumps are named <step>.jsonl; move other files out of the folder")
        answers, told = _read_answers(path)
        notices += told
        if answers:
            validations[int(path.stem)] = answers
    if not validations:
        notices.append(
            "There are no held-out answers (validation/<step>.jsonl), so no intervals and no clips are shown; "
            "train with trainer.validation_data_dir set."
        )

    record = {}
    path = run_dir / "run.json"
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); remove the file to write the page without it") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}: not a JSON object; remove the file to write the page without it")
    else:
        notices.append("There is no run.json in the run's folder, so its arguments and videos are not known.")
    run = Run(dict(sorted(metrics.items())), validations, record, notices)
    notices += _disagreements(run)
    return run


def _read_lines(path: Path) -> tuple[list[tuple[int, dict]], bool]:
    """Numbered JSON objects of a file, and whether its last line is half-written (no line feed, and no JSON)."""
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            if number == len(lines):
                return records, True
            raise ValueError(f"{path}, line {number}: not JSON ({error}); remove the line or run again") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object; remove the line or run again")
        records.append((number, record))
    return records, False


def _read_answers(path: Path) -> tuple[dict[str, Answer], list[str]]:
    records, torn = _read_lines(path)
    name = f"validation/{path.name}"
    notices = [f"The last line of {name} is half-written and left out."] if torn else []
    drawn, failed = defaultdict(list), 0
    for number, record in records:
        where = f"{path}, line {number}"
        truth = record.get("gts")
        if not isinstance(truth, dict) or "uid" not in truth:
            raise ValueError(f"{where}: key 'gts' holds no 'uid', the row's own; build the rows again and rerun")
        lacking = [key for key in ("object_id", "start", "end", "duration") if not _is_number(truth.get(key))]
        if lacking or not isinstance(record.get("output"), str):
            raise ValueError(
                f"{where}: {', '.join(lacking) or 'output'} is missing or no {'number' if lacking else 'text'}; "
                "this page reads runs with the reward stvg_r1"
            )
        absent = [key for key in ("score", *PARTS) if key not in record]
        if absent:
            raise ValueError(f"{where}: no {', '.join(absent)}; this page reads runs with the reward stvg_r1")
        if not all(_is_number(record[key]) for key in ("score", *PARTS)):
            failed += 1  # verl writes null for a rollout that failed
            continue
        values = {key: float(record[key]) for key in ("score", *PARTS)}
        drawn[str(truth["uid"])].append((record["output"], str(record.get("input", "")), truth, values))
    if failed:
        notices.append(f"{failed} answers of {name} have no reward (the rollout failed) and are left out.")
    answers = {}
    for uid, samples in drawn.items():
        samples.sort(key=lambda sample: sample[0])  # lines come in random order; the page should not change with it
        text, prompt, truth, _ = samples[0]
        means = {key: float(np.mean([values[key] for *_, values in samples])) for key in ("score", *PARTS)}
        answers[uid] = Answer(uid, prompt, text, truth, means, len(samples))
    return dict(sorted(answers.items())), notices


def _disagreements(run: Run) -> list[str]:
    """A notice for every step at which verl's logged held-out mean is not that of the dumped answers."""
    bare = Run(run.metrics, {}, {})
    notices = []
    for part, name in PARTS.items():
        logged, dumped = bare.held_out(part), run.held_out(part)
        off = [step for step in run.validations if abs(logged.get(step, dumped[step]) - dumped[step]) > 1e-3]
        if off:
            notices.append(
                f"{name}: the mean in metrics.jsonl is not that of the answers in validation/ at "
                f"{'steps' if len(off) > 1 else 'step'} {', '.join(map(str, off))}; the answers are shown."
            )
    return notices


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ends(run: Run) -> tuple[dict[str, Answer], dict[str, Answer]]:
    """Answers of the first and of the last validation, on the clips of both; the last is empty if it is the first."""
    if not run.validations:
        return {}, {}
    first, last = run.validations[min(run.validations)], run.validations[max(run.validations)]
    if first is last:
        return first, {}
    common = [uid for uid in first if uid in last]
    return {uid: first[uid] for uid in common}, {uid: last[uid] for uid in common}


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the bounds of its 95 % percentile bootstrap."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means, size = [], max(1, 1_000_000 // len(values))  # resamples at a time, so that memory stays small
    while len(means) < RESAMPLES:
        count = min(size, RESAMPLES - len(means))
        means.extend(values[rng.integers(len(values), size=(count, len(values)))].mean(axis=1))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def _summarise(run: Run) -> dict:
    before, after = _ends(run)
    held_out = sorted(run.held_out("temporal_iou"))
    group_size = run.arguments.get("actor_rollout_ref.rollout.n", "")
    seconds = list(run.series("timing_s/step").values())
    parity = list(run.series("training/rollout_probs_diff_mean").values())
    numbers = {
        "steps": max(run.metrics),
        "first_validation": held_out[0] if held_out else None,
        "last_validation": held_out[-1] if len(held_out) > 1 else None,
        "clips": len(before),
        "group_size": int(group_size) if group_size.isdecimal() else None,
        "seconds_per_step": float(np.median(seconds)) if seconds else None,
        "rollout_probs_diff": max(parity) if parity else None,
    }
    if run.validations:
        numbers["first_validation"] = min(run.validations)
        numbers["last_validation"] = max(run.validations) if after else None
    for part in PARTS:
        row = dict.fromkeys(f"{name}{end}" for name in ("before", "after", "gain") for end in ("", "_low", "_high"))
        if run.validations:
            then = {uid: answer.values[part] for uid, answer in before.items()}
            now = {uid: answer.values[part] for uid, answer in after.items()}
            samples = {"before": then, "after": now, "gain": {uid: now[uid] - then[uid] for uid in now}}
            for name, values in samples.items():
                if values:
                    row[name], row[f"{name}_low"], row[f"{name}_high"] = _interval(list(values.values()))
        else:  # means only
            logged = run.held_out(part)
            steps = sorted(logged)
            row["before"] = logged[steps[0]] if steps else None
            if len(steps) > 1:
                row["after"], row["gain"] = logged[steps[-1]], logged[steps[-1]] - logged[steps[0]]
        numbers[part] = row
    return numbers


def _facts(run: Run, numbers: dict) -> list[dict]:
    """Name, value and note of each fact of the run that is known."""
    seconds = run.series("timing_s/step")
    generation = list(run.series("timing_s/gen").values())
    status = run.record.get("status")
    facts = [("Training steps", str(numbers["steps"]), "")]
    if numbers["group_size"]:
        facts.append(("Group size", str(numbers["group_size"]), "answers per prompt"))
    if numbers["clips"]:
        facts.append(("Held-out clips", str(numbers["clips"]), Path(run.record.get("val_files") or "").name))
    if seconds:
        note = f"median; {_number(float(np.median(generation)))} s of it generation" if generation else "median"
        facts.append(("Time per step", f"{_number(numbers['seconds_per_step'])} s", note))
        facts.append(("Time in steps", _clock(sum(seconds.values())), "without start and end"))
    if numbers["rollout_probs_diff"] is not None:
        facts.append(("Actor − rollout", _number(numbers["rollout_probs_diff"]), "mean |Δp| per token, worst step"))
    if run.record.get("model"):
        facts.append(("Model", Path(run.record["model"]).name, "start of the training"))
    if run.record.get("started"):
        day, _, time = str(run.record["started"]).partition("T")
        facts.append(("Started", day, f"{time[:5]} UTC" if time else ""))
    if run.record:
        ended = {None: "going on, or killed", 0: "finished", 130: "interrupted"}
        facts.append(("State", ended.get(status, f"failed, status {status}"), ""))
    return [dict(zip(("name", "value", "note"), fact, strict=True)) for fact in facts]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# --- curves -----------------------------------------------------------------------------------------------------------


def _reward_charts(run: Run) -> list[dict]:
    charts = []
    for part, title in {"score": "Reward (sum)", **PARTS}.items():
        training = run.series(f"reward/{part}/mean") or (run.series("critic/score/mean") if part == "score" else {})
        held_out = run.held_out(part)
        if training or held_out:
            span = (0, len(PARTS) if part == "score" else 1)
            if not all(span[0] <= value <= span[1] for value in (*training.values(), *held_out.values())):
                span = None  # a recipe with weights of its own
            unit = f"{span[0]} to {span[1]}" if span else "weighted"
            charts.append(_chart(title, unit, training, run.series(f"reward/{part}/std"), held_out, span))
    return charts


def _other_charts(run: Run) -> list[dict]:
    """Diagnostics that the run logged, each on its own scale."""
    table = (
        ("actor/kl_loss", "KL to the reference", "nats per token", None),
        ("response_length/mean", "Answer length", "tokens, mean", None),
        ("reward/zero_variance_groups", "Groups without spread", "share of groups", (0, 1)),
        ("actor/grad_norm", "Gradient norm", "before clipping", None),
        ("actor/entropy", "Entropy", "nats per token", None),
        ("training/rollout_probs_diff_mean", "Actor − rollout", "mean |Δp| per token", None),
        ("actor/pg_loss", "Policy loss", "clipped surrogate", None),
        ("timing_s/step", "Time per step", "seconds", None),
    )
    return [_chart(title, unit, run.series(key), {}, {}, span) for key, title, unit, span in table if run.series(key)]


def _chart(
    title: str,
    unit: str,
    training: Mapping[int, float],
    spread: Mapping[int, float],
    held_out: Mapping[int, float],
    span: tuple[float, float] | None,
) -> dict:
    """Geometry of one plot: a training line with a band of one standard deviation, and held-out points.

    Args:
        training: value by step.
        spread: standard deviation by step; the band is cut at `span`.
        held_out: value by step.
        span: of the value axis; None takes it from the values.
    """
    steps = sorted(training)
    size = math.ceil(len(steps) / MAX_POINTS) if steps else 1
    bins = [steps[k : k + size] for k in range(0, len(steps), size)]
    xs = [float(np.mean(group)) for group in bins]
    ys = [float(np.mean([training[step] for step in group])) for group in bins]
    known = [[spread[step] for step in group if step in spread] for group in bins]
    stds = [float(np.mean(values)) if values else None for values in known]

    low, high = span or _span([*ys, *held_out.values()])
    exponent = 0
    if span is None:
        largest = max(abs(low), abs(high))
        exponent = math.floor(math.log10(largest)) if largest and not 0.1 <= largest < 1e4 else 0
    last = max([*steps, *held_out, 1])

    def x(step: float) -> float:
        return round(_LEFT + (_PLOT_WIDTH - _LEFT - _RIGHT) * step / last, 2)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(_PLOT_HEIGHT - _BOTTOM - (_PLOT_HEIGHT - _TOP - _BOTTOM) * share, 2)

    line = [(x(step), y(value)) for step, value in zip(xs, ys, strict=True)]
    edges = [
        (x(step), y(value - std), y(value + std))
        for step, value, std in zip(xs, ys, stds, strict=True)
        if std is not None
    ]
    points = [{"x": x(step), "y": y(value), "end": ""} for step, value in sorted(held_out.items())]
    if points:
        points[0]["end"] = "before"
    if len(points) > 1:
        points[-1]["end"] = "after"
    hover = {
        "training": [[x(s), _number(s), _number(v), _number(d)] for s, v, d in zip(xs, ys, stds, strict=True)],
        "held": [[x(step), str(step), _number(value)] for step, value in sorted(held_out.items())],
        "binned": size,
    }
    return {
        "title": title,
        "unit": unit + (f" · ×10{_superscript(exponent)}" if exponent else ""),
        "binned": size,
        "line": _path(line),
        "dot": line[0] if len(line) == 1 else None,
        "band": _path([(a, b) for a, b, _ in edges] + [(a, c) for a, _, c in reversed(edges)])
        if len(edges) > 1
        else "",
        "held_line": _path([(point["x"], point["y"]) for point in points]),
        "points": points,
        "y_ticks": [{"at": y(v), "text": _tick(v / 10**exponent)} for v in _ticks(low, high, 4)],
        "x_ticks": [{"at": x(v), "text": _tick(v)} for v in _ticks(0, last, 5) if float(v).is_integer()],
        "left": _LEFT,
        "right": _PLOT_WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": _PLOT_HEIGHT - _BOTTOM,
        "hover": json.dumps(hover, separators=(",", ":"), ensure_ascii=False),
    }


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Value axis for these values, from tick to tick; it starts at 0 unless they vary little."""
    low, high = min(values), max(values)
    if 0.0 <= low < 0.6 * high:
        low = 0.0
    if low == high == 0.0:
        high = 1.0
    elif high - low < (least := 0.05 * max(abs(low), abs(high))):  # noise in the last digits is no curve
        low, high = low - least, high + least
    step = _tick_step(low, high, 4)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _tick_step(low: float, high: float, count: int) -> float:
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    return next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * (1 - 1e-9))


def _ticks(low: float, high: float, count: int) -> list[float]:
    step = _tick_step(low, high, count)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value + 0.0:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _histogram(run: Run) -> dict | None:
    """Held-out temporal IoU before and after in ten bins: bars side by side, and how many clips each stands for."""
    before, after = _ends(run)
    if not after:
        return None
    counts = {}
    for kind, answers in (("before", before), ("after", after)):
        values = [answer.values["temporal_iou"] for answer in answers.values()]
        counts[kind] = np.histogram(values, bins=10, range=(0.0, 1.0))[0]
    top = max(int(max(c.max() for c in counts.values())), 1)
    top = int(math.ceil(top / (step := max(1, int(_tick_step(0, top, 4))))) * step)
    slot = (_PLOT_WIDTH - _LEFT - _RIGHT) / 10
    height = _PLOT_HEIGHT - _TOP - _BOTTOM
    bars = []
    for kind, offset in (("before", 0.08), ("after", 0.52)):
        for k, count in enumerate(counts[kind]):
            tall = height * int(count) / top
            bars.append(
                {
                    "kind": kind,
                    "x": round(_LEFT + (k + offset) * slot, 2),
                    "y": round(_PLOT_HEIGHT - _BOTTOM - tall, 2),
                    "width": round(0.4 * slot, 2),
                    "height": round(tall, 2),
                    "text": f"{kind}: {count} clips with temporal IoU {k / 10:.1f} to {(k + 1) / 10:.1f}",
                }
            )
    return {
        "bars": bars,
        "x_ticks": [{"at": round(_LEFT + 2 * k * slot, 2), "text": f"{k / 5:.1f}"} for k in range(6)],
        "y_ticks": [
            {"at": round(_PLOT_HEIGHT - _BOTTOM - height * v / top, 2), "text": str(v)} for v in range(0, top + 1, step)
        ],
        "left": _LEFT,
        "right": _PLOT_WIDTH - _RIGHT,
        "bottom": _PLOT_HEIGHT - _BOTTOM,
    }


def _flows(run: Run) -> list[dict]:
    """How many clips kept, gained, lost and never had the right ID; several answers to one clip count by majority."""
    before, after = _ends(run)
    pairs = [(before[uid].values["id_match"] >= 0.5, after[uid].values["id_match"] >= 0.5) for uid in after]
    table = (
        ("right before and after", (True, True)),
        ("became right", (False, True)),
        ("became wrong", (True, False)),
        ("wrong before and after", (False, False)),
    )
    kinds = ("kept", "gained", "lost", "never")
    return [
        {"name": name, "kind": kind, "count": pairs.count(pair), "share": 100 * pairs.count(pair) / len(pairs)}
        for kind, (name, pair) in zip(kinds, table, strict=True)
        if pairs
    ]


# --- clips ------------------------------------------------------------------------------------------------------------


def pick_clips(before: Mapping[str, Answer], after: Mapping[str, Answer]) -> dict[str, list[str]]:
    """Choose clips to look at: uid to the selections it is in, `random`, `improved` (only where positive), `worst`.

    The random ones are drawn from all clips, so they are a fair sample and may be in another selection too. The worst
    are the lowest rewards of the last validation there is; ties are broken by uid.
    """
    uids = sorted(before)
    last = after or before
    drawn = np.random.default_rng(PICK_SEED).permutation(len(uids))[:PICK]
    gains = {uid: after[uid].values["score"] - before[uid].values["score"] for uid in after}
    selections = {
        "random": [uids[k] for k in drawn],
        "improved": sorted((uid for uid in gains if gains[uid] > 0), key=lambda uid: (-gains[uid], uid))[:PICK],
        "worst": sorted(uids, key=lambda uid: (last[uid].values["score"], uid))[:PICK],
    }
    picked = defaultdict(list)
    for name, chosen in selections.items():
        for uid in chosen:
            picked[uid].append(name)
    return dict(picked)


def _groups(clips: Sequence[dict]) -> list[dict]:
    labels = {"random": "At random", "improved": "Most improved", "worst": "Lowest reward", "all": "All shown"}
    counts = {name: sum(name == "all" or name in clip["picked"] for clip in clips) for name in labels}
    return [{"name": name, "label": label, "count": counts[name]} for name, label in labels.items() if counts[name]]


def _clips(run: Run) -> tuple[list[dict], list[str]]:
    """Everything the page draws of the chosen clips, and notices about what is missing."""
    before, after = _ends(run)
    picked = pick_clips(before, after)
    rows, notices = _rows(run, set(picked))
    budget = IMAGE_BYTES // max(1, len(picked) * NUM_FRAMES)
    clips, unseen, untracked = [], [], []
    for uid, selections in picked.items():
        first, last = before[uid], after.get(uid)
        answers = [("before", min(run.validations), first)]
        if last is not None:
            answers.append(("after", max(run.validations), last))
        duration = float(first.truth["duration"])
        spans = {"truth": (float(first.truth["start"]), float(first.truth["end"]), int(first.truth["object_id"]))}
        for kind, _, answer in answers:
            if (parsed := stvg_r1.parse(answer.text)) is not None:
                spans[kind] = (parsed[1], parsed[2], parsed[0])
        row = rows.get(uid)
        tracks = _tracks(row) if row else None
        frames, aspect = [], (3, 2)
        if row:
            try:
                pictures, aspect = thumbnails(row["video"], NUM_FRAMES, FRAME_SIDE, budget, end=duration)
                frames = [{"time": one.time, "text": f"{one.time:.1f}", "source": one.source} for one in pictures]
            except VideoError as error:
                unseen.append(str(error).replace(str(row["video"]), row["video"].name))
            if tracks is None:
                untracked.append(uid)
        for frame in frames:
            frame["kinds"] = [kind for kind in spans if spans[kind][0] <= frame["time"] < spans[kind][1]]
            frame["boxes"] = _boxes(frame, spans, tracks) if tracks else []
        clips.append(
            {
                "uid": uid,
                "query": row["query"] if row else first.prompt.strip(),
                "picked": selections,
                "gain": (last.values["score"] - first.values["score"]) if last is not None else None,
                "final": (last or first).values["score"],
                "frames": frames,
                "aspect": aspect,
                "size": tracks["size"] if tracks else None,
                "lanes": [_lane("truth", spans["truth"], duration, tracks, first.truth)]
                + [_lane(kind, spans.get(kind), duration, tracks, first.truth) for kind, _, _ in answers],
                "ticks": [{"at": 100 * v / duration, "text": _tick(v)} for v in _ticks(0, duration, 8)],
                "duration": duration,
                "answers": [
                    {
                        "kind": kind,
                        "step": step,
                        "text": answer.text[:MAX_TEXT],
                        "cut": max(0, len(answer.text) - MAX_TEXT),
                        "values": answer.values,
                        "samples": answer.samples,
                    }
                    for kind, step, answer in answers
                ],
            }
        )
    if unseen:
        notices.append(f"The frames of {len(unseen)} of {len(clips)} clips cannot be shown. The first: {unseen[0]}")
    if untracked:
        notices.append(
            f"There are no boxes for {len(untracked)} of {len(clips)} clips: "
            "the rows' folder holds no tracks/<video>.json for them."
        )
    return clips, notices


def _rows(run: Run, uids: set[str]) -> tuple[dict[str, dict], list[str]]:
    """Video, tracks file and query of these rows, from the parquet file that the run validated on."""
    if not uids:
        return {}, []
    if not run.record.get("val_files"):
        return {}, ["run.json names no held-out rows, so no frames are shown."] if run.record else []
    path = Path(run.record["val_files"])
    if not path.is_file():
        return {}, [f"The held-out rows ({path.name}) are gone, so no frames are shown; their answers are."]
    root = Path(run.arguments.get("data.video_root") or path.parent)
    rows = {}
    for row in pq.read_table(path, columns=["videos", "extra_info"]).to_pylist():
        extra = row["extra_info"] or {}
        uid = str(extra.get("uid"))
        if uid in uids and row["videos"]:
            video = root / row["videos"][0]["video"]
            rows[uid] = {
                "video": video,
                "tracks": path.parent / "tracks" / f"{video.stem}.json",
                "query": extra.get("query") or "",
            }
    if lost := len(uids - rows.keys()):
        return rows, [f"{lost} of {len(uids)} clips are not in {path.name}: the rows were built again since the run."]
    return rows, []


def _tracks(row: Mapping) -> dict | None:
    """Boxes xyxy by object and frame, size (H, W) and fps of a clip's objects; None if no file says them."""
    if not row["tracks"].is_file():
        return None
    record = json.loads(row["tracks"].read_text(encoding="utf-8"))
    objects = {
        int(found["object_id"]): dict(zip(found["frames"], found["boxes_xyxy"], strict=True))
        for found in record["objects"]
    }
    return {"objects": objects, "size": record["size"], "fps": float(record["fps"])}


def _boxes(frame: Mapping, spans: Mapping[str, tuple], tracks: Mapping) -> list[dict]:
    """Boxes of a frame: the true object in the true span, each answer's object in its own span.

    Boxes of one object are drawn one inside the other, in the order truth, after, before, so that none hides another.
    """
    index = int(frame["time"] * tracks["fps"] + 0.5)
    step = tracks["size"][1] / 24
    depth, boxes = defaultdict(int), []
    for kind in ("truth", "after", "before"):
        if kind not in frame["kinds"]:
            continue
        object_id = spans[kind][2]
        box = tracks["objects"].get(object_id, {}).get(index)
        if box is None:
            continue
        left, top, right, bottom = box
        inset = depth[object_id] * min(step, (right - left) / 6, (bottom - top) / 6)
        depth[object_id] += 1
        boxes.append(
            {
                "kind": kind,
                "x": round(left + inset, 1),
                "y": round(top + inset, 1),
                "width": round(right - left - 2 * inset, 1),
                "height": round(bottom - top - 2 * inset, 1),
            }
        )
    return boxes


def _lane(kind: str, span: tuple | None, duration: float, tracks: dict | None, truth: Mapping) -> dict:
    """One bar of a clip's time line: position in per cent of the clip, and what it says."""
    if span is None:
        return {"kind": kind, "left": 0.0, "width": 0.0, "who": "unreadable", "when": "", "note": "", "right": False}
    start, end, object_id = span
    left, right = (100 * min(max(0.0, value / duration), 1.0) for value in (start, end))
    note = ""
    if start >= duration:
        note = "past the clip's end"
    elif end <= start:
        note = "ends before it starts" if end < start else "empty span"
    elif tracks and object_id not in tracks["objects"]:
        note = "no such object"
    who = str(object_id)
    return {
        "kind": kind,
        "left": round(left, 2),
        "width": round(max(0.0, right - left), 2),
        "who": f"ID {who if len(who) < 9 else who[:8] + '…'}",
        "when": f"{_seconds(start)} to {_seconds(end)} s",
        "note": note,
        "right": object_id == truth["object_id"],
    }


# --- text of numbers --------------------------------------------------------------------------------------------------


def _seconds(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def _number(value: float | None) -> str:
    """Three significant digits, or nothing for None."""
    if value is None:
        return ""
    digits, _, exponent = f"{value:.3g}".partition("e")
    return digits.replace("-", "−") + (f"×10{_superscript(int(exponent))}" if exponent else "")


def _fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")
