"""The step loop: the same tokens as alone, whatever is served, and no page left behind."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmir.engine import SamplingParams
from llmir.errors import DeviceError, RequestError

from .fake_runner import FakeRunner, reference_greedy, small_limits
from .helpers import assert_nothing_held, assert_pages_add_up, make_engine, run

GREEDY = SamplingParams(temperature=0, max_tokens=8, detokenize=False)
EOS = (5, 9)

BEGINNING = [7, 1, 60, 2, 2, 33, 8, 41, 5, 19, 0, 63, 12, 4, 4, 28]
own_tokens = st.lists(st.integers(0, 63), min_size=1, max_size=24)
prompts = (
    own_tokens
    | st.builds(  # some begin alike
        lambda shared, own: BEGINNING[:shared] + own, st.integers(1, 16), own_tokens
    )
)
requests = st.lists(st.tuples(prompts, st.integers(1, 12)), min_size=1, max_size=10)
windows = st.sampled_from([(None,), (None, 6), (7,), (None, 1, 9)])
workload = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def params_of(max_tokens, **more):
    return SamplingParams(max_tokens=max_tokens, detokenize=False, **more)


@workload
@given(
    requests=requests,
    windows=windows,
    page_size=st.sampled_from([1, 2, 4, 8]),
    spare_pages=st.integers(0, 12),
    budget=st.integers(1, 32),
    num_seqs=st.integers(1, 8),
    chunk=st.integers(1, 32),
    arrivals=st.lists(st.integers(0, 3), min_size=10, max_size=10),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority", "lpm"]),
    admission=st.sampled_from(["max_utilization", "guaranteed_no_evict"]),
)
def test_random_workloads_give_what_each_gives_alone(
    requests,
    windows,
    page_size,
    spare_pages,
    budget,
    num_seqs,
    chunk,
    arrivals,
    caching,
    policy,
    admission,
):
    # the pool holds the longest of these requests alone, and a few pages more
    longest = max(len(prompt) + max_tokens for prompt, max_tokens in requests)
    pages = 1 + -(-longest // page_size) + spare_pages
    limits = small_limits(
        page_size=page_size, num_pages=(pages,) * len(windows), group_windows=windows
    )
    engine = make_engine(
        limits,
        EOS,
        max_num_batched_tokens=budget,
        max_num_seqs=num_seqs,
        max_prefill_chunk=min(chunk, budget),
        enable_prefix_caching=caching or policy == "lpm",
        scheduling_policy=policy,
        admission=admission,
    )
    done = {}
    for number, (prompt, max_tokens) in enumerate(requests):
        priority = number % 3 if policy == "priority" else 0
        engine.add_request(
            str(number), prompt, params_of(max_tokens, temperature=0), priority=priority
        )
        for _ in range(arrivals[number]):
            done |= {o.request_id: o for o in engine.step() if o.finished}
            assert_pages_add_up(engine)
    done |= run(engine)
    for number, (prompt, max_tokens) in enumerate(requests):
        expected = reference_greedy(prompt, max_tokens, limits, EOS)
        (output,) = done[str(number)].outputs
        assert output.token_ids == expected
        assert output.finish_reason == ("stop" if expected[-1] in EOS else "length")


@settings(workload, max_examples=50)  # three times as slow as the others
@given(requests=requests, windows=windows, spare_pages=st.integers(0, 6), seed=st.integers(0, 99))
def test_seeded_sampling_is_the_same_in_any_company(requests, windows, spare_pages, seed):
    longest = max(len(prompt) + max_tokens for prompt, max_tokens in requests)
    pages = (1 + -(-longest // 4) + spare_pages,) * len(windows)
    params = [
        params_of(n, seed=seed + i % 3, n=1 + i % 2, top_p=0.9, presence_penalty=0.5)
        for i, (_, n) in enumerate(requests)
    ]
    small = small_limits(num_pages=pages, group_windows=windows)
    together = make_engine(small, max_num_batched_tokens=7)
    for number, (prompt, _) in enumerate(requests):
        together.add_request(str(number), prompt, params[number])
    done = run(together)
    for number, (prompt, _) in enumerate(requests):
        alone = make_engine(small_limits(num_pages=(64,) * len(windows), group_windows=windows))
        alone.add_request("x", prompt, params[number])
        expected = [output.token_ids for output in run(alone)["x"].outputs]
        assert [output.token_ids for output in done[str(number)].outputs] == expected


WITHOUT_ROWS = {
    "top_k": {"top_k": 5, "seed": 1},
    "all of them": {"top_k": 16, "seed": 2, "temperature": 3.0},
    "nucleus": {"top_k": 16, "top_p": 0.7, "seed": 3, "temperature": 0.5},
    "several": {"top_k": 3, "seed": 4, "n": 3},
    "greedy": {"temperature": 0.0},
}
WITH_ROWS = {
    "no top_k": {"seed": 5},
    "more than there are": {"top_k": 17, "seed": 6},
    "min_p": {"top_k": 5, "min_p": 0.1, "seed": 7},
    "logprobs": {"top_k": 5, "logprobs": 0, "seed": 8},
    "penalty": {"top_k": 5, "presence_penalty": 1.0, "seed": 9},
    "bias": {"top_k": 5, "logit_bias": {3: 2.0}, "seed": 10},
    "prompt logprobs": {"top_k": 5, "prompt_logprobs": 1, "seed": 11},
}


def answers(params, top_k):
    """Token ids of each request, served together, and which functions of the runner ran."""
    engine = make_engine()
    engine.runner = FakeRunner(top_k=top_k)
    for number, one in enumerate(params):
        engine.add_request(str(number), [7, number, 3], params_of(9, **one))
    done = run(engine)
    token_ids = [[o.token_ids for o in done[str(i)].outputs] for i in range(len(params))]
    return token_ids, set(engine.runner.calls)


def test_the_largest_logits_give_the_tokens_that_all_of_them_give():
    params = list(WITHOUT_ROWS.values())
    expected, calls = answers(params, top_k=0)
    assert calls == {"step"}
    assert answers(params, top_k=16) == (expected, {"step_topk"})
    for one in params:
        found, calls = answers([one], top_k=16)
        assert calls == {"step_greedy" if one.get("temperature") == 0.0 else "step_topk"}
        assert found == answers([one], top_k=0)[0]


@pytest.mark.parametrize("name", WITH_ROWS)
def test_who_needs_more_than_the_largest_logits_gets_all_of_them(name):
    found, calls = answers([WITH_ROWS[name]], top_k=16)
    # The step of the prompt alone has no need of them, once its logprobs are there.
    assert "step" in calls
    assert calls <= ({"step", "step_topk"} if name == "prompt logprobs" else {"step"})
    assert found == answers([WITH_ROWS[name]], top_k=0)[0]


def test_a_top_k_that_cuts_nothing_off_keeps_the_order_of_the_ids():
    params = [{"top_k": 64, "seed": seed, "temperature": 2.0} for seed in range(4)]
    assert answers(params, top_k=64) == answers(params, top_k=0)


@workload
@given(
    requests=requests,
    aborts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=10),
    pages=st.integers(14, 20),
    fail_at=st.integers(0, 40),
)
def test_aborts_and_failures_leave_no_page_behind(requests, aborts, pages, fail_at):
    limits = small_limits(num_pages=(pages,))
    engine = make_engine(limits, EOS, max_num_batched_tokens=9)
    engine.runner = FakeRunner(limits, fail_at=fail_at)
    for number, (prompt, max_tokens) in enumerate(requests):
        engine.add_request(str(number), prompt, params_of(max_tokens, temperature=0))
    done, aborted = {}, set()
    for step in range(1000):
        if not engine.has_unfinished_requests():
            break
        for when, which in aborts:
            if when == step and engine.abort(str(which)) is not None:
                aborted.add(str(which))
        try:
            done |= {o.request_id: o for o in engine.step() if o.finished}
        except DeviceError:
            continue  # a step that failed is tried again
        finally:
            assert_pages_add_up(engine, unused_slots=False)
    assert_nothing_held(engine)
    assert aborted.isdisjoint(done)
    assert len(aborted) + len(done) == len(requests)
    for request_id, output in done.items():
        prompt, max_tokens = requests[int(request_id)]
        assert output.outputs[0].token_ids == reference_greedy(prompt, max_tokens, limits, EOS)


def test_a_prompt_split_at_every_point():
    limits = small_limits()
    prompt = list(range(3, 25))
    expected = reference_greedy(prompt, 8, limits)
    for split in range(1, len(prompt)):
        engine = make_engine(limits, prefill_splits=(split,))
        engine.add_request("x", prompt, GREEDY)
        assert run(engine)["x"].outputs[0].token_ids == expected
        assert engine.runner.batches[0].context_len.tolist() == [split]


def test_preemption_happens_and_is_counted():
    engine = make_engine(small_limits(num_pages=(9,)))
    for number in range(4):
        engine.add_request(str(number), [number] * 6, params_of(20, temperature=0))
    done = run(engine)
    counts = [done[str(number)].metrics.num_preemptions for number in range(4)]
    assert sum(counts) > 0
    assert counts[0] == 0  # the oldest never gives way


def computed_tokens(engine):
    """Tokens of each step that ran."""
    return [len(batch.token_ids) for batch in engine.runner.batches]


def test_what_begins_alike_is_computed_once():
    engine = make_engine()
    first, second = [*BEGINNING, 1, 2, 3], [*BEGINNING, 9]
    engine.add_request("first", first, params_of(1, temperature=0))
    run(engine)
    engine.add_request("second", second, params_of(1, temperature=0))
    done = run(engine)
    assert computed_tokens(engine) == [19, 1]
    assert done["second"].outputs[0].token_ids == reference_greedy(second, 1, engine.limits)
    blocks = engine.scheduler.blocks
    assert (blocks.num_queried_tokens, blocks.num_hit_tokens) == (19 + 17, 16)


def test_the_last_token_of_a_known_prompt_is_computed_for_its_logits():
    engine = make_engine()
    for name in "ab":
        engine.add_request(name, BEGINNING, params_of(1, temperature=0))
        done = run(engine)
    assert computed_tokens(engine) == [16, 4]  # a page of four, which the last token is in
    assert done["b"].outputs[0].token_ids == reference_greedy(BEGINNING, 1, engine.limits)


def test_an_answer_is_part_of_the_next_prompt():
    engine = make_engine()
    engine.add_request("x", BEGINNING, params_of(9, temperature=0))
    answer = run(engine)["x"].outputs[0].token_ids
    engine.add_request("y", [*BEGINNING, *answer, 3], params_of(1, temperature=0))
    run(engine)
    assert computed_tokens(engine)[-1] == 16 + 9 + 1 - 24


def test_running_requests_share_pages():
    engine = make_engine(small_limits(num_pages=(14,)))
    engine.add_request("first", [*BEGINNING, 1], params_of(12, temperature=0))
    engine.step()
    for number in range(4):
        engine.add_request(str(number), [*BEGINNING, number], params_of(3, temperature=0))
    engine.step()
    assert len(engine.scheduler.running) == 5  # alone each needs five of the thirteen pages
    assert_pages_add_up(engine)
    done = run(engine)
    assert all(output.metrics.num_preemptions == 0 for output in done.values())


def test_n_outputs_compute_their_prompt_once():
    engine = make_engine()
    engine.add_request("x", [*BEGINNING, 1, 2], params_of(1, n=3, seed=4))
    done = run(engine)
    assert computed_tokens(engine) == [18, 2 + 2]
    assert len(done["x"].outputs) == 3


def test_prompt_logprobs_are_computed_although_the_pages_are_known():
    engine = make_engine()
    for _ in range(2):
        engine.add_request("x", BEGINNING, params_of(1, temperature=0, prompt_logprobs=1))
        done = run(engine)
    assert computed_tokens(engine) == [16, 16]
    assert len(done["x"].prompt_logprobs) == 16


def test_cached_pages_give_way():
    engine = make_engine(small_limits(num_pages=(6,)))
    for number in range(8):
        prompt = [number] * 17
        engine.add_request(str(number), prompt, params_of(2, temperature=0))
        done = run(engine)
        expected = reference_greedy(prompt, 2, engine.limits)
        assert done[str(number)].outputs[0].token_ids == expected


def test_what_can_never_fit_is_refused_with_the_sizes():
    engine = make_engine(small_limits(num_pages=(6,)))
    with pytest.raises(RequestError, match=r"prompt of 21 tokens needs 6 pages of 4 tokens.* 5"):
        engine.add_request("x", [1] * 21, GREEDY)
    with pytest.raises(RequestError, match=r"and up to 8 of output: lower max_tokens needs 6"):
        engine.add_request("x", [1] * 14, GREEDY)
    engine.add_request("x", [1] * 13, GREEDY)  # the last token needs no place in a page
    engine.add_request("y", [1] * 13, params_of(None, temperature=0))
    done = run(engine)
    assert len(done["x"].outputs[0].token_ids) == 8
    assert len(done["y"].outputs[0].token_ids) == 8  # as many as fit


def test_the_models_context_ends_an_output():
    engine = make_engine(small_limits(max_model_len=20))
    engine.add_request("x", [1] * 15, params_of(100, temperature=0))
    output = run(engine)["x"].outputs[0]
    assert len(output.token_ids) == 5
    assert output.finish_reason == "length"
    with pytest.raises(RequestError, match=r"prompt has 20 tokens .* \(max_model_len\) is 20"):
        engine.add_request("x", [1] * 20, GREEDY)


@pytest.mark.parametrize(
    ("prompt", "params", "match"),
    [
        ([], {}, "prompt is empty"),
        ([64], {}, r"token id 64; the model has 0 … 63"),
        ([-1], {}, "token id -1"),
        ([1], {"logit_bias": {64: 1}}, "logit_bias has token id 64"),
        ([1], {"stop_token_ids": [99]}, "stop_token_ids has token id 99"),
        ([1], {"logprobs": 65}, "logprobs is 65; the model has 64"),
        ([1] * 120, {"min_tokens": 10}, "min_tokens is 10, but only 8 tokens fit"),
    ],
)
def test_bad_requests(prompt, params, match):
    engine = make_engine()
    with pytest.raises(RequestError, match=match):
        engine.add_request("x", prompt, SamplingParams(**params))
    assert_nothing_held(engine)


def test_a_request_id_in_use_is_refused():
    engine = make_engine()
    engine.add_request("x", [1], GREEDY)
    with pytest.raises(RequestError, match="'x' is being served"):
        engine.add_request("x", [1], GREEDY)
    assert engine.abort("x").outputs[0].finish_reason == "abort"
    assert engine.abort("x") is None
    engine.add_request("x", [1], GREEDY)


def test_stop_ids_eos_and_ignore_eos():
    limits = small_limits()
    tokens = reference_greedy([7], 12, limits)
    first = tokens[3]
    at = tokens.index(first)

    def finish(eos=(), **params):
        engine = make_engine(limits, eos)
        engine.add_request("x", [7], params_of(12, temperature=0, **params))
        output = run(engine)["x"].outputs[0]
        return len(output.token_ids), output.finish_reason, output.stop_reason

    assert finish() == (12, "length", None)
    assert finish(eos=(first,)) == (at + 1, "stop", None)
    assert finish(eos=(first,), ignore_eos=True) == (12, "length", None)
    assert finish(stop_token_ids=[first]) == (at + 1, "stop", first)
    length, *_ = finish(stop_token_ids=[first], min_tokens=at + 2)
    assert length >= at + 2


def test_metrics_are_in_order():
    engine = make_engine()
    engine.add_request("x", [1, 2, 3], GREEDY)
    metrics = run(engine)["x"].metrics
    times = [
        metrics.arrival_time,
        metrics.first_scheduled_time,
        metrics.first_token_time,
        metrics.finished_time,
    ]
    assert times == sorted(times)
