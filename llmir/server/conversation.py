"""From a conversation to the prompt that a chat template makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from llmir.engine import TokensPrompt
from llmir.errors import RequestError
from llmir.server.errors import ApiError
from llmir.server.serving import LONG_TEXT, Serving
from llmir.server.tools.formats import SMOLLM2, ToolFormat, format_of, get_format
from llmir.server.tools.prompt import with_tools, without_tool_messages
from llmir.server.tools.use import ToolUse


class Renderable(Protocol):
    """A message of a request."""

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: a dict with "role", and "content" that is a string."""


def templates(serving: Serving) -> list[str]:
    """The chat templates that may be used: the server's own, or the model's."""
    given = serving.settings.chat_template
    if given is not None:
        return [given]
    return [*serving.engine.get_tokenizer().chat_templates.values()]


def tool_format(serving: Serving) -> ToolFormat | None:
    """How the model writes calls of tools; None: it cannot be told."""
    if serving.settings.tool_call_parser is not None:
        return get_format(serving.settings.tool_call_parser)
    every = templates(serving)
    # A model may have a template for tools beside its default.
    return format_of(max(every, key=lambda one: "tools" in one)) if every else None


async def render(
    serving: Serving,
    messages: Sequence[Renderable],
    *,
    add_generation_prompt: bool = True,
    chat_template_kwargs: dict[str, Any] | None = None,
    use: ToolUse | None = None,
    param: str = "messages",
) -> TokensPrompt:
    """The prompt of a conversation; a long one is made beside the event loop.

    param: what the messages came in, for errors about them.

    Raises ApiError: there is no chat template, or it refuses these messages.
    """
    plain = [message.for_template() for message in messages]
    every = templates(serving)
    if not any("developer" in one for one in every):
        for message in plain:
            if message["role"] == "developer":  # OpenAI's newer word for the same
                message["role"] = "system"
    tools = None if use is None else use.for_template()
    if not any("tool" in one for one in every):
        plain = without_tool_messages(plain, tool_format(serving) or SMOLLM2)
    if tools is not None and not any("tools" in one for one in every):
        plain = with_tools(plain, tools, tool_format(serving) or SMOLLM2)
        tools = None
    work = partial(
        serving.engine.render_chat,
        plain,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        chat_template=serving.settings.chat_template,
        chat_template_kwargs=chat_template_kwargs,
    )
    num_chars = sum(len(message["content"]) for message in plain)
    try:
        return await asyncio.to_thread(work) if num_chars > LONG_TEXT else work()
    except RequestError as error:
        raise ApiError(400, str(error), param=param) from error
