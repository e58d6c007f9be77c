"""Arrays to the device and back, by numpy and iree.runtime alone."""

from __future__ import annotations

from typing import Any

import iree.runtime as rt
import numpy as np

Array = np.ndarray[Any, Any]
ELEMENTS = {
    "f32": rt.HalElementType.FLOAT_32,
    "i32": rt.HalElementType.SINT_32,
    "bf16": rt.HalElementType.BFLOAT_16,
    "i8": rt.HalElementType.INT_8,
}
BYTES = {"f32": 4, "i32": 4, "bf16": 2, "i8": 1}


def put(device: Any, array: Array, dtype: str) -> Any:
    """A buffer view; bf16 is given as float32 or as its bits."""
    if dtype == "bf16" and array.dtype == np.float32:
        bits = array.view(np.uint32)
        array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return device.allocator.allocate_buffer_copy(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT,  # one that can be mapped may be managed memory
        device=device,
        buffer=np.ascontiguousarray(array),
        element_type=ELEMENTS[dtype],
    )


def get(device: Any, view: Any, dtype: type[np.generic]) -> Array:
    """A copy of a buffer view of 32-bit elements, through a staging buffer."""
    shape = tuple(view.shape)
    staging = device.allocator.allocate_buffer(
        memory_type=rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE,
        allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
        allocation_size=int(np.prod(shape, dtype=np.int64)) * 4,
    )
    done = device.create_semaphore(0)
    device.queue_copy(view.get_buffer(), staging, rt.HalFence(0), rt.HalFence.create_at(done, 1))
    done.wait(1)
    element = ELEMENTS["f32" if dtype is np.float32 else "i32"]
    mapped = rt.HalBufferView(staging, shape, element).map()
    found: Array = np.array(mapped.asarray(shape, np.dtype(dtype)))
    return found
