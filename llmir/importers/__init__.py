"""Readers of model files; `import_model` picks the one for a path.

`base` holds the contract, one file per source beside it.  An importer is
imported when a model asks for it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmir.errors import ModelNotFoundError, UnsupportedModelError
from llmir.importers.base import ImportedModel, TokenizerFiles
from llmir.importers.hub import resolve_model

__all__ = ["ImportedModel", "TokenizerFiles", "import_model", "resolve_model"]

_LATER_SPLIT = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def import_model(path: str | os.PathLike[str]) -> ImportedModel:
    """Read a model: a GGUF file, a directory with one, or a Hugging Face directory.

    Raises ModelNotFoundError, UnsupportedModelError or CorruptModelError.
    """
    path = Path(path)
    if path.is_dir():
        return _import_directory(path)
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such file or directory")
    if not path.is_file():
        raise UnsupportedModelError(f"{path}: is neither a file nor a directory")
    if path.suffix.lower() != ".gguf":
        raise UnsupportedModelError(
            f"{path}: is not a .gguf file; a Hugging Face model is given as its directory"
        )
    return _import_gguf(path)


def _import_directory(directory: Path) -> ImportedModel:
    # A config.json beside GGUF files only (many hub repositories) describes the original.
    ggufs = [] if any(directory.glob("*.safetensors*")) else _gguf_models(directory)
    if len(ggufs) > 1:
        raise UnsupportedModelError(
            f"{directory}: has {len(ggufs)} GGUF models; give the path of one of them: "
            + ", ".join(file.name for file in ggufs)
        )
    if ggufs:
        return _import_gguf(ggufs[0])
    if not (directory / "config.json").is_file():
        raise ModelNotFoundError(
            f"{directory}: has neither a config.json (a Hugging Face model) nor a .gguf file"
        )
    from llmir.importers.huggingface import import_huggingface

    return import_huggingface(directory)


def _gguf_models(directory: Path) -> list[Path]:
    """The GGUF files of a directory, each split model by its first file."""
    return sorted(
        file
        for file in directory.glob("*")
        if file.suffix.lower() == ".gguf" and not _LATER_SPLIT.search(file.name)
    )


def _import_gguf(path: Path) -> ImportedModel:
    from llmir.importers.gguf import import_gguf

    return import_gguf(path)
