"""Handlers of other signals than SIGINT that raise, as time limits do, at random moments."""

import signal
from collections.abc import Callable, Iterator

import pytest
from budget import with_long
from conftest import Script

from sharedtask.system import interrupts
from sharedtask.system.descriptors import Descriptor

Start = Callable[..., Script]

# Alarms of 0.1 to 3 ms, which is in the middle of quick calls whose values change in between.
PROGRAM = """
import contextlib, gc, os, random, signal, sys, threading, time
import numpy as np
from sharedtask import Locked, Shared, UnknownNameError, attach, parallel, share
from sharedtask.system import critical_sections, interrupts

backend, rounds, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
number = getattr(signal, name)

def add(x, table: Shared):
    return float(table[0]) + x

def where(x):
    return os.getpid()

def deposit(x, account: Locked):
    with account.write() as view:
        view[:] = view + 1

def rest(x):
    time.sleep(0.1)
    return os.getpid(), threading.get_ident()

add, where, deposit, rest = (
    parallel(backend=backend, workers=2, chunksize=chunksize)(each)
    for each, chunksize in ((add, "auto"), (where, "auto"), (deposit, "auto"), (rest, 1))
)
table, count = np.zeros(20_000), 0
account = np.zeros(4)

class Late(TimeoutError):
    pass

class Last(BaseException):
    pass

def ring(*_):
    raise choose.choice((Late, Last))("by a handler")

def other(size=20_000):
    global table, count
    count += 1
    table = np.full(size, float(count))

def changed():
    global count
    count += 1
    table[:] = count

def quick():
    assert add.map(range(4), table=table) == [count + x for x in range(4)]

def single():
    assert add.submit(1, table=table).result() == count + 1

def several():
    futures = [add.submit(x, table=table) for x in range(3)]
    assert [each.result() for each in futures] == [count + x for x in range(3)]

def stream():
    assert list(add.imap(range(4), table=table)) == [count + x for x in range(4)]

def handle():
    with share(table) as shared:
        assert add.map(range(2), table=shared) == [count, count + 1]

def named():
    name = f"handlers-{os.getpid()}-{count}"
    try:
        with share(table, name=name):
            with attach(name) as found:
                assert found.value[0] == count
    except (Late, Last):
        # Between the return of share() and the block no code of the library runs.
        with contextlib.suppress(UnknownNameError), attach(name) as lost:
            lost.unlink()
        raise

def locked():
    deposit.map(range(2), account=account)

KINDS = [quick, quick, single, several, stream, handle, named]
if backend != "ray":
    KINDS.append(locked)

def held():
    gc.collect()
    with open("/proc/self/maps") as maps:
        mappings = maps.read().count("memfd:sharedtask")
    return len([each for each in os.listdir("/proc/self/fd") if is_ours(each)]), mappings

def is_ours(each):
    try:
        return backend != "ray" or not os.readlink("/proc/self/fd/" + each).startswith("socket:")
    except FileNotFoundError:
        return False

def both_up():
    # Each has a socket and a status page. One whose item was given up is killed, and the next
    # starts when a call needs it, which a quick one may not.
    limit = time.monotonic() + 60
    while len(set(rest.map(range(2)))) < 2 and backend != "serial" and time.monotonic() < limit:
        pass

def held_at_rest():
    both_up()
    other(), quick(), account_again()
    return held()

def is_within(now, base):
    return now[0] <= base[0] and now[1] <= base[1]

def settled(base):
    limit = time.monotonic() + 60
    while not is_within(now := held_at_rest(), base) and time.monotonic() < limit:
        time.sleep(0.05)
    return now

def account_again():
    global account
    account = np.zeros(4)
    if backend != "ray":
        locked()

def begin(seconds):
    if name == "SIGALRM":
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return lambda: signal.setitimer(signal.ITIMER_REAL, 0)
    def send():
        time.sleep(seconds)
        os.kill(os.getpid(), number)
    thread = threading.Thread(target=send)
    thread.start()
    return thread.join

def one_round():
    step = choose.choice(KINDS)
    end = begin(choose.uniform(0.0001, 0.003))
    try:
        step()
    finally:
        end()

signal.signal(number, ring)
choose = random.Random(7)
for _ in range(3):
    [(step(), changed(), step(), other()) for step in KINDS]
base = wrong = None
rung = 0
for turn in range(rounds):
    if turn == 5:
        base = tuple(map(min, *(held_at_rest() for _ in range(5))))
    choose.choice((other, changed, lambda: None))()
    try:
        one_round()
    except (Late, Last) as error:
        rung += 1
    except BaseException as error:
        print("WRONG", turn, repr(error), repr(error.__cause__), flush=True)
    quick()
    ran_in = set(where.map(range(2)))
    if backend in ("process", "ray") and os.getpid() in ran_in:
        print("WRONG", turn, "the next call runs serially", flush=True)
    assert interrupts._state.handler is None and not critical_sections.is_held()
    assert signal.getsignal(number) is ring
print("RUNG", rung > rounds // 20 or rung)
now = settled(base)
print("HELD", is_within(now, base) or (base, now), flush=True)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backend", "name"),
    with_long(
        [
            *[(backend, "SIGALRM") for backend in ("process", "thread", "serial", "ray")],
            ("process", "SIGUSR1"),
        ],
        ("ray", "SIGALRM"),
        ("process", "SIGUSR1"),
    ),
)
def test_handlers_that_raise_at_random(script: Start, backend: str, name: str) -> None:
    """The call ends with what the handler raised, the next one is right, and nothing stays."""
    ran = script(PROGRAM, backend, 40 if backend == "ray" else 200, name)
    assert (0, "") == (ran.end(200), ran.err)
    assert "RUNG True\nHELD True\n" == ran.out


# ------------------------------------------------------------------------------ several signals

NUMBERS = (signal.SIGINT, signal.SIGALRM, signal.SIGUSR1)


@pytest.fixture
def came() -> Iterator[list[int]]:
    """The signals whose handlers ran. Each raises ValueError, as one of a program may."""
    found: list[int] = []

    def note(number: int, _: object) -> None:
        found.append(number)
        raise ValueError(number)

    old = {number: signal.signal(number, note) for number in NUMBERS}
    yield found
    for number, handler in old.items():
        signal.signal(number, handler)


def test_every_handler_runs_at_the_end_of_a_block(came: list[int]) -> None:
    """Signals that come within a shield wait for its end: each handler runs once, and may raise."""
    inside: list[int] = []
    with pytest.raises(ValueError, match=str(int(signal.SIGUSR1))) as caught, interrupts.shield():
        for number in (*NUMBERS, *NUMBERS):
            signal.raise_signal(number)
        inside = list(came)
    assert ([], list(NUMBERS)) == (inside, came)
    assert (signal.SIGALRM,) == getattr(caught.value.__context__, "args", ())


def test_every_handler_runs_where_a_call_waits(came: list[int]) -> None:
    """Within an exposed wait they run at once, and what one raises ends the wait."""
    with interrupts.shield():
        signal.raise_signal(signal.SIGALRM)
        with pytest.raises(interrupts._Passing):
            interrupts.exposed(signal.raise_signal, signal.SIGUSR1)
    assert [signal.SIGALRM] == came


def test_error_that_our_own_code_catches(came: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit ends the call also where it comes in code that catches errors of the system."""

    def late(number: int, _: object) -> None:
        came.append(number)
        raise TimeoutError("late")

    signal.signal(signal.SIGALRM, late)
    file = Descriptor(int(signal.SIGALRM), 0, 0)
    monkeypatch.setattr("os.fstat", signal.raise_signal)  # the signal comes in there
    with pytest.raises(TimeoutError, match="late"), interrupts.shield():
        interrupts.exposed(file.is_open)
    monkeypatch.undo()
    assert [signal.SIGALRM] == came


def test_handlers_are_restored(came: list[int]) -> None:
    """After a block each signal has the handler that it had; one that the block set stays."""
    before = [signal.getsignal(number) for number in NUMBERS]
    with interrupts.shield():
        assert not {signal.getsignal(number) for number in NUMBERS} & set(before)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert [*before[:2], signal.SIG_IGN] == [signal.getsignal(number) for number in NUMBERS]
    assert [] == came
