"""Which rows are answered, and how: what evaluation and data selection are given, checked before a model is loaded.

Needs neither torch nor verl.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl_stvg.rows import chat_template
from verl_stvg.rows import files as row_files
from verl_stvg.rows import fit as fits
from verl_stvg.rows.row import ROOT_KEY, VIDEO_COLUMN, Row, entries_of
from verl_stvg.video.store import FrameStore, default_folder

BATCHES = {"vllm": 256, "transformers": 8}
"""Engines, and how many rows each is given at a time unless told."""
_COLUMNS = ("prompt", VIDEO_COLUMN, "extra_info")


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
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
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
        for name in ("samples", "max_tokens", "batch", "tensor_parallel"):
            count = self.batch_size if name == "batch" else getattr(self, name)
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
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
    def batch_size(self) -> int:
        """Prompts that the engine is given at a time."""
        return BATCHES[self.engine] if self.batch is None else self.batch

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

    Args:
        count: all rows.
        size: rows of a fold; None: one fold of all rows.
        index: number of the fold, from 0.

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
) -> list[Row]:
    """What a model is asked, of every row in order: prompt, videos, ``extra_info``, and the root of their paths.

    Args:
        files: parquet files, as training reads them.
        video_root: see `root_of`.
        fit: keys in place of those of the rows, see `verl_stvg.rows.fit`.

    Raises:
        ValueError: a missing file, one without the columns, a row without a uid, or a uid twice; with a fit, a row
            whose videos cannot be read.
    """
    rows: list[Row] = []
    places: dict[Any, str] = {}
    for file in map(Path, files):
        names = row_files.schema_of(file, ("prompt", "extra_info")).names
        if other := [name for name in ("images", "audios") if name in names]:
            raise ValueError(f"{file}: has a column {other[0]!r}, and only videos are shown here; take it out")
        for row in row_files.read_rows(file, video_root, _COLUMNS, needed=()):
            uid = row.uid
            if uid is None:
                raise ValueError(f"{row.where} has no extra_info.uid; build the rows again")
            if uid in places:
                raise ValueError(
                    f"{row.where} has the uid {uid!r} of {places[uid]}; leave one of the two files or rows out"
                )
            places[uid] = row.where
            shown = {VIDEO_COLUMN: entries_of(row.raw.get(VIDEO_COLUMN), where=row.where, fit=fit)} if fit else {}
            # an answer says which row cannot be asked, so messages need not
            rows.append(Row({**row.raw, **shown, ROOT_KEY: str(row.root)}, row.root))
    return rows


def chosen(rows: list[Row], fold_size: int | None = None, fold_index: int = 0, limit: int | None = None) -> list[Row]:
    """The rows of a fold, and of these the first.

    Args:
        rows: all rows, in order.
        fold_size: rows of a fold; None: all rows.
        fold_index: number of the fold, from 0.
        limit: most rows that are returned; None: all of the fold.
    """
    return [rows[k] for k in fold(len(rows), fold_size, fold_index)][:limit]
