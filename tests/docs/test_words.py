"""Sources, messages and docs are written in plain sentences with the field's standard terms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What to write instead, for each word or phrase that makes a sentence hard to read.
INSTEAD = {
    "whoever": "the actor: caller, worker, thread, process, kernel",
    "nobody": "the actor, with what it cannot do: read-only, no other process",
    "anew": "again, or a new ...",
    "for ever": "without end, or: never returns",
    "of no use to": "not used by",
    "stood": "is, was, or the verb that applies",
    "stands in": "is in, or: replaces",
    "stands for": "means, refers to, replaces",
    "stands at": "is at",
    "hereafter": "later",
    "therein": "in it",
    "thereof": "of it",
    "comes about": "happens",
    "to be had": "available",
    "twice is once": "idempotent",
    "turns the loop": "runs the loop",
    "the conductor": "the run",
    "the starter": "the forkserver",
}
# On pages and in examples, which users read, these as well.
INSTEAD_ON_PAGES = INSTEAD | {
    "all the same": "still",
    "as it stands": "without a change, without arguments",
    "begun": "started",
    "beside": "next to, compared with",
    "but for": "except",
    "by itself": "automatically, or: alone",
    "by themselves": "automatically, or: alone",
    "dearer": "more expensive",
    "dearest": "most expensive",
    "everybody": "the actor: all workers, all users",
    "everyone": "the actor: all workers, all users",
    "given back": "returned, freed, released",
    "gives back": "returns, frees, releases",
    "in hand": "current",
    "in the place of": "instead of",
    "its kin": "similar ...",
    "lets go": "releases, drops, frees",
    "meanwhile": "at the same time, or: until then",
    "mended": "fixed",
    "of ours": "of sharedtask",
    "seldom": "rarely",
    "stand": "is, put, set",
    "standing": "being, in",
    "stands": "is, means",
    "there and back": "round trip",
    "told": "reported, warned, listed",
}


def of_words(words: Iterable[str]) -> re.Pattern[str]:
    """Finds each of the words."""
    return re.compile(rf"\b({'|'.join(re.escape(word) for word in words)})\b", re.IGNORECASE)


WORDS, WORDS_ON_PAGES = of_words(INSTEAD), of_words(INSTEAD_ON_PAGES)
# At the end of a line that needs the word, with the reason.
MARKER = re.compile(r"words: \S")


def pages() -> list[Path]:
    """The pages that users and contributors read."""
    ours = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    docs = (ROOT / "docs").rglob("*.md")
    return [*ours, *(page for page in docs if not re.match(r"\d{4}-", page.name))]


def texts() -> list[Path]:
    """The pages, and the sources."""
    return [*pages(), *(ROOT / "src").rglob("*.py")]


def complaints(text: str, words: re.Pattern[str] = WORDS) -> list[str]:
    """The lines of a text with such a word, and what to write."""
    return [
        f"line {number}: {found[0]!r}: write {INSTEAD_ON_PAGES[found[0].lower()]}"
        for number, line in enumerate(text.splitlines(), 1)
        for found in words.finditer(line)
        if not MARKER.search(line)
    ]


def test_sentences_are_plain() -> None:
    """No source and no page has a word of the list, but for lines that say why they need it."""
    assert [] == [
        f"{path.relative_to(ROOT)}, {complaint}"
        for path in texts()
        for complaint in complaints(path.read_text())
    ]


# Code and output on a page may have any word; so may names of tests in its comments.
NO_PROSE = re.compile(
    r"^ *```.*?^ *```$|<!--.*?-->|`[^`\n]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE
)


def prose(page: str) -> str:
    """A page without code, output and comments, with the same line numbers."""
    return NO_PROSE.sub(lambda found: "\n" * found[0].count("\n"), page)


def test_pages_are_plain() -> None:
    """No sentence of a page, and no text in a picture, has a word of either list."""
    assert [] == [
        f"{path.relative_to(ROOT)}, {complaint}"
        for path in [*pages(), *(ROOT / "docs/img").glob("*.svg")]
        for complaint in complaints(prose(path.read_text()), WORDS_ON_PAGES)
    ]


def test_examples_are_plain() -> None:
    """No docstring and no comment of an example has a word of either list."""
    assert [] == [
        f"{path.relative_to(ROOT)}, {complaint}"
        for path in (ROOT / "examples").glob("*.py")
        for text in (
            *docstrings(path),
            *re.findall(r"  # .*|^# .*", path.read_text(), re.MULTILINE),
        )
        for complaint in complaints(text, WORDS_ON_PAGES)
    ]


DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a test module; in its code such a word may be a value."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DOCUMENTED):
            yield ast.get_docstring(node) or ""


def test_rules_of_tests_are_plain() -> None:
    """No docstring of a test has a word of the list."""
    assert [] == [
        f"{path.relative_to(ROOT)}: {text!r}: {complaint}"
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__)
        for text in docstrings(path)
        for complaint in complaints(text)
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('"""Whoever waits for it gets None."""', "'Whoever': write the actor"),
        ("# Wait for ever.", "'for ever': write without end"),
        ('"""Close it; twice is once."""', "'twice is once': write idempotent"),
    ],
)
def test_word_of_the_list_is_found(line: str, found: str) -> None:
    """A line with a word of the list is reported, with what to write instead."""
    assert [f"line 2: {found}"] == [c[: len(found) + 8] for c in complaints(f"\n{line}")]


def test_line_with_a_reason_is_left_out() -> None:
    """A line that says why it needs the word is not reported."""
    assert [] == complaints('user = "nobody"  # words: a name of the system')


def test_identifiers_are_left_out() -> None:
    """A word that is a part of an identifier is not reported."""
    assert [] == complaints("as_nobody(), start_anew")


def test_code_and_comments_of_pages_are_left_out() -> None:
    """Only sentences of a page are read, with the lines of the page."""
    page = "```text\ntold\n```\n`told` <!-- told -->\nIt is told.\n"
    assert [f"line 5: 'told': write {INSTEAD_ON_PAGES['told']}"] == complaints(
        prose(page), WORDS_ON_PAGES
    )


def test_new_pages_are_read() -> None:
    """The glossary, the README and the sources are among the texts."""
    names = {str(path.relative_to(ROOT)) for path in texts()}
    assert {"README.md", "docs/glossary.md", "src/sharedtask/errors.py"} <= names
