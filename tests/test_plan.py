"""The sampling plan: the exact grid, the sizes, and the token count that the processor arrives at."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verl_stvg.video.plan import FACTOR, plan_video, smart_resize

BUDGET = {"min_pixels": 4 * FACTOR**2, "max_pixels": 64 * FACTOR**2}


@given(
    frames=st.integers(2, 4000),
    source_fps=st.sampled_from([10.0, 12.0, 15.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0]),
    fps=st.sampled_from([1.0, 2.0, 4.0]),
)
def test_grid_is_exact_and_inside_the_video(frames, source_fps, fps):
    assume(frames / source_fps * fps >= 2.001)
    plan = plan_video(frames, source_fps, 640, 360, fps=fps, max_frames=10**6, **BUDGET)
    assert plan.num_frames % 2 == 0
    assert plan.timestamps == tuple(k / fps for k in range(plan.num_frames))
    assert list(plan.frame_indices) == sorted(plan.frame_indices)
    assert 0 <= plan.frame_indices[0] and plan.frame_indices[-1] < frames
    assert all(
        abs(i / source_fps - t) <= 1 / source_fps for i, t in zip(plan.frame_indices, plan.timestamps, strict=True)
    )
    # nothing is left over that another pair of grid points would reach
    assert frames / source_fps * fps - plan.num_frames < 2 + 1e-6


@given(height=st.integers(8, 2000), width=st.integers(8, 2000), low=st.integers(1, 64), room=st.integers(2, 64))
def test_sizes_are_multiples_within_the_budget_and_fixed_points(height, width, low, room):
    assume(max(height, width) / min(height, width) <= 20)
    budget = low * FACTOR**2, low * room * FACTOR**2
    h, w = smart_resize(height, width, *budget)
    assert h % FACTOR == w % FACTOR == 0
    if h > FACTOR and w > FACTOR:
        assert h * w <= budget[1]
    if budget[0] <= h * w <= budget[1]:
        assert smart_resize(h, w, *budget) == (h, w)


def test_clip_of_an_hc_stvg_length():
    # 20 s at 30 fps, 1280x720, 1,605,632 pixels in all, as STVG-R1 has it: 196x364, 20 x 7 x 13 tokens
    plan = plan_video(600, 30.0, 1280, 720, min_pixels=12544, max_pixels=768 * 784, total_pixels=1605632)
    assert (plan.num_frames, plan.height, plan.width, plan.num_tokens) == (40, 196, 364, 1820)


def test_metadata_gives_the_processor_the_plans_rate():
    from transformers.video_utils import VideoMetadata

    plan = plan_video(239, 29.97, 640, 360, **BUDGET)
    assert VideoMetadata(**plan.metadata()).sampled_fps == 2.0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(num_frames=0), "empty"),
        (dict(source_fps=0), "empty"),
        (dict(num_frames=10), "less than"),
        (dict(num_frames=100_000), "max_frames"),
        (dict(width=100_000, height=10), "aspect ratio"),
        (dict(max_pixels=10), "impossible"),
        (dict(fps=0), "positive"),
    ],
)
def test_impossible_plans_say_what_to_do(arguments, word):
    given = dict(num_frames=300, source_fps=30.0, width=640, height=360, **BUDGET) | arguments
    with pytest.raises(ValueError, match=word):
        plan_video(**given)
