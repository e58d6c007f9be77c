"""The bodies of /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from llmir.server.protocol.base import RequestModel, SentBack
from llmir.server.protocol.fields import PREFIX_CACHE, Checked, Count, Off
from llmir.server.protocol.structured import FormatName, JsonObjectFormat, TextFormat

TEXT_ONLY = "llmir serves text"
STATELESS = "llmir keeps no responses: send the conversation as input"

EMPTY = Checked(
    lambda value: value is None or value == [],
    "an empty list, as llmir has nothing that could be in it here",
    {"anyOf": [{"type": "array", "maxItems": 0, "items": {}}, {"type": "null"}]},
)
EmptyList = Annotated[list[Any] | None, EMPTY]


class InputText(SentBack):
    """A part of what the model is told."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("detail", "file_data", "file_id", "file_url", "filename", "image_url"), TEXT_ONLY
    )

    type: Literal["input_text"]
    text: str


class OutputText(SentBack):
    """A part of what it said, as it came in an answer."""

    type: Literal["output_text"]
    text: str
    # What answers hold besides, and the template does not read.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Part = Annotated[InputText | OutputText, Field(discriminator="type")]
Content = str | Annotated[list[Part], Field(min_length=1, fail_fast=True)]


class InputMessage(SentBack):
    """A message of the conversation.  `id` and `status` come with answers sent back."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: parts are lines of one text."""
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        return {"role": self.role, "content": content}


class SchemaFormat(RequestModel):
    """JSON of a schema, which is kept to, whatever `strict` says."""

    type: Literal["json_schema"]
    name: FormatName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


TextFormats = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


class TextConfig(RequestModel):
    refused: ClassVar[Mapping[str, str]] = {"verbosity": ""}

    format: TextFormats | None = None


class ResponseStreamOptions(RequestModel):
    include_obfuscation: Off = None


class ResponsesRequest(RequestModel):
    """Answer a text or a conversation.

    input               a message of the user's, or a list of messages
    instructions        a system message before them
    max_output_tokens   without it, as many as fit
    text.format         the form of the output
    """

    refused: ClassVar[Mapping[str, str]] = {
        "access_programs": "",
        "background_options": "",
        "context_management": STATELESS,
        "conversation": STATELESS,
        "image": TEXT_ONLY,
        "max_tool_calls": "llmir has no tools of its own",
        "moderation": "",
        "previous_response_id": STATELESS,
        "prompt": "llmir keeps no prompts",
        "prompt_cache_options": PREFIX_CACHE,
        "prompt_cache_retention": PREFIX_CACHE,
        "reasoning": "",
        "top_logprobs": "/v1/chat/completions has it",
    }

    model: str | None = None
    input: str | Annotated[list[InputMessage], Field(min_length=1, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextConfig | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    # What llmir has one value of.
    background: Off = None
    include: EmptyList = None
    store: Off = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: EmptyList = None
    truncation: Literal["disabled"] | None = None
    # Without effect by OpenAI's definition.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None


class OutputTextPart(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(TypedDict):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputTextPart]


class CachedTokens(TypedDict):
    """`cache_write_tokens` is what the client's types want; nothing is charged for them here."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ResponseError(TypedDict):
    code: str
    message: str


class ResponseObject(TypedDict):
    """The answer; what the request said is in it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]
    metadata: dict[str, str]
    service_tier: Literal["default"]
    usage: ResponseUsage | None
    user: NotRequired[str]
