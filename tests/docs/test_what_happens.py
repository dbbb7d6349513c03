"""The pages that say what happens when, and what a worker has: each of their rows is a test."""

import ast
import itertools
from pathlib import Path

import pytest

from sharedtask import testing

HERE = Path(__file__).parents[1]
KIT = Path(testing.__file__).parent
DOCS = HERE.parent / "docs"
PAGES = ("what-happens.md", "worker.md", "how-to/per-worker.md", "kinds/losses.md")


def rows_of(page: str) -> list[str]:
    """The lines of its tables, without the heads."""
    lines = (DOCS / page).read_text().splitlines()
    heads = {above for above, line in itertools.pairwise(lines) if line[:3] == "|--"}
    return [line for line in lines if line.startswith("| ") and line not in heads]


ROWS = [row for page in PAGES for row in rows_of(page)]


def names_of_tests(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_row_names_a_test(row: str) -> None:
    """A row of the page ends with the name of a test that there is."""
    name, function = row.partition("<!-- ")[2].removesuffix(" --> |").split("::")
    paths = KIT.glob("*.py") if name == "testing" else HERE.rglob(name.rpartition("/")[2])
    assert any(function in names_of_tests(path) for path in paths)


def test_pages_have_rows() -> None:
    """The rows are found."""
    assert 40 < len(rows_of("what-happens.md"))
    assert 15 < len(rows_of("worker.md"))
    assert 10 < len(rows_of("kinds/losses.md"))
