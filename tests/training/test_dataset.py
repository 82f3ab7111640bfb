"""Rows to messages and frames: paths, plans, and one decode however many rollouts ask."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from tests.data_builders.test_build import write_video
from verl_stvg.data_builders import build
from verl_stvg.data_builders.sets import all_sets
from verl_stvg.data_builders.testing.tiny_parts import make_processor
from verl_stvg.rows.row import RowError
from verl_stvg.rows.settings import frame_store
from verl_stvg.training import dataset as module
from verl_stvg.training.dataset import VideoGroundingDataset, plan_of, read_video
from verl_stvg.video.decode import VideoError, VideoInfo
from verl_stvg.video.plan import plan_video


@pytest.fixture
def made(rows):
    processor = make_processor()
    cache = {"enabled": False}
    config = OmegaConf.create({"max_prompt_length": 512, "check_videos": "exist", "video_cache": cache})
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
    assert made._check_row(made.dataframe[0], "exist", None) == (None, inputs["input_ids"].shape[1])
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


def test_what_is_not_read_may_be_of_any_shape(tmp_path, made):
    """Rows of other builders: a whole number that pandas made a float, text alone in parts."""
    turn = {"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]}
    extra = {"index": 3.0, "duration": "9 s"}
    line = {"data_source": "mine/text", "prompt": [turn], "reward_model": {"ground_truth": "4"}, "extra_info": extra}
    pq.write_table(pa.Table.from_pylist([line]), tmp_path / "text.parquet")
    dataset = VideoGroundingDataset(str(tmp_path / "text.parquet"), made.tokenizer, made.config, made.processor)
    assert dataset[0]["raw_prompt"] == [turn]
    broken = {**line, "extra_info": {**extra, "num_frames": "many"}}
    pq.write_table(pa.Table.from_pylist([broken]), tmp_path / "text.parquet")
    with pytest.raises(RowError, match="extra_info.num_frames: should be a whole number"):
        VideoGroundingDataset(str(tmp_path / "text.parquet"), made.tokenizer, made.config, made.processor)


@pytest.mark.parametrize("rule", ["grid", "qwen_vl_utils"])
def test_rows_of_an_annotation_set_are_read(tmp_path, rule):
    """Root from the manifest, a part of a video, and as many visual tokens as the row says, in the real frame sizes."""
    write_video(tmp_path / "clips/one.mp4", 12, size=(320, 240))
    line = {"video": "one", "query": "It moves.", "start": 1.0, "end": 3.5, "clip": [2.0, 10.0]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "clip": None}) + "\n")
    source = all_sets()["generic"]
    build.build(build.Job(source, tmp_path, tmp_path / "deep/rows", tmp_path / "clips", template=None, rule=rule))
    processor = make_processor()
    processor.video_processor.size = {"shortest_edge": 3136, "longest_edge": 12845056}
    config = OmegaConf.create({"max_prompt_length": 4096, "check_videos": "decode"})
    config.video_cache = {"folder": str(tmp_path / "frames")}
    made = VideoGroundingDataset(str(tmp_path / "deep/rows/train.parquet"), processor.tokenizer, config, processor)
    for row, (start, frames) in zip(made, ((2.0, 16), (0.0, 24)), strict=True):
        _, [(found, metadata)], _ = asyncio.run(made.process_multi_modal_info(row["raw_prompt"], 14, config))
        tensor = found.tensor()
        assert len(tensor) == metadata["total_num_frames"] == frames and found.plan.timestamps[0] == start
        assert found.plan.num_tokens == row["extra_info"]["visual_tokens"]
        options = {"video_metadata": [metadata], "do_sample_frames": False, "return_tensors": "pt"}
        grid = processor.video_processor(videos=[tensor], **options)["video_grid_thw"]
        assert tuple(grid[0].tolist()) == found.plan.grid_thw


def test_one_decode_however_many_ask(rows, tmp_path):
    part = pq.read_table(rows / "val.parquet").to_pylist()[0]["videos"][0]
    part["video"] = str(rows / part["video"])
    store = frame_store({"video_cache": {"folder": str(tmp_path)}})
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: read_video(part, store), range(32)))
    assert store.cache.decodes == 1
    assert all(frames == results[0][0] for frames, _ in results)


def test_a_row_chooses_the_rule_of_its_plan():
    info = VideoInfo(899, 29.97, 640, 360)
    assert plan_of({"video": "x"}, info) == plan_video(899, 29.97, 640, 360)
    chosen = plan_of({"video": "x", "rule": "qwen_vl_utils", "fps": 1.0, "min_frames": 6, "fps_of_nobody": 3}, info)
    assert chosen == plan_video(899, 29.97, 640, 360, rule="qwen_vl_utils", fps=1.0, min_frames=6)


def test_cache_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert frame_store({}).folder == str(tmp_path / "verl_stvg/frames") and frame_store({}).max_bytes is None
    assert frame_store({"video_cache": {"enabled": False, "folder": "/x"}}) is None
    assert frame_store({"video_cache": {"folder": "/x", "max_gb": 2}}).max_bytes == 2 * 10**9
    with pytest.raises(RowError, match="knows no foldr; its keys are"):
        frame_store({"video_cache": {"foldr": "/x"}})


def test_frames_outside_the_processors_limits_are_refused(rows):
    processor = make_processor()
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}
    config = OmegaConf.create({"max_prompt_length": 512, "check_videos": "exist"})
    with pytest.raises(RowError, match="frames of 84x56 lie outside the limits of the model's processor, 784 to 3136"):
        VideoGroundingDataset(str(rows / "val.parquet"), processor.tokenizer, config, processor)


def test_a_replaced_file_is_read_again(rows, tmp_path):
    copy = tmp_path / "clip.mp4"
    part = pq.read_table(rows / "val.parquet").to_pylist()[0]["videos"][0] | {"video": str(copy)}
    copy.write_bytes((rows / "videos/val_00000.mp4").read_bytes())
    first, _ = read_video(part)
    copy.write_bytes((rows / "videos/val_00001.mp4").read_bytes())
    assert not torch.equal(first, read_video(part)[0])


def test_missing_video_names_itself(tmp_path):
    with pytest.raises(VideoError, match="gone.mp4: no such video"):
        read_video({"video": str(tmp_path / "gone.mp4"), "fps": 2.0})


def test_a_file_that_is_no_parquet_is_named(made, tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_text("uid,start,end\n")
    with pytest.raises(RowError, match=r"rows\.parquet: not a readable parquet file of rows"):
        VideoGroundingDataset(str(file), made.tokenizer, made.config, made.processor)
