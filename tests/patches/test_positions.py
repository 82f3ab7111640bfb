"""One clock: actor and rollout read the same positions, and each mend says when upstream no longer needs it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig

from tests.conftest import ROOT
from verl_stvg.patches import transformers_positions
from verl_stvg.video import positions


class Carrier:
    """What verl binds the function to: anything with the model's configuration."""

    config = Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2})  # as Qwen2.5-VL ships


def sequence(before: int, grid: tuple[int, int, int], after: int):
    t, h, w = grid
    tokens = t * h * w // 4
    types = torch.tensor([[0] * before + [2] * tokens + [0] * after])
    return torch.ones_like(types), types, torch.tensor([grid])


def temporal(before, grid, after=3, seconds=None):
    ids, types, thw = sequence(before, grid, after)
    kwargs = {} if seconds is None else {"second_per_grid_ts": torch.tensor([seconds])}
    result, deltas = positions.get_rope_index(Carrier, ids, types, video_grid_thw=thw, **kwargs)
    per_unit = grid[1] * grid[2] // 4
    units = result[0, 0, before : before + grid[0] * per_unit : per_unit] - before
    return units.tolist(), result[:, 0, -after:].tolist(), deltas.item()


def test_a_second_is_two_positions_and_text_follows_the_last():
    units, text, delta = temporal(5, (8, 4, 6), after=3)
    assert units == [0, 2, 4, 6, 8, 10, 12, 14]
    assert text == [[20, 21, 22]] * 3
    assert delta == 23 - (5 + 48 + 3)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1.0, [0, 2, 4, 6]), (0.5, [0, 1, 2, 3]), (2.0, [0, 4, 8, 12]), (0.99, [0, 1, 3, 5]), (1.0 / 12, [0, 0, 0, 0])],
)
def test_seconds_per_unit_are_not_truncated_before_they_are_multiplied(seconds, expected):
    assert temporal(0, (4, 4, 4), seconds=seconds)[0] == expected


def test_wide_frames_push_the_text_further_than_short_time():
    assert temporal(2, (1, 4, 20), after=1)[1] == [[2 + 10]] * 3  # ten columns, one unit


def test_padding_keeps_zero_and_image_has_one_unit():
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    result, deltas = positions.get_rope_index(
        Carrier, torch.ones_like(types), types, image_grid_thw=torch.tensor([[1, 4, 4]]), attention_mask=mask
    )
    assert result[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 3]
    assert result[1, 0].tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert result[:, 1].tolist() == [list(range(8))] * 3
    assert deltas.tolist() == [[-2], [0]]


def test_a_grid_that_does_not_fit_the_prompt_is_an_error():
    ids, types, _ = sequence(2, (2, 4, 4), 1)
    with pytest.raises(ValueError, match="needs 16 placeholder tokens"):
        positions.get_rope_index(Carrier, ids, types, video_grid_thw=torch.tensor([[4, 4, 4]]))


@pytest.mark.parametrize("grid", [(8, 4, 6), (1, 4, 20), (16, 8, 8), (384, 4, 4)])
@pytest.mark.parametrize("seconds", [None, 0.5, 0.99, 1.0, 2.0])
def test_same_as_vllm(grid, seconds):
    """vLLM's own arithmetic, once it is given the seconds, is the reference for the rollout."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    ids, types, thw = sequence(7, grid, 5)
    data = {"video_grid_thw": SimpleNamespace(data=thw[0])}
    if seconds is not None:
        data["second_per_grid_ts"] = SimpleNamespace(data=torch.tensor(seconds))
    feature = SimpleNamespace(mm_position=SimpleNamespace(offset=7), modality="video", data=data)
    model = SimpleNamespace(config=Carrier.config)
    model.iter_mm_grid_thw = lambda features: Model.iter_mm_grid_thw(model, features)
    theirs, delta = Model.get_mrope_input_positions(model, ids[0].tolist(), [feature])
    kwargs = {} if seconds is None else {"second_per_grid_ts": [seconds]}
    ours, deltas = positions.get_rope_index(Carrier, ids, types, video_grid_thw=thw, **kwargs)
    assert np.array_equal(ours[:, 0].numpy(), theirs.numpy())
    assert deltas.item() == delta


def test_upstream_transformers_still_needs_the_mend(run_python):
    """When this fails, transformers has mended its positions: raise the pin and delete `mend_transformers`."""
    code = """
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
class Carrier: config = Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2})
Carrier.get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids
types = torch.tensor([[0] * 5 + [2] * 48 + [0] * 3])
def stock(**kw):
    grids = torch.tensor([[8, 4, 6]])
    return Qwen2_5_VLModel.get_rope_index(Carrier(), torch.ones_like(types), types, video_grid_thw=grids, **kw)[0]
print(stock()[0, 0, -3:].tolist(), stock(second_per_grid_ts=torch.tensor([0.99]))[0, 0, 5:53:6].tolist())
"""
    text, clock = json.loads("[" + run_python(code).stdout.strip().splitlines()[-1].replace("] [", "],[") + "]")
    assert text != [20, 21, 22], "transformers puts the text after a video right again"
    assert clock == [5] * 8, "transformers no longer casts the seconds to an integer"


def test_upstream_vllm_still_needs_the_mend(run_python):
    """When this fails, vLLM forwards video metadata itself: raise the pin and delete `mend_vllm`."""
    code = "from verl_stvg.patches.vllm_positions import vllm_forwards_metadata as f; print(f())"
    assert run_python(code).stdout.strip().splitlines()[-1] == "False"


CLOCKS = [(fps, seconds) for fps in (0.7, 1.9, 3.0, 29.97 / 12) for seconds in (10, 1000)]
"""Frames per second and length of a video."""
SEEN = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from transformers import AutoProcessor
from vllm.config import ModelConfig
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from verl_stvg.patches import transformers_positions, vllm_positions
from verl_stvg.video import positions

folder, clocks = sys.argv[1], json.loads(sys.argv[2])
ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", Model)  # looked at here, not by a process of vLLM's
transformers_positions.mend_transformers()
vllm_positions.mend_vllm()
theirs = AutoProcessor.from_pretrained(folder)
text = "<|im_start|>user\\n<|vision_start|><|video_pad|><|vision_end|>When?<|im_end|>\\n"
same = {}
for dtype in ("float32", "bfloat16"):
    config = ModelConfig(folder, dtype=dtype, max_model_len=4096)
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    me = SimpleNamespace(config=config.hf_config)
    me.iter_mm_grid_thw = lambda features: Model.iter_mm_grid_thw(me, features)
    for fps, seconds in clocks:
        frames = np.zeros((round(fps * seconds) // 2 * 2, 28, 28, 3), np.uint8)
        clock = {"fps": fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
        items = processor.info.parse_mm_data({"video": [(frames, clock)]})
        asked = ProcessorInputs(text, items, None, hf_processor_mm_kwargs={}, tokenization_kwargs={})
        out = processor.apply(asked, timing_ctx=TimingContext(enabled=False))
        item = out["mm_kwargs"]["video"][0]
        (place,) = out["mm_placeholders"]["video"]
        feature = SimpleNamespace(data=item, modality="video", mm_position=place)
        rollout, _ = Model.get_mrope_input_positions(me, out["prompt_token_ids"], [feature])
        given = theirs(text=[text], videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], video_metadata=[clock],
                       do_sample_frames=False, return_tensors="pt")
        assert given["input_ids"][0].tolist() == out["prompt_token_ids"] and "video_metadata" not in given
        actor, _ = positions.get_rope_index(
            me, given["input_ids"], given["mm_token_type_ids"], video_grid_thw=given["video_grid_thw"],
            **transformers_positions.get_rope_index_kwargs(None, given),
        )
        units = actor[0, 0, place.offset : place.offset + place.length].numpy() - place.offset
        right = np.floor(np.arange(len(frames) // 2) * (2 / fps) * config.hf_config.vision_config.tokens_per_second)
        same[f"{dtype} {fps} {seconds}"] = [
            bool((actor[:, 0] == rollout).all()), bool((units[:: len(units) // len(right)] == right).all())
        ]
print(json.dumps(same))
"""


@pytest.mark.slow
def test_actor_and_rollout_have_one_clock_whatever_the_type_of_the_weights(run_python, model):
    done = run_python(SEEN, model, json.dumps(CLOCKS), VLLM_PLUGINS="", VLLM_CPU_KVCACHE_SPACE="1")
    same = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(same) == 2 * len(CLOCKS) and all(map(all, same.values())), same


def test_upstream_vllm_still_rounds_the_seconds():
    """When this fails, vLLM may leave them alone: see whether `mend_vllm` still has to put them right."""
    from vllm.multimodal.processing.context import InputProcessingContext

    context = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.bfloat16))
    given = {"second_per_grid_ts": torch.tensor([2 / 3], dtype=torch.float64)}
    (found,) = InputProcessingContext._postprocess_output(context, given)["second_per_grid_ts"].tolist()
    assert found == 0.66796875


def test_upstream_transformers_still_rounds_the_seconds(model):
    """When this fails, transformers gives them unrounded: delete the wrapper in `mend_processing`."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    clock = {"fps": 1.9, "total_num_frames": 2, "frames_indices": [0, 1]}
    given = {"text": ["<|video_pad|>"], "videos": [torch.zeros(2, 3, 28, 28, dtype=torch.uint8)]}
    given |= {"video_metadata": [clock], "do_sample_frames": False, "return_tensors": "pt"}
    transformers_positions.mend_transformers()
    ours, theirs = processor(**given), type(processor).__call__.__wrapped__(processor, **given)
    assert theirs["second_per_grid_ts"].dtype == torch.float32
    assert ours["second_per_grid_ts"].tolist() == [2 / 1.9]
    assert ours.keys() == theirs.keys()
    asked = processor(**given, return_metadata=True)
    assert asked["second_per_grid_ts"].tolist() == [2 / 1.9] and len(asked["video_metadata"]) == 1


@pytest.mark.engine
def test_live_engine_and_transformers_give_the_same_answers(model, rows):
    """The gate: fp32, greedy, 48 mp4 clips through both, on a model that knows the time; and positions at any rate."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    result = _parity(model, rows, 48, environment, "positions")
    same = sum(a == b for a, b in zip(result["vllm"], result["transformers"], strict=True))
    assert same == 48, f"{same} of 48 answers equal; probabilities differ by {result['mean']:.2g} on average"
    assert result["mean"] < 1e-4
    assert len(result["positions"]) > 35
    assert [name for name, same in result["positions"].items() if not same] == []
    half = _parity(model, rows, 0, environment, "positions", "bfloat16")
    assert half["positions"].keys() == result["positions"].keys() and all(half["positions"].values()), half["positions"]
    # a model that cannot tell the time would pass whatever the clock says
    stock = _parity(model, rows, 48, environment | {"VLLM_PLUGINS": ""})
    assert sum(a == b for a, b in zip(stock["vllm"], stock["transformers"], strict=True)) < 40


def _parity(model, rows, count, environment, *more):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/parity.py"), str(model), str(rows), str(count), *more],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith('{"vllm"'))
    )  # vLLM logs here too
