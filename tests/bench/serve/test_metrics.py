"""The figures of results that are made by hand, against numpy and against counting."""

from __future__ import annotations

import numpy as np
import pytest

from llmir.bench.serve.client import RequestResult
from llmir.bench.serve.metrics import (
    details,
    max_concurrent,
    parse_goodput,
    percentile_name,
    summarise,
)
from llmir.errors import OptionError

# What `vllm bench serve --save-result` of vLLM 0.32 writes, as far as it is of a load.
VLLM_NAMES = {
    *"duration completed failed total_input_tokens total_output_tokens".split(),
    *"request_throughput request_goodput output_throughput total_token_throughput".split(),
    *"max_output_tokens_per_s max_concurrent_requests".split(),
    *(
        f"{kind}_{m}_ms"
        for kind in ("mean", "median", "std", "p99")
        for m in ("ttft", "tpot", "itl", "e2el")
    ),
}


def result(start: float, ttft: float, itls: list[float], **more: object) -> RequestResult:
    made = RequestResult(start=start, prompt_tokens=10)
    made.ttft_s, made.itls_s = ttft, itls
    made.latency_s = ttft + sum(itls)
    made.output_tokens = 1 + len(itls)
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def results() -> list[RequestResult]:
    rng = np.random.default_rng(0)
    made = [
        result(
            i * 0.1, rng.uniform(0.1, 0.5), rng.uniform(0.01, 0.05, rng.integers(1, 20)).tolist()
        )
        for i in range(50)
    ]
    made.append(result(1.0, 9.0, [9.0], error="broken"))
    return made


def test_statistics_are_numpys_over_what_succeeded(results: list[RequestResult]) -> None:
    found = summarise(results, 10.0, percentiles=[50, 99, 99.9])
    done = results[:-1]
    expected = {
        "ttft": [r.ttft_s for r in done],
        "itl": np.concatenate([r.itls_s for r in done]),
        "e2el": [r.latency_s for r in done],
        "tpot": [(r.latency_s - r.ttft_s) / len(r.itls_s) for r in done],
    }
    for name, seconds in expected.items():
        ms = 1e3 * np.asarray(seconds)
        assert found[f"mean_{name}_ms"] == pytest.approx(ms.mean())
        assert found[f"median_{name}_ms"] == pytest.approx(np.median(ms))
        assert found[f"std_{name}_ms"] == pytest.approx(ms.std())
        for p in (50, 99, 99.9):
            assert found[f"p{p}_{name}_ms"] == pytest.approx(np.percentile(ms, p))
    tokens = sum(1 + len(r.itls_s) for r in done)
    assert found["completed"] == 50
    assert found["failed"] == 1
    assert found["total_input_tokens"] == 500
    assert found["total_output_tokens"] == tokens
    assert found["request_throughput"] == pytest.approx(5.0)
    assert found["output_throughput"] == pytest.approx(tokens / 10)
    assert found["total_token_throughput"] == pytest.approx((tokens + 500) / 10)


def test_names_are_those_of_vllm(results: list[RequestResult]) -> None:
    assert set(summarise(results, 1.0)) == VLLM_NAMES
    assert set(details(results)) == {
        *"input_lens output_lens ttfts itls latencies start_times queue_times errors".split()
    }
    assert percentile_name("itl", 99.0) == "p99_itl_ms"
    assert percentile_name("itl", 99.9) == "p99.9_itl_ms"


def test_only_the_metrics_asked_for_have_statistics(results: list[RequestResult]) -> None:
    found = summarise(results, 1.0, metrics=["ttft"], percentiles=[25])
    assert {n for n in found if n.endswith("_ms")} == {
        *"mean_ttft_ms median_ttft_ms std_ttft_ms p25_ttft_ms".split()
    }


def test_goodput_counts_the_requests_that_keep_to_every_bound() -> None:
    fast, slow_start, slow_tokens = (
        result(0, 0.1, [0.02, 0.02]),
        result(0, 0.6, [0.02, 0.02]),
        result(0, 0.1, [0.09, 0.09]),
    )
    one_token = result(0, 0.1, [])
    failed = result(0, 0.1, [0.02], error="broken")
    all_of_them = [fast, slow_start, slow_tokens, one_token, failed]
    bounds = parse_goodput(["ttft:500", "tpot:50"])
    assert summarise(all_of_them, 2.0, goodput=bounds)["request_goodput"] == 1.0
    assert summarise(all_of_them, 2.0, goodput={"ttft": 500})["request_goodput"] == 1.5
    assert summarise(all_of_them, 2.0, goodput={"e2el": 10})["request_goodput"] == 0.0
    assert summarise(all_of_them, 2.0)["request_goodput"] is None


@pytest.mark.parametrize("text", ["itl:5", "ttft", "ttft:", "ttft:fast", "tpot:-1", "tpot:nan"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="goodput"):
        parse_goodput([text])


def test_concurrency_and_the_busiest_second_are_counted() -> None:
    overlapping = [
        result(0.0, 1.0, []),
        result(0.5, 1.0, []),
        result(1.0, 1.0, []),
        result(3.0, 0.1, []),
    ]
    assert max_concurrent(overlapping) == 2  # the first ends as the third begins
    burst = [result(0.0, 0.9, [0.2, 0.2, 0.2, 0.2]), result(0.0, 1.5, [])]
    # Tokens at 0.9, 1.1, 1.3, 1.5, 1.7 and 1.5: five of them in the second second.
    assert summarise(burst, 2.0)["max_output_tokens_per_s"] == 5


def test_nothing_answered_has_no_statistics() -> None:
    found = summarise([result(0, 1.0, [], error="broken")], 1.0)
    assert found["completed"] == 0
    assert found["mean_ttft_ms"] is None
    assert found["output_throughput"] == 0
