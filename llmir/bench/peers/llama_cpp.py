"""llama.cpp, as llama-cpp-python builds it for this machine.

The file itself, and the same weights requantised by its own quantiser in the forms that it
is fast at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmir.bench.peers.base import Environment, MadeModel, SidePlan

NAME = "llama.cpp"
WORKER = "with_llama_cpp"

# GCC 12's <amxtileintrin.h> tells the compiler that ldtilecfg reads 8 of the 64 bytes of a
# tile configuration, and that tileloadd reads no memory: the other bytes are then optimised
# away and llama.cpp dies of a general protection fault on CPUs with AMX.  These say it all.
_AMX_FIX = r"""#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
  __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)) : "memory")
#undef _tile_loadd_internal
#define _tile_loadd_internal(dst, base, stride)              \
  __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" #dst ::"r"( \
                       (const void*)(base)),                 \
                   "r"((long)(stride))                       \
                   : "memory")
#endif
"""

ENVIRONMENT = Environment(
    name="llama.cpp",
    installs=(("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),),
    build={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-include {here}/amx_fix.h'"},
    files={"amx_fix.h": _AMX_FIX},
)
_REQUANTISED = ("q4_0", "q8_0", "bf16")
# Its own choice is flash attention on; on two AMX cores decoding at depth was twice as fast off.
_FLASH_OFF = {"flash_attention": 0}
# Not repacked for AMX and the like, as llama.cpp was before it did that.
_PLAIN = {"flash_attention": 0, "repack": False}
_KV_Q8 = {"kv_dtype": "q8_0"}  # needs flash attention


def made_gguf(form: str) -> MadeModel:
    """The file, requantised.  form: a name of workers.with_llama_cpp.FILE_TYPES."""
    return MadeModel(
        form=f"{form}.gguf", worker=WORKER, environment=ENVIRONMENT, spec={"format": form}
    )


def sides(file_format: str, num_threads: int) -> Sequence[SidePlan]:
    """The file and other quantisations of it; without flash attention or repacking, KV in q8_0."""
    forms: list[str | None] = [None, *(f for f in _REQUANTISED if f != file_format.lower())]
    plans = []
    for form in forms:
        name, key = (f"{NAME} {file_format}", "file") if form is None else _names(form)
        settings: dict[str, dict[str, Any]] = {
            "": {},
            "-fa0": _FLASH_OFF,
            "-plain": _PLAIN,
            "-kvq8": _KV_Q8,
        }
        plans += [
            SidePlan(
                name=name + suffix.replace("-", " "),
                key=key + suffix,
                worker=WORKER,
                environment=ENVIRONMENT,
                model=None if form is None else made_gguf(form),
                spec=spec,
                is_same_file=form is None,
                by_default=suffix == "-fa0" or (form is None and not suffix),
            )
            for suffix, spec in settings.items()
        ]
    return plans


def _names(form: str) -> tuple[str, str]:
    return f"{NAME} {form.upper()}", form
