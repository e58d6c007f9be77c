"""GGUF metadata with checked access: a key has the type its reader expects, or an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir.errors import CorruptModelError, UnsupportedModelError
from llmir.importers.gguf_cursor import Value


class Metadata:
    """The key-value pairs of a GGUF file.

    A getter returns None for a key that is not there; its `need_` form raises
    CorruptModelError instead.  Both raise CorruptModelError where the value
    has another type than the getter's.

    Args:
        values: key → value.
        source: how messages call the file.
    """

    def __init__(self, values: Mapping[str, Value], source: str) -> None:
        self.values = values
        self.source = source

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def _wrong_type(self, key: str, expected: str) -> CorruptModelError:
        found = describe(self.values[key])
        return CorruptModelError(f"{self.source}: {key} should be {expected}, but is {found}")

    def get_int(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self._wrong_type(key, "an integer")
        return value

    def get_float(self, key: str) -> float | None:
        """A finite number; integers are taken too."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(key, "a number")
        if not math.isfinite(value):
            raise self._wrong_type(key, "a finite number")
        return float(value)

    def get_bool(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong_type(key, "a bool")
        return value

    def get_str(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong_type(key, "a string")
        return value

    def get_strings(self, key: str) -> list[str] | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise self._wrong_type(key, "an array of strings")
        return value

    def get_array(self, key: str) -> NDArray[Any] | None:
        """An array of numbers."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, np.ndarray):
            raise self._wrong_type(key, "an array of numbers")
        return value

    def need_str(self, key: str) -> str:
        value = self.get_str(key)
        if value is None:
            raise self.missing(key, "a string")
        return value

    def need_float(self, key: str) -> float:
        value = self.get_float(key)
        if value is None:
            raise self.missing(key, "a number")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A count of at least 1 that fits an int32, as every index in llmir must."""
        value = self.get_int(key)
        if value is None:
            value = default
        if value is None:
            raise self.missing(key, "an integer")
        if not 1 <= value < 1 << 31:
            raise CorruptModelError(
                f"{self.source}: {key} should be between 1 and 2147483647, but is {value}"
            )
        return value

    def uniform_size(self, key: str, num_layers: int, default: int | None = None) -> int:
        """A `size`, or an array with the same size for every layer."""
        value = self.values.get(key)
        if not isinstance(value, np.ndarray):
            return self.size(key, default)
        if value.dtype.kind not in "iu":
            raise self._wrong_type(key, "an integer or an array of integers")
        if len(value) != num_layers:
            raise CorruptModelError(
                f"{self.source}: {key} should have a value for each of the {num_layers} layers, "
                f"but has {len(value)}"
            )
        if (value != value[0]).any():
            raise UnsupportedModelError(
                f"{self.source}: {key} differs between layers, which llmir does not support"
            )
        return Metadata({key: int(value[0])}, self.source).size(key)

    def missing(self, key: str, expected: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self.source}: the metadata has no {key} (expected {expected}); "
            f"convert the model again with a current converter"
        )


def describe(value: Value) -> str:
    """A value for a message: short, whatever the file holds."""
    if isinstance(value, list):
        return f"an array of {len(value)} strings"
    if isinstance(value, np.ndarray):
        return f"an array of {len(value)} numbers"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return f"{type(value).__name__} {value}"
