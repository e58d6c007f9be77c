"""Import a GGUF file, or a model split over several."""

from __future__ import annotations

import os
from pathlib import Path

from llmir.config import printable_name
from llmir.importers.base import ImportedModel
from llmir.importers.gguf_spec import read_architecture, read_spec
from llmir.importers.gguf_split import read_gguf_model
from llmir.importers.gguf_tokenizer import read_tokenizer
from llmir.importers.gguf_weights import canonical_weights


def import_gguf(path: str | os.PathLike[str]) -> ImportedModel:
    """Read a GGUF model; any shard of a split one stands for all of it.

    Weights stay views of the mapped file, but for q and k of llama-family files, whose
    rows are put in the half-rotated order when they are asked for.

    Raises:
        ModelNotFoundError: the file, or another shard of its model, is not there.
        CorruptModelError: a file is no GGUF file, is truncated, or contradicts itself.
        UnsupportedModelError: an architecture, tensor type, tokenizer or option that llmir
            does not have; the message names it.
    """
    model = read_gguf_model(Path(path))
    meta = model.metadata
    arch = read_architecture(meta)
    spec = read_spec(meta, arch, model.weights, model.stem)
    weights = canonical_weights(
        model.weights, spec, interleaved_rope=arch.interleaved_rope, source=meta.source
    )
    return ImportedModel(
        spec=spec,
        weights=weights,
        tokenizer=read_tokenizer(meta, spec.vocab_size),
        source=printable_name(Path(path)),
        files=tuple(str(shard) for shard in model.paths),
    )
