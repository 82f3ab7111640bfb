"""Many small jobs on this machine's processors or on a Ray cluster, results as they come.

For offline passes over a data set: their commands start in half a second, so it imports neither torch nor verl, and Ray
only when it is asked for.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from verl_stvg.base import python

Job = TypeVar("Job")
Result = TypeVar("Result")
_CHUNK = 16  # most jobs per task: few enough for a smooth progress bar, many enough to be worth a task
_CLUSTER_SECONDS = 45


class NoCluster(ValueError):
    """No Ray cluster answers."""


def work(
    task: Callable[[list[Job]], list[Result]], jobs: list[Job], workers: int = 1, on_ray: bool = False, gpus: float = 0
) -> Iterator[list[Result]]:
    """Do all jobs, some at a time, and yield their results in the order in which they are done.

    Args:
        task: does some jobs; picklable.
        jobs: picklable.
        workers: processes on this machine; 1 works in this process. With Ray, the cluster's processors count instead.
        on_ray: use the running Ray cluster.
        gpus: that each task needs on Ray.

    Raises:
        NoCluster: Ray was asked for and does not answer.
    """
    if on_ray:
        yield from _on_ray(task, jobs, gpus)
    elif workers == 1:
        for job in jobs:
            yield task([job])
    else:
        yield from _here(task, jobs, workers)


def _here(task, jobs: list, workers: int) -> Iterator[list]:
    python.guard_spawn()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (os.getpid(),))
    try:
        for future in as_completed([pool.submit(task, chunk) for chunk in _chunks(jobs, workers)]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Let a worker end with its parent. Ctrl-C, which reaches every process of the terminal, is the parent's: workers
    finish what they have begun.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    python.end_with_parent(parent)


def _on_ray(task, jobs: list, gpus: float) -> Iterator[list]:
    import ray
    from ray import job_config

    python.guard_ray(job_config)
    cpus = cluster_cpus("auto")  # asked by a process of its own, with a time limit
    if isinstance(cpus, str):
        raise NoCluster(
            f"no Ray cluster answers ({cpus}); start one (`ray start --head`), set RAY_ADDRESS, or leave out --ray"
        )
    ray.init(address="auto", log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(lambda jobs: task(jobs))
        waiting = [remote.remote(chunk) for chunk in _chunks(jobs, max(1, cpus))]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        ray.shutdown()


def _chunks(jobs: list, workers: int) -> list[list]:
    size = min(_CHUNK, math.ceil(len(jobs) / (4 * workers))) or 1
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def cluster_cpus(address: str) -> int | str:
    """Logical CPUs of a running Ray cluster, or why none answers; asked by a process of its own, which then leaves."""
    code = (
        "import ray\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "print(int(ray.cluster_resources().get('CPU', 0)))"
    )
    answer, silent = python.answer_of(python.code(code, address), _CLUSTER_SECONDS)
    return silent or int(next(line for line in answer.splitlines() if line.isdigit()))  # Ray writes there too
