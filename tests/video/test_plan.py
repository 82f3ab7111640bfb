"""The sampling plan: the exact grid, qwen-vl-utils' rule, the sizes, and the token count the processor arrives at."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.video.test_decode import write_counting_video
from verl_stvg.video.decode import probe, read_frames
from verl_stvg.video.frame_rules import (
    FACTOR,
    MAX_PIXELS,
    MIN_PIXELS,
    PROCESSOR_MAX_PIXELS,
    PROCESSOR_MIN_PIXELS,
    TOTAL_PIXELS,
    frame_budget,
    smart_nframes,
    smart_resize,
    spread,
)
from verl_stvg.video.plan import plan_video

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
        (dict(rule="linspace"), "choose one of grid, qwen_vl_utils"),
        (dict(rule="qwen_vl_utils", num_frames=1), "2 are needed"),
        (dict(rule="qwen_vl_utils", max_frames=1), "raise max_frames"),
        (dict(rule="qwen_vl_utils", max_pixels=10), "impossible"),
        (dict(min_frames=21), "20 frames at 2.0 fps and under min_frames=21; raise fps"),
        (dict(nframes=8), "set rule to 'qwen_vl_utils', or fps in place of nframes"),
        (dict(rule="qwen_vl_utils", nframes=8, fps=2.0), "exclude each other"),
        (dict(rule="qwen_vl_utils", nframes=1), "are needed; correct nframes"),
        (dict(rule="qwen_vl_utils", nframes=302), "asks for 302 frames of a video of 300"),
        (dict(rule="qwen_vl_utils", nframes=100, video_start=9.0), "asks for 100 frames of a video of 30,"),
        (dict(resized_height=140), "resized_height needs resized_width beside it"),
        (dict(resized_width=140), "resized_width needs resized_height beside it"),
        (dict(resized_height=28, resized_width=28_000), "aspect ratio"),
    ],
)
def test_impossible_plans_say_what_to_do(arguments, word):
    given = dict(num_frames=300, source_fps=30.0, width=640, height=360, **BUDGET) | arguments
    with pytest.raises(ValueError, match=word):
        plan_video(**given)


# --- rule: qwen_vl_utils ---------------------------------------------------------------------------------------------

STVG_R1 = {"total_pixels": 2048 * FACTOR**2, "min_pixels": 16 * FACTOR**2}
TEMPORAL_R1 = {"total_pixels": 2048 * FACTOR**2, "min_pixels": 4 * FACTOR**2}
VIDEOTG_R1 = {"total_pixels": 3584 * FACTOR**2, "min_pixels": 16 * FACTOR**2}


def plan_qwen(num_frames, source_fps, width, height, **options):
    return plan_video(num_frames, source_fps, width, height, rule="qwen_vl_utils", **options)


@pytest.fixture(scope="module")
def qwen():
    return pytest.importorskip("qwen_vl_utils.vision_process")


@given(
    frames=st.integers(1, 40_000),
    source_fps=st.floats(0.5, 240),
    options=st.fixed_dictionaries(
        {},
        optional={"fps": st.floats(0.1, 60), "min_frames": st.integers(1, 900), "max_frames": st.integers(1, 900)},
    ),
)
def test_frame_counts_are_the_librarys(qwen, frames, source_fps, options):
    try:
        expected = qwen.smart_nframes(options, frames, source_fps)
    except ValueError:
        with pytest.raises(ValueError, match="are needed"):
            smart_nframes(frames, source_fps, **options)
    else:
        assert smart_nframes(frames, source_fps, **options) == expected
        assert expected % 2 == 0 and 2 <= expected <= frames


@given(frames=st.integers(1, 400), nframes=st.integers(1, 500) | st.floats(0.1, 500))
def test_a_chosen_number_of_frames_is_the_librarys(qwen, frames, nframes):
    try:
        expected = qwen.smart_nframes({"nframes": nframes}, frames, 25.0)
    except ValueError:
        with pytest.raises(ValueError, match="are needed; correct nframes"):
            plan_qwen(frames, 25.0, 320, 180, nframes=nframes)
    else:
        plan = plan_qwen(frames, 25.0, 320, 180, nframes=nframes, min_frames=6, max_frames=10)
        assert plan.num_frames == expected
        assert plan.fps == expected / frames * 25.0  # its sample_fps
        assert plan.frame_indices == spread(frames, expected)


@given(
    height=st.integers(1, 8000),
    width=st.integers(1, 8000),
    patch=st.sampled_from([14, 16]),
    rule=st.sampled_from(["grid", "qwen_vl_utils"]),
)
def test_a_chosen_size_is_the_librarys(qwen, height, width, patch, rule):
    """Both sides are needed, and budgets in pixels then say nothing."""
    assume(max(height, width) / min(height, width) <= 200)
    size = {"resized_height": height, "resized_width": width, "patch": patch}
    plan = plan_video(300, 25.0, 320, 180, rule=rule, **size, total_pixels=10**6, max_pixels=50_176)
    expected = qwen.smart_resize(height, width, 2 * patch)
    assert (plan.height, plan.width) == tuple(max(side, 2 * patch) for side in expected)
    part = plan_video(300, 25.0, 320, 180, rule=rule, **size, video_start=2.0)
    assert (part.height, part.width) == (plan.height, plan.width)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    low=st.integers(FACTOR**2, 300 * FACTOR**2),
    room=st.floats(1, 100),
)
def test_sizes_are_the_librarys(qwen, height, width, low, room):
    assume(max(height, width) / min(height, width) <= 200)
    expected = qwen.smart_resize(height, width, FACTOR, low, low * room)
    assert smart_resize(height, width, low, low * room) == tuple(max(side, FACTOR) for side in expected)


@given(
    count=st.integers(1, 400).map(lambda half: 2 * half),
    low=st.integers(1, 1000 * FACTOR**2),
    options=st.fixed_dictionaries(
        {}, optional={"total_pixels": st.integers(1, 10**9), "max_pixels": st.integers(1, 10**7)}
    ),
)
def test_the_frame_budget_is_the_librarys(qwen, count, low, options):
    """`fetch_video` computes it between reading and resizing, so both of these are replaced."""
    torch = pytest.importorskip("torch")
    asked = []

    def note(height, width, factor, min_pixels, max_pixels):
        asked.append(max_pixels)
        return FACTOR, FACTOR

    def read(ele):
        return torch.zeros(1, 3, FACTOR, FACTOR).expand(count, -1, -1, -1), {}, 2.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen, "smart_resize", note)
        patch.setattr(qwen, "get_video_reader_backend", lambda: "ours")
        patch.setitem(qwen.VIDEO_READER_BACKENDS, "ours", read)
        patch.setattr(qwen.transforms.functional, "resize", lambda video, *args, **kwargs: video)
        qwen.fetch_video({"video": "x", "min_pixels": low, **options})
    total, most = options.get("total_pixels", TOTAL_PIXELS), options.get("max_pixels", math.inf)
    assert asked == [frame_budget(count, low, most, total)]


@pytest.mark.parametrize("options", [{"nframes": 7}, {"fps": 1.0}, {"nframes": 12, "video_start": 2.0}])
def test_frames_and_sizes_are_the_librarys(qwen, tmp_path, options):
    """`fetch_video` on a file; where a part of it begins and ends, the readers of the library differ."""
    torch = pytest.importorskip("torch")
    path = write_counting_video(tmp_path / "count.mp4", frames=61, rate=10)
    info = probe(path)
    options = options | {"resized_height": 70, "resized_width": 100}
    plan = plan_qwen(info.num_frames, info.fps, info.width, info.height, **options)
    frames = torch.from_numpy(read_frames(path, replace(plan, height=info.height, width=info.width)))

    def read(video):
        first = round(video.get("video_start", 0) * 10)
        count = qwen.smart_nframes(video, 61 - first, 10.0)
        indices = torch.linspace(first, 60, count).round().long()
        assert indices.tolist() == list(plan.frame_indices)
        return frames.permute(0, 3, 1, 2), {}, count / (61 - first) * 10.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen, "get_video_reader_backend", lambda: "ours")
        patch.setitem(qwen.VIDEO_READER_BACKENDS, "ours", read)
        video, rate = qwen.fetch_video({"video": str(path), **options}, return_video_sample_fps=True)
    assert tuple(video.shape) == (plan.num_frames, 3, plan.height, plan.width)
    assert rate == plan.fps


def test_defaults_are_the_librarys(qwen):
    assert MIN_PIXELS == qwen.VIDEO_MIN_TOKEN_NUM * FACTOR**2
    assert MAX_PIXELS == qwen.VIDEO_MAX_TOKEN_NUM * FACTOR**2
    assert TOTAL_PIXELS == 128000 * FACTOR * FACTOR * 0.9 == 90_316_800
    assert (PROCESSOR_MIN_PIXELS, PROCESSOR_MAX_PIXELS) == (3136, 12_845_056)


@given(num_frames=st.integers(2, 12_000), half=st.integers(1, 384))
def test_indices_are_the_librarys(num_frames, half):
    torch = pytest.importorskip("torch")
    count = 2 * min(half, num_frames // 2)
    indices = spread(num_frames, count)
    assert list(indices) == torch.linspace(0, num_frames - 1, count).round().long().tolist()
    assert (indices[0], indices[-1]) == (0, num_frames - 1)


@given(num_frames=st.integers(12_000, 10**6))
def test_indices_of_long_videos_are_exact_where_float32_is_not(num_frames):
    torch = pytest.importorskip("torch")
    exact = torch.linspace(0, num_frames - 1, 768, dtype=torch.float64).round().long().tolist()
    assert list(spread(num_frames, 768)) == exact


def test_one_index_cannot_include_both_ends():
    with pytest.raises(ValueError, match="at least 2"):
        spread(10, 1)


# STVG-R1 notes, section 1.7: 20 s at 30 fps
@pytest.mark.parametrize(
    ("width", "height", "size", "tokens"),
    [(1280, 720, (196, 364), 1820), (640, 480, (224, 308), 1760), (1280, 544, (168, 420), 1800)],
)
def test_stvg_r1_clips(width, height, size, tokens):
    plan = plan_qwen(600, 30.0, width, height, **STVG_R1)
    assert (plan.num_frames, plan.fps, (plan.height, plan.width), plan.num_tokens) == (40, 2.0, size, tokens)
    # both ends are included: the frames lie 0.512 s apart, and the last is shown at 19.97 s
    assert plan.timestamps[-1] == pytest.approx(19.967, abs=1e-3)
    assert plan.timestamps[-1] / 39 == pytest.approx(0.512, abs=1e-3)


# Temporal-R1 notes, section 1.8: height, width, fps, N; frames, sample_fps, budget, height, width after the processor
@pytest.mark.parametrize(
    ("height", "width", "source_fps", "num_frames", "count", "fps", "budget", "size", "tokens"),
    [
        (360, 480, 30, 900, 60, 2.0, 53521.1, (196, 252), 1890),
        (480, 640, 29.97, 927, 60, 1.9398, 53521.1, (196, 252), 1890),
        (270, 480, 30, 930, 62, 2.0, 51794.6, (168, 280), 1860),
        (480, 270, 24, 744, 62, 2.0, 51794.6, (280, 168), 1860),
        (480, 854, 25, 770, 60, 1.9481, 53521.1, (168, 308), 1980),
        (360, 480, 30, 165, 10, 1.8182, 321126.4, (364, 476), 1105),
        (360, 480, 30, 50, 4, 2.4, 602112, (364, 476), 442),
        (720, 1280, 25, 3000, 240, 2.0, 13380.3, (84, 140), 1800),
        (720, 1280, 25, 7200, 576, 2.0, 5575.1, (56, 84), 1728),
        (720, 1280, 30, 9000, 600, 2.0, 5352.1, (56, 112), 2400),  # 28x84 before the processor
        (720, 1280, 30, 11520, 768, 2.0, 4181.3, (56, 112), 3072),  # likewise
        (240, 320, 29.97, 22630, 768, 1.0171, 4181.3, (56, 56), 1536),
        (360, 480, 3, 91, 60, 1.978, 53521.1, (196, 252), 1890),
    ],
)
def test_temporal_r1_examples(height, width, source_fps, num_frames, count, fps, budget, size, tokens):
    plan = plan_qwen(num_frames, source_fps, width, height, **TEMPORAL_R1)
    assert plan.num_frames == count
    assert plan.fps == pytest.approx(fps, abs=5e-5)
    assert frame_budget(count, 3136, MAX_PIXELS, 1_605_632) == pytest.approx(budget, abs=0.05)
    assert (plan.height, plan.width) == size
    assert plan.grid_thw == (count // 2, size[0] // 14, size[1] // 14)
    assert plan.num_tokens == tokens


def test_long_16_to_9_videos_are_resized_a_second_time():
    assert smart_resize(720, 1280, 3136, frame_budget(600, 3136, MAX_PIXELS, 1_605_632)) == (28, 84)
    assert smart_resize(28, 84, PROCESSOR_MIN_PIXELS, PROCESSOR_MAX_PIXELS) == (56, 112)


# VideoTG-R1 notes, section 5.3: seconds at 30 fps, frames, most pixels per frame
@pytest.mark.parametrize(("seconds", "count", "budget"), [(30, 60, 93_662), (120, 240, 23_416), (214, 428, 13_171)])
def test_videotg_r1_budgets(seconds, count, budget):
    assert smart_nframes(seconds * 30, 30.0) == count
    found = frame_budget(count, VIDEOTG_R1["min_pixels"], MAX_PIXELS, VIDEOTG_R1["total_pixels"])
    assert math.ceil(found) == budget


def test_videotg_r1_longest_prompt():
    plan = plan_qwen(30 * 3600, 30.0, 448, 448, **VIDEOTG_R1)
    assert (plan.num_frames, plan.num_tokens) == (768, 6144)


def test_frame_counts_are_rounded_down_to_even():
    assert smart_nframes(2397, 29.97, fps=1.0, max_frames=150) == 78  # VideoMind's copy gives 80


@given(
    num_frames=st.integers(2, 40_000),
    source_fps=st.sampled_from([3.0, 12.0, 23.976, 25.0, 29.97, 30.0, 60.0]),
    size=st.tuples(st.integers(120, 2160), st.integers(120, 2160)),
    recipe=st.sampled_from([STVG_R1, TEMPORAL_R1, VIDEOTG_R1]),
)
def test_plans_keep_their_budget_and_tell_the_truth(num_frames, source_fps, size, recipe):
    assume(max(size) <= 4 * min(size))
    plan = plan_qwen(num_frames, source_fps, *size, **recipe)
    count = plan.num_frames
    assert count % 2 == 0 and 2 <= count <= 768
    # tokens: a quarter of the grid's patches, and no more than the row allows: in all, or at least per temporal unit
    assert plan.num_tokens == math.prod(plan.grid_thw) // 4 == count // 2 * plan.height * plan.width // FACTOR**2
    per_unit = max(int(1.05 * recipe["min_pixels"]) // FACTOR**2, 8)
    assert plan.num_tokens <= max(recipe["total_pixels"] // FACTOR**2, count // 2 * per_unit)
    # the size is a fixed point of the processor
    assert smart_resize(plan.height, plan.width, PROCESSOR_MIN_PIXELS, PROCESSOR_MAX_PIXELS) == (
        plan.height,
        plan.width,
    )
    # the clock: each time is that of its frame, and the rate makes T frames last as long as the video
    assert plan.timestamps == tuple(i / source_fps for i in plan.frame_indices)
    assert count / plan.fps == pytest.approx(num_frames / source_fps)


@given(num_frames=st.integers(2, 40_000), source_fps=st.floats(1, 120))
def test_metadata_gives_every_engine_the_true_rate(num_frames, source_fps):
    """vLLM hands these three fields to the same class."""
    from transformers.video_utils import VideoMetadata

    plan = plan_qwen(num_frames, source_fps, 640, 360)
    assert VideoMetadata(**plan.metadata()).sampled_fps == plan.fps
    assert plan.fps == plan.num_frames / num_frames * source_fps


@pytest.mark.parametrize("rate", [5, 12, 24, 30])
def test_the_decoder_reads_the_chosen_frames(tmp_path, rate):
    path = write_counting_video(tmp_path / "count.mp4", frames=61, rate=rate)
    info = probe(path)
    plan = plan_qwen(info.num_frames, info.fps, info.width, info.height, min_pixels=3136, max_pixels=3136)
    frames = read_frames(path, plan)
    seen = np.rint((frames.mean(axis=(1, 2, 3)) - 20) / 3).astype(int)
    assert seen.tolist() == list(plan.frame_indices) and seen[-1] == 60


@settings(max_examples=200)
@given(
    frames=st.integers(100, 2000),
    source_fps=st.sampled_from([10.0, 24.0, 25.0, 29.97, 30.0]),
    rule=st.sampled_from(["grid", "qwen_vl_utils"]),
    data=st.data(),
)
def test_a_part_is_planned_like_a_video_of_its_own(frames, source_fps, rule, data):
    first = data.draw(st.integers(0, frames - 90))
    last = data.draw(st.integers(first + 90, frames))
    size = {"width": 640, "height": 360, "rule": rule, "fps": 1.0, "max_frames": 1000}
    part = plan_video(frames, source_fps, video_start=first / source_fps, video_end=last / source_fps, **size)
    own = plan_video(last - first, source_fps, **size)
    assert (part.grid_thw, part.fps, part.metadata()) == (own.grid_thw, own.fps, own.metadata())
    assert [k - first for k in part.frame_indices] == list(own.frame_indices)
    assert part.timestamps == pytest.approx([first / source_fps + time for time in own.timestamps])


@pytest.mark.parametrize("part", [(5.0, 5.0), (5.0, 4.0), (-1.0, 4.0), (20.0, 25.0), (0.0, 12.0), (10.5, None)])
def test_a_part_outside_of_the_video_is_refused(part):
    with pytest.raises(ValueError, match="empty or outside of the video, which lasts 10.00 s"):
        plan_video(300, 30.0, 640, 360, video_start=part[0], video_end=part[1])


def test_frames_of_a_part_are_those_of_the_file(tmp_path):
    path = write_counting_video(tmp_path / "a.mp4", 78, 15)
    info = probe(path)
    size = {"min_pixels": info.width * info.height, "max_pixels": info.width * info.height}
    plan = plan_video(info.num_frames, info.fps, info.width, info.height, video_start=2.0, video_end=4.0, **size)
    assert list(plan.frame_indices) == [30, 37, 45, 52]  # frame 37 is on show from 2.467 to 2.533 s
    assert plan.timestamps == (2.0, 2.5, 3.0, 3.5)
    whole = plan_video(info.num_frames, info.fps, info.width, info.height, **size)
    np.testing.assert_array_equal(read_frames(path, plan), read_frames(path, whole)[4:8])
