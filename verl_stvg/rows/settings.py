"""What verl's ``data`` configuration says about how rows are read: frame cache, fit, options of the chat template."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict

from verl_stvg.rows import fit as fits
from verl_stvg.rows.chat_template import checked
from verl_stvg.rows.row import RowError
from verl_stvg.video.child import Decoder
from verl_stvg.video.store import FrameStore, decoder_of, default_folder

logger = logging.getLogger(__name__)

CACHE_KEYS = ("enabled", "folder", "max_gb", "decoder", "timeout")


def frame_store(config) -> FrameStore | None:
    """The frame cache that verl's ``data`` configuration asks for (`VideoGroundingDataset`), None where it is off.

    Raises:
        RowError: unknown key under ``data.video_cache``.
    """
    source = frame_source(config)
    return source if isinstance(source, FrameStore) else None


def frame_source(config) -> FrameStore | Decoder:
    """What frames come from: `frame_store`, or where it is off a decoder, which keeps nothing.

    Raises:
        RowError: unknown key under ``data.video_cache``.
    """
    given = dict(config.get("video_cache") or {})
    if unknown := sorted(given.keys() - set(CACHE_KEYS)):
        raise RowError(f"data.video_cache knows no {', '.join(unknown)}; its keys are {', '.join(CACHE_KEYS)}")
    decoder, timeout = given.get("decoder") or "pyav", float(given.get("timeout") or 60)
    if not given.get("enabled", True):
        return decoder_of(decoder, timeout)
    folder = Path(given.get("folder") or default_folder()).expanduser().absolute()
    max_gb = given.get("max_gb")
    max_bytes = None if max_gb is None else int(float(max_gb) * 10**9)
    return FrameStore(str(folder), max_bytes, decoder, timeout)


def template_options(config) -> dict[str, Any]:
    """The options of the chat template in verl's ``data`` configuration, as plain lists and dictionaries.

    Raises:
        ValueError: one that cannot be chosen.
    """
    given = config.get("apply_chat_template_kwargs") or {}
    return checked(OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given)


def fit_of(config) -> dict[str, float | str]:
    """The fit in verl's ``data`` configuration, see `verl_stvg.rows.fit.checked`; empty without one.

    Raises:
        RowError: a key or value that cannot be.
    """
    given = config.get("fit") or {}
    try:
        return fits.checked(OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given)
    except ValueError as error:
        raise RowError(f"data.fit: {error}") from error


def switch_cache_off(config, reason: object) -> None:
    """Let the videos of a whole verl configuration travel as pixels, as in stock verl, and warn."""
    logger.warning("the frame cache is off for this run and pixels travel, as in stock verl: %s", reason)
    with open_dict(config):
        config.data.video_cache = {**(config.data.get("video_cache") or {}), "enabled": False}


def why_pixels_must_travel(config) -> str | None:
    """What keeps this run from sending keys instead of pixels; None if nothing does."""
    if frame_store(config.data) is None:
        return "data.video_cache.enabled is false"
    if config.actor_rollout_ref.rollout.name != "vllm":
        return f"rollout.name={config.actor_rollout_ref.rollout.name} is not vllm"
    return None
