"""What is measured in a row, and the batches of it, on pages that the engine's own manager gives.

prefill   one prompt, in chunks of max_num_batched_tokens, to the first token
decode    one token for each of `batch` sequences, each with `depth` tokens of its own
          in the cache.  Every step is at the same depth: it writes the same slots again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmir.artifact import Limits
from llmir.bench.costs import Span
from llmir.engine.batch import build_batch
from llmir.engine.block_manager import BlockManager
from llmir.engine.sampler import SampleState
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import Chunk
from llmir.engine.sequence import Sequence as EngineSequence
from llmir.errors import OptionError
from llmir.runtime.base import I32, StepRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row.  phase "prefill": depth 0, batch 1; "decode": prompt_tokens 0."""

    phase: str
    batch: int
    prompt_tokens: int
    depth: int

    @classmethod
    def prefill(cls, prompt_tokens: int) -> Case:
        return cls(phase="prefill", batch=1, prompt_tokens=prompt_tokens, depth=0)

    @classmethod
    def decode(cls, batch: int, depth: int) -> Case:
        return cls(phase="decode", batch=batch, prompt_tokens=0, depth=depth)

    @property
    def tokens_per_seq(self) -> int:
        """Tokens of a sequence in the cache, at most."""
        return self.prompt_tokens or self.depth + 1

    @property
    def name(self) -> str:
        """For people."""
        if self.phase == "prefill":
            return f"prefill {self.prompt_tokens}"
        return f"decode {self.batch} at depth {self.depth}"

    def spans(self, budget: int) -> list[list[Span]]:
        """The measured steps: the prompt's chunks, or one decode."""
        if self.phase == "decode":
            return [[Span(self.depth, self.depth + 1)] * self.batch]
        return [[span] for span in chunks_of(0, self.prompt_tokens, budget)]

    def check(self, limits: Limits) -> None:
        """Raises OptionError if the artifact was compiled for less."""
        if self.tokens_per_seq > limits.max_model_len:
            raise OptionError(
                f"{self.name} needs {self.tokens_per_seq} tokens in a sequence; the artifact "
                f"was compiled for {limits.max_model_len}"
            )
        most = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        if self.batch > most:
            raise OptionError(
                f"{self.name} needs {self.batch} sequences in a step; the artifact was "
                f"compiled for {most}"
            )


def chunks_of(start: int, end: int, budget: int) -> Iterator[Span]:
    """start … end - 1 in pieces of at most `budget`."""
    for at in range(start, end, budget):
        yield Span(at, min(at + budget, end))


class Sequences:
    """The sequences of a case, with random tokens that differ between them.

    They hold pages from the first step on, until `release`.
    """

    def __init__(self, runner: StepRunner, num_seqs: int, num_tokens: int, seed: int = 0) -> None:
        self._runner = runner
        self._blocks = BlockManager(runner.limits)
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, runner.limits.vocab_size, (num_seqs, num_tokens))
        self._seqs = [_sequence(str(index), row.tolist()) for index, row in enumerate(ids)]

    def step(self, span: Span) -> tuple[float, I32]:
        """Compute `span` of every sequence in one step.

        Returns its seconds, from index arrays to tokens on the host, and the likeliest token
        of each of the sequences that it completes.
        """
        return self._step(self._seqs, span)

    def fill(self, depth: int) -> None:
        """Compute the first `depth` tokens of each sequence, a sequence at a time."""
        for seq in self._seqs:
            for span in chunks_of(0, depth, self._runner.limits.max_num_batched_tokens):
                self._step([seq], span)

    def release(self) -> None:
        """Give all pages back and begin again."""
        for seq in self._seqs:
            self._blocks.free(seq)
            seq.num_computed_tokens = 0

    def _step(self, seqs: Sequence[EngineSequence], span: Span) -> tuple[float, I32]:
        for seq in seqs:
            self._blocks.allocate(seq, span.end)
        chunks = [Chunk(seq, span.start, span.length) for seq in seqs]
        batch = build_batch(chunks, self._blocks.table)
        start = time.perf_counter()
        tokens = self._runner.step_greedy(batch)
        seconds = time.perf_counter() - start
        for seq in seqs:
            seq.num_computed_tokens = span.end
            self._blocks.advance(seq)
        return seconds, tokens


def _sequence(name: str, token_ids: Sequence[int]) -> EngineSequence:
    """A sequence that wants one token after its prompt."""
    prompt = list(token_ids)
    output: list[int] = []
    state = SampleState(
        params=SamplingParams(max_tokens=1),
        prompt_token_ids=prompt,
        output_token_ids=output,
        stop_ids=(),
        rng=np.random.default_rng(0),
    )
    return EngineSequence(
        request_id=name,
        index=0,
        prompt_token_ids=prompt,
        sampling=state,
        eos_token_ids=frozenset(),
        max_tokens=1,
        output_token_ids=output,
    )
