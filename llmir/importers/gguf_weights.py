"""GGUF tensors under canonical names, checked, with the rotary permutation undone.

Shape legend: V vocabulary, D hidden size, F intermediate size, H heads, hd head
dim, i a layer.

llama.cpp rotates dims 2i and 2i + 1 of a head in llama-family models, so their
converter interleaves the two halves of each head's rows in q and k; llmir
rotates i and i + hd/2 and puts them back:

    file       0  hd/2   1  hd/2+1   2  …        row of the half-rotated form
    canonical  0     2   4       …   1  3  …     row of the file
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmir.config import ModelSpec
from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.formats.base import Weight
from llmir.importers.gguf_metadata import describe

# Tensors that follow from the metadata, which some old converters wrote all the same.
_REDUNDANT = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?|rope_freqs\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """A tensor that the file must have.

    heads:  how many heads the rows are of, if they are interleaved; None if not
    """

    gguf_name: str
    shape: tuple[int, ...]
    heads: int | None = None


class CanonicalWeights(Mapping[str, Weight]):
    """Canonical name → Weight, in the model's order.

    Interleaved rows are put in order when a weight is asked for, so that a model's
    q and k are copied one at a time and the rest stay views of the mapped file.
    """

    def __init__(self, file_weights: Mapping[str, Weight], expected: Mapping[str, _Expected]):
        self._file_weights = file_weights
        self._expected = expected

    def __getitem__(self, name: str) -> Weight:
        entry = self._expected[name]
        weight = self._file_weights[entry.gguf_name]
        if entry.heads is not None:
            weight = weight.take_rows(half_rotated_rows(weight.shape[0], entry.heads))
        return Weight(name=name, shape=weight.shape, format=weight.format, raw=weight.raw)

    def __iter__(self) -> Iterator[str]:
        return iter(self._expected)

    def __len__(self) -> int:
        return len(self._expected)


def canonical_weights(
    file_weights: Mapping[str, Weight], spec: ModelSpec, *, interleaved_rope: bool, source: str
) -> CanonicalWeights:
    """Check that the file has the tensors of `spec`, in their shapes, and no others.

    Raises:
        CorruptModelError: a tensor is missing or has another shape.
        UnsupportedModelError: a tensor that the architecture does not have, which would
            change the result if it were left out, or a vector in a block format.
    """
    expected = dict(_expected_tensors(spec, interleaved_rope))
    for entry in expected.values():
        weight = file_weights.get(entry.gguf_name)
        if weight is None:
            raise CorruptModelError(
                f"{source}: the tensor {entry.gguf_name} of shape {list(entry.shape)} is missing; "
                f"the file is not a whole {spec.architecture} model: download or convert it again"
            )
        if weight.shape != entry.shape:
            raise CorruptModelError(
                f"{source}: the tensor {entry.gguf_name} should have shape {list(entry.shape)}, "
                f"but has {list(weight.shape)}"
            )
        if len(entry.shape) == 1 and not weight.format.is_float:
            raise UnsupportedModelError(
                f"{source}: the tensor {entry.gguf_name} is a vector in {weight.format.name}; "
                f"llmir reads vectors in float formats only"
            )
    known = {entry.gguf_name for entry in expected.values()}
    for name in file_weights:
        if name not in known and not _REDUNDANT.fullmatch(name):
            raise UnsupportedModelError(
                f"{source}: the tensor {describe(name)} is not one of a {spec.architecture} model "
                f"of {spec.num_layers} layers; llmir would compute something else without it"
            )
    return CanonicalWeights(file_weights, expected)


def half_rotated_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """[rows]: for each row of the half-rotated form, where it is in the interleaved one."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _expected_tensors(spec: ModelSpec, interleaved_rope: bool) -> Iterator[tuple[str, _Expected]]:
    embedding = (spec.vocab_size, spec.hidden_size)
    yield "model.embed_tokens.weight", _Expected(gguf_name="token_embd.weight", shape=embedding)
    for layer in range(spec.num_layers):
        for name, gguf_name, shape, heads in _layer_tensors(spec):
            yield (
                f"model.layers.{layer}.{name}",
                _Expected(
                    gguf_name=f"blk.{layer}.{gguf_name}",
                    shape=shape,
                    heads=heads if interleaved_rope else None,
                ),
            )
    norm = (spec.hidden_size,)
    yield "model.norm.weight", _Expected(gguf_name="output_norm.weight", shape=norm)
    if not spec.tie_word_embeddings:
        yield "lm_head.weight", _Expected(gguf_name="output.weight", shape=embedding)


def _layer_tensors(spec: ModelSpec) -> Iterator[tuple[str, str, tuple[int, ...], int | None]]:
    """Canonical name, GGUF name, shape, and the number of heads that RoPE turns in it."""
    d, f = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield "input_layernorm.weight", "attn_norm.weight", (d,), None
    for name, gguf_name, rows, columns, heads, bias in (
        ("self_attn.q_proj", "attn_q", q, d, spec.num_heads, spec.qkv_bias),
        ("self_attn.k_proj", "attn_k", kv, d, spec.num_kv_heads, spec.qkv_bias),
        ("self_attn.v_proj", "attn_v", kv, d, None, spec.qkv_bias),
        ("self_attn.o_proj", "attn_output", d, q, None, spec.output_bias),
        ("mlp.gate_proj", "ffn_gate", f, d, None, spec.mlp_bias),
        ("mlp.up_proj", "ffn_up", f, d, None, spec.mlp_bias),
        ("mlp.down_proj", "ffn_down", d, f, None, spec.mlp_bias),
    ):
        yield f"{name}.weight", f"{gguf_name}.weight", (rows, columns), heads
        if bias:
            yield f"{name}.bias", f"{gguf_name}.bias", (rows,), heads
    if spec.qk_norm:
        yield "self_attn.q_norm.weight", "attn_q_norm.weight", (spec.head_dim,), None
        yield "self_attn.k_norm.weight", "attn_k_norm.weight", (spec.head_dim,), None
    yield "post_attention_layernorm.weight", "ffn_norm.weight", (d,), None
