"""Product files and functions stay of a size that is read in one go; a function's docstring is not counted."""

import ast

import pytest

from tests.conftest import ROOT

FILE_LINES, FUNCTION_LINES = 400, 60
ROOMS = ("verl_stvg", "data_builders", "eval", "reward_fns")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]  # links are not followed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if _lines(node) > FUNCTION_LINES] == []


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)
