"""The weights of a run go to its own vLLM: both sides name one socket, and two runs on one machine never the same."""

import os
from types import SimpleNamespace

import pytest
import ray
import verl  # noqa: F401  (loads the plugin, as a run does)

from verl_stvg.patches import weight_sockets

JOB = "01000000"
"""The id of the first job of any cluster."""
SESSIONS = ("session_2026-01-01_00-00-00_000001_17", "session_2026-01-01_00-00-00_000002_18")


@pytest.fixture
def in_session(monkeypatch):
    """Stand in a process of a cluster, as far as Ray says which one it is."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("RAY_LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv(weight_sockets.JOB, "")  # undone afterwards
    monkeypatch.setenv("VERL_REPLICA_RANK", "0")

    def stand(session):
        node = SimpleNamespace(session_name=session)
        context = SimpleNamespace(get_job_id=lambda: JOB, worker=SimpleNamespace(node=node))
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

    return stand


def sender(stock: bool = False) -> str:
    """The name that a trainer's worker opens."""
    from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

    sizes = {"tensor_model_parallel_size": 1, "data_parallel_size": 1, "pipeline_model_parallel_size": 1}
    config, adapter = SimpleNamespace(**sizes, layered_summon=False), object.__new__(ServerAdapter)
    begin = ServerAdapter.__init__.__wrapped__ if stock else ServerAdapter.__init__
    begin(adapter, config, SimpleNamespace(), None)
    return adapter.zmq_handle


def receiver(monkeypatch, stock: bool = False) -> str:
    """The name that a process of vLLM looks for, which verl's server has started."""
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    class Enough(Exception):
        """The server has said which job it belongs to."""

    def begun(self, config):
        if stock:
            raise Enough
        return SimpleNamespace(
            full_determinism=False,
            profiler=None,
            tensor_model_parallel_size=1,
            data_parallel_size=1,
            pipeline_model_parallel_size=1,
        )

    monkeypatch.setattr(vLLMHttpServer, "_init_config", begun)
    monkeypatch.setattr(vLLMHttpServer, "_init_model_config", lambda self, config: None)
    monkeypatch.setattr(vLLMHttpServer, "_validate_configs", lambda self: None)
    monkeypatch.setattr(vLLMHttpServer, "_post_init", lambda self, devices: None)
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    server = object.__new__(vLLMHttpServer)
    try:
        vLLMHttpServer.__init__(server, None, None, None, [], 0, 1, 1, 1, "")
    except Enough:
        pass
    worker = SimpleNamespace(local_rank=0, model_runner=SimpleNamespace())
    return vLLMColocateWorkerExtension._get_zmq_handle(worker)


def test_both_sides_name_one_socket_and_two_runs_never_the_same(in_session, monkeypatch):
    names = []
    for session in SESSIONS:
        in_session(session)
        assert sender() == receiver(monkeypatch)
        names.append(sender())
    assert names[0] != names[1] and all(f"-{JOB}-" in name for name in names)
    assert all(len(name.removeprefix("ipc://")) < 100 for name in names)  # the kernel takes 107 bytes


def test_verl_alone_names_the_sockets_of_two_runs_the_same(in_session, monkeypatch):
    names = set()
    for session in SESSIONS:
        in_session(session)
        names |= {sender(stock=True), receiver(monkeypatch, stock=True)}
    assert len(names) == 1


def test_a_socket_that_is_named_otherwise_is_refused(in_session):
    in_session(SESSIONS[0])
    module = SimpleNamespace(ServerAdapter=type("ServerAdapter", (), {"__init__": lambda self: None}))
    module.ServerAdapter.zmq_handle = "ipc:///tmp/other.sock"
    weight_sockets.mend_sender(module)
    with pytest.raises(ValueError, match="other.sock is not named by the job 01000000"):
        module.ServerAdapter()
