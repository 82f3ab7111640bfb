"""A fit: how videos are shown to a model that their rows were not planned for.

Rows carry the plan of the paper whose prompt they have: frames per second, pixels, a budget. Another model may have
narrower limits, or a machine less memory. A fit replaces these keys of every row, where the plan is made, so no row has
to be written again: ``data.fit`` in training, ``--fit KEY=VALUE`` of the commands, and the options of ``build``.
"""

import difflib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from verl_stvg.base import nesting
from verl_stvg.rows.chat_template import pairs, training_record
from verl_stvg.rows.row import PART_KEYS, PLAN_KEYS, entry_of, plan_of
from verl_stvg.video.decode import VideoInfo
from verl_stvg.video.frame_rules import FACTOR, MAX_PIXELS, MERGE, TEMPORAL_PATCH

logger = logging.getLogger(__name__)

KEYS = tuple(key for key in PLAN_KEYS if key not in PART_KEYS)
"""Keys of a fit: those of an entry of ``videos`` that say how it is shown."""
RULE, FPS = "adaptive_grid", 2.0
"""Of a fit that names none: a video of any length has a plan, at a rate that Qwen's models were trained with."""
_TYPES = {"rule": str, "fps": float}
SHARE = 4
"""Where a model is given and no budget, a video may take this part of the model's positions: a quarter (ours)."""


def checked(given: Mapping[str, Any] | None) -> dict[str, float | str]:
    """The keys of a fit with their values, ``rule`` and ``fps`` among them; nothing where there is no fit.

    Args:
        given: some of `KEYS`; a value of None counts as absent.

    Raises:
        ValueError: another key, a value that a key cannot have, or keys that contradict each other.
    """
    found = {key: value for key, value in (given or {}).items() if value is not None}
    for key in found:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(KEYS)}"
            raise ValueError(f"a fit has no key {key!r}; {hint}")
    if not found:
        return {}
    usual = {"rule": RULE} | ({} if "nframes" in found else {"fps": FPS})
    try:
        entry = entry_of({"video": "a.mp4", **usual, **found})
        if entry["rule"] == RULE and "max_frames" not in entry and "min_frames" not in entry:
            plan_of(entry, VideoInfo(1500, 25.0, 640, 480))  # a minute in pixels of many
    except ValueError as error:
        raise ValueError(f"{str(error).replace('; correct the row', '')}; correct the value") from error
    return {key: _TYPES.get(key, int)(entry[key]) for key in KEYS if key in entry}


def parse(given: Iterable[str]) -> dict[str, Any]:
    """The keys of a fit on a command line, each as ``KEY=VALUE``; ``model=FOLDER`` stands for those of `of_model`.

    Raises:
        ValueError: not of that form, a key twice, or see `of_model`.
    """
    texts = pairs("--fit", given, "total_pixels=802816")
    model = texts.pop("model", None)
    chosen = {name: text if name == "rule" else _number(name, text) for name, text in texts.items()}
    return ({} if model is None else of_model(model)) | chosen


def _number(name: str, text: str) -> float:
    try:
        value = nesting.loads(text)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"--fit {name}={text}: write a number, without a unit")
    return value


def fit_for(model: str, given: Iterable[str] | None = None) -> dict[str, float | str]:
    """The fit for a model: that of the training that made it (`of_training`), and over it the keys that are given.

    Args:
        model: as a user names it, see `verl_stvg.inference.checkpoint.resolve`.
        given: of the command line, see `parse`.

    Raises:
        ValueError: see `checked` and `parse`.
    """
    return checked({**of_training(model), **parse(given or ())})


def of_training(model: str) -> dict[str, Any]:
    """The fit of the run of ``verl-stvg train`` that wrote a checkpoint, from its ``run.json``; empty without one."""
    path, record = training_record(model)
    found = (record or {}).get("fit") or {}
    if found:
        logger.info("videos are shown as in the training in %s: %s", path, json.dumps(found))
    return found


def to_limits(
    least: int, most: int, side: int, whole: bool, positions: int, budget: int | None = None
) -> dict[str, float | str]:
    """The fit to a model's limits.

    Args:
        least: pixels that its processor enlarges to.
        most: pixels that its processor shrinks to.
        side: of a token, pixels.
        whole: these are pixels of all frames together (Qwen3-VL), not of one.
        positions: tokens that the model reads.
        budget: tokens that a video may take; None: see `SHARE`.
    """
    area = side**2
    total = (positions // SHARE if budget is None else budget) * area
    if whole:  # two frames are the fewest
        least, most, total = -(-least // TEMPORAL_PATCH), most // TEMPORAL_PATCH, min(total, most // TEMPORAL_PATCH)
    most = min(most, MAX_PIXELS // FACTOR**2 * area)
    return checked({"min_pixels": max(area, least), "max_pixels": most, "total_pixels": max(total, area, least)})


def of_model(model: str, budget: int | None = None) -> dict[str, float | str]:
    """The fit to a model: the limits of its processor, and a budget for a video.

    Args:
        model: folder or hub name of a Hugging Face model; its processor and configuration are read.
        budget: tokens that a video may take; None: see `SHARE`.

    Raises:
        ValueError: no such model, or one whose processor reads no videos.
    """
    from transformers import AutoConfig, AutoProcessor

    from verl_stvg.base.models import located
    from verl_stvg.video.positions import writes_times

    name = located(model)
    processor = AutoProcessor.from_pretrained(name)
    videos = getattr(processor, "video_processor", None)
    if videos is None:
        raise ValueError(f"{model}: its processor reads no videos; name a model for video, such as Qwen2.5-VL")
    positions = AutoConfig.from_pretrained(name).get_text_config().max_position_embeddings
    size, side = videos.size, videos.patch_size * MERGE
    return to_limits(size["shortest_edge"], size["longest_edge"], side, writes_times(processor), positions, budget)
