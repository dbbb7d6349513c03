"""Actions for a module that take place when it is loaded: nothing is imported for their sake."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType


def when_loaded(name: str, action: Callable[[Any], object]) -> None:
    """Call ``action(module)`` once: now where the module is loaded, else right after its import."""
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    _hook.actions.setdefault(name, []).append(action)
    if _hook not in sys.meta_path:
        sys.meta_path.insert(0, _hook)


class _Hook:
    """Finds what others find, with a loader that calls the actions."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Callable[[Any], object]]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        actions = self.actions.pop(name, None)
        spec = None if actions is None else PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader, actions or [])
            spec.loader = loader
        return spec


class _Loader:
    """Loads a module as its own loader does, and then calls the actions."""

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
