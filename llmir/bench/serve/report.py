"""How a load is shown: lines and a table for people, one document for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llmir.bench.report import aligned, number
from llmir.bench.serve.client import Endpoint
from llmir.bench.serve.load import Loaded
from llmir.bench.serve.metrics import percentile_name

# What a share of a core that this client takes may do to a server on the same machine.
BUSY_CLIENT_SHARE = 0.25
LATE_S = 0.05

_TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}


def document(
    summary: Mapping[str, Any],
    loaded: Loaded,
    endpoint: Endpoint,
    *,
    request_rate: float,
    burstiness: float,
    max_concurrency: int | None,
    notes: Sequence[str],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The figures with what they were measured of, for `--json`.

    more: further fields, such as those of metrics.details.
    """
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "backend": endpoint.backend,
        "model_id": endpoint.model,
        "base_url": endpoint.base_url,
        "num_prompts": len(loaded.results),
        "request_rate": "inf" if math.isinf(request_rate) else request_rate,
        "burstiness": burstiness,
        "max_concurrency": max_concurrency,
        **summary,
        "client_cpu_share": loaded.client_cpu_share,
        "client_latest_send_ms": 1e3 * loaded.latest_s,
        "notes": list(notes),
        **more,
    }


def text(
    summary: Mapping[str, Any],
    loaded: Loaded,
    *,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    notes: Sequence[str],
) -> str:
    """Lines and a table; the table is Markdown too."""
    lines = [
        f"{summary['completed']} requests answered and {summary['failed']} failed in "
        f"{summary['duration']:.2f} s, at most {summary['max_concurrent_requests']} at a time",
        f"{summary['total_input_tokens']:,} tokens in, {summary['total_output_tokens']:,} out",
        f"{_rate(summary['request_throughput'])} requests/s, "
        f"{_rate(summary['output_throughput'])} output tok/s "
        f"(at most {summary['max_output_tokens_per_s']:.0f} in a second), "
        f"{_rate(summary['total_token_throughput'])} tok/s in all",
    ]
    if summary["request_goodput"] is not None:
        lines.append(f"{_rate(summary['request_goodput'])} requests/s within the goodput's bounds")
    header = ["ms", "mean", "median", "std", *(f"p{p:g}" for p in percentiles)]
    rows = [
        [
            f"{_TITLES[name]} ({name})",
            *(_ms(summary[f"{kind}_{name}_ms"]) for kind in ("mean", "median", "std")),
            *(_ms(summary[percentile_name(name, p)]) for p in percentiles),
        ]
        for name in metrics
    ]
    lines += ["", aligned(header, rows), "", client_line(loaded)]
    lines += [f"note: {note}" for note in notes]
    lines += error_lines(loaded)
    return "\n".join(lines)


def client_line(loaded: Loaded) -> str:
    """What this process took of the machine, and a warning where that was much."""
    line = (
        f"this client took {number(100 * loaded.client_cpu_share)} % of a core and sent requests "
        f"at most {1e3 * loaded.latest_s:.0f} ms late"
    )
    if loaded.client_cpu_share > BUSY_CLIENT_SHARE or loaded.latest_s > LATE_S:
        line += ": on the server's machine that changes what is measured"
    return line


def error_lines(loaded: Loaded) -> list[str]:
    """Each error with how often it came, the most frequent first."""
    counts = Counter(result.error for result in loaded.failed)
    return [f"error ({count} ×): {error}" for error, count in counts.most_common()]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return "" if value is None else number(value)
