"""Bring what the pages show up to date: code of the examples, what they print, their pictures.

A block on a page is taken from an example if one of these comments stands before it::

    <!-- code of examples/histogram.py: count, counted_declared -->
    <!-- printed by examples/histogram.py -->

``python examples/support/pages.py`` renews all blocks, with the figures of this machine. Names of
examples after it renew only theirs; ``--code`` leaves the figures alone.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent
DOCS = EXAMPLES.parent / "docs"
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
