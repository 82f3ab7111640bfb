"""Starting a run: checks before it, the processes of it, the plan of its cost."""

from verl_stvg.moved import names_of

__getattr__ = names_of(__name__, dict.fromkeys(("supervise", "summary"), "verl_stvg.launch.run"))
