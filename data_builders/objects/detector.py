"""What a detector is here: boxes of one frame, best first, and which classes of objects are wanted."""

import importlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MODES = ("person", "non-person", "all")


@dataclass(frozen=True)
class Detection:
    """A box: xyxy in pixels of the frame, class name, and score between 0 and 1."""

    box: tuple[float, float, float, float]
    label: str
    score: float


class Detector(Protocol):
    """Finds objects in a frame; its class names are free."""

    def detect(self, frame: np.ndarray) -> list[Detection]:
        """Detections of a frame, uint8 RGB (H, W, 3), by descending score."""
        ...


def wanted(detections: list[Detection], mode: str | tuple[str, ...]) -> list[Detection]:
    """Those of the wanted classes.

    Args:
        detections: of a frame.
        mode: ``person``, ``non-person``, ``all``, or the class names that are wanted.

    Raises:
        ValueError: an unknown mode.
    """
    if isinstance(mode, tuple):
        return [one for one in detections if one.label in mode]
    if mode not in MODES:
        raise ValueError(f"class mode {mode!r} is unknown; choose one of {', '.join(MODES)}, or name the classes")
    if mode == "all":
        return list(detections)
    return [one for one in detections if (one.label == "person") == (mode == "person")]


class ModelError(ValueError):
    """A detector or segmenter that cannot be had; the message says what to do."""


def imported(name: str, **settings):
    """What ``package.module:function`` gives, called with the settings: a model of one's own.

    Raises:
        ModelError: no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ModelError(f"{name} cannot be imported ({error}); put its folder into PYTHONPATH") from error
    if not function or not hasattr(loaded, function):
        raise ModelError(f"{module} defines no {function or 'function of that name'}; correct {name!r}")
    return getattr(loaded, function)(**settings)
