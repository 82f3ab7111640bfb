"""What the rows of a recipe are made of: visual tokens, temporal units and bytes of frames; no video is opened.

From rows that were built with a look into their videos, or from the typical clip of a paper's training set.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_stvg.rows.row import FACTS, PLAN_KEYS
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.frame_rules import MERGE, PATCH
from verl_stvg.video.plan import SamplingPlan, plan_video


@dataclass(frozen=True)
class Data:
    """What the rows of a recipe are made of.

    Attributes:
        rows: prompts.
        videos: distinct pairs of video and plan.
        tokens: visual tokens of a prompt, mean.
        longest: visual tokens of the longest prompt.
        units: temporal units of a prompt, mean.
        most_units: of the longest prompt.
        unit: patches of a temporal unit, mean.
        frame_bytes: of all distinct frames, in the cache.
        pixels: decoded pixels of all videos, whole files.
        source: where these numbers come from.
    """

    rows: int
    videos: int
    tokens: float
    longest: int
    units: float
    most_units: int
    unit: float
    frame_bytes: int
    pixels: float
    source: str


@dataclass(frozen=True)
class Clip:
    """The typical clip of a paper's training set, for plans without rows."""

    rows: int
    videos: int
    seconds: float
    width: int
    height: int
    fps: float
    sampling: Mapping[str, Any]
    source: str

    def data(self, patch: int = PATCH) -> Data:
        """As if all rows were this clip; ``patch`` is the model's."""
        frames = round(self.seconds * self.fps)
        plan = plan_video(frames, self.fps, self.width, self.height, **self.sampling, patch=patch)
        tokens, units, held = plan.num_tokens, plan.num_units, self.videos * _bytes(plan)
        pixels = self.videos * frames * self.width * self.height
        return Data(self.rows, self.videos, tokens, tokens, units, units, _unit(plan), held, pixels, self.source)


def _sampling(tokens: int, least: int) -> dict[str, Any]:
    area = (PATCH * MERGE) ** 2
    return {"rule": "qwen_vl_utils", "min_pixels": least * area, "total_pixels": tokens * area}


CLIPS = {
    "stvg_r1": Clip(10131, 10131, 20, 1280, 720, 30, _sampling(2048, 16), "HC-STVG v2, train: clips of 20 s"),
    "time_r1": Clip(2500, 2475, 147, 640, 360, 30, _sampling(3584, 16), "TimeRFT: 147 s on average"),
    "temporal_r1": Clip(12404, 5338, 30, 480, 360, 30, _sampling(2048, 4), "Charades-STA, train: clips of 30 s"),
    "videotg_r1": Clip(21000, 21000, 120, 640, 360, 30, _sampling(3584, 16), "a tenth of 210,000 rows; 120 s is ours"),
}  # fmt: skip
"""By recipe; sizes of frames and rates are typical ones, and ours."""


def _unit(plan: SamplingPlan) -> int:
    _, height, width = plan.grid_thw
    return height * width


def _bytes(plan: SamplingPlan) -> int:
    return 3 * plan.num_frames * plan.height * plan.width + 4096


def read_rows(files: list[Path], patch: int = PATCH, fit: Mapping[str, float | str] | None = None) -> Data:
    """What rows that were built with a look into their videos are made of.

    Args:
        files: of the rows.
        patch: of the model.
        fit: keys of the plan in place of those of the rows, see `verl_stvg.rows.fit`.

    Raises:
        ValueError: a file is missing or empty, or rows lack size and rate of their videos, or have one that is none.
    """
    from verl_stvg.rows import files as row_files

    plans, tokens, sizes, pixels = {}, [], [], {}
    for file in files:
        for row in row_files.read_rows(file, None, ("videos", "extra_info"), fit):
            total, units, grids = 0, 0, []
            for video in row.entries:
                size = [row.extra[name] for name in FACTS if row.extra.get(name) is not None]
                if len(size) < len(FACTS):
                    raise ValueError(
                        f"{row.where} does not say size and rate of {video['video']}; build the rows without "
                        "--no-probe, or plan without rows"
                    )
                chosen = {key: video[key] for key in PLAN_KEYS if key in video}
                key = (video["video"], tuple(sorted(chosen.items())))
                if key not in plans:
                    info = row.info or VideoInfo(*size, end=row.extra.get("file_end"))
                    plans[key] = plan_video(*size, **chosen, patch=patch, clock=info.clock)
                    pixels[video["video"]] = size[0] * size[2] * size[3]
                total += plans[key].num_tokens
                units += plans[key].num_units
                grids.append(_unit(plans[key]))
            tokens.append((total, units))
            sizes.append(statistics.fmean(grids) if grids else 0)
    if not tokens:
        raise ValueError(f"{', '.join(map(str, files))}: no rows; build them again")
    return Data(
        rows=len(tokens),
        videos=len(plans),
        tokens=statistics.fmean(total for total, _ in tokens),
        longest=max(tokens)[0],
        units=statistics.fmean(units for _, units in tokens),
        most_units=max(tokens)[1],
        unit=statistics.fmean(sizes),
        frame_bytes=sum(map(_bytes, plans.values())),
        pixels=sum(pixels.values()),
        source=", ".join(map(str, files)),
    )
