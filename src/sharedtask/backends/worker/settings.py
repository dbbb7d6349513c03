"""Process settings that workers take over, with the reader and writer of each."""

from __future__ import annotations

import _locale
import _thread
import functools
import operator
import os
import sys
import threading
import time
import warnings
from contextvars import ContextVar
from io import FileIO
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask.system.blas import BLAS_VARIABLES
from sharedtask.system.loading import undisturbed, when_loaded
from sharedtask.system.records import dataclass

from . import import_path, log_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Transfer:
    """Transfer of a setting: ``plain`` of its value is sent, and ``write`` applies it."""

    write: Callable[[Any], object]
    plain: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a process, with the functions that read and restore it.

    Workers of this machine apply it ``here``, those of a cluster ``elsewhere`` or None. ``glance``
    takes less time than ``read``: what it gives is equal only while the setting is the same.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    here: Transfer
    elsewhere: Transfer | None
    glance: Callable[[], Any] | None = None


def _setting(
    name: str,
    read: Callable[[], Any],
    write: Callable[[Any], object],
    glance: Callable[[], Any] | None = None,
) -> Setting:
    """A setting that means the same everywhere, and is sent as it was read."""
    return Setting(name, read, write, Transfer(write), Transfer(write), glance)


# ------------------------------------------------------------------------------ environment


def _read_environ() -> dict[Any, Any]:
    """The environment variables as raw bytes, without decoding; as texts where they are texts."""
    return dict(_raw)


_raw: Any = getattr(os.environ, "_data", os.environ) if hasattr(os, "environb") else os.environ


def _write_environ(wanted: Mapping[Any, Any]) -> None:
    """Set, change and remove variables; the number of BLAS threads is decided here."""
    _change(wanted, [name for name in [*_raw] if name not in wanted and name not in _BLAS])


def _change(wanted: Mapping[Any, Any], removed: Iterable[Any]) -> None:
    for name in removed:
        _environ.pop(name, None)
    for name, value in wanted.items():
        if _raw.get(name) != value:
            _environ[name] = value


def _changed(environ: Mapping[Any, Any]) -> tuple[dict[Any, Any], tuple[Any, ...]]:
    """Variables that the program set and removed since its start, except Ray's own."""
    first = _first_environ()
    changed = {name: value for name, value in environ.items() if first.get(name) != value}
    removed = tuple(name for name in first if name not in environ)
    return {n: v for n, v in changed.items() if not n.startswith(_RAYS)}, removed


@functools.cache
def _first_environ() -> dict[Any, Any]:
    """The variables that this process was started with; the present ones if that is unknown."""
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [line.partition(b"=") for line in file.read().split(b"\0") if line]
    except OSError:
        return _read_environ()
    return {name: value for name, _, value in pairs}


_environ: Any = getattr(os, "environb", os.environ)
_BLAS = frozenset((*BLAS_VARIABLES, *map(os.fsencode, BLAS_VARIABLES)))
_RAYS: Any = (b"RAY_", b"CUDA_VISIBLE_DEVICES") if _environ is not os.environ else ("RAY_",)

# --------------------------------------------------------------------------------- warnings


class _ByName(type):
    """A class of warnings that a worker need not import: its subclasses are recognised by name."""

    names: tuple[str, str]

    def __subclasscheck__(cls, other: type) -> bool:
        return any((c.__module__, c.__qualname__) == cls.names for c in other.__mro__)


def _category(module: str, qualname: str) -> type:
    found = vars(sys.modules["builtins"]).get(qualname) if module == "builtins" else None
    return found or _ByName(qualname, (Warning,), {"names": (module, qualname)})


def _plain_filters(filters: tuple[Any, ...]) -> list[Any]:
    return [
        (action, message, (category.__module__, category.__qualname__), module, line)
        for action, message, category, module, line in filters
    ]


class _Built:
    """The filters that were written last, and what they were made of."""

    plain: list[Any] | None = None
    filters: tuple[Any, ...] = ()


def _write_filters(plain: list[Any]) -> None:
    if _Built.plain is not plain:  # making the classes takes 0.1 ms
        _Built.filters = tuple(
            (action, message, _category(*category), module, line)
            for action, message, category, module, line in plain
        )
        _Built.plain = plain
    _restore_filters(_Built.filters)


def _restore_filters(filters: Iterable[Any]) -> None:
    warnings.resetwarnings()  # also resets the record of warnings already shown
    cast("list[Any]", warnings.filters).extend(filters)


# ------------------------------------------------------------------------- numpy and decimal


def _read_errors() -> tuple[dict[str, Any], Any]:
    state: dict[str, Any] = dict(np.geterr())
    calls = not _CALLING.isdisjoint(state.values())
    return state, np.geterrcall() if calls else None


def _write_errors(errors: tuple[dict[str, Any], Any]) -> None:
    state, call = errors
    np.seterrcall(call)
    np.seterr(**state)


_CALLING = {"call", "log"}


def _write_print_options(options: dict[str, Any]) -> None:
    np.set_printoptions(**options)


def _read_decimal() -> tuple[Any, ...] | None:
    """All fields of the context except its flags, which each calculation sets."""
    module = sys.modules.get("decimal")
    if module is None:
        return None
    fields = module.getcontext().__reduce__()[1]
    return (*fields[:_FLAGS], *fields[_FLAGS + 1 :])


_FLAGS = 6


def _write_decimal(fields: tuple[Any, ...] | None) -> None:
    if fields is not None:
        with undisturbed("decimal"):  # these come from the caller
            import decimal

        context: Any = decimal.Context
        decimal.setcontext(context(*fields[:_FLAGS], [], *fields[_FLAGS:]))


def _variable_of(module: str, name: str) -> Callable[[], Any] | None:
    """What gives the object that numpy keeps its settings in, and replaces when they change."""
    found = getattr(sys.modules.get(module), name, None)
    return found.get if isinstance(found, ContextVar) else None


# ----------------------------------------------------------------------------- the system's


def _write_locale(name: str) -> None:
    _locale.setlocale(_locale.LC_ALL, name)


def _read_umask() -> int | None:
    """Read it by ``os.umask``, which changes it for all threads, only if there are none."""
    if is_alone():
        mask = os.umask(_STRICT)
        os.umask(mask)
        return mask
    try:
        return _umask_seen()
    except (OSError, AttributeError):
        return _umask_told()


_main_thread = threading.main_thread
_count_threads: Callable[[], int] = getattr(_thread, "_count", lambda: 0)  # Python's own
_STRICT = 0o077


def is_alone() -> bool:
    """Whether this is the only thread of the program; our own open no files."""
    active: Any = getattr(threading, "_active", None)  # ``enumerate`` takes five times as long
    known = threading.enumerate() if active is None else list(active.values())
    main = _main_thread()
    for thread in known:
        if thread is not main and not thread.name.startswith("sharedtask-"):
            return False
    return _count_threads() < len(known)  # there are none that ``threading`` does not know


def _umask_seen() -> int:
    """The umask from the mode of an unnamed file: half the time of /proc."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    # In one step: an exception that another thread throws in here would lose the bare number.
    file = next(map(FileIO, map(os.open, ("/dev/shm",), (flags,), (0o777,))))  # noqa: S108
    try:
        return ~os.fstat(file.fileno()).st_mode & 0o777
    finally:
        file.close()


def _umask_told() -> int | None:
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            _, found, rest = file.read(256).partition(b"Umask:")
    except OSError:
        return None
    return int(rest.split(maxsplit=1)[0], 8) if found else None


def _write_umask(mask: int | None) -> None:
    if mask is not None:
        os.umask(mask)


# ------------------------------------------------------------------------------- compiled files


# In C, as each function of ours costs each call.
_writes_no_bytecode = functools.partial(getattr, sys, "dont_write_bytecode")


def _write_no_bytecode(given: bool) -> None:
    sys.dont_write_bytecode = given


# ------------------------------------------------------------------------------- time zone

_read_zone = functools.partial(operator.attrgetter("tzname", "timezone", "altzone"), time)


def _write_zone(zone: tuple[Any, ...]) -> None:
    """After TZ, if the caller has called ``time.tzset`` since: only that reads it."""
    if _read_zone() != zone and hasattr(time, "tzset"):
        time.tzset()


# ---------------------------------------------------------------------- multiprocessing


def _read_key() -> bytes | None:
    """The key that proxies of a ``multiprocessing.Manager`` present to its server."""
    module = sys.modules.get("multiprocessing.process")
    return None if module is None else bytes(module.current_process().authkey)


def _write_key(key: bytes | None) -> None:
    if key is not None:
        when_loaded(
            "multiprocessing.process",
            lambda module: setattr(module.current_process(), "authkey", key),
        )


SETTINGS = (
    Setting(
        "sys.path",
        import_path.read,
        import_path.restore,
        Transfer(import_path.write, import_path.plain),
        Transfer(import_path.write_among, import_path.plain),
    ),
    Setting(
        "os.environ",
        _read_environ,
        _write_environ,
        Transfer(_write_environ),
        Transfer(lambda changed: _change(*changed), _changed),
    ),
    Setting(
        "the warning filters",
        lambda: tuple(warnings.filters),
        _restore_filters,
        Transfer(_write_filters, _plain_filters),
        Transfer(_write_filters, _plain_filters),
    ),
    _setting("the time zone", _read_zone, _write_zone),
    Setting("multiprocessing's key", _read_key, _write_key, Transfer(_write_key), None),
    _setting("sys.argv", lambda: list(sys.argv), lambda argv: setattr(sys, "argv", list(argv))),
    _setting("sys.dont_write_bytecode", _writes_no_bytecode, _write_no_bytecode),
    _setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _setting("the digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    _setting(
        "numpy's error state",
        _read_errors,
        _write_errors,
        _variable_of("numpy._core.umath", "_extobj_contextvar"),
    ),
    _setting(
        "numpy's print options",
        np.get_printoptions,
        _write_print_options,
        _variable_of("numpy._core.printoptions", "format_options"),
    ),
    _setting("the decimal context", _read_decimal, _write_decimal),
    _setting("the locale", functools.partial(_locale.setlocale, _locale.LC_ALL), _write_locale),
    _setting("the umask", _read_umask, _write_umask),
    Setting(
        "the levels of logging",
        log_levels.read,
        log_levels.restore,
        Transfer(log_levels.write),
        Transfer(log_levels.write),
    ),
)


def limits_blas(environ: Mapping[Any, Any]) -> bool:
    """Whether no variable sets the number of threads of numerical libraries."""
    return _BLAS.isdisjoint(environ)
