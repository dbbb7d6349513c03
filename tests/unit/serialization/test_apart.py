"""Values of one message that have nothing in common but code and what is said to be common."""

from typing import Any

import numpy as np

from sharedtask.serialization import apart


def never(_: object) -> bool:
    return False


def always(_: object) -> bool:
    return True


def received(values: list[Any], is_common: Any = never) -> tuple[list[Any], list[Any]]:
    """The table of some values, and the values as they arrive."""
    table, data = apart.encoded(values, is_common)
    return table, [each.decode() for each in apart.opened(table, data)]


def test_code_is_in_the_table_once() -> None:
    """Functions and classes that are sent by value go along once, however many values have them."""

    class Local:
        """A class that no one can import."""

    def local() -> int:
        return 7

    values = [(Local(), local) for _ in range(5)]
    table, found = received(values)
    assert {id(Local), id(local)} == set(map(id, table))
    assert [(True, 7)] * 5 == [(isinstance(made, Local), call()) for made, call in found]


def test_objects_are_each_values_own() -> None:
    """Also where one object is in all of them, and where a value is decoded twice."""
    common: list[int] = []
    table, data = apart.encoded([{"in": common}, {"in": common}], never)
    one, other = apart.opened(table, data)
    found = [each.decode()["in"] for each in (one, one, other)]
    assert 3 == len(set(map(id, found)))


def test_arrays_in_common_are_read_only() -> None:
    """The others are written by their owners."""
    array = np.zeros(3)
    for is_common, count in ((always, 1), (never, 2)):
        _, (one, other) = received([array, array], is_common)
        assert count == len({id(one), id(other)})
        assert (is_common is never) == one.flags.writeable


def test_tables_are_entered_one_within_another() -> None:
    """A value that decodes another one while it is decoded goes on with its own table."""
    with apart.entered(["outer"]):
        with apart.entered(["inner"]):
            assert "inner" == apart.entry(0)
        assert "outer" == apart.entry(0)
