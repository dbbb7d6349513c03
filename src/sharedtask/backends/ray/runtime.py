"""The Ray that this process uses: found, joined, or started here."""

from __future__ import annotations

import contextlib
import copyreg
import importlib
import logging
import os
import socket
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sharedtask.errors import BackendUnavailableError, ClosedError, OptionsError
from sharedtask.system import critical_sections, forks
from sharedtask.system.cpus import available_cpus
from sharedtask.system.forks import Step
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

_CLIENT = (
    "Ray Client (ray://) does not give this process an object store. Run the program on a node of "
    "the cluster, with RAY_ADDRESS=host:6379, or as a job: ray job submit."
)
SHUT_DOWN = "Ray was shut down while this call was running."

_log = logging.getLogger("sharedtask")

# Ray would search 14 minutes for a cluster that does not exist: with these, 22 seconds.
_PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "2",
    "RAY_gcs_rpc_server_connect_timeout_s": "3",
    "RAY_py_gcs_connect_timeout_s": "4",
}
# The length of Unix socket names is limited, and Ray needs 60 bytes.
_LONGEST_TEMP = 40
_CONNECT_SECONDS, _CONNECT_TRIES = 3.0, 3


@dataclass(frozen=True, slots=True)
class Runtime:
    """A connection to Ray; another one, even to the same cluster, has another ``key``."""

    key: str
    is_ours: bool
    in_worker: bool

    @property
    def outlives_us(self) -> bool:
        """Whether Ray goes on when sharedtask is shut down."""
        return self.is_alive and not self.is_ours

    @property
    def is_alive(self) -> bool:
        """Whether this process is still connected as before."""
        return ray.is_initialized() and _key() == self.key


_lock = critical_sections.table_lock()
_started: list[str] = []  # the keys of runtimes that were started here
_lasting: list[threading.Event] = []  # of the thread that started Ray: set when Ray has ended
_forked = threading.Event()
forks.in_child(Step.IDENTITY, _forked.set)


def connect() -> Runtime:
    """The Ray that is initialised, or the one at ``RAY_ADDRESS``, or a new local one.

    Raises:
        BackendUnavailableError: The cluster cannot be reached or refuses us, with Ray's reason.
    """
    with _lock:
        if _forked.is_set() and ray.is_initialized():
            msg = (
                "Ray cannot be used in a process that was forked from one that uses it. "
                "Start the process with the spawn method, or map in the parent."
            )
            raise BackendUnavailableError(msg)
        address = os.environ.get("RAY_ADDRESS", "")
        if _is_client() or (not ray.is_initialized() and address.startswith("ray://")):
            raise BackendUnavailableError(_CLIENT)
        if not ray.is_initialized():
            _start()
        let_references_travel()
        module = internal("_private.worker")
        in_worker = module.global_worker.mode == module.WORKER_MODE
        return Runtime(_key(), _key() in _started, in_worker)


def let_references_travel() -> None:
    """Have ``ray.ObjectRef`` pickled as Ray does it, inside items, arguments and results too.

    Other picklers lose its owner, and a ``ray.get`` of it would never return.
    """
    copyreg.pickle(ray.ObjectRef, _reduce_reference)


def _reduce_reference(reference: Any) -> Any:
    internal("_private.worker").global_worker.get_serialization_context()  # made at first use
    return internal("cloudpickle").CloudPickler.dispatch[ray.ObjectRef](reference)


def _is_client() -> bool:
    """Whether Ray is reached through Ray Client, with no object store that this process maps."""
    return bool(internal("util.client").ray.is_connected())


def stop(runtime: Runtime) -> None:
    """End Ray, if it was started here."""
    with _lock:
        if runtime.is_ours and runtime.is_alive:
            ray.shutdown()
            while _lasting:
                _lasting.pop().set()


def _key() -> str:
    """Session and worker id: the first program of every Ray has the same worker id."""
    worker = internal("_private.worker").global_worker
    return f"{worker.node.session_name}-{worker.worker_id.hex()}"


def internal(name: str) -> Any:
    """A private module of Ray, which may change between versions."""
    return importlib.import_module(f"ray.{name}")


def _start() -> None:
    address = os.environ.get("RAY_ADDRESS")
    where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
    try:
        with _quiet():
            _join(address) if address else _start_here()
    except OSError as error:
        msg = f"{where} cannot be reached: {_reason(error)}"
        raise BackendUnavailableError(msg) from error
    except Exception as error:
        raise BackendUnavailableError(f"{where} cannot be used: {_reason(error)}") from error


def _join(address: str) -> None:
    _require_listener(address)
    with _impatient():
        ray.init(logging_level=logging.ERROR)
    if not _checks_tokens():
        _log.warning(
            "the Ray cluster at %s does not check tokens: all who can reach its ports can run code "
            "there. See RAY_AUTH_MODE=token in Ray's documentation.",
            address,
        )


def _start_here() -> None:
    is_new = not _token_file().exists()
    options: dict[str, Any] = {}
    if len(tempfile.gettempdir()) > _LONGEST_TEMP and "RAY_TMPDIR" not in os.environ:
        options["_temp_dir"] = f"/tmp/ray-{os.getuid()}"  # noqa: S108  Ray makes folders in it
    _in_lasting_thread(
        lambda: ray.init(
            address="local",
            num_cpus=available_cpus(),
            include_dashboard=False,
            logging_level=logging.ERROR,
            **options,
        )
    )
    _started.append(_key())
    _mute_raylet()
    if is_new:  # Ray 2.60 makes its new token readable for all users
        with contextlib.suppress(OSError):
            _token_file().chmod(0o600)


def _in_lasting_thread(start: Callable[[], object]) -> None:
    """Start Ray in a thread that lasts as long as Ray, where the calling thread may not.

    The kernel kills Ray's processes when the thread that started them ends: Ray asks for that, see
    PR_SET_PDEATHSIG in ``prctl(2)``. A call of ``amap`` has a short-lived thread of its own.
    """
    if threading.current_thread() is threading.main_thread():
        start()
        return
    started: Future[None] = Future()

    def run() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001  raised in the calling thread
            started.set_exception(error)
            return
        ended = threading.Event()
        _lasting.append(ended)
        started.set_result(None)
        ended.wait()

    threading.Thread(target=run, name="sharedtask-ray", daemon=True).start()
    started.result()


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _checks_tokens() -> bool:
    try:
        module = internal("_private.authentication.authentication_utils")
    except ImportError:  # before Ray 2.52 there were none
        return False
    return bool(module.is_token_auth_enabled())


@contextlib.contextmanager
def _impatient() -> Generator[None]:
    """Ray reads these from the environment, most of them at import."""
    config = internal("_raylet").Config
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        config.initialize("")
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        if not ray.is_initialized():
            config.initialize("")


def _reason(error: BaseException) -> str:
    """Ray's reason, often in the cause."""
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error).strip().splitlines()[-1] if str(error).strip() else repr(error))
    return " ".join(texts)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Suppress Ray's start-up messages; errors are raised."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _mute_raylet() -> None:
    """Let a local Ray print the output of tasks, and not its own remarks on their deaths.

    They would appear on standard output, and we raise an exception for the death already.
    """
    module = internal("_private.worker")
    show = getattr(module, "print_worker_logs", None)
    if show is None or getattr(show, "_sharedtask_", False):
        return

    def show_tasks(data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        if data.get("pid") != "raylet" or _key() not in _started:
            show(data, *args, **kwargs)

    show_tasks._sharedtask_ = True  # type: ignore[attr-defined] # pyright: ignore[reportFunctionMemberAccess]
    module.print_worker_logs = show_tasks


def _require_listener(address: str) -> None:
    """Check within seconds that a server listens: Ray would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto" and other words are for Ray to interpret
    for left in reversed(range(_CONNECT_TRIES)):
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError:
            if not left:
                raise
            time.sleep(1)
        else:
            return


# ----------------------------------------------------------------------------- capacity


def all_nodes() -> list[Any]:
    """Ray's records of its nodes, dead ones included; ClosedError if it was shut down."""
    if not ray.is_initialized():  # a query would restart it
        raise ClosedError(SHUT_DOWN)
    nodes: Any = ray.nodes  # without types
    found: list[Any] = nodes()
    return found


def this_node() -> str:
    """The id of the node of this process."""
    here: str = ray.get_runtime_context().get_node_id()
    return here


_kept_alive: list[Any] = []


def keep_alive(*references: Any) -> None:
    """Keep references of an earlier Ray alive.

    The next Ray numbers its objects in the same way: if an old reference were deleted, an object of
    the same number would lose one that it needs.
    """
    _kept_alive.extend(references)


def current_key() -> str | None:
    """The key of the present runtime, if any."""
    return _key() if ray.is_initialized() else None


def store_socket() -> str:
    """The name of the socket of this node's object store."""
    name: str = internal("_private.worker").global_worker.node.plasma_store_socket_name
    return name


class Capacity:
    """How many tasks with certain needs run at once; looked up at most every second."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._until = 0.0

    def nodes(self) -> list[Any]:
        """The nodes that are alive; the last known ones if Ray was shut down."""
        if time.monotonic() > self._until and ray.is_initialized():
            self._nodes = [node for node in all_nodes() if node["Alive"]]
            self._until = time.monotonic() + 1
        return self._nodes

    def alive(self) -> frozenset[str]:
        """The ids of these nodes."""
        return frozenset(node["NodeID"] for node in self.nodes())

    def slots(self, options: Mapping[str, Any]) -> int:
        """How many tasks with these ``ray_options`` the cluster can run at a time."""
        needs = _needs(options)
        return sum(_fitting(node["Resources"], needs) for node in self.nodes())

    def require(self, task: str, options: Mapping[str, Any], runtime: Runtime) -> None:
        """Refuse needs that no node meets if no node can be added, else warn.

        Raises:
            OptionsError: A local Ray does not have what the task needs.
        """
        if self.slots(options):
            return
        if not runtime.is_ours:
            _log.warning("%s(): no node has what its ray_options ask for; waiting for one.", task)
        else:
            resources = self.nodes()[0]["Resources"]
            needs = {k: v for k, v in _needs(options).items() if v > resources.get(k, 0)}
            have = {name: resources.get(name, 0) for name in needs}
            msg = (
                f"{task}(): no task could start: its ray_options need {needs}, and this machine "
                f"has {have}. Ask for less, or join a cluster that has it."
            )
            raise OptionsError(msg)


def _needs(options: Mapping[str, Any]) -> dict[str, float]:
    needs = {
        "CPU": options.get("num_cpus", 1),
        "GPU": options.get("num_gpus", 0),
        "memory": options.get("memory", 0),
        **options.get("resources", {}),
    }
    if "accelerator_type" in options:
        needs[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    return {name: amount for name, amount in needs.items() if amount}


def _fitting(resources: Mapping[str, float], needs: Mapping[str, float]) -> int:
    if not needs:
        return max(int(resources.get("CPU", 1)), 1)
    return int(min(resources.get(name, 0) / amount for name, amount in needs.items()))


def store_memory() -> int:
    """Bytes of the object store of this process's node; of the first node if it has none."""
    here = this_node()
    nodes = sorted(all_nodes(), key=lambda node: node["NodeID"] != here)
    return int(nodes[0]["Resources"].get("object_store_memory", 0))
