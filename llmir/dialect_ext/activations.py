"""How a matmul rounds its activations: a property of each op, fixed when it is compiled.

    f32      not at all
    int16    16-bit integers in blocks of 32, a float32 scale each
    int12    12-bit ones, for weights of four bits
    bf16     bfloat16
    int8_16  8-bit integers, and in blocks that have an outlier another 8 bits of what that rounds
             off; for weights of four bits
    int8     8-bit integers in blocks of 32, a float32 scale each

The few large activations of a transformer are in few columns, and most of the error of 8 bits is
in their blocks (Dettmers et al., LLM.int8(), 2022).  An outlier: beyond OUTLIER times the root
mean square of its row.

In descending order of precision.  A name with a plus, "int16+", asks for that precision or a
better one: the op's provider takes the one that it is fastest at.
"""

from __future__ import annotations

from llmir.dialect_ext.base import Call
from llmir.targets import Target

PRECISIONS = ("int8", "int8_16", "bf16", "int12", "int16", "f32")
"""In ascending order."""

OUTLIER = 8.0
"""See int8_16; as in plugins/cpu/activations.h."""


def allowed(activations: str) -> tuple[str, ...]:
    """The precisions that an op with this attribute may compute with, least first."""
    if activations.endswith("+"):
        return PRECISIONS[PRECISIONS.index(activations[:-1]) :]
    return (activations,)


def is_known(activations: str) -> bool:
    """Whether this is a precision, or one with a plus."""
    return activations.removesuffix("+") in PRECISIONS


def activations_are_known(call: Call) -> tuple[bool, str]:
    """The check of the attribute, for `Op.expect`."""
    found = str(call.attrs["activations"])
    names = ", ".join(PRECISIONS)
    return is_known(found), f"activations must be {names}, or one with a plus; got {found!r}"


def only_float32(call: Call, target: Target) -> str | None:
    """A `supports` of lowerings that do not round their activations."""
    found = str(call.attrs["activations"])
    if "f32" not in allowed(found):
        return f"activations are float32 here, not {found}"
    return None
