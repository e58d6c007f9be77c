"""Calls of C kernels in this process, on buffers that touch pages nobody may touch.

A buffer is as long as it has to be and no longer; the page after it, or the page before it,
cannot be accessed: the first byte out of bounds ends the process (faulthandler says where).
What is only read cannot be written.  What stands in the buffer's own pages beside it must be
the same afterwards.
"""

from __future__ import annotations

import ctypes
import mmap
import random
from dataclasses import dataclass, field

import numpy as np

from .lowered_calls import Array, Dispatch, Offset, Pointer

PAGE = mmap.PAGESIZE
_NONE, _READ, _WRITE = 0, 1, 2
_PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Guarded:
    """A copy of an array between pages that cannot be accessed."""

    def __init__(self, array: Array, *, at_end: bool, fill: int | None, writable: bool) -> None:
        self.num_bytes = array.nbytes
        inside = -(-max(array.nbytes, 1) // PAGE) * PAGE
        self.mapped = inside + 2 * PAGE
        self.base = _libc.mmap(None, self.mapped, _READ | _WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        assert self.base not in (None, ctypes.c_void_p(-1).value), "mmap failed"
        start = inside - array.nbytes if at_end else 0
        self.address = self.base + PAGE + start
        self.inside = np.ctypeslib.as_array(
            (ctypes.c_uint8 * inside).from_address(self.base + PAGE)
        )
        self.inside[:] = 0xA5
        self.bytes = self.inside[start : start + array.nbytes]
        self.bytes[:] = array.reshape(-1).view(np.uint8) if fill is None else fill
        self.beside = self.inside[:start], self.inside[start + array.nbytes :]
        for page, length, rights in (
            (self.base, PAGE, _NONE),
            (self.base + PAGE + inside, PAGE, _NONE),
            (self.base + PAGE, inside, _READ | _WRITE if writable else _READ),
        ):
            assert _libc.mprotect(page, length, rights) == 0

    def check(self, what: str) -> None:
        intact = all((side == 0xA5).all() for side in self.beside)
        assert intact, f"{what}: written beside the buffer"

    def close(self) -> None:
        _libc.munmap(self.base, self.mapped)


@dataclass
class Native:
    """A level's kernels in this process.

    at_end:  whether the forbidden page is right after each buffer, or right before
    poison:  the byte that fresh memory is full of
    seed:    of the order of the workgroups
    """

    library: ctypes.CDLL
    at_end: bool = True
    poison: int = 0xFF
    seed: int = 0
    called: set[str] = field(default_factory=set)

    def __call__(self, dispatch: Dispatch) -> None:
        self.called.add(dispatch.function)
        offset = 0 if self.at_end else 48
        memory = [
            Guarded(
                tensor,
                at_end=self.at_end,
                fill=self.poison if i in dispatch.fresh else None,
                writable=i in dispatch.written,
            )
            for i, tensor in enumerate(dispatch.tensors)
        ]
        function = self.library[dispatch.function]
        function.restype = None
        order = list(dispatch.workgroups())
        random.Random(self.seed).shuffle(order)
        for workgroup in order:
            arguments = []
            for argument in dispatch.arguments_of(workgroup):
                if isinstance(argument, Pointer):
                    item = dispatch.tensors[argument.tensor].itemsize
                    value = memory[argument.tensor].address - offset * item
                    arguments.append(ctypes.c_void_p(value))
                elif isinstance(argument, Offset):
                    arguments.append(ctypes.c_size_t(offset))
                elif isinstance(argument, float):
                    arguments.append(ctypes.c_float(argument))
                else:
                    assert isinstance(argument, int)
                    arguments.append(ctypes.c_size_t(argument))
            function(*arguments)
        for i, (tensor, held) in enumerate(zip(dispatch.tensors, memory, strict=True)):
            held.check(f"{dispatch.function}, tensor {i}")
            if i in dispatch.written:
                tensor.reshape(-1).view(np.uint8)[:] = held.bytes
            held.close()
