"""`llmir bench throughput`, and the parts of a step that it times."""

from __future__ import annotations

import json
import threading
import time
from importlib import import_module

import pytest
from engine.fake_runner import FakeRunner
from engine.helpers import TOKENIZER, make_llm

import llmir
from llmir.bench import step_parts
from llmir.bench.step_parts import FUNCTIONS, PARTS, share_lines, timed_parts
from llmir.cli import main
from llmir.engine import SamplingParams

PROMPTS = [TOKENIZER.encode(f"prompt {i}") for i in range(3)]


def test_every_function_that_is_timed_is_there() -> None:
    """A function that the engine calls by another name would seem to cost nothing."""
    for functions in (*FUNCTIONS.values(), (step_parts.WHOLE_STEP,)):
        for module, path in functions:
            owner: object = import_module(module)
            for name in path.split("."):
                owner = getattr(owner, name)
            assert callable(owner), path


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_parts_are_timed_where_they_run(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    llm = make_llm()

    def slow(kind: type, name: str, seconds: float) -> None:
        real = getattr(kind, name)

        def call(self: object, *args: object, **kwargs: object) -> object:
            time.sleep(seconds)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, call)

    from llmir.engine.detokenizer import Detokenizer
    from llmir.engine.scheduler import Scheduler

    for name in step_parts.RUNNER_METHODS:
        slow(FakeRunner, name, 0.02)
    slow(Scheduler, "schedule", 0.01)
    slow(Detokenizer, "push", 0.002)
    with timed_parts(llm.engine.core.runner) as parts:
        start = time.perf_counter()
        outputs = llm.generate(
            PROMPTS, SamplingParams(temperature=temperature, max_tokens=4, ignore_eos=True)
        )
        elapsed = time.perf_counter() - start
        found = parts()
    assert [len(o.outputs[0].token_ids) for o in outputs] == [4, 4, 4]
    assert found.num_steps >= 4
    assert found.parts_s["run"] >= 0.02 * found.num_steps
    assert found.parts_s["schedule"] >= 0.01 * found.num_steps
    assert found.parts_s["detokenise"] >= 0.002 * 12
    assert found.parts_s["sample"] > 0
    assert found.parts_s["build"] > 0
    assert found.longest_s >= 0.01
    assert found.step_s <= elapsed
    on_step = sum(found.parts_s.values()) + found.rest_s
    assert on_step == pytest.approx(found.step_s) or on_step > found.step_s
    assert sum(share for _, _, share in share_lines(found)) >= 0.999
    assert [name for name, _, _ in share_lines(found)] == [*PARTS, "rest"]


def test_a_part_on_another_thread_is_not_taken_from_the_step() -> None:
    clocks = step_parts._Clocks()
    detokenise = clocks.timed("detokenise", lambda: time.sleep(0.05))
    step = clocks.timed_step(clocks.timed("run", lambda: time.sleep(0.01)))
    thread = threading.Thread(target=detokenise)
    thread.start()
    step()
    thread.join()
    parts = clocks.parts()
    assert parts.parts_s["detokenise"] >= 0.05
    assert parts.step_s < parts.parts_s["detokenise"]
    assert parts.rest_s < 0.01
    assert parts.num_steps == 1


def test_functions_are_as_before_afterwards() -> None:
    def all_of_them() -> list[object]:
        found = [vars(FakeRunner)[name] for name in step_parts.RUNNER_METHODS]
        for functions in (*FUNCTIONS.values(), (step_parts.WHOLE_STEP,)):
            for module, path in functions:
                owner, name = step_parts._owner(module, path)
                found.append(vars(owner)[name])
        return found

    before = all_of_them()
    timing = timed_parts(FakeRunner())
    timing.__enter__()
    assert not set(map(id, all_of_them())) & set(map(id, before))
    assert not timing.__exit__(KeyError, KeyError(), None)
    assert all_of_them() == before


def test_the_command_measures_an_artifact(
    short_steps: llmir.Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "throughput", str(short_steps.path), "--num-prompts", "5"]
    lengths = ["--input-len", "9", "--output-len", "6", "--prefix-len", "3"]
    assert main([*words, *lengths, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    # What `vllm bench throughput --output-json` writes.
    names = {*"elapsed_time num_requests total_num_tokens requests_per_second".split()}
    assert names | {"tokens_per_second"} <= set(data)
    assert (data["num_requests"], data["total_num_tokens"]) == (5, 5 * (3 + 9 + 6))
    assert data["total_output_tokens"] == 30
    assert data["tokens_per_second"] == pytest.approx(90 / data["elapsed_time"])
    assert data["requests_per_second"] == pytest.approx(5 / data["elapsed_time"])
    # 4 sequences in a step at most: the fifth begins when one of them has ended.
    assert data["steps"]["num_steps"] >= 12
    assert set(data["steps"]["parts_ms"]) == {*PARTS, "rest"}
    assert data["peak_memory_bytes"] > 0
    assert data["workload"]["prefix_len"] == 3

    assert main([*words, *lengths, "--range-ratio", "0.5", "--temperature", "0.8"]) == 0
    out = capsys.readouterr().out
    assert "5 requests in" in out
    assert "detokenise" in out
    assert main([*words, "--max-num-seqs", "99"]) == 2
    assert "max_num_seqs" in capsys.readouterr().err
