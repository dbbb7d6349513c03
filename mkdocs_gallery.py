"""The gallery of the site: each example with its picture, output and code, and a notebook."""

import ast
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
EXAMPLES = ROOT / "examples"
NOTEBOOK = "notebook.py"
PICTURES = {"histogram.py": "histogram.svg", "pairwise_distances.py": "distances.png"}
# What an example needs besides `pip install "sharedtask[demo]"`, and where its output is from.
NEEDS = {
    "cluster.py": "With `SHAREDTASK_BACKEND=ray` it needs Ray. Below is its output on processes.",
    "dataframe.py": "It needs pandas and joblib.",
    "fitted_model.py": "It needs scikit-learn and joblib.",
    "shared_kwargs_example.py": "It needs Ray; with `--backend mp` it does not.",
    "torch_model.py": "It needs PyTorch and joblib.",
}


def gallery() -> str:
    """A part for each example, as Markdown."""
    names = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != NOTEBOOK)
    return "\n\n".join(part(name) for name in names)


def part(name: str) -> str:
    """What an example is about, its picture, what it prints and its code."""
    source = (EXAMPLES / name).read_text()
    about = (ast.get_docstring(ast.parse(source)) or "").replace("``", "`")
    title, _, rest = about.partition("\n")
    parts = [f"## {name}", f"**{title}**", rest.strip(), NEEDS.get(name, "")]
    if name in PICTURES:
        parts.append(f"![{title}](img/{PICTURES[name]})")
    parts += [f"It prints:\n\n```text\n{text}```" for text in recorded(name)[:1]]
    code = f"```python\n{source}```".replace("\n", "\n    ")
    parts.append(f'??? example "Code of examples/{name}"\n\n    {code}')
    return "\n\n".join(each for each in parts if each)


def recorded(name: str) -> list[str]:
    """The output of an example, on a page or in a file; test_examples.py compares it with a run."""
    block = re.compile(
        rf"<!-- printed by examples/{re.escape(name)} -->\n```text\n(.*?)^```$",
        re.DOTALL | re.MULTILINE,
    )
    pages = sorted((ROOT / "docs").rglob("*.md"))
    file = EXAMPLES / "support" / "printed" / f"{name.removesuffix('.py')}.txt"
    found = [found for page in pages for found in block.findall(page.read_text())]
    return [*found, file.read_text()] if file.exists() else found


def executed() -> str:
    """The notebook as JSON, with the output of its cells, which are run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "notebook.ipynb")
        cells = EXAMPLES / "support" / "cells.py"
        subprocess.run([sys.executable, cells, EXAMPLES / NOTEBOOK, path], check=True)  # noqa: S603
        return path.read_text()


def as_page(notebook: str) -> str:
    """The cells of a notebook and their output, as Markdown."""
    return "\n\n".join(text for cell in json.loads(notebook)["cells"] for text in shown(cell))


def shown(cell: dict[str, Any]) -> list[str]:
    """A cell, then its outputs."""
    if cell["cell_type"] == "markdown":
        return [re.sub(r"^# ", "## ", cell["source"])]
    outputs = [o.get("text") or best(o["data"]) for o in cell["outputs"]]
    texts = [o if o.startswith("<") else f"```text\n{o.rstrip()}\n```" for o in outputs]
    return [f"```python\n{cell['source']}\n```", *texts]


def best(data: dict[str, str]) -> str:
    """The output as HTML, where there is some."""
    return data.get("text/html") or data["text/plain"]
