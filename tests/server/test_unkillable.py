"""10,000 visits of random clients to a server with far too few KV pages, on a device that fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from engine.fake_runner import FakeRunner, small_limits
from engine.helpers import TOKENIZER, assert_pages_add_up

from llmir.engine import AsyncLLM, SchedulerConfig
from llmir.engine.ngram import NgramConfig
from llmir.errors import DeviceError
from llmir.runtime.base import F32, StepBatch
from llmir.server import json_body

from .answers import make_cases
from .chaos import KEY, LARGE_BODY_BYTES, MOST_BODY_BYTES, visit_all
from .helpers import LiveServer, live_server

LIMITS = small_limits(
    vocab_size=TOKENIZER.vocab_size, page_size=4, num_pages=(1 + 28,), max_model_len=96
)
"""Room for 112 tokens: 64 visitors at a time want about twenty times that."""

NUM_VISITORS = 64
TIMEOUT_S = 3.0

SAID = {
    ("llmir.server", "a step failed: %s"),
    ("llmir.server", "a request failed"),
    ("uvicorn.error", "Invalid HTTP request received."),
}
"""What is logged besides, and nothing else: no task whose exception nobody has taken."""

# A client has left while several events were written to it; whether any does is a matter of time.
MAY_BE_SAID = ("asyncio", "socket.send() raised exception.")


class BadRunner(FakeRunner):
    """A device that fails now and then, before or after it has computed, and can stand still.

    num_failures      steps that failed
    num_failed_seqs   sequences in them
    stall_s           how long the next step takes; once
    """

    def __init__(self) -> None:
        super().__init__(LIMITS, top_k=8)
        self.num_steps = 0
        self.num_failures = 0
        self.num_failed_seqs = 0
        self.stall_s = 0.0

    def _logits(self, batch: StepBatch, call: str) -> F32:
        self.num_steps += 1
        time.sleep(self.stall_s)
        self.stall_s = 0.0
        if self.num_steps % 50 == 0:
            self.num_failures += 1
            self.num_failed_seqs += len(batch.context_len)
        if self.num_steps % 100 == 50:
            raise DeviceError("the device failed")
        logits = super()._logits(batch, call)
        self.batches.clear()
        self.calls.clear()
        if self.num_steps % 100 == 0:
            raise ZeroDivisionError("nobody foresaw this")
        return logits


class _Messages(logging.Handler):
    """Counts what is logged, of which it keeps nothing but the texts before formatting."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.counts[record.name, str(record.msg)] += 1


@contextmanager
def messages() -> Iterator[Counter[tuple[str, str]]]:
    """(logger, message) → how often; pytest does not see them, which would keep every traceback."""
    handler = _Messages()
    loggers = [logging.getLogger(name) for name in ("llmir", "asyncio", "uvicorn")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield handler.counts
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def assert_nothing_remembered(server: LiveServer) -> None:
    """No request has left anything behind."""
    core, serving = server.llm._core, server.app.state.serving
    assert serving.num_sequences == 0
    assert serving.open_requests.count == 0
    assert not server.llm._streams
    assert len(server.llm._processor) == 0
    assert not core._seqs
    assert not core._begun
    assert not core._proposers
    assert not core.scheduler.running
    assert not core.scheduler.waiting
    assert_pages_add_up(server.llm._core)


def memory() -> tuple[float, int]:
    """MiB that are resident, and objects that the garbage collector knows."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20), len(gc.get_objects())


@pytest.mark.serving
@pytest.mark.timeout(600)
def test_ten_thousand_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "LARGE_BODY", LARGE_BODY_BYTES)
    cases = make_cases(replace(LIMITS, num_pages=(1 + 500,)), 150, seed=4)
    runner = BadRunner()
    llm = AsyncLLM(
        runner,
        TOKENIZER,
        config=SchedulerConfig(scheduling_policy="priority", max_prefill_chunk=12),
        speculation=NgramConfig(),
    )
    outcomes: Counter[str] = Counter()
    sizes = []
    with (
        messages() as logged,
        live_server(
            llm,
            api_keys=(KEY,),
            max_waiting=90,
            max_body_bytes=MOST_BODY_BYTES,
            body_timeout_s=1.0,
            request_timeout_s=TIMEOUT_S,
        ) as server,
    ):
        for thousand in range(10):
            if thousand in (1, 6):
                runner.stall_s = TIMEOUT_S + 0.5
            numbers = iter(range(1000 * thousand, 1000 * (thousand + 1)))
            outcomes += asyncio.run(visit_all(server.port, cases, numbers, NUM_VISITORS))
            server.wait_until_idle()
            server.wait_until(lambda: server.app.state.serving.open_requests.count == 0)
            assert_nothing_remembered(server)
            sizes.append(memory())
        stats = llm.stats()
    assert outcomes.total() == 10_000
    # Everything that can happen has.
    for outcome in ("whole", "stream", "left"):
        assert outcomes[outcome] > 500, outcomes
    assert outcomes["stream with an error"] > 30, outcomes
    for status in (400, 401, 404, 405, 408, 413, 500, 503, 504):
        assert outcomes[str(status)] > 10, outcomes
    assert outcomes["form"] > 50, outcomes
    assert stats.num_preemptions > 1000
    assert stats.num_accepted_tokens > 0
    assert stats.prefix_cache_hits > 0
    # A step that fails takes nobody with it but who was in it.
    assert outcomes["500"] <= runner.num_failed_seqs
    assert logged.pop(("llmir.engine.step_thread", "a step of %d requests failed")) == (
        runner.num_failures
    )
    logged.pop(MAY_BE_SAID, None)
    assert logged.keys() == SAID, logged
    assert_flat(sizes)


def assert_flat(sizes: list[tuple[float, int]]) -> None:
    """After the last thousand visits as after the third: 1 KiB more for each would be seen."""
    (mib_then, objects_then), (mib_now, objects_now) = sizes[2], sizes[-1]
    assert mib_now - mib_then < 7, sizes
    assert objects_now - objects_then < 1000, sizes
