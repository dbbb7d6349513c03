"""Hooks of the site's build: the version, and texts that stand elsewhere in the repository."""

import argparse
import os
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mkdocs_checks
import mkdocs_gallery
import mkdocs_traces

from sharedtask import options
from sharedtask.cli import main as cli

ROOT = Path(__file__).parent
KINDS = ("added", "changed", "fixed", "removed")


def version() -> str:
    """The version that pyproject.toml says."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def fragment_files(kind: str = "*") -> list[Path]:
    """The fragments of ``changes/``, of one kind or of all."""
    return sorted(ROOT.glob(f"changes/*.{kind}.md"))


def fragments() -> str:
    """All fragments by kind, as they will be in the changelog; "" if there are none."""
    parts = []
    for kind in KINDS:
        texts = [path.read_text() for path in fragment_files(kind)]
        entries = [f"- {' '.join(text.split()).removeprefix('- ')}" for text in texts]
        if entries:
            parts.append("\n".join([f"### {kind.capitalize()}", "", *entries]))
    return "\n\n".join(parts)


def changelog() -> str:
    """What has landed since the last release, and all releases."""
    _, mark, releases = (ROOT / "CHANGELOG.md").read_text().partition("\n## ")
    new = fragments()
    since = f"## Since the last release\n\n{new}\n\n" if new else ""
    return f"{since}{mark}{releases}".replace("](SECURITY.md)", "](security.md)").replace(
        "](docs/", "]("
    )


def on_config(config: Any) -> Any:
    """Tell the version below each page."""
    config.copyright = f"sharedtask {version()}"
    return config


def security() -> str:
    """SECURITY.md, with its links as pages have them."""
    return (ROOT / "SECURITY.md").read_text().replace("](docs/", "](")


def commands() -> str:
    """What each command of ``sharedtask`` prints for ``--help``, under its name."""
    os.environ["COLUMNS"] = "88"
    parser = cli.parser()
    parts = [f"```text\n{parser.format_help()}```"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts += [f"## {n}\n\n```text\n{c.format_help()}```" for n, c in action.choices.items()]
    return "\n\n".join(parts)


def variables() -> str:
    """The variables of all options that have one, side by side."""
    return ", ".join(f"`{name}`" for name in options.VARIABLES)


# The comment that marks the place on a page, and what is written there.
PLACES: dict[str, Callable[[], str]] = {
    "<!-- changes -->": changelog,
    "<!-- gallery -->": mkdocs_gallery.gallery,
    "<!-- help of the commands -->": commands,
    "<!-- variables of options -->": variables,
    "<!-- text of SECURITY.md -->": security,
}


# Pages about the history of the library: the search lists them below the others.
HISTORY = ("changes.md", "decisions/")


def on_page_markdown(markdown: str, page: Any = None, **_given: object) -> str:
    """Fill in what a page has a place for."""
    if page is not None and page.file.src_uri.startswith(HISTORY):
        page.meta["search"] = {"boost": 0.1}
    for place, text in PLACES.items():
        if place in markdown:
            markdown = markdown.replace(place, text())
    return markdown


def on_files(files: Any, config: Any) -> Any:
    """Run the notebook and the traced programs, and add what they make to the files of the site."""
    from mkdocs.structure.files import File

    notebook = mkdocs_gallery.executed()
    files.append(File.generated(config, "notebook.ipynb", content=notebook))
    PLACES["<!-- notebook -->"] = lambda: mkdocs_gallery.as_page(notebook)
    made, texts = mkdocs_traces.pictures()
    for name, picture in made.items():
        files.append(File.generated(config, f"how-to/{name}", content=picture))
    for name, text in texts.items():
        PLACES[f"<!-- traces of {name} -->"] = partial(str, text)
    return files


def on_post_build(config: Any) -> None:
    """Fail where a link leads nowhere, or a page is heavy."""
    from mkdocs.exceptions import Abort

    if found := mkdocs_checks.problems(Path(config.site_dir)):
        raise Abort("\n".join(found))
