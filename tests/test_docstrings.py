"""Public functions with three or more parameters say in an ``Args:`` section what each is: shape, unit, what None is.

Left out are the commands of the command line, whose options carry help texts; methods that override one of a base class
of ours; and methods of classes with bases that say nothing at all, which override one of somebody else's class.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("verl_stvg", "data_builders", "eval", "reward_fns")
MANY = 3
COMMANDS = ROOT / "verl_stvg/cli"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees() -> dict[Path, ast.Module]:
    """Every module of the packages, once: `verl_stvg` links to two of the others."""
    files = {file.resolve(): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


def names(nodes: list[ast.expr]) -> list[str]:
    """Last parts of the names of base classes."""
    return [ast.unparse(node).partition("[")[0].rpartition(".")[2] for node in nodes]


def public(body: list[ast.stmt], kind) -> list:
    return [node for node in body if isinstance(node, kind) and not node.name.startswith("_")]


def parameters(function: Function) -> list[str]:
    arguments = function.args
    named = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in named if name not in ("self", "cls")]


def lacks_args(function: Function) -> bool:
    return len(parameters(function)) >= MANY and "Args:" not in (ast.get_docstring(function) or "")


def overridden(classes: dict[str, ast.ClassDef], bases: list[str]) -> set[str]:
    """Names of the methods of classes of ours and of their bases."""
    known = [classes[base] for base in bases if base in classes]
    own = {node.name for base in known for node in base.body if isinstance(node, Function)}
    return own.union(*(overridden(classes, names(base.bases)) for base in known))


def without_args(modules: dict[Path, ast.Module]) -> list[str]:
    """One line for each function that lacks the section."""
    classes = {
        node.name: node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    found = []
    for file, tree in modules.items():
        if COMMANDS in file.parents:
            continue
        functions = list(public(tree.body, Function))
        for owner in public(tree.body, ast.ClassDef):
            theirs = overridden(classes, names(owner.bases))
            functions += [
                method
                for method in public(owner.body, Function)
                if method.name not in theirs and not (owner.bases and ast.get_docstring(method) is None)
            ]
        found += [f"{file}:{function.lineno} {function.name}" for function in functions if lacks_args(function)]
    return found


def test_every_public_function_with_three_parameters_says_what_they_are():
    assert without_args(trees()) == []


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('def f(a, b, c):\n    """Text."""', ["f"]),
        ('def f(a, b, *, c=None):\n    """Text."""', ["f"]),
        ("def f(a, b, c): ...", ["f"]),
        ('def f(a, b, c):\n    """Text.\n\n    Args:\n        a: metres.\n    """', []),
        ('def f(a, b):\n    """Text."""', []),
        ('def _f(a, b, c):\n    """Text."""', []),
        ('class A:\n    def f(self, a, b, c):\n        """Text."""', ["f"]),
        ("class A:\n    def f(self, a, b, c): ...", ["f"]),
        ("class A(x.Foreign):\n    def f(self, a, b, c): ...", []),
        ('class A(x.Foreign):\n    def f(self, a, b, c):\n        """Text."""', ["f"]),
        ('class _A:\n    def f(self, a, b, c):\n        """Text."""', []),
        (
            'class A:\n    def f(self, a, b, c):\n        """T.\n\n        Args:\n            a: b.\n        """\n\n\n'
            'class B(A):\n    def f(self, a, b, c):\n        """Text."""',
            [],
        ),
    ],
)
def test_it_finds_what_lacks_the_section(code, named):
    found = without_args({ROOT / "module.py": ast.parse(code)})
    assert [line.rpartition(" ")[2] for line in found] == named
