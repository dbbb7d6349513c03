"""Run the cells of a ``# %%`` file, and write them with their output as a Jupyter notebook.

``python examples/support/cells.py examples/notebook.py out.ipynb``
"""

import ast
import contextlib
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

MARK = re.compile(r"^# %%(?P<markdown> \[markdown\])?\n", re.MULTILINE)


def cells(source: str) -> list[tuple[bool, str]]:
    """The cells after the first mark: whether each is Markdown, and its text."""
    parts = MARK.split(source)[1:]
    return [
        (bool(kind), re.sub(r"^# ?", "", text, flags=re.MULTILINE) if kind else text)
        for kind, text in ((k, t.strip("\n")) for k, t in zip(parts[::2], parts[1::2], strict=True))
    ]


def shown(value: object, count: int) -> dict[str, Any]:
    """The output of a cell whose last line is a value, as Jupyter keeps it."""
    data = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_()
    return {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def ran(text: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run a cell; its outputs: what it has printed, and the value of its last line."""
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, f"<cell {count}>", "exec"), names)  # noqa: S102
        value = last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)  # noqa: S307
    outputs = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    return outputs if value is None else [*outputs, shown(value, count)]


def notebook(source: str) -> dict[str, Any]:
    """All cells with their outputs, in version 4.5 of the format."""
    names = vars(sys.modules.setdefault("__main__", types.ModuleType("__main__")))
    made: list[dict[str, Any]] = []
    for number, (is_markdown, text) in enumerate(cells(source)):
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": text}
        if is_markdown:
            made.append({"cell_type": "markdown", **cell})
        else:
            count = sum(cell["cell_type"] == "code" for cell in made) + 1
            code = {"execution_count": count, "outputs": ran(text, names, count)}
            made.append({"cell_type": "code", **cell, **code})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}


if __name__ == "__main__":
    done = notebook(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(done, indent=1) + "\n")
