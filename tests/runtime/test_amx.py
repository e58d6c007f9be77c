"""AMX needs the kernel's permission: with it a tile is multiplied, without it a process dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from plugins.kernels import load_build

from llmir.host import host_cpu, is_amx

# int8 [16, 64] · int8 [16, 64]ᵀ → int32 [16, 16].  right: in groups of four of K, as AMX has it.
TILE = """
#include <immintrin.h>
#include <stdint.h>

void multiply(const int8_t *left, const int8_t *right, int32_t *out);

void multiply(const int8_t *left, const int8_t *right, int32_t *out) {
  // A palette, row 0, then for each tile its bytes per row and its rows.
  uint8_t config[64] __attribute__((aligned(64)));
  for (int i = 0; i < 64; ++i) ((volatile uint8_t *)config)[i] = 0;
  config[0] = 1;
  for (int tile = 0; tile < 3; ++tile) {
    config[16 + 2 * tile] = 64;
    config[48 + tile] = 16;
  }
  ASK
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_loadd(1, left, 64);
  _tile_loadd(2, right, 64);
  _tile_dpbssd(0, 1, 2);
  _tile_stored(0, out, 64);
  _tile_release();
}
"""
# A kernel may ask by itself: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
ASK = """
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L)
                   : "rcx", "r11", "memory");
"""
# The thread runs before the kernel is asked, as IREE's workers may.
PROGRAM = """
import ctypes, sys, threading
import numpy as np

library, ask = sys.argv[1:]
multiply = ctypes.CDLL(library).multiply
multiply.argtypes = [ctypes.c_void_p] * 3
rng = np.random.default_rng(1)
left, right = (rng.integers(-128, 128, (16, 64), dtype=np.int8) for _ in range(2))
grouped = np.ascontiguousarray(right.reshape(16, 16, 4).transpose(1, 0, 2))
out = np.empty((16, 16), np.int32)
asked = threading.Event()

def work():
    asked.wait()
    multiply(left.ctypes.data, grouped.ctypes.data, out.ctypes.data)

thread = threading.Thread(target=work)
thread.start()
if ask == "ask":
    from llmir.host import amx_refusal
    assert amx_refusal() == "", amx_refusal()
asked.set()
thread.join()
assert (out == left.astype(np.int32) @ right.T.astype(np.int32)).all()
"""
# A filter that lets every system call through but arch_prctl(ARCH_REQ_XCOMP_PERM, …), as a
# container's may: the number, and the first argument's low half.
REFUSING = """
import ctypes, struct
code = [(0x20, 0, 0, 0), (0x15, 0, 3, 158), (0x20, 0, 0, 16), (0x15, 0, 1, 0x1023),
        (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
pointer = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, ctypes.create_string_buffer(pointer), 0, 0) == 0, "PR_SET_SECCOMP"
from llmir.cpu_levels import host_level
from llmir.host import amx_refusal
print(amx_refusal(), host_level().name, sep="; ")
"""

pytestmark = pytest.mark.skipif(
    not any(map(is_amx, host_cpu().features)), reason="this CPU has no AMX"
)


def library_of(source: str, directory: Path) -> Path:
    build = load_build()
    (directory / "llmir_cpu.c").write_text(source)
    level = build.level_of("x86-64-v4-amx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SOURCES", directory)
        patch.setattr(build, "OBJECTS", directory / "objects")
        build.build_objects([level])
        return Path(build.link_shared(level, directory / "tile.so"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library_of(TILE.replace("ASK", ""), tmp_path_factory.mktemp("amx"))


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_thread_multiplies_a_tile_once_the_kernel_was_asked(library: Path) -> None:
    done = run(PROGRAM, library, "ask")
    assert done.returncode == 0, done.stderr


def test_a_process_that_did_not_ask_dies(library: Path) -> None:
    """What the loader keeps from happening."""
    assert run(PROGRAM, library, "do not").returncode == -signal.SIGILL


def test_a_kernel_may_ask_by_itself(tmp_path: Path) -> None:
    """As it must under hosts that do not know of AMX, such as iree-run-module."""
    done = run(PROGRAM, library_of(TILE.replace("ASK", ASK), tmp_path), "do not")
    assert done.returncode == 0, done.stderr


def test_where_the_kernel_refuses_the_reason_is_told_and_the_level_is_lower() -> None:
    done = run(REFUSING)
    assert done.returncode == 0, done.stderr
    expected = "the kernel refuses it: Operation not permitted; x86-64-v4-vnni-bf16"
    assert done.stdout.strip() == expected
