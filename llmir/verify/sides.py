"""Who is compared: an artifact on a device.  See transformers_side.py for the other kind.

Shape legend: T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmir.artifact import Artifact, ModuleEntry
from llmir.engine import LLM, SamplingParams, SchedulerConfig
from llmir.engine.from_artifact import open_artifact
from llmir.errors import OptionError
from llmir.runtime.base import F32
from llmir.runtime.choice import choose_module
from llmir.runtime.devices import open_device


class Side(Protocol):
    """What answers prompts, and gives logits of what another has answered."""

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Greedy tokens of each prompt, `num_tokens` of them: an end token ends nothing."""
        ...

    def logits(self, token_ids: Sequence[int]) -> F32:
        """Teacher-forced logits, float32 [T, V]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePlan:
    """A side that can be opened; only one is open at a time.

    name:      what the report calls it
    about:     what it is, in a phrase
    is_exact:  whether it rounds nothing that the weights do not: float32 activations and KV
    """

    name: str
    about: str
    is_exact: bool
    open: Callable[[], Side]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """As in runtime.session.SessionOptions; threads are for CPUs."""

    num_threads: int | None = None
    kv_cache_bytes: int | None = None


class DeviceSide:
    """An artifact on a device.

    Every request is computed anew, without the prefix cache: what is compared is computed.
    """

    def __init__(self, artifact: Artifact, device: str, options: DeviceOptions) -> None:
        self._llm = LLM(
            open_artifact(
                artifact,
                device=device,
                kv_cache_memory_bytes=options.kv_cache_bytes,
                num_threads=options.num_threads if is_cpu(device) else None,
            ).runner,
            None,
            config=SchedulerConfig(enable_prefix_caching=False),
        )

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """See Side.answer.  All prompts at once, as a server has them."""
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        outputs = self._llm.generate([list(ids) for ids in prompts], params)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def logits(self, token_ids: Sequence[int]) -> F32:
        """See Side.logits."""
        return self._llm.logits(list(token_ids))


def is_cpu(device: str) -> bool:
    """Whether the URI of a device names a CPU."""
    return device.partition("://")[0] in ("cpu", "local-task", "local-sync")


def check_device(artifact: Artifact, device: str, options: DeviceOptions) -> ModuleEntry:
    """The module that the device runs.

    Raises: ArtifactTargetError if the artifact has none for it; DeviceError if this machine has
    no such device; OptionError for `num_threads`.
    """
    module = choose_module(artifact, device)
    open_device(device, options.num_threads if is_cpu(device) else None)
    return module


def device_plan(
    artifact: Artifact, device: str, options: DeviceOptions, *, name: str = ""
) -> SidePlan:
    """A side of an artifact on a device, checked now and opened later.  Raises as check_device."""
    module = check_device(artifact, device, options)
    return SidePlan(
        name=name or device,
        about=f"{artifact.manifest.model.name} for {module.target}",
        is_exact=rounds_nothing(artifact, module),
        open=lambda: DeviceSide(artifact, device, options),
    )


def rounds_nothing(artifact: Artifact, module: ModuleEntry) -> bool:
    """Whether a module computes with float32 activations and float32 keys and values."""
    if not module.calls:
        return False
    rounded = [c for c in module.calls if c.attrs.get("activations", "f32") != "f32"]
    return not rounded and artifact.manifest.kv.dtype == "f32"


def split_devices(text: str) -> list[str]:
    """Devices from "cpu,vulkan://0".  Raises OptionError if there are none or one comes twice."""
    devices = [part.strip() for part in text.split(",") if part.strip()]
    if not devices:
        raise OptionError("give at least one device, such as cpu,vulkan")
    for device in devices:
        if devices.count(device) > 1:
            raise OptionError(f"device {device!r} is given twice")
    return devices
