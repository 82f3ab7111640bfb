"""The synthetic clips agree with what is written about them, and the same arguments write the same bytes."""

import hashlib
import json

import av
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from verl_stvg.data_builders.sets import synthetic, synthetic_world
from verl_stvg.training.reward import compute_score

NUM_TRAIN, NUM_VAL, SEED = 5, 3, 11
indices = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("synthetic") / "data", NUM_TRAIN, NUM_VAL, SEED, progress=False)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
        return frames, float(stream.average_rate), stream.codec_context.name


def annotations(folder, split):
    return json.loads((folder / f"annotations_{split}.json").read_text())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(list(synthetic.SPLITS)), index=indices)
def test_clips_keep_their_laws(seed, split, index):
    clip = synthetic.make_clip(seed, split, index)
    assert clip == synthetic.make_clip(seed, split, index)
    tracks = clip.tracks
    assert 2 <= len(tracks) <= synthetic.MAX_OBJECTS
    assert len({t.color for t in tracks}) == len({t.object_id for t in tracks}) == len(tracks)
    for track in tracks:
        assert 0.0 <= track.start < track.end <= synthetic.DURATION
        assert (2 * track.start).is_integer() and (2 * track.end).is_integer()
        area = synthetic.object_mask(track, (track.first + track.last) // 2).sum()
        edges = range(max(track.first - 3, 0), min(track.last + 4, synthetic.NUM_FRAMES))
        for frame in {*edges, *range(0, synthetic.NUM_FRAMES, synthetic.FRAMES_PER_TICK)}:
            mask = synthetic.object_mask(track, frame)
            share = 0.0 if mask is None else mask.sum() / area
            assert (share >= 0.5) == (track.first <= frame <= track.last)
            if frame % synthetic.FRAMES_PER_TICK == 0:  # what the model sees is wholly in or wholly out
                assert share == 0.0 or share == 1.0


@settings(max_examples=20, deadline=None)
@given(index=indices)
def test_shapes_never_overlap_and_keep_their_marker(index):
    clip = synthetic.make_clip(SEED, "train", index)
    for frame in range(0, synthetic.NUM_FRAMES, 7):
        masks = [m for t in clip.tracks if (m := synthetic.object_mask(t, frame)) is not None]
        assert not masks or np.sum(masks, axis=0).max() <= 1
    track = clip.target_track
    frame = (track.first + track.last) // 2
    (image,) = synthetic.render_frames(clip, [frame])
    x, y, w, h = synthetic.mask_box(synthetic.object_mask(track, frame))
    red = (image == synthetic.MARKER_COLOR).all(axis=-1)[y : y + h, x : x + w]
    rows, columns = np.nonzero(red)
    assert 300 < red.sum() < 1500
    assert abs((rows.min() + rows.max()) / 2 - h / 2) < 3 and abs((columns.min() + columns.max()) / 2 - w / 2) < 8


def test_every_digit_looks_different():
    markers = np.stack([synthetic_world._marker(i) for i in synthetic.IDS])
    differing = (markers[:, None] != markers[None]).sum(axis=(2, 3))
    assert differing[~np.eye(len(markers), dtype=bool)].min() > 100


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), index=indices)
def test_splits_and_seeds_give_other_clips(seed, index):
    clips = [synthetic.make_clip(seed, split, index) for split in synthetic.SPLITS]
    clips += [synthetic.make_clip(seed + 1, "train", index), synthetic.make_clip(seed, "train", index + 1)]
    assert len(set(clips)) == len(clips)


def test_same_arguments_write_the_same_bytes(data, tmp_path):
    again = synthetic.build(tmp_path / "again", NUM_TRAIN, NUM_VAL, SEED, progress=False)
    files = sorted(p.relative_to(data) for p in data.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert len(files) == 2 * (NUM_TRAIN + NUM_VAL) + 5

    def digest(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert [digest(data / f) for f in files] == [digest(again / f) for f in files]


def test_videos_are_h264_and_show_the_annotated_boxes(data):
    for split in ("train", "val"):
        for name, record in annotations(data, split).items():
            frames, fps, codec = decode(data / "videos" / name)
            assert codec == "h264" and fps == synthetic.SOURCE_FPS
            assert frames.shape == (record["img_num"], *record["img_size"], 3)
            tracks = json.loads((data / "tracks" / name.replace(".mp4", ".json")).read_text())
            (target,) = [o for o in tracks["objects"] if o["object_id"] == record["target_id"]]
            color = np.array(synthetic.COLORS[target["color"]])
            for k in range(0, len(record["bbox"]), 5):
                frame = frames[record["st_frame"] - 1 + k].astype(int)  # st_frame counts from 1
                x, y, w, h = record["bbox"][k]
                top, left = max(y - 6, 0), max(x - 6, 0)  # other shapes are at least 8 pixels away
                near = np.abs(frame[top : y + h + 6, left : x + w + 6] - color).max(axis=-1) < 40
                ys, xs = np.nonzero(near)
                seen = np.array([xs.min() + left, ys.min() + top, xs.max() + 1 + left, ys.max() + 1 + top])
                assert np.abs(seen - [x, y, x + w, y + h]).max() <= 3


def test_annotations_agree_with_tracks_and_rows(data):
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        records = annotations(data, split)
        rows = datasets.load_dataset("parquet", data_files=str(data / f"{split}.parquet"), split="train")
        assert len(rows) == len(records) == count
        for index, row in enumerate(rows):
            (video,) = row["videos"]
            record = records[video["video"].removeprefix("videos/")]
            tracks = json.loads((data / "tracks" / f"{split}_{index:05d}.json").read_text())
            (target,) = [o for o in tracks["objects"] if o["object_id"] == tracks["target_id"]]
            truth = row["reward_model"]["ground_truth"]
            assert truth["object_id"] == record["target_id"] == tracks["target_id"]
            assert (truth["start"], truth["end"]) == (record["st_time"], record["ed_time"])
            assert record["st_frame"] == round(record["st_time"] * synthetic.SOURCE_FPS) + 1
            assert len(record["bbox"]) == round((truth["end"] - truth["start"]) * synthetic.SOURCE_FPS)
            first, last = target["visible_frames"]
            assert (first, last) == (record["st_frame"] - 1, record["st_frame"] + len(record["bbox"]) - 2)
            by_frame = dict(zip(target["frames"], zip(target["boxes_xyxy"], target["masks"], strict=True), strict=True))
            for frame, (x, y, w, h) in enumerate(record["bbox"], start=first):
                box, encoded = by_frame[frame]
                assert box == [x, y, x + w, y + h]
                assert coco_mask.toBbox(encoded).tolist() == [x, y, w, h]
            assert (data / video["video"]).is_file()
            assert row["data_source"] == "verl_stvg/synthetic" and row["extra_info"]["split"] == split
            (message,) = row["prompt"]
            assert message["role"] == "user" and message["content"].endswith("<video>")
            assert f'"{record["English"]}"' in message["content"] and record["English"] == row["extra_info"]["query"]
            assert video["min_pixels"] == video["max_pixels"] == 56 * 84


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_every_task_has_a_reward_that_its_canonical_answer_satisfies(task):
    asked, track = synthetic.TASKS[task], synthetic.make_clip(SEED, "train", 0).target_track
    row = synthetic.row(synthetic.make_clip(SEED, "train", 0), SEED, "train", 0, task)
    truth = row["reward_model"]["ground_truth"]
    right = compute_score(row["data_source"], asked.completion(track.object_id, track.start, track.end, "so"), truth)
    late = compute_score(row["data_source"], asked.completion(track.object_id, track.end, track.end + 1, "so"), truth)
    assert row["ability"] == asked.ability and track.sentence in row["prompt"][0]["content"]
    assert right["format"] == late["format"] == 1.0
    (overlap,) = [part for part in right if part.startswith("temporal_iou")]
    assert right[overlap] == 1.0 and late[overlap] <= 0.0 < right["score"] - late["score"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), index=indices)
def test_the_second_passage_looks_like_the_first_and_is_apart(seed, index):
    clip = synthetic.make_clip(seed, "train", index, twice=True)
    first, again = clip.target_track, clip.again
    assert again.sentence == first.sentence and again.object_id == first.object_id
    assert again.start - first.end >= 1 or first.start - again.end >= 1
    assert synthetic.make_clip(seed, "train", index).again is None


def test_a_share_of_the_training_clips_is_annotated_in_part(tmp_path):
    folder = synthetic.build(tmp_path / "half", 12, 4, SEED, task="videotg_r1", twice=0.5, progress=False)
    train, val = (pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "val"))
    found = [row["extra_info"]["again"] for row in train]
    assert 2 <= sum(again is not None for again in found) <= 10
    assert all(row["extra_info"]["again"] is None for row in val)
    for row, again in zip(train, found, strict=True):
        if again is not None:
            truth = row["reward_model"]["ground_truth"]
            assert again[0] >= truth["end"] or again[1] <= truth["start"]


def test_a_complete_folder_is_kept_and_anything_else_refused(data, tmp_path):
    before = (data / "dataset.json").stat().st_mtime_ns
    assert synthetic.build(data, NUM_TRAIN, NUM_VAL, SEED, progress=False) == data
    assert (data / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other arguments.*choose another folder"):
        synthetic.build(data, NUM_TRAIN + 1, NUM_VAL, SEED, progress=False)
    with pytest.raises(ValueError, match="no complete synthetic data set.*choose another folder"):
        synthetic.build(tmp_path, NUM_TRAIN, NUM_VAL, SEED, progress=False)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        synthetic.build(tmp_path / "file", NUM_TRAIN, NUM_VAL, SEED, progress=False)
    damaged = synthetic.build(tmp_path / "damaged", 2, 1, SEED, progress=False)
    (damaged / "videos" / "train_00001.mp4").unlink()
    with pytest.raises(ValueError, match="damaged: videos/train_00001.mp4.*Remove it"):
        synthetic.build(damaged, 2, 1, SEED, progress=False)
    (damaged / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="damaged: dataset.json.*Remove it"):
        synthetic.build(damaged, 2, 1, SEED, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"num_val": -1}, "num_val must be at least 1"),
        ({"seed": -1}, "must not be negative"),
        ({"min_objects": 4, "max_objects": 2}, "min_objects <= max_objects"),
        ({"max_objects": 9}, "min_objects <= max_objects"),
        ({"task": "stvg_r2"}, "unknown task 'stvg_r2': use one of stvg_r1, temporal_r1"),
        ({"twice": 1.5}, "twice is a share between 0 and 1"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.build(**({"out_dir": tmp_path / "x", "num_train": 2, "num_val": 2, "seed": 0} | arguments))
    assert list(tmp_path.iterdir()) == []


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'test': use one of train, val, warm"):
        synthetic.make_clip(0, "test", 0)
