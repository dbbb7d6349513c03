"""Warns of a task whose results vanish: it only writes to a variable of the caller.

    results = []

    @parallel
    def score(x):
        results.append(x * x)    # each worker has a list of its own

A task that also reads the variable keeps a cache for later items, which is no mistake. So the
source decides. It is read once for each function, and only if that could write to a container.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
import warnings
from collections import defaultdict, deque
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sharedtask.errors import IncompleteValueWarning
from sharedtask.system.tracebacks import level_of_user

from .composition import names, stored_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["failed", "warn"]

_CONTAINERS = (list, dict, set, deque, bytearray)
# Methods of these that return nothing.
_WRITERS = frozenset(
    (
        *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert"),
        *("difference_update", "intersection_update", "symmetric_difference_update", "update"),
        *("reverse", "rotate", "sort", "subtract"),
    )
)
_STORES = frozenset(("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_GLOBAL", "STORE_DEREF"))
_MOST_FUNCTIONS = 20

failed: set[str] = set()
"""Tasks whose calls have failed, because warnings are errors: the next one is warned of again."""


def warn(task: str, function: Any) -> None:
    """Warn of each variable to which the function, and those it calls, only write."""
    failed.add(task)
    for name, line in _only_written(function):
        msg = (
            f"{task}(): {name!r} is only written to, in line {line}. Each worker changes a copy of"
            " its own; the caller's stays as it is. Return what the task finds; for arrays, mark"
            " a parameter Partitioned or Reduced, or use map_into(). A name that begins with an"
            " underscore is not looked at."
        )
        warnings.warn(msg, IncompleteValueWarning, stacklevel=level_of_user())
    failed.discard(task)


def _only_written(function: Any) -> Iterator[tuple[str, int]]:
    uses: defaultdict[object, list[_Use]] = defaultdict(list)
    for each in _functions(function):
        variables = _variables(each)
        if variables and _may_write(each.__code__):
            for use in _uses(each, variables):
                uses[variables[use.name]].append(use)
        else:
            for name in variables:
                uses[variables[name]].append(_Use(name, 0, is_write=False))
    for found in uses.values():
        if all(use.is_write for use in found):
            yield found[0].name, found[0].line


class _Use:
    """A place where the source names a variable."""

    __slots__ = ("is_write", "line", "name")

    def __init__(self, name: str, line: int, *, is_write: bool) -> None:
        self.name, self.line, self.is_write = name, line, is_write


def _functions(function: Any) -> list[FunctionType]:
    """The function, and those of its module that it can reach."""
    found: list[FunctionType] = []
    todo: list[Any] = [function]
    while todo and len(found) < _MOST_FUNCTIONS:
        each = todo.pop()
        each = getattr(each, "__func__", each)
        is_new = type(each) is FunctionType and each not in found
        if is_new and each.__module__ == function.__module__:
            found.append(each)
            todo.extend(value for _, value in _named(each))
    return found


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals and the closure's variables that a function uses."""
    values = function.__globals__
    yield from ((name, values[name]) for name in names(function.__code__) if name in values)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is empty
            continue


def _variables(function: FunctionType) -> dict[str, object]:
    """The variables that could take results, and what tells them apart in all functions.

    Containers by their identity, and numbers and texts that the function sets by their place.
    """
    found: dict[str, object] = {}
    stored = {*stored_names(function.__code__), *_stored_cells(function.__code__)}
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    for name, value in _named(function):
        if name.startswith("_"):
            continue
        if isinstance(value, _CONTAINERS):
            found[name] = id(value)
        elif name in stored and isinstance(value, int | float | complex | str | bytes | tuple):
            found[name] = id(cells[name]) if name in cells else (id(function.__globals__), name)
    return found


def _stored_cells(code: CodeType) -> Iterator[str]:
    if code.co_freevars:
        each = dis.get_instructions(code)
        yield from (found.argval for found in each if found.opname == "STORE_DEREF")


def _may_write(code: CodeType) -> bool:
    if not _WRITERS.isdisjoint(code.co_names):
        return True
    if any(each.opname in _STORES for each in dis.get_instructions(code)):
        return True
    return any(_may_write(each) for each in code.co_consts if isinstance(each, CodeType))


# By code, which many closures may have. Without those whose source is not found.
_known: WeakKeyDictionary[CodeType, list[_Use]] = WeakKeyDictionary()


def _uses(function: FunctionType, wanted: Iterable[str]) -> Iterator[_Use]:
    """The uses in the source; a read of each if that is not found."""
    found = _known.get(function.__code__)
    if found is None:
        try:
            found = _known[function.__code__] = list(_uses_in(function))
        except (OSError, TypeError, SyntaxError, ValueError):
            found = [_Use(name, 0, is_write=False) for name in wanted]
    yield from (use for use in found if use.name in wanted)


def _uses_in(function: FunctionType) -> Iterator[_Use]:
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield _Use(node.id, first + node.lineno - 1, is_write=_is_write(node, parents))


def _is_write(name: ast.Name, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a name is there to change its value, or a part of it, and for nothing else."""
    node: ast.AST = name
    parent = parents[node]
    if isinstance(parent, ast.AugAssign):
        return parent.target is node
    while True:
        if isinstance(parent, ast.Attribute | ast.Subscript) and parent.value is node:
            if not isinstance(parent.ctx, ast.Load):
                return True
        elif not (isinstance(parent, ast.Call) and isinstance(node, ast.Attribute)):
            return False
        elif node.attr in _WRITERS and parent.func is node:
            return isinstance(parents[parent], ast.Expr | ast.Lambda)
        elif node.attr != "setdefault":
            return False
        node, parent = parent, parents[parent]
