"""SHA-256 of files, and a memory of those computed before.

A digest is remembered by path, size, mtime_ns and inode in one small JSON file
in the cache directory, so that a large file is hashed once per machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmir.config import Settings


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class DigestMemo:
    """Remembers digests in `file`; a lost or damaged memory only costs hashing again."""

    file: Path

    @classmethod
    def default(cls) -> DigestMemo:
        """The memory in the user's cache directory."""
        return cls(Settings.from_env().cache_dir / "digests.json")

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file, computed only if it is not known for this very file."""
        path = path.resolve()
        stat = path.stat()
        identity = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        known = self._read()
        entry = known.get(str(path))
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == identity:
            return str(entry[1])
        digest = sha256_of(path)
        self._write({**self._read(), str(path): [identity, digest]})
        return digest

    def _read(self) -> dict[str, object]:
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _write(self, known: dict[str, object]) -> None:
        # Best effort: on a read-only or full cache directory the digest is computed each time.
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.file.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    json.dump(known, stream)
                Path(name).replace(self.file)
            except OSError:
                Path(name).unlink()
