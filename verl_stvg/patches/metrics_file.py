"""verl's metrics file of a resumed run: it is added to, not begun again (docs/resume.md).

Versions: verl 0.9.1, whose file logger opens the file for writing. ``tests/training/test_resume.py`` says when verl no
longer needs it.
"""

import builtins
import os

APPEND_METRICS = "VERL_STVG_APPEND_METRICS"
"""Environment variable of a resumed run: verl's metrics file is added to, not begun again."""


def mend_metrics_file(tracking) -> None:
    """Let verl's file logger add to the metrics where the launcher has kept those of the first part of the run."""
    if os.environ.get(APPEND_METRICS):
        tracking.open = lambda path, mode="r", *args, **kwargs: builtins.open(
            path, "ab" if mode == "wb" else mode, *args, **kwargs
        )
