"""Rows to messages and frames: paths, plans, and one decode however many rollouts ask."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from verl_stvg import dataset as module
from verl_stvg.dataset import FrameCache, VideoGroundingDataset, read_video
from verl_stvg.video.decode import VideoError, read_frames
from verl_stvg.video.plan import plan_video


@pytest.fixture
def made(rows):
    from data_builders.tiny_model import make_processor

    processor = make_processor()
    config = OmegaConf.create({"max_prompt_length": 512, "check_videos": "exist"})
    return VideoGroundingDataset(str(rows / "val.parquet"), processor.tokenizer, config, processor)


def test_prompt_length_without_decoding_is_the_processors(made):
    """The check's arithmetic gives exactly the tokens that the processor makes of the decoded video."""
    row = made[0]
    images, videos, audios = asyncio.run(made.process_multi_modal_info(row["raw_prompt"], 14, made.config))
    assert images is None and audios is None
    frames, metadata = videos[0]
    assert frames.dtype == torch.uint8 and frames.shape[1] == 3
    text = made.processor.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=False)
    inputs = made.processor(
        text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    assert made._check_row(made.dataframe[0], "exist") == (None, inputs["input_ids"].shape[1])
    assert inputs["second_per_grid_ts"].tolist() == [1.0]
    t, h, w = inputs["video_grid_thw"][0].tolist()
    assert (t * 2, h * 14, w * 14) == (frames.shape[0], *frames.shape[2:])  # the processor does not resize again


def test_rows_keep_what_verl_and_the_reward_need(made, rows):
    row = made[3]
    source = pq.read_table(rows / "val.parquet").to_pylist()[3]
    assert row["reward_model"] == source["reward_model"] and row["data_source"] == source["data_source"]
    part = row["raw_prompt"][0]["content"][-1]
    assert part["type"] == "video" and part["video"] == str(rows / source["videos"][0]["video"])
    assert "videos" not in row and module.ROOT_KEY not in row


def test_one_decode_however_many_ask(rows, monkeypatch):
    calls = []

    def slow(path, plan):
        calls.append(path)
        return read_frames(path, plan)

    monkeypatch.setattr(module, "read_frames", slow)
    cache = FrameCache()
    path = str(rows / "videos/val_00000.mp4")
    plan = plan_video(96, 12.0, 336, 224, min_pixels=784, max_pixels=6 * 784)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: cache.read(path, plan), range(32)))
    assert len(calls) == cache.decoded == 1
    assert all(r is results[0] for r in results)


def test_cache_is_bounded_in_bytes_and_sees_a_replaced_file(rows, tmp_path):
    plan = plan_video(96, 12.0, 336, 224, min_pixels=784, max_pixels=6 * 784)
    size = read_frames(rows / "videos/val_00000.mp4", plan).nbytes
    cache = FrameCache(max_bytes=3 * size)
    for k in range(6):
        cache.read(str(rows / f"videos/val_{k:05d}.mp4"), plan)
    assert len(cache._entries) == 3 and cache.decoded == 6
    copy = tmp_path / "clip.mp4"
    copy.write_bytes((rows / "videos/val_00000.mp4").read_bytes())
    first = cache.read(str(copy), plan)
    copy.write_bytes((rows / "videos/val_00001.mp4").read_bytes())
    assert not np.array_equal(first, cache.read(str(copy), plan))


def test_a_failure_is_not_kept(tmp_path, rows):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"")
    plan = plan_video(96, 12.0, 336, 224, min_pixels=784, max_pixels=6 * 784)
    cache = FrameCache()
    with pytest.raises(VideoError, match="clip.mp4"):
        cache.read(str(path), plan)
    path.write_bytes((rows / "videos/val_00000.mp4").read_bytes())
    assert cache.read(str(path), plan).shape[0] == plan.num_frames


def test_missing_video_names_itself(tmp_path):
    with pytest.raises(VideoError, match="gone.mp4: no such video"):
        read_video({"video": str(tmp_path / "gone.mp4"), "fps": 2.0})
