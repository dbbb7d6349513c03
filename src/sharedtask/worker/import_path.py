"""``sys.path`` of the caller, in its order, and its modules from other folders.

If a caller has imported ``helpers`` from one folder, and then inserts another folder with a
``helpers`` before it, it keeps the first. A worker that imports it later would find the second: so
workers are told the folders of such modules.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

from sharedtask import context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class ImportPath:
    """Entries of ``sys.path``, and the folders of modules that their order would not find.

    ``generation`` counts how often modules that were imported before might be found elsewhere: a
    process that imported some for an earlier generation cannot serve a later one.
    """

    entries: tuple[str, ...]
    pinned: tuple[tuple[str, str], ...]
    generation: int
    installed: tuple[str, ...]

    def is_installed(self, entry: str) -> bool:
        """Whether this folder belongs to the caller's installation of Python."""
        return entry.startswith(self.installed)


class _Known:
    """``sys.path`` at the last check, and what was derived from it."""

    entries: tuple[str, ...] | None = None
    pinned: tuple[tuple[str, str], ...] = ()
    generation: int = 0


_known = _Known()


def read() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], int]:
    """The present import path; of a worker only the entries, as it calls no others."""
    entries, before = tuple(sys.path), _known.entries
    if context.a_worker():
        return entries, (), 0
    if entries != before:
        _known.entries = entries
        if before is None or entries[: len(before)] != before:
            _known.pinned = _pinned(entries)
            _known.generation += before is not None
    elif any(_folder_of(name) != folder for name, folder in _known.pinned):
        _known.pinned = _pinned(entries)
        _known.generation += 1
    return entries, _known.pinned, _known.generation


def plain(state: tuple[tuple[str, ...], tuple[tuple[str, str], ...], int]) -> ImportPath:
    """The path in a form to send: entries are independent of the worker's folder."""
    entries, pinned, generation = state
    installed = (sys.prefix, sys.base_prefix)
    return ImportPath(tuple(map(os.path.abspath, entries)), pinned, generation, installed)


# ------------------------------------------------------------------- modules from elsewhere


def _pinned(entries: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Modules that the import path would find in another folder than the caller did."""
    folders = {name: folder for name in _loaded() if (folder := _folder_of(name)) is not None}
    unseen, pinned = set(folders), []
    for place in map(os.path.abspath, entries):
        found = unseen & _names_in(place)
        unseen -= found
        pinned += [(name, folders[name]) for name in found if folders[name] != place]
    return tuple(sorted(pinned))


def _loaded() -> list[str]:
    """Top-level modules that this process has imported."""
    return [name for name in list(sys.modules) if "." not in name and name != "__main__"]


def _names_in(place: str) -> set[str]:
    """Names of modules that a folder might have."""
    try:
        return {name.partition(".")[0] for name in os.listdir(place)}
    except OSError:  # a zip file, or nothing at all
        return set()


def _folder_of(name: str) -> str | None:
    """The folder from which a top-level module was imported."""
    module: ModuleType | None = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    origin = getattr(spec, "origin", None)
    if spec is None or not isinstance(origin, str) or not spec.has_location:
        return None
    folder = os.path.dirname(os.path.abspath(origin))
    return os.path.dirname(folder) if spec.submodule_search_locations is not None else folder


# ----------------------------------------------------------------------------- in a worker


class _Pins:
    """Finds modules in the folders from which the caller has them."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        folder = None if path is not None else self.folders.get(name)
        return None if folder is None else PathFinder.find_spec(name, [folder], target)


_pins = _Pins()


def write(path: ImportPath) -> None:
    """Make this process import as the caller does."""
    sys.path[:] = path.entries
    _pin(path)


def _pin(path: ImportPath) -> None:
    _pins.folders = dict(path.pinned)
    if path.pinned and _pins not in sys.meta_path:
        sys.meta_path.insert(0, _pins)


def write_among(path: ImportPath) -> None:
    """Import as the caller does, on a machine that has its own installed modules.

    Folders of the caller that belong to no installation keep their order among themselves, and come
    before or after the installed modules as they do there.
    """
    own = list(sys.path)
    first = next((k for k, e in enumerate(path.entries) if path.is_installed(e)), None)
    theirs = [entry for entry in path.entries if not path.is_installed(entry)]
    before = path.entries[:first] if first is not None else theirs
    after = [entry for entry in theirs if entry not in before]
    rest = [entry for entry in own if entry not in theirs]
    sys.path[:] = [*before, *rest, *after]
    _pin(path)


def restore(state: tuple[tuple[str, ...], tuple[tuple[str, str], ...], int]) -> None:
    """Restore the entries that were read."""
    sys.path[:] = state[0]
    _pins.folders = {}


def forget_modules() -> None:
    """Forget modules that belong to no installation, so that they are imported again."""
    keep = (sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(_OURS)))
    for name in [n for n in _loaded() if not (_folder_of(n) or keep[0]).startswith(keep)]:
        for each in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[each]


_OURS = os.path.dirname(sys.modules["sharedtask"].__file__ or "")
