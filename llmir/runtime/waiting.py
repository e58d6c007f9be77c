"""How a thread waits for a CPU device without taking a core from its workers.

The worker that ends a step wakes who waits for it, and then has a few instructions to go; IREE's
wait spins until these are done (`iree_async_semaphore_multi_wait`).  Linux often runs the one who
was woken in place of the worker, and then spins for a whole time slice: one step in five took 8 ms
in place of 4 on two cores.  A thread of the policy SCHED_BATCH takes nobody's place when it wakes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def polite_wait() -> Iterator[None]:
    """While this thread waits for workers, it does not take their place when it is woken.

    A thread that has another policy than the usual one, real-time for example, keeps it.
    """
    if not hasattr(os, "SCHED_BATCH"):  # not Linux
        yield
        return
    if os.sched_getscheduler(0) != os.SCHED_OTHER or not _may_choose():
        yield
        return
    _choose(os.SCHED_BATCH)
    try:
        yield
    finally:
        _choose(os.SCHED_OTHER)


def _choose(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))


@functools.cache
def _may_choose() -> bool:
    """Whether whoever confines the process lets a thread of the usual policy choose one."""
    try:
        _choose(os.SCHED_OTHER)
    except PermissionError:
        return False
    return True
