"""Writing an artifact's directory: whole or not at all, by one process at a time.

Floor 0.  The directory is made under a temporary name beside its place and
renamed when it is whole and on disk.  A file lock keeps two processes that
compile the same thing apart; the kernel drops it when its holder dies, so that
whatever partial directory is found under the lock is a killed compile's.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmir.artifact import MANIFEST, read_manifest
from llmir.errors import ArtifactError, OptionError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the artifact at `path`; waits while another process holds it.

    The lock is a file beside `path`, there only while it is held or waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Its last holder may have removed the file while this process waited for it.
        if _is_file_of(lock, handle):
            break
        os.close(handle)
    try:
        yield
    finally:
        lock.unlink()
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends without an error.

    The caller holds `locked(path)`.  An artifact that stands there is replaced;
    anything else is refused with OptionError before work begins.  On an error, and
    at the next call after a kill, the temporary directory is removed.
    """
    _check_replaceable(path)
    for leftover in glob.glob(glob.escape(str(path.parent / _prefix(path))) + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = _make_temporary(path)
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_file_of(path: Path, handle: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


def _check_replaceable(path: Path) -> None:
    """Raise OptionError unless nothing of anybody's would be lost at `path`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    refused = OptionError(f"{path} exists and is not an llmir artifact; choose another output")
    try:
        ours = {MANIFEST, *read_manifest(path).files}
    except ArtifactError:
        raise refused from None
    strangers = sorted(p.name for p in path.iterdir() if p.name not in ours)
    if strangers:
        raise OptionError(
            f"{path} is an artifact, but holds other files too ({', '.join(strangers[:5])}); "
            "move them away or choose another output"
        )


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _make_temporary(path: Path) -> Path:
    made = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    umask = os.umask(0)
    os.umask(umask)
    made.chmod(0o777 & ~umask)  # mkdtemp's are private; an artifact is as other directories
    return made


def _sync(directory: Path) -> None:
    """Have the files on disk before the rename makes them visible."""
    for path in directory.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _replace(temporary: Path, path: Path) -> None:
    # A directory cannot be renamed over a full one: the old one steps aside first.
    if not path.exists():
        temporary.rename(path)
        return
    aside = _make_temporary(path)
    path.rename(aside / "old")
    try:
        temporary.rename(path)
    except OSError:
        with suppress(FileExistsError):
            (aside / "old").rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
