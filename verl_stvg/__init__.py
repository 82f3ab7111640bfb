"""verl_stvg: reinforcement learning for video grounding, as a plugin to verl."""

from verl_stvg import moved

moved.install()


def __getattr__(name: str) -> str:
    """``__version__``, read when it is asked for: what reads it takes as long to import as the command line."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("verl-stvg")
