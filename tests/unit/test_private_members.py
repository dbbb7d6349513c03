"""A name with an underscore belongs to its module: no other module of ours uses it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sharedtask

SOURCES = Path(sharedtask.__file__).parent
TREES = {file: ast.parse(file.read_text()) for file in sorted(SOURCES.rglob("*.py"))}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")


def defined(tree: ast.AST) -> set[str]:
    """The private names that a module defines, at any depth."""
    found = {slot for node in ast.walk(tree) for slot in names_of(node)}
    return set(filter(is_private, found))


def names_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # of __slots__
        yield node.value


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The private names that a module uses of other objects than ``self``, and imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls"}:
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and _is_ours(node):
            yield from ((node.lineno, alias.name) for alias in node.names)


def _is_ours(node: ast.ImportFrom) -> bool:
    return bool(node.level) or (node.module or "").startswith("sharedtask")


OWNED = {(name, file) for file, tree in TREES.items() for name in defined(tree)}
# Of namedtuple, Future, RLock, mmap and numba, which some of ours are named like.
FOREIGN = {"_make", "_fields", "_replace", "_condition", "_state", "_waiters", "_is_owned", "_mmap"}
FOREIGN |= {"_reduce_class"}
# A future is the user's own: what its submission does with it is not among its methods.
FOREIGN |= {"_set_cancelled"}
OURS = {name for name, _ in OWNED} - FOREIGN


def test_module_uses_no_private_name_of_another() -> None:
    """What another module needs has a name without an underscore."""
    assert [] == [
        f"{file}:{line} {name}"
        for file, tree in TREES.items()
        for line, name in used(tree)
        if name in OURS and (name, file) not in OWNED
    ]
