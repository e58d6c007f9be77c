"""Devices: by URI, with errors that say what there is.

A URI is an IREE driver's name, with a path where the driver has several
devices: "local-task", "local-sync", "vulkan", "vulkan://0", "cuda://0".
`cpu` and `rocm` are accepted for local-task and hip.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import iree.runtime as rt

from llmir.errors import DeviceError, OptionError
from llmir.host import num_cores

IREE_ERRORS = (RuntimeError, ValueError, IndexError)
"""The exceptions that IREE's status codes become in Python."""

_DRIVER_ALIASES = {"cpu": "local-task", "rocm": "hip"}


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that this machine has."""

    uri: str
    name: str


def open_device(uri: str, num_threads: int | None = None) -> rt.HalDevice:
    """Open the device of a URI.

    Args:
        num_threads: CPU worker threads; None is one per physical core.  IREE fixes it for the
            process at the first CPU device; another number later is refused.
    Raises: DeviceError naming what there is instead; OptionError for `num_threads`.
    """
    driver_name, sep, path = uri.partition("://")
    driver_name = _DRIVER_ALIASES.get(driver_name, driver_name)
    if driver_name == "local-task":
        _set_threads(num_threads)
    elif num_threads is not None:
        raise OptionError(f"threads are for the device local-task; {uri!r} has none to set")
    return _opened(driver_name, path if sep else None)


@functools.cache
def _opened(driver_name: str, path: str | None) -> rt.HalDevice:
    """The device, opened once and kept as long as the process.

    Buffers do not keep their device alive: freeing one after its device crashes
    the Vulkan driver, and Python promises no order.
    """
    uri = driver_name if path is None else f"{driver_name}://{path}"
    if driver_name not in rt.query_available_drivers():
        raise DeviceError(f"no driver {driver_name!r} for device {uri!r}; {_what_there_is()}")
    try:
        driver = rt.get_driver(driver_name)
        if path is None:
            return driver.create_default_device()
        if path.isdigit():
            found = driver.query_available_devices()
            if int(path) >= len(found):
                raise DeviceError(f"no device {uri!r}; {_what_there_is()}")
            return driver.create_device(found[int(path)]["device_id"])
        return driver.create_device_by_uri(uri)
    except IREE_ERRORS as error:
        raise DeviceError(
            f"cannot open device {uri!r}: {_first_line(error)}; {_what_there_is()}"
        ) from error


def available_devices() -> tuple[DeviceInfo, ...]:
    """Every device of every driver that loads on this machine."""
    return tuple(d for name in sorted(rt.query_available_drivers()) for d in devices_of(name))


@functools.cache
def devices_of(driver_name: str) -> tuple[DeviceInfo, ...]:
    """The devices of one driver.  Asking loads its library, which may take 50 MB."""
    if driver_name not in rt.query_available_drivers():
        return ()
    if driver_name.startswith("local"):
        # Its workers start with the driver, as many as are set then: asking must not start it.
        return (DeviceInfo(driver_name, driver_name),)
    try:
        devices = rt.get_driver(driver_name).query_available_devices()
    except IREE_ERRORS:
        return ()  # this machine lacks the driver's library
    return tuple(
        DeviceInfo(f"{driver_name}://{i}", d.get("name") or driver_name)
        for i, d in enumerate(devices)
    )


def positive(name: str, value: int) -> int:
    """`value`, if it is a whole number of at least 1.  Raises OptionError naming the option."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} must be a positive whole number, got {value!r}")
    return value


_threads: list[int] = []


def _set_threads(wanted: int | None) -> None:
    if wanted is None:
        if _threads:
            return
        wanted = num_cores()
    num_threads = positive("threads", wanted)
    if not _threads:
        rt.flags.parse_flags(f"--task_topology_group_count={num_threads}")
        _threads.append(num_threads)
    elif _threads[0] != num_threads:
        raise OptionError(
            f"threads is {_threads[0]} in this process already and cannot become {num_threads}"
        )


def _what_there_is() -> str:
    names = ", ".join(d.uri for d in available_devices())
    return f"devices on this machine: {names or 'none'}"


def _first_line(error: Exception) -> str:
    return str(error).split("; stack trace")[0].splitlines()[0]
