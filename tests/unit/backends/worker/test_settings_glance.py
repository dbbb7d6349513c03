"""The caller's settings are the same object until one of them is another, and then a new one."""

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sharedtask.backends.worker import process_settings
from sharedtask.backends.worker.settings import SETTINGS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with process_settings.restored():
        yield


CHANGES: dict[str, Callable[[], object]] = {
    "numpy's error state": lambda: np.seterr(divide="raise"),
    "its handler": lambda: (np.seterr(all="call"), np.seterrcall(lambda *_: None)),
    "numpy's print options": lambda: np.set_printoptions(precision=3),
    "os.environ": lambda: os.environ.update(GLANCED="1"),
    "the warning filters": lambda: warnings.simplefilter("ignore", ResourceWarning),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen(change: str) -> None:
    """At the next call, and as often as it is changed."""
    before = process_settings.current()
    assert before is process_settings.current()
    CHANGES[change]()
    after = process_settings.current()
    assert before is not after
    assert before != after
    assert after is process_settings.current()


def test_equal_settings_are_the_same() -> None:
    """Those of a block that is entered again are not sent to the workers again."""
    found = []
    for _ in range(3):
        with np.errstate(divide="raise"), np.printoptions(precision=2):
            found.append(process_settings.current())
        found.append(process_settings.current())
    assert 2 == len({id(each) for each in found})


def test_numpy_is_looked_at_without_reading_it() -> None:
    """It keeps each group of settings in one object, which it replaces."""
    places = {
        "numpy's error state": "numpy._core.umath",
        "numpy's print options": "numpy._core.printoptions",
    }
    known = [name for name, module in places.items() if module in sys.modules]
    assert known == [setting.name for setting in SETTINGS if setting.glance is not None]


def test_settings_that_change_all_the_time_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read between two glances that differ is not found by either."""
    looks = itertools.count()
    monkeypatch.setattr(process_settings, "_recent", [])
    monkeypatch.setattr(process_settings, "_glance", lambda: (next(looks),))
    process_settings.current()
    assert [()] == [seen.glance for seen in process_settings._recent]
