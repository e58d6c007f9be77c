"""MODEL as the user wrote it → a path: a local path, or a Hugging Face hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmir.errors import ModelNotFoundError

# What import_huggingface reads.  Never *.bin: a pickle is not even downloaded.
_ALLOW = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
# Subdirectories hold other forms of a model (onnx/, original/), and Mistral's
# consolidated file the same weights under other names.
_IGNORE = ["*/*", "consolidated*.safetensors"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(model: str | Path, *, offline: bool) -> Path:
    """A local path to `model`, a path that exists or a hub id `org/name`.

    A hub id is downloaded by huggingface_hub into its own cache; it honours
    HF_ENDPOINT, HF_HOME and HF_TOKEN.  With `offline`, only that cache is looked at.

    Raises ModelNotFoundError saying what was tried.
    """
    name = os.fspath(model)
    path = os.path.expanduser(name)
    # os.path, not pathlib: a name too long or with a NUL is just not there.
    if os.path.exists(path):
        return Path(path)
    if not _HUB_ID.fullmatch(name) or name.lower().endswith((".gguf", ".safetensors", ".json")):
        raise ModelNotFoundError(
            f"{name!r}: no such file or directory, and not a hub id of the form org/name"
        )
    return _download(name, offline)


def _download(hub_id: str, offline: bool) -> Path:
    tried = f"{hub_id!r}: no such file or directory; as a hub id:"
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ModelNotFoundError(
            f"{tried} huggingface_hub is not installed (pip install 'llmir[hub]')"
        ) from error

    # Errors of the HTTP library are OSErrors with requests and not with httpx; both have
    # one base class, which HfHubHTTPError derives from whichever is in use.  Its native
    # downloader raises RuntimeError.
    http_error = HfHubHTTPError.__bases__[0]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id,
                allow_patterns=_ALLOW,
                ignore_patterns=_IGNORE,
                local_files_only=offline,
            )
        )
    except (OSError, ValueError, RuntimeError, http_error) as error:
        if offline:
            raise ModelNotFoundError(
                f"{tried} it is not complete in the local cache, and offline mode forbids "
                "downloading. Unset HF_HUB_OFFLINE, or give a local path"
            ) from error
        endpoint = huggingface_hub.constants.ENDPOINT
        raise ModelNotFoundError(
            f"{tried} could not be downloaded from {endpoint}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
