"""What preparing one prompt costs beside stock verl: n rollouts of one clip through verl's own agent-loop worker.

Both sides run verl's code from the row to the put into the queue; generation alone is replaced by a fixed answer. The
stock side is verl's dataset class, agent loop and worker, with qwen-vl-utils and decord (the extra `bench`); it is
spared the third processor call per rollout that reward workers cost it. Processor seconds include decoding processes.
"""

import asyncio
import importlib.util
import pickle
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import psutil
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from qwen_vl_utils import vision_process
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.workers.rollout.replica import TokenOutput

from benchmarks import Options, Row
from benchmarks.decode import write_clip
from verl_stvg.data_builders.testing import tiny_parts
from verl_stvg.training.agent_loop import SharedTokens
from verl_stvg.training.worker import StockWorker, VideoGroundingWorker
from verl_stvg.video.once import Once

N = 8
READER = "decord"
"""Of qwen-vl-utils on verl's side, which would take torchcodec where both are installed."""
CLIPS = {"480x360, 30 s": (480, 360, 30), "1280x720, 20 s": (1280, 720, 20)}
ROUNDS = 3


class FixedAnswer:
    """Stands for the client of vLLM's servers; counts the bytes it would have sent for videos."""

    def __init__(self):
        self.sent = 0

    async def generate(self, video_data=None, **kwargs) -> TokenOutput:
        """Thirty tokens."""
        self.sent += len(pickle.dumps(video_data))
        return TokenOutput(token_ids=list(range(5, 35)), log_probs=[-0.1] * 30)


class Queue:
    """Stands for verl's TransferQueue; counts the bytes of what is put."""

    def __init__(self):
        self.bytes = 0

    async def async_kv_put(self, **kwargs) -> None:
        """Status of a prompt."""

    async def async_kv_batch_put(self, fields, **kwargs) -> None:
        """Trajectories."""
        self.bytes += len(pickle.dumps(fields))


def require_reader() -> None:
    """End with one sentence where verl's side could not decode."""
    if importlib.util.find_spec(READER) is None:
        raise SystemExit(
            f"verl's own data path decodes with {READER}, which is not installed here; install the extra that has it: "
            "uv pip install -e '.[cpu,bench]'"
        )


def configuration(folder: Path, ours: bool):
    """verl's configuration of STVG-R1's recipe at tiny size with room for real clips, for our side or the stock one."""
    overrides = [
        "+variant=tiny",
        f"actor_rollout_ref.model.path={folder}/model",
        "data.train_files=none",
        "data.val_files=none",
        f"++data.video_cache.folder={folder}/frames",
        "data.max_prompt_length=32768",
        "actor_rollout_ref.rollout.max_model_len=33000",
    ]
    with initialize_config_module("verl_stvg.recipes.stvg_r1", version_base=None):
        config = compose("stvg_r1", overrides)
    if not ours:
        with open_dict(config):
            config.data.custom_cls.path = None
            config.data.custom_cls.name = None
            config.actor_rollout_ref.rollout.agent.default_agent_loop = "single_turn_agent"
    return config


def model_folder(folder: Path) -> None:
    """A model's files as the worker reads them: the tiny one's, with the size limits of Qwen2.5-VL's own."""
    processor = tiny_parts.make_processor()
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"shortest_edge": 3136, "longest_edge": 12845056}
    tiny_parts.make_untrained(tiny_parts.TinyConfig(), processor.tokenizer, 0).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")


def processor_seconds() -> float:
    """Of this process, its threads and its living children."""
    times = [psutil.Process().cpu_times(), *(child.cpu_times() for child in psutil.Process().children(recursive=True))]
    return sum(t.user + t.system for t in times)


def one_prompt(worker, agent: str, clip: Path) -> tuple[float, float, int, int]:
    """Roll one prompt out N times: processor seconds, seconds, bytes per trajectory in the queue, bytes to vLLM."""
    queue = Queue()
    worker.llm_client.sent = 0
    content = [
        {"type": "text", "text": "When does the shape cross?"},
        {"type": "video", "video": str(clip), "fps": 2.0},
    ]
    prompt = {
        "uid": "u",
        "raw_prompt": [{"role": "user", "content": content}],
        "agent_name": agent,
        "global_steps": 0,
        "index": 0,
    }
    trajectory = {"step": 0, "sample_index": 0, "rollout_n": N, "validate": False}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True}
    with mock.patch.object(agent_loop_tq, "tq", queue), mock.patch.object(agent_loop_tq.logger, "error", _fail):
        processor, wall = processor_seconds(), time.perf_counter()
        asyncio.run(worker._run_prompt(prompt, sampling, trajectory))
        processor, wall = processor_seconds() - processor, time.perf_counter() - wall
    if not queue.bytes:
        raise RuntimeError("nothing was put into the queue")
    return processor, wall, queue.bytes // N, worker.llm_client.sent // N


def _fail(message, exc_info=None, **kwargs):
    raise RuntimeError(message) from (exc_info[1] if exc_info else None)


def measure(options: Options) -> Iterable[Row]:
    """Yield all rows, clip by clip."""
    require_reader()
    reader = mock.patch.object(vision_process, "FORCE_QWENVL_VIDEO_READER", READER)
    with tempfile.TemporaryDirectory() as name, reader:
        folder = Path(name)
        model_folder(folder)
        with mock.patch.object(agent_loop_tq.tq, "init"):
            stock = StockWorker(configuration(folder, ours=False), FixedAnswer())
            ours = VideoGroundingWorker(configuration(folder, ours=True), FixedAnswer())
        for label, (width, height, seconds) in CLIPS.items():
            yield from _clip(folder, stock, ours, label, width, height, seconds)


def _clip(folder, stock, ours, label, width, height, seconds) -> Iterator[Row]:
    clips = [folder / f"{width}-{k}.mp4" for k in range(ROUNDS)]
    write_clip(clips[0], width, height, seconds)
    for k, clip in enumerate(clips[1:], 1):  # other bytes, the same frames: each is cold once
        clip.write_bytes(clips[0].read_bytes() + bytes([0, 0, 0, 9]) + b"free" + bytes([k]))
    cold, warm, other = [], [], []
    for clip in clips:
        SharedTokens._prompts = Once(64 * 2**20, size=lambda ids: 8 * len(ids))
        cold.append(one_prompt(ours, "video_grounding", clip))
        SharedTokens._prompts = Once(64 * 2**20, size=lambda ids: 8 * len(ids))
        warm.append(one_prompt(ours, "video_grounding", clip))
        other.append(one_prompt(stock, "single_turn_agent", clip))
    cold, warm, other = (tuple(map(min, zip(*runs, strict=True))) for runs in (cold, warm, other))
    title = f"{label}, n={N}: "
    ratio = other[0] / warm[0]
    yield Row(f"{title}processor s per prompt, warm cache", warm[0], other[0], ratio, ">= 50x", ratio >= 50)
    ratio = other[0] / cold[0]
    yield Row(f"{title}processor s per prompt, cold cache", cold[0], other[0], ratio, ">= 8x", ratio >= 8)
    ratio = other[2] / warm[2]
    yield Row(f"{title}bytes per trajectory in the queue", warm[2], other[2], ratio, ">= 100x", ratio >= 100)
    yield Row(f"{title}bytes per rollout to vLLM's server", warm[3], other[3], other[3] / warm[3])
