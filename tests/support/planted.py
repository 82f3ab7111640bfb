"""Clips of which it is known what selection should find: the target is shown once, or twice with one of them annotated.

`python -m tests.support.planted OUT [COUNT] [SEED]` makes them with their rows: `OUT/train.parquet`, and
`OUT/planted.json`, which says of each uid whether its target comes twice and which colour it has.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.data_builders.sets import synthetic, synthetic_world


def planted_clip(seed: int, index: int, twice: bool) -> synthetic.ClipSpec:
    """A clip of three tracks: the target, another object, and later or earlier the target again or a third object."""
    rng = np.random.default_rng([seed, index, 77])
    colors = [str(color) for color in rng.permutation(list(synthetic.COLORS))[:3]]
    ids = [int(number) for number in rng.permutation(synthetic.IDS)[:3]]
    gap = 2 * synthetic.FRAMES_PER_TICK
    while True:
        target, other, again = (synthetic_world._draw_track(rng, *looks) for looks in zip(ids, colors, strict=True))
        apart = again.first - target.last > gap or target.first - again.last > gap
        tracks = (target, other, again)
        touch = any(synthetic_world._touch(a, b) for i, a in enumerate(tracks) for b in tracks[:i])
        if apart and not touch and again.motion == target.motion:
            break
    if twice:
        looks = {name: getattr(target, name) for name in ("object_id", "color", "shape")}
        tracks = (target, other, dataclasses.replace(again, **looks))
    return synthetic.ClipSpec(tracks, 0, tuple(tuple(int(v) for v in rng.integers(15, 60, 3)) for _ in range(2)))


def build_planted(out: Path, indices: range, seed: int = 0) -> dict[str, dict]:
    """Videos and rows, every second with a second occurrence; returns by uid what is planted: ``twice``, ``color``."""
    (out / "videos").mkdir(parents=True)
    rows, planted = [], {}
    for index in indices:
        clip = planted_clip(seed, index, twice=index % 2 == 0)
        row = synthetic.row(clip, seed, "train", index)
        row["videos"][0]["video"] = path = f"videos/planted_{index:05d}.mp4"
        synthetic.write_video(out / path, synthetic.render_frames(clip, range(synthetic.NUM_FRAMES)))
        planted[row["extra_info"]["uid"]] = {"twice": index % 2 == 0, "color": clip.target_track.color}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=synthetic.ROW_SCHEMA), out / "train.parquet")
    return planted


if __name__ == "__main__":
    count, seed = (int(text) for text in (sys.argv[2:] + ["1000", "5"][len(sys.argv) - 2 :]))
    found = build_planted(Path(sys.argv[1]), range(count), seed)
    Path(sys.argv[1], "planted.json").write_text(json.dumps(found))
