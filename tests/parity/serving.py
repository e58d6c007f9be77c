"""Serves requests in any company and keeps the logits of every position, to compare bit by bit.

Shape legend: T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmir.engine import LLM, SamplingParams, SchedulerConfig
from llmir.engine.prompt_rows import LogitRows
from llmir.runtime.base import StepRunner


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a prompt.

    rows:             logits of each of its positions, float32 [T, V]
    token_ids:        what followed
    logprobs:         of each of those, the likeliest tokens with their log-probabilities
    num_preemptions:  how often it was thrown out and computed again
    """

    rows: np.ndarray[Any, Any]
    token_ids: list[int]
    logprobs: list[dict[int, float]]
    num_preemptions: int


def serve(
    runner: StepRunner,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    **config: Any,
) -> list[Answer]:
    """Serve all prompts at once, each for its logits and for an answer.

    config: fields of SchedulerConfig.
    """
    engine = LLM(runner, None, config=SchedulerConfig(**config)).engine
    rows = [LogitRows(len(p), runner.limits.vocab_size) for p in prompts]
    for i, (prompt, prompt_rows, param) in enumerate(zip(prompts, rows, params, strict=True)):
        engine.add_prompt(f"rows {i}", prompt, prompt_rows)
        engine.add_request(f"answer {i}", prompt, param)
    preemptions = [0] * len(prompts)
    finished = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
                index = int(output.request_id.split()[1])
                preemptions[index] += output.metrics.num_preemptions
    answers = []
    for i in range(len(prompts)):
        (completion,) = finished[f"answer {i}"].outputs
        candidates = [{t: c.logprob for t, c in at.items()} for at in completion.logprobs]
        answers.append(Answer(rows[i].logits, completion.token_ids, candidates, preemptions[i]))
    return answers


def params(num_tokens: int, seed: int | None = None) -> SamplingParams:
    """Greedy, or drawn with a seed; an answer of exactly that many tokens."""
    temperature = 0.0 if seed is None else 1.0
    return SamplingParams(
        temperature=temperature, seed=seed, max_tokens=num_tokens, ignore_eos=True, logprobs=5
    )


def assert_same(got: Answer, expected: Answer) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(got.rows.view(np.int32), expected.rows.view(np.int32))
    assert got.token_ids == expected.token_ids
    assert got.logprobs == expected.logprobs
