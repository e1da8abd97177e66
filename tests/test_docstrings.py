"""Every example of a docstring runs: doctests, and the blocks after ``::`` that are Python."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import textwrap
from types import ModuleType

import pytest

import zoopt_nas

BLOCK = re.compile(r"::\n\n((?:(?:[ \t]+[^\n]*)?\n)+)")
MODULES = ["zoopt_nas"] + [
    module.name for module in pkgutil.walk_packages(zoopt_nas.__path__, "zoopt_nas.")
]


def docstrings(module: ModuleType) -> list[str]:
    """The docstrings of a module, its classes and its functions."""
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text]


def python_blocks(text: str) -> list[str]:
    """The indented blocks after ``::`` that are Python; the others are layouts and formulas."""
    found = []
    for match in BLOCK.finditer(text + "\n"):
        code = textwrap.dedent(match[1])
        try:
            ast.parse(code)
        except SyntaxError:
            continue
        found.append(code)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    for text in docstrings(module):
        for code in python_blocks(text):
            exec(code, dict(vars(module)))  # noqa: S102


def test_how_blocks_are_found():
    text = (
        "Summary::\n\n    x = 1\n\n    y = 2\n\nA layout::\n\n    run/config.toml  the settings\n"
    )
    assert python_blocks(text) == ["x = 1\n\ny = 2\n\n"]
    with pytest.raises(ZeroDivisionError):
        exec(python_blocks("Wrong::\n\n    1 / 0\n")[0])  # noqa: S102
