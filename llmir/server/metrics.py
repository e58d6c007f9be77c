"""`/metrics`: vLLM's names under `llmir:`, in Prometheus' text format.

What the engine counts is asked of it when somebody looks; what a request took is noted as its
outputs pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmir.engine import AsyncLLM, RequestOutput, SamplingParams

PREFIX = "llmir:"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
_BETWEEN_TOKENS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST = (
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0,
)  # fmt: skip
_TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_SMALL_NUMBERS = (1, 2, 5, 10, 20)


class _EngineCollector(Collector):
    """The engine's own numbers, as they are when somebody looks."""

    def __init__(self, engine: AsyncLLM, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        gauges = {
            "num_requests_running": ("Sequences in the batch.", stats.num_running),
            "num_requests_waiting": ("Sequences that wait to be run.", stats.num_waiting),
            "kv_cache_usage_perc": ("KV cache in use; 1 is all of it.", stats.kv_cache_usage),
        }
        counters = {
            "prefix_cache_queries": (
                "Prompt tokens that were looked for in the prefix cache.",
                stats.prefix_cache_queries,
            ),
            "prefix_cache_hits": (
                "Prompt tokens that were found in the prefix cache.",
                stats.prefix_cache_hits,
            ),
            "num_preemptions": (
                "Sequences that lost their KV pages to others.",
                stats.num_preemptions,
            ),
            "prompt_tokens": ("Prompt tokens computed or reused.", stats.prompt_tokens),
            "generation_tokens": ("Tokens sampled.", stats.generation_tokens),
            "spec_decode_num_drafts": ("Drafts verified.", stats.num_drafts),
            "spec_decode_num_draft_tokens": ("Tokens drafted.", stats.num_draft_tokens),
            "spec_decode_num_accepted_tokens": (
                "Drafted tokens that were right.",
                stats.num_accepted_tokens,
            ),
            "iterations": ("Steps run.", stats.num_steps),
            "iteration_tokens": ("Tokens in the steps run.", stats.num_batched_tokens),
        }
        for name, (help, value) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, help, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, (help, value) in counters.items():
            counter = CounterMetricFamily(PREFIX + name, help, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


class Metrics:
    """All numbers of a server, in a registry of its own."""

    def __init__(self, engine: AsyncLLM, model_name: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_EngineCollector(engine, model_name))
        self._model_name = model_name
        self._success = Counter(
            PREFIX + "request_success",
            "Requests that ended, by how their first output did.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(model_name, reason)
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds",
            "Between the tokens of answers that are streamed.",
            _BETWEEN_TOKENS,
        )
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first, of a request.",
            _BETWEEN_TOKENS,
        )
        self.request = self._histogram(
            "e2e_request_latency_seconds", "From arrival to the end.", _REQUEST
        )
        self.queue = self._histogram(
            "request_queue_time_seconds", "From arrival to the first step.", _REQUEST
        )
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", _REQUEST
        )
        self.decode = self._histogram(
            "request_decode_time_seconds", "From the first token to the last.", _REQUEST
        )
        self.prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens of a prompt.", _TOKENS
        )
        self.generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens of a request's outputs.", _TOKENS
        )
        self.max_tokens = self._histogram(
            "request_params_max_tokens", "The max_tokens that requests ask for.", _TOKENS
        )
        self.n = self._histogram("request_params_n", "The n that requests ask for.", _SMALL_NUMBERS)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            PREFIX + name, help, ["model_name"], buckets=buckets, registry=self.registry
        )
        return family.labels(self._model_name)

    def ended(self, reason: str) -> None:
        """Count a request that has ended."""
        self._success.labels(self._model_name, reason).inc()

    def watch(self, params: SamplingParams, num_requests: int) -> Watch:
        """Notes how the requests of some work go."""
        return Watch(self, params, num_requests)

    def render(self) -> bytes:
        """The page, in CONTENT_TYPE.

        Whatever a client would accept: in OpenMetrics the library rewrites the colons of samples,
        and not those of their types.
        """
        return generate_latest(self.registry)


class Watch:
    """The requests of some work, from the engine's taking them to their ends."""

    def __init__(self, metrics: Metrics, params: SamplingParams, num_requests: int) -> None:
        self._metrics = metrics
        self._params = params
        self._open = set(range(num_requests))
        # When the last tokens of an output came: (request, output) → seconds.
        self._seen: dict[tuple[int, int], float] = {}
        self._num_tokens = [0] * num_requests

    def take(self, index: int, output: RequestOutput, *, streamed: bool) -> None:
        """Note an output of request `index`; if it is streamed it holds what is new alone."""
        self._num_tokens[index] += sum(len(part.token_ids) for part in output.outputs)
        if streamed:
            self._note_gaps(index, output)
        if output.finished:
            self._open.discard(index)
            self._note_end(output, self._num_tokens[index])

    def end(self, reason: str) -> None:
        """Those that have not ended by themselves end here: "abort" or "error"."""
        for _ in self._open:
            self._metrics.ended(reason)
        self._open.clear()

    def _note_gaps(self, index: int, output: RequestOutput) -> None:
        now = time.monotonic()
        for part in output.outputs:
            if not part.token_ids:
                continue
            before = self._seen.get((index, part.index))
            self._seen[index, part.index] = now
            if before is not None:
                # Tokens that come together are one event to who reads, as they are to vLLM.
                self._metrics.between_tokens.observe(now - before)

    def _note_end(self, output: RequestOutput, num_tokens: int) -> None:
        metrics, times = self._metrics, output.metrics
        metrics.ended(output.outputs[0].finish_reason or "abort")
        metrics.prompt_tokens.observe(len(output.prompt_token_ids))
        metrics.generation_tokens.observe(num_tokens)
        metrics.n.observe(self._params.n)
        if self._params.max_tokens is not None:
            metrics.max_tokens.observe(self._params.max_tokens)
        start, first, end = times.first_scheduled_time, times.first_token_time, times.finished_time
        if end is not None:
            metrics.request.observe(end - times.arrival_time)
        if start is not None:
            metrics.queue.observe(start - times.arrival_time)
        if first is not None:
            metrics.first_token.observe(first - times.arrival_time)
            if start is not None:
                metrics.prefill.observe(first - start)
            if end is not None:
                metrics.decode.observe(end - first)
                if num_tokens > self._params.n:
                    metrics.per_token.observe((end - first) / (num_tokens / self._params.n - 1))
