"""Write a GGUF file with random weights in the shape of a model that is too large to fetch.

    python tools/random_gguf.py llama-3.2-1b q4_0 [DIRECTORY]      default: .cache/models

Prints the file's path; a file that is there already is used as it is.  The same shape and
format always give the same bytes.  Every matrix repeats blocks of a small random pool in random
order, quantised once: no float32 copy of the model is made, and 5 GB take some twenty seconds.
Weights are small enough for activations to stay finite; answers mean nothing.  The vocabulary
is the 256 bytes, some English pairs of letters, and names that no text has.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

DEFAULT_DIRECTORY = Path(__file__).parent.parent / ".cache" / "models"
FORMATS = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
POOL_BLOCKS, BLOCK = 1 << 15, 32
ORIGINAL_CONTEXT = 8192  # of llama3 rope scaling
MERGES = "t h|h e|i n|e r|a n|r e|o n|Ġ t|Ġ a|Ġt he|n d|a nd|in g|Ġ w|o r|Ġa nd"
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a llama model.  rope_factor: of its llama3 scaling, None: not scaled."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    context: int = 131072
    rope_base: float = 500_000.0
    rope_factor: float | None = None


SHAPES = {
    "tiny": Shape(
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=320,
        tied=True,
        context=256,
    ),
    "llama-3.2-1b": Shape(
        layers=16,
        hidden=2048,
        heads=32,
        kv_heads=8,
        head_dim=64,
        ffn=8192,
        vocab=128256,
        tied=True,
        rope_factor=32.0,
    ),
    "llama-3.1-8b": Shape(
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=128256,
        tied=False,
        rope_factor=8.0,
    ),
}


def random_gguf(name: str, format_name: str, directory: Path = DEFAULT_DIRECTORY) -> Path:
    """Path of the file of that shape and format, written if it is not there yet."""
    place = directory / f"{name}-random.{format_name.upper()}.gguf"
    if place.is_file():
        return place
    directory.mkdir(parents=True, exist_ok=True)
    half = place.with_suffix(f".half-{os.getpid()}")
    try:
        _write(half, name, SHAPES[name], format_name)
        os.replace(half, place)
    finally:
        half.unlink(missing_ok=True)
    return place


def _write(place: Path, name: str, shape: Shape, format_name: str) -> None:
    writer = gguf.GGUFWriter(place, "llama")
    _write_metadata(writer, name, shape)
    writer.add_file_type(FILE_TYPES[format_name])
    vectors = _vectors(shape)
    matrices = _matrices(shape)
    kind = FORMATS[format_name]
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    for tensor, vector in vectors.items():
        writer.add_tensor_info(tensor, vector.shape, vector.dtype, vector.nbytes)
    for tensor, (rows, columns, _) in matrices.items():
        in_bytes = (rows, columns // BLOCK * block_bytes)
        writer.add_tensor_info(tensor, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for vector in vectors.values():
        writer.write_tensor_data(vector)
    rng = np.random.default_rng(0)
    pool_f32 = rng.standard_normal((POOL_BLOCKS, BLOCK), np.float32)
    pools: dict[float, NDArray[np.uint8]] = {}
    for rows, columns, scale in matrices.values():
        if scale not in pools:
            pools[scale] = gguf.quants.quantize(pool_f32 * np.float32(scale), kind)
        chosen = rng.integers(0, POOL_BLOCKS, rows * columns // BLOCK, np.uint16)
        writer.write_tensor_data(np.take(pools[scale], chosen, axis=0).reshape(rows, -1))
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_name(f"{name} of random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    tokens = _tokens(shape.vocab)
    types = [gguf.TokenType.NORMAL] * shape.vocab
    for special in SPECIAL:
        types[tokens.index(special)] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES.split("|"))
    writer.add_bos_token_id(tokens.index(SPECIAL[0]))
    writer.add_eos_token_id(tokens.index(SPECIAL[1]))


def _tokens(count: int) -> list[str]:
    """The bytes as GPT-2 writes them, what the merges make, the special ones, and the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    merged = [merge.replace(" ", "") for merge in MERGES.split("|")]
    tokens = [*map(chr, [*printable, *others]), *merged, *SPECIAL]
    return tokens + [f"[unused{i}]" for i in range(count - len(tokens))]


def _vectors(shape: Shape) -> dict[str, NDArray[np.float32]]:
    norm = np.ones(shape.hidden, np.float32)
    vectors = {"output_norm.weight": norm}
    for layer in range(shape.layers):
        vectors |= {f"blk.{layer}.{kind}_norm.weight": norm for kind in ("attn", "ffn")}
    if shape.rope_factor is not None:
        vectors["rope_freqs.weight"] = _llama3_factors(shape, shape.rope_factor)
    return vectors


def _llama3_factors(shape: Shape, factor: float) -> NDArray[np.float32]:
    """What llama3 scaling, low 1 and high 4, divides each frequency by."""
    exponents = np.arange(0, shape.head_dim, 2) / shape.head_dim
    turns = ORIGINAL_CONTEXT / (2 * np.pi * shape.rope_base**exponents)
    smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _matrices(shape: Shape) -> dict[str, tuple[int, int, float]]:
    """Name → rows, columns, standard deviation: what keeps the variance of a normed input."""

    def matrix(rows: int, columns: int, gain: float = 1.0) -> tuple[int, int, float]:
        return rows, columns, gain / math.sqrt(columns)

    on_residual = 1 / math.sqrt(2 * shape.layers)
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = {"token_embd.weight": matrix(shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        parts = {
            "attn_q": matrix(query, shape.hidden),
            "attn_k": matrix(key, shape.hidden),
            "attn_v": matrix(key, shape.hidden),
            "attn_output": matrix(shape.hidden, query, on_residual),
            "ffn_gate": matrix(shape.ffn, shape.hidden),
            "ffn_up": matrix(shape.ffn, shape.hidden),
            "ffn_down": matrix(shape.hidden, shape.ffn, on_residual),
        }
        matrices |= {f"blk.{layer}.{part}.weight": of for part, of in parts.items()}
    if not shape.tied:
        matrices["output.weight"] = matrix(shape.vocab, shape.hidden)
    return matrices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_DIRECTORY)
    given = parser.parse_args()
    print(random_gguf(given.shape, given.format, given.directory))


if __name__ == "__main__":
    main()
