"""llama-server, built from the tree that llama-cpp-python's source distribution carries.

So it is the llama.cpp of the other comparisons, with the same compiler flags.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.bench.peers import llama_cpp
from llmir.bench.peers.base import Environment
from llmir.bench.peers.serving.base import MODEL_NAME, ServerPlan

NAME = llama_cpp.NAME
_VERSION = "0.3.36"
_SOURCE = f"{{here}}/src/llama_cpp_python-{_VERSION}"
# A slot keeps its last prompt, which is its prefix cache.  Slots that share one KV cache may each
# be as long as the model allows, with a cache of its own each has a sixteenth of the tokens.
NUM_SLOTS, CONTEXT_TOKENS = 16, 16384

ENVIRONMENT = Environment(
    name="llama-server",
    installs=(("cmake==4.1.3", "ninja==1.13.0"),),
    files={"amx_fix.h": llama_cpp.ENVIRONMENT.files["amx_fix.h"]},
    steps=(
        (
            *("{here}/bin/python", "-m", "pip", "download", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", "llama-cpp-python", "--dest", "{here}/src"),
            f"llama-cpp-python=={_VERSION}",
        ),
        ("{here}/bin/python", "-m", "tarfile", "--extract", f"{_SOURCE}.tar.gz", "{here}/src"),
        (
            *("{here}/bin/cmake", "-G", "Ninja", "-DCMAKE_MAKE_PROGRAM={here}/bin/ninja"),
            *("-S", f"{_SOURCE}/vendor/llama.cpp", "-B", "{here}/build"),
            *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"),
            "-DCMAKE_CXX_FLAGS=-include {here}/amx_fix.h",
            *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF"),
            *("-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF"),
        ),
        (
            *("{here}/bin/cmake", "--build", "{here}/build"),
            *("--target", "llama-server", "--parallel", "{cores}"),
        ),
    ),
)
_COMMAND = (
    *("{here}/build/bin/llama-server", "--model", "{model}", "--alias", MODEL_NAME),
    *("--host", "{host}", "--port", "{port}"),
    *("--threads", "{threads}", "--threads-batch", "{threads}"),
    *("--parallel", str(NUM_SLOTS), "--ctx-size", str(CONTEXT_TOKENS), "--no-ui"),
)
_SHARED, _SPLIT = "--kv-unified", "--no-kv-unified"
_FLASH, _NO_FLASH = ("--flash-attn", "on"), ("--flash-attn", "off")
# Of its kinds of n-gram speculation and their sizes, the fastest of nine tried for one client.
_NGRAM = (
    *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-min", "2", "--spec-ngram-mod-n-max", "8"),
)
# Its own choices are flash attention, and for a given number of slots a cache of each its own.
_SETTINGS = {
    "": (*_FLASH, _SHARED),
    "-fa0": (*_NO_FLASH, _SHARED),
    "-split": (*_FLASH, _SPLIT),
    "-fa0-split": (*_NO_FLASH, _SPLIT),
    "-ngram": (*_FLASH, _SHARED, *_NGRAM),
}
# The file as it is, and what was fastest for many clients with and without bf16 units, and for one.
_BY_DEFAULT = ("file", "q4_0-split", "bf16-fa0-split", "q4_0-ngram")
_REQUANTISED = ("q4_0", "q8_0", "bf16")


def servers(file_format: str, num_threads: int) -> Sequence[ServerPlan]:
    """The file and other quantisations of it, with and without flash attention, and so on."""
    forms: list[str | None] = [None, *(f for f in _REQUANTISED if f != file_format.lower())]
    return [
        ServerPlan(
            name=f"llama-server {(form or file_format).upper()}{suffix.replace('-', ' ')}",
            key=(form or "file") + suffix,
            environment=ENVIRONMENT,
            model=None if form is None else llama_cpp.made_gguf(form),
            command=_COMMAND + arguments,
            versions={"llama-cpp-python's llama.cpp": _VERSION},
            is_same_file=form is None,
            by_default=(form or "file") + suffix in _BY_DEFAULT,
        )
        for form in forms
        for suffix, arguments in _SETTINGS.items()
    ]
