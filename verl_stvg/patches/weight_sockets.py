"""The socket over which a trainer's weights go to vLLM carries the name of the run.

verl 0.9.1 names it by Ray's job and the rank. The first job of every cluster has the same id, and the socket lies in
``/tmp``: two runs on one machine, each with a Ray cluster of its own, would give each other their weights. Here the
name of Ray's session comes in, which all processes of a cluster know and no two clusters share.
"""

import functools
import hashlib
import os

JOB = "VERL_RAY_JOB_ID"
"""Environment variable in which verl's server tells vLLM's processes their part of the name."""


def run_name() -> str:
    """Ray's job and a hash of its session, the same in all processes of a run."""
    import ray

    context = ray.get_runtime_context()
    session = context.worker.node.session_name  # what the method of that name returns, which older versions lack
    return f"{context.get_job_id()}-{hashlib.sha256(session.encode()).hexdigest()[:12]}"


def mend_sender(vllm_rollout) -> None:
    """Let the trainer's side open a socket of this run."""
    adapter = vllm_rollout.ServerAdapter
    stock = adapter.__init__

    @functools.wraps(stock)
    def __init__(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        name = run_name()
        job = name.partition("-")[0]
        if f"-{job}-" not in self.zmq_handle:
            raise ValueError(f"verl's socket {self.zmq_handle} is not named by the job {job}; install verl 0.9.1")
        self.zmq_handle = self.zmq_handle.replace(f"-{job}-", f"-{name}-")

    adapter.__init__ = __init__


def mend_receiver(vllm_async_server) -> None:
    """Let vLLM's side look for the socket of this run."""
    server = vllm_async_server.vLLMHttpServer
    stock = server.__init__

    @functools.wraps(stock)
    def __init__(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        os.environ[JOB] = run_name()

    server.__init__ = __init__
