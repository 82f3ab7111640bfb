"""Evaluation: what a trained model's answers are worth, in numbers and in pictures."""

if __name__ == "eval":  # the old name, see `verl_stvg.moved`
    from verl_stvg.moved import stand_for

    stand_for(__name__)
