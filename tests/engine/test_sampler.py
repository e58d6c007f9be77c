"""The sampler: each parameter has the distribution, or the effect, that its definition says."""

import numpy as np
import pytest

from llmir.engine import sampler
from llmir.engine.draw import candidates, draw, nucleus, pick, top_ids, weigh
from llmir.engine.sampler import (
    SampleState,
    adjust,
    log_normalizer,
    rank_candidates,
    sample,
    sample_top,
)
from llmir.engine.sampling_params import SamplingParams
from llmir.errors import DeviceError
from llmir.runtime.base import TopLogits

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5, 0.0, -4.0, 2.0], np.float32)


def state(prompt=(), output=(), stop_ids=(), seed=0, **params):
    return SampleState(
        params=SamplingParams(**params),
        prompt_token_ids=list(prompt),
        output_token_ids=list(output),
        stop_ids=list(stop_ids),
        rng=np.random.default_rng(seed),
    )


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def frequencies(count=10_000, logits=LOGITS, **params):
    one = state(seed=1234, **params)
    drawn = sample(np.broadcast_to(logits, (count, len(logits))), [one] * count)
    return np.bincount(drawn, minlength=len(logits))


def assert_distributed(counts, expected):
    """Pearson's chi-square: within what one in a million fair samplers would exceed."""
    expected = np.asarray(expected) / np.sum(expected)
    assert (counts[expected == 0] == 0).all()
    likely = expected * counts.sum() > 0
    want = expected[likely] * counts.sum()
    chi2 = ((counts[likely] - want) ** 2 / want).sum()
    freedom = likely.sum() - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * max(freedom, 1)) + 10, (chi2, freedom)


def keep(mask, temperature=1.0):
    return np.where(mask, softmax(LOGITS / temperature), 0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature(temperature):
    assert_distributed(frequencies(temperature=temperature), softmax(LOGITS / temperature))


def test_top_k_keeps_exactly_k_and_lower_ids_among_equals():
    # tokens 2 and 7 are equal; the third place goes to token 2
    mask = np.isin(np.arange(8), [1, 4, 2])
    assert_distributed(frequencies(top_k=3), keep(mask))


def test_top_p():
    order = np.argsort(-LOGITS, kind="stable")
    cumulative = np.cumsum(softmax(LOGITS)[order])
    top_p = 0.75
    size = int((cumulative < top_p).sum()) + 1
    mask = np.isin(np.arange(8), order[:size])
    assert 1 < size < 5
    assert_distributed(frequencies(top_p=top_p), keep(mask))


def test_min_p():
    probabilities = softmax(LOGITS)
    mask = probabilities >= 0.3 * probabilities.max()
    assert 1 < mask.sum() < 6
    assert_distributed(frequencies(min_p=0.3), keep(mask))


def test_filters_work_together():
    # top_k first, then top_p of what is left, at the temperature
    weights = keep(np.isin(np.arange(8), [1, 4, 2]), 0.7)
    weights /= weights.sum()
    assert weights[1] + weights[4] > 0.8 > weights[1]
    weights[2] = 0
    assert_distributed(frequencies(temperature=0.7, top_k=3, top_p=0.8), weights)


def test_top_k_one_is_greedy_even_where_weights_cannot_tell():
    logits = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert draw(logits, SamplingParams(top_k=1, temperature=5.0), 0.99) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-8])
def test_a_tiny_temperature_is_greedy(temperature):
    assert draw(LOGITS, SamplingParams(temperature=temperature), 0.999) == 1


def test_greedy_takes_the_lowest_id_among_equals():
    logits = np.array([[0, 2, 2, 1], [5, 1, 5, 5]], np.float32)
    assert sample(logits, [state(temperature=0), state(temperature=0)]) == [1, 0]


def test_extreme_logits_do_not_overflow():
    logits = np.array([3e38, -3e38, 3e38, -np.inf], np.float32)
    counts = frequencies(count=200, logits=logits)
    assert counts[0] > 50
    assert counts[2] > 50
    assert counts[0] + counts[2] == 200


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad):
    logits = np.stack([LOGITS, LOGITS])
    logits[1, 3] = bad
    with pytest.raises(DeviceError, match="1 of 2 rows"):
        sample(logits, [state(temperature=0), state()])


def test_the_last_uniform_number_does_not_fall_off_the_end():
    almost_one = np.nextafter(1.0, 0.0)
    for size in range(1, 200, 7):
        logits = np.linspace(0, -3, size).astype(np.float32)
        logits = np.append(logits, np.float32(-np.inf))
        assert draw(logits, SamplingParams(), almost_one) < size


def test_repetition_penalty_divides_or_multiplies_what_was_seen():
    row = adjust(LOGITS, state(prompt=[1, 3], output=[0, 3], repetition_penalty=2.0))
    np.testing.assert_array_equal(row, np.array([0.5, 1.5, 2, -2, 2.5, 0, -4, 2], np.float32))


def test_presence_and_frequency_count_the_output_alone():
    row = adjust(LOGITS, state(prompt=[2], output=[1, 1, 4], presence_penalty=0.5))
    np.testing.assert_array_equal(row - LOGITS, [0, -0.5, 0, 0, -0.5, 0, 0, 0])
    row = adjust(LOGITS, state(prompt=[2], output=[1, 1, 4], frequency_penalty=0.25))
    np.testing.assert_array_equal(row - LOGITS, [0, -0.5, 0, 0, -0.25, 0, 0, 0])


def test_logit_bias_moves_the_distribution():
    expected = LOGITS.copy()
    expected[6] += 6
    assert_distributed(frequencies(logit_bias={6: 6.0}), softmax(expected))


def test_min_tokens_masks_what_would_stop():
    early = state(output=[0], stop_ids=[1], min_tokens=2, temperature=0)
    late = state(output=[0, 0], stop_ids=[1], min_tokens=2, temperature=0)
    assert sample(np.stack([LOGITS, LOGITS]), [early, late]) == [4, 1]


def test_rows_are_left_as_they_were_and_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 1000)).astype(np.float32)
    before = logits.copy()
    kinds = [
        {"temperature": 0},
        {"seed": 1, "top_p": 0.9},
        {"seed": 2, "presence_penalty": 1.0, "output": [3, 4]},
        {"seed": 3},
        {"seed": 4, "top_k": 5},
        {"seed": 5, "min_p": 0.1, "logit_bias": {1: 3}},
    ]

    def make(kind):
        params = {k: v for k, v in kind.items() if k not in ("seed", "output")}
        return state(seed=kind.get("seed", 0), output=kind.get("output", ()), **params)

    together = sample(logits, [make(kind) for kind in kinds])
    alone = [sample(logits[i : i + 1], [make(kind)])[0] for i, kind in enumerate(kinds)]
    assert together == alone
    np.testing.assert_array_equal(logits, before)


def test_top_ids_and_nucleus_agree_with_a_full_sort():
    rng = np.random.default_rng(7)
    for _ in range(50):
        values = rng.integers(-8, 8, size=3000).astype(np.float32)  # many equals
        order = np.argsort(-values, kind="stable")
        for k in (1, 2, 255, 2999, 3000, 5000):
            np.testing.assert_array_equal(top_ids(values, k), order[:k])
        weights = np.exp(values - values.max())
        for top_p in (0.01, 0.5, 0.999):
            cumulative = np.cumsum(weights[order], dtype=np.float64)
            size = int((cumulative < top_p * weights.sum(dtype=np.float64)).sum()) + 1
            np.testing.assert_array_equal(nucleus(values, weights, top_p), np.sort(order[:size]))


def test_candidates_of_a_flat_distribution():
    logits = np.zeros(5000, np.float32)
    ids, weights = candidates(logits, SamplingParams(top_p=0.5))
    assert len(ids) == 2500
    assert (weights == 1).all()


def test_pick_is_where_the_number_falls():
    rng = np.random.default_rng(11)
    for size in (1, 2, 255, 256, 257, 3000):
        weights = rng.random(size).astype(np.float32)
        weights[rng.random(size) < 0.3] = 0
        weights[size // 2] = 1
        cumulative = np.cumsum(weights, dtype=np.float64)
        for uniform in [0.0, np.nextafter(1.0, 0.0), *rng.random(50)]:
            place = pick(weights, uniform)
            point = uniform * cumulative[-1]
            assert weights[place] > 0
            # Sums of blocks are rounded in another order than one long sum.
            assert cumulative[place] >= point - 1e-9 * cumulative[-1]
            assert cumulative[place] - weights[place] <= point + 1e-9 * cumulative[-1]


def test_many_rows_side_by_side_are_as_rows_alone(monkeypatch):
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((9, 5000)).astype(np.float32) * 3
    kinds = [{"top_p": 0.95}, {"temperature": 0.8, "top_p": 0.9}, {}, {"temperature": 0}]
    kinds = (kinds * 3)[:9]
    alone = [sample(logits[i : i + 1], [state(seed=i, **kind)])[0] for i, kind in enumerate(kinds)]
    monkeypatch.setattr(sampler, "PARALLEL_SIZE", 0)
    monkeypatch.setattr(sampler, "_num_threads", lambda: 3)
    sampler._threads.cache_clear()
    try:
        states = [state(seed=i, **kind) for i, kind in enumerate(kinds)]
        assert sample(logits, states) == alone
    finally:
        sampler._threads().shutdown()
        sampler._threads.cache_clear()


def test_weights_are_of_the_softmax_at_a_temperature():
    weights = np.empty_like(LOGITS)
    weigh(LOGITS, 0.7, weights)
    assert weights.max() == 1
    np.testing.assert_allclose(weights / weights.sum(), softmax(LOGITS / 0.7), rtol=1e-5)


def test_log_probabilities_are_those_of_the_unchanged_logits():
    probabilities = softmax(LOGITS)
    assert log_normalizer(LOGITS) == pytest.approx(np.log(np.exp(LOGITS.astype(float)).sum()))
    entries = rank_candidates(LOGITS, 7, 2)
    assert [(token, rank) for token, _, rank in entries] == [(7, 4), (1, 1), (4, 2)]
    for token, logprob, _ in entries:
        assert logprob == pytest.approx(np.log(probabilities[token]), abs=1e-6)
    assert len(rank_candidates(LOGITS, 0, -1)) == 8
    assert len(rank_candidates(LOGITS, 0, 0)) == 1
    assert [token for token, *_ in rank_candidates(LOGITS, 1, 2)] == [1, 4]


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 64},
        {"top_k": 1},
        {"top_k": 40, "top_p": 0.9, "temperature": 0.7},
        {"top_k": 64, "top_p": 0.2, "temperature": 5.0},
        {"temperature": 0.0},
    ],
)
def test_the_largest_logits_are_as_good_as_all(params):
    rng = np.random.default_rng(3)
    logits = np.round(rng.standard_normal((300, 5000)).astype(np.float32) * 8) / 4  # many equal
    logits[7, 20:] = -np.inf
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :64]
    top = TopLogits(
        values=np.take_along_axis(logits, ids, axis=1),
        token_ids=ids.astype(np.int32),
        weights=np.ones(300, np.float32),
    )
    states = [[state(seed=i, **params) for i in range(300)] for _ in range(2)]
    assert all(one.fits(64, 5000) for one in states[0])
    assert sample_top(top, states[0]) == sample(logits, states[1])
    assert [one.rng.random() for one in states[0]] == [one.rng.random() for one in states[1]]


def test_a_row_of_largest_logits_that_are_not_finite_is_an_error():
    top = TopLogits(
        values=np.full((2, 3), np.nan, np.float32),
        token_ids=np.array([[4, 1, 0], [-1, -1, -1]], np.int32),
        weights=np.ones(2, np.float32),
    )
    with pytest.raises(DeviceError, match="1 of 2 rows of logits have no finite maximum"):
        sample_top(top, [state(top_k=2), state(top_k=2)])
