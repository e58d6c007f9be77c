"""A thread that waits for a CPU device yields to the device's workers, and is itself afterwards."""

import os
import threading
from pathlib import Path

import pytest

from llmir import LLM, SamplingParams
from llmir.runtime import waiting
from llmir.runtime.waiting import polite_wait


def policy() -> int:
    return os.sched_getscheduler(0)


def test_the_policy_lasts_as_long_as_the_wait() -> None:
    with polite_wait():
        assert policy() == os.SCHED_BATCH
    assert policy() == os.SCHED_OTHER
    with pytest.raises(RuntimeError), polite_wait():
        raise RuntimeError
    assert policy() == os.SCHED_OTHER


def test_a_policy_that_somebody_chose_is_kept() -> None:
    seen: list[int] = []

    def run() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with polite_wait():
            seen.append(policy())
        seen.append(policy())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_where_policies_are_not_to_be_had_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    waiting._may_choose.cache_clear()
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with polite_wait():
        assert policy() == os.SCHED_OTHER
    waiting._may_choose.cache_clear()


def test_steps_wait_politely(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    setscheduler = os.sched_setscheduler

    def note(pid: int, policy: int, param: os.sched_param) -> None:
        chosen.append(policy)
        setscheduler(pid, policy, param)

    llm = LLM(tiny_artifact)
    monkeypatch.setattr(os, "sched_setscheduler", note)
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert chosen[-4:] == [os.SCHED_BATCH, os.SCHED_OTHER] * 2
