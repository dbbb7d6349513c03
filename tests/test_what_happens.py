"""The page that says what happens when: each of its rows is a test."""

import ast
from pathlib import Path

import pytest

from sharedtask import testing

HERE = Path(__file__).parent
KIT = Path(testing.__file__).parent
PAGE = HERE.parent / "docs" / "what-happens.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]


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
    paths = KIT.glob("*.py") if name == "testing" else [HERE / name]
    assert any(function in names_of_tests(path) for path in paths)


def test_page_has_rows() -> None:
    """The rows are found."""
    assert 40 < len(ROWS)
