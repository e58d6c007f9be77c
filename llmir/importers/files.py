"""Which files a model consists of, found without reading them: for the cache key."""

from __future__ import annotations

import re
from pathlib import Path

from llmir.errors import ModelNotFoundError

_READ = (".gguf", ".json", ".safetensors", ".jinja", ".model")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)


def model_files(path: Path) -> tuple[str, ...]:
    """The files that `import_model(path)` may read, sorted.  Raises ModelNotFoundError."""
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in _READ and p.is_file()]
    elif path.is_file():
        found = _with_shards(path)
    else:
        raise ModelNotFoundError(f"{path}: no such file or directory")
    return tuple(sorted(map(str, found)))


def _with_shards(path: Path) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match[1], match[2]
    return [p for p in path.parent.iterdir() if _is_shard(p.name, stem, count)]


def _is_shard(name: str, stem: str, count: str) -> bool:
    match = _SHARD.fullmatch(name)
    return match is not None and (match[1], match[2]) == (stem, count)
