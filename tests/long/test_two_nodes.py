"""Several nodes, on one machine: what differs between them is found before a run, and a run across two of them trains
the same weights on both, says what died, and goes on from its last checkpoint.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from omegaconf import OmegaConf

import verl_stvg
from tests.conftest import CACHE, ROOT
from verl_stvg import workers
from verl_stvg.launch import lifeline, preflight

BIN = Path(sys.executable).parent


@contextlib.contextmanager
def raylets(*commands):
    """Runs these programs; ends them, and what they have started, afterwards."""
    started = [psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield started
    finally:
        family = [child for process in started for child in process.children(recursive=True)] + started
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=200)


def start_node(number, address=None, port=27379):
    """Command of a raylet at 127.0.0.<number>; the first is the head."""
    where = ["--head", f"--port={port}", "--ray-client-server-port=27381", "--include-dashboard=false"]
    where = [f"--address={address}"] if address else where
    ports = [f"--min-worker-port={28000 + 200 * number}", f"--max-worker-port={28199 + 200 * number}"]
    ports += [f"--dashboard-agent-listen-port={28000 + number}"]
    size = ["--num-cpus=3", "--num-gpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    return [str(BIN / "ray"), "start", "--block", f"--node-ip-address=127.0.0.{number}", *where, *ports, *size]


def wait_for(condition, seconds, what):
    """Wait for what a quiet machine does within some seconds; a busy one gets ten times as many."""
    deadline = time.monotonic() + 10 * seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} after {10 * seconds} s"
        time.sleep(0.5)


def foreign_packages(folder):
    """A place on Python's path with another verl_stvg, whose metadata name no entry points, and another torch."""
    shutil.copytree(Path(verl_stvg.__file__).parent, folder / "verl_stvg", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "verl_stvg/training/reward.py").write_text("# somebody has worked on it\n")
    for name, version in (("verl_stvg", "9.9"), ("torch", "2.10.0")):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    return folder


@pytest.mark.long
def test_nodes_that_differ_and_a_node_that_dies(rows, tmp_path, monkeypatch, caplog, capfd):
    """Three raylets: as the driver; with other packages; and where the kernel lets us, with the rows out of sight."""
    monkeypatch.chdir(tmp_path)  # Ray puts the driver's folder first on every worker's path
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a cluster of this test alone
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    hidden = tmp_path / "mounted"
    shutil.copytree(rows, hidden / "rows")
    address = "127.0.0.4:27379"
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make mount namespaces (unshare --user --mount)")
    blind = [*unshare, "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh"]
    foreign = ["env", f"PYTHONPATH={foreign_packages(tmp_path / 'site')}"]
    with raylets(start_node(4)):
        wait_for(lambda: workers.cluster_cpus(address) == 3, 120, "no head")
        # one after the other: two that start at once in one session want the same socket of the object store
        with raylets([*foreign, *start_node(5, address)]), contextlib.ExitStack() as later:
            wait_for(lambda: workers.cluster_cpus(address) == 6, 120, "not two nodes")
            (third,) = later.enter_context(raylets([*blind, *start_node(6, address)]))
            wait_for(lambda: workers.cluster_cpus(address) == 9, 120, "not three nodes")
            config = OmegaConf.create(
                {
                    "data": {
                        "train_files": str(hidden / "rows/train.parquet"),
                        "val_files": str(hidden / "rows/val.parquet"),
                        "video_cache": {"folder": str(hidden / "frames")},
                    },
                    "actor_rollout_ref": {"model": {"path": str(ROOT)}},
                    "trainer": {
                        "nnodes": 4,
                        "n_gpus_per_node": 1,
                        "save_freq": 1,
                        "default_local_dir": str(hidden / "checkpoints"),
                    },
                    "ray_kwargs": {"ray_init": {"address": address}},
                }
            )
            places, *problems = preflight.differing_nodes(config)
            assert "trainer.nnodes=4 groups" in places and "3 nodes offer 1 and 3, 1 and 3, 1 and 3" in places
            assert not [problem for problem in problems if "127.0.0.4" in problem]
            of_second = "\n".join(problem for problem in problems if "(127.0.0.5)" in problem)
            for words in (
                "has verl-stvg 9.9, this machine 0.",
                "has torch 2.10.0, this machine 2.",
                "has other sources of verl_stvg",
                "does not load the plugin into verl;",
                "install the same there as here",
            ):
                assert words in of_second
            missing, unshared = (problem for problem in problems if "(127.0.0.6)" in problem)
            assert f"does not see {hidden}/rows/train.parquet, " in missing and "mount the folder there" in missing
            assert f"does not share {hidden}/checkpoints" in unshared
            assert f"(127.0.0.6) does not share {hidden}/frames" in caplog.text and "of its own" in caplog.text
            names_a_dead_node(address, third, capfd)


def names_a_dead_node(address, process, capfd):
    """`watch` says which actor went with a node that was killed, and nothing of one that was let go; at the driver's
    exit too, which may come before Ray knows.
    """
    ray.init(address=address, log_to_driver=False)
    try:

        @ray.remote(num_gpus=1, num_cpus=0)
        class Holder:
            def pid(self):
                return os.getpid()

        holders = [Holder.options(name=f"holder{k}").remote() for k in range(3)]
        pids = ray.get([holder.pid.remote() for holder in holders])
        assert lifeline.lost_actors() == []
        family = {child.pid for child in process.children(recursive=True)}
        (k,) = (k for k, pid in enumerate(pids) if pid in family)
        (let_go,) = [holders.pop(0 if k else 1)]
        ray.kill(let_go)
        for child in [*process.children(recursive=True), process]:
            child.send_signal(signal.SIGKILL)
        lifeline.tell_at_exit()
        (line,) = lifeline.lost_actors()
        assert f"Holder holder{k} (pid {pids[k]} on node 127.0.0.6)" in line
        assert f"ActorsLostError: processes of the run are gone: {line}" in capfd.readouterr().err
    finally:
        lifeline._told.clear()
        ray.shutdown()


@pytest.mark.long
@pytest.mark.processor_limit(7200)
def test_training_across_two_nodes(tmp_path, model):
    """FSDP2 over both nodes, a vLLM on each. An agent loop is killed, then a node; each time the run ends, says what
    died, leaves nothing behind, and the same command goes on from the last checkpoint.
    """
    status, said = rehearse(tmp_path, "1", kill=agent_loop_of_second)
    assert status == 1 and "verl_stvg.launch.lifeline.ActorsLostError" in said and "agent_loop_worker" in said
    first = checkpointed(tmp_path)
    status, said = rehearse(tmp_path, "2", kill=raylet_of_second)
    assert status == 1 and "verl_stvg.launch.lifeline.ActorsLostError" in said and "on node 127.0.0.3" in said
    assert f"setting global step to {first}" in (tmp_path / "train.log").read_text(errors="replace")
    second = checkpointed(tmp_path)
    status, said = rehearse(tmp_path, "3")
    assert status == 0, (tmp_path / "train.log").read_text(errors="replace")[-6000:]
    assert f"setting global step to {second}" in (tmp_path / "train.log").read_text(errors="replace")
    assert checkpointed(tmp_path) == 6

    # after every sync both replicas have the same weights, and new ones after each step
    seen = set()
    for part in ("1", "2", "3"):
        digests = [(tmp_path / f"digests{part}" / replica).read_text().split() for replica in ("0", "1")]
        length = min(map(len, digests))  # a kill may fall between the two
        assert length >= 1 and digests[0][:length] == digests[1][:length]
        seen.update(digests[0])
    assert len(seen) == 1 + 6  # the model's, and one for each step, wherever the runs were cut

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "training/rollout_probs_diff_max" in record["data"]:
            assert record["data"]["training/rollout_probs_diff_mean"] < 1e-4
            assert record["data"]["rollout/missing"] == 0


def checkpointed(folder):
    file = folder / "checkpoints/latest_checkpointed_iteration.txt"
    return int(file.read_text()) if file.is_file() else 0


def rehearse(folder, part, kill=None):
    """Run the script until it ends, or kill something in the step after the next checkpoint.

    Returns:
        exit status, and what the script said.
    """
    (folder / f"digests{part}").mkdir()
    before = checkpointed(folder)
    with (folder / f"said{part}.log").open("wb") as output:
        process = psutil.Popen(
            [
                "bash",
                str(ROOT / "recipes/tiny/two_nodes.sh"),
                "trainer.total_training_steps=6",
                "+actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=tests.support.weight_digests.Digests",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "CACHE": str(CACHE),
                "RUN_DIR": str(folder),
                "DIGESTS": str(folder / f"digests{part}"),
            },
        )
    family = {}

    def ended():
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update((child.pid, child) for child in process.children(recursive=True))
        return process.poll() is not None

    try:
        if kill:
            wait_for(lambda: ended() or checkpointed(folder) > before, 900, "no checkpoint")
            assert not ended(), (folder / f"said{part}.log").read_text(errors="replace")
            kill(process)
            wait_for(ended, 240, "the run still waits")
        wait_for(ended, 1200, "the run still goes on")
        # nothing stays behind
        wait_for(lambda: not any(map(psutil.Process.is_running, family.values())), 60, "processes stay behind")
        return process.returncode, (folder / f"said{part}.log").read_text(errors="replace")
    finally:
        for child in [process, *family.values()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def second_node(process):
    """The ``ray start`` of the second node."""
    return next(child for child in process.children() if "--node-ip-address=127.0.0.3" in child.cmdline())


def agent_loop_of_second(process):
    """Kill the agent loop on the second node, which nobody asks for an answer."""
    for child in second_node(process).children(recursive=True):
        if "VideoGroundingWorker" in " ".join(child.cmdline()):
            child.kill()
            return
    raise AssertionError("no agent loop on the second node")


def raylet_of_second(process):
    """Kill the second node's raylet, as a loss of power would."""
    for child in second_node(process).children(recursive=True):
        if child.name() == "raylet":
            child.kill()
            return
    raise AssertionError("no raylet on the second node")
