"""Does the demo show learning whatever the seed: `recipes/tiny/run.sh demo`, seed after seed, from one start.

A seed chooses the order of the clips and the samples of the rollouts. Data and model are those in the folder `CACHE`
(default `.cache`), made there if they are missing. Runs go to `runs/demo_seeds/<time>/seed-<k>`, one at a time; each
takes about 10 minutes on two idle cores.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from benchmarks import Options, Row
from verl_stvg.eval.report.runs import summarise

ROOT = Path(__file__).resolve().parent.parent
START, GAIN = 0.64, 0.08
GOAL = f"start {START} or more, gain {GAIN} or more, interval above 0"


def measure(options: Options) -> Iterable[Row]:
    """Rows of the start, the gain in held-out temporal IoU with its paired 95 % bootstrap interval, and the minutes."""
    folder = ROOT / "runs" / "demo_seeds" / f"{datetime.now():%Y%m%d-%H%M%S}"
    for seed in range(options.seed, options.seed + options.seeds):
        run_dir = folder / f"seed-{seed}"
        began = time.monotonic()
        run_demo(run_dir, seed)
        minutes = (time.monotonic() - began) / 60
        yield judged(f"demo seed {seed}", summarise(run_dir), minutes)


def judged(name: str, numbers: dict, minutes: float) -> Row:
    """A run's row from the numbers of its headline (`verl_stvg.eval.report.runs.headline`)."""
    times, ids = numbers["temporal_iou"], numbers["id_match"]
    said = (
        f"{times['before']:.3f}, {times['gain']:+.3f} ({times['gain_low']:+.3f} to {times['gain_high']:+.3f}); "
        f"ID {ids['before']:.3f}, {ids['gain']:+.3f} ({ids['gain_low']:+.3f} to {ids['gain_high']:+.3f}); "
        f"{numbers['steps']} steps, {minutes:.1f} minutes"
    )
    met = times["before"] >= START and times["gain"] >= GAIN and times["gain_low"] > 0
    return Row(name, said, goal=GOAL, met=met)


def run_demo(run_dir: Path, seed: int) -> None:
    """Run the demo; its output goes to `demo.log` in the run's folder.

    Raises:
        RuntimeError: it failed; names the log.
    """
    run_dir.mkdir(parents=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = run_dir / "demo.log"
    with log.open("w") as output:
        ended = subprocess.run(
            ["bash", str(ROOT / "recipes" / "tiny" / "run.sh"), "demo"],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "SEED": str(seed), "RUN_DIR": str(run_dir)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode:
        raise RuntimeError(f"the demo with seed {seed} ended with status {ended.returncode}; see {log}")
