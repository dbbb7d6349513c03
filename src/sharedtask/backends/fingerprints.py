"""Content digests of a call's shared values: computed once for each publication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.serialization.hashing import fingerprint
from sharedtask.store.handles import Handle

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from .base import SharedValue
    from .leasing import Leases


def of_value(value: Any) -> bytes:
    """The digest of a value that is not published, or of a handle's value."""
    if isinstance(value, Handle):
        return value.publication.fingerprint(lambda: value.value)
    return fingerprint(value)


def of_leased(leases: Leases, shared: Mapping[str, SharedValue]) -> dict[str, bytes]:
    """The digests of shared values, kept with their publications."""
    return {
        parameter.name: lease.publication.fingerprint(lambda: _behind(shared[parameter.name].value))  # noqa: B023  called at once
        for parameter, lease in zip(leases.parameters, leases.shared, strict=True)
    }


def _behind(value: Any) -> Any:
    return value.value if isinstance(value, Handle) else value


def of_captured(leases: Leases, array: npt.NDArray[Any]) -> bytes | None:
    """The digest of an array's bytes, if it is published by itself."""
    lease = leases.captures.lease_of(array)
    if lease is None:
        return None
    return lease.publication.fingerprint(lambda: array)
