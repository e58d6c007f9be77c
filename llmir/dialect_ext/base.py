"""The contract of an `llm` op, and of what lowers it.

An op is one file in this package.  The file says, in one class:

    signature   `operands`, `attributes`: names, dtypes, ranks
    verifier    the checks of this base class, then the op's own `check`
    shape rule  `result_types`; it alone feeds torch's fake kernel, the verifier
                and the lowerings
    reference   `reference`: numpy, slow and obviously right; it is the eager
                implementation of torch.ops.llm.<name>
    lowerings   `lowerings`: portable ones here; kernel providers may add theirs
                through the registry

In MLIR an op is `"llm.<name>"(operands) {attributes}`, attributes i64, f64, i1 or strings.
An op with optional operands carries `operandSegmentSizes = array<i32: …>` with
a 1 or 0 for every operand of the signature.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from llmir.dialect_ext.types import Dim, TensorType, dims_conflict
from llmir.errors import VerifyError
from llmir.targets import Target

AttrValue = int | float | bool | str
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One operand of an op's signature.

    dims:      the legend, one name per dim: ("T", "K").  The same name in two
               operands of one op means the same size, and the verifier checks it;
               a number is a size.  A name that starts with "_" is not compared.
    dtypes:    the element types it may have
    optional:  whether it may be absent
    by_name:   an optional one that torch's callers leave out, or pass by name after the others
    """

    name: str
    dims: tuple[str | int, ...]
    dtypes: tuple[str, ...]
    optional: bool = False
    by_name: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One static attribute: an int, float, bool or str.  One with a default may be left out.

    by_name: torch's callers too may leave it out, or pass it by name
    """

    name: str
    kind: type[int] | type[float] | type[bool] | type[str]
    default: AttrValue | None = None
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One use of an op, with everything static about it.

    operands:  a type per operand of the signature, None where an optional one is absent
    attrs:     a value per attribute
    results:   what the op's shape rule gives; empty until it has run
    """

    op: Op
    operands: tuple[TensorType | None, ...]
    attrs: Mapping[str, AttrValue]
    results: tuple[TensorType, ...] = ()

    def type_of(self, name: str) -> TensorType:
        """The type of the operand of that name, which must be present."""
        found = self.operand(name)
        assert found is not None, f"{self.op.name} has no {name} here"
        return found

    def operand(self, name: str) -> TensorType | None:
        """The type of the operand of that name, None if it is absent."""
        return self.operands[self.op.operand_index(name)]

    @property
    def present(self) -> list[tuple[str, TensorType]]:
        """(name, type) of the operands that are there, in order."""
        pairs = zip(self.op.operands, self.operands, strict=True)
        return [(spec.name, t) for spec, t in pairs if t is not None]

    def signature(self, symbol: str) -> str:
        """`func.func private @symbol(%x: …, …) -> …`, the head of every lowering."""
        args = ", ".join(f"%{name}: {t}" for name, t in self.present)
        results = ", ".join(map(str, self.results))
        return f"func.func private @{symbol}({args}) -> ({results})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """One way to turn a call into MLIR that IREE compiles.

    provider:  who provides it, the name in priorities: "portable", "cpu_c", …
    variant:   which of the provider's forms, for `inspect`; "" if it has one
    supports:  None if it can lower the call for the target, else the reason it cannot
    emit:      module-level MLIR text that defines `func.func private @symbol` with
               `Call.signature(symbol)`; called only where `supports` says None
    flags:     iree-compile flags without which the form is wrong or slow, per target
    pages:     how it orders the elements of a KV page, where it reads or writes any; the page
               ops of a model must agree.  "rows": as the tensor's type says
    plan:      the C kernels that it calls, a c_kernels.Plan, where it does nothing else
    rewritten_by:  the pass that makes calls of another op of those that chose it; it emits
               nothing then
    kinds:     the kinds of targets that its provider is for at all, () where `supports` says: for
               others it is passed over without a word, unless a priority names it
    """

    provider: str
    supports: Callable[[Call, Target], str | None]
    emit: Callable[[Call, str], str]
    variant: str = ""
    flags: Callable[[Target], tuple[str, ...]] = lambda target: ()
    pages: str = "rows"
    plan: Callable[[Call], Any] | None = None
    rewritten_by: str = ""
    kinds: tuple[str, ...] = ()


def everywhere(call: Call, target: Target) -> str | None:
    """A `supports` for lowerings that serve every call on every target."""
    return None


class Op(ABC):
    """Base of every llm op; see the module's docstring."""

    name: ClassVar[str]
    operands: ClassVar[tuple[Operand, ...]]
    attributes: ClassVar[tuple[Attribute, ...]] = ()
    pure: ClassVar[bool] = True  # may be removed when unused and merged when equal
    num_results: ClassVar[int] = 1
    from_torch: ClassVar[bool] = True  # else only passes make it, and torch does not know it

    @abstractmethod
    def result_types(self, call: Call) -> tuple[TensorType, ...]:
        """The shape rule, of a call whose operands are verified.  Copies dims, never compares."""

    @abstractmethod
    def reference(self, *operands: Any, **attrs: Any) -> Array | tuple[Array, ...]:
        """The op in numpy; a tuple of several results.

        An absent operand is None; bf16 operands arrive as float32.
        """

    @property
    @abstractmethod
    def lowerings(self) -> tuple[Lowering, ...]:
        """The op's own lowerings, best first."""

    def check(self, call: Call) -> None:  # noqa: B027  most demand no more than their signature
        """What only this op demands.  Use `self.fail` and `self.expect`."""

    def verify(self, operands: Sequence[TensorType | None], attrs: Mapping[str, AttrValue]) -> Call:
        """Check a use of the op against its signature; returns it as a Call.

        Raises VerifyError naming the op, the operand, what was expected and what came.
        """
        if len(operands) != len(self.operands):
            self.fail(f"expected {len(self.operands)} operands, got {len(operands)}")
        sizes: dict[str, tuple[Dim, str]] = {}
        for spec, found in zip(self.operands, operands, strict=True):
            self._check_operand(spec, found, sizes)
        defaults = {a.name: a.default for a in self.attributes if a.default is not None}
        attrs = {**defaults, **attrs}
        self._check_attributes(attrs)
        call = Call(self, tuple(operands), attrs)
        self.check(call)
        return dataclasses.replace(call, results=self.result_types(call))

    def _check_operand(
        self, spec: Operand, found: TensorType | None, sizes: dict[str, tuple[Dim, str]]
    ) -> None:
        legend = "[" + ", ".join(map(str, spec.dims)) + "]"
        if found is None:
            if not spec.optional:
                self.fail(f"operand {spec.name!r} {legend} is missing")
            return
        if found.dtype not in spec.dtypes:
            self.fail(f"operand {spec.name!r} must be {' or '.join(spec.dtypes)}, got {found}")
        if found.rank != len(spec.dims):
            self.fail(f"operand {spec.name!r} must be {legend}, got {found}")
        for legend_dim, dim in zip(spec.dims, found.shape, strict=True):
            if isinstance(legend_dim, int):
                if dims_conflict(legend_dim, dim):
                    self.fail(f"operand {spec.name!r} must be {legend}, got {found}")
                continue
            if legend_dim.startswith("_"):
                continue
            known, owner = sizes.setdefault(legend_dim, (dim, spec.name))
            if known is None:
                sizes[legend_dim] = (dim, spec.name)
            elif dims_conflict(known, dim):
                self.fail(
                    f"operand {spec.name!r} is {found}, but dim {legend_dim} of {legend} "
                    f"is {known} in operand {owner!r}"
                )

    def _check_attributes(self, attrs: Mapping[str, AttrValue]) -> None:
        known = {a.name: a for a in self.attributes}
        for name in attrs:
            if name not in known:
                self.fail(f"unknown attribute {name!r}; it has: {', '.join(known) or 'none'}")
        for name, spec in known.items():
            if name not in attrs:
                self.fail(f"attribute {name!r} ({spec.kind.__name__}) is missing")
            if type(attrs[name]) is not spec.kind:
                self.fail(f"attribute {name!r} must be {spec.kind.__name__}, got {attrs[name]!r}")

    def operand_index(self, name: str) -> int:
        """Position of an operand in the signature."""
        return [o.name for o in self.operands].index(name)

    @property
    def torch_arguments(self) -> tuple[Operand | Attribute, ...]:
        """What torch.ops.llm.<name> takes, in order: those that may be left out are the last."""
        return tuple(sorted((*self.operands, *self.attributes), key=lambda a: a.by_name))

    @property
    def has_optional(self) -> bool:
        return any(o.optional for o in self.operands)

    def expect(self, condition: bool, message: str) -> None:
        """Fail with `message` unless `condition`."""
        if not condition:
            self.fail(message)

    def fail(self, message: str) -> None:
        """Raise a VerifyError for this op."""
        raise VerifyError(f"llm.{self.name}: {message}")


def literal(value: float) -> str:
    """A number as an MLIR float literal, exact for float32."""
    return f"{float(value):.9e}"
