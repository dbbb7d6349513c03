"""What sessions have in common whose values are leased from a cache: those of processes and Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sharedtask.system.loading import undisturbed

from .base import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from sharedtask.outcomes import Change

    from .base import SharedValue
    from .work_items import OpenCall

C = TypeVar("C", bound="OpenCall")


class LeasedSession(Session, Generic[C]):
    """A call; its leases say which contents workers get, and so what a journal records."""

    _call: C

    def conclude(self) -> Change | None:
        if self._call.logs is not None:
            self._call.logs.finish()
        return None

    def fingerprints(self, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
        with undisturbed("sharedtask.backends.fingerprints"):  # needed by a journal only
            from . import fingerprints

        return fingerprints.of_leased(self._call.leases, shared)

    def fingerprint_of(self, array: npt.NDArray[Any]) -> bytes | None:
        with undisturbed("sharedtask.backends.fingerprints"):
            from . import fingerprints

        return fingerprints.of_captured(self._call.leases, array)
