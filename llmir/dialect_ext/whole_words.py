"""What Vulkan reads of a tensor: words of four bytes.

A driver with robust buffer access (Mesa's llvmpipe) answers 0 for a word that reaches beyond the
end of a buffer, so that the last elements of a tensor that is not whole words are read as 0,
without any error: seen with an odd number of bf16, and with int8.
"""

from __future__ import annotations

import math

from llmir.dialect_ext.types import TensorType, is_static
from llmir.targets import Target

_ITEM_BYTES = {"i8": 1, "f16": 2, "bf16": 2}


def ends_within_a_word(t: TensorType, target: Target) -> str | None:
    """Why the target cannot read a weight of this type to its end; None if it can."""
    if target.kind != "vulkan" or not all(map(is_static, t.shape)):
        return None
    if math.prod(t.shape) * _ITEM_BYTES.get(t.dtype, 4) % 4 == 0:
        return None
    return f"{t} is not whole words of four bytes, and Vulkan reads its end as 0; store f32"
