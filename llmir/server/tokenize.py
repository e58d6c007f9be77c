"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from fastapi import APIRouter
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from llmir.server.conversation import render
from llmir.server.errors import ApiError
from llmir.server.json_body import LONG_LIST, JsonResponse, JsonRoute
from llmir.server.protocol.base import RequestModel
from llmir.server.protocol.chat import Messages
from llmir.server.protocol.common import ERRORS
from llmir.server.protocol.fields import AnyTokenIds, TemplateKwargs
from llmir.server.serving import Serving

router = APIRouter(route_class=JsonRoute)


class TokenizeRequest(RequestModel):
    """A text, or a conversation; the other fields are as in requests for completions."""

    refused: ClassVar[Mapping[str, str]] = {
        "chat_template": "it is a program, and the server's owner sets it: --chat-template",
    }

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_form(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError(
                "invalid", "there must be either {param} or messages", {"param": "prompt"}
            )
        wrong = (
            ("add_generation_prompt", "chat_template_kwargs")
            if self.messages is None
            else ("add_special_tokens",)
        )
        for name in wrong:
            if getattr(self, name) is not None:
                other = "messages" if self.messages is None else "prompt"
                raise PydanticCustomError(
                    "invalid", "{param} goes with {other}", {"param": name, "other": other}
                )
        return self


class Tokens(TypedDict):
    """How a text is split."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: AnyTokenIds


class Text(TypedDict):
    prompt: str


@router.post("/tokenize", response_model=None, responses={200: {"model": Tokens}, **ERRORS})
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a text or a conversation."""
    serving: Serving = request.app.state.serving
    serving.check_model(body.model)
    tokenizer = serving.engine.get_tokenizer()
    if body.messages is not None:
        prompt = await render(
            serving,
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False,
            chat_template_kwargs=body.chat_template_kwargs,
            any_length=True,
        )
        token_ids = prompt["prompt_token_ids"]
    else:
        (token_ids,) = await serving.tokenize(
            [body.prompt or ""], add_special_tokens=body.add_special_tokens is not False
        )

    def respond() -> Response:
        texts = None
        if body.return_token_strs:
            texts = [tokenizer.backend.id_to_token(token_id) for token_id in token_ids]
        return JsonResponse(
            Tokens(
                count=len(token_ids),
                max_model_len=serving.engine.max_model_len,
                tokens=token_ids,
                token_strs=texts,
            )
        )

    return respond() if len(token_ids) <= LONG_LIST else await asyncio.to_thread(respond)


@router.post("/detokenize", response_model=None, responses={200: {"model": Text}, **ERRORS})
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of tokens, special ones included."""
    serving: Serving = request.app.state.serving
    serving.check_model(body.model)
    tokenizer = serving.engine.get_tokenizer()
    vocab_size = tokenizer.vocab_size
    for token_id in body.tokens:
        if token_id >= vocab_size:
            raise ApiError(
                400,
                f"tokens has token id {token_id}; the vocabulary has 0 … {vocab_size - 1}",
                param="tokens",
            )
    text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
    return JsonResponse(Text(prompt=text))
