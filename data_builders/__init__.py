"""Builders: what turns annotations, or nothing at all, into the rows and files that training reads."""

if __name__ == "data_builders":  # the old name, see `verl_stvg.moved`
    from verl_stvg.moved import stand_for

    stand_for(__name__)
