"""verl_stvg: reinforcement learning for video grounding, as a plugin to verl."""

from importlib.metadata import version

__version__ = version("verl-stvg")
