"""What a stranger meets in the sources: few packages, and no piece that is too long to read."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import sharedtask

SOURCES = Path(sharedtask.__file__).parent
MODULES = [path for path in SOURCES.rglob("*.py") if "testing" not in path.parts]
# Of lines with code: docstrings and comments do not count.
MODULE_LINES, CLASS_LINES, FUNCTION_LINES = 400, 300, 40
_EMPTY = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def lines_of_code(source: str, tree: ast.AST) -> set[int]:
    """The numbers of the lines that are neither empty nor a comment or a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {
        line
        for token in tokens
        if token.type not in _EMPTY and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def too_long(path: Path, source: str) -> Iterator[str]:
    """What has more lines of code than a reader can hold."""
    tree = ast.parse(source)
    code = lines_of_code(source, tree)
    if len(code) > MODULE_LINES:
        yield f"{path}: {len(code)} lines"
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            most = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            count = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            if count > most:
                yield f"{path}: {node.name} has {count} lines"


def test_pieces_are_short() -> None:
    """Modules have at most 400 lines of code, classes 300 and functions 40."""
    assert [] == [found for path in MODULES for found in too_long(path, path.read_text("utf-8"))]


def test_long_pieces_are_found() -> None:
    """A function is too long from the line behind the last that is allowed."""
    body = "".join(f"    x{k} = {k}\n" for k in range(FUNCTION_LINES - 1))
    fits = f'def f():\n    """A docstring."""\n    # a comment\n\n{body}'
    assert [] == list(too_long(Path("m.py"), fits))
    assert ["m.py: f has 41 lines"] == list(too_long(Path("m.py"), f"{fits}    y = 0\n"))


def test_packages_and_modules_are_few() -> None:
    """The first look finds at most 12 packages, and 10 modules beside them."""
    packages = {path.parent.name for path in SOURCES.glob("*/__init__.py")}
    modules = {path.stem for path in SOURCES.glob("*.py")} - {"__init__", "__main__"}
    assert len(packages) <= 12, sorted(packages)
    assert len(modules) <= 10, sorted(modules)


def test_packages_say_what_they_decide() -> None:
    """Each package says what it decides and what it must not know; the test kit is for users."""
    for path in SOURCES.glob("*/__init__.py"):
        told = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        users = path.parent.name in ("testing", "joblib")
        assert users or ("ecide" in told and "Must not" in told), path
