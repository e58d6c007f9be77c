"""llmir's own side: the steps of an artifact, as `llmir bench latency` makes them.

decode   timed: the allocation of pages, the making of the batch, the step, until the tokens
         are on the host.  Fixed random tokens, so no sampling.
prefill  the same, in chunks of max_num_batched_tokens, to the first token.
generate LLM.generate, token ids in and out; two of the prompts first, to warm up.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

WARM_UP_TOKENS = 4


class Side:
    """spec: artifact, threads, kv_cache_memory_bytes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from llmir import artifact as artifacts
        from llmir.engine.from_artifact import open_artifact

        artifact = artifacts.load(Path(spec["artifact"]))
        self._manifest = artifact.manifest
        self._opened = open_artifact(
            artifact,
            kv_cache_memory_bytes=spec["kv_cache_memory_bytes"],
            num_threads=spec["threads"],
        )
        self._runner = self._opened.runner
        self._key: tuple[int, int, int] | None = None
        self._seqs: Any = None

    def about(self) -> dict[str, Any]:
        import llmir

        return {
            "kv_dtype": self._manifest.kv.dtype,
            "versions": {"llmir": llmir.__version__, **self._manifest.tools},
        }

    def prefill(self, tokens: int, seed: int) -> float:
        from llmir.bench.cases import Sequences, chunks_of

        self._release()
        seqs = Sequences(self._runner, 1, tokens, seed)
        spans = list(chunks_of(0, tokens, self._runner.limits.max_num_batched_tokens))
        seconds = 0.0
        for _ in range(2):  # the first to warm up
            start = time.perf_counter()
            for span in spans:
                seqs.step(span)
            seconds = time.perf_counter() - start
            seqs.release()
        return seconds

    def decode(self, batch: int, depth: int, steps: int, seed: int, warm_up: int) -> float:
        from llmir.bench.cases import Sequences
        from llmir.bench.costs import Span

        depth = max(depth, 1)
        if self._key != (batch, depth, steps):
            self._release()
            self._seqs = Sequences(self._runner, batch, depth + warm_up + steps, seed)
            self._seqs.fill(depth)
            self._key = (batch, depth, steps)
        start = time.perf_counter()
        for step in range(warm_up + steps):
            if step == warm_up:
                start = time.perf_counter()
            self._seqs.step(Span(depth + step, depth + step + 1))
        return time.perf_counter() - start

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> float:
        self._release()
        self._answer(prompts[:2], WARM_UP_TOKENS, temperature, top_p, seed)
        return self._answer(prompts, max_tokens, temperature, top_p, seed)

    def _answer(
        self,
        prompts: list[list[int]],
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> float:
        from llmir.engine import LLM, SamplingParams

        # An engine of its own: no other has left pages of these prompts.
        opened = self._opened
        llm = LLM(opened.runner, opened.tokenizer, generation_config=opened.generation_config)
        params = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                seed=seed + i,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
            )
            for i in range(len(prompts))
        ]
        start = time.perf_counter()
        outputs = llm.generate(prompts, params)
        seconds = time.perf_counter() - start
        counts = [len(output.outputs[0].token_ids) for output in outputs]
        if counts != [max_tokens] * len(prompts):
            raise RuntimeError(f"expected {max_tokens} tokens of each prompt, got {counts}")
        return seconds

    def _release(self) -> None:
        if self._seqs is not None:
            self._seqs.release()
        self._key = self._seqs = None
