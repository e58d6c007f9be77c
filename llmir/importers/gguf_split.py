"""Split GGUF files: `name-00002-of-00003.gguf`, the format of llama.cpp's gguf-split.

The first shard carries the model's metadata and any number of the tensors,
each further one its share of the tensors; all say `split.no` (from 0),
`split.count` and `split.tensors.count` (of all shards together).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmir.errors import CorruptModelError, ModelNotFoundError
from llmir.formats.base import Weight
from llmir.importers.gguf_file import GGUFFile, read_gguf
from llmir.importers.gguf_metadata import Metadata, describe

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFModel:
    """What a GGUF file, or all shards of one, hold together.

    stem:      the name without shard number and extension
    metadata:  of the first shard
    weights:   name in the file → Weight, of all shards
    paths:     every file read, in order
    """

    stem: str
    metadata: Metadata
    weights: Mapping[str, Weight]
    paths: tuple[Path, ...]


def read_gguf_model(path: Path) -> GGUFModel:
    """Read a GGUF file, or the whole model that it is a shard of.

    Raises:
        ModelNotFoundError: the file or one of its other shards is not there.
        CorruptModelError: a file is damaged, or the shards do not belong together.
        UnsupportedModelError: see `read_gguf`.
    """
    stem, paths = _shards_of(path)
    files = [read_gguf(shard) for shard in paths]
    for number, file in enumerate(files):
        _check_shard(file, number, len(files))
    weights: dict[str, Weight] = {}
    for file in files:
        for name, weight in file.weights.items():
            if name in weights:
                raise CorruptModelError(
                    f"{file.path.name}: the tensor {describe(name)} is in an earlier shard too"
                )
            weights[name] = weight
    expected = files[0].metadata.get_int("split.tensors.count")
    if len(files) > 1 and expected is not None and expected != len(weights):
        raise CorruptModelError(
            f"{files[0].path.name}: split.tensors.count is {expected}, but the {len(files)} shards "
            f"hold {len(weights)} tensors; they are not of one model: download them again"
        )
    return GGUFModel(stem=stem, metadata=files[0].metadata, weights=weights, paths=tuple(paths))


def _shards_of(path: Path) -> tuple[str, list[Path]]:
    """The stem and the paths of all shards; `path` itself where it is no shard."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or not path.is_file():
        return path.stem, [path]
    stem, number, count = match["stem"], int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise CorruptModelError(
            f"{path.name} calls itself shard {number} of {count}; expected 1 to {count}"
        )
    paths: list[Path] = []
    for index in range(1, count + 1):
        shard = path.with_name(f"{stem}-{index:05d}-of-{count:05d}.gguf")
        if not shard.is_file():
            raise ModelNotFoundError(
                f"{path.name} is one of {count} shards, and {shard.name} is not beside it; "
                f"put all {count} in one directory"
            )
        paths.append(shard)
    return stem, paths


def _check_shard(file: GGUFFile, number: int, count: int) -> None:
    found_number = file.metadata.get_int("split.no") or 0
    found_count = file.metadata.get_int("split.count") or 1
    if (found_number, found_count) != (number, count):
        raise CorruptModelError(
            f"{file.path.name}: expected shard {number + 1} of {count} by its name, but its "
            f"metadata says shard {found_number + 1} of {found_count}; give the shards the names "
            f"they were published with"
        )
