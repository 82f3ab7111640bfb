"""Rows to messages and frames: paths, plans, and one decode however many rollouts ask."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from verl_stvg import dataset as module
from verl_stvg.dataset import VideoGroundingDataset, read_video
from verl_stvg.video.decode import VideoError, read_frames
from verl_stvg.video.once import Once


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

    def counting(path, plan):
        calls.append(path)
        return read_frames(path, plan)

    monkeypatch.setattr(module, "read_frames", counting)
    monkeypatch.setattr(module, "_frames", Once(2**30, size=lambda frames: frames.nbytes))
    part = pq.read_table(rows / "val.parquet").to_pylist()[0]["videos"][0]
    part["video"] = str(rows / part["video"])
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: read_video(part), range(32)))
    assert len(calls) == 1
    assert len({frames.data_ptr() for frames, _ in results}) == 1


def test_a_replaced_file_is_read_again(rows, tmp_path):
    copy = tmp_path / "clip.mp4"
    part = pq.read_table(rows / "val.parquet").to_pylist()[0]["videos"][0] | {"video": str(copy)}
    copy.write_bytes((rows / "videos/val_00000.mp4").read_bytes())
    first, _ = read_video(part)
    copy.write_bytes((rows / "videos/val_00001.mp4").read_bytes())
    assert not torch.equal(first, read_video(part)[0])


def test_pixels_are_made_once_and_are_the_same(made):
    from verl_stvg.rollout import SharedVideoProcessor

    texts, videos = [], []
    for k in range(3):
        row = made[k]
        texts.append(made.processor.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=False))
        videos.append(made._process_multi_modal_info(row["raw_prompt"], 14, made.config)[1][0])

    def process(k):
        frames, metadata = videos[k]
        return made.processor(
            text=[texts[k]], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
        )

    stock = [process(k) for k in range(3)]
    made.processor.video_processor = shared = SharedVideoProcessor(made.processor.video_processor)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda k: (k, process(k)), [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]))
    assert shared._pixels.computed == 3
    for k, result in results:
        assert result.keys() == stock[k].keys()
        assert all(torch.equal(torch.as_tensor(result[name]), torch.as_tensor(stock[k][name])) for name in result)


def test_missing_video_names_itself(tmp_path):
    with pytest.raises(VideoError, match="gone.mp4: no such video"):
        read_video({"video": str(tmp_path / "gone.mp4"), "fps": 2.0})
