"""``sys.path`` of the caller, in its order, and its modules from other folders.

If a caller has imported ``helpers`` from one folder, and then inserts another folder with a
``helpers`` before it, it keeps the first. A worker that imports it later would find the second, and
it would not find a module that the caller loaded by the path of its file. So workers get the
files of such modules.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from importlib.util import spec_from_file_location
from typing import TYPE_CHECKING, Any

from sharedtask import context
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class Pin:
    """The file of a module; of a package also the folders of its modules."""

    name: str
    file: str
    folders: tuple[str, ...] | None


# The entries of ``sys.path``, the modules that these do not find, and see ``ImportPath``.
State = tuple[tuple[str, ...], tuple[Pin, ...], int]


@dataclass(frozen=True, slots=True)
class ImportPath:
    """Entries of ``sys.path``, and the files of modules that their order would not find.

    ``generation`` counts how often modules that were imported before might be found elsewhere: a
    process that imported some for an earlier generation cannot serve a later one.
    """

    entries: tuple[str, ...]
    pinned: tuple[Pin, ...]
    generation: int
    installed: tuple[str, ...]

    def is_installed(self, entry: str) -> bool:
        """Whether this folder belongs to the caller's installation of Python."""
        return entry.startswith(self.installed)


class _Known:
    """``sys.path`` and ``sys.modules`` at the last check, and what was derived from them."""

    entries: tuple[str, ...] | None = None
    pinned: tuple[Pin, ...] = ()
    specs: tuple[tuple[str, Any], ...] = ()
    generation: int = 0
    modules: frozenset[str] = frozenset()
    last: tuple[int, str] = (0, "")


_known = _Known()


def read() -> State:
    """The present import path; of a worker only the entries, as it calls no others."""
    entries, before = tuple(sys.path), _known.entries
    if context.a_worker():
        return entries, (), 0
    if entries != before:
        _known.entries = entries
        if before is None or entries[: len(before)] != before:
            _pin(_shadowed(entries), _by_path(entries, sys.modules))
            _known.generation += before is not None
    elif any(_spec_of(name) is not spec for name, spec in _known.specs):
        _pin(_shadowed(entries), _by_path(entries, sys.modules))
        _known.generation += 1
    elif _last() != _known.last:
        _pin(_known.pinned, _by_path(entries, sys.modules.keys() - _known.modules))
    return entries, _known.pinned, _known.generation


def plain(state: State) -> ImportPath:
    """The path in a form to send: entries are independent of the worker's folder."""
    entries, pinned, generation = state
    installed = (sys.prefix, sys.base_prefix)
    return ImportPath(tuple(map(os.path.abspath, entries)), pinned, generation, installed)


# ------------------------------------------------------------------- modules from elsewhere


def _pin(*pins: Iterable[Pin]) -> None:
    found = {pin.name: pin for some in pins for pin in some}
    _known.pinned = tuple(sorted(found.values(), key=lambda pin: pin.name))
    _known.specs = tuple((name, _spec_of(name)) for name in found)
    _known.modules = frozenset(sys.modules)
    _known.last = _last()


def _last() -> tuple[int, str]:
    """The number of modules and the last one: one of them changes when a module is added."""
    while True:
        try:
            return len(sys.modules), next(reversed(sys.modules))
        except RuntimeError:  # another thread has imported one in between
            continue


def _shadowed(entries: Sequence[str]) -> list[Pin]:
    """Modules that the import path would find in another folder than the caller did."""
    folders = {name: folder for name in _loaded() if (folder := _folder_of(name)) is not None}
    unseen, pinned = set(folders), []
    for place in map(os.path.abspath, entries):
        found = unseen & _names_in(place)
        unseen -= found
        pinned += [_pin_of(name) for name in found if folders[name] != place]
    return pinned


def _by_path(entries: Sequence[str], names: Iterable[str]) -> list[Pin]:
    """The modules that were loaded by the path of a file, so that no import finds them."""
    places = set(map(os.path.abspath, entries))
    return [_pin_of(name) for name in list(names) if _is_by_path(name, places)]


def _is_by_path(name: str, entries: set[str]) -> bool:
    folder, spec = _folder_of(name), _spec_of(name)
    if folder is None or spec.name != name:  # or a second name that a library has assigned
        return False
    package, _, last = name.rpartition(".")
    places = _folders_of_package(package) if package else entries
    file = os.path.basename(spec.origin)
    as_named = spec.submodule_search_locations is not None or file.startswith(f"{last}.")
    return not (as_named and folder in places) and os.path.isfile(spec.origin)


def _folders_of_package(name: str) -> list[str]:
    return [os.path.abspath(each) for each in getattr(sys.modules.get(name), "__path__", ())]


def _loaded() -> list[str]:
    """Top-level modules that this process has imported."""
    return [name for name in list(sys.modules) if "." not in name and name != "__main__"]


def _names_in(place: str) -> set[str]:
    """Names of modules that a folder might have."""
    try:
        return {name.partition(".")[0] for name in os.listdir(place)}
    except OSError:  # a zip file, or nothing at all
        return set()


def _spec_of(name: str) -> Any:
    module: ModuleType | None = sys.modules.get(name)
    return getattr(module, "__spec__", None)


def _folder_of(name: str) -> str | None:
    """The folder from which a module was imported; None for a module without a file."""
    spec: ModuleSpec | None = _spec_of(name)
    origin = getattr(spec, "origin", None)
    if spec is None or not isinstance(origin, str) or not spec.has_location:
        return None
    if not origin.endswith(_SUFFIXES):
        return None
    folder = os.path.dirname(os.path.abspath(origin))
    return os.path.dirname(folder) if spec.submodule_search_locations is not None else folder


_SUFFIXES = tuple(all_suffixes())


def _pin_of(name: str) -> Pin:
    spec = _spec_of(name)
    folders = spec.submodule_search_locations
    places = None if folders is None else tuple(map(os.path.abspath, folders))
    return Pin(name, os.path.abspath(spec.origin), places)


# ----------------------------------------------------------------------------- in a worker


class _Pins:
    """Finds modules in the folders from which the caller has them."""

    def __init__(self) -> None:
        self.known: dict[str, Pin] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        pin = self.known.get(name)
        if pin is not None and os.path.isfile(pin.file):
            folders = None if pin.folders is None else list(pin.folders)
            return spec_from_file_location(name, pin.file, submodule_search_locations=folders)
        if not any(other.startswith(f"{name}.") for other in self.known):
            return None
        # A package that exists only for the names of others.
        found = PathFinder.find_spec(name, path, target)
        return found or ModuleSpec(name, None, is_package=True)


_pins = _Pins()


def write(path: ImportPath) -> None:
    """Make this process import as the caller does."""
    sys.path[:] = path.entries
    _follow(path)


def _follow(path: ImportPath) -> None:
    _pins.known = {pin.name: pin for pin in path.pinned}
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
    _follow(path)


def restore(state: State) -> None:
    """Restore the entries that were read."""
    sys.path[:] = state[0]
    _pins.known = {}


def forget_modules() -> None:
    """Forget modules that belong to no installation, so that they are imported again."""
    keep = (sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(_OURS)))
    for name in [n for n in list(sys.modules) if not (_folder_of(n) or keep[0]).startswith(keep)]:
        for each in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[each]


_OURS = os.path.dirname(sys.modules["sharedtask"].__file__ or "")
