"""Keys instead of pixels: tokens, positions and pixels as on verl's own path, to the bit, and next to no bytes."""

import asyncio
import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transfer_queue.utils.serial_utils import MsgpackDecoder, MsgpackEncoder
from transformers import Qwen2VLVideoProcessor
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.utils import hf_processor
from verl.utils.model import extract_multi_modal_inputs
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_stvg.data_builders.testing.tiny_parts import make_processor
from verl_stvg.training.agent_loop import KeyedVideoProcessor, SharedTokens, keyed
from verl_stvg.training.dataset import VideoGroundingDataset
from verl_stvg.training.metrics import video_metrics
from verl_stvg.training.worker import StockWorker, VideoGroundingWorker
from verl_stvg.video.decode import VideoError, read_frames
from verl_stvg.video.keys import CachedPixels, Normalisation
from verl_stvg.video.plan import plan_video
from verl_stvg.video.store import FrameStore

SIZES = {"shortest_edge": 28 * 28, "longest_edge": 2**20}


@pytest.fixture
def made(rows, tmp_path):
    """A function that makes the dataset over held-out rows, with the cache on or off."""

    def make(enabled):
        processor = make_processor()
        config = OmegaConf.create(
            {
                "max_prompt_length": 512,
                "check_videos": "exist",
                "video_cache": {"enabled": enabled, "folder": str(tmp_path / "frames")},
            }
        )
        return VideoGroundingDataset(str(rows / "val.parquet"), processor.tokenizer, config, processor)

    return make


def rolled_out(dataset, row, worker_class, patch=14, kind="qwen2_5_vl"):
    """Prompt tokens, multi-modal inputs and positions of one rollout of a row, as verl's worker makes them."""
    if worker_class is VideoGroundingWorker:
        dataset.processor.video_processor = KeyedVideoProcessor(dataset.processor.video_processor)
    images, videos, audios = asyncio.run(dataset.process_multi_modal_info(row["raw_prompt"], patch, dataset.config))
    builder = create_continuous_token_builder(
        tokenizer=dataset.tokenizer, processor=dataset.processor, hf_model_type=kind
    )
    builder = SharedTokens(builder)
    prompt = builder.build_initial_tokens(list(row["raw_prompt"]), videos=videos, images=None, audios=None)
    answer = dataset.tokenizer("<think>x</think><answer>Target ID: 3, Time range: 1.00 to 2.00</answer>")["input_ids"]
    output = AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=answer,
        response_mask=[1] * len(answer),
        multi_modal_data={"videos": videos},
        metrics={},
        extra_fields={},
        num_turns=2,
    )
    worker = object.__new__(worker_class)
    worker.processor, worker.tokenizer, worker.mm_processor_kwargs = dataset.processor, dataset.tokenizer, {}
    ids = torch.tensor([prompt + answer])
    inputs = worker._compute_multi_modal_inputs(output, ids[0])
    positions = worker._compute_position_ids(ids, torch.ones_like(ids), inputs)
    return SimpleNamespace(prompt=prompt, inputs=inputs, positions=positions, output=output, videos=videos)


def test_the_same_as_pixels_to_the_bit(made, model):
    """Same rows, same decoder, same plan: tokens, pixels, grid and positions of the two paths are equal."""
    for k in range(4):
        results = []
        for enabled, worker in ((False, StockWorker), (True, VideoGroundingWorker)):
            dataset = made(enabled)
            dataset.processor = hf_processor(str(model))
            results.append(rolled_out(dataset, dataset[k], worker))
        stock, ours = results
        assert ours.prompt == stock.prompt
        assert torch.equal(ours.positions, stock.positions)
        assert len(pickle.dumps(ours.inputs)) < 0.01 * len(pickle.dumps(stock.inputs))
        assert ours.output.extra_fields["video"]["queue_bytes"] > 0
        batch = [MsgpackDecoder().decode(MsgpackEncoder().encode(ours.inputs)) for _ in range(2)]  # verl's queue
        made_late, shipped = extract_multi_modal_inputs(batch), extract_multi_modal_inputs([stock.inputs] * 2)
        assert made_late.keys() == shipped.keys()
        for name in shipped:
            assert torch.equal(made_late[name], shipped[name]) and made_late[name].dtype == shipped[name].dtype


def test_keys_are_small_and_arrive_as_frames(made):
    dataset = made(True)
    images, videos, _ = asyncio.run(dataset.process_multi_modal_info(dataset[0]["raw_prompt"], 14, dataset.config))
    ((frames, metadata),) = videos
    assert keyed(videos) and metadata == frames.plan.metadata()
    sent = pickle.dumps(videos)
    assert len(sent) < 0.05 * 3 * frames.plan.num_frames * frames.plan.height * frames.plan.width
    ((arrived, same_metadata),) = pickle.loads(sent)
    assert arrived.dtype == torch.uint8 and same_metadata == metadata
    assert torch.equal(arrived.permute(0, 2, 3, 1), torch.from_numpy(read_frames(frames.path, frames.plan)))
    assert copy.deepcopy(frames) is frames


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3))
def test_pixels_are_the_processors_to_the_bit(shapes):
    processor = Qwen2VLVideoProcessor(size=dict(SIZES))
    generator = np.random.default_rng(len(shapes))
    clips = [generator.integers(0, 256, (2 * t, 28 * h, 28 * w, 3), dtype=np.uint8) for t, h, w in shapes]
    theirs = processor(
        videos=[torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips], do_resize=False, return_tensors="pt"
    )["pixel_values_videos"]
    assert torch.equal(Normalisation.of(processor).pixels(clips), theirs)


def test_a_processor_with_other_arithmetic_is_refused():
    class Shifted(Qwen2VLVideoProcessor):
        def rescale_and_normalize(self, *args, **kwargs):
            return super().rescale_and_normalize(*args, **kwargs) + 1e-6

    with pytest.raises(ValueError, match="Shifted makes other pixels"):
        Normalisation.of(Shifted(size=dict(SIZES)))
    with pytest.raises(ValueError, match="not a video processor of the Qwen2-VL kind"):
        Normalisation.of(Qwen2VLVideoProcessor(size=dict(SIZES), do_normalize=False))


def test_concatenation_makes_pixels_in_order(made):
    dataset = made(True)
    normalisation = Normalisation.of(dataset.processor.video_processor)
    parts = []
    for k in (0, 1, 0):
        _, videos, _ = asyncio.run(dataset.process_multi_modal_info(dataset[k]["raw_prompt"], 14, dataset.config))
        frames = videos[0][0]
        parts.append(CachedPixels(((frames.path, frames.plan),), frames.store, normalisation))
    single = [torch.cat([part], dim=0) for part in parts]
    assert torch.equal(torch.cat(parts), torch.cat(single)) and not torch.equal(single[0], single[1])
    assert torch.equal(torch.cat([single[1], parts[0]]), torch.cat([single[1], single[0]]))
    assert torch.cat(parts).shape == (sum(part.shape[0] for part in parts), parts[0].shape[1])
    assert all(part.shape == pixels.shape for part, pixels in zip(parts, single, strict=True))
    with pytest.raises(TypeError):
        torch.cat(parts, dim=1)


def test_a_decoder_that_hangs_costs_its_time_limit(rows, tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text("import time\n\ndef fetch(*args):\n    time.sleep(1e6)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    store = FrameStore(str(tmp_path / "frames"), decoder="stuck:fetch", timeout=1.0)
    path = str(rows / "videos/val_00000.mp4")
    with pytest.raises(VideoError, match="val_00000.mp4: the decoder gives no answer within 1 s"):
        store.frames(path, plan_video(96, 12, 336, 224))
    assert not list((tmp_path / "frames").glob("entries/*/*"))


def test_costs_of_a_step_are_summed():
    assert video_metrics([{"decodes": 2, "queue_bytes": 10}, {}, {"decodes": 1}]) == {
        "video/decodes": 3.0,
        "video/queue_bytes": 10.0,
    }
