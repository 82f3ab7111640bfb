"""What a selection pass costs beside bare vLLM on the same prompts: seconds per clip, engine start excluded.

The bare side is given its prompts at once, tokens and frames prepared beforehand, and writes nothing; ours reads rows,
makes prompts from the frame cache, and writes answers that survive a kill. Both run on one engine, its caches emptied
in between, and take turns fold by fold, in changing order, so that whatever else the machine does meets both. Beside
the seconds of the wall stand those of the processors, of this process and the engine's.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import Options, Row

CLIPS, FOLD = 1000, 250
CACHE = Path(os.environ.get("CACHE", ".cache"))


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows."""
    from verl_stvg.data_builders.sets import synthetic
    from verl_stvg.data_builders.testing import tiny_model
    from verl_stvg.inference import engines
    from verl_stvg.inference.settings import Settings
    from verl_stvg.video.store import FrameStore

    rows = CACHE / "clips"
    synthetic.build(rows, 8, CLIPS, seed=options.seed, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            str(tiny_model.make(CACHE / "model", progress=False)),
            max_tokens=48,
            max_model_len=256,
            dtype="float32",
            store=FrameStore(f"{folder}/frames"),
        )
        engine = engines.start(settings)
        yield from compare(engine, rows, Path(folder))
        engine.close()


def compare(engine, rows: Path, folder: Path) -> Iterator[Row]:
    """Answer ``val.parquet`` of a folder of rows both ways; ``train.parquet`` is for warming up."""
    from vllm import SamplingParams

    from verl_stvg.inference.engines import PromptMaker, vllm_prompt
    from verl_stvg.inference.generate import generate
    from verl_stvg.inference.settings import read_rows
    from verl_stvg.rows import answers

    file, settings = rows / "val.parquet", engine.settings
    generate([rows / "train.parquet"], folder / "warm", settings, engine)
    make = PromptMaker(engine.processor, settings.store)
    asked = read_rows([file])
    for row in asked:
        make(row)  # decoded once, into the cache, as by the stage before
    greedy = SamplingParams(temperature=0, max_tokens=settings.max_tokens)
    wall, processor = {"ours": 0.0, "bare": 0.0}, {"ours": 0.0, "bare": 0.0}
    differ = 0
    for index, first in enumerate(range(0, len(asked), FOLD)):
        bare = [vllm_prompt(make(row)) for row in asked[first : first + FOLD]]
        fold = replace(settings, fold_size=FOLD, fold_index=index)
        sides = {
            "bare": partial(engine.llm.generate, bare, greedy, use_tqdm=False),
            "ours": partial(generate, [file], folder / "out", fold, engine),
        }
        results = {}
        for side in list(sides)[:: 1 if index % 2 else -1]:
            results[side], *spent = _timed(engine, sides[side])
            wall[side] += spent[0] / len(asked)
            processor[side] += spent[1] / len(asked)
        path = folder / "out" / "predictions.jsonl"
        texts = [answer.texts[0] for answer in answers.read(path).values()]
        differ += sum(one != other.outputs[0].text for one, other in zip(texts, results["bare"], strict=True))
        path.unlink()
        (folder / "out" / "run.json").unlink()
    title = f"s per clip to answer {len(asked)} synthetic clips, folds of {FOLD}; other: bare vLLM"
    for name, found, goal in ((title, wall, "<= 1.2x"), (f"{title}; processor seconds", processor, "")):
        ratio = found["ours"] / found["bare"]
        yield Row(name, found["ours"], found["bare"], ratio, goal, ratio <= 1.2 if goal else None)
    yield Row(f"answers of {len(asked)} that differ from bare vLLM's", differ)


def _timed(engine, action: Callable) -> tuple[Any, float, float]:
    """Result, and seconds of the wall and of the processors, of this process and all that it started."""
    engine.llm.reset_mm_cache()
    engine.llm.reset_prefix_cache()
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]

    def spent() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in family)

    began, before = time.perf_counter(), spent()
    result = action()
    return result, time.perf_counter() - began, spent() - before
