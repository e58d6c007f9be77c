"""What a load came to, with the names of the JSON of `vllm bench serve`.

ttft  time to first token          itl   time between the events with a token
tpot  time per output token after  e2el  end-to-end latency: to the last token
      the first, of a request

Percentiles interpolate between the two nearest values, as numpy's do by default.  Standard
deviations are those of the requests themselves, not estimates for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmir.bench.serve.client import RequestResult
from llmir.errors import OptionError

METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


def summarise(
    results: Sequence[RequestResult],
    duration_s: float,
    *,
    metrics: Sequence[str] = METRICS,
    percentiles: Sequence[float] = (99.0,),
    goodput: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The figures of a load.  Failed requests count as failed, and in nothing else.

    metrics   those of METRICS whose mean, median, deviation and percentiles are wanted
    goodput   metric → most milliseconds; request_goodput counts the requests that keep to all
              of them, and is None without any.  A request of one token has a tpot of 0.
    """
    done = [result for result in results if result.success]
    inputs = sum(result.prompt_tokens for result in done)
    outputs = sum(result.output_tokens for result in done)
    summary: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(results) - len(done),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(done) / duration_s,
        "request_goodput": _num_good(done, goodput) / duration_s if goodput else None,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
        "max_output_tokens_per_s": _most_per_second(done),
        "max_concurrent_requests": max_concurrent(done),
    }
    for name in metrics:
        values_ms = 1e3 * np.array(_values_s(done, name))
        summary |= statistics_ms(name, values_ms, percentiles)
    return summary


def statistics_ms(
    name: str, values_ms: np.ndarray[Any, np.dtype[np.float64]], percentiles: Sequence[float]
) -> dict[str, float | None]:
    """mean, median, std and percentiles of milliseconds, as the JSON names them; None: of none."""
    known = len(values_ms) > 0
    found = {
        f"mean_{name}_ms": float(np.mean(values_ms)) if known else None,
        f"median_{name}_ms": float(np.median(values_ms)) if known else None,
        f"std_{name}_ms": float(np.std(values_ms)) if known else None,
    }
    for percentile in percentiles:
        value = float(np.percentile(values_ms, percentile)) if known else None
        found[percentile_name(name, percentile)] = value
    return found


def percentile_name(name: str, percentile: float) -> str:
    """("ttft", 99.0) → "p99_ttft_ms", ("ttft", 99.9) → "p99.9_ttft_ms"."""
    return f"p{percentile:g}_{name}_ms"


def details(results: Sequence[RequestResult]) -> dict[str, list[Any]]:
    """Every request's own numbers, in seconds, as `--save-detailed` of vLLM names them."""
    return {
        "input_lens": [r.prompt_tokens for r in results],
        "output_lens": [r.output_tokens for r in results],
        "ttfts": [r.ttft_s for r in results],
        "itls": [r.itls_s for r in results],
        "latencies": [r.latency_s for r in results],
        "start_times": [r.start for r in results],
        "queue_times": [r.queue_s for r in results],
        "errors": [r.error for r in results],
    }


def parse_goodput(texts: Iterable[str]) -> dict[str, float]:
    """{"ttft": 500.0} of "ttft:500".  Raises OptionError."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        if name not in GOODPUT_METRICS:
            known = ", ".join(GOODPUT_METRICS)
            raise OptionError(f"goodput {text!r} is not METRIC:MS with a metric of {known}")
        try:
            found[name] = float(value)
        except ValueError:
            raise OptionError(f"goodput {text!r} is not METRIC:MS, such as {name}:500") from None
        if not 0 <= found[name] < math.inf:
            raise OptionError(f"goodput {text!r}: milliseconds must be finite, and not negative")
    return found


def max_concurrent(results: Iterable[RequestResult]) -> int:
    """The most requests that were being answered at one moment."""
    changes = [(r.start, 1) for r in results] + [(r.start + r.latency_s, -1) for r in results]
    most = now = 0
    for _, change in sorted(changes):  # at the same moment an end comes before a start
        now += change
        most = max(most, now)
    return most


def _values_s(done: Sequence[RequestResult], name: str) -> list[float]:
    if name == "itl":
        return [itl for result in done for itl in result.itls_s]
    if name == "e2el":
        return [result.latency_s for result in done]
    values = [result.ttft_s if name == "ttft" else result.tpot_s for result in done]
    return [value for value in values if value is not None]


def _num_good(done: Sequence[RequestResult], goodput: Mapping[str, float]) -> int:
    def is_good(result: RequestResult) -> bool:
        seconds = {
            "ttft": result.ttft_s or 0.0,
            "tpot": result.tpot_s or 0.0,
            "e2el": result.latency_s,
        }
        return all(1e3 * seconds[name] <= most_ms for name, most_ms in goodput.items())

    return sum(map(is_good, done))


def _most_per_second(done: Sequence[RequestResult]) -> float:
    """Events with a token in the second that has most of them, seconds counted from the start."""
    times = np.array([time for result in done for time in result.token_times()])
    if len(times) == 0:
        return 0.0
    first = min(result.start for result in done)
    return float(np.bincount((times - first).astype(np.int64)).max())
