"""When two sides agree: the limits of `llmir verify`, and who breaks one.

The defaults are of two kinds, by what the two sides round.

exact: both compute with float32 activations and keys, as `--activations f32 --kv-dtype f32`
compiles. Then they differ by the order of sums alone. Seen on the demo model's CPU module beside
transformers: logits of up to 38 off by 1e-4, and a mean KL of 2e-11. The limits leave room for
deeper models and for devices with coarser exponentials, and are two orders of magnitude below
what rounding activations to 8 bits does.

rounded: one of the sides rounds activations or keys, as artifacts do by default on CPUs. Seen
on the demo model and the built-in prompts, beside the same artifact in float32: mean KL 1.35e-3,
top-1 97.4 %, a logit off by 1.3, and answers that part at margins of up to 0.28. The limits of
KL and top-1 lie a little above what llama.cpp's rounding gives on the same file (3.3e-3 and
96 %: benchmarks/results/accuracy_*). Single logits differ most where nobody looks, far down in
the distribution, so that limit is wide.

A greedy token that differs where the reference's two best logits are nearer than `margin` is a
tie: either is right. Of sides that round, what is a tie is wider, as their logits differ by more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from llmir.errors import OptionError
from llmir.verify.divergence import Divergence, FirstDivergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What two sides may differ by.

    max_logit_diff:  the largest |difference| of a logit, teacher-forced
    max_kl:          mean KL(reference ‖ other) in nats
    min_top1:        share of positions where the likeliest token is the same
    margin:          greedy tokens may differ where the reference's two best logits are nearer
    """

    max_logit_diff: float
    max_kl: float
    min_top1: float
    margin: float


EXACT = Thresholds(max_logit_diff=0.05, max_kl=1e-5, min_top1=0.99, margin=1e-2)
ROUNDED = Thresholds(max_logit_diff=5.0, max_kl=5e-3, min_top1=0.95, margin=0.5)


def thresholds_for(is_exact: bool, given: dict[str, float | None]) -> Thresholds:
    """The defaults with what was given instead.  Raises OptionError for a value out of range."""
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if not value >= 0 or (name == "min_top1" and value > 1):
            limit = "0 to 1" if name == "min_top1" else "0 or more"
            raise OptionError(f"{name.replace('_', '-')} must be {limit}, got {value}")
    return dataclasses.replace(EXACT if is_exact else ROUNDED, **chosen)


def broken(
    found: Divergence, divergences: Sequence[FirstDivergence], allowed: Thresholds
) -> list[str]:
    """A sentence for each limit that is broken; none if the sides agree."""
    reasons = []
    if found.num_not_finite:
        reasons.append(f"{found.num_not_finite} rows of logits hold NaN or infinity")
    if not found.max_abs_difference <= allowed.max_logit_diff:
        reasons.append(
            f"a logit differs by {found.max_abs_difference:.3g}, more than "
            f"{allowed.max_logit_diff:g}"
        )
    if not found.mean_kl <= allowed.max_kl:
        reasons.append(f"mean KL is {found.mean_kl:.3g}, more than {allowed.max_kl:g}")
    if not found.agreement >= allowed.min_top1:
        reasons.append(
            f"top-1 agreement is {100 * found.agreement:.2f} %, less than "
            f"{100 * allowed.min_top1:g} %"
        )
    for divergence in divergences:
        if not is_tie(divergence, allowed):
            reasons.append(
                f"the greedy answer to {divergence.prompt!r} differs from token "
                f"{divergence.position} on, where the reference's margin is {divergence.margin:.3g}"
            )
    return reasons


def is_tie(divergence: FirstDivergence, allowed: Thresholds) -> bool:
    """Whether either token was right."""
    return divergence.margin < allowed.margin
