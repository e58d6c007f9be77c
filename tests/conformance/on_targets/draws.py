"""The draws of every op that the registry has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from llmir.dialect_ext.registry import op_names

from . import draws_of_packed, draws_of_pages, draws_of_rows, draws_of_weights
from .draw import Draw

_MODULES = (draws_of_rows, draws_of_weights, draws_of_packed, draws_of_pages)


def draws_of(op: str) -> Callable[[], Iterator[Draw]] | None:
    """What draws an op: the function of its name; None if the suite has none."""
    found = (getattr(module, op, None) for module in _MODULES)
    return next((f for f in found if callable(f)), None)


@functools.cache
def all_draws() -> tuple[Draw, ...]:
    """Of all ops, in the same order in every process."""
    makers = (draws_of(op) for op in op_names())
    return tuple(draw for make in makers if make is not None for draw in make())


def ops_without_draws() -> list[str]:
    """Ops that somebody registered and the suite does not know."""
    return [op for op in op_names() if draws_of(op) is None]
