"""Where the time of the engine's steps goes: its functions, timed from outside while it serves.

    schedule    who computes what
    build       the arrays of the step
    run         the runner: the device's work, and waiting for it
    sample      choosing tokens from logits
    detokenise  text from tokens, on whichever thread
    rest        all else in LLMEngine.step

A clock is read twice around each call.  `EngineStats.seconds` has the engine's own, of a step's
stages; these are finer, know of threads and of the longest step, and cost nothing otherwise.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

# part → the functions that make it: a module, and a name in it or in a class of it
FUNCTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "schedule": (("llmir.engine.scheduler", "Scheduler.schedule"),),
    "build": (("llmir.engine.core", "build_batch"),),
    "sample": (
        ("llmir.engine.choices", "sample"),
        ("llmir.engine.choices", "sample_top"),
        ("llmir.engine.choices", "check_choices"),
    ),
    "detokenise": (
        ("llmir.engine.detokenizer", "Detokenizer.push"),
        ("llmir.engine.detokenizer", "Detokenizer.finish"),
    ),
}
RUNNER_METHODS = ("step", "step_greedy", "step_topk")
WHOLE_STEP = ("llmir.engine.llm_engine", "LLMEngine.step")
PARTS = (*FUNCTIONS, "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """Seconds of all steps together.

    num_steps   calls of the runner
    step_s      LLMEngine.step as a whole
    parts_s     part → its seconds; `detokenise` may be on a thread beside the step's
    rest_s      what is left of step_s without those parts that ran within it
    longest_s   of one step, without the runner
    """

    num_steps: int
    step_s: float
    parts_s: dict[str, float]
    rest_s: float
    longest_s: float

    def share(self, part: str) -> float:
        """Of the time of the steps."""
        seconds = self.rest_s if part == "rest" else self.parts_s[part]
        return seconds / self.step_s if self.step_s else 0.0


@dataclass(slots=True)
class _Clocks:
    """Seconds by part and thread, and of the steps."""

    seconds: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    num_steps: int = 0
    step_s: float = 0.0
    longest_s: float = 0.0
    step_threads: set[int] = field(default_factory=set)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                # A key per thread: no other thread adds to it.
                self.seconds[part, threading.get_ident()] += time.perf_counter() - start

        return call

    def timed_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            thread = threading.get_ident()
            self.step_threads.add(thread)
            run_before = self.seconds["run", thread]
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.step_s += took
                run_s = self.seconds["run", thread] - run_before
                self.num_steps += run_s > 0
                self.longest_s = max(self.longest_s, took - run_s)

        return call

    def parts(self) -> StepParts:
        within = sum(s for (_, thread), s in self.seconds.items() if thread in self.step_threads)
        return StepParts(
            num_steps=self.num_steps,
            step_s=self.step_s,
            parts_s={
                part: sum(s for (name, _), s in self.seconds.items() if name == part)
                for part in PARTS
            },
            rest_s=max(0.0, self.step_s - within),
            longest_s=self.longest_s,
        )


@contextmanager
def timed_parts(runner: object) -> Iterator[Callable[[], StepParts]]:
    """Times the steps of all engines in this process while the block runs, on this runner.

    Yields a function that gives the times so far.  Use it where nothing else serves.
    """
    clocks = _Clocks()
    undo: list[tuple[object, str, Any]] = []

    def replace(owner: object, name: str, wrap: Callable[[Any], Any]) -> None:
        before = vars(owner)[name]
        undo.append((owner, name, before))
        setattr(owner, name, wrap(before))

    try:
        for part, functions in FUNCTIONS.items():
            for module, path in functions:
                replace(*_owner(module, path), functools.partial(clocks.timed, part))
        replace(*_owner(*WHOLE_STEP), clocks.timed_step)
        for name in RUNNER_METHODS:
            owner = next(kind for kind in type(runner).__mro__ if name in vars(kind))
            replace(owner, name, functools.partial(clocks.timed, "run"))
        yield clocks.parts
    finally:
        for owner, name, before in reversed(undo):
            setattr(owner, name, before)


def _owner(module: str, path: str) -> tuple[object, str]:
    owner: object = import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, name


def share_lines(parts: Mapping[str, Any] | StepParts) -> list[tuple[str, float, float]]:
    """(part, milliseconds a step, share of the step), the parts in their order, then the rest."""
    found = parts if isinstance(parts, StepParts) else StepParts(**parts)
    steps = max(found.num_steps, 1)
    seconds = {**found.parts_s, "rest": found.rest_s}
    return [(name, 1e3 * s / steps, found.share(name)) for name, s in seconds.items()]
