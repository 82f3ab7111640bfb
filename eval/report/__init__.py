"""Pages: training runs, evaluations and comparisons, in one style with one set of charts."""
