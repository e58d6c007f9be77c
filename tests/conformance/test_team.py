"""plugins/cpu/team.c: workers that share out the workgroups of one stage after the other.

On the levels that this machine has: what is tested is what happens between threads, and the
emulated levels run in one.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter

import numpy as np
import pytest
from plugins.kernels import kernels, levels_here

from llmir.cpu_levels import LEVELS, IsaLevel
from llmir.dialect_ext.c_chain import STAGE_INTS

LEVEL = pytest.mark.parametrize("level", LEVELS, ids=lambda x: x.name)
FIRST = 3  # the first stage's place among the counters


class Team:
    def __init__(self, level: IsaLevel, stages: int) -> None:
        if level not in levels_here():
            pytest.skip(f"{level.name} was compiled, and not run: this machine cannot")
        library = kernels(level.name)
        self.weights = np.zeros(1000, np.uint8)  # what is fetched while a worker waits
        self.counters = np.zeros((FIRST + stages, STAGE_INTS), np.int32)
        self._counters = ctypes.c_void_p(self.counters.ctypes.data)
        self._claim, self._done, self._wait = (
            getattr(library, f"llmir_{what}") for what in ("claim", "done", "wait")
        )
        self._claim.restype = ctypes.c_size_t

    def claim(self, stage: int) -> int:
        found: int = self._claim(self._counters, ctypes.c_size_t(0), ctypes.c_size_t(FIRST + stage))
        return found

    def done(self, stage: int, count: int) -> None:
        sizes = (ctypes.c_size_t(stage), ctypes.c_size_t(count))
        self._done(self._counters, ctypes.c_size_t(STAGE_INTS * FIRST), *sizes)

    def wait(self, stage: int, count: int) -> None:
        sizes = (ctypes.c_size_t(FIRST + stage), ctypes.c_size_t(count))
        following = ctypes.c_void_p(self.weights.ctypes.data)
        offset, ahead = ctypes.c_size_t(64), ctypes.c_size_t(self.weights.size - 64)
        self._wait(self._counters, ctypes.c_size_t(0), *sizes, following, offset, ahead)

    def work(self, counts: list[int], seen: list[Counter[int]], short: list[int]) -> None:
        """What a worker does in a chain; `short` gets the stages that others had not finished."""
        for stage, count in enumerate(counts):
            while (workgroup := self.claim(stage)) < count:
                seen[stage][workgroup] += 1
                self.done(stage, count)
            self.wait(stage, count)
            if sum(seen[stage].values()) != count:
                short.append(stage)


@LEVEL
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_workgroup_once_and_all_before_the_next_stage(level: IsaLevel, workers: int) -> None:
    counts = [4, 1, 37, 2, 0, 300, 8] * 20
    team = Team(level, len(counts))
    seen: list[Counter[int]] = [Counter() for _ in counts]
    short: list[int] = []
    threads = [
        threading.Thread(target=team.work, args=(counts, seen, short)) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a worker waits for ever"
    assert not short
    assert seen == [Counter(range(count)) for count in counts]
    assert not team.counters[:FIRST].any()


@LEVEL
def test_one_worker_after_the_other(level: IsaLevel) -> None:
    """The second comes when all is done: it finds nothing, and waits for nobody."""
    counts = [3, 5]
    team = Team(level, len(counts))
    for expected in ([3, 5], [0, 0]):
        seen: list[Counter[int]] = [Counter() for _ in counts]
        for stage, count in enumerate(counts):
            while (workgroup := team.claim(stage)) < count:
                seen[stage][workgroup] += 1
                team.done(stage, count)
            team.wait(stage, count)
        assert [sum(s.values()) for s in seen] == expected


@LEVEL
def test_who_waits_long_sleeps(level: IsaLevel) -> None:
    """And wakes when the last workgroup is done; what it waits for takes a second here."""
    team = Team(level, 1)
    assert team.claim(0) == 0
    seconds: list[float] = []

    def wait() -> None:
        team.wait(0, 1)
        seconds.append(time.thread_time())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1)
    assert thread.is_alive()
    team.done(0, 1)
    thread.join(60)
    assert not thread.is_alive(), "nobody woke it"
    assert seconds[0] < 0.5
