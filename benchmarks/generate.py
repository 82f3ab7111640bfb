"""What the pass that answers rows costs beside bare vLLM on the same prompts: seconds per clip, engine start excluded.

The bare side is given all prompts at once, tokens and frames prepared beforehand, and writes nothing. Both run on one
engine, its caches emptied in between, in turn; seconds of the wall, because the work is spread over processes.
"""

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import Options, Row

CLIPS, ROUNDS = 200, 2
CACHE = Path(os.environ.get("CACHE", ".cache"))


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows."""
    from vllm import SamplingParams

    from data_builders import synthetic, tiny_model
    from verl_stvg import engines
    from verl_stvg.generate import Settings, generate, read_rows
    from verl_stvg.video.store import FrameStore

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.build(folder / "rows", 8, CLIPS, seed=options.seed, progress=False)
        model = tiny_model.make(CACHE / "model", progress=False)
        settings = Settings(
            str(model), max_tokens=48, max_model_len=256, dtype="float32", store=FrameStore(str(folder / "frames"))
        )
        engine = engines.start(settings)
        generate([folder / "rows/train.parquet"], folder / "warm", settings, engine)
        make = engines.PromptMaker(engine.processor, settings.store)
        file = folder / "rows/val.parquet"
        prompts = [engines.vllm_prompt(make(row)) for row in read_rows([file])]  # and the cache is warm
        greedy = SamplingParams(temperature=0, max_tokens=settings.max_tokens)
        ours, bare = [], []
        for k in range(ROUNDS):
            bare.append(_seconds(engine, lambda: engine.llm.generate(prompts, greedy, use_tqdm=False)))
            ours.append(_seconds(engine, lambda k=k: generate([file], folder / f"out{k}", settings, engine)))
        engine.close()
    ratio = min(ours) / min(bare)
    title = f"s per clip to answer {CLIPS} synthetic clips, {settings.batch} at a time; other: bare vLLM, all at once"
    yield Row(title, min(ours) / CLIPS, min(bare) / CLIPS, ratio, "<= 1.2x", ratio <= 1.2)


def _seconds(engine, action) -> float:
    engine.llm.reset_mm_cache()
    engine.llm.reset_prefix_cache()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
