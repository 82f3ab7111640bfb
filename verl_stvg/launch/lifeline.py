"""Ends a run that has lost a process it would wait for, and names what died and where.

verl asks most of its actors for results and fails when one is dead. Its agent-loop workers it only hands prompts to:
when a node with such a worker dies, or the kernel kills one for memory, the trainer waits for the answers for ever. So
the driver looks at Ray's table of actors while the run goes on. verl has `GRACE_SECONDS` to fail by itself, with its
own trace; then the driver leaves, and Ray ends what is left of the run on all nodes.
"""

import atexit
import os
import socket
import sys
import threading
import time

from verl_stvg.launch import phases

GRACE_SECONDS = 60.0
_POLL_SECONDS = 2.0
_SHOWN = 5
_told = threading.Event()


def start() -> None:
    """Watch the cluster that this process joins next, as long as it is in it."""
    from ray._private import worker

    hooks = worker._post_init_hooks
    if _begin not in hooks:
        hooks.append(_begin)


def _begin() -> None:
    phases.begin("starting the trainer")
    atexit.register(tell_at_exit)
    threading.Thread(target=_watch, name=__name__, daemon=True).start()


def lost_actors() -> list[str]:
    """One line for each actor of this job that ended although nobody ended it; Ray must be connected."""
    import ray
    from ray._private import state

    causes = {"WORKER_DIED", "NODE_DIED"}
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    lines = []
    for actor in state.actors(job_id=job, actor_state_name="DEAD").values():
        died = actor["DeathCause"].actor_died_error_context
        cause = died.DESCRIPTOR.fields_by_name["reason"].enum_type.values_by_number[died.reason].name
        if cause in causes:
            where = f"pid {actor['Pid']} on node {actor['Address']['IPAddress']}"
            lines.append(f"{actor['ActorClassName']} {actor['Name']}".strip() + f" ({where}): {_reason(cause, died)}")
    return sorted(lines)


def _reason(cause: str, died) -> str:
    return "its node died" if cause == "NODE_DIED" else " ".join(died.error_message.split())[:300]


def _watch() -> None:
    import ray

    while ray.is_initialized():
        if _tell():
            time.sleep(GRACE_SECONDS)
            os._exit(1)
        time.sleep(_POLL_SECONDS)


def tell_at_exit() -> None:
    """Say what is lost if verl failed before the next look; Ray's head needs up to 20 s to know that a node is gone."""
    import ray

    deadline = time.monotonic() + GRACE_SECONDS
    while ray.is_initialized() and not _tell() and _node_is_silent() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _node_is_silent() -> bool:
    """Whether there is a node that Ray's head takes for alive and whose raylet answers nobody."""
    import ray

    for node in ray.nodes():
        if node["Alive"]:
            try:
                socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=5).close()
            except OSError:
                return True
    return False


def _tell() -> bool:
    """Write which actors are lost to the run's log, once; whether there are any."""
    import ray

    if not _told.is_set() and ray.is_initialized() and (lost := lost_actors()):
        _told.set()
        shown = "; ".join(lost[:_SHOWN]) + (f"; and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        sys.stderr.write(
            f"\n{__name__}.ActorsLostError: processes of the run are gone: {shown}. Mend the node, or lower the memory "
            "that its processes take, and start the same command again: it goes on from its last checkpoint\n"
        )
        sys.stderr.flush()
    return _told.is_set()
