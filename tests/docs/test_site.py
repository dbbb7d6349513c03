"""The site: few doors, every page behind one of them, the version and the changes on it."""

import json
import random
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import mkdocs_checks
import mkdocs_gallery
import mkdocs_hooks
import mkdocs_traces
import pytest
from benchmarks import picture

from sharedtask import options
from sharedtask.cli import main as cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = PROJECT["urls"]["Documentation"] + "/"


def settings() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="comes with sharedtask[docs]")
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
    assert settings()["repo_url"] == PROJECT["urls"]["Source"]


def test_version_is_below_each_page() -> None:
    """The version of the package is the one that the site tells."""
    assert mkdocs_hooks.version() == PROJECT["version"]


def test_page_of_changes_has_all_fragments_and_releases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What landed since the last release is told by kind, above the releases, until one is cut."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("mkdocs_hooks.py", "mkdocs_checks.py", "mkdocs_gallery.py", "mkdocs_traces.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    old = "## 0.1.0 (2026-01-01)\n\nFirst.\n"
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\nHead.\n\n{old}")
    fragments = tmp_path / "changes"
    fragments.mkdir()
    (fragments / "README.md").write_text("# About\n")
    (fragments / "b.fixed.md").write_text("A fault\nis mended.\n")
    (fragments / "a.added.md").write_text("A [page](docs/new.md).\n")
    new = "### Added\n\n- A [page]({}new.md).\n\n### Fixed\n\n- A fault is mended."
    monkeypatch.setattr(mkdocs_hooks, "ROOT", tmp_path)
    since = f"## Since the last release\n\n{new.format('')}\n\n\n{old}"
    assert since == mkdocs_hooks.on_page_markdown("<!-- changes -->")
    command = [sys.executable, str(tmp_path / ".ci" / "changelog"), "2026-02-02"]
    subprocess.run(command, check=True)
    cut = f"# Changes\n\nHead.\n\n## 0.2.0 (2026-02-02)\n\n{new.format('docs/')}\n\n{old}"
    assert cut == (tmp_path / "CHANGELOG.md").read_text()
    assert ["README.md"] == [path.name for path in fragments.iterdir()]
    assert mkdocs_hooks.on_page_markdown("<!-- changes -->").startswith("\n## 0.2.0 (2026-02-02)")


@pytest.mark.parametrize("scheme", picture.SCHEMES)
def test_picture_is_drawn_from_the_results_on_file(scheme: str) -> None:
    """The picture of the landing page shows the results that the repository has."""
    results = json.loads(picture.RESULTS.read_text())
    told = "python -m benchmarks.picture renews it"
    assert picture.drawn(results, scheme) == Path(picture.PICTURE.format(scheme)).read_text(), told


def test_picture_takes_its_results_from_a_run() -> None:
    """Of what the benchmarks write, the picture takes medians, and the best way by hand of Ray."""

    def cell(ms: float) -> dict[str, Any]:
        return {"repeated": {"median": ms}}

    found = picture.condensed(
        {
            "machine": {"date": "2026-01-31", "cpus": 2, "python": "3.11", "platform": "Linux"},
            "rows": {
                "3": {"title": "32 items", "ours": cell(0.9), "futures": {"repeated": {}}},
                "ray3": {"title": "", "per item": cell(27.0), "4 chunks": cell(2.3)},
            },
            "memory_over_256_mb": {"ours": 1.004, "joblib": {"failed": "died"}},
            "ray_memory_over_32_mb": {"4 chunks": 1.12},
        }
    )
    assert {"ours": 0.9, "futures": None, "ray": 2.3} == found["ms"]
    assert (1.0, None, 1.12) == tuple(found["memory"][n] for n in ("ours", "joblib", "ray"))


def place(link: str) -> tuple[Path, str]:
    """The file in the repository behind a link to the site, and the anchor in it."""
    path, _, anchor = link.removeprefix(BASE).partition("#")
    if path.startswith("source/"):
        return ROOT / path.removeprefix("source/"), anchor
    if "." in path:
        return DOCS / path, anchor
    page = path.strip("/") or "index"
    ways = (f"{page}.md", f"{page}/index.md", f"{page}/README.md")
    return next((DOCS / way for way in ways if (DOCS / way).exists()), DOCS / page), anchor


def has(file: Path, anchor: str) -> bool:
    """True where the file exists, with a heading of that name if one is asked for."""
    if not anchor or not file.exists():
        return file.exists()
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return anchor in [re.sub(r"[^\w-]+", "-", re.sub(r"[^\w\s-]", "", h)).lower() for h in headings]


def test_links_of_the_readme_have_one_base_and_lead_somewhere() -> None:
    """The README is read outside of the repository: its links are absolute, and none is dead."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)|(?:srcset|src)=\"([^\"]+)\"", text)
    targets = [one or other for one, other in links]
    assert [] == [target for target in targets if not target.startswith("https://")]
    ours = [target for target in targets if target.startswith(BASE)]
    assert 20 < len(ours)
    assert [] == [target for target in ours if not has(*place(target))]


def test_page_of_variables_has_all_of_them() -> None:
    """Each variable that the sources read is on the page of environment variables."""
    page = (DOCS / "environment.md").read_text()
    page = mkdocs_hooks.on_page_markdown(page)
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    name = r"\bSHAREDTASK_[A-Z_]*[A-Z]\b"
    assert set() == set(re.findall(name, sources)) - set(re.findall(name, page))
    assert set(options.VARIABLES) <= set(re.findall(r"`(SHAREDTASK_\w+)`", page))


def test_page_of_the_command_line_has_each_command() -> None:
    """The page has what each command prints for --help."""
    page = mkdocs_hooks.on_page_markdown((DOCS / "command-line.md").read_text())
    commands = re.findall(r"^    (\w+) ", cli.parser().format_help(), re.MULTILINE)
    assert {"info", "bench", "journal"} <= set(commands)
    assert commands == re.findall(r"^## (\w+)$", page, re.MULTILINE)


def luminance(colour: str) -> float:
    """The relative luminance of "#rrggbb", by the formula of WCAG 2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("behind", ["#ffffff", "#f5f5f5"], ids=["page", "code"])
def test_links_and_bar_are_easy_to_read(behind: str) -> None:
    """Light links, and white text on the bar, have the contrast that WCAG asks for."""
    found = re.search(r"--md-primary-fg-color: (#\w{6});", (DOCS / "css/site.css").read_text())
    assert found
    assert 4.5 < (luminance(behind) + 0.05) / (luminance(found[1]) + 0.05)


def test_examples_of_docstrings_are_a_section() -> None:
    """Docstrings say "Examples:", which the API shows as code; "Example:" is a plain note there."""
    wrong = [
        path.name for path in (ROOT / "src").rglob("*.py") if "    Example:\n" in path.read_text()
    ]
    assert [] == wrong


def test_gallery_has_each_example() -> None:
    """The gallery shows the code of each example, and the output that a page has."""
    page = mkdocs_hooks.on_page_markdown((DOCS / "gallery.md").read_text())
    names = {path.name for path in (ROOT / "examples").glob("*.py")} - {"notebook.py"}
    assert names == set(re.findall(r"^## (\w+\.py)$", page, re.MULTILINE))
    assert "all three agree: True" in page.split("## histogram.py")[1].split("??? example")[0]


def test_gallery_shows_what_examples_print() -> None:
    """Each example in the gallery has its output; `examples/support/pages.py NAME` records it."""
    names = {path.name for path in (ROOT / "examples").glob("*.py")} - {"notebook.py"}
    assert set() == {name for name in names if not mkdocs_gallery.recorded(name)}


def test_cells_of_the_notebook_run(tmp_path: Path) -> None:
    """The notebook of the site has the output of its cells: text, values and tables."""
    (tmp_path / "cells.py").write_text("'''About.'''\n\n# %%\nx = 2\nprint(x)\nx + 1\n")
    script = ROOT / "examples" / "support" / "cells.py"
    subprocess.run([sys.executable, script, "cells.py", "out.ipynb"], cwd=tmp_path, check=True)
    made = (tmp_path / "out.ipynb").read_text()
    assert "```python\nx = 2\nprint(x)\nx + 1\n```\n\n```text\n2\n```\n\n```text\n3\n```" == (
        mkdocs_gallery.as_page(made)
    )


def test_dead_links_and_anchors_are_found(tmp_path: Path) -> None:
    """The build names each link to a page, a file or an anchor that the site does not have."""
    (tmp_path / "b").mkdir()
    links = ("b/#here", "b/index.html#gone", "c/", "#top", "https://other.example/#x", "a.png")
    body = " ".join(f'<a class="x" href="{link}">x</a>' for link in links)
    (tmp_path / "index.html").write_text(f'<h1 id="top">A</h1> {body}')
    (tmp_path / "b/index.html").write_text('<h1 id="here">B</h1> <a href="../#top">up</a>')
    dead = ("b/index.html#gone", "c/", "a.png")
    assert [f"index.html: nothing is at {link}" for link in dead] == mkdocs_checks.problems(
        tmp_path
    )


def test_heavy_page_is_found(tmp_path: Path) -> None:
    """A page counts with what it loads, compressed."""
    (tmp_path / "a.png").write_bytes(random.Random(0).randbytes(1_100_000))
    (tmp_path / "a.js").write_text("x" * 2_000_000)
    (tmp_path / "light.html").write_text('<script src="a.js"></script>')
    (tmp_path / "heavy.html").write_text('<img alt="" src="a.png">')
    (found,) = mkdocs_checks.problems(tmp_path)
    assert re.fullmatch(r"heavy.html: 1,1\d\d,\d{3} bytes are loaded, and 1,000,000 .*", found)


def nothing() -> None:
    pass


def test_traced_programs_have_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program is on the page, with a picture before and after for each colour scheme."""
    page = (ROOT / "docs" / "how-to" / "slow-maps.md").read_text()
    assert list(mkdocs_traces.PROGRAMS) == re.findall("<!-- traces of (.+) -->", page)
    programs = dict.fromkeys(mkdocs_traces.PROGRAMS, mkdocs_traces.Program(nothing, nothing))
    monkeypatch.setattr(mkdocs_traces, "PROGRAMS", programs)
    monkeypatch.setattr(mkdocs_traces, "warm", lambda: None)
    files, texts = mkdocs_traces.pictures()
    linked = [name for text in texts.values() for name in re.findall(r"\]\((.+?)#only-", text)]
    assert sorted(files) == sorted(linked)
    assert all(picture.startswith("<svg") for picture in files.values())
