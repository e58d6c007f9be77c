"""What the scheduler is told at its start."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmir.errors import OptionError, UnknownNameError
from llmir.runtime.base import StepLimits

DEFAULT_LOGIT_ROWS = 256
"""Rows of logits in one step: of a large vocabulary, some hundred kilobytes each."""

DEFAULT_MAX_OVERTAKES = 64

ADMISSIONS = ("guaranteed_no_evict", "max_utilization")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much one step does, and in which order.  None: as much as the artifact allows.

    max_num_batched_tokens  tokens in a step
    max_num_seqs            sequences that run at a time
    max_logit_rows          rows of logits in a step, of which scoring wants one per token
    max_prefill_chunk       tokens of one sequence in a step
    max_prefill_per_decode  in a step in which others decode, tokens of prompts for each of them,
                            and some more for each prompt (scheduler.LEAST_PREFILL): the time
                            between two tokens of an answer stays short while long prompts
                            arrive, and these take longer; None: no such bound, which is best
                            for throughput alone
    prefill_splits          positions that no chunk crosses; with it a test can split a
                            prompt anywhere
    enable_prefix_caching   sequences that begin alike share the KV pages of what they share
    scheduling_policy       "fcfs", "priority" or "lpm": see engine.policies
    max_overtakes           how often the request that has waited longest is passed over by another
                            before it goes first, whatever the policy says; also how often one
                            that runs is preempted for the sake of one that came later
    admission               "max_utilization" begins a request when the tokens that it has fit, and
                            preempts the last one when pages run out; "guaranteed_no_evict" when
                            all that it may become does, and never preempts anyone
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_logit_rows: int | None = None
    max_prefill_chunk: int | None = None
    max_prefill_per_decode: float | None = None
    prefill_splits: tuple[int, ...] = ()
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    max_overtakes: int = DEFAULT_MAX_OVERTAKES
    admission: str = "max_utilization"

    def check(self, limits: StepLimits) -> None:
        """Raises OptionError, UnknownNameError: a value that cannot be, or not in these limits."""
        tokens = limits.max_num_batched_tokens
        _check_between("max_num_batched_tokens", self.max_num_batched_tokens, 1, tokens)
        _check_between("max_num_seqs", self.max_num_seqs, 1, limits.max_num_seqs)
        _check_between(
            "max_prefill_chunk", self.max_prefill_chunk, 1, self.max_num_batched_tokens or tokens
        )
        per_decode = self.max_prefill_per_decode
        if per_decode is not None and not (
            isinstance(per_decode, int | float) and math.isfinite(per_decode) and per_decode >= 0
        ):
            raise OptionError(
                f"max_prefill_per_decode must be a number, at least 0, or None, not {per_decode!r}"
            )
        _check_between("max_logit_rows", self.max_logit_rows, 1, None)
        _check_between("max_overtakes", self.max_overtakes, 0, None)
        if self.admission not in ADMISSIONS:
            raise UnknownNameError("admission", self.admission, ADMISSIONS)
        if self.scheduling_policy == "lpm" and not self.enable_prefix_caching:
            raise OptionError(
                "scheduling_policy 'lpm' orders requests by what the prefix cache has of them, "
                "and enable_prefix_caching is off"
            )


def _check_between(name: str, value: int | None, least: int, most: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"between {least} and {most}"
        raise OptionError(f"{name} must be {allowed}, not {value!r}")
