"""Side-by-side measurements against what a user would pick instead; run them with `python -m benchmarks`.

A module here offers `measure(options) -> Iterable[Row]` and is named in `MODULES` of `benchmarks.__main__`. Times are
processor seconds of one thread, the best of several interleaved runs, because the machine may be busy with other
things.
"""

import argparse
from dataclasses import dataclass

Options = argparse.Namespace


@dataclass(frozen=True)
class Row:
    """One measurement: ours and the other's figure, their ratio, the goal in words and whether ours meets it.

    `other` and `ratio` are None where there is nothing to compare with; `met` is None where there is no goal.
    """

    name: str
    ours: float | str
    other: float | str | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
