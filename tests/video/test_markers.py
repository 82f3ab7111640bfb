"""Object IDs on frames: STVG-R1's look to the pixel, and masks measured from their runs as from their pixels."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from tests.video.test_decode import write_counting_video
from verl_stvg.rows.row import located, plan_of
from verl_stvg.video.decode import VideoError, probe, read_frames
from verl_stvg.video.markers import STYLES, MarkerStyle, draw_ids, rle_area, rle_box, rle_boxes, rle_centre
from verl_stvg.video.store import FrameStore
from verl_stvg.video.tracks import Track, Tracks, save

HEIGHT, WIDTH = 720, 1280


def encode(mask):
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def plain_counts(mask):
    """Run lengths down the columns, background first."""
    counts, value = [0], 0
    for pixel in mask.flatten(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def rectangles(*boxes, size):
    mask = np.zeros(size, np.uint8)
    for rows, columns in boxes:
        mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 1
    return mask


def dot(x, y):
    return encode(rectangles(((y, y), (x, x)), size=(HEIGHT, WIDTH)))


def ink(frame, background=0):
    """First column, last column, first row, last row of what was drawn."""
    rows, columns = np.nonzero((frame != background).any(axis=2))
    return columns.min(), columns.max(), rows.min(), rows.max()


def blank():
    return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


# --- masks from runs -------------------------------------------------------------------------------------------------


def measures_of_pixels(mask):
    """Area, box and STVG-R1's centre the long way round (notes, section 1.5)."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0, None, None
    y = int((rows.min() + rows.max()) / 2)
    there = columns[rows == y]
    x = int(there.mean()) if len(there) else int((columns.min() + columns.max()) / 2)
    return len(rows), (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), (x, y)


def check_measures(mask):
    compressed = encode(mask)
    size = list(mask.shape)
    expected = measures_of_pixels(coco.decode(compressed))
    for counts in (compressed["counts"], compressed["counts"].decode(), plain_counts(mask)):
        rle = {"size": size, "counts": counts}
        assert (rle_area(rle), rle_box(rle), rle_centre(rle)) == expected


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 1)))
def test_measures_of_noise(mask):
    check_measures(mask)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.tuples(st.integers(0, 719), st.integers(0, 719)).map(sorted),
            st.tuples(st.integers(0, 1279), st.integers(0, 1279)).map(sorted),
        ),
        max_size=4,
    )
)
def test_measures_of_large_masks(boxes):
    mask = rectangles(*boxes, size=(HEIGHT, WIDTH))
    rle = encode(mask)
    assert (rle_area(rle), rle_box(rle), rle_centre(rle)) == measures_of_pixels(mask)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_measures_with_empty_runs(counts):
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    height = next(side for side in (7, 5, 3, 2, 1) if len(flat) % side == 0)
    mask = flat.reshape((height, -1), order="F")
    rle = {"size": list(mask.shape), "counts": counts}
    assert (rle_area(rle), rle_box(rle), rle_centre(rle)) == measures_of_pixels(mask)


@given(st.lists(arrays.arrays(bool, (9, 13)), max_size=5))
def test_boxes_of_several_masks_are_those_of_each(masks):
    rles = [encode(mask) for mask in masks]
    assert rle_boxes(rles) == [rle_box(rle) for rle in rles] == [measures_of_pixels(mask)[1] for mask in masks]


def test_masks_of_different_sizes_are_not_measured_together():
    with pytest.raises(ValueError, match="add up to"):
        rle_boxes([encode(np.ones((4, 5))), encode(np.ones((4, 6)))])


@pytest.mark.parametrize(
    ("mask", "centre"),
    [
        # an L, two blobs in opposite corners, a mask split sideways: STVG-R1 notes, section 1.5
        (rectangles(((2, 11), (3, 4)), ((2, 3), (3, 14)), size=(20, 20)), (3, 6)),
        (rectangles(((0, 2), (0, 3)), ((17, 19), (10, 19)), size=(20, 20)), (9, 9)),
        (rectangles(((5, 7), (2, 4)), ((5, 7), (12, 18)), size=(20, 20)), (11, 6)),
    ],
)
def test_stvg_r1_centres(mask, centre):
    assert rle_centre(encode(mask)) == centre


def test_an_empty_mask_has_no_centre():
    rle = encode(np.zeros((20, 30)))
    assert (rle_area(rle), rle_box(rle), rle_centre(rle)) == (0, None, None)


@pytest.mark.parametrize(
    ("rle", "word"),
    [
        ({"size": [4, 4], "counts": "4P"}, "cut off"),
        ({"size": [4, 4], "counts": ""}, "cut off"),
        ({"size": [4, 4], "counts": "4 4"}, "characters"),
        ({"size": [4, 4], "counts": b"4\xff4"}, "characters"),
        ({"size": [4, 4], "counts": "4é8"}, "characters"),
        ({"size": [4, 4], "counts": "44"}, "4x4 mask add up to 8 pixels"),
        ({"size": [4, 4], "counts": "P" * 100 + "0"}, "add up"),
        ({"size": [4, 4], "counts": [12, 5]}, "add up to 17"),
        ({"size": [4, 4], "counts": [20, -8, 4]}, "negative"),
        ({"size": [4, 4], "counts": []}, "list of integers"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "list of integers"),
        ({"size": [4, 4], "counts": 16}, "list of integers"),
        ({"size": [4, 4]}, "mapping with size"),
        ({"size": [4], "counts": [4]}, "mapping with size"),
        ({"size": 4, "counts": [4]}, "mapping with size"),
        ("44", "mapping with size"),
    ],
)
def test_malformed_masks_say_what_is_wrong(rle, word):
    for measure in (rle_area, rle_box, rle_centre):
        with pytest.raises(ValueError, match=word):
            measure(rle)


@given(st.text(min_size=1, max_size=30) | st.binary(min_size=1, max_size=30))
def test_any_text_is_a_mask_or_malformed(counts):
    rle = {"size": [6, 7], "counts": counts}
    try:
        area = rle_area(rle)
    except ValueError as error:
        assert "malformed RLE" in str(error)
    else:
        assert 0 <= area <= 42


# --- STVG-R1's look --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "scale", "thickness"),
    [(720, 1280, 2.540, 5), (1280, 720, 2.540, 5), (360, 640, 1.270, 2), (1080, 1920, 3.810, 7), (120, 160, 0.317, 2)],
)
def test_font_of_a_frame(height, width, scale, thickness):
    found = STYLES["stvg_r1"].font(height, width)
    assert found == (pytest.approx(scale, abs=5e-4), thickness)
    assert found[0] == (20 / 30) * (max(height, width) / 336)


def test_numbers_stand_to_the_right_of_and_above_the_centre():
    frame = blank()
    draw_ids(frame, {12: dot(600, 300)})
    left, right, top, bottom = ink(frame)
    assert (left - 600, right - 600, top - 300, bottom - 300) == (12, 97, -57, 4)
    # the model sees 364 columns: about 17 pixels, not the nominal 20
    assert (bottom - top) * 364 / 1280 == pytest.approx(17.3, abs=0.1)


def test_numbers_are_pure_red_and_nothing_else():
    frame = blank()
    draw_ids(frame, {12: dot(600, 300)})
    assert frame[..., 0].max() == 255 and not frame[..., 1:].any()
    white = np.full_like(frame, 255)
    draw_ids(white, {12: dot(600, 300)})
    assert (white[..., 0] == 255).all() and white[..., 1].min() == 0


@settings(deadline=None, max_examples=20)
@given(
    number=st.integers(0, 1200),
    centre=st.tuples(st.integers(0, 319), st.integers(0, 179)),
    seed=st.integers(0, 2**32 - 1),
)
def test_frames_are_those_of_opencv(number, centre, seed):
    """STVG-R1 draws in red on a BGR frame."""
    frame = np.random.default_rng(seed).integers(0, 256, (180, 320, 3), np.uint8)
    bgr = np.ascontiguousarray(frame[..., ::-1])
    scale = (20 / 30) * (320 / 336)
    cv2.putText(bgr, str(number), centre, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 255), 2, cv2.LINE_AA)
    x, y = centre
    draw_ids(frame, {number: encode(rectangles(((y, y), (x, x)), size=(180, 320)))})
    assert np.array_equal(frame, bgr[..., ::-1])


@pytest.mark.parametrize("centre", [(1279, 300), (600, 0), (1279, 0), (0, 719)])
def test_numbers_may_leave_the_frame(centre):
    frame = blank()
    draw_ids(frame, {88: dot(*centre)})
    whole = blank()
    draw_ids(whole, {88: dot(600, 300)})
    assert np.count_nonzero(frame) < np.count_nonzero(whole) or centre == (0, 719)


# --- the centred style -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 7, 12, 888])
def test_centred_numbers_have_their_middle_on_the_centre(number):
    frame = blank()
    draw_ids(frame, {number: dot(600, 300)}, "centred")
    left, right, top, bottom = ink(frame)
    assert abs((left + right) / 2 - 600) <= 0.5 and abs((top + bottom) / 2 - 300) <= 0.5


@pytest.mark.parametrize(
    ("centre", "edges"), [((0, 0), (0, 0)), ((1279, 719), (1279, 719)), ((1279, 0), (1279, 0)), ((0, 719), (0, 719))]
)
def test_centred_numbers_stay_in_the_frame(centre, edges):
    frame, whole = blank(), blank()
    draw_ids(frame, {88: dot(*centre)}, "centred")
    draw_ids(whole, {88: dot(600, 300)}, "centred")
    assert np.count_nonzero(frame) == np.count_nonzero(whole)
    left, right, top, bottom = ink(frame)
    assert edges[0] in (left, right) and edges[1] in (top, bottom)


def test_centred_numbers_in_a_frame_too_small_for_them_begin_at_its_corner():
    frame = np.zeros((12, 200, 3), np.uint8)
    draw_ids(frame, {888: encode(rectangles(((5, 5), (3, 3)), size=(12, 200)))}, "centred")
    left, _, top, bottom = ink(frame)
    assert (left, top, bottom) == (0, 0, 11)


def test_centred_numbers_are_red_with_a_white_edge():
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    draw_ids(frame, {12: dot(600, 300)}, "centred")
    left, right, top, bottom = ink(frame, 90)
    patch = frame[top : bottom + 1, left : right + 1].reshape(-1, 3).tolist()
    assert patch.count([255, 0, 0]) > 1000 and patch.count([255, 255, 255]) > 300


# --- several objects -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_several_objects_are_drawn_one_after_the_other(style):
    """Masks of a frame are read at once: the empty one, the last column and the runs over two columns do not leak."""
    masks = {
        4: rectangles(((0, 719), (300, 310)), size=(HEIGHT, WIDTH)),
        2: np.zeros((HEIGHT, WIDTH)),
        9: rectangles(((400, 719), (1270, 1279)), size=(HEIGHT, WIDTH)),
        1: rectangles(((0, 300), (0, 60)), ((350, 500), (700, 900)), size=(HEIGHT, WIDTH)),
        30: rectangles(((350, 400), (290, 340)), size=(HEIGHT, WIDTH)),
        31: np.zeros((HEIGHT, WIDTH)),
    }
    together, single, reverse = blank(), blank(), blank()
    objects = {number: encode(mask) for number, mask in masks.items()}
    draw_ids(together, objects, style)
    for number, rle in objects.items():
        draw_ids(single, {number: rle}, style)
    assert np.array_equal(together, single) and together.any()
    mixed = dict(objects)
    mixed[9] = {"size": [HEIGHT, WIDTH], "counts": plain_counts(masks[9])}
    mixed[4] = {"size": [HEIGHT, WIDTH], "counts": objects[4]["counts"].decode()}
    again = blank()
    draw_ids(again, mixed, style)
    assert np.array_equal(together, again)
    draw_ids(reverse, dict(reversed(objects.items())), style)
    assert not np.array_equal(together, reverse)  # the numbers of 4 and 30 overlap


@pytest.mark.parametrize("objects", [{}, {1: encode(np.zeros((HEIGHT, WIDTH)))}])
def test_nothing_to_draw(objects):
    frame = blank()
    draw_ids(frame, objects)
    assert not frame.any()


def test_a_style_of_ones_own():
    frame = blank()
    style = MarkerStyle(size=40.0, colour=(0, 255, 0))
    draw_ids(frame, {12: dot(600, 300)}, style)
    assert style.font(HEIGHT, WIDTH)[0] == pytest.approx(2 * 2.540, abs=1e-3)
    assert frame[..., 1].max() == 255 and not frame[..., 0].any()


@pytest.mark.parametrize(
    ("objects", "style", "error", "word"),
    [
        ({-1: dot(5, 5)}, "stvg_r1", ValueError, "number the objects from 1"),
        ({"1": dot(5, 5)}, "stvg_r1", TypeError, "convert with int"),
        ({3: encode(np.ones((360, 640)))}, "stvg_r1", ValueError, "object 3 is 640x360 and the frame 1280x720"),
        ({3: encode(np.ones((1280, 720)))}, "stvg_r1", ValueError, "before the frame is resized"),
        ({3: {"size": [HEIGHT, WIDTH], "counts": "44"}}, "stvg_r1", ValueError, "malformed RLE"),
        ({3: {"counts": "44"}}, "stvg_r1", ValueError, "mapping with size"),
        ({}, "red", ValueError, "choose one of stvg_r1, centred"),
    ],
)
def test_refused_objects_leave_the_frame_alone(objects, style, error, word):
    frame = blank()
    with pytest.raises(error, match=word):
        draw_ids(frame, {1: dot(600, 300), **objects}, style)
    assert not frame.any()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((HEIGHT, WIDTH, 3), np.float32),
        np.zeros((3, HEIGHT, WIDTH), np.uint8),
        np.zeros((HEIGHT, WIDTH), np.uint8),
        [[0, 0, 0]],
        np.zeros((HEIGHT, WIDTH, 6), np.uint8)[..., ::2],
        np.broadcast_to(np.zeros(3, np.uint8), (HEIGHT, WIDTH, 3)),
    ],
)
def test_what_cannot_be_drawn_on_is_refused(frame):
    with pytest.raises(TypeError, match="frame"):
        draw_ids(frame, {1: dot(600, 300)})


# --- on the way to the model


def rows_with_numbers(folder: Path) -> tuple[dict, Tracks]:
    """A row's video entry, whose track file says where objects 3 and 12 are in frames 10 to 29 of 60."""
    write_counting_video(folder / "a.mp4", 60, 15, size=112)
    square = np.zeros((112, 112), np.uint8, order="F")
    masks = {}
    for number, left in ((3, 10), (12, 60)):
        square[:] = 0
        square[40:70, left : left + 30] = 1
        found = coco.encode(square)
        masks[number] = {"size": [112, 112], "counts": found["counts"].decode()}
    made = tuple(Track(number, None, None, dict.fromkeys(range(10, 30), mask)) for number, mask in masks.items())
    tracks = Tracks(112, 112, 60, 15.0, made)
    save(tracks, folder / "a.tracks.json.gz")
    entry = {"video": "a.mp4", "tracks": "a.tracks.json.gz", "min_pixels": 56 * 56, "max_pixels": 56 * 56}
    return located(entry, folder), tracks


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("style", ["stvg_r1", "centred"])
def test_numbers_are_drawn_at_native_size_before_the_resize(tmp_path, decoder, style):
    if decoder != "pyav":
        pytest.importorskip(decoder)
    entry, tracks = rows_with_numbers(tmp_path)
    info = probe(entry["video"])
    plain = {key: value for key, value in entry.items() if key != "tracks"}
    native = plan_of(plain | {"min_pixels": 112 * 112, "max_pixels": 112 * 112}, info)
    plan = plan_of(entry | {"marker_style": style}, info)
    assert plan.marks[0] == str(tmp_path / "a.tracks.json.gz") and native.frame_indices == plan.frame_indices
    expected = []
    for index, frame in zip(native.frame_indices, read_frames(entry["video"], native, decoder=decoder), strict=True):
        draw_ids(frame, tracks.at(index), style)
        expected.append(cv2.resize(frame, (56, 56), interpolation=cv2.INTER_AREA))
    found = read_frames(entry["video"], plan, decoder=decoder)
    np.testing.assert_array_equal(found, expected)
    numbered = [k for k, index in enumerate(plan.frame_indices) if 10 <= index < 30]
    red = (found[..., 0].astype(int) - found[..., 1] > 60).any(axis=(1, 2))
    assert red.nonzero()[0].tolist() == numbered


def test_frames_with_other_numbers_have_another_place_in_the_cache(tmp_path):
    entry, tracks = rows_with_numbers(tmp_path)
    store, info = FrameStore(str(tmp_path / "cache")), probe(entry["video"])
    first = store.frames(entry["video"], plan_of(entry, info))
    (tmp_path / "moved").mkdir()
    moved = {**entry, "tracks": str(tmp_path / "moved/b.tracks.json.gz")}
    shutil.copy(entry["tracks"], moved["tracks"])
    np.testing.assert_array_equal(store.frames(entry["video"], plan_of(moved, info)), first)
    assert store.cache.decodes == 1  # the same numbers in a file of another name
    save(Tracks(112, 112, 60, 15.0, tracks.tracks[:1]), Path(entry["tracks"]))
    assert (store.frames(entry["video"], plan_of(entry, info)) != first).any() and store.cache.decodes == 2
    del entry["tracks"]
    assert (store.frames(entry["video"], plan_of(entry, info)) != first).any() and store.cache.decodes == 3


def test_track_files_that_do_not_fit_are_named(tmp_path):
    entry, tracks = rows_with_numbers(tmp_path)
    info = probe(entry["video"])
    with pytest.raises(ValueError, match="b.json.gz: no such track file"):
        plan_of({**entry, "tracks": str(tmp_path / "b.json.gz")}, info)
    with pytest.raises(ValueError, match="marker_style 'loud' is unknown; choose one of"):
        plan_of({**entry, "marker_style": "loud"}, info)
    other = write_counting_video(tmp_path / "other.mp4", 60, 15, size=56)
    with pytest.raises(VideoError, match="frames of 56x56, and .* is about a video of 112x112; track this video"):
        read_frames(other, plan_of(entry, probe(other)))
    Path(entry["tracks"]).write_bytes(b"no gzip")
    with pytest.raises(VideoError, match="its objects cannot be numbered: .*damaged"):
        FrameStore(str(tmp_path / "cache")).frames(entry["video"], plan_of(entry, info))
