"""Pages: training runs, evaluations and comparisons, in one style with one set of charts."""

from verl_stvg.moved import names_of

__getattr__ = names_of(__name__, {"write": "verl_stvg.eval.report.page", "summarise": "verl_stvg.eval.report.runs"})
