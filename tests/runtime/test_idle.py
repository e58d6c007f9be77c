"""Between steps the workers sleep: they take no time from anything else on the machine."""

from __future__ import annotations

import time
from pathlib import Path

import llmir

IDLE_SECONDS = 1.0
GREEDY = llmir.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def test_nothing_spins_after_a_step(tiny_artifact: Path) -> None:
    llm = llmir.LLM(tiny_artifact, kv_cache_memory_bytes=8 << 20)
    llm.generate([list(range(5, 40))], GREEDY)
    before = time.process_time()  # of all threads
    time.sleep(IDLE_SECONDS)
    busy = time.process_time() - before
    assert busy < 0.02 * IDLE_SECONDS, f"{busy:.3f} CPU seconds in {IDLE_SECONDS} s of nothing"
