"""What the process remembers of a class of a script, besides its attributes.

The class may be registered with abstract classes of the standard library, which then take it for a
subclass. And sympy keeps what functions of its classes have computed.
"""

from __future__ import annotations

import collections.abc
import io
import numbers
import sys
from abc import ABCMeta
from typing import Any

# Of all modules this would take too long: a class of a script is looked up at each call.
_ABSTRACT: tuple[Any, ...] = tuple(
    value
    for module in (collections.abc, numbers, io)
    for value in vars(module).values()
    if isinstance(value, ABCMeta)
)


def registered_with(cls: type) -> tuple[type, ...]:
    """The abstract classes of the standard library that take ``cls`` for a subclass by register().

    Those that look at its methods do that anywhere.
    """
    return tuple(each for each in _ABSTRACT if _is_registered(cls, each))


def _is_registered(cls: type, abstract: Any) -> bool:
    try:
        if abstract in cls.__mro__ or abstract.__subclasshook__(cls) is True:
            return False
        return issubclass(cls, abstract)
    except Exception:  # noqa: BLE001  a metaclass of the script may do anything
        return False


def register(cls: type, abstract: tuple[Any, ...]) -> None:
    """Register the class with all of these."""
    for each in abstract:
        each.register(cls)


def forget_results(cls: type) -> None:
    """The class has other attributes now: drop what libraries have computed with the old ones."""
    cache = sys.modules.get("sympy.core.cache")
    if cache is not None and any(base.__module__.startswith("sympy.") for base in cls.__mro__):
        cache.clear_cache()
