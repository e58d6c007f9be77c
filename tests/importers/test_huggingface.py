"""import_huggingface on whole checkpoints, and import_model's choice of an importer."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmir import importers
from llmir.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from llmir.importers.huggingface import import_huggingface


def edit_config(directory: Path, **fields: Any) -> None:
    """Set fields of config.json; `...` removes one."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    checkpoints.make_checkpoint(directory, "llama")
    return directory


@pytest.fixture
def llama(pristine: Path, tmp_path: Path) -> Path:
    """A tiny Llama checkpoint that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny-llama"))


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_every_kind_has_the_weights_and_sizes_of_the_reference(kind: str, tmp_path: Path) -> None:
    model = checkpoints.make_checkpoint(tmp_path / kind, kind)
    imported = importers.import_model(tmp_path / kind)
    state = model.state_dict()
    if imported.spec.tie_word_embeddings:
        del state["lm_head.weight"]
    assert imported.weights.keys() == state.keys()
    for name, weight in imported.weights.items():
        assert weight.name == name
        np.testing.assert_array_equal(weight.dequantize(), state[name].numpy())

    spec, config = imported.spec, model.config
    assert spec.architecture == config.model_type
    assert (spec.name, imported.source) == (kind, kind)
    assert spec.num_layers == config.num_hidden_layers == len(spec.sliding_windows)
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.head_dim == getattr(config, "head_dim", 16)
    attention = model.model.layers[0].self_attn
    assert spec.qkv_bias == (attention.q_proj.bias is not None)
    assert spec.output_bias == (attention.o_proj.bias is not None)
    assert spec.qk_norm == hasattr(attention, "q_norm")


def test_sliding_windows(tmp_path: Path) -> None:
    for kind, windows in [
        ("mistral", (None, None, None)),
        ("mistral-window", (8, 8, 8)),
        ("qwen2", (None, None, None)),
        ("qwen2-window", (None, 8, 8)),
    ]:
        checkpoints.make_checkpoint(tmp_path / kind, kind)
        assert import_huggingface(tmp_path / kind).spec.sliding_windows == windows


def test_weights_are_views_of_the_mapped_file(llama: Path) -> None:
    weight = import_huggingface(llama).weights["model.norm.weight"]
    assert not weight.raw.flags.owndata
    assert not weight.raw.flags.writeable
    base: Any = weight.raw
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base).__name__ == "mmap"


def test_sharded_equals_single(llama: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    checkpoints.make_checkpoint(sharded, "llama", max_shard_size="100KB")
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    single, many = import_huggingface(llama), import_huggingface(sharded)
    assert single.weights.keys() == many.weights.keys()
    for name, weight in single.weights.items():
        np.testing.assert_array_equal(weight.raw, many.weights[name].raw)
    assert {str(shard) for shard in shards} < set(many.files)
    assert str(sharded / "model.safetensors.index.json") in many.files


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_half_precision_is_kept_as_stored(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    model = checkpoints.make_checkpoint(tmp_path, "llama", dtype=dtype)
    for weight_name, weight in import_huggingface(tmp_path).weights.items():
        assert weight.format.name == name
        expected = model.state_dict()[weight_name].float().numpy()
        np.testing.assert_array_equal(weight.dequantize(), expected)


def edit_tensors(directory: Path, **tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Add, replace or (None) remove tensors; dots are written as __.  The new content."""
    path = directory / "model.safetensors"
    content = load_file(path) | {k.replace("__", "."): v for k, v in tensors.items()}
    content = {name: tensor for name, tensor in content.items() if tensor is not None}
    save_file(content, path)
    return content


def test_a_head_that_repeats_the_tied_embedding_is_dropped(llama: Path) -> None:
    edit_config(llama, tie_word_embeddings=True)
    embedding = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(llama, lm_head__weight=embedding.clone())
    imported = import_huggingface(llama)
    assert imported.spec.tie_word_embeddings
    assert "lm_head.weight" not in imported.weights


def test_a_tied_head_with_other_values_is_a_head_of_its_own(llama: Path) -> None:
    edit_config(llama, tie_word_embeddings=True)
    imported = import_huggingface(llama)
    assert not imported.spec.tie_word_embeddings
    assert "lm_head.weight" in imported.weights


def test_a_tied_embedding_may_be_stored_as_the_head(llama: Path) -> None:
    edit_config(llama, tie_word_embeddings=True)
    content = edit_tensors(llama, model__embed_tokens__weight=None)
    weights = import_huggingface(llama).weights
    assert "lm_head.weight" not in weights
    embedding = weights["model.embed_tokens.weight"]
    assert embedding.name == "model.embed_tokens.weight"
    np.testing.assert_array_equal(embedding.dequantize(), content["lm_head.weight"].numpy())


def test_stored_rope_frequencies_are_ignored(llama: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(llama, **{name: torch.ones(8)})
    assert name not in import_huggingface(llama).weights


def test_a_hub_snapshot_is_called_by_its_id(llama: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123456789abcdef"
    shutil.copytree(llama, snapshot)
    imported = import_huggingface(snapshot)
    assert (imported.source, imported.spec.name) == ("org/tiny", "tiny")


def test_wrong_and_missing_and_unknown_tensors(llama: Path) -> None:
    file = llama / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    good = load_file(file)[name]

    edit_tensors(llama, **{name: torch.ones(96, 63)})
    with pytest.raises(CorruptModelError) as caught:
        import_huggingface(llama)
    assert str(caught.value) == (
        f"{file}: tensor '{name}' has shape [96, 63], but config.json asks for [96, 64]"
    )

    edit_tensors(llama, **{name: None})
    with pytest.raises(CorruptModelError) as caught:
        import_huggingface(llama)
    assert str(caught.value) == (
        f"{file}: tensor '{name}' of shape [96, 64] is missing; config.json describes a llama "
        "model that has it"
    )

    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(llama, **{name: good, bias: torch.ones(64)})
    with pytest.raises(UnsupportedModelError) as caught:
        import_huggingface(llama)
    assert str(caught.value) == (
        f"{file}: tensor '{bias}' of shape [64] is not part of the llama model that config.json "
        "describes; ignoring it could change results"
    )

    edit_tensors(llama, **{name: good.to(torch.float8_e4m3fn), bias: None})
    with pytest.raises(UnsupportedModelError) as caught:
        import_huggingface(llama)
    assert str(caught.value) == (
        f"{file}: tensor '{name}' has dtype F8_E4M3; supported dtypes: BF16, F16, F32"
    )


def test_a_config_that_asks_for_more_layers_than_fit_in_memory_fails_fast(llama: Path) -> None:
    edit_config(llama, num_hidden_layers=4000)
    with pytest.raises(CorruptModelError, match=r"layers\.3\..* is missing"):
        import_huggingface(llama)
    edit_config(llama, num_hidden_layers=10**9)
    with pytest.raises(CorruptModelError, match="num_hidden_layers must be an integer from 1 to"):
        import_huggingface(llama)


def test_damaged_shards(tmp_path: Path) -> None:
    checkpoints.make_checkpoint(tmp_path, "llama", max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    weight_map: dict[str, Any] = good["weight_map"]
    name, shard = next(iter(weight_map.items()))

    def message(changed: Any) -> str:
        index.write_text(json.dumps(changed))
        with pytest.raises(CorruptModelError) as caught:
            import_huggingface(tmp_path)
        return str(caught.value)

    elsewhere = message({"weight_map": weight_map | {name: "../x.safetensors"}})
    assert elsewhere.endswith(f"'{name}' must map to a file name, not '../x.safetensors'")
    other = next(s for s in weight_map.values() if s != shard)
    wrong = message({"weight_map": weight_map | {name: other}})
    assert wrong == f"{index}: says that tensor '{name}' is in {other}, where it is not"
    assert message({}) == f"{index}: weight_map is missing or empty"
    assert "weight_map must be an object, not [1]" in message({"weight_map": [1]})

    shutil.copy(tmp_path / shard, tmp_path / "model-copy.safetensors")
    twice = message({"weight_map": weight_map | {"extra": "model-copy.safetensors"}})
    assert "is in both model-" in twice

    (tmp_path / shard).unlink()
    assert message(good) == (
        f"{index}: lists the shard '{shard}', which is not in the directory. "
        "Is the download complete?"
    )


def test_directories_without_what_a_model_needs(llama: Path, tmp_path: Path) -> None:
    def message(path: Path, error: type[Exception]) -> str:
        with pytest.raises(error) as caught:
            importers.import_model(path)
        return str(caught.value)

    absent = tmp_path / "absent"
    assert message(absent, ModelNotFoundError) == f"{absent}: no such file or directory"
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        import_huggingface(absent)

    weights = (llama / "model.safetensors").rename(llama / "consolidated.safetensors")
    assert "has consolidated.safetensors, but neither" in message(llama, ModelNotFoundError)
    weights.rename(llama / "pytorch_model.bin")
    pickled = message(llama, UnsupportedModelError)
    assert "has only pickled weights (pytorch_model.bin)" in pickled
    assert "Convert them to safetensors" in pickled
    (llama / "pytorch_model.bin").unlink()
    assert "no weights; expected model.safetensors or" in message(llama, ModelNotFoundError)
    (llama / "config.json").unlink()
    assert "has neither a config.json" in message(llama, ModelNotFoundError)
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        import_huggingface(llama)
    tokenizer = llama / "tokenizer.json"
    assert "is not a .gguf file; a Hugging Face" in message(tokenizer, UnsupportedModelError)


def test_gguf_files_go_to_their_importer(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    imported = import_huggingface(llama)

    def import_gguf(path: Path) -> importers.ImportedModel:
        opened.append(path)
        return dataclasses.replace(imported, source=path.name)

    monkeypatch.setattr("llmir.importers.gguf.import_gguf", import_gguf)
    directory = llama.parent / "ggufs"
    directory.mkdir()
    for part in (1, 2, 3):
        (directory / f"model-{part:05}-of-00003.gguf").touch()
    (directory / "config.json").write_text("{}")
    first = directory / "model-00001-of-00003.gguf"
    assert importers.import_model(directory).source == first.name
    importers.import_model(first)
    assert opened == [first, first]

    (directory / "model.Q4_K.gguf").touch()
    with pytest.raises(UnsupportedModelError) as caught:
        importers.import_model(directory)
    assert str(caught.value) == (
        f"{directory}: has 2 GGUF models; give the path of one of them: "
        "model-00001-of-00003.gguf, model.Q4_K.gguf"
    )

    shutil.copy(first, llama / "model.gguf")
    assert importers.import_model(llama).source == llama.name, "safetensors come first"
