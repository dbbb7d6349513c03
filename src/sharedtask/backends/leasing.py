"""The function and the shared values of a call, leased from a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.annotations import Role
from sharedtask.backends.worker import call_header
from sharedtask.backends.worker.call_header import SharedParameter
from sharedtask.errors import SerializationError, SharedTaskError, StoreFullError
from sharedtask.memory.room import full
from sharedtask.serialization import codec, functions, unseen_writes
from sharedtask.serialization.filled import unshareable, why_function
from sharedtask.store import handles
from sharedtask.store.captured import Captures
from sharedtask.store.handles import Handle
from sharedtask.system import interrupts
from sharedtask.system.records import dataclass

from .base import Share

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sharedtask.backends.worker.process_settings import ProcessSettings
    from sharedtask.memory.payload import Payload
    from sharedtask.store.cache import Lease, ShareCache, Verify
    from sharedtask.store.publication import Publication

    from .base import Call


@dataclass(frozen=True, slots=True)
class Leases:
    """The publications that a call uses, until they are released."""

    function: Lease
    settings: Lease
    parameters: tuple[SharedParameter, ...]  # the shared ones, as sent to a worker
    shared: tuple[Lease, ...]  # the values of these
    captures: Captures

    @property
    def all(self) -> tuple[Lease, ...]:
        """All leases: function, process settings, shared values, captured values."""
        return (self.function, self.settings, *self.shared, *self.captures.leases)

    @property
    def needs(self) -> tuple[tuple[Publication, bool], ...]:
        """The publications that a worker needs, and whether it makes private copies of each."""
        needs = [(self.function.publication, False), (self.settings.publication, False)]
        for parameter, lease in zip(self.parameters, self.shared, strict=True):
            needs.append((lease.publication, parameter.role is Role.COPY_ON_WRITE))
        if self.captures.leases:
            needs += [(lease.publication, False) for lease in self.captures.leases]
        return tuple(needs)

    @property
    def shares(self) -> list[Share]:
        """The shared values, for the task's statistics."""
        shares = []
        for parameter, lease in zip(self.parameters, self.shared, strict=True):
            if not parameter.role.writes:
                shares.append(Share(parameter.name, lease.publication.token, lease.hit))
        captured = self.captures.leases
        return [*shares, *map(_captured_share, captured)] if captured else shares

    @property
    def readonly(self) -> list[str]:
        """What no task may write, in words: parameters, and large arrays that are not marked."""
        shared = [repr(parameter.name) for parameter in self.parameters if parameter.is_readonly]
        return [*shared, *self.captures.names]

    def release(self) -> None:
        """End all uses; idempotent."""
        for lease in self.all:
            lease.release()


def _captured_share(lease: Lease) -> Share:
    return Share("captured", lease.publication.token, lease.hit)


def lease_all(
    cache: ShareCache,
    call: Call,
    settings: ProcessSettings,
    lend: Callable[[str], Any],
    of_handle: Callable[[Handle[Any]], Lease] = Handle.lease,
    encode: Callable[[Any], Payload] = codec.encode_shared,
) -> Leases:
    """Publish the values that the call shares, or find them published.

    ``lend`` makes the form that workers get of a parameter that they write.

    Raises:
        SerializationError: The function cannot be encoded.
        UnshareableError: A shared value cannot be encoded.
        StoreFullError: A shared value does not fit.
    """
    if call.trace is not None:
        cache = call.trace.timed(cache)
    taken: list[Lease] = []
    captures = Captures(cache, call.capture_from, verify=call.options.verify, encode=encode)
    cache.sweep()
    try:
        taken.append(_lease_function(cache, call, captures))
        if not taken[0].hit or call.task in unseen_writes.failed:
            interrupts.exposed(unseen_writes.warn, call.task, call.function)
        taken.append(cache.lease(settings, verify="identity"))
        parameters = []
        for name, value in call.shared.items():
            if value.role.writes:
                lease = _lease_lent(cache, lend(name))
            else:
                if isinstance(value.value, Handle):
                    handles.report_old_classes(value.value, taken[0].publication.classes)
                lease = lease_value(cache, call, name, of_handle, encode)
            taken.append(lease)
            current = call.options.verify != "identity" and not isinstance(value.value, Handle)
            token = lease.publication.token
            parameters.append(SharedParameter(name, token, value.role, current))
    except BaseException:
        captures.release()
        for lease in taken:
            lease.release()
        raise
    return Leases(taken[0], taken[1], tuple(parameters), tuple(taken[2:]), captures)


def header_of(call: Call, leases: Leases, workers: int, blas: int, cwd: str) -> bytes:
    """The encoded call header for workers; see ``CallHeader``."""
    options = call.options
    return call_header.dump_header(
        call_header.CallHeader(
            task=call.task,
            function=leases.function.publication.token,
            shared=leases.parameters,
            star=call.star,
            timed=options.timeout is not None,
            fail_fast=call.fail_fast,
            of_submits=call.of_submits,
            strict=options.strict,
            bound_name=call.bound_name,
            blas_threads=blas,
            randomness=call.randomness,
            settings=leases.settings.publication.token,
            cwd=cwd,
            logs=options.logs,
            workers=workers,
            retries=options.retries > 0,
            traced=call.trace is not None,
        )
    )


def still_sends(cache: ShareCache, call: Call, leases: Leases) -> bool:
    """Whether a call without shared values would lease the function that ``leases`` have."""
    if leases.shared or leases.captures.leases:
        return False
    function = functions.portable(call.function)
    named = isinstance(function.value, functions.NamedFunction)
    return cache.is_current(
        function.value,
        leases.function.publication,
        verify="identity" if named else call.options.verify,
        composition=function.composition,
    )


def _lease_function(cache: ShareCache, call: Call, captures: Captures) -> Lease:
    function = functions.portable(call.function)
    encode = captures.encoder(by_value=function.by_value)
    # Arrays may be inside.
    verify: Verify = "compare" if call.options.verify == "compare" else "content"
    if isinstance(function.value, functions.NamedFunction):
        verify = "identity"  # a name and a checksum, which never change
    try:
        return cache.lease(
            function.value, verify=verify, encode=encode, composition=function.composition
        )
    except StoreFullError as error:
        raise full(call.task, "what the function captures does not fit", error) from error
    except (SharedTaskError, MemoryError):
        raise
    except Exception as error:
        why = why_function(call.function, call.task)
        msg = f"{call.task}(): the function cannot be sent to a worker: {why} ({error})"
        raise SerializationError(msg) from error


def _lease_lent(cache: ShareCache, lent: Any) -> Lease:
    if getattr(lent, "is_kept", False):
        return cache.lease(lent, verify="identity")
    return cache.lease_once(codec.encode(lent))


def lease_value(
    cache: ShareCache,
    call: Call,
    name: str,
    of_handle: Callable[[Handle[Any]], Lease] = Handle.lease,
    encode: Callable[[Any], Payload] = codec.encode_shared,
) -> Lease:
    """Publish a value that tasks do not write; a recipe in the slot of its parameter.

    So an equal recipe is found published, and another one replaces it.
    """
    value, role = call.shared[name].value, call.shared[name].role
    try:
        if role is Role.PER_WORKER:
            return cache.lease(call.slots.of(name), encode=lambda _: encode(value))
        if isinstance(value, Handle):
            return of_handle(value)
        return cache.lease(value, verify=call.options.verify, encode=encode)
    except StoreFullError as error:
        raise full(call.task, f"{name!r} does not fit", error) from error
    except (SharedTaskError, MemoryError):
        raise
    except Exception as error:
        raise unshareable(value, name, error, f"{call.task}(): {name!r}") from error
