"""The comparison: who is compared with whom, on what, and what came of it.

    free            each side answers every prompt greedily, all prompts at once, token by token
    teacher-forced  both sides of a pair get the prompt and the *reference's* answer, and give the
                    logits of every position at once

So the row of an answer's token i is what the reference chose it from, and its margin where the
answers part is that of the same tokens before.  Sides are opened one after the other, the
references first; logits wait in files meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmir.runtime.base import F32
from llmir.verify.divergence import Divergence, FirstDivergence, first_divergence
from llmir.verify.prompts import VerifyPrompt
from llmir.verify.sides import Side, SidePlan
from llmir.verify.thresholds import Thresholds, broken, is_tie, thresholds_for

StageHook = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt as two sides see it; forced is over the prompt and the answer."""

    name: str
    prompt_tokens: int
    answer_tokens: int
    forced: Divergence
    divergence: FirstDivergence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Two sides compared.

    forced:       over all positions of all prompts
    thresholds:   what was allowed
    reasons:      which of them are broken, in sentences; none: the sides agree
    """

    reference: str
    other: str
    rows: list[PromptRow]
    forced: Divergence
    thresholds: Thresholds
    reasons: list[str]

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def divergences(self) -> list[FirstDivergence]:
        """Where answers part, one for each prompt that does, ties included."""
        return [row.divergence for row in self.rows if row.divergence is not None]

    @property
    def first_divergence(self) -> FirstDivergence | None:
        """Of those the one of the largest margin: the worst."""
        return max(self.divergences, key=lambda d: d.margin, default=None)

    def is_tie(self, divergence: FirstDivergence) -> bool:
        return is_tie(divergence, self.thresholds)


@dataclass(frozen=True, slots=True)
class Pair:
    """Indices of two sides; the reference is opened first."""

    reference: int
    other: int


def compare(
    plans: Sequence[SidePlan],
    pairs: Sequence[Pair],
    prompts: Sequence[VerifyPrompt],
    num_tokens: int,
    given: dict[str, float | None],
    scratch: Path,
    on_stage: StageHook,
) -> list[PairResult]:
    """Compare the sides of each pair.

    Args:
        num_tokens: of each answer
        given: thresholds in the place of the defaults; None: the default
        scratch: a directory for logits, 4 bytes · vocabulary for each position and side
    Raises: as the sides do when they are opened and run; OptionError for a threshold.
    """
    allowed = [
        thresholds_for(plans[p.reference].is_exact and plans[p.other].is_exact, given)
        for p in pairs
    ]
    references = {pair.reference for pair in pairs}
    answers: list[list[list[int]]] = []
    store = _Logits(scratch)
    for index, plan in enumerate(plans):
        with on_stage(f"running {plan.name}"):
            side = plan.open()
            answers.append(side.answer([p.token_ids for p in prompts], num_tokens))
            partners = {pair.reference for pair in pairs if pair.other == index}
            for reference in sorted(partners | ({index} & references)):
                for prompt, answer in zip(prompts, answers[reference], strict=True):
                    store.take(index, side, forced_ids(prompt, answer))
            del side
            gc.collect()  # its memory, before the next one takes as much
    with on_stage("comparing"):
        return [
            _pair(plans, pair, prompts, answers, store, limits)
            for pair, limits in zip(pairs, allowed, strict=True)
        ]


def forced_ids(prompt: VerifyPrompt, answer: Sequence[int]) -> list[int]:
    """What both are given: all but the last token, after which nothing was chosen."""
    return [*prompt.token_ids, *answer[:-1]]


class _Logits:
    """Logits of a side for token ids, each computed once, in files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[tuple[int, tuple[int, ...]], Path] = {}

    def take(self, index: int, side: Side, token_ids: Sequence[int]) -> None:
        key = (index, tuple(token_ids))
        if key not in self._files:
            file = self._directory / f"logits-{len(self._files)}.npy"
            np.save(file, side.logits(token_ids))
            self._files[key] = file

    def of(self, index: int, token_ids: Sequence[int]) -> F32:
        """float32 [T, V], mapped."""
        return np.asarray(np.load(self._files[index, tuple(token_ids)], mmap_mode="r"))


def _pair(
    plans: Sequence[SidePlan],
    pair: Pair,
    prompts: Sequence[VerifyPrompt],
    answers: Sequence[Sequence[list[int]]],
    store: _Logits,
    allowed: Thresholds,
) -> PairResult:
    forced = Divergence()
    rows = []
    for i, prompt in enumerate(prompts):
        answer, other = answers[pair.reference][i], answers[pair.other][i]
        token_ids = forced_ids(prompt, answer)
        next_ids = [*token_ids[1:], answer[-1]]
        expected_TV, found_TV = (store.of(x, token_ids) for x in (pair.reference, pair.other))
        own = Divergence()
        for divergence in (own, forced):
            divergence.add(expected_TV, found_TV, next_ids)
        chosen = slice(len(token_ids) - len(answer), None)
        rows.append(
            PromptRow(
                name=prompt.name,
                prompt_tokens=len(prompt.token_ids),
                answer_tokens=len(answer),
                forced=own,
                divergence=first_divergence(
                    prompt.name, answer, other, expected_TV[chosen], found_TV[chosen]
                ),
            )
        )
    divergences = [row.divergence for row in rows if row.divergence is not None]
    return PairResult(
        reference=plans[pair.reference].name,
        other=plans[pair.other].name,
        rows=rows,
        forced=forced,
        thresholds=allowed,
        reasons=broken(forced, divergences, allowed),
    )
