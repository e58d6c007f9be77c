"""Arrays to a device and back, on every driver.

`HalBufferView.map` and the importing of host memory are not to be had
everywhere: Vulkan wants pages of 4,096 bytes.  So results are copied by the
queue into a host-visible buffer that the device allocated itself.
"""

from __future__ import annotations

from typing import Any

import iree.runtime as rt
import numpy as np
from numpy.typing import NDArray

_ELEMENTS = {
    np.dtype(np.float32): rt.HalElementType.FLOAT_32,
    np.dtype(np.int32): rt.HalElementType.SINT_32,
}
ELEMENT_TYPES = {
    "f32": rt.HalElementType.FLOAT_32,
    "f16": rt.HalElementType.FLOAT_16,
    "bf16": rt.HalElementType.BFLOAT_16,
    "i8": rt.HalElementType.INT_8,
}
_USAGE = rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING


def to_device(device: rt.HalDevice, array: NDArray[Any]) -> rt.HalBufferView:
    """A copy of a float32 or int32 array on the device, as a buffer view of its shape."""
    return device.allocator.allocate_buffer_copy(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=_USAGE,
        device=device,
        buffer=np.ascontiguousarray(array),
        element_type=_ELEMENTS[array.dtype],
    )


def to_host(
    device: rt.HalDevice, view: rt.HalBufferView, dtype: type[np.generic] = np.float32
) -> NDArray[Any]:
    """The contents of a buffer view of float32 or int32, copied to the host."""
    shape, element = tuple(view.shape), np.dtype(dtype)
    source = view.get_buffer()
    if source.allowed_usage() & int(rt.BufferUsage.MAPPING_SCOPED):
        return _mapped(view, shape, element).copy()
    num_bytes = int(np.prod(shape, dtype=np.int64)) * 4
    staging = device.allocator.allocate_buffer(
        memory_type=rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE,
        allowed_usage=_USAGE,
        allocation_size=num_bytes,
    )
    done = device.create_semaphore(0)
    device.queue_copy(source, staging, rt.HalFence(0), rt.HalFence.create_at(done, 1))
    done.wait(1)
    return _mapped(rt.HalBufferView(staging, shape, _ELEMENTS[element]), shape, element).copy()


def _mapped(view: rt.HalBufferView, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    mapped = view.map().asarray(list(shape), dtype)
    return np.asarray(mapped)
