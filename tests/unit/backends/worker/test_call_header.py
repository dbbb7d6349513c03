import pickle
from typing import Any

from sharedtask.backends.worker import call_header
from sharedtask.backends.worker.call_header import Headers


def test_headers_are_loaded_once() -> None:
    """The chunks of a call have one header, which is found by its bytes."""
    headers: Any = Headers()
    data = pickle.dumps("a header")
    assert headers.get(data) is headers.get(bytes(bytearray(data)))


def test_known_headers_are_bounded() -> None:
    """A worker is not told that a call has ended: it keeps so many headers, and no more."""
    headers: Any = Headers()
    for number in range(3 * call_header._MAX_LOADED):
        assert number == headers.get(pickle.dumps(number))
        assert len(headers._loaded) <= call_header._MAX_LOADED + 1
