"""A Qwen2.5-VL small enough for a laptop, warm-started so that reinforcement learning has something to build on.

The architecture, the processor and the chat format are the real ones; only the sizes and the vocabulary are small. A
random model would write noise and earn no reward, so the model is first supervised on clips of its own: the vision
tower learns to name what it sees in each visual token, then, frozen, it feeds the language model, which learns to
answer. That second pass is short: the model keeps to the answer format and grounds only partly. None of its clips is
ever one of a training or held-out set (`synthetic.SPLITS`).

The weights are the same bits on every x86-64 CPU with AVX2 (since 2013). Sums of floats depend on the order and the
instructions that a CPU gets from torch, MKL and the C library, and 500 steps of training make large differences of
small ones. So the weights are made in a process of their own, which is told to use what all these CPUs have
(`SAME_ON_EVERY_CPU`), in a number of steps that no measured score decides, and in two threads that share each batch
whatever the number of cores.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLProcessor
from transformers.video_utils import VideoMetadata

from verl_stvg.base import python
from verl_stvg.base.lock import finished, whole
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.data_builders.testing.same_sums import linear
from verl_stvg.data_builders.testing.tiny_answers import reward_parts, train_answers
from verl_stvg.data_builders.testing.tiny_parts import TinyConfig, make_processor, make_untrained
from verl_stvg.data_builders.testing.tiny_vision import features, render_pool, train_vision
from verl_stvg.patches.transformers_positions import mend_transformers
from verl_stvg.video.decode import read_frames
from verl_stvg.video.plan import plan_video

logger = logging.getLogger(__name__)

SAME_ON_EVERY_CPU = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's matrix products, see `product`: the kernels for AVX2
    "OPENBLAS_NUM_THREADS": "1",  # the order of sums
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",  # other products: the branch that is the same on Intel's and AMD's CPUs
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-FMA_Usable,-FMA4_Usable,-AVX2_Usable",  # exp, log; new, old
}
"""Environment of the process that makes the weights.

What chooses by the CPU in spite of it is not called there: oneDNN (switched off), OpenCV, MKL's square roots, which
torch's optimisers take unless they are fused, and MKL's products where they would take long.
"""
WEIGHTS = "7dc8aa7923c41583"
"""`weights_hash` of the model of `TinyConfig()` and seed 0 with torch 2.11.0; docs/learning.md starts from it."""


@torch.no_grad()
def score(
    model_dir: str | os.PathLike,
    clips: list[synthetic.ClipSpec],
    samples: int = 0,
    seed: int = 0,
    batch: int = 48,
    task: str = "stvg_r1",
) -> dict[str, float]:
    """Mean reward parts of a saved model on clips, by way of real mp4 files, the sampling plan and the processor.

    Args:
        model_dir: folder of the model.
        clips: each is asked about its target.
        samples: answers for each clip at temperature 1; 0: one greedy answer.
        seed: of the samples.
        batch: clips that are answered at a time.
        task: one of `synthetic.TASKS`.

    Returns:
        what `reward_parts` does.
    """
    mend_transformers()
    processor = AutoProcessor.from_pretrained(model_dir)
    model: Any = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(seed)
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(clips), batch):
            chunk = clips[first : first + batch]
            inputs = processor(
                **_processor_inputs(processor, chunk, Path(folder), task), return_tensors="pt", padding=True
            )
            choice = (
                {"do_sample": True, "num_return_sequences": samples, "top_k": 0} if samples else {"do_sample": False}
            )
            output = model.generate(**inputs, max_new_tokens=64, **choice)
            texts += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return reward_parts([clip.target_track for clip in clips for _ in range(max(samples, 1))], texts, task)


def _processor_inputs(processor: Qwen2_5_VLProcessor, clips: list[synthetic.ClipSpec], folder: Path, task: str) -> dict:
    texts, videos, metadata = [], [], []
    for clip in clips:
        path = folder / "clip.mp4"
        synthetic.write_video(path, synthetic.render_frames(clip, range(synthetic.NUM_FRAMES)))
        plan = plan_video(
            synthetic.NUM_FRAMES,
            synthetic.SOURCE_FPS,
            synthetic.WIDTH,
            synthetic.HEIGHT,
            fps=synthetic.GRID_FPS,
            min_pixels=synthetic.FRAME_PIXELS,
            max_pixels=synthetic.FRAME_PIXELS,
        )
        videos.append(torch.from_numpy(read_frames(path, plan)).permute(0, 3, 1, 2))
        metadata.append(VideoMetadata(**plan.metadata()))
        instruction = synthetic.TASKS[task].prompt(clip.target_track.sentence)
        message = {"role": "user", "content": [{"type": "text", "text": instruction}, {"type": "video"}]}
        texts.append(processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    return {
        "text": texts,
        "videos": videos,
        "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False, "do_resize": False},
    }


def make(out_dir: str | os.PathLike, seed: int = 0, config: TinyConfig | None = None, progress: bool = True) -> Path:
    """Make the warm-started model in a folder of its own (weights, processor, `warm_start.json`) and return the folder.

    A model made there before from the same configuration, seed, code and libraries is kept; an outdated one is
    replaced. The folder appears only when everything in it is written.

    Args:
        out_dir: the folder.
        seed: of weights, clips and batches.
        config: sizes and steps; None: `TinyConfig()`.
        progress: whether bars are shown.

    Raises:
        ValueError: `out_dir` exists and is no folder made by this function.
    """
    config = config or TinyConfig()
    out_dir = Path(out_dir)
    key = cache_key(config, seed)
    if not finished(out_dir) or not _is_of(out_dir, key):
        with whole(out_dir, wait=True) as work:
            if not out_dir.exists() or not _is_of(out_dir, key):  # else another process has just made it
                if out_dir.exists():
                    logger.info("%s is outdated and made again", out_dir)
                _write(work, key, seed, config, progress)
                if out_dir.exists():
                    out_dir.rename(work / "outdated")
                    shutil.rmtree(work / "outdated")
    _tell_weights(out_dir, seed, config)
    return out_dir


def _tell_weights(folder: Path, seed: int, config: TinyConfig) -> None:
    """Log the hash of a model's weights, and whether it is the recorded one."""
    found = json.loads((folder / "warm_start.json").read_text(encoding="utf-8"))["weights"]
    logger.info("%s: weights %s", folder, found)
    if (config, seed) == (TinyConfig(), 0) and found != WEIGHTS:
        logger.warning(
            "The tiny model's weights are %s with torch %s on this machine, and %s where docs/learning.md was "
            "measured: your figures may differ from its figures.",
            found,
            torch.__version__,
            WEIGHTS,
        )


def _is_of(folder: Path, key: str) -> bool:
    """Whether a folder holds the model of a key; ValueError where it holds none made here."""
    record = folder / "warm_start.json"
    if not record.is_file():
        raise ValueError(f"{folder} exists and holds no model made here. Remove it, or choose another folder.")
    return json.loads(record.read_text(encoding="utf-8"))["key"] == key


def _write(work: Path, key: str, seed: int, config: TinyConfig, progress: bool) -> None:
    """Make the model and write it into a folder."""
    began = time.monotonic()
    asked = json.dumps({"config": asdict(config), "seed": seed, "progress": progress, "parent": os.getpid()})
    child = python.code(
        "from verl_stvg.data_builders.testing import tiny_model; tiny_model.make_weights(*sys.argv[1:])",
        str(work),
        asked,
    )
    same = dict(SAME_ON_EVERY_CPU)
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        del same["ATEN_CPU_CAPABILITY"], same["OPENBLAS_CORETYPE"]  # other weights than recorded, which is said
    ended = subprocess.run(child, env=python.environment(path=True) | same).returncode
    if ended:
        how = f"signal {-ended} ({signal.Signals(-ended).name})" if ended < 0 else f"status {ended}"
        reason = "was there enough memory (3 GB)?" if ended == -signal.SIGKILL else "see its messages above"
        raise ValueError(f"{work.parent}: the process that makes the tiny model ended with {how}; {reason}")
    taught = work / "taught.json"
    held_out = [synthetic.make_clip(seed, "warm", config.clips + k) for k in range(config.eval_clips)]
    record = {
        "key": key,
        "seed": seed,
        "config": asdict(config),
        "weights": weights_hash(work),
        **json.loads(taught.read_text(encoding="utf-8")),
        "held_out_clips": config.eval_clips,
        "greedy": score(work, held_out, task=config.task),
        "sampled": score(work, held_out, samples=2, seed=seed, task=config.task),
        "seconds": round(time.monotonic() - began, 1),
    }
    taught.unlink()
    (work / "warm_start.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def make_weights(folder: str, asked: str) -> None:
    """Train the model and write it, its processor and `taught.json`; runs in the environment `SAME_ON_EVERY_CPU`.

    `asked` is JSON: the configuration, the seed, whether to show bars, and the process that waits for this one.
    """
    given: dict[str, Any] = json.loads(asked)
    python.end_with_parent(given["parent"])
    config, seed, progress = TinyConfig(**given["config"]), given["seed"], given["progress"]
    torch.backends.mkldnn.set_flags(False)
    nn.functional.linear = linear
    mend_transformers()
    processor = make_processor(config.task)
    model = make_untrained(config, processor.tokenizer, seed)
    clips, frames = render_pool(seed, 0, config.clips, progress)
    accuracy = train_vision(model, processor, clips, frames, config, seed, progress)
    visual = features(model, processor.video_processor, frames)
    loss = train_answers(model, processor.tokenizer, clips, visual, config, seed, progress)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    taught = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vision_accuracy": accuracy,
        "answer_loss": loss,
    }
    (Path(folder) / "taught.json").write_text(json.dumps(taught), encoding="utf-8")


def weights_hash(folder: str | os.PathLike) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a model's weights: names and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(Path(folder) / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_key(config: TinyConfig, seed: int) -> str:
    """Hash of all that determines the model: configuration, seed, the code of the builders, and library versions."""
    digest = hashlib.sha256(json.dumps([asdict(config), seed, torch.__version__, transformers.__version__]).encode())
    world = Path(synthetic.__file__)
    for module in (world, world.with_name("synthetic_world.py"), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:16]
