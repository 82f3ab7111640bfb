"""The plugin in verl: it registers what it should, changes nothing where it must not, and never fails in silence."""

import json

STATE = """
import importlib.metadata, json
import verl
from verl.plugin.platform import PlatformRegistry
from verl.workers.engine import EngineRegistry
import verl.workers.engine.fsdp.transformer_impl
import verl.experimental.agent_loop
from verl.utils import distributed
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as loops
print(json.dumps({
    "platforms": sorted(PlatformRegistry.registered_names()),
    "engines": sorted(str(key) for key in EngineRegistry._engines["language_model"]["fsdp2"]),
    "version": importlib.metadata.version.__module__,
    "process_group": distributed.initialize_global_process_group_ray.__module__,
    "loop": "video_grounding" in loops,
}))
"""


def state(run_python, **environment):
    return json.loads(run_python(STATE, **environment).stdout.strip().splitlines()[-1])


def test_on_a_machine_without_accelerator_the_cpu_is_a_platform(run_python):
    seen = state(run_python)
    assert "cpu" in seen["platforms"] and "cpu" in seen["engines"] and seen["loop"]


def test_where_another_platform_is_named_nothing_of_the_cpu_is_there(run_python):
    seen = state(run_python, VERL_PLATFORM="nvidia")
    stock = state(run_python, VERL_USE_EXTERNAL_PLUGINS="none")
    assert seen.pop("loop") and not stock.pop("loop")
    assert seen == stock


def test_a_broken_plugin_ends_the_process_with_a_message(run_python):
    now = "import sys; sys.modules['verl_stvg.patches.packed_positions'] = None; import verl; print('went on')"
    later = "import verl, sys; sys.modules['verl_stvg.training.agent_loop'] = None; "
    later += "import verl.experimental.agent_loop; print(0)"
    for code in (now, later):
        done = run_python(code, check=False)
        assert done.returncode != 0 and not done.stdout.strip().endswith(("went on", "0"))
        assert "PluginError: verl_stvg could not register itself with verl" in done.stderr
        assert "VERL_USE_EXTERNAL_PLUGINS=none" in done.stderr


def test_verl_without_the_plugin_is_stock(run_python):
    code = (
        "import verl\n"
        "from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel as Model\n"
        "print(Model.get_rope_index.__module__)"
    )
    assert run_python(code).stdout.strip().splitlines()[-1] == "verl_stvg.video.positions"
    stock = run_python(code, VERL_USE_EXTERNAL_PLUGINS="none").stdout.strip().splitlines()[-1]
    assert stock.startswith("transformers.")
