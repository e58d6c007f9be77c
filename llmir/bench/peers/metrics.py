"""What is measured, by name: the same token counts for every side.

    decode_b{B}_d{D}   one token for each of B sequences with max(D, 1) tokens of their own in
                       the cache: WARM_UP_STEPS steps, then `DECODE_STEPS` timed ones, each at
                       a depth one more than the step before
    prefill_{T}        one prompt of T tokens into an empty cache, to its first token's logits;
                       one prompt to warm up, then the timed one

A suffix _t{N} gives the number of threads: prefill_128_t1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from llmir.bench.costs import Span, StepCosts
from llmir.bench.peers.workers.serve import WARM_UP_STEPS
from llmir.errors import OptionError

DECODE_STEPS = 32
DEFAULT_METRICS = (
    "decode_b1_d0",
    "decode_b1_d512",
    "decode_b1_d4096",
    "prefill_512",
    "decode_b32_d128",
    "decode_b16_d512",
)
PLOT_BATCHES, PLOT_BATCH_DEPTH = (1, 2, 4, 8, 16, 32), 128
PLOT_DEPTHS = (0, 512, 1024, 2048, 4096)
UNIT = "tok/s"
_NAME = re.compile(r"(?:decode_b([1-9]\d*)_d(\d+)|prefill_([1-9]\d*))(?:_t([1-9]\d*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row.  Prefill: batch 1, depth 0; decode: prompt_tokens 0.  threads None: as all."""

    batch: int = 1
    depth: int = 0
    prompt_tokens: int = 0
    threads: int | None = None

    @classmethod
    def parse(cls, name: str) -> Metric:
        """The metric of a name.  Raises OptionError."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise OptionError(
                f"no metric {name!r}; a metric is decode_b1_d512 (sequences, depth) or "
                "prefill_512 (tokens), and may end in _t1 (threads)"
            )
        batch, depth, tokens, threads = (int(g) if g else None for g in match.groups())
        if tokens is not None:
            return cls(prompt_tokens=tokens, threads=threads)
        return cls(batch=batch or 1, depth=depth or 0, threads=threads)

    @property
    def name(self) -> str:
        """The inverse of `parse`."""
        suffix = "" if self.threads is None else f"_t{self.threads}"
        if self.prompt_tokens:
            return f"prefill_{self.prompt_tokens}{suffix}"
        return f"decode_b{self.batch}_d{self.depth}{suffix}"

    @property
    def is_prefill(self) -> bool:
        return self.prompt_tokens > 0

    @property
    def tokens_timed(self) -> int:
        """In one round, of all sequences together."""
        return self.prompt_tokens or self.batch * DECODE_STEPS

    @property
    def tokens_per_seq(self) -> int:
        """Most tokens of one sequence in the cache."""
        return self.prompt_tokens or max(self.depth, 1) + WARM_UP_STEPS + DECODE_STEPS

    def command(self, seed: int) -> dict[str, Any]:
        """What a worker is told, as workers/serve.py lists it."""
        if self.is_prefill:
            return {"do": "prefill", "tokens": self.prompt_tokens, "seed": seed}
        counts = {"batch": self.batch, "depth": self.depth, "steps": DECODE_STEPS}
        return {"do": "decode", **counts, "seed": seed}

    def unavoidable_bytes(self, costs: StepCosts) -> float:
        """Decode: bytes that the timed steps of a round read and write."""
        first = max(self.depth, 1) + WARM_UP_STEPS
        steps = [Span(at, at + 1) for at in range(first, first + DECODE_STEPS)]
        return sum(costs.step_bytes([span] * self.batch) for span in steps)

    def unavoidable_flops(self, costs: StepCosts) -> float:
        """Prefill: operations of the timed prompt, with the logits of its last token."""
        return costs.step_flops([Span(0, self.prompt_tokens)], 1)


def plot_metrics() -> tuple[list[Metric], list[Metric]]:
    """Those of the plot: over batch sizes, over depths."""
    batches = [Metric(batch=b, depth=PLOT_BATCH_DEPTH) for b in PLOT_BATCHES]
    return batches, [Metric(depth=d) for d in PLOT_DEPTHS]
