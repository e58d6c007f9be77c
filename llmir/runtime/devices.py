"""Devices: by URI, with errors that say what there is.

A URI is an IREE driver's name, with a path where the driver has several
devices: "local-task", "local-sync", "vulkan", "vulkan://0", "cuda://0", the path
a number or what the driver calls the device ("vulkan://GPU-…").  Without one it is
the driver's first.  `cpu` and `rocm` are accepted for local-task and hip
(targets.split_device).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import iree.runtime as rt

from llmir.errors import DeviceError, OptionError
from llmir.host import num_cores
from llmir.runtime.device_facts import DeviceFacts, parse_facts
from llmir.targets import split_device

IREE_ERRORS = (RuntimeError, ValueError, IndexError)
"""The exceptions that IREE's status codes become in Python."""


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
    driver_name, path = split_device(uri)
    if driver_name == "local-task":
        _set_threads(num_threads)
    elif num_threads is not None:
        raise OptionError(f"threads are for the device local-task; {uri!r} has none to set")
    is_cpu = driver_name.startswith("local")
    return _opened(driver_name, path or ("" if is_cpu else "0"))


@functools.cache
def _opened(driver_name: str, path: str) -> rt.HalDevice:
    """The device, opened once and kept as long as the process.

    Buffers do not keep their device alive: freeing one after its device crashes
    the Vulkan driver, and Python promises no order.
    """
    uri = f"{driver_name}://{path}" if path else driver_name
    if driver_name not in rt.query_available_drivers():
        raise DeviceError(f"no driver {driver_name!r} for device {uri!r}; {_what_there_is()}")
    if problem := driver_problem(driver_name):
        raise DeviceError(f"cannot open device {uri!r}: {problem}; {_what_there_is()}")
    entry = _entry(driver_name, path)
    try:
        driver = rt.get_driver(driver_name)
        if driver_name.startswith("local"):
            return driver.create_default_device()
        return driver.create_device(entry["device_id"])
    except IREE_ERRORS as error:
        raise DeviceError(
            f"cannot open device {uri!r}: {first_line(error)}; {_what_there_is()}"
        ) from error


def _entry(driver_name: str, path: str | None) -> dict[str, Any]:
    """What a driver lists of the device at a path: its first, by number, or by its own name.

    Of local-task and local-sync, which have one device each, nothing.
    """
    if driver_name.startswith("local"):
        listed: list[dict[str, Any]] = [{"path": ""}]
    else:
        listed = rt.get_driver(driver_name).query_available_devices()
    path = path or "0"
    if path.isdigit() and int(path) < len(listed):
        return listed[int(path)]
    for device in listed:
        if path == device["path"]:
            return device
    raise DeviceError(f"no device '{driver_name}://{path}'; {_what_there_is()}")


def same_device(first: str, second: str) -> bool:
    """Whether two URIs name one device, as vulkan and vulkan://0 do.

    Raises DeviceError if there is no such device.
    """
    (driver, path), (other, other_path) = split_device(first), split_device(second)
    return driver == other and _entry(driver, path) == _entry(other, other_path)


@functools.cache
def facts_of(uri: str) -> DeviceFacts:
    """What is known of a device; of local-task and local-sync, which are this machine, no more.

    Raises DeviceError if there is no such device, or its driver fails.
    """
    driver_name, path = split_device(uri)
    if driver_name.startswith("local"):
        return DeviceFacts(kind="cpu")
    if problem := driver_problem(driver_name):
        raise DeviceError(f"no device {uri!r}: {problem}; {_what_there_is()}")
    entry = _entry(driver_name, path)
    try:
        return parse_facts(rt.get_driver(driver_name).dump_device_info(entry["device_id"]))
    except IREE_ERRORS as error:
        raise DeviceError(f"the driver {driver_name} fails: {first_line(error)}") from error


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
    if driver_problem(driver_name):
        return ()
    devices = rt.get_driver(driver_name).query_available_devices()
    return tuple(
        DeviceInfo(f"{driver_name}://{i}", d.get("name") or driver_name)
        for i, d in enumerate(devices)
    )


@functools.cache
def driver_problem(driver_name: str) -> str:
    """Why a driver does not load or cannot list its devices; "" if it can.

    Most often its library is missing: libcuda.so, libamdhip64.so or libvulkan.so.1.
    """
    if driver_name not in rt.query_available_drivers():
        return f"this IREE runtime has no driver {driver_name}"
    if driver_name.startswith("local"):
        return ""
    try:
        rt.get_driver(driver_name).query_available_devices()
    except IREE_ERRORS as error:
        return f"the driver {driver_name} does not load ({first_line(error)})"
    return ""


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


def first_line(error: Exception) -> str:
    """What IREE says is wrong: the end of its first line, after where in its sources."""
    line = str(error).split("; stack trace")[0].splitlines()[0]
    return line.split(".c:", 1)[-1].split(": ", 1)[-1].strip() if ".c:" in line else line
