"""Code that is sent by value keeps its file name and source, and the names in its strings.

Tracebacks, warnings, profilers and ``inspect.getsource`` find a line by the name of its file.
cloudpickle omits the name from 3.1.3 on. If there is no such file, as for a notebook cell, Python
has the source from the code's compiler, and it has to be sent to workers.
"""

from __future__ import annotations

import linecache
import re
from types import CodeType
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["build_code", "names_in_texts", "reduce_code"]

# What cloudpickle writes instead of the file's name.
_NO_NAME = "<dynamic-code>"


def reduce_code(code: CodeType) -> Any:
    """The reduction by cloudpickle of a code object, with its file name and a cell's source."""
    make, args = cloudpickle._code_reduce(code)
    args = tuple(code.co_filename if _is_no_name(part) else part for part in args)
    lines = _lines_without_file(code.co_filename)
    return (make, args) if lines is None else (build_code, (code.co_filename, lines, make, args))


def _is_no_name(part: object) -> bool:
    return type(part) is str and part == _NO_NAME


def _lines_without_file(name: str) -> list[str] | None:
    """The ``linecache`` lines of a file that does not exist; None for all others.

    An entry is (size, time of the file, lines, path), the time None if there is no file.
    """
    entry: Any = linecache.cache.get(name)
    return entry[2] if entry and len(entry) == _FIELDS and entry[1] is None else None


_FIELDS = 4


def build_code(name: str, lines: list[str], make: Callable[..., CodeType], args: Any) -> CodeType:
    """Code of a cell; registers its source."""
    linecache.cache[name] = sum(map(len, lines)), None, lines, name
    return make(*args)


# ------------------------------------------------------------------------- names in strings

# ``frame.query("a > @LIMIT")`` looks LIMIT up although the code does not name it.
_READERS = frozenset(("eval", "exec", "query"))
_NAME = re.compile(r"[^\W\d]\w*")


def names_in_texts(code: CodeType) -> Iterator[str]:
    """Words in the strings of code that evaluates strings: some may be names of globals."""
    if not _READERS.isdisjoint(code.co_names):
        for constant in code.co_consts:
            if type(constant) is str:
                yield from _NAME.findall(constant)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from names_in_texts(constant)
