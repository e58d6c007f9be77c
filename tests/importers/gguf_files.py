"""GGUF files for tests: whole tiny models by the gguf package's writer, and broken ones by hand.

Shape legend: V vocabulary, D hidden size, F intermediate size, H heads, hd head dim.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as T

LAYERS, D, F, H, KV, HD = 2, 64, 96, 4, 2, 16
CONTEXT = 256
SPECIAL = ("<|bos|>", "<|eos|>", "<|im_end|>", "<tool>")
MERGES = ("t h", "th e", "Ġ the", "i n", "Ġ in")


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 as is, the rest from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


TOKENS = [
    *SPECIAL,
    *bytes_to_unicode().values(),
    *(merge.replace(" ", "") for merge in MERGES),
]
V = len(TOKENS)
TOKEN_TYPES = [3, 3, 3, 4] + [1] * (V - 4)

DEFAULTS: dict[str, Any] = {
    "block_count": LAYERS,
    "context_length": CONTEXT,
    "embedding_length": D,
    "feed_forward_length": F,
    "attention.head_count": H,
    "attention.head_count_kv": KV,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": HD,
    "vocab_size": V,
}
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TOKEN_TYPES,
    "tokenizer.ggml.merges": list(MERGES),
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}


def random_weights(
    arch: str = "llama", *, tied: bool = True, bias: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """GGUF name → float32, in the half-rotated order that `import_gguf` must give back."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    if not tied:
        shapes["output.weight"] = (V, D)
    for i in range(LAYERS):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (D,),
            "ffn_norm.weight": (D,),
            "attn_q.weight": (H * HD, D),
            "attn_k.weight": (KV * HD, D),
            "attn_v.weight": (KV * HD, D),
            "attn_output.weight": (D, H * HD),
            "ffn_gate.weight": (F, D),
            "ffn_up.weight": (F, D),
            "ffn_down.weight": (D, F),
        }
        if arch == "qwen2" or bias:
            layer |= {
                "attn_q.bias": (H * HD,),
                "attn_k.bias": (KV * HD,),
                "attn_v.bias": (KV * HD,),
            }
        if bias:
            layer |= {"attn_output.bias": (D,)}
            layer |= {"ffn_gate.bias": (F,), "ffn_up.bias": (F,), "ffn_down.bias": (D,)}
        if arch == "qwen3":
            layer |= {"attn_q_norm.weight": (HD,), "attn_k_norm.weight": (HD,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def interleave(name: str, weight: np.ndarray) -> np.ndarray:
    """What llama.cpp's converter does to q and k of llama-family models."""
    heads = {"attn_q": H, "attn_k": KV}.get(name.split(".")[-2]) if "." in name else None
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_model(
    path: Path,
    arch: str = "llama",
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    quant: Q = Q.F32,
    meta: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    split_max_tensors: int = 0,
    alignment: int | None = None,
) -> None:
    """Write a whole tiny model.

    Args:
        weights: as `random_weights` gives them; q and k are interleaved here for llama.
        quant: the type of the matrices; vectors are float32.
        meta: further keys, those without a known prefix under `arch`; None drops a key.
        tokenizer: the tokenizer's keys.
    """
    weights = random_weights(arch) if weights is None else weights
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    values = {f"{arch}.{key}": value for key, value in DEFAULTS.items()}
    values |= TOKENIZER if tokenizer is None else tokenizer
    for key, value in (meta or {}).items():
        known = key.startswith(("tokenizer.", "general.", f"{arch}."))
        values[key if known else f"{arch}.{key}"] = value
    for key, value in values.items():
        if value is not None:
            _add(writer, key, value)
    for name, weight in weights.items():
        stored = interleave(name, weight) if arch == "llama" else weight
        if weight.ndim == 1 or quant == Q.F32:
            writer.add_tensor(name, np.ascontiguousarray(stored))
        else:
            writer.add_tensor(name, gguf.quants.quantize(stored, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: T, value: bytes) -> bytes:
    """A metadata pair, the value as its bytes."""
    return text(key) + struct.pack("<I", kind) + value


def string_pair(key: str, value: str | bytes) -> bytes:
    return pair(key, T.STRING, text(value))


def u32_pair(key: str, value: int) -> bytes:
    return pair(key, T.UINT32, struct.pack("<I", value))


def array_pair(key: str, kind: int, count: int, elements: bytes = b"") -> bytes:
    return pair(key, T.ARRAY, struct.pack("<IQ", kind, count) + elements)


def tensor_info(name: str, dims: Iterable[int], ggml_type: int = 0, offset: int = 0) -> bytes:
    dims = tuple(dims)
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    return text(name) + struct.pack("<I", len(dims)) + sizes + struct.pack("<IQ", ggml_type, offset)


def raw_gguf(
    pairs: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_pairs: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A GGUF file from its parts; the counts may lie."""
    pairs, tensors = list(pairs), list(tensors)
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data
