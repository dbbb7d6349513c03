"""Backends, sessions and sinks that are recorded: each passes everything on to the real one."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from queue import SimpleQueue

    from sharedtask.backends.base import Backend, Call, Chunk, Session, Sink
    from sharedtask.outcomes import Batch, Delivery, Report

    from .call_trace import CallTrace, Sent

__all__ = ["TracedBackend"]


class TracedBackend:
    """A backend whose sessions are recorded as long as the trace is open."""

    def __init__(self, backend: Backend, recorder: Any) -> None:
        self._real, self._recorder = backend, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def session(self, call: Call, sink: Sink) -> Any:
        """See ``Backend``."""
        trace = self._recorder.new_call(call, self._real.name)
        if trace is None:
            return self._real.session(call, sink)
        session = self._real.session(replace(call, trace=trace), TracedSink(sink, trace))
        return TracedSession(session, trace)


class TracedSession:
    """See ``Session``."""

    def __init__(self, session: Session, trace: CallTrace) -> None:
        self._session, self.trace = session, trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def open(self) -> None:
        self.trace.begin()
        self._session.open()
        self.trace.is_open(self._session.concurrency)

    def submit(self, chunk: Chunk) -> None:
        sent = self.trace.submitting(chunk)
        self._session.submit(chunk)
        sent.done = monotonic()

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        began = monotonic()
        try:
            return self._session.wait(reports, until, leaves=leaves)
        finally:
            self.trace.waited += monotonic() - began

    def close(self) -> None:
        self._session.close()
        self.trace.close()

    def kill(self) -> None:
        self._session.kill()
        self.trace.close()


class TracedSink:
    """See ``Sink``."""

    def __init__(self, sink: Sink, trace: CallTrace) -> None:
        self._sink, self._trace = sink, trace

    def begun(self, chunk: int) -> bool:
        begins = self._sink.begun(chunk)
        if not begins:
            self._trace.taken_back(chunk)
        return begins

    def report(self, report: Report) -> None:
        sent = self._trace.reported(report)
        report.delivery = TracedDelivery(report.delivery, self._trace, sent)
        self._sink.report(report)


class TracedDelivery:
    """See ``Delivery``."""

    __slots__ = ("_delivery", "_sent", "_trace")

    def __init__(self, delivery: Delivery, trace: CallTrace, sent: Sent | None) -> None:
        self._delivery, self._trace, self._sent = delivery, trace, sent

    @property
    def is_plain(self) -> bool:
        return self._delivery.is_plain

    def open(self) -> Batch:
        trace, began = self._trace, monotonic()
        batch = self._delivery.open()
        trace.decoded += monotonic() - began
        if batch.errors or self._sent is not None:
            trace.taken(batch, self._sent)
        return batch

    def discard(self) -> None:
        self._delivery.discard()
        self._trace.dropped(self._sent)
