"""The bodies of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from llmir.server.protocol.base import SentBack
from llmir.server.protocol.common import FinishReason, PromptLogprobs, Usage
from llmir.server.protocol.fields import PREFIX_CACHE, Count, Natural, Off, TemplateKwargs
from llmir.server.protocol.sampling import REFUSED, SamplingFields
from llmir.server.protocol.tools import ToolCall, ToolCallDelta, ToolCalls, ToolChoice, Tools


class TextPart(SentBack):
    """A part of a message's content.  llmir serves text."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("audio_url", "file", "image_url", "input_audio", "refusal", "video_url"),
        "llmir serves text",
    )

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class _Message(SentBack):
    refused: ClassVar[Mapping[str, str]] = {
        "audio": "llmir serves text",
        "function_call": "it is OpenAI's old form of tool_calls",
        "refusal": "",
    }

    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: parts are lines of one text."""
        message = self.model_dump(exclude_none=True)
        content = message.get("content")
        if content is None:
            message["content"] = ""
        elif isinstance(content, list):
            message["content"] = "\n".join(part["text"] for part in content)
        return message


class GivenMessage(_Message):
    """What the model is told."""

    role: Literal["system", "developer", "user"]
    content: Content


class AssistantMessage(_Message):
    """What it said."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: ToolCalls | None = None

    def for_template(self) -> dict[str, Any]:
        """As every message; the arguments of its calls are objects."""
        message = super().for_template()
        message.pop("tool_calls", None)
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


class ToolMessage(_Message):
    """What a tool said."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None


Message = GivenMessage | AssistantMessage | ToolMessage
Messages = Annotated[
    list[Annotated[Message, Field(discriminator="role")]], Field(min_length=1, fail_fast=True)
]


class ChatRequest(SamplingFields):
    """Answer a conversation.

    max_tokens            OpenAI's old name of max_completion_tokens; without either, as many as fit
    logprobs              whether to give the tokens' log-probabilities, and
    top_logprobs          those of how many candidates
    tools, tool_choice    functions that the model may call, or must
    parallel_tool_calls   false: one call at most
    add_generation_prompt, chat_template_kwargs   vLLM's: for the chat template
    """

    refused: ClassVar[Mapping[str, str]] = {
        **REFUSED,
        "audio": "llmir serves text",
        "chat_template": "it is a program, and the server's owner sets it: --chat-template",
        "documents": "",
        "function_call": "it is OpenAI's old form of tool_choice",
        "functions": "it is OpenAI's old form of tools",
        "moderation": "",
        "prediction": "",
        "prompt_cache_options": PREFIX_CACHE,
        "prompt_cache_retention": PREFIX_CACHE,
        "reasoning_effort": "templates that know such take it in chat_template_kwargs",
        "verbosity": "",
        "web_search_options": "",
    }

    messages: Messages
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Natural | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # Without effect by OpenAI's definition, or the only thing that llmir does.
    metadata: dict[str, str] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Off = None
    # vLLM's.
    add_generation_prompt: bool | None = None
    add_special_tokens: Off = None
    continue_final_message: Off = None
    echo: Off = None
    chat_template_kwargs: TemplateKwargs | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> ChatRequest:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise PydanticCustomError(
                "invalid",
                "{param} is {old} and max_completion_tokens, its newer name, is {new}: give one",
                {"param": "max_tokens", "old": old, "new": new},
            )
        return self


class ChatLogprob(TypedDict):
    """One candidate.  The bytes of tokens in a row are UTF-8, those of one need not be."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatLogprob):
    top_logprobs: list[ChatLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """The answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: NotRequired[int | str | None]
    token_ids: NotRequired[list[int]]


class ChatChunk(TypedDict):
    """A chunk of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    prompt_token_ids: NotRequired[list[int]]
