"""Benchmarks: which rows, which prompt, and which numbers, each a few lines; what they share is in the modules here.

    base         what items of all kinds share, and predictions
    temporal     intervals
    tracked      what tubes and masks share: IDs of objects, and their track files
    tubes        IDs and boxes as tubes
    tube_papers  scripts of papers that score tubes
    masks        IDs as masks
    questions    options with their grounding
    rows         parquet files, read column by column
    items        a row as an item of its kind; an answer as the values read from it

A kind has its type of items and its metrics in one module. Its answers are read by the recipe of the row.

Rows come from ``verl-stvg build SET``; a benchmark is found by the set that its rows name. A set that is no published
benchmark (your own, say) is scored by what its rows hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from verl_stvg.eval.benchmarks import tube_papers
from verl_stvg.eval.benchmarks.base import Item
from verl_stvg.eval.benchmarks.masks import Referred
from verl_stvg.eval.benchmarks.questions import Question
from verl_stvg.eval.benchmarks.temporal import Moment
from verl_stvg.eval.benchmarks.tubes import Script, Tube

SORTS = {"words": "words of the query"}
"""Fields of the annotation by which the results of any set are grouped, with the group's name: ``words`` says whether
what a query is about was common in training (``common``) or not (``rare``, or a set's own name for it)."""


@dataclass(frozen=True)
class Benchmark:
    """What is scored, and how.

    Attributes:
        name: on the command line; the set's, as `verl_stvg.data_builders.sets` names it.
        kind: type of its items, which says what answers hold and how they are measured.
        split: that is customarily scored.
        template: of the evaluation prompt, of `verl_stvg.data_builders.templates`.
        published: number of rows by split, so that a part of a benchmark does not pass for it.
        scripts: of papers that tubes are scored with as well.
        sorts: fields of the annotation by which results are grouped as well, with the group's name.
        counts: whether a row is of the benchmark; the set may hold more.
    """

    name: str
    kind: type[Item]
    split: str
    template: str
    published: Mapping[str, int] = field(default_factory=dict)
    scripts: Mapping[str, Script] = field(default_factory=dict)
    sorts: Mapping[str, str] = field(default_factory=dict)
    counts: Callable[[Item], bool] = lambda item: True


_HCSTVG = {
    "HC-STVG challenge": tube_papers.challenge,
    "TubeDETR": tube_papers.tubedetr_hcstvg,
    "CG-STVG": tube_papers.cgstvg,
    "STVG-R1": tube_papers.stvg_r1,
}
_BENCHMARKS = (
    Benchmark("hc_stvg_v1", Tube, "test", "stvg_r1", {"test": 1160}, _HCSTVG),
    Benchmark("hc_stvg_v2", Tube, "val", "stvg_r1", {"val": 2000}, _HCSTVG),
    Benchmark(
        "vidstg",
        Tube,
        "test",
        "stvg_r1",
        {"val": 8956, "test": 10303},
        {"TubeDETR": tube_papers.tubedetr, "CG-STVG": tube_papers.cgstvg},
        {"kind": "sentence type"},
    ),
    Benchmark(
        "st_align",
        Tube,
        "test",
        "stvg_r1",
        {"test": 2000},
        {"ST-Align": tube_papers.st_align},
        counts=lambda item: item.extra.get("entry", 0) < 2000,
    ),
    Benchmark("mevis", Referred, "val", "stvg_r1_multi", {"val": 793}),
    Benchmark("synthetic", Tube, "val", "stvg_r1"),
    Benchmark("charades_sta", Moment, "test", "time_r1", {"test": 3720}),
    Benchmark("activitynet", Moment, "test", "time_r1", {"val": 17505, "test": 17031}),
    Benchmark("tvgbench", Moment, "test", "time_r1", {"test": 800}, sorts={"qsemtype": "query type"}),
    Benchmark("qvhighlights", Moment, "val", "videotg_r1", {"val": 1550, "test": 1542}),
    Benchmark("didemo", Moment, "test", "videotg_r1", {"val": 4180, "test": 4021}),
    Benchmark("tacos", Moment, "test", "videotg_r1", {"val": 4589, "test": 4083}),
    Benchmark("activitynet_rtl", Moment, "val", "videotg_r1", {"val": 229}),
    Benchmark("nextgqa", Question, "test", "videochat_r1_gqa", {"val": 3358, "test": 5553}, sorts={"type": "type"}),
    Benchmark("rextime", Question, "val", "videochat_r1_gqa", {"val": 921}, sorts={"category": "category"}),
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


def _kind(items: Sequence[Item]) -> type[Item]:
    if any(isinstance(item, Question) for item in items):
        return Question
    tubes = [item for item in items if isinstance(item, Tube)]
    boxed = len(tubes) == len(items) and all(item.boxes is not None for item in tubes)
    return Tube if boxed or any(item.object_id is not None for item in tubes) else Moment
