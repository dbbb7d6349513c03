"""Checks of the built site: every link has its target, and no page is heavy."""

import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

LIMIT = 1_000_000  # bytes of a page with all that it loads, compressed as web servers send them
SEARCH = ("search/search_index.json",)  # loaded by each page's script
LINK = re.compile(r'<a [^>]*?href="([^"]*)"')
LOADED = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*? (?:src|href)="([^"]+)"')
ANCHOR = re.compile(r' (?:id|name)="([^"]+)"')


def problems(site: Path) -> list[str]:
    """What is wrong with the pages of a site, a line for each."""
    pages = sorted(page for page in site.rglob("*.html") if page.name != "404.html")
    return [line for page in pages for line in (*dead_links(site, page), *too_heavy(site, page))]


def dead_links(site: Path, page: Path) -> Iterator[str]:
    """Links of a page within the site to a file or an anchor that does not exist."""
    for link in dict.fromkeys(LINK.findall(page.read_text())):
        target, anchor = urldefrag(link)
        file = located(site, page, target)
        if file is None or (file.exists() and anchor in ("", *anchors(file))):
            continue
        yield f"{page.relative_to(site)}: nothing is at {link}"


def located(site: Path, page: Path, target: str) -> Path | None:
    """The file of the site behind a link; None for other sites."""
    if re.match(r"[a-z]+:|//", target):
        return None
    if not target:
        return page
    found = site / unquote(urljoin(f"/{page.relative_to(site)}", target)).lstrip("/")
    return found / "index.html" if found.is_dir() else found


@cache
def anchors(file: Path) -> frozenset[str]:
    """The names that a link to a file may end with."""
    return frozenset(ANCHOR.findall(file.read_text())) if file.suffix == ".html" else frozenset()


def too_heavy(site: Path, page: Path) -> Iterator[str]:
    """Says so if a page, with its scripts, styles, pictures and the search, exceeds the limit."""
    loaded = [located(site, page, link) for link in LOADED.findall(page.read_text())]
    files = {page, *(file for file in loaded if file), *(site / name for name in SEARCH)}
    size = sum(compressed(file) for file in files if file.exists())
    if size > LIMIT:
        yield f"{page.relative_to(site)}: {size:,} bytes are loaded, and {LIMIT:,} are allowed"


@cache
def compressed(file: Path) -> int:
    """The bytes that a web server sends."""
    return len(gzip.compress(file.read_bytes(), 6))
