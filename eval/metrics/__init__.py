"""Metrics of temporal and spatio-temporal grounding: pure functions of predictions and truths, on numpy.

Training rewards, tables of a report and numbers of papers can only be compared where they are computed by one rule.
Each metric therefore stands here once by its clean definition, and beside it, under their own names, the rules of
published scripts that differ from it.

Values are fractions, 0 to 1, per item, so that means, thresholds and confidence intervals are made from the same array;
only functions named after a script return what that script prints, percent included.
"""
