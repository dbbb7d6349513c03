"""Hooks of the site's build: the version, and texts that stand elsewhere in the repository."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
KINDS = ("added", "changed", "fixed", "removed")


def version() -> str:
    """The version that pyproject.toml says."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def fragments() -> str:
    """All fragments of ``changes/`` by kind, as they will be in the changelog."""
    parts = []
    for kind in KINDS:
        texts = [path.read_text() for path in sorted(ROOT.glob(f"changes/*.{kind}.md"))]
        entries = [f"- {' '.join(text.split()).removeprefix('- ')}" for text in texts]
        if entries:
            parts.append("\n".join([f"### {kind.capitalize()}", "", *entries]))
    return "\n\n".join(parts).replace("](SECURITY.md)", "](security.md)")


def on_config(config: Any) -> Any:
    """Tell the version below each page."""
    config.copyright = f"sharedtask {version()}"
    return config


def security() -> str:
    """SECURITY.md, with its links as pages have them."""
    return (ROOT / "SECURITY.md").read_text().replace("](docs/", "](")


# The comment that marks the place on a page, and what is written there.
PLACES: dict[str, Callable[[], str]] = {
    "<!-- changes since the last release -->": fragments,
    "<!-- text of SECURITY.md -->": security,
}


def on_page_markdown(markdown: str, **_given: object) -> str:
    """Fill in what a page has a place for."""
    for place, text in PLACES.items():
        if place in markdown:
            markdown = markdown.replace(place, text())
    return markdown
