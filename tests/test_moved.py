"""Old names of modules stand for the new ones, for one release, and nobody else's modules are touched."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_stvg import moved
from verl_stvg.launch.config_checks import is_our_reward

EVERY_NAME = """
import importlib, warnings
import verl  # before its plugin's parts, as in a run
from verl_stvg.moved import OLD

for old, homes in OLD.items():
    homes = (homes,) if isinstance(homes, str) else homes
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = importlib.import_module(old)
    mine = [str(one.message) for one in said if str(one.message).startswith(f"{old} is ")]
    assert mine == [f"{old} is {' and '.join(homes)} now; the old name goes with verl_stvg 0.2."], (old, mine)
    modules = [importlib.import_module(home) for home in homes]
    assert len(homes) > 1 or module is modules[0], old
    for place, home in enumerate(modules):
        for name in vars(home).keys() - {"__name__", "__doc__", "__file__", "__spec__", "__loader__", "__package__"}:
            first = next(one for one in modules if hasattr(one, name))
            if not name.startswith("__"):
                assert getattr(module, name) is getattr(first, name), (old, name)
print("all of", len(OLD))
"""

IN_SCRIPTS = """
from verl_stvg.cli import main
from verl_stvg.dataset import VideoGroundingDataset, frame_store, RowError
from verl_stvg.generate import read_rows
from verl_stvg.launch import summary, supervise
from verl_stvg.prompts import PromptMaker, ROOT_KEY
from verl_stvg.resume import unusable_checkpoint, mend_trainer, APPEND_METRICS
from verl_stvg.reward import compute_score, find_recipe, DATA_SOURCES
from verl_stvg.schedule import linear_schedule
from verl_stvg.trainer import PollingReplayBuffer, VideoGroundingLoopManager, check_filtering, reward_metrics
from verl_stvg.video.build import build, located, plan_of
from verl_stvg.video.decode import probe, read_frames
from verl_stvg.video.markers import rle_area
from verl_stvg.video.plan import plan_video
from verl_stvg.video.positions import mend_transformers, mend_vllm
from verl_stvg.video.refs import CachedPixels, report_loads
from verl_stvg.video.store import FrameStore
from verl_stvg.video.tracks import Track, Tracks, save
from verl_stvg.vllm_plugin import BanningWorker
import verl_stvg.trainer as vt
vt.tq = "replaced"
import verl_stvg.training.replay_buffer
assert verl_stvg.training.replay_buffer.tq == "replaced"
"""
"""How scripts written for the last release import, and how one of them replaces a name."""


@pytest.mark.slow
def test_every_old_name_stands_for_the_new_one(run_python):
    assert run_python(EVERY_NAME + IN_SCRIPTS).stdout.strip().endswith(f"all of {len(moved.OLD)}")


def test_packages_of_the_user_are_not_taken_for_ours(run_python, tmp_path):
    for name in moved.TOPS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "foreign.py").write_text("MINE = True\n")
    (tmp_path / "recipes/__init__.py").write_text("raise ImportError('not meant to be imported')\n")
    run_python(
        "import sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "sys.path[0] = sys.argv[1]\n"
        "import verl_stvg.recipes, verl_stvg.eval, verl_stvg.data_builders\n"
        "assert not {'recipes', 'eval', 'data_builders'} & sys.modules.keys()\n"
        "import eval.foreign, data_builders.foreign\n"
        "assert eval.foreign.MINE and data_builders.foreign.MINE and eval is not verl_stvg.eval\n"
        "assert eval.__file__.startswith(sys.argv[1])\n"
        "try:\n"
        "    import recipes\n"
        "except ImportError as error:\n"
        "    assert 'not meant' in str(error)\n",
        tmp_path,
    )


def test_our_own_code_asks_by_the_new_names():
    root = Path(moved.__file__).parent
    folders = [path for path in root.iterdir() if path.is_dir()]  # some are links, which a glob does not follow
    paths = [*root.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    files = {path: path.read_text(encoding="utf-8") for path in (*paths, *root.parent.glob("benchmarks/**/*.py"))}
    moved_from = {
        ".".join(("verl_stvg", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path, text in files.items()
        if path in paths and re.search(r"^__getattr__ = .*names_of\(", text, re.MULTILINE)
    }
    assert len(moved_from) > 8
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [f"{node.module}.{one.name}" for one in node.names]
                assert not moved.OLD.keys() & {node.module, *names}, f"{path}:{node.lineno}"
                if node.module in moved_from:
                    here = vars(importlib.import_module(node.module)).keys() | {one.stem for one in files}
                    assert not {one.name for one in node.names} - here, f"{path}:{node.lineno}"


def test_names_that_nothing_has_are_not_found():
    with pytest.warns(FutureWarning, match="verl_stvg.curriculum is verl_stvg.training.curriculum and verl_stvg.rows"):
        spec = moved.OldNames().find_spec("verl_stvg.curriculum")
    assert spec.origin == "verl_stvg.training.curriculum"
    assert moved.OldNames().find_spec("verl_stvg.nothing") is None
    with pytest.raises(ImportError):
        from verl_stvg.video.positions import nothing  # noqa: F401


@pytest.mark.parametrize(
    ("text", "now"),
    [
        ("pkg://verl_stvg.reward", "pkg://verl_stvg.training.reward"),
        ("verl_stvg.trainer.VideoGroundingLoopManager", "verl_stvg.training.manager.VideoGroundingLoopManager"),
        ("pkg://verl_stvg.training.reward", "pkg://verl_stvg.training.reward"),
        ("pkg://mine.verl_stvg.reward", "pkg://mine.verl_stvg.reward"),
        ("pkg://verl_stvg.rewards", "pkg://verl_stvg.rewards"),
        ("pkg://eval.runs", "pkg://eval.runs"),
    ],
)
def test_old_names_in_a_configuration(text, now):
    assert moved.today(text) == now


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("pkg://verl_stvg.reward", True),
        ("pkg://verl_stvg.training.reward", True),
        ("pkg://mine.reward", False),
        ("pkg://verl_stvg.dataset", False),
        (None, False),
    ],
)
def test_our_reward_is_known_by_its_old_name(path, ours):
    config = OmegaConf.create({"reward": {"custom_reward_function": {"path": path}}})
    assert is_our_reward(config) is ours


def test_names_of_an_old_module_that_is_a_package_now(run_python):
    code = "from verl_stvg import cli, launch\n"
    code += "names = [getattr(cli, name) for name in (*cli._APP, 'tiny_model')]\n"
    code += "print(len(names + [getattr(launch, name) for name in launch._RUN]))"
    assert run_python(code).stdout.split() == ["22"]
    assert (
        "Usage" in run_python("import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('verl_stvg.cli')").stdout
    )


def test_a_thread_that_imports_an_old_name_waits_for_nothing_that_waits_for_it(run_python):
    """A finder that imports holds Python's lock of all imports, and may wait for a thread that waits for that lock."""
    code = """
import importlib, importlib._bootstrap as bootstrap, threading, time
import verl_stvg
stock, begun = bootstrap._find_spec, threading.Event()

def slow(name, path, target=None):
    if name == "verl_stvg.rows":
        begun.set()
        time.sleep(0.5)
    return stock(name, path, target)

bootstrap._find_spec = slow
other = threading.Thread(target=importlib.import_module, args=("verl_stvg.rows.masks",), daemon=True)
other.start()
begun.wait()
mine = threading.Thread(target=importlib.import_module, args=("verl_stvg.row_files",), daemon=True)
mine.start()
mine.join(60)
other.join(60)
print("alive:", mine.is_alive(), other.is_alive())
"""
    assert run_python(code).stdout.split()[-2:] == ["False", "False"]


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("verl_stvg.rows.row", "root_of", "verl_stvg.rows.files"),
        ("verl_stvg.launch.preflight", "cluster_address", "verl_stvg.launch.machine_checks"),
        ("verl_stvg.launch.preflight", "ADDED_KEYS", "verl_stvg.launch.key_checks"),
        ("verl_stvg.video.plan", "MAX_FRAMES", "verl_stvg.video.frame_rules"),
        ("verl_stvg.data_builders.check", "drift", "verl_stvg.data_builders.check_videos"),
    ],
)
def test_names_of_a_module_that_was_divided(module, name, home):
    with pytest.warns(FutureWarning, match=f"{name} is in {home} now"):
        assert getattr(importlib.import_module(module), name) is getattr(importlib.import_module(home), name)
