"""Rows of a parquet file: what they hold, the prompts and frames they become, and the answers to them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_stvg.rows.row import Row

__all__ = ["Row"]


def __getattr__(name: str):
    """`Row` when it is asked for: reward workers need none, and start faster without numpy."""
    if name == "Row":
        from verl_stvg.rows.row import Row

        return Row
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
