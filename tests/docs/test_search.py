"""The search of the site finds the words that users type."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What is typed, and a page that answers.
ANSWERS = {
    "initializer": "how-to/per-worker/",
    "logging": "how-to/logs/",
    "tqdm": "how-to/tqdm/",
    "jupyter": "how-to/notebooks/",
    "lru_cache": "options/",
    "n_jobs": "coming-from/joblib/",
    "max_workers": "coming-from/concurrent-futures/",
    "Pool": "coming-from/multiprocessing/",
    "GPU": "how-to/pytorch/",
    "macOS": "faq/",
    "pickle": "messages/",
    "shared_memory": "coming-from/multiprocessing/",
    "OOM": "messages/",
    "spawn": "coming-from/multiprocessing/",
    "fork": "how-it-works/",
}


def built(folder: Path) -> list[dict[str, str]]:
    """The entries of the index, built as the site's is, without the API's signatures."""
    config = pytest.importorskip("mkdocs.config", reason="comes with sharedtask[docs]")
    build = pytest.importorskip("mkdocs.commands.build")
    search = {"search": {"separator": r"[\s\-,:!=\[\]()\"`/]+|\.(?!\d)"}}
    settings = config.load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(folder), plugins=[search], strict=False
    )
    build.build(settings)
    entries: list[dict[str, str]] = json.loads((folder / "search/search_index.json").read_text())[
        "docs"
    ]
    return entries


@pytest.mark.timeout(120)
def test_words_that_users_type_are_found(tmp_path: Path) -> None:
    """Each word is in the index, and leads to the page that answers."""
    entries = built(tmp_path)
    missed = []
    for word, page in ANSWERS.items():
        found = {
            entry["location"].partition("#")[0]
            for entry in entries
            if word.lower() in f"{entry['title']} {entry['text']}".lower()
        }
        if page not in found:
            missed.append((word, page, sorted(found)))
    assert [] == missed
    below = {entry["location"].partition("/")[0] for entry in entries if "boost" in entry}
    assert {"changes", "decisions"} == below, "pages about history come after those that help"
