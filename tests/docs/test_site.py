"""The site: few doors, every page behind one of them, the version and the changes on it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import mkdocs_hooks
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = PROJECT["urls"]["Documentation"] + "/"


def settings() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return loaded


def pages(entry: Any) -> list[str]:
    """The pages of a part of the nav, in their order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in pages(part)]


def test_top_level_has_four_doors_and_few_entries() -> None:
    """A reader chooses between seven entries at most, the four doors among them."""
    top = [next(iter(entry)) for entry in settings()["nav"]]
    assert len(top) <= 7
    assert {"Tutorial", "How-to", "Reference", "Explanation"} <= set(top)


def test_every_page_is_behind_one_door() -> None:
    """A page is in the nav exactly once, but for the records of decisions."""
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    records = {page for page in there if re.match(r"decisions/\d", page)}
    assert sorted(there - records) == sorted(pages(settings()["nav"]))


def test_site_has_the_base_of_the_project() -> None:
    """The address of the site is said in pyproject.toml, and mkdocs.yml agrees."""
    assert settings()["site_url"] == BASE


def test_version_is_below_each_page() -> None:
    """The version of the package is the one that the site tells."""
    assert mkdocs_hooks.version() == PROJECT["version"]


def test_page_of_changes_has_all_fragments() -> None:
    """The page of changes has an entry for each fragment, under its kind."""
    text = mkdocs_hooks.on_page_markdown("<!-- changes since the last release -->")
    fragments = [path for path in (ROOT / "changes").glob("*.md") if path.name != "README.md"]
    assert len(fragments) == len(re.findall(r"^- ", text, re.MULTILINE))
    assert "### Added" in text
