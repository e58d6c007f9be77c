"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from llmir.errors import OptionError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class ByteCount(click.ParamType):
    """A number of bytes: 268435456, 256M, 1.5G; units are powers of 1,024."""

    name = "size"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size such as 512M or 2G", param, ctx)
        num_bytes = int(float(match[1]) * _UNITS[match[2]])
        if num_bytes < self._least:
            self.fail(f"must be at least {self._least}, not {value}", param, ctx)
        return num_bytes


class AtLeast(click.ParamType):
    """A number of at least `least`; click's own range takes nan, which no comparison finds."""

    name = "number"

    def __init__(self, least: float) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not number >= self._least:
            self.fail(f"must be a number of at least {self._least:g}, not {value}", param, ctx)
        return number


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, for programs."
)
verify_weights_option = click.option(
    "--verify-weights",
    type=click.Choice(["first", "always", "never"]),
    default="first",
    show_default=True,
    help="When to compare the weights with their checksum: the first time on this machine, "
    "at each load, or not at all.",
)


def memory_fraction_option(command: Decorated) -> Decorated:
    """--device-memory-fraction, and vLLM's name for it."""
    return click.option(
        "--device-memory-fraction",
        "--gpu-memory-utilization",
        "device_memory_fraction",
        type=float,
        metavar="FRACTION",
        help="In place of --kv-cache-memory: the share of the device's memory, up to 1, that "
        "weights, steps and KV cache may take together.",
    )(command)


def device_options(command: Decorated) -> Decorated:
    """--device, --threads, --kv-cache-memory: where and with how much a model runs."""
    for option in (
        click.option(
            "--kv-cache-memory",
            type=ByteCount(),
            help="Memory for the KV cache, such as 512M or 2G.  [default: up to 1G]",
        ),
        click.option("--threads", type=int, help="CPU threads.  [default: one per physical core]"),
        click.option(
            "--device",
            help="Device to run on, as `llmir targets` lists them, such as vulkan://0.  "
            "[default: the best that the artifact has a module for]",
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: Decorated) -> Decorated:
    """How tokens are chosen; what is not given is the model's own default."""
    for option in (
        click.option(
            "--stop", multiple=True, metavar="TEXT", help="End the answer at TEXT.  Repeatable."
        ),
        click.option("--max-tokens", type=int, help="Longest answer, in tokens.  [default: 512]"),
        click.option("--seed", type=int, help="The same seed gives the same answer."),
        click.option("--top-p", type=float, help="Choose among tokens of this much probability."),
        click.option("--top-k", type=int, help="Choose among this many likeliest tokens."),
        click.option("--temperature", type=float, help="0: always the likeliest token."),
    ):
        command = option(command)
    return command


def split_commas(values: Iterable[str]) -> list[str]:
    """The parts of a repeatable option whose values may hold several, each once."""
    parts = (part.strip() for value in values for part in value.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def read_op_priority(file: str | None, items: Iterable[str]) -> Mapping[str, list[str]]:
    """op → providers, from a file of `op=provider,…` lines and from options, which win.

    Raises OptionError, UnknownNameError for an op or provider that is not there, OSError.
    """
    lines = [] if file is None else _read_text(Path(file)).splitlines()
    stripped = (line.partition("#")[0].strip() for line in lines)
    wanted = [*(line for line in stripped if line), *items]
    if not wanted:
        return {}
    # Checked here as well as in the compiler: before the model is read, not after.
    from llmir.dialect_ext.registry import parse_priority

    return parse_priority(wanted)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 text: {error}") from error
