"""POST /v1/responses.  Nothing is kept: every request brings its conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmir.engine import CompletionOutput, RequestOutput, SamplingParams
from llmir.server.conversation import Renderable, render
from llmir.server.errors import as_api_error
from llmir.server.forms import Form, compile_form, make_form
from llmir.server.json_body import JsonResponse, JsonRoute
from llmir.server.protocol.common import ERRORS
from llmir.server.protocol.responses import (
    InputMessage,
    ResponseObject,
    ResponsesRequest,
    SchemaFormat,
    TextConfig,
)
from llmir.server.protocol.structured import JsonObjectFormat
from llmir.server.response_state import ResponseState
from llmir.server.serving import Serving, Work
from llmir.server.sse import EventStream, answer

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/responses",
    response_model=None,
    responses={200: {"model": ResponseObject, "content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a text or a conversation."""
    serving: Serving = request.app.state.serving
    job = ResponseJob(serving, body, request.state.request_id)
    timeout_s = serving.settings.request_timeout_s
    if body.stream:
        return EventStream(
            job.events(),
            to_error=as_api_error,
            timeout_s=timeout_s,
            error_event=job.state.failed,
        )
    return JsonResponse(await answer(request, job.response(), timeout_s))


class ResponseJob:
    """A request to /v1/responses.

    Attributes:
        state: of the answer, as far as it has come.
    """

    def __init__(self, serving: Serving, body: ResponsesRequest, id: str) -> None:
        serving.check_model(body.model)
        serving.check_open()  # before a long prompt is tokenized for nothing
        self.serving = serving
        self.body = body
        self.form = _wanted_form(body.text)
        self.params = self._params()
        self.state = ResponseState(id, self._told())

    def _params(self) -> SamplingParams:
        body, engine = self.body, self.serving.engine
        given: dict[str, Any] = {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_tokens": body.max_output_tokens,
            "structured_outputs": None if self.form is None else self.form.params,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if body.max_output_tokens is None:
            # As many as fit, where the model has no limit of its own.
            given["max_tokens"] = engine.generation_config.sampling.get("max_tokens")
        try:
            return replace(engine.get_default_sampling_params(), **given)
        except ValueError as error:
            told = as_api_error(error, SamplingParams.__dataclass_fields__)
            if told.param == "max_tokens":
                told.param = "max_output_tokens"
            raise told from error

    def _told(self) -> dict[str, Any]:
        """What of the request comes back in the answer."""
        body = self.body
        text = {"format": {"type": "text"}}
        if body.text is not None and body.text.format is not None:
            text["format"] = body.text.format.model_dump(by_alias=True, exclude_none=True)
        told = {
            "created_at": int(time.time()),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model or self.serving.model_name,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": self.params.temperature,
            "top_p": self.params.top_p,
            "text": text,
            "tool_choice": body.tool_choice or "auto",
            "metadata": body.metadata or {},
        }
        return told if body.user is None else {**told, "user": body.user}

    async def _work(self) -> Work:
        prompt = await render(self.serving, self._messages(), param="input")
        return Work(
            request_id=self.state.id,
            prompts=[prompt],
            params=self.params,
            grammar=await compile_form(self.serving.engine, self.params, self.form),
            param="input",
        )

    def _messages(self) -> Sequence[Renderable]:
        given = self.body.input
        if isinstance(given, str):
            given = [InputMessage(role="user", content=given)]
        if self.body.instructions is None:
            return given
        return [InputMessage(role="system", content=self.body.instructions), *given]

    async def response(self) -> ResponseObject:
        """The whole answer."""
        async with aclosing(self.serving.answers(await self._work(), "final")) as outputs:
            async for _, output in outputs:
                self._take(output)
        return self.state.body()

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, in OpenAI's order."""
        begun = False
        async with aclosing(self.serving.answers(await self._work(), "delta")) as outputs:
            async for _, output in outputs:
                if not begun:
                    begun = True
                    for data in self.state.begin():
                        yield data
                text = self._take(output).text
                if text:
                    yield self.state.delta(text)
        for data in self.state.end():
            yield data

    def _take(self, output: RequestOutput) -> CompletionOutput:
        (part,) = output.outputs
        self.state.take(output, part)
        return part


def _wanted_form(text: TextConfig | None) -> Form | None:
    format = None if text is None else text.format
    if isinstance(format, JsonObjectFormat):
        return make_form("text.format", {"json_object": True})
    if isinstance(format, SchemaFormat):
        return make_form("text.format.schema", {"json": format.schema_})
    return None
