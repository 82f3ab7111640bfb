"""What verl's ``data`` configuration says about how rows are read: frame cache, fit, options of the chat template.

Each section that verl_stvg adds to ``data`` is a dataclass with defaults; `recipes/_base.yaml` states them.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from hydra.utils import get_class
from omegaconf import OmegaConf, open_dict

from verl_stvg.base.recipe_names import RENAMED
from verl_stvg.rows import fit as fits
from verl_stvg.rows.chat_template import checked
from verl_stvg.rows.row import RowError
from verl_stvg.video.child import Decoder
from verl_stvg.video.store import FrameStore, decoder_of, default_folder

logger = logging.getLogger(__name__)


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Section = TypeVar("Section", bound=_Dataclass)


def section(config, name: str, kind: type[Section], error: type[ValueError] = RowError) -> Section | None:
    """A section of verl's ``data`` configuration as its dataclass, made once per process; None where there is none.

    Args:
        config: the ``data`` configuration.
        name: of the section.
        kind: dataclass of the section; ``_target_`` may name a subclass of it.
        error: what is raised.

    Raises:
        ValueError: of the kind `error`: an unknown key, or a value that its key cannot have.
    """
    given = plain(config.get(name))
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise error(f"data.{name}={given} must hold keys; they are {', '.join(one.name for one in fields(kind))}")
    return _made(json.dumps(given, default=str), f"data.{name}", kind, error)


@lru_cache(256)
def _made(given: str, key: str, kind: type, error: type[ValueError]) -> Any:
    return typed(json.loads(given), key, kind, error)


def typed(given: Mapping[str, Any], key: str, kind: type[Section], error: type[ValueError] = ValueError) -> Section:
    """A section of the configuration as its dataclass; old names of keys are taken, with a warning.

    Args:
        given: keys and values.
        key: of the section, with dots.
        kind: its dataclass.
        error: what is raised.

    Raises:
        ValueError: of the kind `error`, see `section`.
    """
    values = dict(given)
    made = get_class(target) if (target := values.pop("_target_", None)) else kind
    if not issubclass(made, kind):
        raise error(f"{key}._target_={target} is no {kind.__name__}; leave it out")
    for old, new in RENAMED.items():
        if old.rpartition(".")[0] == key and old.removeprefix(f"{key}.") in values:
            logger.warning("%s is called %s now; the old name goes with the next release", old, new)
            values[new.removeprefix(f"{key}.")] = values.pop(old.removeprefix(f"{key}."))
    known = [one.name for one in fields(made)]
    if unknown := sorted(values.keys() - set(known)):
        raise error(f"{key} knows no {', '.join(unknown)}; its keys are {', '.join(known)}")
    return made(**values)


@dataclass(frozen=True)
class VideoCache:
    """Where the frames of a run come from: verl's ``data.video_cache``.

    Attributes:
        enabled: whether decoded frames are kept; without, videos are decoded again and travel as pixels.
        folder: of the cache; None: ``verl_stvg/frames`` in the user's cache folder.
        max_gb: bound of the cache, 10^9 bytes; None: no bound.
        decoder: ``pyav``, ``decord``, ``torchcodec`` or ``package.module:function``.
        timeout: seconds for a video, beside those for its length.
    """

    enabled: bool = True
    folder: str | None = None
    max_gb: float | None = None
    decoder: str = FrameStore.decoder
    timeout: float = FrameStore.timeout

    def source(self) -> FrameStore | Decoder:
        """The cache; where it is off a decoder, which keeps nothing."""
        decoder, timeout = self.decoder or FrameStore.decoder, float(self.timeout or FrameStore.timeout)
        if not self.enabled:
            return decoder_of(decoder, timeout)
        folder = Path(self.folder or default_folder()).expanduser().absolute()
        max_bytes = None if self.max_gb is None else int(float(self.max_gb) * 10**9)
        return FrameStore(str(folder), max_bytes, decoder, timeout)


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
    return (section(config, "video_cache", VideoCache) or VideoCache()).source()


def template_options(config) -> dict[str, Any]:
    """The options of the chat template in verl's ``data`` configuration, as plain lists and dictionaries.

    Raises:
        ValueError: one that cannot be chosen.
    """
    return checked(plain(config.get("apply_chat_template_kwargs")) or {})


def fit_of(config) -> dict[str, float | str]:
    """The fit in verl's ``data`` configuration, see `verl_stvg.rows.fit.checked`; empty without one.

    Raises:
        RowError: a key or value that cannot be.
    """
    try:
        return fits.checked(plain(config.get("fit")) or {})
    except ValueError as error:
        raise RowError(f"data.fit: {error}") from error


def plain(given: Any) -> Any:
    """A part of a configuration as plain lists and dictionaries, references resolved; what is none as it is."""
    return OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given


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
