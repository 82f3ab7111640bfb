"""Old names of modules, which stand for the new ones, with a warning, for one release: `OLD` goes with version 0.2.

An old name is the same module object as the new one, so that a class has one identity and a value that is replaced in
one place is replaced in the other. Where a module was divided, its old name stands for a module that asks the new ones.
The top-level names `data_builders`, `eval` and `recipes` exist in a checkout only; what is installed owns `verl_stvg`
and `reward_fns`.
"""

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import CodeType, ModuleType

TOPS = ("data_builders", "eval", "recipes")
"""Packages that were top-level, and are parts of `verl_stvg`."""
OLD: dict[str, str | tuple[str, ...]] = {
    "verl_stvg.python": "verl_stvg.base.python",
    "verl_stvg.nesting": "verl_stvg.base.nesting",
    "verl_stvg.lock": "verl_stvg.base.lock",
    "verl_stvg.extras": "verl_stvg.base.extras",
    "verl_stvg.status": "verl_stvg.base.status",
    "verl_stvg.vllm_build": "verl_stvg.base.vllm_build",
    "verl_stvg.recipe_names": "verl_stvg.base.recipe_names",
    "verl_stvg.models": "verl_stvg.base.models",
    "verl_stvg.parallel": "verl_stvg.workers",
    "verl_stvg.prompts": ("verl_stvg.rows.prompts", "verl_stvg.rows.row"),
    "verl_stvg.answers": "verl_stvg.rows.answers",
    "verl_stvg.video.build": ("verl_stvg.rows.cache_fill", "verl_stvg.rows.row", "verl_stvg.rows.files"),
    "verl_stvg.row_files": "verl_stvg.rows.files",
    "verl_stvg.row_shape": "verl_stvg.rows.shape",
    "verl_stvg.fit": "verl_stvg.rows.fit",
    "verl_stvg.chat_template": "verl_stvg.rows.chat_template",
    "verl_stvg.video.refs": ("verl_stvg.video.keys", "verl_stvg.patches.frame_loads"),
    "verl_stvg.cpu": "verl_stvg.patches.cpu_platform",
    "verl_stvg.freeze": "verl_stvg.patches.frozen_tower",
    "verl_stvg.packing": "verl_stvg.patches.packed_positions",
    "verl_stvg.schedule": "verl_stvg.patches.linear_schedule",
    "verl_stvg.weights": "verl_stvg.patches.weight_sockets",
    "verl_stvg.advantages": "verl_stvg.patches.equal_rewards",
    "verl_stvg.banned": "verl_stvg.patches.banned_tokens",
    "verl_stvg.dataset": ("verl_stvg.training.dataset", "verl_stvg.rows.settings", "verl_stvg.rows.row"),
    "verl_stvg.rollout": "verl_stvg.training.agent_loop",
    "verl_stvg.worker": "verl_stvg.training.worker",
    "verl_stvg.legacy": "verl_stvg.training.legacy",
    "verl_stvg.reward": ("verl_stvg.training.reward", "reward_fns.registry"),
    "verl_stvg.curriculum": ("verl_stvg.training.curriculum", "verl_stvg.rows.masks"),
    "verl_stvg.sampler": "verl_stvg.training.sampler",
    "verl_stvg.trainer": (
        "verl_stvg.training.manager",
        "verl_stvg.training.metrics",
        "verl_stvg.training.replay_buffer",
        "verl_stvg.rows.settings",
    ),
    "verl_stvg.resume": (
        "verl_stvg.training.resume",
        "verl_stvg.patches.checkpoints",
        "verl_stvg.patches.metrics_file",
    ),
    "verl_stvg.held_out": "verl_stvg.training.held_out",
    "verl_stvg.parity": "verl_stvg.training.parity",
    "verl_stvg.checkpoint": "verl_stvg.inference.checkpoint",
    "verl_stvg.engines": "verl_stvg.inference.engines",
    "verl_stvg.generate": ("verl_stvg.inference.generate", "verl_stvg.inference.settings"),
    "verl_stvg.preflight": (
        "verl_stvg.launch.preflight",
        "verl_stvg.launch.key_checks",
        "verl_stvg.launch.machine_checks",
        "verl_stvg.launch.row_checks",
        "verl_stvg.workers",
    ),
    "verl_stvg.config_checks": "verl_stvg.launch.config_checks",
    "verl_stvg.best_answer": "verl_stvg.launch.best_answer",
    "verl_stvg.nodes": "verl_stvg.launch.nodes",
    "verl_stvg.doctor": "verl_stvg.launch.doctor",
    "verl_stvg.leftovers": "verl_stvg.launch.leftovers",
    "verl_stvg.watch": "verl_stvg.launch.lifeline",
    "verl_stvg.capacity": "verl_stvg.launch.capacity",
    "verl_stvg.phases": "verl_stvg.launch.phases",
    "verl_stvg.data_cli": "verl_stvg.cli.data",
    "verl_stvg.eval_cli": "verl_stvg.cli.eval",
    "verl_stvg.score_cli": "verl_stvg.cli.score",
    "verl_stvg.select_cli": "verl_stvg.cli.select",
    "verl_stvg.objects_cli": "verl_stvg.cli.objects",
    "verl_stvg.cache_cli": "verl_stvg.cli.cache",
    "verl_stvg.plan_cli": "verl_stvg.cli.plan",
    "verl_stvg.train_cli": "verl_stvg.cli.train",
    "data_builders.row": "verl_stvg.data_builders.make_row",
    "data_builders.synthetic": "verl_stvg.data_builders.sets.synthetic",
    "data_builders.tiny_model": (
        "verl_stvg.data_builders.testing.tiny_model",
        "verl_stvg.data_builders.testing.tiny_parts",
        "verl_stvg.data_builders.testing.tiny_vision",
        "verl_stvg.data_builders.testing.tiny_answers",
        "verl_stvg.data_builders.testing.same_sums",
    ),
    "eval.foreign": "verl_stvg.eval.importers.foreign",
    "eval.runs": ("verl_stvg.eval.report.runs", "verl_stvg.eval.report.training"),
    "eval.evaluations": ("verl_stvg.eval.report.evaluations", "verl_stvg.eval.report.comparison"),
    "eval.clips": ("verl_stvg.eval.report.clips", "verl_stvg.eval.report.rows", "verl_stvg.eval.report.boxes"),
    "eval.charts": "verl_stvg.eval.report.charts",
    "eval.replies": "verl_stvg.eval.report.replies",
}
"""Old name of a module -> its new name, or those of the modules that it was divided into."""


class _Divided(ModuleType):
    """Stands for a module whose names lie in several now: asks one after the other, and sets where a name is."""

    homes: tuple[ModuleType, ...]

    def _homes_of(self, name: str) -> list[ModuleType]:
        return [home for home in self.homes if hasattr(home, name)]

    def __getattr__(self, name: str) -> object:
        for home in self._homes_of(name)[:1]:
            return getattr(home, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        for home in self._homes_of(name) or self.homes[:1]:
            setattr(home, name, value)

    def __delattr__(self, name: str) -> None:
        for home in self._homes_of(name):
            delattr(home, name)

    def __dir__(self) -> list[str]:
        return sorted({name for home in self.homes for name in dir(home)})


class _Renamed(Loader):
    """Loads what has another name now in place of the module that was asked for."""

    def __init__(self, new: tuple[str, ...]) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        homes = tuple(map(importlib.import_module, self.new))
        stand_in = homes[0]
        if len(homes) > 1:
            stand_in = _Divided(module.__name__, homes[0].__doc__)
            vars(stand_in).update(homes=homes, __file__=homes[0].__file__, __spec__=module.__spec__)
        sys.modules[module.__name__] = stand_in

    def get_code(self, name: str) -> CodeType | None:
        """Code of the new module, for ``python -m OLD``."""
        spec = find_spec(self.new[0])
        return spec.loader.get_code(self.new[0]) if spec and isinstance(spec.loader, InspectLoader) else None


class OldNames(MetaPathFinder):
    """Finds modules by their old names. Imports nothing: Python holds a lock of all imports while it asks a finder."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        new = OLD.get(name) or OLD.get(name.removeprefix("verl_stvg."))
        top = name.partition(".")[0]
        if top in TOPS and name != top:
            parent = sys.modules.get(name.rpartition(".")[0])
            if parent is None or not parent.__name__.startswith("verl_stvg."):
                return None  # a package of the user's own
            if new is None and PathFinder.find_spec(name, parent.__path__) is None:
                return None
            new = new or f"{parent.__name__}.{name.rpartition('.')[2]}"
        if new is None:
            return None
        homes = (new,) if isinstance(new, str) else new
        said = " and ".join(homes)
        warnings.warn(f"{name} is {said} now; the old name goes with verl_stvg 0.2.", FutureWarning, stacklevel=2)
        return ModuleSpec(name, _Renamed(homes), origin=homes[0])


def stand_for(name: str) -> None:
    """Put ``verl_stvg.NAME`` in the place of a package that a checkout still has at the top, see `TOPS`."""
    warnings.warn(f"{name} is verl_stvg.{name} now; the old name goes with 0.2.", FutureWarning, stacklevel=3)
    sys.modules[name] = importlib.import_module(f"verl_stvg.{name}")


def install() -> None:
    """Let imports find old names; idempotent."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())  # before the path, where a part of a renamed package would be found again


def names_of(here: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """``__getattr__`` of a module, or of a package whose name was a module's: gives names that have moved.

    Args:
        here: the module's name.
        homes: each name, and the module that it is in now.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {here!r} has no attribute {name!r}")
        home = homes[name]
        warnings.warn(f"{name} is in {home} now; the old name goes with verl_stvg 0.2.", FutureWarning, stacklevel=2)
        return getattr(importlib.import_module(home), name)

    return __getattr__


_OURS = re.compile(rf"(?<![\w.])({'|'.join(re.escape(name) for name in OLD if name.startswith('verl_stvg.'))})(?!\w)")


def today(text: str) -> str:
    """A text in which old names of modules of `verl_stvg` are the new ones, of a divided module the first.

    Args:
        text: such as a path in a configuration, ``pkg://verl_stvg.reward``.
    """

    def new(match: re.Match[str]) -> str:
        home = OLD[match[0]]
        return home if isinstance(home, str) else home[0]

    return _OURS.sub(new, text)
