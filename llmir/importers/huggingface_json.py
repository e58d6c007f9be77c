"""JSON files of a Hugging Face directory, read with errors that name file and field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmir.errors import CorruptModelError

# No count or size of a real model is near this; it keeps derived products sane.
MAX_SIZE = 2**31 - 1

_REQUIRED = object()


def read_text(path: Path) -> str:
    """The file as UTF-8 text.  Raises CorruptModelError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CorruptModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorruptModelError(f"{path}: is not UTF-8 text: {error}") from error


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """`text`, the content of `path`, as a JSON object.  Raises CorruptModelError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptModelError(
            f"{path}: expected a JSON object, found {type(value).__name__} at the top"
        )
    return value


class Fields:
    """Typed reads of a JSON object; every error names `where` and the field.

    A field that is absent or null takes `default`; without one it is required.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def error(self, message: str) -> CorruptModelError:
        return CorruptModelError(f"{self.where}: {message}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(f"{key} is missing")
        return default

    def size(self, key: str, default: Any = _REQUIRED, *, at_most: int = MAX_SIZE) -> int:
        """An integer from 1 to `at_most`."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= at_most:
            raise self.error(f"{key} must be an integer from 1 to {at_most}, not {value!r}")
        return value

    def optional_size(self, key: str) -> int | None:
        """An integer from 1, or None."""
        return None if self.data.get(key) is None else self.size(key)

    def number(
        self, key: str, default: Any = _REQUIRED, *, above: float = 0.0, allow_equal: bool = False
    ) -> float:
        """A finite number greater than `above` (or equal to it)."""
        value = self._get(key, default)
        # Huge JSON integers do not fit a float, and 1e999 is read as infinity.
        if type(value) not in (int, float) or abs(value) > 1e30 or not math.isfinite(value):
            raise self.error(f"{key} must be a finite number, not {value!r}")
        if value < above or (value == above and not allow_equal):
            word = "at least" if allow_equal else "greater than"
            raise self.error(f"{key} must be {word} {above:g}, not {value!r}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number of at least 0, or None."""
        return None if self.data.get(key) is None else self.number(key, allow_equal=True)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(f"{key} must be a string, not {value!r}")
        return value

    def object(self, key: str) -> Fields:
        """A nested object; empty where absent.  Errors inside it name it."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"{key} must be an object, not {value!r}")
        return Fields(value, f"{self.where}: {key}")

    def strings(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key} must be a list of strings, not {value!r}")
        return tuple(value)
