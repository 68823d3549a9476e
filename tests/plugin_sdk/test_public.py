"""The public surface of the SDK."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import plugin_sdk


def test_all_is_exactly_the_public_names() -> None:
    public = {
        name
        for name, value in vars(plugin_sdk).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(plugin_sdk.__all__) == public
    assert len(plugin_sdk.__all__) == len(public)


def test_all_is_sorted_as_ruff_sorts_it() -> None:
    constants = [name for name in plugin_sdk.__all__ if name.isupper()]
    classes = [name for name in plugin_sdk.__all__ if name not in constants and name[0].isupper()]
    functions = [name for name in plugin_sdk.__all__ if name[0].islower()]
    assert plugin_sdk.__all__ == sorted(constants) + sorted(classes) + sorted(functions)


def test_every_public_class_and_function_is_documented() -> None:
    values = [getattr(plugin_sdk, name) for name in plugin_sdk.__all__]
    undocumented = [value for value in values if callable(value) and not inspect.getdoc(value)]
    assert undocumented == []


def test_the_sdk_imports_msgspec_and_the_standard_library_alone() -> None:
    imported: set[str] = set()
    for file in Path(plugin_sdk.__file__).parent.glob("*.py"):
        for node in at_run_time(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"plugin_sdk", "msgspec"}
    assert outside == set()


def at_run_time(tree: ast.Module) -> Iterator[ast.AST]:
    """All that is run: not what stands there for type checkers."""
    for node in tree.body:
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield from ast.walk(node)
