"""The options of `llmir bench serve` that say what load is made, and the types of others."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from llmir.cli.options import Decorated


class NumberList(click.ParamType):
    """Numbers, separated by commas, each once, between two bounds."""

    name = "x,x,…"

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        if isinstance(value, list):
            return value
        try:
            numbers = [float(part) for part in str(value).split(",") if part.strip()]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 50,99.9", param, ctx)
        for number in numbers:
            if not self._least <= number <= self._most:
                self.fail(
                    f"{number:g} is not between {self._least:g} and {self._most:g}", param, ctx
                )
        return list(dict.fromkeys(numbers))


class HeaderList(click.ParamType):
    """A header as NAME=VALUE."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        is_plain = name.isascii() and text.isascii() and text.isprintable()
        if not equals or not name.replace("-", "").isalnum() or not is_plain:
            self.fail(f"{value!r} is not a header as NAME=VALUE", param, ctx)
        return name, text


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f'{value!r} is not a JSON object such as {{"top_k": 20}}', param, ctx)
        return found


def _length(name: str, default: int, text: str, least: int = 1) -> Any:
    return click.option(
        f"--{name}", type=click.IntRange(least), default=default, show_default=True, help=text
    )


def load_options(command: Decorated) -> Decorated:
    """How many requests, of which lengths, and when they arrive."""
    for option in (
        _length("prefix-repetition-output-len", 128, "Tokens out."),
        _length("prefix-repetition-num-prefixes", 10, "Groups."),
        _length("prefix-repetition-suffix-len", 256, "Own tokens of each request."),
        _length("prefix-repetition-prefix-len", 256, "Tokens that a group shares."),
        _length("random-prefix-len", 0, "Tokens in front that all requests share.", 0),
        click.option(
            "--random-range-ratio",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Lengths are uniform between len × (1 − ratio) and len × (1 + ratio).",
        ),
        _length("random-output-len", 128, "Tokens out."),
        _length("random-input-len", 1024, "Own tokens of each prompt."),
        click.option(
            "--dataset-name",
            type=click.Choice(["random", "sharegpt", "prefix_repetition"]),
            default="random",
            show_default=True,
            help="random: of the --random lengths; sharegpt: log-normal lengths with the means "
            "of that dataset, 161 in and 338 out; prefix_repetition: groups with a prefix each.",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option(
            "--warmup",
            "--num-warmups",
            "warmup",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Requests of the same dataset before those that are measured; they have the "
            "same shared prefixes.",
        ),
        click.option(
            "--max-concurrency",
            type=click.IntRange(1),
            help="Requests that are answered at a time; others wait here.  [default: no limit]",
        ),
        click.option(
            "--burstiness",
            type=float,
            default=1.0,
            show_default=True,
            help="Shape of the gamma process: below 1 in bursts, above 1 more even.",
        ),
        click.option(
            "--arrival",
            type=click.Choice(["poisson", "gamma", "constant"]),
            default="gamma",
            show_default=True,
            help="How gaps are distributed; gamma with a burstiness of 1 is Poisson.",
        ),
        click.option(
            "--request-rate",
            type=click.FloatRange(0, min_open=True),
            default=math.inf,
            show_default=True,
            help="Requests per second; inf: all at once.",
        ),
        _length("num-prompts", 64, "Requests."),
    ):
        command = option(command)
    return command
