"""Every ``python`` block in the documentation runs, or says why it does not."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from budget import with_long

from sharedtask.testing import slowness

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
LIMIT = 90  # seconds

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
# Excuses that do not count here: what the block needs is installed.
MET = {"needs torch"} if importlib.util.find_spec("torch") else set()
EXCUSE = re.compile(r"<!-- not run: (?P<reason>\S.*) -->")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its lines, the line of the page it starts at."""

    language: str
    text: str
    line: int
    excuse: str | None


def blocks(page: str) -> list[Block]:
    """Take a page apart."""
    found: list[Block] = []
    lines = page.splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, opened = number, fence
            continue
        body = [text.removeprefix(opened["indent"]) for text in lines[start + 1 : number]]
        before = next((text for text in reversed(lines[:start]) if text.strip()), "")
        excuse = EXCUSE.search(before)
        words = opened["info"].split()
        language = words[0] if words else ""
        reason = excuse["reason"] if excuse else None
        found.append(Block(language, "\n".join(body), start + 2, reason))
        start = None
    assert start is None, f"the block at line {(start or 0) + 1} is never closed"
    return found


def as_script(page: str) -> str:
    """The page's blocks as one script with the same line numbers as the page."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and (block.excuse is None or block.excuse in MET):
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


WITH_CODE = [page for page in PAGES if as_script(page.read_text())]

# Pages that end with nearly the same program as others.
ALIKE = [ROOT / f"docs/coming-from/{name}.md" for name in ("dask", "mpire", "ray")]


@pytest.mark.parametrize(
    "page",
    with_long(WITH_CODE, ROOT / "docs/cluster.md", *ALIKE),  # the first starts Ray
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page, one after the other in one script, end without an error."""
    script = tmp_path / f"page_{page.stem.replace('-', '_')}.py"  # not pandas.py
    script.write_text(as_script(page.read_text()))
    ran = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT * slowness(),
        check=False,
    )
    assert 0 == ran.returncode, f"{page.name}, line numbers as in the page:\n{ran.stderr}"
    assert "Traceback" not in ran.stderr


def test_pages_with_code_are_found() -> None:
    """The quick start and the README are among the pages that run."""
    assert {"README.md", "index.md", "quick-start.md"} <= {page.name for page in WITH_CODE}


def test_block_with_an_excuse_is_left_out() -> None:
    """The comment before a block excuses that block and no other."""
    page = "<!-- not run: needs a cluster -->\n```python\na\n```\n\n```python\nb\n```\n"
    assert ["needs a cluster", None] == [block.excuse for block in blocks(page)]
    assert "\n\n\n\n\n\nb\n" == as_script(page)


@pytest.mark.parametrize("language", ["py", "Python", "python3", "pycon", ""])
def test_code_under_another_name_is_not_overlooked(language: str) -> None:
    """Python is written ``python``; a block under a near name, or under none, does not count."""
    assert {"python", "console", "text", "toml"}.isdisjoint({language})
    wrong = [
        f"{page.name}:{block.line}"
        for page in PAGES
        for block in blocks(page.read_text())
        if block.language == language
    ]
    assert [] == wrong


def test_links_between_pages_lead_somewhere() -> None:
    """A relative link names a file of the checkout, or the one that the build makes."""
    made = {"notebook.ipynb"}
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists() and target not in made
    ]
    assert [] == broken
