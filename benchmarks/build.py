"""Building rows from annotations alone: seconds for a set of Charades-STA's size, and memory beside the number of rows.

Each build runs in a process of its own, whose processor seconds and peak memory count, imports included.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import Options, Row

QUERIES, VIDEOS = 12_408, 5_338
FEW, MANY = 10_000, 100_000
_WORDS = (
    "a person opens the door takes cup puts book on shelf walks into kitchen holding laptop smiles sits down".split()
)

_BUILD = """
import json, resource, sys
from pathlib import Path
from verl_stvg.data_builders import build
from verl_stvg.data_builders.sets import all_sets
folder = Path(sys.argv[1])
build.build(build.Job(all_sets()["charades_sta"], folder / "train.json", folder / "rows", splits=("train",)))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def write_annotations(path: Path, queries: int, videos: int, seed: int) -> None:
    """Write queries in Time-R1's JSON form, about half a minute of video each."""
    rng = random.Random(seed)
    entries = {}
    for k in range(videos):
        duration = round(rng.uniform(15, 45), 2)
        count = queries // videos + (k < queries % videos)
        starts = [round(rng.uniform(0, duration - 3), 1) for _ in range(count)]
        entries[f"V{k:06d}"] = {
            "duration": duration,
            "timestamps": [[start, round(start + 2.9, 1)] for start in starts],
            "sentences": [" ".join(rng.choices(_WORDS, k=8)) + "." for _ in range(count)],
        }
    path.write_text(json.dumps(entries))


def cost(queries: int, videos: int, seed: int) -> tuple[float, float]:
    """Processor seconds and peak megabytes of a build."""
    with tempfile.TemporaryDirectory() as folder:
        write_annotations(Path(folder, "train.json"), queries, videos, seed)
        command = [sys.executable, "-c", _BUILD, folder]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return tuple(json.loads(answer.splitlines()[-1]))


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows."""
    seconds, _ = cost(QUERIES, VIDEOS, options.seed)
    yield Row(
        f"processor s to build {QUERIES:,} rows without looking into videos", seconds, None, None, "< 60", seconds < 60
    )
    yield from _memory(options.seed)


def _memory(seed: int) -> Iterator[Row]:
    _, few = cost(FEW, FEW // 2, seed)
    _, many = cost(MANY, FEW // 2, seed)  # the same videos: what is kept of a video is not what is measured
    name = f"peak MiB to build {MANY:,} rows vs {FEW:,}"
    yield Row(name, many, few, many / few, "<= 1.25x", many <= 1.25 * few)
