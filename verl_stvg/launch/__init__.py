"""Starting a run: checks before it, the processes of it, the plan of its cost."""

from verl_stvg.moved import names_of

_RUN = ("train", "supervise", "summary", "absolute_paths", "at_its_end", "set_aside", "end_descendants", "failure")
_RUN += ("report_progress", "EARLIER", "SHOWN")
__getattr__ = names_of(__name__, dict.fromkeys(_RUN, "verl_stvg.launch.run"))
