"""transformers on PyTorch, eager: the model's forward with a key-value cache.

decode   one forward of [batch, 1] tokens per step, logits of each; fixed random tokens, so no
         sampling.  Timed: the forward calls, the growing of a DynamicCache in them.
prefill  one forward of [1, tokens] into an empty cache, logits of the last token.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any


class Side:
    """spec: model (a directory of safetensors), threads."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._torch: Any = import_module("torch")
        self._transformers: Any = import_module("transformers")
        self._torch.set_num_threads(spec["threads"])
        self._model = self._transformers.AutoModelForCausalLM.from_pretrained(
            spec["model"], dtype=self._torch.bfloat16
        ).eval()
        self._vocab_size = self._model.config.vocab_size
        self._filled: tuple[int, int] | None = None
        self._cache: Any = None

    def about(self) -> dict[str, Any]:
        versions = {"torch": self._torch.__version__}
        return {
            "kv_dtype": "bf16",
            "versions": {**versions, "transformers": self._transformers.__version__},
        }

    def prefill(self, tokens: int, seed: int) -> float:
        ids = self._random(seed, 1, tokens)
        seconds = 0.0
        for _ in range(2):  # the first to warm up
            cache = self._transformers.DynamicCache()
            start = time.perf_counter()
            self._forward(ids, cache)
            seconds = time.perf_counter() - start
        return seconds

    def decode(self, batch: int, depth: int, steps: int, seed: int, warm_up: int) -> float:
        depth = max(depth, 1)
        if self._filled != (batch, depth):
            self._cache = self._transformers.DynamicCache()
            self._forward(self._random(0, batch, depth), self._cache)
            self._filled = (batch, depth)
        ids = self._random(seed, batch, warm_up + steps)
        start = time.perf_counter()
        for step in range(warm_up + steps):
            if step == warm_up:
                start = time.perf_counter()
            self._forward(ids[:, step : step + 1], self._cache)
        seconds = time.perf_counter() - start
        self._cache.crop(-(warm_up + steps))
        return seconds

    def _forward(self, ids: Any, cache: Any) -> None:
        with self._torch.inference_mode():
            self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def _random(self, seed: int, rows: int, columns: int) -> Any:
        generator = self._torch.Generator().manual_seed(seed)
        return self._torch.randint(0, self._vocab_size, (rows, columns), generator=generator)


def make(spec: dict[str, Any]) -> None:
    """Dequantise a GGUF file into a bf16 directory.  spec: source, place."""
    import os

    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    directory, name = os.path.split(spec["source"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=name, dtype=torch.bfloat16
    )
    # What came from a GGUF file refuses to be saved: its weights go into a fresh model.
    config = model.config
    config.quantization_config = None
    del config.quantization_config
    config.dtype = torch.bfloat16
    fresh = type(model)(config).to(torch.bfloat16)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(spec["place"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name)
    tokenizer.save_pretrained(spec["place"])
