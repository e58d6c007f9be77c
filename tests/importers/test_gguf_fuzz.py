"""A thousand mutated GGUF files: an error of ours or a model, in bounded time and memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import tokenizers

from llmir.errors import ModelError
from llmir.importers.gguf import import_gguf

from . import gguf_files as tiny

_EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0xFFFF,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 60,
    1 << 63,
    (1 << 64) - 1,
)
_MAX_SECONDS = 2.0
_MAX_BYTES = 32 << 20


def mutate(data: bytes, header: int, rng: random.Random) -> bytes:
    """Flip bytes, cut the end off, or put an extreme number somewhere; mostly in the header."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        limit = header if rng.random() < 0.9 else len(out)
        at = rng.randrange(max(min(limit, len(out)), 1))
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)])
            case 2:
                out[at : at + 8] = struct.pack("<Q", rng.choice(_EXTREMES))
            case 3:
                out[at : at + 4] = struct.pack("<I", rng.choice(_EXTREMES) & 0xFFFFFFFF)
            case _ if rng.random() < 0.3:
                del out[at:]
            case _:  # a run copied elsewhere: repeated keys, tensors and tokens
                length = rng.randrange(1, 64)
                to = rng.randrange(header)
                out[to : to + length] = data[at : at + length]
    return bytes(out)


@pytest.fixture(params=["gpt2", "llama"])
def valid(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    path = tmp_path / "valid.gguf"
    meta = {
        "tokenizer.ggml.model": request.param,
        "tokenizer.ggml.scores": [-float(i) for i in range(tiny.V)],
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 2.0,
    }
    tiny.write_model(path, meta=meta)
    import_gguf(path)
    return path.read_bytes()


def test_mutated_files(valid: bytes, tmp_path: Path) -> None:
    header = len(valid) - 4 * sum(w.size for w in tiny.random_weights().values())
    rng = random.Random(2)
    path = tmp_path / "m.gguf"
    outcomes: Counter[str] = Counter()
    longest_message = 0
    for index in range(500):
        path.write_bytes(mutate(valid, header, rng))
        tracemalloc.start()
        start = time.perf_counter()
        try:
            model = import_gguf(path)
        except ModelError as error:
            outcomes[type(error).__name__] += 1
            longest_message = max(longest_message, len(str(error)))
        else:
            outcomes["valid"] += 1
            for weight in model.weights.values():
                assert weight.dequantize().shape == weight.shape
            if model.tokenizer is not None:
                tokenizers.Tokenizer.from_str(model.tokenizer.tokenizer_json)
        finally:
            seconds = time.perf_counter() - start
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert seconds < _MAX_SECONDS, index
        assert peak < _MAX_BYTES, index
    assert longest_message < 600  # whatever strings the file holds
    assert outcomes["valid"] > 20, outcomes  # mutations that only ever break the magic prove little
    assert outcomes["CorruptModelError"] > 100, outcomes
