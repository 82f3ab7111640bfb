"""Choosing what to train on: a model answers every row, its answers are judged, and rows are kept by what they say.

    rows --folder.prepare--> rows that are asked --verl_stvg.inference.generate--> answers
         --folder.judge--> judged.jsonl --subset, time_r1_filter--> rows to train on

Three stages judge answers: `boundary_reflection` finds rows whose interval is not the only one, `difficulty` how well
the model does before training, `variance` whether its answers differ. `subset` and `time_r1_filter` choose by what they
found; `report` shows it. Asking is slow and done once; judging is pure, takes seconds, and is done again whenever a
threshold changes.
"""
