"""What the page says of the evaluations of one benchmark: tables, differences to the first one, errors and clips."""

from collections.abc import Iterable, Sequence

from verl_stvg.eval.report import charts, clips, comparison, evaluations, replies
from verl_stvg.eval.report.clips import Clip, Looked, Said, Voice
from verl_stvg.eval.report.evaluations import Evaluation
from verl_stvg.eval.report.rows import Rows


def section(found: list[Evaluation], count: int) -> dict:
    """What the page says of the evaluations of one benchmark."""
    kinds = ["m2"] if len(found) == 1 else [f"m{k}" for k in range(1, len(found) + 1)]
    metric = evaluations.main_metric(found)
    root = next((one.made_by["video_root"] for one in found if one.made_by.get("video_root")), None)
    rows = Rows(dict.fromkeys(path for one in found for path in one.rows_files), root)
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
            {"kind": kind, "name": one.name, "facts": comparison.facts(one, len(found) == 1)}
            for one, kind in _zip(found, kinds)
        ],
        "rows": len(found[0].items),
        "metric": metric,
        "table": comparison.table(found, kinds),
        "baselines": comparison.baseline_names(found),
        "differences": comparison.differences(found, kinds, rows.videos()),
        "spread": None if whole else charts.histogram(metric, spread),
        "errors": comparison.errors(found, kinds),
        "families": comparison.groups(found, kinds, metric),
        "sentences": comparison.sentences(found),
        "clean": not any(item.error in evaluations.UNREAD for one in found for item in one.items.values()),
        "definitions": [
            (name, text)
            for name, text in comparison.DEFINITIONS.items()
            if any(one.startswith(name) or (name[0] == "_" and name in one) for one in present)
        ],
        "made": [{"name": one.name, "text": comparison.pretty(one.made_by)} for one in found if one.made_by],
        "notices": [],
        "worst": f"lowest {metric}",
        "looked": _evaluated_clips(found, kinds, metric, rows, count),
    }


def _zip(found: Sequence[Evaluation], kinds: Sequence[str]) -> Iterable[tuple[Evaluation, str]]:
    return zip(found, kinds, strict=True)


def _evaluated_clips(found: list[Evaluation], kinds: list[str], metric: str, rows: Rows, count: int) -> Looked:
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
        said = {kind: _said(one, uid) for one, kind in _zip(found, kinds)}
        gain = after[uid] - shown[uid] if after else None
        duration = float(truth["duration"]) if truth.get("duration") else None
        final = after.get(uid, shown[uid])
        chosen.append(Clip(uid, uid, duration, replies.of_record(truth), said, selections, final, gain))
    return Looked(chosen, [Voice(kind, one.name) for one, kind in _zip(found, kinds)], rows)


def _said(one: Evaluation, uid: str) -> Said:
    item, answer = one.items[uid], one.said.get(uid)
    text = (answer.texts[0] if answer.texts else answer.error or "") if answer is not None else ""
    reply = replies.of_record(item.prediction)
    shown = [name for name in item.values if not comparison.is_variant(name) and "@0" not in name]
    values = [(name, charts.hundredths(item.values[name])) for name in shown]
    error = evaluations.ERRORS[item.error] if item.error else ""
    return Said(reply, text, tuple(values), error)
