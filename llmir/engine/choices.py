"""The tokens of a step, chosen from what the runner gave of its rows of logits.

Whole rows leave the device only where somebody wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmir.engine.sampler import SampleState, check_choices, sample, sample_top
from llmir.engine.scheduler import Chunk
from llmir.engine.structured_output import MaskFiller
from llmir.runtime.base import F32, StepBatch, StepRunner, TopLogits


class Choices(Protocol):
    """Chooses tokens; rows are given rising, each once."""

    def choose(self, rows: list[int], states: Sequence[SampleState]) -> Sequence[int | None]:
        """The token of each of these rows; None: its constraint ends the output before it.

        Raises DeviceError: a row has no finite maximum."""
        ...

    def logits(self, row: int) -> F32 | None:
        """The row itself, float32 [V]; None: it stayed on the device."""
        ...


@dataclass(frozen=True, slots=True)
class _Likeliest:
    tokens: list[int]

    def choose(self, rows: list[int], states: Sequence[SampleState]) -> Sequence[int | None]:
        return check_choices([self.tokens[row] for row in rows])

    def logits(self, row: int) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Largest:
    top: TopLogits

    def choose(self, rows: list[int], states: Sequence[SampleState]) -> Sequence[int | None]:
        top = self.top
        part = TopLogits(
            values=top.values[rows], token_ids=top.token_ids[rows], weights=top.weights[rows]
        )
        return sample_top(part, states)

    def logits(self, row: int) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _All:
    rows: F32

    def choose(self, rows: list[int], states: Sequence[SampleState]) -> Sequence[int | None]:
        if len(rows) == 1:  # a view; a list of rows makes a copy, unless it is of all of them
            return sample(self.rows[rows[0] : rows[0] + 1], states)
        whole = len(rows) == len(self.rows)
        return sample(self.rows if whole else self.rows[rows], states)

    def logits(self, row: int) -> F32:
        row_V: F32 = self.rows[row]
        return row_V


def run_step(
    runner: StepRunner, chunks: Sequence[Chunk], batch: StepBatch, masks: MaskFiller
) -> Choices:
    """Run a step with as little of its logits as will do.

    The rows of the result are those that are sampled from, chunk by chunk.  masks: makes those
    of constrained outputs while the device works.
    """
    if all(chunk.seq.prompt_rows is None for chunk in chunks):
        states = [chunk.seq.sampling for chunk in chunks if chunk.samples]
        if all(state.is_argmax for state in states):
            return _Likeliest(runner.step_greedy(batch).tolist())
        if all(state.fits(runner.top_k, runner.limits.vocab_size) for state in states):
            return _Largest(runner.step_topk(batch))
    constraints = [chunk.seq.sampling.constraint for chunk in chunks if chunk.samples]
    with masks.beside([one for one in constraints if one is not None]):
        logits_LV = runner.step(batch)
    return _All(_split_rows(chunks, logits_LV))


def _split_rows(chunks: Sequence[Chunk], logits_LV: F32) -> F32:
    """Give prompt rows to who wants them; returns the rows that are sampled from."""
    if all(chunk.seq.prompt_rows is None for chunk in chunks):
        return logits_LV
    rows: list[int] = []
    taken = 0
    for chunk in chunks:
        wanted = len(chunk.prompt_rows)
        if chunk.seq.prompt_rows is not None:
            chunk.seq.prompt_rows.take(logits_LV[taken : taken + wanted])
        taken += wanted
        if chunk.samples:
            end = taken + 1 + len(chunk.drafts)
            rows += range(taken, end)
            taken = end
    return logits_LV[rows]
