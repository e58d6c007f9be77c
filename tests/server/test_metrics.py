"""/metrics, as Prometheus' own parsers read it."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families
from server.helpers import SlowRunner, live_server, make_llm, serve

GAUGES = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}
COUNTERS = {
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
    "iterations",
    "iteration_tokens",
}
HISTOGRAMS = {
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
}


def values_of(page: str) -> dict[str, float]:
    """name{labels but the model's} → value."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            assert sample.labels["model_name"] == "fake"
            name = sample.name.removeprefix("llmir:")
            found[name + "".join(f"{{{k}={v}}}" for k, v in labels.items())] = sample.value
    return found


def test_every_metric_is_there_with_its_type():
    async def main(server):
        response = await server.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        families = {f.name: f.type for f in text_string_to_metric_families(response.text)}
        for names, kind in ((GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")):
            for name in names:
                assert families.pop(f"llmir:{name}") == kind
        assert all(name.endswith("_created") for name in families)
        # Whoever would rather have OpenMetrics reads the same.
        again = await server.client.get(
            "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        assert again.headers["content-type"] == response.headers["content-type"]

    serve(main)


def test_what_is_counted():
    prompt = list(range(5, 25))

    async def main(server):
        request = {"prompt": prompt, "temperature": 0, "max_tokens": 7}
        await server.ok("/v1/completions", request)
        await server.ok("/v1/completions", {**request, "n": 2})
        await server.events("/v1/completions", {**request, "stop_token_ids": list(range(372))})
        await server.error("/v1/completions", {"prompt": [5] * 600})
        values = values_of((await server.client.get("/metrics")).text)
        assert values["request_success_total{finished_reason=length}"] == 2
        assert values["request_success_total{finished_reason=stop}"] == 1
        assert values["request_success_total{finished_reason=abort}"] == 0
        assert values["prompt_tokens_total"] == 60
        assert values["generation_tokens_total"] == 7 + 14 + 1
        assert values["request_generation_tokens_sum"] == 22
        assert values["request_prompt_tokens_sum"] == 60
        assert values["request_prompt_tokens_bucket{le=20.0}"] == 3
        assert values["request_prompt_tokens_bucket{le=10.0}"] == 0
        assert values["request_params_n_sum"] == 4
        assert values["request_params_max_tokens_sum"] == 21
        assert values["prefix_cache_hits_total"] >= 32
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
            assert values[f"{name}_seconds_count"] == 3
        assert values["time_to_first_token_seconds_sum"] < values["e2e_request_latency_seconds_sum"]
        assert values["num_requests_running"] == 0
        assert values["kv_cache_usage_perc"] == 0

    serve(main)


def test_gaps_between_tokens_of_streams():
    with live_server(make_llm(SlowRunner())) as server:
        body = {"prompt": "a", "max_tokens": 9, "ignore_eos": True}
        httpx.post(f"{server.url}/v1/completions", json=body)
        values = values_of(httpx.get(f"{server.url}/metrics").text)
        assert values["inter_token_latency_seconds_count"] == 0
        assert values["request_time_per_output_token_seconds_count"] == 1
        assert values["request_time_per_output_token_seconds_sum"] >= SlowRunner.seconds
        httpx.post(f"{server.url}/v1/completions", json={**body, "stream": True})
        values = values_of(httpx.get(f"{server.url}/metrics").text)
        assert values["inter_token_latency_seconds_count"] == 8
        assert values["inter_token_latency_seconds_sum"] >= 7 * SlowRunner.seconds
        assert values["request_decode_time_seconds_sum"] >= 2 * 8 * SlowRunner.seconds


def test_failed_requests_are_counted():
    runner = SlowRunner()
    runner.fail_at = 0

    async def main(server):
        await server.error("/v1/completions", {"prompt": "a"}, 500)
        values = values_of((await server.client.get("/metrics")).text)
        assert values["request_success_total{finished_reason=error}"] == 1

    serve(main, make_llm(runner))
