"""llama.cpp, through the low-level API of llama-cpp-python.

decode   one llama_decode for the `batch` sequences per step, logits of each; fixed random
         tokens, so no sampling.  Timed: filling the batch, llama_decode, llama_synchronize
         and getting hold of the logits.
prefill  one llama_decode of the whole prompt into an empty cache, logits of its last token.
generate the prompts in batches of UBATCH_TOKENS, several in one; then a token of each per
         step, the likeliest, found with numpy; two of the prompts first, to warm up.
logits   llama_decode of UBATCH_TOKENS tokens at a time into an empty cache, logits of all.

A filled cache is kept for the next round of the same metric: what a round appended is
removed from it.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from importlib import import_module
from typing import Any

UBATCH_TOKENS = 512
WARM_UP_TOKENS = 4
CONTEXT_MULTIPLE = 256
FILE_TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
KV_TYPES = {"f16": 1, "q8_0": 8}


class Side:
    """spec: model, threads; flash_attention (-1 auto, 0, 1), kv_unified, kv_dtype (of KV_TYPES)
    and repack if not the default."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._api: Any = import_module("llama_cpp")
        self._spec = spec
        self._log = self._api.llama_log_callback(_log_errors)  # kept: llama.cpp has its address
        self._api.llama_log_set(self._log, None)
        self._api.llama_backend_init()
        params = self._api.llama_model_default_params()
        params.use_extra_bufts = spec.get("repack", True)
        self._model = self._api.llama_model_load_from_file(spec["model"].encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {spec['model']}")
        vocab = self._api.llama_model_get_vocab(self._model)
        self._vocab_size = self._api.llama_vocab_n_tokens(vocab)
        self._context: Any = None
        self._filled: tuple[int, int] | None = None
        self._context_size = (0, 0)

    def about(self) -> dict[str, Any]:
        system = self._api.llama_print_system_info().decode().strip()
        return {
            "kv_dtype": self._spec.get("kv_dtype", "f16"),
            "versions": {"llama-cpp-python": self._api.__version__},
            "note": system,
        }

    def prefill(self, tokens: int, seed: int) -> float:
        self._open(1, tokens)
        self._filled = None
        seconds = 0.0
        for _ in range(2):  # the first to warm up
            self._api.llama_memory_clear(self._memory(), False)
            start = time.perf_counter()
            self._run(self._random(seed, tokens), [0], 0, last_only=True)
            seconds = time.perf_counter() - start
        return seconds

    def decode(self, batch: int, depth: int, steps: int, seed: int, warm_up: int) -> float:
        depth = max(depth, 1)
        self._open(batch, depth + warm_up + steps)
        if self._filled != (batch, depth):
            # A context may be that of another depth: it holds other tokens.
            self._api.llama_memory_clear(self._memory(), False)
            for seq in range(batch):
                ids = self._random(seq, depth)
                for at in range(0, depth, UBATCH_TOKENS):
                    self._run(ids[at : at + UBATCH_TOKENS], [seq], at, last_only=True)
            self._filled = (batch, depth)
        rows = [self._random(seed + step, batch) for step in range(warm_up + steps)]
        start = time.perf_counter()
        for step, ids in enumerate(rows):
            if step == warm_up:
                start = time.perf_counter()
            self._run(ids, list(range(batch)), depth + step, last_only=False)
        seconds = time.perf_counter() - start
        for seq in range(batch):
            self._api.llama_memory_seq_rm(self._memory(), seq, depth, -1)
        return seconds

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> float:
        if temperature:
            raise ValueError("this worker generates greedily alone")
        self._open(len(prompts), max(map(len, prompts)) + max_tokens)
        self._answer(prompts[:2], WARM_UP_TOKENS)
        return self._answer(prompts, max_tokens)

    def _answer(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Seconds until each prompt has its tokens."""
        self._filled = None
        self._api.llama_memory_clear(self._memory(), False)
        rows = [
            (token, position, seq, position == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        start = time.perf_counter()
        newest = [0] * len(prompts)
        for at in range(0, len(rows), UBATCH_TOKENS):
            part = rows[at : at + UBATCH_TOKENS]
            self._decode(part)
            for i, (_, _, seq, wanted) in enumerate(part):
                if wanted:
                    newest[seq] = self._likeliest(i)
        for step in range(max_tokens - 1):
            self._decode(
                [(newest[seq], len(prompt) + step, seq, True) for seq, prompt in enumerate(prompts)]
            )
            newest = [self._likeliest(i) for i in range(len(prompts))]
        return time.perf_counter() - start

    def _likeliest(self, row: int) -> int:
        numpy: Any = import_module("numpy")
        logits = self._api.llama_get_logits_ith(self._context, row)
        return int(numpy.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def logits(self, tokens: list[int], place: str) -> None:
        """Teacher-forced logits of all tokens into the file `place`, float32 [tokens, V]."""
        self._open(1, len(tokens))
        self._filled = None
        self._api.llama_memory_clear(self._memory(), False)
        with open(place, "wb") as out:
            for at in range(0, len(tokens), UBATCH_TOKENS):
                ids = tokens[at : at + UBATCH_TOKENS]
                self._run(ids, [0], at, last_only=True, all_logits=True)
                rows = self._api.llama_get_logits(self._context)
                out.write(ctypes.string_at(rows, len(ids) * self._vocab_size * 4))

    def _random(self, seed: int, count: int) -> list[int]:
        rng = random.Random(seed)
        return [rng.randrange(self._vocab_size) for _ in range(count)]

    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context)

    def _open(self, num_seqs: int, tokens_per_seq: int) -> None:
        """A context of this size; the one that is there if it has it."""
        rounded = -(-tokens_per_seq // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        if self._context is not None and self._context_size == (num_seqs, rounded):
            return
        if self._context is not None:
            self._api.llama_free(self._context)
        params = self._api.llama_context_default_params()
        params.n_ctx = num_seqs * rounded
        params.n_seq_max = num_seqs
        params.n_batch = params.n_ubatch = UBATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._spec["threads"]
        params.flash_attn_type = self._spec.get("flash_attention", params.flash_attn_type)
        params.kv_unified = self._spec.get("kv_unified", params.kv_unified)
        params.type_k = params.type_v = KV_TYPES[self._spec.get("kv_dtype", "f16")]
        params.no_perf = True
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            raise MemoryError(f"no context of {num_seqs} × {rounded} tokens")
        self._context_size, self._filled = (num_seqs, rounded), None
        self._batch = self._api.llama_batch_init(UBATCH_TOKENS, 0, 1)

    def _run(
        self,
        ids: list[int],
        seqs: list[int],
        position: int,
        *,
        last_only: bool,
        all_logits: bool = False,
    ) -> None:
        """One llama_decode: of one sequence from `position` on, or of one token of each.

        last_only: of one sequence, with the logits of its last token unless of all.
        """
        self._decode(
            [
                (
                    token,
                    position + i if last_only else position,
                    seqs[0] if last_only else seqs[i],
                    all_logits or not last_only or i == len(ids) - 1,
                )
                for i, token in enumerate(ids)
            ]
        )
        for i in range(len(ids)) if not last_only else [len(ids) - 1]:
            self._api.llama_get_logits_ith(self._context, i)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One llama_decode of (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, seq, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = wanted
        if status := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        self._api.llama_synchronize(self._context)


def _log_errors(level: int, text: bytes, user_data: object) -> None:
    """What llama.cpp says of warnings and errors; it says much more."""
    if level in (3, 4):
        sys.stderr.write(text.decode(errors="replace"))


def make(spec: dict[str, Any]) -> None:
    """Requantise a GGUF file.  spec: source, place, format (one of FILE_TYPES)."""
    api: Any = import_module("llama_cpp")
    params = api.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[spec["format"]]
    params.allow_requantize = True
    status = api.llama_model_quantize(spec["source"].encode(), spec["place"].encode(), params)
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")
