"""A Ray cluster that is already there: the doctor asks its nodes, and the pre-flight check counts its CPUs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_stvg import workers
from verl_stvg.launch import preflight

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cluster():
    """Address of a one-node cluster with two CPUs."""
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--block", "--num-cpus=2", "--port=26379", "--include-dashboard=false"]
    command += ["--ray-client-server-port=26381", "--disable-usage-stats"]
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")  # a cluster of this test alone; with tokens, nodes need a shared file
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = "127.0.0.1:26379"
    deadline = time.monotonic() + 1200
    try:
        while isinstance(answer := workers.cluster_cpus(address), str):
            assert process.poll() is None and time.monotonic() < deadline, answer
        yield address
    finally:
        process.terminate()
        process.wait(600)
        patch.undo()


def test_too_few_cpus_in_a_running_cluster(cluster, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = OmegaConf.create(
        {"trainer": {"n_gpus_per_node": 1, "nnodes": 1}, "ray_kwargs": {"ray_init": {"address": cluster}}}
    )
    (problem,) = preflight.too_few_cpus(config)
    assert "offers 2 CPUs" in problem and "--num-cpus" in problem


def test_doctor_asks_every_node(cluster):
    command = [sys.executable, "-m", "verl_stvg.cli.app", "doctor", "--ray-address", cluster]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    here, _, node = done.stdout.partition("\nnode ")
    assert here.startswith("this machine") and node
    for rows in (here, node):
        assert (
            "plugin in verl" in rows
            and "loaded" in rows
            and "the CPU; the installed vLLM is" in rows
            and "free memory" in rows
        )


def test_no_cluster_at_the_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(workers, "_CLUSTER_SECONDS", 20)
    config = OmegaConf.create({"trainer": {"n_gpus_per_node": 1, "nnodes": 1}})
    assert "no Ray cluster answers" in preflight.too_few_cpus(config)[0]
