"""Benchmarks: which rows, which prompt, and which numbers, each a few lines; what they share is in the modules here.

    items      a row as a question with its truth; an answer as the values read from it
    temporal   intervals
    tubes      IDs and boxes as tubes
    masks      IDs as masks
    questions  options with their grounding

Rows come from ``verl-stvg build SET``; a benchmark is found by the set that its rows name. A set that is no published
benchmark (your own, say) is scored by what its rows hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from verl_stvg.eval.benchmarks import masks, questions, temporal, tubes
from verl_stvg.eval.benchmarks.items import Item, Prediction
from verl_stvg.eval.benchmarks.masks import Masks
from verl_stvg.eval.benchmarks.temporal import Values
from verl_stvg.eval.benchmarks.tubes import Library, Script

KINDS = ("intervals", "tubes", "masks", "questions")
SORTS = {"words": "words of the query"}
"""Fields of the annotation by which the results of any set are grouped, with the group's name: ``words`` says whether
what a query is about was common in training (``common``) or not (``rare``, or a set's own name for it)."""


@dataclass(frozen=True)
class Benchmark:
    """What is scored, and how.

    Attributes:
        name: on the command line; the set's, as `verl_stvg.data_builders.sets` names it.
        kind: `intervals`, `tubes`, `masks` or `questions`: what answers hold, and so which module measures them.
        split: that is customarily scored.
        template: of the evaluation prompt, of `verl_stvg.data_builders.templates`.
        published: number of rows by split, so that a part of a benchmark does not pass for it.
        scripts: of papers that tubes are scored with as well.
        sorts: fields of the annotation by which results are grouped as well, with the group's name.
        counts: whether a row is of the benchmark; the set may hold more.
    """

    name: str
    kind: str
    split: str
    template: str
    published: Mapping[str, int] = field(default_factory=dict)
    scripts: Mapping[str, Script] = field(default_factory=dict)
    sorts: Mapping[str, str] = field(default_factory=dict)
    counts: Callable[[Item], bool] = lambda item: True

    @property
    def main(self) -> str:
        """The metric that people quote."""
        return {"intervals": "mIoU", "tubes": "m_vIoU", "masks": "J&F", "questions": "Acc@GQA"}[self.kind]

    def measure(
        self,
        items: Sequence[Item],
        said: Sequence[Prediction | None],
        library: Library | None = None,
        truth_masks: Mapping[str, Masks] | None = None,
    ) -> tuple[Values, list[str]]:
        """Values of the clean metrics per item, (N,), and notes on what could not be measured.

        Args:
            items: with their truth.
            said: what was read from each answer; None for nothing.
            library: of track files.
            truth_masks: of MeViS, by uid.

        Raises:
            ValueError: track files or masks that are missing or of something else.
        """
        library = library or Library()
        if self.kind == "tubes":
            return tubes.measure(items, said, library)
        if self.kind == "masks":
            return masks.measure(items, said, library, truth_masks)
        return (questions if self.kind == "questions" else temporal).measure(items, said), []

    def variants(
        self,
        items: Sequence[Item],
        said: Sequence[Prediction | None],
        texts: Sequence[str | None],
        library: Library | None = None,
        stored: Sequence[str | None] | None = None,
    ) -> Values:
        """Values per item, (N,), of the scripts that published numbers come from, each under its name in brackets.

        Without a library, as where m_vIoU could not be measured, those of tubes are left out. `stored` is what files of
        lmms-eval hold; see `temporal.variants`.
        """
        if self.kind == "intervals":
            return temporal.variants(items, said, texts, stored)
        if self.kind == "questions":
            return questions.variants(items, said, texts)
        if self.kind != "tubes":
            return {}
        found = tubes.variants(items, said, library, self.scripts) if self.scripts and library is not None else {}
        return found | tubes.lenient(items, said, texts)

    def errors(self, items: Sequence[Item], said: Sequence[Prediction], values: Values) -> list[str | None]:
        """Kind of each item's error, None where there is none: `time`, `id`, `id+time` or `wrong option`.

        A time is wrong if its IoU is below a half.
        """
        found: list[str | None] = []
        times = next((values[name] for name in ("mIoU", "m_tIoU") if name in values), np.ones(len(items)))
        identity = next((values[name] for name in ("ID accuracy", "ID F1") if name in values), None)
        for k, (item, one) in enumerate(zip(items, said, strict=True)):
            wrong = ["time"] if times[k] < 0.5 else []
            if "Acc@QA" in values and one.option != item.answer:
                wrong = ["wrong option"]
            elif self.kind in ("tubes", "masks") and identity is not None and one.object_ids and identity[k] < 1:
                wrong = ["id", *wrong]
            found.append("+".join(wrong) or None)
        return found


_HCSTVG = {
    "HC-STVG challenge": tubes.challenge,
    "TubeDETR": tubes.tubedetr_hcstvg,
    "CG-STVG": tubes.cgstvg,
    "STVG-R1": tubes.stvg_r1,
}
_BENCHMARKS = (
    Benchmark("hc_stvg_v1", "tubes", "test", "stvg_r1", {"test": 1160}, _HCSTVG),
    Benchmark("hc_stvg_v2", "tubes", "val", "stvg_r1", {"val": 2000}, _HCSTVG),
    Benchmark(
        "vidstg",
        "tubes",
        "test",
        "stvg_r1",
        {"val": 8956, "test": 10303},
        {"TubeDETR": tubes.tubedetr, "CG-STVG": tubes.cgstvg},
        {"kind": "sentence type"},
    ),
    Benchmark(
        "st_align",
        "tubes",
        "test",
        "stvg_r1",
        {"test": 2000},
        {"ST-Align": tubes.st_align},
        counts=lambda item: item.extra.get("entry", 0) < 2000,
    ),
    Benchmark("mevis", "masks", "val", "stvg_r1_multi", {"val": 793}),
    Benchmark("synthetic", "tubes", "val", "stvg_r1"),
    Benchmark("charades_sta", "intervals", "test", "time_r1", {"test": 3720}),
    Benchmark("activitynet", "intervals", "test", "time_r1", {"val": 17505, "test": 17031}),
    Benchmark("tvgbench", "intervals", "test", "time_r1", {"test": 800}, sorts={"qsemtype": "query type"}),
    Benchmark("qvhighlights", "intervals", "val", "videotg_r1", {"val": 1550, "test": 1542}),
    Benchmark("didemo", "intervals", "test", "videotg_r1", {"val": 4180, "test": 4021}),
    Benchmark("tacos", "intervals", "test", "videotg_r1", {"val": 4589, "test": 4083}),
    Benchmark("activitynet_rtl", "intervals", "val", "videotg_r1", {"val": 229}),
    Benchmark("nextgqa", "questions", "test", "videochat_r1_gqa", {"val": 3358, "test": 5553}, sorts={"type": "type"}),
    Benchmark("rextime", "questions", "val", "videochat_r1_gqa", {"val": 921}, sorts={"category": "category"}),
)
BENCHMARKS = {one.name: one for one in _BENCHMARKS}


def find(name: str | None, items: Sequence[Item]) -> Benchmark:
    """The benchmark of that name, or the one that rows are of; made up from what the rows hold if it is none.

    Raises:
        ValueError: no such benchmark, no rows, rows of several sets, or of another one.
    """
    if name is not None and name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}, or leave it out")
    sets = list(dict.fromkeys(item.dataset for item in items))
    if len(sets) != 1:
        found = f"rows of {', '.join(sets)}" if sets else "no rows"
        raise ValueError(f"a benchmark is scored on rows of one set, found {found}; score the files apart")
    if name is not None and name != sets[0]:
        raise ValueError(f"the rows are of {sets[0]}, not of {name}; give the rows of the benchmark")
    return BENCHMARKS.get(sets[0]) or Benchmark(sets[0], _kind(items), items[0].split, "")


def _kind(items: Sequence[Item]) -> str:
    if any(item.num_options for item in items):
        return "questions"
    tubes_there = all(item.boxes is not None for item in items)
    return "tubes" if tubes_there or any(item.object_id is not None for item in items) else "intervals"
