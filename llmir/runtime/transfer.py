"""Arrays to a device and back, on every driver, in buffers that are used again.

Importing host memory is not to be had everywhere: Vulkan wants whole pages of 4,096
bytes.  So what a device's memory lets the host see is written and read in place, and the
rest goes through a host buffer that the device allocated itself, by its queue.  Each
argument and each result of a step has its own buffers, which grow by doubling and stay: a
step of a size that was there before allocates nothing.

Copies and steps follow one another on a timeline of the device's; the host waits once, when
it reads the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import iree.runtime as rt
import numpy as np
import numpy.typing as npt
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
_LEAST_BYTES = 256
_MAPPED = int(rt.BufferUsage.MAPPING_SCOPED)
_VISIBLE = int(rt.MemoryType.HOST_VISIBLE)
_COHERENT = _VISIBLE | int(rt.MemoryType.HOST_COHERENT)
_READABLE = _COHERENT | int(rt.MemoryType.HOST_CACHED)
_STAGING = (
    int(rt.MemoryType.HOST_LOCAL)
    | int(rt.MemoryType.HOST_COHERENT)
    | int(rt.MemoryType.DEVICE_VISIBLE)
)
_STAGING_USAGE = int(rt.BufferUsage.DEFAULT) | int(rt.BufferUsage.MAPPING)
_DEVICE_USAGE = _STAGING_USAGE | int(rt.BufferUsage.MAPPING_OPTIONAL)


class Timeline:
    """Work of a device in one order: each piece begins when the one before has ended."""

    def __init__(self, device: rt.HalDevice) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Begin anew: work that failed fails all that waits for it."""
        self._semaphore = self._device.create_semaphore(0)
        self._value = 0

    def next(self) -> tuple[rt.HalFence, rt.HalFence]:
        """For one piece of work: what it waits for, and what it signals."""
        self._value += 1
        before, after = (
            rt.HalFence.create_at(self._semaphore, self._value - 1),
            rt.HalFence.create_at(self._semaphore, self._value),
        )
        return before, after

    def wait(self) -> None:
        """Until all of it is done.  Raises one of IREE's errors if some of it failed."""
        self._semaphore.wait(self._value)


class Transfers:
    """Sends the arguments of a step and fetches its results.  Not thread-safe.

    Args:
        timeline: where copies take their place; all that used what was sent before must be done
            when something is sent again.
        is_cpu: the device's memory is the host's own: whatever it sees it may use in place.
    """

    def __init__(self, device: rt.HalDevice, timeline: Timeline, *, is_cpu: bool) -> None:
        self._device = device
        self._timeline = timeline
        self._writable = _VISIBLE if is_cpu else _COHERENT
        self._readable = _VISIBLE if is_cpu else _READABLE
        self._on_device: dict[int, rt.HalBuffer] = {}
        self._to_send: dict[int, rt.HalBuffer] = {}
        self._fetched: dict[int, rt.HalBuffer] = {}

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[rt.HalBufferView]:
        """Float32 or int32 arrays as buffer views of their shapes, for what is next in time."""
        views = []
        for place, array in enumerate(arrays):
            buffer = self._device_buffer(place, array.nbytes)
            views.append(rt.HalBufferView(buffer, array.shape, int(_ELEMENTS[array.dtype])))
            if array.nbytes == 0:
                continue
            if _host_sees(buffer, self._writable):
                _bytes_of(buffer, array.nbytes)[:] = _flat(array)
                continue
            staging = self._staging(self._to_send, place, buffer.byte_length())
            _bytes_of(staging, array.nbytes)[:] = _flat(array)
            self._device.queue_copy(staging, buffer, *self._timeline.next())
        return views

    def fetch(
        self, views: Sequence[rt.HalBufferView], dtypes: Sequence[type[np.generic]]
    ) -> list[NDArray[Any]]:
        """Copies of what buffer views hold, float32 or int32 as `dtypes` say.

        Waits for the timeline.
        """
        shapes = [tuple(view.shape) for view in views]
        buffers = []
        for place, view in enumerate(views):
            buffer = view.get_buffer()
            if buffer.byte_length() and not _host_sees(buffer, self._readable):
                staging = self._staging(self._fetched, place, buffer.byte_length())
                self._device.queue_copy(buffer, staging, *self._timeline.next())
                buffer = staging
            buffers.append(buffer)
        self._timeline.wait()
        found = []
        for buffer, shape, dtype in zip(buffers, shapes, dtypes, strict=True):
            num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            held = _bytes_of(buffer, num_bytes) if num_bytes else np.zeros(0, np.uint8)
            found.append(held.view(dtype).reshape(shape).copy())
        return found

    def _device_buffer(self, place: int, num_bytes: int) -> rt.HalBuffer:
        found = self._on_device.get(place)
        if found is None or found.byte_length() < num_bytes:
            found = self._device.allocator.allocate_buffer(
                memory_type=rt.MemoryType.DEVICE_LOCAL,
                allowed_usage=_DEVICE_USAGE,
                allocation_size=_capacity(num_bytes),
            )
            self._on_device[place] = found
        return found

    def _staging(
        self, buffers: dict[int, rt.HalBuffer], place: int, num_bytes: int
    ) -> rt.HalBuffer:
        """The host's buffer of a place, with room for so many bytes."""
        found = buffers.get(place)
        if found is None or found.byte_length() < num_bytes:
            found = self._device.allocator.allocate_buffer(
                memory_type=_STAGING,
                allowed_usage=_STAGING_USAGE,
                allocation_size=_capacity(num_bytes),
            )
            buffers[place] = found
        return found


def read_back(device: rt.HalDevice, view: rt.HalBufferView, dtype: npt.DTypeLike) -> NDArray[Any]:
    """A copy of what one buffer view holds when nothing more is being done to it.

    For ops that run alone; steps have `Transfers`.  Any element type, named by numpy's of its size.
    """
    element, shape = np.dtype(dtype), tuple(view.shape)
    num_bytes = int(np.prod(shape, dtype=np.int64)) * element.itemsize
    if not num_bytes:
        return np.zeros(shape, element)
    # Queues copy whole words of four bytes.
    num_words = -(-num_bytes // 4) * 4
    staging = device.allocator.allocate_buffer(
        memory_type=_STAGING, allowed_usage=_STAGING_USAGE, allocation_size=num_words
    )
    timeline = Timeline(device)
    device.queue_copy(view.get_buffer(), staging, *timeline.next())
    timeline.wait()
    return _bytes_of(staging, num_bytes).view(element).reshape(shape).copy()


def _capacity(num_bytes: int) -> int:
    """The next power of two: buffers grow seldom."""
    return max(_LEAST_BYTES, 1 << max(0, num_bytes - 1).bit_length())


def _host_sees(buffer: rt.HalBuffer, memory: int) -> bool:
    """Whether the host may map it, and its memory is all of these kinds."""
    return bool(buffer.allowed_usage() & _MAPPED) and buffer.memory_type() & memory == memory


def _bytes_of(buffer: rt.HalBuffer, num_bytes: int) -> NDArray[np.uint8]:
    """The first bytes of a buffer that the host sees, in place."""
    return np.asarray(buffer.map().asarray([num_bytes], np.dtype(np.uint8)))


def _flat(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
