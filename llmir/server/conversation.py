"""From a conversation to the prompt that a chat template makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from llmir.engine import TokensPrompt
from llmir.engine.tokenizer import LONG_TEXT
from llmir.errors import RequestError
from llmir.server.errors import ApiError
from llmir.server.serving import Serving
from llmir.server.tools.formats import SMOLLM2, ToolFormat, format_of, get_format
from llmir.server.tools.prompt import with_tools, without_tool_messages
from llmir.server.tools.use import ToolUse

SHORT_CONVERSATION = 20
"""Messages that a template writes in about a millisecond."""


class Renderable(Protocol):
    """A message of a request."""

    content: Any

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
    any_length: bool = False,
) -> TokensPrompt:
    """The prompt of a conversation; a long one is made beside the event loop.

    param: what the messages came in, for errors about them.
    any_length: also one that the model has no room for.

    Raises ApiError: there is no chat template, or it refuses these messages, or their text is
    seen to be too long before it is tokenized.
    """
    write = partial(_text, serving, messages, add_generation_prompt, chat_template_kwargs, use)

    def work() -> TokensPrompt:
        text = write()
        if not any_length:
            serving.check_text(text, param)
        return serving.engine.chat_prompt(text)

    try:
        plain = use is None and not chat_template_kwargs and _is_short(messages)
        return await (serving.in_turn(work) if plain else asyncio.to_thread(work))
    except RequestError as error:
        raise ApiError(400, str(error), param=param) from error


def _is_short(messages: Sequence[Renderable]) -> bool:
    """Whether these are few short texts, and nothing else that may be long."""
    if len(messages) > SHORT_CONVERSATION:
        return False
    num_chars = 0
    for message in messages:
        content = message.content or ""
        if not isinstance(content, str) or getattr(message, "tool_calls", None):
            return False
        num_chars += len(content)
    return num_chars <= LONG_TEXT


def _text(
    serving: Serving,
    messages: Sequence[Renderable],
    add_generation_prompt: bool,
    chat_template_kwargs: dict[str, Any] | None,
    use: ToolUse | None,
) -> str:
    """What the chat template makes of a conversation, which is first made as it expects one."""
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
    return serving.engine.chat_text(
        plain,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        chat_template=serving.settings.chat_template,
        chat_template_kwargs=chat_template_kwargs,
    )
