"""Chat templates: jinja2 in its sandbox, rendering what transformers' apply_chat_template does.

A template comes with a model, from anywhere, so it runs in jinja2's immutable
sandbox and sees only plain JSON data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llmir.errors import OptionError, RequestError

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message's reasoning comes; templates read one of the first two."""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks text for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        # A scope of its own, as the block has in transformers: what is set inside stays inside.
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body)]


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which a model must not see.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env.from_string(source)


def check_template(source: str) -> None:
    """Raises OptionError for what is no template."""
    try:
        _compile(source)
    except jinja2.TemplateSyntaxError as error:
        raise OptionError(f"the chat template is wrong in line {error.lineno}: {error}") from error


def render_chat(
    template: str,
    messages: Sequence[Any],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The prompt that `template` makes of `messages`.

    Args:
        messages: dicts with "role" and "content", or objects with a `model_dump` (what the
            openai client returns).  Keys whose value is None count as absent.
        tools: JSON schemas of functions the model may call.
        variables: further names the template reads: bos_token, eos_token, enable_thinking, …

    Raises:
        RequestError: messages that are not such, or that the template refuses or fails on.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages must be a list of dicts with role and content, not {messages!r}"
        )
    if not messages:
        raise RequestError("messages is empty: a chat needs at least one message")
    if tools is not None and not (
        isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)
    ):
        raise RequestError(f"tools must be a list of JSON schemas, not {tools!r}")
    values = {
        **variables,
        "messages": [_message(message) for message in messages],
        "tools": None if tools is None else [_plain(tool) for tool in tools],
        "documents": _plain(variables.get("documents")),
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return _compile(template).render(values)
    except (
        jinja2.TemplateError,
        # A template is a program, and messages it did not expect make it fail as programs do.
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise RequestError(f"the chat template failed: {error}") from error


def _message(message: Any) -> dict[Any, Any]:
    plain = _plain(message)
    if not isinstance(plain, dict):
        raise RequestError(f"a chat message must be a dict with role and content, not {message!r}")
    plain = {key: value for key, value in plain.items() if value is not None}
    reasoning = next((plain[key] for key in REASONING_FIELDS if key in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain(value: Any) -> Any:
    """`value` rebuilt of JSON types alone: an object's methods are no business of a template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    raise RequestError(
        f"a chat can hold JSON values and pydantic models, not {type(value).__name__}"
    )
