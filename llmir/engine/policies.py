"""In which order waiting requests are begun, and who keeps its pages when they run out.

    fcfs      first come, first served
    priority  the lower `priority` first, as in vLLM; among equals the one that came first
    lpm       the longest cached prefix first: what is in the cache is used before it is evicted
              (after SGLang's scheduler)

A policy orders who waits, and who gives way when pages run out; it interrupts nobody for the sake
of one that waits.  That no request starves is the business of WaitingQueue and the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

from llmir.engine.sequence import Sequence
from llmir.errors import UnknownNameError

LPM_WINDOW = 128
"""Waiting requests that `lpm` compares: to look at one takes about a microsecond in every step."""


class Policy(Protocol):
    """Pure functions of the sequences; no policy keeps a state."""

    def rank(self, seq: Sequence) -> int:
        """The lower goes first; among equals the one that came first.  Fixed at arrival.

        Of those that run, the last in this order is preempted first.
        """
        ...

    def order(self, waiting: Seq[Sequence], num_cached: Callable[[Sequence], int]) -> Seq[Sequence]:
        """`waiting`, which comes by rank and arrival, as it is to be begun.

        num_cached: about how many of a sequence's first columns are in the cache now.
        """
        ...


class Fcfs:
    """First come, first served."""

    def rank(self, seq: Sequence) -> int:
        return 0

    def order(self, waiting: Seq[Sequence], num_cached: Callable[[Sequence], int]) -> Seq[Sequence]:
        return waiting


class Priority(Fcfs):
    """The lower `Sequence.priority` first."""

    def rank(self, seq: Sequence) -> int:
        return seq.priority


class LongestPrefix(Fcfs):
    """The longest cached prefix first, among the LPM_WINDOW that have waited longest."""

    def order(self, waiting: Seq[Sequence], num_cached: Callable[[Sequence], int]) -> Seq[Sequence]:
        oldest = sorted(waiting[:LPM_WINDOW], key=num_cached, reverse=True)  # stable
        return [*oldest, *waiting[LPM_WINDOW:]]


POLICIES: dict[str, type[Policy]] = {"fcfs": Fcfs, "priority": Priority, "lpm": LongestPrefix}


def make_policy(name: str) -> Policy:
    """The policy of that name.  Raises UnknownNameError."""
    if name not in POLICIES:
        raise UnknownNameError("scheduling_policy", name, POLICIES)
    return POLICIES[name]()
