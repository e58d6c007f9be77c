"""llmir serve: a model or artifact behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import json
import logging
import math
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmir.api import AsyncLLM, load
from llmir.artifact import Artifact, is_artifact
from llmir.cli.listener import address, bind
from llmir.cli.model import model_options
from llmir.cli.progress import num_compile_stages, stages
from llmir.cli.serve_options import KV_DTYPES, engine_flags, limit_flags
from llmir.engine.ngram import parse_speculation
from llmir.errors import OptionError

if TYPE_CHECKING:
    from llmir.server.settings import ServerSettings

EPILOG = """\b
Examples:
  llmir serve model.gguf
  llmir serve model.llmir --served-model-name smol --api-key "$KEY" --host 0.0.0.0
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Hello"}]}'

SIGTERM or Ctrl-C finishes what runs and ends; a second one ends at once.
"""


ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@,{}\"'\\]+", re.IGNORECASE)
"""What browsers send as the header Origin (RFC 6454), which an allowed one must be equal to."""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0: one that is free.",
)
@click.option("--uds", metavar="PATH", help="Listen on a Unix socket, not on host and port.")
@click.option(
    "--served-model-name",
    "names",
    multiple=True,
    help="What requests call the model.  Repeatable.  [default: the file's or hub id's name]",
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    help="Let in who sends one of these, and nobody else.  Repeatable.",
)
@click.option(
    "--api-key-file",
    metavar="FILE",
    help="A file of keys, one a line: a command line can be read by all on the machine.",
)
@click.option(
    "--allowed-origins",
    multiple=True,
    metavar="ORIGIN",
    help='Let web pages from there call; "*": from anywhere.  Repeatable, or a JSON list.',
)
@click.option(
    "--chat-template", metavar="FILE|NAME|TEXT", help="Jinja template, not the model's own."
)
@click.option(
    "--page/--no-page",
    default=True,
    show_default=True,
    help="A page at / to chat and to see the load.",
)
@click.option(
    "--tool-call-parser",
    metavar="NAME",
    help="How the model writes calls of tools: hermes, smollm2, llama3_json or mistral.  "
    "[default: as its chat template does]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is written to stderr; info has a line for each request, debug for probes as well.",
)
@engine_flags
@limit_flags
@model_options
def serve(
    model: str,
    host: str,
    port: int,
    uds: str | None,
    names: tuple[str, ...],
    api_keys: tuple[str, ...],
    api_key_file: str | None,
    allowed_origins: tuple[str, ...],
    chat_template: str | None,
    page: bool,
    tool_call_parser: str | None,
    log_level: str,
    max_waiting: int,
    max_logprobs: int,
    max_body_size: int,
    request_timeout: float,
    shutdown_timeout: float,
    **choice: Any,
) -> None:
    """Serve MODEL, a model or an artifact, to OpenAI's clients."""
    from llmir.server.settings import ServerSettings

    settings = ServerSettings(
        model_names=names or (default_name(model),),
        api_keys=(*api_keys, *_keys_of(api_key_file)),
        allowed_origins=_origins(allowed_origins),
        chat_template=chat_template,
        page=page,
        tool_call_parser=tool_call_parser,
        max_waiting=max_waiting,
        max_logprobs=max_logprobs,
        max_body_bytes=max_body_size,
        request_timeout_s=request_timeout or None,
        shutdown_timeout_s=shutdown_timeout,
    )
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Before the model is opened, which may take long: whether there is a place to listen.
    with bind(host, port, uds) as listener:
        _serve(open_engine(model, **choice), settings, listener)


def _serve(engine: AsyncLLM, settings: ServerSettings, listener: socket.socket) -> None:
    import dataclasses

    from llmir.server.app import create_app
    from llmir.server.run import run

    if settings.chat_template is not None:
        template = read_chat_template(settings.chat_template, engine)
        settings = dataclasses.replace(settings, chat_template=template)
    name, where = settings.model_names[0], address(listener)
    run(
        create_app(engine, settings),
        listener,
        on_started=lambda: click.echo(f"llmir serving {name} on {where}"),
    )


def open_engine(
    model: str,
    *,
    kv_cache_dtype: str | None,
    max_model_len: int | None,
    weights: str | None,
    threads: int | None,
    kv_cache_memory: int | None,
    verify_weights: str,
    speculative_config: str,
    max_prefill_per_decode: float,
    **options: Any,
) -> AsyncLLM:
    """The engine of an artifact, or of what a model is compiled into.  Raises as `llmir.LLM`."""
    kv_dtype = None if kv_cache_dtype is None else KV_DTYPES[kv_cache_dtype]
    fixed = {"kv_dtype": kv_dtype, "max_model_len": max_model_len, "weights": weights}
    given = {name: value for name, value in fixed.items() if value is not None}
    place: str | Artifact = model
    if is_artifact(model):
        place = load(model, verify_weights=verify_weights)
        given = _not_as_compiled(place, given)
    with stages(num_compile_stages(1) + 1) as on_stage:  # and the check of the artifact
        return AsyncLLM(
            place,
            kv_cache_memory_bytes=kv_cache_memory,
            num_threads=threads,
            verify_weights=verify_weights,
            speculative_config=_speculation(speculative_config),
            max_prefill_per_decode=(
                max_prefill_per_decode if math.isfinite(max_prefill_per_decode) else None
            ),
            on_stage=on_stage,
            **options,
            **given,
        )


def _not_as_compiled(artifact: Artifact, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are not how the artifact is already.

    Raises OptionError for one that it was compiled otherwise for.
    """
    manifest = artifact.manifest
    compiled = {"kv_dtype": manifest.kv.dtype, "max_model_len": manifest.limits.max_model_len}
    flags = {"kv_dtype": "--kv-cache-dtype", "max_model_len": "--max-model-len"}
    for name, is_so in compiled.items():
        wanted = given.pop(name, None)
        if wanted not in (None, "auto", is_so):
            raise OptionError(
                f"{flags[name]} {wanted}: the artifact was compiled for {is_so}; compile the model "
                f"again for {wanted}"
            )
    return given


def default_name(model: str) -> str:
    """What a model is called: a hub id as it is, a path by its last part without the suffix."""
    path = Path(model)
    if not path.exists():
        return model
    name = path.resolve().name
    for suffix in (".gguf", ".llmir"):
        name = name.removesuffix(suffix)
    return name


def read_chat_template(given: str, engine: AsyncLLM) -> str:
    """The template that --chat-template means.  Raises OptionError, OSError."""
    from llmir.engine.chat_template import check_template

    names = {} if engine.tokenizer is None else engine.tokenizer.chat_templates
    if given in names:
        return names[given]
    if "{{" in given or "{%" in given:
        text = given
    else:
        path = Path(given)
        if not path.is_file():
            known = f", nor one of the model's templates ({', '.join(names)})" if names else ""
            raise OptionError(f"--chat-template {given}: there is no such file{known}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise OptionError(f"--chat-template {given} is not UTF-8 text: {error}") from error
    check_template(text)
    return text


def _json(flag: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"{flag} {text} is not JSON: {error}") from error


def _speculation(given: str) -> Any:
    """What --speculative-config means; None: no drafts.  Raises OptionError, which names it."""
    if given == "none":
        return None
    flag = "--speculative-config"
    config = _json(flag, given)
    try:
        parse_speculation(config)
    except OptionError as error:
        reason = str(error).replace("speculative_config", flag)
        raise OptionError(reason if flag in reason else f"{flag}: {reason}") from error
    return config


def _keys_of(file: str | None) -> list[str]:
    if file is None:
        return []
    keys = Path(file).read_text(encoding="utf-8").split()
    if not keys:
        raise OptionError(f"--api-key-file {file} has no key in it")
    return keys


def _origins(given: Sequence[str]) -> tuple[str, ...]:
    origins: list[str] = []
    for value in given:
        if not value.startswith("["):
            origins.append(value)
            continue
        several = _json("--allowed-origins", value)
        if not all(isinstance(origin, str) for origin in several):
            raise OptionError(f"--allowed-origins {value} must be a list of strings")
        origins += several
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise OptionError(
                f"--allowed-origins {origin}: an origin is a scheme, a host and perhaps a port, "
                'such as https://a.example or http://localhost:3000; "*" is any'
            )
    return tuple(origins)
