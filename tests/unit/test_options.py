import asyncio
import contextvars
import dataclasses
import threading
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedtask import parallel
from sharedtask.errors import OptionsError
from sharedtask.options import (
    OPTION_NAMES,
    Options,
    OptionsDict,
    check_options,
    defaults,
    resolve,
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test without options from the surroundings."""
    for name in OPTION_NAMES:
        monkeypatch.delenv(f"SHAREDTASK_{name.upper()}", raising=False)


BAD = [
    *[("workers", value) for value in (0, -3, 1.5, 2.0, "2", True, False, 1001, [2], np.bool_(1))],
    *[("chunksize", value) for value in (0, -1, 1.5, "4", "automatic", True, None)],
    *[("buffersize", value) for value in (0, -1, 1.5, "4", True, "auto")],
    *[("timeout", value) for value in (0, -1, 0.0, "3", True, float("inf"), float("nan"))],
    *[("retries", value) for value in (-1, 1.0, "1", True, None)],
    *[("retry_on", value) for value in ((), ValueError(), "ValueError", int, KeyboardInterrupt)],
    *[("retry_on", value) for value in (None, (ValueError, int), [BaseException])],
    *[("progress", value) for value in (1, 0, "yes", None)],
    *[("return_exceptions", value) for value in (1, "no", None)],
    *[("logs", value) for value in (1, "no", None)],
    *[("strict", value) for value in (1, "yes", None)],
    *[("desc", value) for value in (3, b"text", True)],
    *[("backend", value) for value in ("proces", "", None, 3, ["process"])],
    *[("verify", value) for value in ("contents", None, True)],
    *[("initializer", value) for value in (3, "set_up", (print, 3), [print, ()])],
    *[("journal", value) for value in ("", 3, True, b"run.sqlite", "a\0b")],
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_is_refused(name: Any, value: Any) -> None:
    """A value outside what its option allows is one line that names option and value."""
    with pytest.raises(OptionsError) as caught:
        check_options({name: value}, "score()")
    text = str(caught.value)
    assert text.startswith(f"score(): {name} must be ")
    assert repr(value) in text
    assert "\n" not in text
    assert "pydantic" not in text


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_is_refused_by_every_door(name: Any, value: Any) -> None:
    """defaults() and Options() refuse what check_options refuses."""
    with pytest.raises(OptionsError, match=r"^defaults\(\): "):
        defaults(**{name: value})
    with pytest.raises(OptionsError, match=r"^Options\(\): "):
        Options(**{name: value})


def test_pydantic_does_not_show() -> None:
    """The error of the library underneath appears neither as cause nor as context."""
    with pytest.raises(OptionsError) as caught:
        check_options({"workers": 0}, "score()")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_long_value_is_cut() -> None:
    """A value of any size leaves the text short."""
    with pytest.raises(OptionsError) as caught:
        check_options({"workers": "9" * 10_000}, "score()")
    assert 250 > len(str(caught.value))


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"workers": 1}, {"workers": 1}),
        ({"workers": 1000}, {"workers": 1000}),
        ({"workers": None}, {"workers": None}),
        ({"workers": np.int64(4)}, {"workers": 4}),
        ({"chunksize": "auto"}, {"chunksize": "auto"}),
        ({"chunksize": 10**9}, {"chunksize": 10**9}),
        ({"buffersize": 1}, {"buffersize": 1}),
        ({"timeout": 3}, {"timeout": 3.0}),
        ({"timeout": 0.001}, {"timeout": 0.001}),
        ({"timeout": None}, {"timeout": None}),
        ({"retries": 0}, {"retries": 0}),
        ({"retry_on": KeyError}, {"retry_on": (KeyError,)}),
        ({"retry_on": [KeyError, OSError]}, {"retry_on": (KeyError, OSError)}),
        ({"retry_on": (KeyError,)}, {"retry_on": (KeyError,)}),
        ({"progress": True, "desc": "text"}, {"progress": True, "desc": "text"}),
        ({}, {}),
    ],
)
def test_good_values_are_normalised(given: Any, stored: Any) -> None:
    """Only the given options come back, in the one form that lower code sees."""
    checked = check_options(given, "score()")
    assert stored == checked
    assert {n: type(v) for n, v in stored.items()} == {n: type(v) for n, v in checked.items()}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        *[(n, "workers") for n in ("n_jobs", "max_workers", "num_workers", "num_cpus")],
        *[(n, "workers") for n in ("processes", "wrokers", "worker")],
        *[(n, "chunksize") for n in ("batch_size", "chunk_size", "chunk")],
        *[(n, "buffersize") for n in ("pre_dispatch", "max_tasks_active")],
        *[(n, "journal") for n in ("checkpoint", "resume", "jornal")],
        *[(n, "timeout") for n in ("task_timeout", "timeout_seconds", "time_out")],
        ("max_retries", "retries"),
        ("backends", "backend"),
    ],
)
def test_unknown_name_gets_the_right_one(wrong: Any, right: Any) -> None:
    """The spelling of another library, or a typing mistake, is answered with our word."""
    with pytest.raises(OptionsError) as caught:
        check_options({wrong: 2}, "score()")
    assert f"score(): there is no option {wrong}=. Did you mean {right}=?" == str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"), [("shard", "shared"), ("copyonwrite", "copy_on_write"), ("lock", "locked")]
)
def test_misspelt_list_of_parameters_gets_the_right_one(wrong: str, right: str) -> None:
    """A mistyped keyword of parallel() is no option, and is answered all the same."""
    wrongly: Any = {wrong: ["model"]}
    told = f"there is no option {wrong}=. Did you mean {right}="
    for decorate in (lambda: parallel(**wrongly), lambda: parallel(abs, **wrongly)):
        with pytest.raises(OptionsError, match=told):
            decorate()


def test_unknown_name_without_likeness_lists_the_options() -> None:
    """A name that resembles nothing is answered with all names."""
    with pytest.raises(OptionsError, match=r"The options are backend, workers, .*verify"):
        check_options({"zzz": 2}, "score()")


def test_near_backend_name_is_suggested() -> None:
    """A mistyped word is answered with the nearest one."""
    with pytest.raises(OptionsError, match="Did you mean 'thread'"):
        check_options({"backend": "threads"}, "score()")


def test_options_are_frozen() -> None:
    """Options change by replace only, and the replacement is checked."""
    options = Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.workers = 3  # type: ignore[misc]
    assert 3 == dataclasses.replace(options, workers=3).workers
    with pytest.raises(OptionsError):
        dataclasses.replace(options, workers=0)


def test_unknown_field_is_refused() -> None:
    """Options has no other fields."""
    with pytest.raises(TypeError, match="n_jobs"):
        Options(n_jobs=3)  # type: ignore[call-arg]


def test_typed_dict_has_the_same_names() -> None:
    """OptionsDict and Options name the same options."""
    assert set(OPTION_NAMES) == set(OptionsDict.__annotations__)


@pytest.mark.parametrize(
    ("shown", "given"),
    [
        (False, {}),
        (True, {"progress": True}),
        (True, {"desc": "text"}),
        (True, {"desc": ""}),
        (False, {"desc": None}),
    ],
)
def test_description_alone_turns_the_bar_on(shown: Any, given: Any) -> None:
    """A bar is shown when it is asked for or described."""
    assert shown is Options(**given).shows_progress


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "workers": st.none() | st.integers(1, 1000),
            "chunksize": st.just("auto") | st.integers(1, 10**30),
            "buffersize": st.none() | st.integers(1, 10**30),
            "timeout": st.none() | st.floats(min_value=1e-9, max_value=1e9),
            "retries": st.integers(0, 10**30),
            "desc": st.none() | st.text("ab é", max_size=5),
        },
    )
)
def test_every_allowed_value_passes_unchanged(options: Any) -> None:
    """Values inside the ranges are accepted and come back equal."""
    assert options == check_options(options, "score()")


# --- which setting counts ----------------------------------------------------------------------


def test_built_in_defaults() -> None:
    """Without any setting the built-in defaults hold."""
    assert Options() == resolve({})


def test_nearer_setting_wins(monkeypatch: Any) -> None:
    """The task wins over the inner block, that over the outer, that over the variable."""
    monkeypatch.setenv("SHAREDTASK_WORKERS", "2")
    assert 2 == resolve({}).workers
    with defaults(workers=3):
        assert 3 == resolve({}).workers
        with defaults(workers=4):
            assert 4 == resolve({}).workers
            assert 5 == resolve({"workers": 5}).workers
        assert 3 == resolve({}).workers
    assert 2 == resolve({}).workers


def test_none_is_a_setting() -> None:
    """An option set to None hides a farther setting."""
    with defaults(timeout=3):
        assert 3.0 == resolve({}).timeout
        assert resolve({"timeout": None}).timeout is None


def test_blocks_merge() -> None:
    """An inner block leaves the other options of the outer one in force."""
    with defaults(workers=3, retries=1), defaults(workers=4):
        assert (4, 1) == (resolve({}).workers, resolve({}).retries)


def test_block_ends_with_an_error() -> None:
    """A block that an exception leaves is over."""
    with pytest.raises(ZeroDivisionError), defaults(workers=3):
        raise ZeroDivisionError
    assert resolve({}).workers is None


def test_one_block_is_entered_again() -> None:
    """The same block object may be entered inside itself."""
    block = defaults(workers=3)
    with block, defaults(workers=4), block:
        assert 3 == resolve({}).workers
    assert resolve({}).workers is None


def test_one_block_serves_many_threads() -> None:
    """A block counts in the thread that entered it, whatever others do with the same object."""
    block = defaults(workers=3)
    inside, done = threading.Barrier(4), []

    def enter() -> None:
        before = resolve({}).workers
        with block:
            inside.wait()
            during = resolve({}).workers
            inside.wait()
        done.append((before, during, resolve({}).workers))

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(None, 3, None)] * 4 == done


def test_block_counts_for_its_asyncio_task() -> None:
    """Two asyncio tasks in different blocks do not see each other's options."""

    async def enter(workers: int) -> int | None:
        with defaults(workers=workers):
            await asyncio.sleep(0)
            return resolve({}).workers

    async def both() -> list[int | None]:
        return list(await asyncio.gather(enter(3), enter(4)))

    assert [3, 4] == asyncio.run(both())


def test_block_is_seen_in_a_copied_context() -> None:
    """Code that runs in a copy of the context has the block's options."""
    with defaults(workers=3):
        context = contextvars.copy_context()
    assert 3 == context.run(lambda: resolve({}).workers)


def test_equal_settings_give_the_same_object() -> None:
    """A call whose settings did not change costs a look-up and builds nothing."""
    assert resolve({"workers": 3}) is resolve({"workers": 3})


# --- variables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("workers", "4", 4),
        ("workers", " 4 ", 4),
        ("workers", "none", None),
        ("workers", "", None),
        ("workers", "  ", None),
        ("backend", "Thread", "thread"),
        ("chunksize", "AUTO", "auto"),
        ("chunksize", "7", 7),
        ("buffersize", "8", 8),
        ("buffersize", "None", None),
        ("progress", "true", True),
        ("progress", "ON", True),
        ("progress", "1", True),
        ("progress", "no", False),
        ("desc", "My Text", "My Text"),
        ("desc", "none", None),
        ("journal", "Run.sqlite", "Run.sqlite"),
        ("journal", "none", None),
        ("timeout", "0.5", 0.5),
        ("timeout", "3", 3.0),
        ("timeout", "none", None),
        ("retries", "2", 2),
        ("return_exceptions", "yes", True),
        ("strict", "1", True),
        ("strict", "off", False),
        ("verify", "identity", "identity"),
    ],
)
def test_variable_is_read(monkeypatch: Any, name: Any, text: Any, value: Any) -> None:
    """The text of a variable is read as its option's type; an empty one counts as not set."""
    monkeypatch.setenv(f"SHAREDTASK_{name.upper()}", text)
    assert value == getattr(resolve({}), name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers", "two"),
        ("workers", "0"),
        ("workers", "1.5"),
        ("chunksize", "none"),
        ("progress", "maybe"),
        ("strict", "very"),
        ("timeout", "nan"),
        ("timeout", "-1"),
        ("retries", "none"),
        ("backend", "mp"),
        ("verify", "no"),
    ],
)
def test_bad_variable_is_named(monkeypatch: Any, name: Any, text: Any) -> None:
    """A variable with a bad value is named in the error, at the next call."""
    variable = f"SHAREDTASK_{name.upper()}"
    monkeypatch.setenv(variable, text)
    with pytest.raises(OptionsError, match=rf"^{variable}: {name} must be "):
        resolve({})


def test_changed_variable_is_seen_at_the_next_call(monkeypatch: Any) -> None:
    """Setting, changing and deleting a variable each count at once."""
    seen = []
    for text in ("2", "3", None, "2"):
        if text is None:
            monkeypatch.delenv("SHAREDTASK_WORKERS")
        else:
            monkeypatch.setenv("SHAREDTASK_WORKERS", text)
        seen.append(resolve({}).workers)
    assert [2, 3, None, 2] == seen


def test_replaced_environment_is_read() -> None:
    """A test that puts a plain dict in place of os.environ is served too."""
    with mock.patch("os.environ", {"SHAREDTASK_WORKERS": "6"}):
        assert 6 == resolve({}).workers
    assert resolve({}).workers is None


@pytest.mark.parametrize("name", ["STORE", "STORE_DIR", "RETRY_ON", "WHATEVER"])
def test_other_variables_are_left_alone(monkeypatch: Any, name: Any) -> None:
    """Variables that are no option of ours change nothing."""
    monkeypatch.setenv(f"SHAREDTASK_{name}", "-1")
    assert Options() == resolve({})
