"""Tensor formats: what a file stores, what an artifact stores, and how to get there.

    fmt = formats.from_ggml_type(12)              # a GGUF tensor's type id → Format q4_k
    fmt = formats.get("bf16")                     # by name
    w   = formats.Weight(name=…, shape=(N, K), format=fmt, raw=bytes_of_the_file)
    w.dequantize()                                # float32 [N, K]
    formats.quantize(w, "keep")                   # exactly w: its planes, or w if float
    formats.quantize(w, "int8")                   # int8 planes, rounded to nearest

`base` holds the contract; one file per family beside it.
"""

from __future__ import annotations

from llmir.errors import UnknownNameError, UnsupportedModelError
from llmir.formats import floats, iq, kquants, legacy
from llmir.formats.base import Format, GroupQuantized, QuantLayout, Weight
from llmir.formats.packing import pack, unpack
from llmir.formats.rounding import WEIGHT_MODES, quantize, to_groups, widen

__all__ = [
    "WEIGHT_MODES",
    "Format",
    "GroupQuantized",
    "QuantLayout",
    "Weight",
    "from_ggml_type",
    "get",
    "names",
    "pack",
    "quantize",
    "to_groups",
    "unpack",
    "widen",
]

_ALL = (*floats.FORMATS, *legacy.FORMATS, *kquants.FORMATS, *iq.FORMATS)
_BY_NAME = {f.name: f for f in _ALL}
_BY_GGML_TYPE = {f.ggml_type: f for f in _ALL if f.ggml_type is not None}
assert len(_BY_NAME) == len(_BY_GGML_TYPE) == len(_ALL), "two formats share a name or id"

# Types that ggml has and llmir does not read: only so that a message can name them.
_UNREAD_GGML_TYPES = {
    9: "q8_1",
    15: "q8_k",
    16: "iq2_xxs",
    17: "iq2_xs",
    18: "iq3_xxs",
    19: "iq1_s",
    21: "iq3_s",
    22: "iq2_s",
    23: "iq4_xs",
    24: "i8",
    25: "i16",
    26: "i32",
    27: "i64",
    28: "f64",
    29: "iq1_m",
    34: "tq1_0",
    35: "tq2_0",
    39: "mxfp4",
    40: "nvfp4",
}


def get(name: str) -> Format:
    """The format called `name`.  Raises UnknownNameError, which lists the names there are."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnknownNameError("format", name, _BY_NAME) from None


def from_ggml_type(ggml_type: int) -> Format:
    """The format of a GGUF tensor type.

    Raises UnsupportedModelError, which lists the types there are with their ids.
    """
    try:
        return _BY_GGML_TYPE[ggml_type]
    except KeyError:
        name = _UNREAD_GGML_TYPES.get(ggml_type, "unknown to llmir")
        known = ", ".join(f"{f.name} ({i})" for i, f in sorted(_BY_GGML_TYPE.items()))
        raise UnsupportedModelError(
            f"GGUF tensor type {ggml_type} ({name}) is not supported; supported types: {known}; "
            "convert the file to one of these, q8_0 for example"
        ) from None


def names() -> tuple[str, ...]:
    """Every format's name, sorted."""
    return tuple(sorted(_BY_NAME))
