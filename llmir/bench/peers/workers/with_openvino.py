"""OpenVINO GenAI: ContinuousBatchingPipeline, driven step by step.

decode   all sequences are added, with prompts of `depth` random tokens, and stepped until each
         has its first token; then every step gives one more token to each.  Timed: the steps
         after the warm-up, with the pipeline's scheduler and greedy sampling in them, which
         its API does not let one leave out.
prefill  one request for one token: adding it, and the step that answers it.
generate all prompts added, stepped until all are answered; two of them first, to warm up.

Prefix caching is off.  The precision of the KV cache is the runtime's default for the device
unless given.
"""

from __future__ import annotations

import random
import time
from importlib import import_module
from typing import Any

WARM_UP_TOKENS = 4


class Side:
    """spec: model (a GGUF file or an exported directory), threads, max_batched_tokens,
    cache_gb, properties (of the plugin)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._genai: Any = import_module("openvino_genai")
        openvino: Any = import_module("openvino")
        self._tensor = openvino.Tensor
        scheduler = self._genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = spec["max_batched_tokens"]
        scheduler.max_num_seqs = 256
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = spec["cache_gb"]
        properties = {"INFERENCE_NUM_THREADS": spec["threads"], **spec.get("properties", {})}
        self._pipeline = self._genai.ContinuousBatchingPipeline(
            spec["model"], scheduler, "CPU", properties
        )
        vocab = self._pipeline.get_tokenizer().get_vocab()
        self._vocab_size = len(vocab)
        self._kv_dtype = spec.get("properties", {}).get("KV_CACHE_PRECISION", "u8")
        self._next_id = 0
        self._versions = {"openvino-genai": self._genai.__version__}

    def about(self) -> dict[str, Any]:
        return {"kv_dtype": self._kv_dtype, "versions": self._versions}

    def prefill(self, tokens: int, seed: int) -> float:
        seconds = 0.0
        for repeat in range(2):  # the first to warm up
            prompt = self._prompt(2 * seed + repeat, tokens)
            start = time.perf_counter()
            handle = self._add(prompt, 1)  # a request whose handle is gone is cancelled
            while not handle.can_read():
                self._pipeline.step()
            seconds = time.perf_counter() - start
            self._finish()
        return seconds

    def decode(self, batch: int, depth: int, steps: int, seed: int, warm_up: int) -> float:
        # The prompt's own step gives the first token, which the first decoding step computes.
        wanted = 1 + warm_up + steps
        handles = [
            self._add(self._prompt(seed * batch + i, max(depth, 1)), wanted) for i in range(batch)
        ]
        while not all(handle.can_read() for handle in handles):
            if any(handle.can_read() for handle in handles):
                self._finish()
                raise RuntimeError("the prompts did not fit in one step: raise max_batched_tokens")
            self._pipeline.step()
        for _ in range(warm_up):
            self._pipeline.step()
        start = time.perf_counter()
        for _ in range(steps):
            self._pipeline.step()
        seconds = time.perf_counter() - start
        counts = [sum(len(o.generated_ids) for o in h.read_all()) for h in handles]
        self._finish()
        if counts != [wanted] * batch:
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
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p, "rng_seed": seed}
            if temperature
            else {}
        )
        self._answer(prompts[:2], WARM_UP_TOKENS, sampling)
        return self._answer(prompts, max_tokens, sampling)

    def _answer(self, prompts: list[list[int]], max_tokens: int, sampling: dict[str, Any]) -> float:
        start = time.perf_counter()
        handles = [self._add(prompt, max_tokens, **sampling) for prompt in prompts]
        self._finish()
        counts = [sum(len(o.generated_ids) for o in h.read_all()) for h in handles]
        seconds = time.perf_counter() - start
        if counts != [max_tokens] * len(prompts):
            raise RuntimeError(f"expected {max_tokens} tokens of each prompt, got {counts}")
        return seconds

    def _add(self, prompt: list[int], max_new_tokens: int, **sampling: Any) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_new_tokens
        config.ignore_eos = True
        config.do_sample = False
        for name, value in sampling.items():
            setattr(config, name, value)
        self._next_id += 1
        numpy: Any = import_module("numpy")
        ids = self._tensor(numpy.array([prompt], dtype=numpy.int64))
        return self._pipeline.add_request(self._next_id, ids, config)

    def _prompt(self, seed: int, tokens: int) -> list[int]:
        rng = random.Random(seed)
        return [rng.randrange(self._vocab_size) for _ in range(tokens)]

    def _finish(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
