"""`python -m verl_stvg.cli ...` is `verl-stvg ...`."""

from verl_stvg.cli.app import main

main()
