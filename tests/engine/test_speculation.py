"""Drafts verified in one step: the same outputs in fewer steps, and counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmir.engine import LLMEngine, SamplingParams, SchedulerConfig
from llmir.engine.ngram import NgramConfig, parse_speculation
from llmir.errors import DeviceError, OptionError

from .fake_runner import FakeRunner, small_limits
from .helpers import TOKENIZER, assert_pages_add_up, run
from .test_llm_engine import workload

LOOP = [1, 2, 3, 0]


class LoopRunner(FakeRunner):
    """Likes to go round LOOP, and leaves it after some positions."""

    def _row(self, batch, token):
        row = super()._row(batch, token)
        last, position = int(batch.token_ids[token]), int(batch.positions[token])
        if position % 11:
            row[LOOP[LOOP.index(last % 4) - 3]] += 20
        return row


def make(limits, speculation, runner=LoopRunner, **config):
    return LLMEngine(
        runner(limits),
        TOKENIZER,
        eos_token_ids=(9,),
        config=SchedulerConfig(**config),
        speculation=speculation,
    )


def outputs(engine, requests):
    for number, (prompt, params) in enumerate(requests):
        engine.add_request(str(number), prompt, params)
    done = run(engine)
    return [done[str(number)].outputs for number in range(len(requests))]


kinds = st.sampled_from(
    [
        {"temperature": 0},
        {"temperature": 0, "min_tokens": 6},
        {"temperature": 0, "logprobs": 1},
        {"temperature": 0, "repetition_penalty": 1.3},
        {"seed": 5, "top_p": 0.9, "frequency_penalty": 0.5},
        {"seed": 6, "top_k": 4},
        {"seed": 7, "n": 2},
        {"temperature": 0, "stop_token_ids": [2]},
        {"temperature": 0, "prompt_logprobs": 0},
    ]
)
requests = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 14), kinds),
    min_size=1,
    max_size=6,
)


@workload
@given(
    requests=requests,
    windows=st.sampled_from([(None,), (None, 6), (7,)]),
    page_size=st.sampled_from([1, 2, 4]),
    spare_pages=st.integers(0, 12),
    budget=st.integers(1, 32),
    top_k=st.sampled_from([0, 8]),
    drafts=st.integers(1, 6),
    shortest=st.integers(1, 2),
    caching=st.booleans(),
    admission=st.sampled_from(["max_utilization", "guaranteed_no_evict"]),
)
def test_outputs_are_those_without_drafts(
    requests, windows, page_size, spare_pages, budget, top_k, drafts, shortest, caching, admission
):
    longest = max(len(prompt) + max_tokens for prompt, max_tokens, _ in requests)
    pages = 1 + -(-longest // page_size) + spare_pages
    asked = [
        (prompt, SamplingParams(max_tokens=max(count, kind.get("min_tokens", 1)), **kind))
        for prompt, count, kind in requests
        if len(prompt) + max(count, kind.get("min_tokens", 1)) <= longest
    ]
    alone = small_limits(page_size=4, num_pages=(256,) * len(windows), group_windows=windows)
    small = small_limits(
        page_size=page_size, num_pages=(pages,) * len(windows), group_windows=windows
    )
    config = NgramConfig(num_speculative_tokens=drafts, prompt_lookup_min=shortest)
    engine = make(
        small,
        config,
        runner=lambda limits: LoopRunner(limits, top_k=top_k),
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
        admission=admission,
    )
    found = outputs(engine, asked)
    for outputs_found, request in zip(found, asked, strict=True):
        assert outputs_found == outputs(make(alone, None), [request])[0]
    if admission == "guaranteed_no_evict":
        assert engine.stats().num_preemptions == 0


def test_drafts_save_steps_and_are_counted():
    limits = small_limits()
    request = (LOOP * 3, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    plain = make(limits, None)
    drafting = make(limits, NgramConfig(num_speculative_tokens=4))
    assert outputs(drafting, [request]) == outputs(plain, [request])
    stats = drafting.stats()
    assert stats.num_steps < 0.65 * plain.stats().num_steps
    # Every step gives a token, and every accepted draft one more.
    assert stats.generation_tokens == 60
    assert stats.num_accepted_tokens == 60 - stats.num_steps
    assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens
    assert stats.num_drafts <= stats.num_steps
    assert plain.stats().num_drafts == 0


def test_a_draft_takes_nobodys_page():
    """Two sequences that just fit: verifying drafts must not make one of them start again."""
    limits = small_limits(num_pages=(1 + 12,))
    asked = [(LOOP * 2, SamplingParams(temperature=0, max_tokens=15, ignore_eos=True))] * 2
    engine = make(limits, NgramConfig(num_speculative_tokens=6), enable_prefix_caching=False)
    outputs(engine, asked)
    assert engine.stats().num_preemptions == 0
    assert engine.stats().num_accepted_tokens > 0


def test_a_bad_row_of_a_draft_fails_no_more_than_its_own_step():
    class Broken(LoopRunner):
        def _row(self, batch, token):
            row = super()._row(batch, token)
            return row if batch.positions[token] < 25 else row * float("nan")

    engine = make(small_limits(), NgramConfig(num_speculative_tokens=6), Broken)
    params = SamplingParams(temperature=0, max_tokens=60, logprobs=0, ignore_eos=True)
    engine.add_request("0", LOOP * 3, params)
    seen: list[int] = []

    def go_on():
        while True:
            (output,) = engine.step()
            seen[:] = output.outputs[0].token_ids
            assert_pages_add_up(engine)

    with pytest.raises(DeviceError, match="no finite maximum"):
        go_on()
    # All tokens that rows before position 25 gave, though drafts went beyond it.
    assert len(seen) == 25 - (len(LOOP * 3) - 1)
    assert engine.abort("0").outputs[0].token_ids == seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ngram", "must be a mapping, not str"),
        ({}, "the method must be 'ngram', not None"),
        ({"method": "eagle"}, "the method must be 'ngram', not 'eagle'"),
        ({"method": "ngram", "model": "x"}, "unknown name in speculative_config 'model'; known"),
        ({"method": "ngram", "num_speculative_tokens": -1}, "positive whole number; got -1"),
    ],
)
def test_bad_configs(given, message):
    with pytest.raises(OptionError, match=message):
        parse_speculation(given)
