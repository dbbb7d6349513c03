"""The Ray backend beyond the contract: which Ray is used, what lies in its store, several nodes."""

import functools
import gc
import importlib
import itertools
import os
import secrets
import socket
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import with_long

import sharedtask
from sharedtask import (
    BackendUnavailableError,
    ClosedError,
    CopyOnWrite,
    OptionsError,
    Shared,
    options,
    parallel,
    share,
)
from sharedtask.testing import until

pytestmark = pytest.mark.timeout(90)

Start = Callable[..., Any]
ours = pytest.mark.usefixtures("ray_runtime")


# ------------------------------------------------------------------------------- runtime


@pytest.mark.long
def test_ray_outlives_the_thread_of_its_first_call(run: Callable[..., str]) -> None:
    """A first call in a thread of its own, as of ``amap``, starts a Ray for all calls."""
    program = """
import os, threading
os.environ.pop("RAY_ADDRESS", None)
import sharedtask
from sharedtask import parallel
double = parallel(backend="ray")(lambda x: 2 * x)
thread = threading.Thread(target=lambda: print(double.map(range(3))))
thread.start()
thread.join()
print(double.map(range(3)))
"""
    assert "[0, 2, 4]\n" * 2 == run(program)


@pytest.mark.long
def test_a_ray_of_our_own(script: Start, tmp_path: Path) -> None:
    """Without a Ray one is started: all CPUs, silent, one for all calls, gone with the program."""
    home = tmp_path / "home"
    home.mkdir()
    ran = script(
        """
import os, sys
import sharedtask
from sharedtask import parallel
from sharedtask.backends import registry
from sharedtask.options import Options
from sharedtask.system.cpus import available_cpus

for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
    os.environ.pop(name, None)
square = parallel(backend="ray")(lambda x: x * x)
print(registry.of(Options()).name)
print(square.map(range(4)))
print(registry.of(Options()).name)
import ray
print(int(ray.cluster_resources()["CPU"]) == available_cpus())
print(os.environ.get("RAY_AUTH_MODE", "token"))
session = ray._private.worker.global_worker.node.get_session_dir_path()
print(square.with_options(workers=5).map(range(4)))
print(session == ray._private.worker.global_worker.node.get_session_dir_path())
try:
    square.with_options(ray_options={"num_gpus": 1}).map([1])
except sharedtask.OptionsError as error:
    print(error)
parallel(backend="ray")(lambda x: print("from a task", file=sys.stdout)).map([1])
pid = os.fork()
if not pid:
    try:
        square.map([1])
    except sharedtask.BackendUnavailableError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(square.map(range(3)))
sharedtask.shutdown()
print(ray.is_initialized(), registry.of(Options()).name)
print(square.map(range(4)), ray.is_initialized())
""",
        HOME=str(home),
    )
    assert (0, "") == (ran.end(60), ran.err)
    *lines, gpus, seven, squares, down, again = [
        line for line in ran.out.splitlines() if "from a task" not in line
    ]
    one_ray = ["process", "[0, 1, 4, 9]", "process", "True", "token", "[0, 1, 4, 9]", "True"]
    assert one_ray == lines
    assert "num" in gpus or "GPU" in gpus
    assert ["7", "[0, 1, 4]"] == [seven, squares]
    assert ["False process", "[0, 1, 4, 9] True"] == [down, again]
    (token,) = (home / ".ray").iterdir()
    assert 0o600 == stat.S_IMODE(token.stat().st_mode)
    ran.assert_gone(5)


@ours
def test_an_initialised_ray_is_used_as_found() -> None:
    """A Ray that is initialised is used whatever ``workers`` says, and outlives ``shutdown()``."""
    import ray

    job = ray.get_runtime_context().get_job_id()
    for workers in (1, 3, None):
        task = parallel(lambda x: x + 1).with_options(backend="ray", workers=workers)
        assert [1, 2, 3] == task.map(range(3))
        sharedtask.shutdown()
        assert ray.is_initialized()
    assert job == ray.get_runtime_context().get_job_id()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


UNREACHABLE = """
import os, sys, time
import sharedtask
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    began = time.monotonic()
    try:
        sharedtask.parallel(backend="ray")(abs).map([1])
    except sharedtask.BackendUnavailableError as error:
        print(time.monotonic() - began < 30, str(error).replace("\\n", " "), flush=True)
del os.environ["RAY_ADDRESS"]
"""


def test_cluster_that_is_not_there(script: Start) -> None:
    """Where no one listens, or the host has no address, the error says so within seconds."""
    port = closed_port()
    ran = script(UNREACHABLE, f"127.0.0.1:{port}", "no-such-host.invalid:6379")
    assert (0, "") == (ran.end(60), ran.err)
    refused, unknown = ran.out.splitlines()
    assert refused.startswith(f"True the Ray cluster at RAY_ADDRESS=127.0.0.1:{port} cannot be")
    assert "Connection refused" in refused
    assert unknown.startswith("True the Ray cluster at RAY_ADDRESS=no-such-host.invalid:6379")
    assert "ame or service not known" in unknown or "resol" in unknown


@pytest.mark.long
def test_cluster_that_does_not_answer(script: Start) -> None:
    """A port at which something else listens is an error within half a minute.

    Here within seconds: what the user sets stays. Ours makes it two tries of 2 * 3 + 4 + 1 seconds.
    """
    from sharedtask.backends.ray import runtime

    assert {
        "RAY_gcs_server_port_wait_time_s": "2",
        "RAY_gcs_rpc_server_connect_timeout_s": "3",
        "RAY_py_gcs_connect_timeout_s": "4",
    } == runtime._PATIENCE
    quick = dict.fromkeys(runtime._PATIENCE, "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        ran = script(UNREACHABLE, f"127.0.0.1:{silent.getsockname()[1]}", **quick)
        assert 0 == ran.end(20)
    (told,) = ran.out.splitlines()
    assert told.startswith("True the Ray cluster at RAY_ADDRESS=127.0.0.1")
    assert "Failed to connect" in told


@ours
def test_another_version_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with another version of sharedtask is an error that names both."""
    from sharedtask.backends.carried import dispatcher, work_items
    from sharedtask.version import VERSION

    monkeypatch.setattr(work_items, "VERSION", "99.1")
    monkeypatch.setattr(dispatcher, "VERSION", "99.1")
    with pytest.raises(BackendUnavailableError) as caught:
        parallel(backend="ray")(lambda x: x).map([1])
    assert "99.1" in str(caught.value)
    assert VERSION in str(caught.value)


# ------------------------------------------------------------------------------- options


def test_every_option_of_rays_tasks_is_known() -> None:
    """Each option that the installed Ray has for tasks is taken, or refused with what to say."""
    names = pytest.importorskip("ray._common.ray_option_utils").task_options
    for name in (n for n in names if not n.startswith("_")):
        if name in options._RAY_SCHEMAS:
            continue
        with pytest.raises(OptionsError, match=rf"ray_options has no '{name}'\. \w+") as caught:
            parallel(ray_options={name: 1})(lambda x: x)
        assert name in options._RAY_REFUSED, str(caught.value)


VALUES: dict[str, Any] = {
    "num_cpus": 0.5,
    "num_gpus": 0,
    "memory": 1000,
    "resources": {},
    "label_selector": {},
    "fallback_strategy": [],
    "scheduling_strategy": "SPREAD",
    "runtime_env": {"env_vars": {"SHAREDTASK_TEST": "1"}},
    "name": "mine",
    "enable_task_events": False,
}


@ours
@pytest.mark.parametrize(
    "name", with_long(sorted({*options._RAY_SCHEMAS} - {"accelerator_type"}), "scheduling_strategy")
)
def test_options_reach_ray(name: str) -> None:
    """An option of Ray's tasks changes no result."""
    task = parallel(lambda x: x + 1).with_options(backend="ray", ray_options={name: VALUES[name]})
    assert [1, 2, 3, 4] == task.map(range(4))


@ours
def test_a_task_of_two_cpus_runs_alone() -> None:
    """Tasks that need two CPUs run one at a time where there are two."""

    def run(x: int) -> tuple[float, float]:
        began = time.monotonic()
        time.sleep(0.05)
        return began, time.monotonic()

    task = parallel(run).with_options(backend="ray", chunksize=1, ray_options={"num_cpus": 2})
    times = sorted(task.map(range(6)))
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(times))


# ------------------------------------------------------------------------------- sharing


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch, ray_runtime: None) -> list[int]:
    """The sizes of what is put from now on."""
    import ray

    put, sizes = ray.put, []

    def count(box: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(box.payload.nbytes)
        return put(box, *args, **kwargs)

    monkeypatch.setattr(ray, "put", count)
    return sizes


def add(x: int, table: Shared[Any]) -> float:
    return float(table.sum()) + x


on_ray = parallel(backend="ray")
add_on_ray = on_ray(add)


def test_a_value_is_put_once(puts: list[int]) -> None:
    """However often and from whichever task a value is mapped, it is put once."""
    table = np.ones(400_000)
    other = parallel(shared=["table"], backend="ray")(lambda x, table: float(table[x]))
    for _ in range(3):
        assert [400_000.0, 400_001.0] == add_on_ray.map(range(2), table=table)
        assert [1.0, 1.0] == other.map(range(2), table=table)
        assert 400_005.0 == add_on_ray.submit(5, table=table).result(60)
        assert [400_000.0] == list(add_on_ray.imap([0], table=table))
    assert 1 == len(puts)


def test_a_changed_value_is_put_again(puts: list[int]) -> None:
    """Each change in place is one more put, and every result is that of the present contents."""
    table = np.ones(400_000)
    for change in range(4):
        table[::7919] = change
        wanted = float(table.sum())
        for _ in range(2):
            assert [wanted, wanted + 1] == add_on_ray.map(range(2), table=table)
    assert 4 == len(puts)


@ours
def test_a_reused_id_is_another_value() -> None:
    """A new array at a dead one's address is never taken for it."""
    for k in range(30):
        table = np.full(150_000, k)
        assert [150_000.0 * k] == add_on_ray.map([0], table=table)
        del table


def used_store() -> float:
    ray: Any = importlib.import_module("ray")
    total = ray.cluster_resources()["object_store_memory"]
    return float(total - ray.available_resources().get("object_store_memory", 0))


def spilled() -> list[Path]:
    ray: Any = importlib.import_module("ray")
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    return [path for path in Path(session).glob("ray_spilled_objects*/*") if path.is_file()]


@ours
def test_dead_values_are_freed() -> None:
    """Values that together exceed the store follow each other without one going to disk."""
    before = set(spilled())
    for k in range(9):
        table = np.full(150_000_000, k, np.uint8)
        assert [150_000_000.0 * k] == add_on_ray.map([0], table=table)
        del table
    until(lambda: used_store() < 100_000_000)
    assert before == set(spilled())


@ours
def test_handles_on_ray(puts: list[int]) -> None:
    """A value behind a handle is put once, stays as it was, and is freed as the handle closes."""
    table = np.ones(40_000_000, np.uint8)
    until(lambda: used_store() < 20_000_000)
    with share(table) as handle:
        table[:] = 2
        for _ in range(3):
            assert [4e7] == add_on_ray.map([0], table=handle)
        assert 1 == len(puts)
        until(lambda: used_store() > 20_000_000)
    until(lambda: used_store() < 20_000_000)
    with pytest.raises(ClosedError):
        add_on_ray.map([0], table=handle)


class Counts:
    """Leaves a file wherever it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.data = np.ones(400_000)

    def __getstate__(self) -> Any:
        return self.__dict__.copy()

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        with open(os.path.join(self.folder, str(os.getpid())), "a") as file:
            file.write("x")


@ours
def test_a_value_is_decoded_once_in_each_worker(tmp_path: Path) -> None:
    """Over several maps, streams and submitted items each worker unpickles a value once."""

    def run(x: int, value: Shared[Any]) -> int:
        time.sleep(0.01)
        return os.getpid()

    value, task = Counts(tmp_path), on_ray(run).with_options(chunksize=1)
    pids: set[int] = set()
    for _ in range(3):
        pids.update(task.map(range(6), value=value), task.imap(range(4), value=value))
        pids.add(task.submit(1, value=value).result(60))
    found = {int(path.name): path.stat().st_size for path in tmp_path.iterdir()}
    assert dict.fromkeys(pids, 1) == {pid: n for pid, n in found.items() if pid != os.getpid()}


def mapping_of(address: int) -> str:
    """The name of what is mapped at an address of this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split(None, 1)[0].split("-"))
            if start <= address < end:
                return line.split(None, 5)[5].strip() if len(line.split(None, 5)) > 5 else ""
    return ""


def where(x: int, value: Shared[Any], inner: Any) -> list[str]:
    return [mapping_of(array.__array_interface__["data"][0]) for array in inner(value)]


def arrays_of(kind: str) -> tuple[Any, Callable[[Any], list[Any]]]:
    """A value of 2 MB or more, and a function that gives the arrays in it."""
    plain = np.arange(400_000, dtype=np.float64)
    if kind == "masked":
        return np.ma.masked_less(plain, 7), lambda v: [v.data, v.mask]
    if kind == "nested":
        return {"a": [plain, plain * 2], "b": "text"}, lambda v: v["a"]
    if kind == "data frame":
        pandas = pytest.importorskip("pandas")
        return pandas.DataFrame({"a": plain, "b": plain}), lambda v: [v["a"].to_numpy()]
    if kind == "sparse":
        sparse: Any = pytest.importorskip("scipy.sparse").diags(plain)
        return sparse.tocsr(), lambda v: [v.data, v.indices]
    made = {  # type: ignore[no-untyped-call]
        "plain": lambda: plain,
        "datetime64": lambda: plain.astype("datetime64[s]"),
        "structured": lambda: np.zeros(200_000, dtype="i4,f8"),
        "recarray": lambda: np.zeros(200_000, dtype="i4,f8").view(np.recarray),
        "strided": lambda: plain.reshape(400, 1000)[:, ::2],
        "reversed": lambda: plain[::-1],
        "fortran": lambda: np.asfortranarray(plain.reshape(400, 1000)),
        "big endian": lambda: plain.astype(">f8"),
        "text": lambda: np.full(100_000, "abcdefgh"),
        "bool": lambda: np.ones(2_000_000, bool),
    }[kind]()
    return made, lambda v: [v]


KINDS = (
    "plain", "datetime64", "masked", "structured", "recarray", "strided", "reversed", "fortran",
    "big endian", "text", "bool", "nested", "data frame", "sparse",
)  # fmt: skip


@ours
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_stay_in_the_object_store(kind: str) -> None:
    """In a worker the data of every kind of array lies where Ray put it."""
    value, inner = arrays_of(kind)
    for name in on_ray(where).map([1], value=value, inner=inner)[0]:
        assert "plasma" in name or name.startswith("/dev/shm")


@ours
def test_a_mapped_file_is_opened_by_the_worker(tmp_path: Path) -> None:
    """On one machine a memory-mapped file is mapped by the worker, not stored."""
    path = tmp_path / "numbers"
    np.arange(400_000.0).tofile(path)
    table = np.memmap(path, np.float64, "r")
    ((name,),) = on_ray(where).map([1], value=table, inner=lambda v: [v])
    assert str(path) == name
    assert [float(table.sum())] == add_on_ray.map([0], table=table)


@ours
def test_one_object_for_two_parameters(puts: list[int]) -> None:
    """An object that is shared and copied on write at the same time is stored once."""

    def both(x: int, a: Shared[Any], b: CopyOnWrite[Any]) -> Any:
        b[0] = x
        return float(a[0]), float(b[0]), float(b.sum() - a.sum())

    table = np.ones(400_000)
    task = on_ray(both).with_options(chunksize=2)
    for _ in range(2):
        assert [(1.0, x, x - 1.0) for x in range(6)] == task.map(range(6), a=table, b=table)
    assert 1 == len(puts)


@ours
def test_a_value_in_another_role() -> None:
    """A value that workers have read-only is writable in a task that copies it on write."""

    def scribble(x: int, table: CopyOnWrite[Any]) -> float:
        table[0] += x
        return float(table.sum())

    table = np.ones(400_000)
    for _ in range(10):  # until each worker has made something of it
        assert [400_000.0 + x for x in range(8)] == add_on_ray.map(range(8), table=table)
        assert [400_000.0 + x for x in range(8)] == on_ray(scribble).map(range(8), table=table)


@ours
def test_a_value_is_let_go_with_its_call() -> None:
    """When a call is over, nothing but the caller holds its values: no collection is needed."""
    gc.collect()
    gc.disable()
    try:
        table = np.ones(400_000)
        alive = weakref.ref(table)
        assert [400_000.0] == add_on_ray.map([0], table=table)
        assert [400_000.0] == list(add_on_ray.imap([0], table=table))
        assert 400_000.0 == add_on_ray.submit(0, table=table).result(60)
        del table
        until(lambda: alive() is None)
    finally:
        gc.enable()


def lost_reference() -> Any:
    """A reference whose object is lost: its owner died."""
    import ray

    class Owner:
        def put(self) -> Any:
            return [ray.put(np.ones(400_000))]

    owner: Any = ray.remote(num_cpus=0)(Owner).remote()
    (reference,) = ray.get(owner.put.remote())
    ray.kill(owner)
    lost = functools.partial(ray.get, reference, timeout=1)
    until(lambda: raises(lost, ray.exceptions.ObjectLostError))
    return reference


def raises(function: Callable[[], Any], kind: type[Exception]) -> bool:
    try:
        function()
    except Exception as error:
        return isinstance(error, kind)
    return False


@ours
@pytest.mark.parametrize("how", with_long(["content", "identity", "handle"], "identity", "handle"))
def test_a_lost_object_is_put_again(how: Any) -> None:
    """Where Ray lost a value, it is stored again from the caller's, and results are right."""
    from sharedtask.backends import registry
    from sharedtask.backends.ray.store import RayStore

    backend: Any = registry.get("ray")
    size = 412_345 + 9_999 * len(how)  # as nothing else here
    table = np.ones(size)
    task = add_on_ray if how == "handle" else add_on_ray.with_options(verify=how)
    value: Any = share(table) if how == "handle" else table
    assert [size] == task.map([0], table=value)
    publications = backend.connect().cache.publications()
    (mine,) = [
        p
        for p in publications
        if isinstance(p.store, RayStore) and 0 <= p.nbytes - 8 * size < 8_000
    ]
    mine.store.ref = lost_reference()
    assert [float(size) + x for x in range(6)] == task.map(range(6), table=value)
    if how == "handle":
        value.close()


@ours
def test_an_object_put_again_is_for_its_calls_alone() -> None:
    """What was put again may differ from what workers have: a later call publishes again."""
    from sharedtask.backends import registry

    connection: Any = registry.get("ray").connect()  # type: ignore[attr-defined]
    table = np.ones(400_000)
    for _ in range(3):
        assert [400_000.0, 400_001.0] == add_on_ray.map(range(2), table=table)
    newest = connection.cache.publications()[-1]
    table[:] = 2
    newest.store.put_again(connection.encode(table))
    assert [800_000.0 + x for x in range(8)] == add_on_ray.map(range(8), table=table)


@ours
@pytest.mark.parametrize("size", [10, 400_000])
def test_what_is_compared_is_what_was_put(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write while a value is put, and taken back later: what matches is what workers get."""
    from sharedtask.backends.ray import store
    from sharedtask.serialization import codec
    from sharedtask.store.publication import Publication

    table = np.zeros(size)
    value = {"table": table, "others": np.ones(100_000)}
    put = store.put

    def written(payload: Any) -> Any:
        table[0] = 1
        return put(payload)

    monkeypatch.setattr(store, "put", written)
    publication = Publication(codec.encode(value), watched=True, keep=store.keep)
    for content in (1, 0):
        table[0] = content
        same = publication.value()["table"][0] == content
        assert same == publication.matches(codec.encode(value))
    publication.release()


# ------------------------------------------------------------------------------- running


@ours
def test_an_endless_stream_keeps_few_chunks_under_way() -> None:
    """However many items a stream has, Ray is given a few chunks at a time."""
    from sharedtask.backends import registry

    backend: Any = registry.get("ray")
    most = 0
    stream = on_ray(lambda x: x).with_options(chunksize=1).imap(itertools.count())
    for x in range(300):
        assert x == next(stream)
        most = max(most, len(backend.connect().dispatcher.in_flight()))
    stream.close()
    assert 6 >= most
    until(lambda: not backend.connect().dispatcher.in_flight())


@ours
def test_large_results_are_the_callers() -> None:
    """Results of some megabytes arrive in order, writable, and freed in Ray's store."""
    results = on_ray(lambda x: np.full(1_000_000, float(x))).map(range(12))
    for x, result in enumerate(results):
        assert float(x) == result[0] == result[-1]
        result[:] = 0
    del result, results
    gc.collect()
    until(lambda: used_store() < 100_000_000)


@ours
def test_map_in_tasks_of_the_users_own() -> None:
    """Tasks of the user's own that fill Ray and map inside do not deadlock."""
    import ray

    inner = on_ray(lambda x: x * x)

    def outer(x: int) -> Any:
        return inner.map(range(x)), list(inner.imap(range(x)))

    refs = [ray.remote(outer).remote(x) for x in (3, 4, 5)]
    wanted = [([y * y for y in range(x)],) * 2 for x in (3, 4, 5)]
    assert wanted == [tuple(found) for found in ray.get(refs, timeout=60)]


@ours
def test_submit_in_tasks_of_the_users_own() -> None:
    """Tasks of the user's own that fill Ray get the results of what they submit."""
    import ray

    inner = on_ray(lambda x: x * x)

    def outer(x: int) -> Any:
        return inner.submit(x).result(60)

    refs = [ray.remote(outer).remote(x) for x in (3, 4)]
    assert [9, 16] == ray.get(refs, timeout=60)


@ours
def test_references_of_the_users_own() -> None:
    """Ray's own references work inside items, closures, shared values and results."""
    import ray

    reference = ray.put(7)
    follow: Any = on_ray(lambda r: ray.get(r, timeout=20))
    assert [1, 2] == follow.map([ray.put(1), ray.put(2)])
    assert [8, 9] == on_ray(lambda x: x + ray.get(reference, timeout=20)).map([1, 2])

    def with_value(x: int, value: Shared[Any]) -> int:
        found: int = x + ray.get(value["reference"], timeout=20)
        return found

    value = {"reference": reference, "pad": np.ones(400_000)}
    assert [8, 9] == on_ray(with_value).map([1, 2], value=value)
    results = on_ray(lambda x: ray.put(x)).map(range(3))  # noqa: PLW0108  a plain function
    assert [0, 1, 2] == [ray.get(result, timeout=20) for result in results]


@ours
def test_threads_with_one_value(puts: list[int]) -> None:
    """Threads that bring the same value at the same time put it once and get their own results."""
    table = np.ones(400_000)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(add_on_ray.map, range(k, k + 20), table=table) for k in range(6)]
        for k, call in enumerate(calls):
            assert [400_000.0 + x for x in range(k, k + 20)] == call.result(60)
    assert 1 == len(puts)


# ---------------------------------------------------------------------------- three nodes

HOST = """
import sys
from ray.cluster_utils import Cluster

fast = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300,
        "health_check_timeout_ms": 20_000, "health_check_failure_threshold": 2}
common = {"num_cpus": 1, "object_store_memory": 200_000_000}
cluster = Cluster(initialize_head=True, head_node_args={
    **common, "_system_config": fast, "include_dashboard": False})
nodes = {}

def add(**more):
    node = cluster.add_node(**common, **more)
    nodes[node.node_id] = node
    return node.node_id

add(resources={"special": 1})
add()
cluster.wait_for_nodes()
print("ADDRESS", cluster.address, flush=True)
for line in sys.stdin:
    word, _, node = line.strip().partition(" ")
    if word == "add":
        print("ADDED", add(), flush=True)
    elif word == "remove":
        cluster.remove_node(nodes.pop(node), allow_graceful=False)
        print("REMOVED", flush=True)
for node in list(nodes.values()):
    cluster.remove_node(node, allow_graceful=False)
cluster.shutdown()
"""


class Cluster:
    """Three nodes of one CPU each on this machine, in a process that we can talk to."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(32)
        path = folder / "host.py"
        path.write_text(HOST)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "SHAREDTASK_WORKERS": "",  # all CPUs of the cluster
        }
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            env={**os.environ, **self.environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self.environment["RAY_ADDRESS"] = self._read("ADDRESS")

    def _read(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        pytest.fail("the cluster has ended")

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def add(self) -> str:
        self._say("add")
        return self._read("ADDED")

    def remove(self, node: str) -> None:
        self._say(f"remove {node}")
        self._read("REMOVED")

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests here: it takes ten seconds."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


DRIVER = """\
import os, sys, time
import numpy as np
import sharedtask
from sharedtask import Shared, WorkerDiedError, parallel

def node():
    import ray
    return ray.get_runtime_context().get_node_id()

@parallel(backend="ray", chunksize=1)
def seen(x, table: Shared):
    time.sleep(0.05)
    return float(table.sum()) + x, node()

def say(*words):
    print(*words, flush=True)
"""


@pytest.mark.long
def test_two_programs_on_three_nodes(script: Start, cluster: Cluster, tmp_path: Path) -> None:
    """Two programs join one cluster, each with its own values, and every node works for both."""
    text = f"""{DRIVER}
me = int(sys.argv[1])
table = np.full(1_000_000, me, np.float64)
import ray
places = set()
while len(places) < 3:
    found = seen.map(range(12), table=table)
    assert [me * 1e6 + x for x in range(12)] == [total for total, _ in found], found
    places.update(where for _, where in found)
say("NODES", len(places), seen.cache_info().misses)
path = sys.argv[2]
table.tofile(path)
mapped = np.memmap(path, np.float64, "r")
found = seen.map(range(12), table=mapped)
assert [me * 1e6 + x for x in range(12)] == [total for total, _ in found], found
special = seen.with_options(ray_options={{"resources": {{"special": 0.5}}}})
places = {{where for _, where in special.map(range(6), table=table)}}
(right,) = [n["NodeID"] for n in ray.nodes() if n["Resources"].get("special")]
assert places == {{right}}, places
table[:] = me + 10
assert seen.submit(1, table=table).result(60)[0] == (me + 10) * 1e6 + 1
sharedtask.shutdown()
say("DOWN", ray.is_initialized())
"""
    both = [script(text, k, tmp_path / f"numbers-{k}", **cluster.environment) for k in (1, 2)]
    for ran in both:
        assert "3 1" == ran.wait_for("NODES")
        assert "True" == ran.wait_for("DOWN")
        assert (0, "") == (ran.end(), without_aborts(ran.err))


def without_aborts(printed: str) -> str:
    """All but what Ray hands on from a worker that, as it ends, aborts in a lock of Ray's own."""
    of_worker = printed.splitlines() if "mutex.cc" in printed else []
    return "" if of_worker and all(" pid=" in line for line in of_worker) else printed


@pytest.mark.long
def test_results_after_the_connection(script: Start, cluster: Cluster, tmp_path: Path) -> None:
    """Who leaves a cluster keeps the results, whatever others write into the store then."""
    has_left, is_full = tmp_path / "left", tmp_path / "full"
    text = f"""{DRIVER}
import pathlib, ray
full = parallel(backend="ray")(lambda x: np.full(1_000_000, x, np.float64))
if sys.argv[1] == "first":
    kept = full.map(range(1, 5))
    ray.shutdown()
    pathlib.Path({str(has_left)!r}).touch()
    while not os.path.exists({str(is_full)!r}):
        time.sleep(0.1)
    say([bool((each == x).all()) for x, each in enumerate(kept, 1)])
else:
    ray.init()
    for _ in range(60):
        ray.put(np.full(1_000_000, -1.0))
"""
    first = script(text, "first", **cluster.environment)
    until(has_left.exists, 60)
    assert 0 == script(text, "second", **cluster.environment).end(60)
    is_full.touch()
    assert (0, "[True, True, True, True]\n") == (first.end(60), first.out)


@pytest.mark.long
def test_wrong_token(script: Start, cluster: Cluster) -> None:
    """A cluster that does not take our token is an error with Ray's reason, within seconds."""
    text = """
import sharedtask
try:
    sharedtask.parallel(backend="ray")(abs).map([1])
except sharedtask.BackendUnavailableError as error:
    print(str(error).replace("\\n", " "))
"""
    environment = {**cluster.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ran = script(text, **environment)
    assert 0 == ran.end(30)
    assert "InvalidAuthToken" in ran.out
    assert cluster.environment["RAY_ADDRESS"] in ran.out
    assert cluster.token not in ran.out + ran.err


@pytest.mark.long
def test_nodes_that_come_and_go(script: Start, cluster: Cluster, tmp_path: Path) -> None:
    """A node that joins gets work; the items in its hands as it dies fail, or are run again."""
    ran = script(
        f"""{DRIVER}
table = np.ones(1_000_000)
places = set()
for total, where in seen.imap(range(10_000), table=table):
    if where not in places:
        places.add(where)
        say("NODE", where)
    if len(places) == 4:
        break

@parallel(backend="ray", chunksize=1, return_exceptions=True)
def slow(x, table: Shared, folder: str):
    with open(os.path.join(folder, str(x)), "a") as file:
        file.write(node() + " ")
    time.sleep(0.7)
    return float(table.sum()) + x

from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    once = pool.submit(slow.map, range(12), table=table, folder=sys.argv[1])
    twice = pool.submit(slow.with_options(retries=2).map, range(100, 112), table=table,
                        folder=sys.argv[1])
died = [x for x, r in enumerate(once.result()) if isinstance(r, WorkerDiedError)]
say("DIED", *died)
say("INDEX", *[once.result()[x].index for x in died])
say("ONCE", [r for r in once.result() if isinstance(r, float)] ==
    [1e6 + x for x in range(12) if x not in died])
say("TWICE", twice.result() == [1e6 + x for x in range(100, 112)])
say("AGAIN", [total for total, _ in seen.map(range(3), table=table)])
""",
        tmp_path / "begun",
        **cluster.environment,
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    for _ in range(3):
        ran.wait_for("NODE")
    node = cluster.add()
    assert node == ran.wait_for("NODE")
    until(lambda: [p for p in begun.iterdir() if node in p.read_text()])
    cluster.remove(node)
    died = ran.wait_for("DIED")
    assert died == ran.wait_for("INDEX")
    assert "True" == ran.wait_for("ONCE")
    assert "True" == ran.wait_for("TWICE")
    assert "[1000000.0, 1000001.0, 1000002.0]" == ran.wait_for("AGAIN")
    assert (0, "") == (ran.end(), ran.err)
    nodes = {int(path.name): path.read_text().split() for path in begun.iterdir()}
    assert {*range(12), *range(100, 112)} == set(nodes)
    assert all(1 == len(nodes[x]) for x in range(12))  # without retries nothing runs twice
    for x in range(100, 112):
        assert all(place == node for place in nodes[x][:-1])
    assert any(places[0] == node for places in nodes.values())
