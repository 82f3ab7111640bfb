"""What counts as learning in `benchmarks.demo_seeds`: a start, a gain and an interval, all three."""

import pytest

from benchmarks.demo_seeds import judged


def headline(before, gain, low):
    part = {"before": before, "gain": gain, "gain_low": low, "gain_high": gain + 0.05}
    return {"temporal_iou": part, "id_match": part, "steps": 24}


@pytest.mark.parametrize(
    ("before", "gain", "low", "met"),
    [
        (0.66, 0.12, 0.07, True),
        (0.64, 0.08, 0.001, True),
        (0.63, 0.12, 0.07, False),  # a spoiled start has more to gain
        (0.66, 0.07, 0.02, False),
        (0.66, 0.09, -0.001, False),
    ],
)
def test_a_seed_shows_learning(before, gain, low, met):
    row = judged("seed 3", headline(before, gain, low), 10.0)
    assert row.met is met
    assert f"{before:.3f}, {gain:+.3f} ({low:+.3f} to {gain + 0.05:+.3f}); ID" in row.ours
