"""A prompt computed once: processor seconds of the passes and memory of the update, verl's engine beside ours.

The model is a Qwen2.5-VL of 131 M parameters (language model 87 M, vision tower 31 M, vocabulary 16k) in float32 with
gradient checkpointing, by verl's FSDP2 engine with verl's loss, without Ray and vLLM. Each figure is from a process of
its own with one thread. The other side is verl's engine with micro batches of one trajectory, which is its cheapest way
for long prompts, and for memory also with a micro batch of all n. The reference's pass is timed on the same engine
without gradients, and so is the pass for old log-probabilities.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Options, Row

ROOT = Path(__file__).resolve().parent.parent
UNIT = 18 * 26 // 4  # tokens of a temporal unit
PROMPTS = {1076: 8, 2012: 16, 3932: 32}
"""Temporal units of each prompt, by its tokens; the rest is text."""
GOALS = {8: (5.0, 6.0), 16: (7.0, 8.5)}
"""How much faster all passes are to be at n rollouts, with and without the pass for old log-probabilities."""


@dataclass(frozen=True)
class Cell:
    """Rollouts, and tokens of the prompt and of each answer."""

    n: int
    prompt: int
    answer: int

    def __str__(self) -> str:
        return f"n = {self.n}, prompt {self.prompt}, answers {self.answer}"


def alone(folder: str, way: str, cell: Cell) -> dict[str, float]:
    """Seconds of the passes and the update, and GiB that the update takes beyond the engine; in a fresh process.

    Args:
        folder: of the model.
        way: "shared", "rows" (verl's, micro batches of 1) or "batch" (verl's, one micro batch).
        cell: what is measured.
    """
    import torch
    import torch.distributed as dist

    from tests.support import shared_prompts as small

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    engine = small.make_engine(way == "shared", Path(folder))
    units = PROMPTS[cell.prompt]
    prompt = small.Prompt([cell.answer] * cell.n, ((units, 18, 26),), words=cell.prompt - units * UNIT - 2)
    most = 1 if way == "rows" else cell.n
    settings = {"vocabulary": size().vocabulary, "micro_batch_size_per_gpu": most, "calculate_entropy": False}
    batch = small.make_batch("qwen2_5_vl", [prompt], **settings)
    found, loss = {}, small.loss_of(entropy_coeff=0)
    begun = time.process_time()
    small.read(engine, batch)
    found["pass"] = time.process_time() - begun
    batch["old_log_probs"] = batch["ref_log_prob"].clone()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begun = time.process_time()
    with engine.train_mode():
        engine.train_batch(batch, loss)
    found["update"] = time.process_time() - begun
    return found | {"memory": _memory("VmHWM") - before, "whole": _memory("VmHWM")}


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def size():
    """Of the model."""
    from tests.support.shared_prompts import Size

    language = {"width": 768, "intermediate": 2368, "layers": 12, "heads": 12, "vocabulary": 16_384}
    return Size(**language, tower=512, tower_intermediate=1088, depth=9, tower_heads=8)


def run(folder: Path, way: str, cell: Cell) -> dict[str, float]:
    """`alone`, in a process of its own."""
    code = (
        "import json, sys; from benchmarks.shared_prompt import Cell, alone; "
        "print(json.dumps(alone(sys.argv[1], sys.argv[2], Cell(*map(int, sys.argv[3:])))))"
    )
    command = [sys.executable, "-c", code, str(folder), way, str(cell.n), str(cell.prompt), str(cell.answer)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def side_by_side(folder: Path, cell: Cell) -> Iterator[Row]:
    """Seconds and memory of one cell."""
    ours, other = run(folder, "shared", cell), run(folder, "rows", cell)
    for name in ("update", "pass"):
        yield Row(f"s of the {name}, {cell}", ours[name], other[name], other[name] / ours[name])
    whole = other["update"] + 2 * other["pass"]
    for passes, goal, name in zip((2, 1), GOALS.get(cell.n, (None, None)), ("all passes", "no old pass"), strict=True):
        mine = ours["update"] + passes * ours["pass"]
        met = None if goal is None else whole / mine >= goal
        yield Row(
            f"s of update and passes, {name}, {cell}", mine, whole, whole / mine, f">= {goal}x" if goal else "", met
        )
    ratio = ours["whole"] / other["whole"]
    yield Row(
        f"GiB, peak of the update, beside rows, {cell}", ours["whole"], other["whole"], ratio, "<= 1.6", ratio <= 1.6
    )
    batch = run(folder, "batch", cell)
    ratio = ours["whole"] / batch["whole"]
    yield Row(
        f"GiB, peak of the update, beside n at once, {cell}",
        ours["whole"],
        batch["whole"],
        ratio,
        "<= 0.5",
        ratio <= 0.5,
    )


def growth(folder: Path, prompt: int, answer: int) -> Iterator[Row]:
    """How the update's seconds grow with n: the exponent, and the cost of one more answer in prompts with an answer."""
    seconds = {n: run(folder, "shared", Cell(n, prompt, answer))["update"] for n in (1, 2, 4, 8, 16, 32)}
    for n, one in seconds.items():
        yield Row(f"s of the update, {Cell(n, prompt, answer)}", one)
    many = {n: one for n, one in seconds.items() if n > 1}
    exponent = slope([math.log(n) for n in many], [math.log(one) for one in many.values()])
    each = slope(list(many), list(many.values())) / seconds[1]
    share = answer / (prompt + answer)
    yield Row(f"exponent of the update's seconds in n, prompt {prompt}", exponent)
    yield Row(
        f"one more answer, in trajectories of verl's; other: its share of the tokens, prompt {prompt}",
        each,
        share,
        each / share,
    )


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the line with the least squares."""
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows, or those of ``--cells``."""
    from tests.support.shared_prompts import make_model

    asked = [Cell(*map(int, text.split("/"))) for text in options.cells or ()]
    with tempfile.TemporaryDirectory() as name:
        folder = make_model("qwen2_5_vl", Path(name), size())
        every = [Cell(n, prompt, answer) for n in GOALS for prompt in (2012, 3932) for answer in (100, 250)]
        for cell in asked or every:
            yield from side_by_side(folder, cell)
        if not asked:
            for prompt in PROMPTS:
                yield from growth(folder, prompt, 250)
