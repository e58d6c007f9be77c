"""Where devices part, op by op: each op of a step alone, beside its definition in numpy.

The ops are those of a module after selection and fusion, with the lowerings that it has and the
artifact's own weights; activations are normal numbers.  Each is compiled alone, run on the device,
and compared with `reference` of its file in dialect_ext, which rounds as the op is defined to: so
what is left is the order of sums, and an error beyond that is the lowering's, the compiler's or
the driver's.  This needs the compile tools, and is the only part of `llmir verify` that does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from numpy.typing import NDArray

from llmir.artifact import Artifact, ModuleEntry, StepCall
from llmir.errors import ArtifactVersionError, DeviceError
from llmir.runtime.choice import choose_module
from llmir.runtime.devices import IREE_ERRORS, open_device
from llmir.runtime.transfer import read_back
from llmir.verify.op_batch import op_batch

Array = NDArray[Any]

LIMIT = 1e-3
"""Of results in float32, of the largest number of the result: sums of thousands of products in
another order differ by 1e-6, and an activation of int8 that was rounded the other way by 3e-4."""
PAGE_LIMITS = {"f32": LIMIT, "f16": LIMIT, "bf16": 2**-7, "int8": 2 / 127, "fp8": 2**-3}
"""Of KV pages: one step of what they store, for numbers that lie between two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """An op on a device, compared with its reference.

    label:   what it is in the model; op, provider, variant: as select-providers says
    count:   how often it occurs in a step
    error:   the largest difference of a result, of the largest number in it; of integers the
             share that differs; infinite if one side alone is not finite
    limit:   what is allowed
    """

    side: str
    label: str
    op: str
    provider: str
    variant: str
    count: int
    error: float
    limit: float

    @property
    def is_wrong(self) -> bool:
        return not self.error <= self.limit


def check_ops(
    side: str, artifact: Artifact, device: str, num_threads: int | None, scratch: Path
) -> Iterator[OpRow]:
    """Run the ops of the artifact's module for a device there, in the order of the step.

    Raises, after the rows found until then: ToolVersionError if the compile tools are missing or
    others; CompileError; ArtifactVersionError if the artifact does not list its ops; DeviceError.
    """
    check_tools()
    from llmir.compiler.op_modules import compile_alone, typed
    from llmir.verify.op_operands import Operands

    module = choose_module(artifact, device)
    check_lists_ops(module)
    file = scratch / "ops.vmfb"
    compile_alone(module.calls, module.flags, file)
    runner = _Runner(module, file, open_device(device, num_threads))
    operands = Operands(artifact, module, op_batch(artifact.manifest))
    for index, step_call in enumerate(module.calls):
        made = operands.of(typed(step_call), step_call)
        found = runner.run(index, made.on_device, made.result_dtypes)
        error, limit = _worst(
            made.comparable(found), made.expected(), made.limits(LIMIT, PAGE_LIMITS)
        )
        yield _row(side, step_call, error, limit)


def check_tools() -> None:
    """Raises ToolVersionError if the compile tools are missing or others."""
    from llmir.compiler import versions

    versions.check_tools()


def check_lists_ops(module: ModuleEntry) -> None:
    """Raises ArtifactVersionError if the manifest does not say what ops the module has."""
    if not module.calls:
        raise ArtifactVersionError(
            f"the artifact does not list the ops of {module.file}: another llmir made it; "
            "compile the model again"
        )


def _row(side: str, call: StepCall, error: float, limit: float) -> OpRow:
    return OpRow(
        side=side,
        label=call.label,
        op=call.op,
        provider=call.provider,
        variant=call.variant,
        count=call.count,
        error=error,
        limit=limit,
    )


def _worst(
    found: Sequence[Array], expected: Sequence[Array], limits: Sequence[float]
) -> tuple[float, float]:
    """(error, limit) of the result that is nearest to its limit or furthest beyond."""
    errors = [error_of(a, b) for a, b in zip(found, expected, strict=True)]
    return max(zip(errors, limits, strict=True), key=lambda pair: pair[0] / pair[1])


def error_of(found: Array, expected: Array) -> float:
    """See OpRow.error."""
    if found.shape != expected.shape:
        return float("inf")
    if found.dtype.kind == "i":
        return float(np.mean(found != expected)) if found.size else 0.0
    finite = np.isfinite(expected)
    if (np.isfinite(found) != finite).any():
        return float("inf")
    a, b = (np.where(finite, x, 0).astype(np.float64) for x in (found, expected))
    largest = np.abs(b).max(initial=0.0)
    return float(np.abs(a - b).max(initial=0.0) / (largest or 1.0))


class _Runner:
    """The functions of `compile_alone` on a device."""

    def __init__(self, module: ModuleEntry, file: Path, device: rt.HalDevice) -> None:
        self._module, self._device = module, device
        instance = rt.VmInstance()
        try:
            self._code = rt.VmModule.mmap(instance, str(file))
            hal = rt.create_hal_module(instance, device)
            self._context = rt.VmContext(instance, [hal, self._code])
        except IREE_ERRORS as error:
            raise DeviceError(f"cannot load the ops of {module.target}: {error}") from error

    def run(
        self, index: int, operands: Sequence[tuple[Array, Any]], dtypes: Sequence[Any]
    ) -> list[Array]:
        """What the function returns.  operands: (array, element type)."""
        call = self._module.calls[index]
        arguments, results = rt.VmVariantList(len(operands)), rt.VmVariantList(len(dtypes))
        try:
            for array, element in operands:
                arguments.push_ref(self._put(array, element))
            function = self._code.lookup_function(f"call_{index}")
            self._context.invoke(function, arguments, results)
            return [
                read_back(self._device, results.get_as_object(i, rt.HalBufferView), dtype)
                for i, dtype in enumerate(dtypes)
            ]
        except IREE_ERRORS as error:
            raise DeviceError(f"llm.{call.op} failed on {self._module.target}: {error}") from error

    def _put(self, array: Array, element: Any) -> rt.HalBufferView:
        return self._device.allocator.allocate_buffer_copy(
            memory_type=rt.MemoryType.DEVICE_LOCAL,
            allowed_usage=rt.BufferUsage.DEFAULT | rt.BufferUsage.MAPPING,
            device=self._device,
            buffer=np.ascontiguousarray(array),
            element_type=element,
        )
