"""Tests; a package, so that `python -m tests.golden` finds ours and no other distribution's `tests`."""
