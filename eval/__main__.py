"""`python -m eval ...` is `verl-stvg eval ...`."""

import sys

from verl_stvg.cli.app import main

sys.argv.insert(1, "eval")
main()
