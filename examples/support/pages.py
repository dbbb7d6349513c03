"""Update the code, output and pictures of the examples on the pages and in the gallery.

A block on a page is taken from an example if one of these comments is before it::

    <!-- code of examples/histogram.py: count, counted_declared -->
    <!-- printed by examples/histogram.py -->

``python examples/support/pages.py`` updates all blocks, with the figures of this machine, and the
files in ``printed/`` for examples whose output is only in the gallery. With names of examples after
it, it updates only theirs, and makes the file of an example that has none; ``--code`` does not
change any output.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent
DOCS = EXAMPLES.parent / "docs"
RECORDS = EXAMPLES / "support" / "printed"
PICTURES = {
    "histogram.py": "histogram.svg",
    "pairwise_distances.py": "distances.png",
    "support/patterns.py": "writing.svg",
}
CODE = re.compile(
    r"(?P<start><!-- code of examples/(?P<name>\S+): (?P<parts>.*?) -->\n```python\n)"
    r".*?(?P<end>^```$)",
    re.DOTALL | re.MULTILINE,
)
PRINTED = re.compile(
    r"(?P<start><!-- printed by examples/(?P<name>\S+) -->\n```text\n).*?(?P<end>^```$)",
    re.DOTALL | re.MULTILINE,
)


def code(name: str, parts: list[str]) -> str:
    """The functions and classes of an example, without what only its linter reads."""
    source = (EXAMPLES / name).read_text()
    lines = [line.partition("  # noqa")[0] for line in source.splitlines()]
    found = {
        node.name: lines[first_line(node) - 1 : node.end_lineno]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return "\n\n".join("\n".join(found[part]) for part in parts) + "\n"


def first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Where it begins: with its first decorator, if it has any."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def printed(name: str) -> str:
    """What an example prints; its picture goes to the pages."""
    picture = [DOCS / "img" / PICTURES[name]] if name in PICTURES else []
    ran = subprocess.run(  # noqa: S603
        [sys.executable, EXAMPLES / name, *picture], stdout=subprocess.PIPE, text=True, check=True
    )
    return ran.stdout


def renewed(page: str, only: list[str], *, figures: bool = True) -> str:
    """The page with the code and, if asked for, the figures of today."""

    def fresh(block: re.Match[str]) -> str:
        name = block["name"]
        if only and name not in only:
            return block[0]
        if block.re is CODE:
            return block["start"] + code(name, block["parts"].split(", ")) + block["end"]
        return block["start"] + printed(name) + block["end"]

    page = CODE.sub(fresh, page)
    return PRINTED.sub(fresh, page) if figures else page


def record(only: list[str]) -> None:
    """Update the output of examples that no page shows."""
    shown = {
        found["name"]
        for path in DOCS.glob("**/*.md")
        for found in PRINTED.finditer(path.read_text())
    }
    kept = [f"{path.stem}.py" for path in sorted(RECORDS.iterdir())]
    for name in only or kept:
        if name not in shown:
            (RECORDS / name).with_suffix(".txt").write_text(printed(name))
            print(f"recorded the output of {name}")


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--code"]
    if not names:
        printed("support/patterns.py")
    for path in sorted(DOCS.glob("**/*.md")):
        before = path.read_text()
        after = renewed(before, names, figures="--code" not in sys.argv)
        if after != before:
            path.write_text(after)
            print(f"renewed {path.relative_to(DOCS.parent)}")
    if "--code" not in sys.argv:
        record(names)
