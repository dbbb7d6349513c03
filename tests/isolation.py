"""Runs the tests in a forked process, so that a test that hangs or crashes fails alone.

The parent collects and reports; the child runs one test after the other, as the parent tells it.
When a test exceeds its time limit, the parent writes the stacks into its report, ends the child and
all processes below it, and forks a new child for the remaining tests. The child is forked after
collection, so that neither costs a second collection.
"""

import contextlib
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from processes import GONE, Server


class Isolation:
    """The plugin: the same object in the parent and, after the fork, in the child."""

    def __init__(self) -> None:
        self._child: Server | None = None
        self._to_parent: Connection | None = None
        self._limit: float | None = None
        self._places: dict[int, int] = {}

    @pytest.hookimpl
    def pytest_timeout_set_timer(self, settings: Any) -> bool:
        """The parent keeps the time limit that pytest-timeout found for the test."""
        self._limit = settings.timeout
        return True

    @pytest.hookimpl
    def pytest_timeout_cancel_timer(self) -> bool:
        """There is no timer to cancel."""
        self._limit = None
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test: the parent has the child do it."""
        if self._to_parent is not None:
            _run_test(item, nextitem, self._to_parent)
            return True
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for kind, content in self._events(item, nextitem):
            if kind == "report":
                report = hook.pytest_report_from_serializable(config=item.config, data=content)
                hook.pytest_runtest_logreport(report=report)
            elif kind == "warning":
                hook.pytest_warning_recorded.call_historic(kwargs=content)
            elif kind == "exit":
                pytest.exit(content)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _events(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[tuple[str, Any]]:
        """What the child tells of this test; a child that does not come back is replaced."""
        if self._child is None:
            self._child = Server.fork(lambda parent: self._serve(item.session, parent))
        began, limit = time.monotonic(), self._limit
        try:
            self._child.pipe.send([each and self._place(each) for each in (item, nextitem)])
            while (event := self._child.receive(limit)) != ("done", None):
                yield event
        except (TimeoutError, *GONE) as error:
            child, self._child = self._child, None
            told = _tell_lost(child, isinstance(error, TimeoutError), limit, item.config)
            yield "report", _failure(item, told, time.monotonic() - began)

    def _place(self, item: pytest.Item) -> int:
        if not self._places:
            self._places = {id(each): at for at, each in enumerate(item.session.items)}
        return self._places[id(item)]

    @pytest.hookimpl
    def pytest_warning_recorded(
        self, warning_message: Any, when: str, nodeid: str, location: Any
    ) -> None:
        """The child hands a warning on to the parent's summary."""
        if self._to_parent is not None:
            told = {"warning_message": warning_message, "when": when, "nodeid": nodeid}
            with contextlib.suppress(Exception):  # a warning that does not pickle
                self._to_parent.send(("warning", {**told, "location": location}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """The child tears down what is left, and ends."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _serve(self, session: pytest.Session, parent: Connection) -> None:
        """Run the tests that the parent names until it names no more."""
        self._to_parent = parent
        try:
            while (places := parent.recv()) is not None:
                item, nextitem = (None if at is None else session.items[at] for at in places)
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
                parent.send(("done", None))
        finally:
            session._setupstate.teardown_exact(None)


def _run_test(item: pytest.Item, nextitem: pytest.Item | None, parent: Connection) -> None:
    """Send the reports of one test."""
    try:
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    except pytest.exit.Exception as error:
        parent.send(("exit", str(error)))
        return
    for report in reports:
        hook = item.ihook
        data = hook.pytest_report_to_serializable(config=item.config, report=report)
        parent.send(("report", data))


def _failure(item: pytest.Item, told: str, seconds: float) -> Any:
    """The report of a test that did not come back."""
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=told,
        when="call",
        duration=seconds,
    )
    return item.ihook.pytest_report_to_serializable(config=item.config, report=report)


def _tell_lost(child: Server, hangs: bool, limit: float | None, config: pytest.Config) -> str:
    """What there is to say about a test that did not come back."""
    printed = zip(("stdout", "stderr"), _read_captured(config), strict=True)
    told = child.end_now(hangs=hangs)
    head = f"The test took more than {limit:g} seconds." if hangs else "The test ended its process."
    parts = [f"Captured {name}:\n{text}" for name, text in printed if text]
    return "\n\n".join([head, told, *parts])


def _read_captured(config: pytest.Config) -> tuple[str, str]:
    """What the test has printed: parent and child capture into the same files."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None or not capture.is_globally_capturing():
        return "", ""
    return tuple(capture.read_global_capture())
