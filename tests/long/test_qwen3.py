"""Qwen3-VL: its clock is text, and plan, processor, actor and rollout must write the same.

The live tests run this file as a program, because a vLLM engine wants a process for itself:
`python tests/long/test_qwen3.py MODEL` prints what vLLM and transformers make of the same prompts, as one line of JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as qwen3_resize
from verl.utils import hf_processor
from verl.utils.model import extract_multi_modal_inputs
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens

from tests.support import tiny_qwen3
from tests.support.parity import record, recorded
from tests.training.test_agent_loop import rolled_out
from verl_stvg.rows.prompts import PromptMaker
from verl_stvg.rows.row import RowError
from verl_stvg.training.dataset import VideoGroundingDataset
from verl_stvg.training.worker import StockWorker, VideoGroundingWorker
from verl_stvg.video import positions
from verl_stvg.video.frame_rules import MERGE, QWEN3_PATCH, smart_resize
from verl_stvg.video.keys import Normalisation
from verl_stvg.video.plan import SamplingPlan, plan_video
from verl_stvg.video.store import FrameStore

FACTOR = QWEN3_PATCH * MERGE
RATES = (1.0, 2.0, 2.02, 3.0, 24.0, 29.97)
COUNTS = (1, 2, 7, 16, 61, 120)
PROCESSOR = tiny_qwen3.make_processor()


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return tiny_qwen3.make(tmp_path_factory.mktemp("tiny") / "qwen3")


def noise_plan(frames: int, fps: float, side: int = FACTOR) -> SamplingPlan:
    return SamplingPlan(tuple(range(frames)), tuple(k / fps for k in range(frames)), side, side, fps, patch=QWEN3_PATCH)


def message(*parts) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def asked(processor, messages, plans):
    """The processor's tensors of a prompt with videos of noise."""
    text = processor.apply_chat_template(positions.fit(messages, processor), add_generation_prompt=True, tokenize=False)
    generator = np.random.default_rng(0)
    videos = [generator.integers(0, 256, (p.num_frames, 3, p.height, p.width), dtype=np.uint8) for p in plans]
    return text, processor(
        text=[text],
        videos=[torch.from_numpy(video) for video in videos],
        video_metadata=[plan.metadata() for plan in plans],
        do_sample_frames=False,
        return_tensors="pt",
    )


# --- plan -------------------------------------------------------------------------------------------------------------


@given(
    frames=st.integers(4, 3000),
    fps=st.sampled_from([1.0, 2.0, 4.0]),
    size=st.tuples(st.integers(64, 2000), st.integers(64, 2000)),
    rule=st.sampled_from(["grid", "qwen_vl_utils"]),
    total=st.sampled_from([None, 2048 * FACTOR**2, 24_576 * FACTOR**2]),
)
def test_sizes_are_fixed_points_of_the_processor(frames, fps, size, rule, total):
    assume(frames / 25.0 * fps >= 2.001 and max(size) / min(size) < 20)
    plan = plan_video(frames, 25.0, *size, fps=fps, rule=rule, total_pixels=total, patch=QWEN3_PATCH)
    assert plan.height % FACTOR == plan.width % FACTOR == 0
    whole = plan.num_frames * plan.height * plan.width
    limits = {"min_pixels": min(whole, 4096), "max_pixels": max(whole, 25_165_824)}  # as Qwen3-VL ships
    assert qwen3_resize(plan.num_frames, plan.height, plan.width, factor=FACTOR, **limits) == (plan.height, plan.width)
    assert plan.grid_thw == (plan.num_units, plan.height // 16, plan.width // 16)
    assert plan.num_tokens == plan.num_units * plan.height * plan.width // FACTOR**2


@given(height=st.integers(32, 2000), width=st.integers(32, 2000), low=st.integers(1, 64), room=st.floats(2, 64))
def test_sizes_are_those_of_qwen_vl_utils(height, width, low, room):
    qwen = pytest.importorskip("qwen_vl_utils.vision_process")
    assume(max(height, width) / min(height, width) <= 20)
    budget = low * FACTOR**2, low * room * FACTOR**2
    expected = qwen.smart_resize(height, width, FACTOR, *budget)
    assert smart_resize(height, width, *budget, FACTOR) == tuple(max(side, FACTOR) for side in expected)


def test_a_row_that_names_no_budget_costs_as_many_tokens_as_with_qwen2_5():
    both = [plan_video(600, 30.0, 1920, 1080, patch=patch) for patch in (14, QWEN3_PATCH)]
    assert both[0].grid_thw == both[1].grid_thw and both[1].height == both[0].height // 28 * 32


def test_the_patch_shows_in_the_cache_only_through_the_size():
    """Entries of Qwen2.5-VL stay valid, and frames of one size serve both models."""
    plan = noise_plan(4, 2.0)
    assert "patch" not in plan.identity and "height" in plan.identity
    assert plan.masked(shown=(0, 1)).patch == QWEN3_PATCH


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("frames", [2, 16, 62, 120])
def test_times_and_tokens_are_the_processors(frames, fps):
    plan = noise_plan(frames, fps)
    messages = [message({"type": "video"}, "When?")]
    text, inputs = asked(PROCESSOR, messages, [plan])
    written = PROCESSOR.tokenizer.decode(inputs["input_ids"][0])
    assert "".join(f"{time}<|vision_start|><|video_pad|><|vision_end|>" for time in positions.times_of(plan)) in written
    before = len(PROCESSOR.tokenizer(text)["input_ids"])
    assert inputs["input_ids"].shape[1] == before + positions.added_tokens(plan, PROCESSOR)


def test_the_clock_of_a_part_starts_at_zero():
    plan = noise_plan(20, 2.0).masked(shown=(3, 5))
    assert positions.times_of(plan) == ["<0.2 seconds>", "<1.2 seconds>"]


@settings(max_examples=50)
@given(
    texts=st.lists(st.text(st.sampled_from("ab <>.!1\n"), max_size=6), min_size=1, max_size=4),
    counts=st.lists(st.sampled_from([2, 4, 6]), min_size=4, max_size=4),
    fps=st.sampled_from([0.5, 2.0, 60.0]),
    image_first=st.booleans(),
)
def test_folding_is_what_the_template_wrote(texts, counts, fps, image_first):
    """Whatever stands around them: videos next to each other, times like the one before, text that looks like one."""
    plans = [noise_plan(count, fps) for count, _ in zip(counts, texts, strict=False)]
    parts = [part for text in texts for part in ((text,) if text else ()) + ({"type": "video"},)]
    text, inputs = asked(PROCESSOR, [message("<1.0 seconds>", *parts, "When?")], plans)
    whole = inputs["input_ids"][0].tolist()
    short = PROCESSOR.tokenizer(text)["input_ids"]
    assert positions.folded(whole, PROCESSOR) == short
    assert positions.folded(qwen2_5_vl_dedup_image_tokens(whole, PROCESSOR), PROCESSOR) == short


def test_images_are_not_folded():
    tokens = PROCESSOR.tokenizer("a<|vision_start|><|image_pad|><|image_pad|><|vision_end|>b")["input_ids"]
    assert positions.folded(tokens, PROCESSOR) == tokens


def test_a_time_joined_with_the_text_before_it_is_an_error_and_a_line_break_prevents_it():
    processor = tiny_qwen3.make_processor()
    processor.tokenizer.add_tokens(["?<"])  # Qwen's tokenizer has such tokens: `><` and others
    plan = noise_plan(4, 2.0)
    text = processor.apply_chat_template([message("When?", {"type": "video"})], tokenize=False)
    video = torch.zeros(4, 3, FACTOR, FACTOR, dtype=torch.uint8)
    inputs = processor(text=[text], videos=[video], video_metadata=[plan.metadata()], do_sample_frames=False)
    with pytest.raises(ValueError, match="no time of its own, but .*When\\?<0.2 seconds>.*put a line break"):
        positions.folded(inputs["input_ids"][0], processor)
    text, inputs = asked(processor, [message("When?", {"type": "video"})], [plan])
    assert "When?\n<|vision_start|>" in text
    assert positions.folded(inputs["input_ids"][0].tolist(), processor) == processor.tokenizer(text)["input_ids"]


def test_messages_of_other_models_are_left_alone():
    from verl_stvg.data_builders.testing.tiny_parts import make_processor

    messages = [{"role": "system", "content": "Hi"}, message("When?", {"type": "video", "video": "a.mp4"})]
    assert positions.fit(messages, make_processor()) == messages
    assert positions.fit(messages, PROCESSOR)[1]["content"][1:] == [
        {"type": "text", "text": "\n"},
        {"type": "video", "video": "a.mp4", "patch": 16},
    ]
    assert len(messages[1]["content"]) == 2  # and those given stay as they were


def test_verl_still_needs_the_mend():
    """When this fails, verl folds Qwen3-VL's videos itself: raise the pin and delete `mend_server`."""
    text, inputs = asked(PROCESSOR, [message({"type": "video"}, "When?")], [noise_plan(6, 2.0)])
    cut = qwen2_5_vl_dedup_image_tokens(inputs["input_ids"][0].tolist(), PROCESSOR)
    assert cut != PROCESSOR.tokenizer(text)["input_ids"]
    assert cut.count(PROCESSOR.video_token_id) == 3  # for one video


def test_the_mend_is_in_verls_server(run_python):
    code = """
import verl.workers.rollout.vllm_rollout.vllm_async_server as server
print(server.qwen2_5_vl_dedup_image_tokens.__module__)
"""
    assert run_python(code).stdout.split()[-1] == "verl_stvg.patches.vllm_positions"


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm_processor(qwen3):
    """vLLM's own processor of prompts; it needs no engine."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    limits = {"video": 2, "image": 1}
    config = ModelConfig(str(qwen3), dtype="float32", max_model_len=8192, limit_mm_per_prompt=limits)
    return MULTIMODAL_REGISTRY.create_processor(config)


def as_vllm_reads(processor, prompt, data):
    """Tokens and positions that vLLM makes of a prompt, and the values it gives its model."""
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    made = processor.apply(ProcessorInputs(prompt, processor.info.parse_mm_data(data)), TimingContext())
    features = [
        SimpleNamespace(mm_position=place, modality=kind, data=item)
        for kind, items in made["mm_kwargs"].items()
        for place, item in zip(made["mm_placeholders"][kind], items, strict=True)
    ]
    ids, config = made["prompt_token_ids"], processor.info.get_hf_config()
    places, _ = Qwen3VLForConditionalGeneration._get_mrope_input_positions(ids, features, config)
    return ids, places.tolist(), [feature.data for feature in features]


def cases():
    """Videos of noise at many rates and lengths, and an image, by name."""
    generator = np.random.default_rng(0)

    def clip(frames: int, fps: float):
        pixels = torch.from_numpy(generator.integers(0, 256, (frames, 3, 64, 32), dtype=np.uint8))
        return pixels, {"fps": fps, "total_num_frames": frames, "frames_indices": list(range(frames))}

    found = {f"{frames} frames at {fps} fps": [clip(frames, fps)] for fps in RATES for frames in COUNTS}
    found |= {"two videos": [clip(6, 2.0), clip(4, 2.0)], "a long one": [clip(768, 2.0)]}
    image = Image.fromarray(generator.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    return found | {"an image": image, "text alone": []}


def ask_both(processor, media):
    """What transformers' processor makes of a case, what vLLM is given, and the prompt in three forms for it."""
    videos, images = (media, None) if isinstance(media, list) else ([], [media])
    parts = [{"type": "image"}] if images else [{"type": "video"} for _ in videos]
    messages = positions.fit([message('Find when "it moves".', *parts)], processor)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = {"videos": [video for video, _ in videos], "do_sample_frames": False} if videos else {}
    if videos:  # transformers makes the lists of odd videos longer, in place
        given["video_metadata"] = [{**one, "frames_indices": list(one["frames_indices"])} for _, one in videos]
    inputs = processor(text=[text], images=images, return_tensors="pt", **given)
    cut = qwen2_5_vl_dedup_image_tokens(inputs["input_ids"][0].tolist(), processor)
    # as text, as `verl_stvg.inference.engines` asks, and as verl's server does with the mend
    prompts = [text, processor.tokenizer(text)["input_ids"], positions.folded(cut, processor)]
    return dict(inputs), {"image": images} if images else {"video": videos} if videos else {}, prompts


@pytest.mark.long
def test_transformers_and_vllm_make_the_same_of_a_prompt(qwen3, vllm_processor):
    """Tokens, positions and pixels, whichever way the prompt is given, at any rate and length."""
    processor = hf_processor(str(qwen3))
    made = cases()
    assert len(made) == len(RATES) * len(COUNTS) + 4
    for name, media in made.items():
        inputs, data, prompts = ask_both(processor, media)
        grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
        ours, _ = processor.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)
        for prompt in prompts if data else ():
            ids, places, values = as_vllm_reads(vllm_processor, prompt, data)
            assert ids == inputs["input_ids"][0].tolist(), name
            assert places == ours[:, 0].tolist(), name
            key = "pixel_values_videos" if "video" in data else "pixel_values"
            assert torch.equal(torch.cat([value[key].data for value in values]), inputs[key]), name
        visual = inputs["mm_token_type_ids"][0] == 2
        if visual.any():  # a temporal position for each unit, and text in between
            assert len(set(ours[0, 0, visual].tolist())) == inputs["video_grid_thw"][:, 0].sum()


def test_without_the_mend_vllm_reads_another_prompt(vllm_processor):
    """The times twice, and placeholders that no pixels belong to."""
    inputs, data, _ = ask_both(PROCESSOR, cases()["7 frames at 2.0 fps"])
    whole = inputs["input_ids"][0].tolist()
    ids, _, _ = as_vllm_reads(vllm_processor, qwen2_5_vl_dedup_image_tokens(whole, PROCESSOR), data)
    written = [PROCESSOR.tokenizer.decode(tokens) for tokens in (whole, ids)]
    assert [text.count(" seconds>") for text in written] == [4, 8]
    assert ids.count(PROCESSOR.video_token_id) == whole.count(PROCESSOR.video_token_id) + 3


@pytest.mark.long
def test_verls_forward_is_the_models(run_python, qwen3):
    """verl replaces the model's forward, for transformers of another version, and gives it positions of four axes."""
    code = """
import sys, torch
from transformers import Qwen3VLForConditionalGeneration
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils import hf_processor
from tests.long.test_qwen3 import ask_both, cases
processor = hf_processor(sys.argv[1])
model = Qwen3VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
inputs, _, _ = ask_both(processor, cases()["16 frames at 2.0 fps"])
types = inputs.pop("mm_token_type_ids")
with torch.no_grad():
    stock = model(mm_token_type_ids=types, **inputs).logits
    places, _ = processor.get_rope_index(inputs["input_ids"], types, video_grid_thw=inputs["video_grid_thw"])
    text = torch.arange(types.shape[1]).expand(1, 1, -1)
    apply_monkey_patch(model, use_remove_padding=False)
    theirs = model(position_ids=torch.cat([text, places]), **inputs, use_cache=False).logits
    wrong = model(position_ids=torch.cat([text, places.roll(1, -1)]), **inputs, use_cache=False).logits
print((stock - theirs).abs().max().item(), (stock - wrong).abs().max().item())
"""
    right, wrong = map(float, run_python(code, qwen3).stdout.split()[-2:])
    assert right < 1e-4 and wrong > 1e-2


# --- rows, keys and pixels --------------------------------------------------------------------------------------------


@pytest.fixture
def made(rows, tmp_path, qwen3):
    """A function that makes the dataset over held-out rows, with the cache on or off."""

    def make(enabled, **data):
        processor = hf_processor(str(qwen3))
        cache = {"enabled": enabled, "folder": str(tmp_path / "frames")}
        config = OmegaConf.create({"max_prompt_length": 512, "video_cache": cache, **data})
        return VideoGroundingDataset(str(rows / "val.parquet"), processor.tokenizer, config, processor)

    return make


def rolled(dataset, row, worker_class):
    return rolled_out(dataset, row, worker_class, QWEN3_PATCH, "qwen3_vl")


def test_keys_are_the_same_as_pixels_to_the_bit(made):
    for k in range(3):
        results = []
        for enabled, worker in ((False, StockWorker), (True, VideoGroundingWorker)):
            dataset = made(enabled)
            results.append(rolled(dataset, dataset[k], worker))
        stock, ours = results
        assert ours.prompt == stock.prompt and torch.equal(ours.positions, stock.positions)
        made_late, shipped = (extract_multi_modal_inputs([one.inputs] * 2) for one in (ours, stock))
        assert made_late.keys() == shipped.keys()
        assert all(torch.equal(made_late[name], shipped[name]) for name in shipped)


def test_pixels_are_the_processors_to_the_bit():
    generator = np.random.default_rng(0)
    clips = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in [(2, 32, 64, 3), (6, 64, 32, 3)]]
    processor = PROCESSOR.video_processor
    videos = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
    theirs = processor(videos=videos, do_resize=False, do_sample_frames=False, return_tensors="pt")[
        "pixel_values_videos"
    ]
    assert torch.equal(Normalisation.of(processor).pixels(clips), theirs)


def test_prompt_lengths_are_known_without_decoding(made, rows, tmp_path):
    """The check's arithmetic, the generation's, and the processor's tokens of the decoded video are one number."""
    dataset = made(False)
    prompt = rolled(dataset, dataset[0], StockWorker).prompt
    assert made(True)._check_row(dataset.dataframe[0], "exist", None) == (None, len(prompt))
    maker = PromptMaker(PROCESSOR, FrameStore(str(tmp_path / "frames")))
    assert maker({**dataset.dataframe[0], "video_root": str(rows)}).num_tokens == len(prompt)
    with pytest.raises(RowError, match=f"prompt of {len(prompt)} tokens"):
        made(True, max_prompt_length=64, filter_overlong_prompts=False)


def test_limits_of_the_processor_are_for_the_whole_video(made):
    processor = made(True).processor
    processor.video_processor.size = {"shortest_edge": 1024, "longest_edge": 10_000}
    dataset = made(True)
    dataset.processor = processor
    problem, _ = dataset._check_row(dataset.dataframe[0], "exist", None)
    assert "16 frames of 64x32 lie outside the limits of the model's processor, 1024 to 10000 pixels" in problem


# --- live -------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_live_engine_and_transformers_read_the_same(qwen3):
    """Tokens, positions and probabilities at any rate and length, whichever way the prompt is given to vLLM."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.long.test_qwen3", str(qwen3)],
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        cwd=Path(__file__).resolve().parent.parent.parent,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    cases = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"')))
    assert len(cases) == len(RATES) * len(COUNTS) + 4
    for name, case in cases.items():
        assert case["tokens"] and case["positions"], f"{name}: {case}"
        assert case["difference"] < 1e-4, f"{name}: {case}"


@pytest.mark.long
def test_two_steps_on_the_engine(tmp_path, rows, qwen3):
    """verl's trainer, actor and rollout; a random model earns nothing, so the entropy is what moves it."""
    from tests.long.test_variants import PROMPTS, run

    run(
        tmp_path,
        rows,
        qwen3,
        "qwen3_vl_4b",
        "data.max_prompt_length=320",
        "actor_rollout_ref.rollout.max_model_len=384",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.actor.entropy_coeff=0.1",
        "actor_rollout_ref.rollout.n=2",
    )


def main(folder: str) -> None:
    """Give the same prompts to vLLM and transformers."""
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # lets functions be sent to the worker
    from vllm import LLM, SamplingParams

    processor = hf_processor(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    engine = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=8192,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        limit_mm_per_prompt={"video": 2, "image": 1},
    )
    engine.collective_rpc(record)
    found = {}
    for name, media in cases().items():
        inputs, data, prompts = ask_both(processor, media)
        ids = inputs.pop("input_ids")
        prompts = [{"prompt": one} if isinstance(one, str) else {"prompt_token_ids": one} for one in prompts]
        greedy = SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
        prompts = [prompt | ({"multi_modal_data": data} if data else {}) for prompt in prompts]
        outputs = engine.generate(prompts, greedy, use_tqdm=False)
        (seen,) = engine.collective_rpc(recorded)
        types = inputs.pop("mm_token_type_ids")
        grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
        expected = processor.get_rope_index(ids, types, **grids)[0][:, 0].tolist()
        difference = 0.0
        for output in {tuple(output.outputs[0].token_ids): output for output in outputs}.values():
            sampled = list(output.outputs[0].token_ids)
            full = torch.cat([ids[0], torch.tensor(sampled)])[None]
            padded = torch.cat([types, torch.zeros(1, len(sampled), dtype=types.dtype)], dim=1)
            with torch.no_grad():
                rest = inputs | {"attention_mask": torch.ones_like(full), "mm_token_type_ids": padded}
                logits = model(input_ids=full, **rest).logits[0, -len(sampled) - 1 : -1]
            ours = torch.log_softmax(logits, -1).gather(1, torch.tensor(sampled)[:, None])[:, 0]
            theirs = [one[token].logprob for one, token in zip(output.outputs[0].logprobs, sampled, strict=True)]
            difference = max(difference, (ours.exp() - torch.tensor(theirs).exp()).abs().max().item())
        found[name] = {
            "tokens": all(output.prompt_token_ids == ids[0].tolist() for output in outputs),
            "positions": all(one == expected for one in seen[-3:]),
            "difference": difference,
        }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
