"""A bank: every account may pay every other, while an auditor adds up all of them.

The accounts of a payment are not known beforehand, so payments overlap and need locks. A payment
locks two accounts, the auditor locks all of them for reading. No money appears or disappears, and
the auditor never sees half of a payment.
"""

import multiprocessing
import random
import textwrap
import time
from multiprocessing.sharedctypes import RawArray

import numpy as np

from sharedtask import Locked, LockOrderError, parallel

ACCOUNTS, START, DAYS, PAYMENTS = 50, 1_000, 40, 500
processes = multiprocessing.get_context("fork")


def payments(day: int) -> list[tuple[int, int, int]]:
    """Who pays whom how much on that day."""
    rng = random.Random(day)
    return [(*rng.sample(range(ACCOUNTS), 2), rng.randint(1, 20)) for _ in range(PAYMENTS)]


# --- with locks --------------------------------------------------------------------------------


@parallel(workers=4, chunksize=1)
def day_with_locks(day: int, bank: Locked[np.ndarray]) -> int:
    """Make the payments, and return the evening's audit: the sum of all accounts."""
    for payer, payee, amount in payments(day):
        low, high = sorted((payer, payee))  # all lock in the same order: no deadlock
        with bank.write(low) as first, bank.write(high) as second:
            first[...] += amount if low == payee else -amount
            second[...] += amount if high == payee else -amount
    with bank.read() as accounts:
        return int(accounts.sum())


# --- without -----------------------------------------------------------------------------------


def days_without_locks() -> tuple[np.ndarray, list[int]]:
    bank = np.frombuffer(RawArray("q", ACCOUNTS), np.int64)
    bank[:] = START
    with processes.Pool(4, initializer=globals().update, initargs=({"unlocked": bank},)) as pool:
        audits = pool.map(day_without_locks, range(DAYS), chunksize=1)
    return bank.copy(), audits


def day_without_locks(day: int) -> int:
    for payer, payee, amount in payments(day):
        unlocked[payer] -= amount
        unlocked[payee] += amount
    return int(unlocked.sum())


# --- in the wrong order ------------------------------------------------------------------------


@parallel(workers=4)
def pay_in_any_order(payment: tuple[int, int], bank: Locked[np.ndarray]) -> None:
    payer, payee = payment
    with bank.write(payer) as source, bank.write(payee) as target:
        source[...] -= 1
        target[...] += 1


unlocked = np.empty(0, np.int64)
total = ACCOUNTS * START
print(f"{DAYS} days of {PAYMENTS} payments, {total:,} in {ACCOUNTS} accounts")

loose, audits = days_without_locks()
print(f"without locks: {abs(total - loose.sum()):,} made or lost", end=", ")
print(f"{sum(audit != total for audit in audits)} of {DAYS} audits are wrong")

day_with_locks.map(range(4), bank=np.full(ACCOUNTS, START))  # starts the workers
bank = np.full(ACCOUNTS, START)
start = time.perf_counter()
audits = day_with_locks.map(range(DAYS), bank=bank)
micro = (time.perf_counter() - start) / (DAYS * PAYMENTS) * 1e6
print(f"with locks:    {abs(total - bank.sum()):,} made or lost", end=", ")
print(f"{sum(audit != total for audit in audits)} of {DAYS} audits are wrong", end=", ")
print(f"{micro:.0f} us for a payment")

expected = np.full(ACCOUNTS, START)
for day in range(DAYS):
    for payer, payee, amount in payments(day):
        expected[payer] -= amount
        expected[payee] += amount
print(f"every account is right: {np.array_equal(expected, bank)}")

try:
    pay_in_any_order.map([(1, 2), (4, 3)], bank=bank)
except LockOrderError as error:
    print(textwrap.fill(f"locks in the wrong order: {error}", 98))
