"""A Hugging Face model directory: config.json, safetensors, tokenizer files.

Weights stay views of mapped files.  No pickle is ever loaded: a directory that
has only pytorch_model.bin is refused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmir.config import ModelSpec, printable_name
from llmir.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from llmir.formats.base import Weight
from llmir.importers.base import ImportedModel
from llmir.importers.huggingface_config import read_config
from llmir.importers.huggingface_json import Fields, parse_object, read_text
from llmir.importers.huggingface_tokenizer import read_tokenizer
from llmir.importers.safetensors_file import Tensor, read_safetensors

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_COMPARE_BYTES = 1 << 24


def import_huggingface(path: str | os.PathLike[str]) -> ImportedModel:
    """Read the model in a local directory.

    Raises ModelNotFoundError without a directory, config or weights;
    UnsupportedModelError, by name, for what llmir does not have; CorruptModelError
    for files that are damaged or contradict each other.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ModelNotFoundError(f"{directory}: no such directory")
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise ModelNotFoundError(
            f"{directory}: has no config.json, so it is not a Hugging Face model directory"
        )
    config = Fields(parse_object(config_path, read_text(config_path)), str(config_path))
    source = _source_name(directory)
    spec = read_config(config, source.rpartition("/")[2])
    tensors, weight_files = _open_tensors(directory)
    spec, weights = _take_weights(spec, tensors, where=weight_files[0])
    tokenizer, tokenizer_files = read_tokenizer(directory, config)
    return ImportedModel(
        spec=spec,
        weights=weights,
        tokenizer=tokenizer,
        source=source,
        files=tuple(str(file) for file in (config_path, *weight_files, *tokenizer_files)),
    )


def expected_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a checkpoint, but for a tied head; see importers.base."""
    d, f = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    linears = (
        ("self_attn.q_proj", q, d, spec.qkv_bias),
        ("self_attn.k_proj", kv, d, spec.qkv_bias),
        ("self_attn.v_proj", kv, d, spec.qkv_bias),
        ("self_attn.o_proj", d, q, spec.output_bias),
        ("mlp.gate_proj", f, d, spec.mlp_bias),
        ("mlp.up_proj", f, d, spec.mlp_bias),
        ("mlp.down_proj", d, f, spec.mlp_bias),
    )
    yield _EMBEDDING, (spec.vocab_size, d)
    for i in range(spec.num_layers):
        layer = f"model.layers.{i}"
        for name, rows, columns, has_bias in linears:
            yield f"{layer}.{name}.weight", (rows, columns)
            if has_bias:
                yield f"{layer}.{name}.bias", (rows,)
        if spec.qk_norm:
            yield f"{layer}.self_attn.q_norm.weight", (spec.head_dim,)
            yield f"{layer}.self_attn.k_norm.weight", (spec.head_dim,)
        yield f"{layer}.input_layernorm.weight", (d,)
        yield f"{layer}.post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    if not spec.tie_word_embeddings:
        yield _HEAD, (spec.vocab_size, d)


def _open_tensors(directory: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """Every tensor of the checkpoint, and the files: the one to blame for a gap first."""
    # The order of transformers: a single file hides an index.
    single, index = directory / _SINGLE, directory / _INDEX
    if single.is_file():
        return read_safetensors(single), (single,)
    if index.is_file():
        return _open_shards(index)
    others = sorted(
        entry.name
        for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth")
        for entry in directory.glob(pattern)
    )
    if not others:
        raise ModelNotFoundError(
            f"{directory}: has a config.json but no weights; expected {_SINGLE} or {_INDEX}"
        )
    if any(name.endswith(".safetensors") for name in others):
        raise ModelNotFoundError(
            f"{directory}: has {', '.join(others)}, but neither {_SINGLE} nor {_INDEX}, which "
            "says where tensors are. Is the download complete?"
        )
    raise UnsupportedModelError(
        f"{directory}: has only pickled weights ({', '.join(others)}), which can run code when "
        "loaded and which llmir never opens. Convert them to safetensors: "
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
    )


def _open_shards(index: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    weight_map = Fields(parse_object(index, read_text(index)), str(index)).object("weight_map")
    if not weight_map.data:
        raise CorruptModelError(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.data.items():
        # A name with a directory in it could reach out of the model's directory.
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise weight_map.error(f"{name!r} must map to a file name, not {shard!r}")
    tensors: dict[str, Tensor] = {}
    shards = [index.parent / name for name in sorted(set(weight_map.data.values()))]
    for shard in shards:
        if not shard.is_file():
            raise CorruptModelError(
                f"{index}: lists the shard {shard.name!r}, which is not in the directory. "
                "Is the download complete?"
            )
        found = read_safetensors(shard)
        for name in sorted(found.keys() & tensors.keys()):
            raise CorruptModelError(
                f"{index.parent}: tensor {name!r} is in both {tensors[name].path.name} and "
                f"{shard.name}"
            )
        tensors |= found
    for name, shard_name in weight_map.data.items():
        if name not in tensors or tensors[name].path.name != shard_name:
            raise CorruptModelError(
                f"{index}: says that tensor {name!r} is in {shard_name}, where it is not"
            )
    return tensors, (index, *shards)


def _take_weights(
    spec: ModelSpec, tensors: dict[str, Tensor], where: Path
) -> tuple[ModelSpec, dict[str, Weight]]:
    """The tensors that `spec` asks for, checked, and the spec with the head as it really is."""
    remaining = dict(tensors)
    if spec.tie_word_embeddings and _HEAD in remaining:
        if _EMBEDDING not in remaining:
            remaining[_EMBEDDING] = dataclasses.replace(remaining.pop(_HEAD), name=_EMBEDDING)
        elif _same_data(remaining[_EMBEDDING], remaining[_HEAD]):
            del remaining[_HEAD]
        else:
            # Two different tensors: the config is wrong, as transformers also concludes.
            spec = dataclasses.replace(spec, tie_word_embeddings=False)
    weights: dict[str, Weight] = {}
    for name, shape in expected_tensors(spec):
        tensor = remaining.pop(name, None)
        if tensor is None:
            raise CorruptModelError(
                f"{where}: tensor {name!r} of shape {list(shape)} is missing; config.json "
                f"describes a {spec.architecture} model that has it"
            )
        if tensor.shape != shape:
            raise CorruptModelError(
                f"{tensor.path}: tensor {name!r} has shape {list(tensor.shape)}, but config.json "
                f"asks for {list(shape)}"
            )
        weights[name] = tensor.as_weight()
    for name, tensor in sorted(remaining.items()):
        # Old checkpoints store the RoPE frequencies; they follow from the config.
        if not name.endswith(".rotary_emb.inv_freq"):
            raise UnsupportedModelError(
                f"{tensor.path}: tensor {name!r} of shape {list(tensor.shape)} is not part of "
                f"the {spec.architecture} model that config.json describes; ignoring it could "
                "change results"
            )
    return spec, weights


def _same_data(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # In pieces: a whole comparison would allocate as much as the embedding.
    return all(
        np.array_equal(a.raw[i : i + _COMPARE_BYTES], b.raw[i : i + _COMPARE_BYTES])
        for i in range(0, a.raw.size, _COMPARE_BYTES)
    )


def _source_name(directory: Path) -> str:
    """The directory's name, or "org/name" for a snapshot in huggingface_hub's cache."""
    # abspath, not resolve: a link's own name is what the user knows the model by.
    path = Path(os.path.abspath(directory))
    cache_entry = path.parent.parent.name
    if path.parent.name == "snapshots" and cache_entry.startswith("models--"):
        return cache_entry.removeprefix("models--").replace("--", "/")
    return printable_name(path)
