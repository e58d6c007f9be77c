"""Requests that have not begun, and the bound on how often they are passed over.

    by arrival   a  b  c  d  e        a is the oldest: each time another is begun, it is overtaken
    by policy    d  b  a  e  c        once that happened max_overtakes times, a goes first

The count is the oldest one's alone; the next in line begins with 0 when it becomes the oldest.
A count for everybody would let a long queue of low priority come due at once, and shut out what
should go first until all of it were served.  This way the oldest gets at least one begin of
max_overtakes + 1, and a request that finds k older ones waiting is overtaken at most
(k + 1) * max_overtakes times.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterator

from llmir.engine.policies import Policy
from llmir.engine.sequence import Sequence, Status


class WaitingQueue:
    """Sequences of status WAITING, by rank and arrival."""

    def __init__(self, policy: Policy, max_overtakes: int) -> None:
        self._policy = policy
        self._max_overtakes = max_overtakes
        self._seqs: list[Sequence] = []
        # The first of a plain dict takes long to find once many before it are gone.
        self._by_arrival: OrderedDict[int, Sequence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._seqs)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; each has a higher `arrival` than the one before."""
        self._by_arrival[seq.arrival] = seq
        insort(self._seqs, seq, key=self._place)

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence that is not going to run."""
        del self._by_arrival[seq.arrival]
        self._seqs.remove(seq)

    def begin(self, seq: Sequence) -> None:
        """Take out a sequence that is going to run; if it is not the oldest, that is overtaken."""
        oldest = self._oldest()
        if oldest is not seq:
            oldest.num_overtaken += 1
        self.remove(seq)

    def is_due(self, seq: Sequence) -> bool:
        """Whether nobody may overtake `seq` any more."""
        return seq.num_overtaken >= self._max_overtakes

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterator[Sequence]:
        """Who is to be begun next, and then who, until nobody is left.

        The caller begins each, so that its status changes, before it asks for the next, or goes
        past it; it does not go past one that is due.
        """
        for seq in self._policy.order(list(self._seqs), num_cached):
            while seq.status is Status.WAITING and self.is_due(oldest := self._oldest()):
                yield oldest
                assert oldest.status is not Status.WAITING, "it is due, and was passed over"
            if seq.status is Status.WAITING:
                yield seq

    def _place(self, seq: Sequence) -> tuple[int, int]:
        return self._policy.rank(seq), seq.arrival

    def _oldest(self) -> Sequence:
        """Who came first of those that wait; there is one."""
        return next(iter(self._by_arrival.values()))
