"""The devices of a machine, and which module of an artifact each would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmir.artifact import Artifact, ModuleEntry
from llmir.errors import ArtifactTargetError, DeviceError
from llmir.runtime.choice import choose_module
from llmir.runtime.devices import available_devices
from llmir.targets import kind_of_device

# The same CPU as local-task, on one thread.
_LEFT_OUT = ("local-sync",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device and the module that it runs, or a device or target and why it is not measured."""

    uri: str
    name: str
    module: ModuleEntry | None = None
    why_not: str = ""


def places_for(artifact: Artifact, wanted: Sequence[str] = ()) -> list[Place]:
    """Every device here, or those wanted; then the artifact's targets that none is here for.

    Raises DeviceError for a wanted device that is not there, naming those that are.
    """
    there = [d for d in available_devices() if d.uri not in _LEFT_OUT]
    if wanted:
        found = []
        for uri in wanted:
            # "cpu" is local-task; "vulkan" the first of its driver's.
            match = next((d for d in there if uri in (d.uri, kind_of_device(d.uri))), None)
            if match is None:
                names = ", ".join(d.uri for d in there)
                raise DeviceError(f"no device {uri!r}; devices on this machine: {names}")
            found.append(match)
        there = list(dict.fromkeys(found))
    places = []
    for device in there:
        try:
            module = choose_module(artifact, device.uri)
            places.append(Place(uri=device.uri, name=device.name, module=module))
        except ArtifactTargetError as error:
            places.append(Place(uri=device.uri, name=device.name, why_not=str(error)))
    if not wanted:
        kinds = {kind_of_device(d.uri) for d in there}
        for module in artifact.manifest.modules:
            if module.target.partition(":")[0] not in kinds:
                why = f"no device of the driver {module.driver} on this machine"
                places.append(Place(uri=module.target, name="", why_not=why))
    return places
