"""Late imports: protected from interrupts, and with actions that follow an import.

A signal handler runs between any two instructions of the main thread, and a garbage collection runs
finalizers in any thread. Either may call the library while its own thread is importing one of its
modules: it would find that module half executed. So the library makes each late import in an
``undisturbed`` block.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Sequence
    from types import FrameType, ModuleType
else:
    import _signal  # wrapped by ``signal``, whose enumerations are not needed here


class undisturbed:  # noqa: N801  used as a block, like contextlib.suppress
    """Within this block the named module is imported; handlers of signals run after it.

    Costs a lookup in ``sys.modules`` if the module is loaded already.

    Examples:
        >>> with undisturbed("decimal"):
        ...     import decimal
    """

    __slots__ = ("_collects", "_later", "_loads")

    def __init__(self, name: str) -> None:
        self._loads = name not in sys.modules

    def __enter__(self) -> None:
        if self._loads:
            self._later = _Later()
            self._collects = gc.isenabled()
            gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._loads:
            if self._collects:
                gc.enable()
            self._later.end(sys._getframe(1))


class _Later:
    """The handler of each signal that has one in Python, from creation to ``end``."""

    def __init__(self) -> None:
        self._came: deque[int] = deque()
        self._old: dict[int, Callable[[int, FrameType | None], object]] = {}
        if threading.current_thread() is threading.main_thread():
            try:
                self._install()
            except BaseException:
                self.end(None)
                raise

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal."""
        del frame
        if number not in self._came:
            self._came.append(number)

    def _install(self) -> None:
        for number in _signal.valid_signals():
            old = _signal.getsignal(number)
            if callable(old):
                self._old[number] = old
                _signal.signal(number, self)

    def end(self, frame: FrameType | None) -> None:
        """Restore the old handlers, and call those whose signals have come."""
        try:
            self._put_back()
        finally:
            self._run_pending(frame)

    def _put_back(self) -> None:
        try:
            for number, old in self._old.items():
                if _signal.getsignal(number) is self:
                    _signal.signal(number, old)
        except BaseException:
            self._put_back()  # a restored handler has raised; restore the others as well
            raise

    def _run_pending(self, frame: FrameType | None) -> None:
        try:
            while self._came:
                number = self._came.popleft()
                self._old[number](number, frame)
        finally:
            if self._came:
                self._run_pending(frame)


def when_loaded(name: str, action: Callable[[Any], object]) -> None:
    """Call ``action(module)`` once: now if the module is loaded, else right after its import."""
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    _hook.actions.setdefault(name, []).append(action)
    if _hook not in sys.meta_path[:1]:  # first of all finders: one before it would hide a module
        sys.meta_path[:] = [_hook, *(each for each in sys.meta_path if each is not _hook)]


class _Hook:
    """Finds modules by the other finders, with a loader that calls the actions."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Callable[[Any], object]]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        actions = self.actions.pop(name, None)
        spec = None if actions is None else _found_by_others(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader, actions or [])
            spec.loader = loader
        return spec


def _found_by_others(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if finder is not _hook and hasattr(finder, "find_spec"):
            spec: ModuleSpec | None = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


class _Loader:
    """Loads a module by its own loader, and then calls the actions."""

    def __init__(self, loader: Any, actions: list[Callable[[Any], object]]) -> None:
        self._loader, self._actions = loader, actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See ``importlib.abc.Loader``."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """See ``importlib.abc.Loader``."""
        spec = module.__spec__
        if spec is not None:
            spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in self._actions:
            action(module)


_hook = _Hook()
