"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmir.engine import CompletionOutput, RequestOutput, SamplingParams
from llmir.server.conversation import render, tool_format
from llmir.server.errors import ApiError, as_api_error
from llmir.server.job import Job
from llmir.server.json_body import JsonResponse, JsonRoute
from llmir.server.logprobs import chat_logprobs, prompt_logprobs
from llmir.server.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
)
from llmir.server.protocol.common import ERRORS, FinishReason
from llmir.server.serving import Serving, Work
from llmir.server.sse import DONE, EventStream, answer
from llmir.server.tools.use import wanted_tools
from llmir.server.tools.writer import MessageWriter

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses={200: {"model": ChatCompletion, "content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    serving: Serving = request.app.state.serving
    job = ChatJob(serving, body, f"chatcmpl-{request.state.request_id}")
    timeout_s = serving.settings.request_timeout_s
    if body.stream:
        return EventStream(job.events(), to_error=as_api_error, timeout_s=timeout_s)
    return JsonResponse(await answer(request, job.completion(), timeout_s))


class ChatJob(Job):
    """A request to /v1/chat/completions."""

    chunk_object = "chat.completion.chunk"

    def __init__(self, serving: Serving, body: ChatRequest, id: str) -> None:
        super().__init__(serving, body, id)
        self.body = body
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
        self._check_logprobs("top_logprobs", body.top_logprobs)
        self._use = wanted_tools(
            body.tools,
            body.tool_choice,
            body.parallel_tool_calls,
            tool_format(serving) if body.tools else None,
            self.form,
        )
        self._writers: dict[int, MessageWriter] = {}  # by the output's index
        if self._use is not None:
            self.form = self._use.form
        self.params = self._params()

    def _params(self) -> SamplingParams:
        body = self.body
        new_name = body.max_completion_tokens is not None
        max_tokens = body.max_completion_tokens if new_name else body.max_tokens
        more: dict[str, Any] = {"logprobs": (body.top_logprobs or 0) if body.logprobs else None}
        if max_tokens is None:
            max_tokens = self.default_max_tokens(None)
        if self._use is not None and body.skip_special_tokens is None:
            # The marks of calls are special tokens to some models.
            more["skip_special_tokens"] = False
        renamed = {"logprobs": "top_logprobs"}
        if new_name:
            renamed["max_tokens"] = "max_completion_tokens"
        return self.sampling_params(body, renamed, max_tokens=max_tokens, **more)

    async def _work(self) -> Work:
        body = self.body
        prompt = await render(
            self.serving,
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False,
            chat_template_kwargs=body.chat_template_kwargs,
            use=self._use,
        )
        return Work(
            request_id=self.id,
            prompts=[prompt],
            params=self.params,
            grammar=await self.prepare(self.params),
            priority=body.priority or 0,
            param="messages",
        )

    # -- answers -------------------------------------------------------------------------

    async def completion(self) -> ChatCompletion:
        """The whole answer."""
        async with aclosing(self.serving.answers(await self._work(), "final")) as outputs:
            async for _, output in outputs:
                final = output
        self.tally.take(0, final, sum(len(part.token_ids) for part in final.outputs))
        completion: ChatCompletion = {
            **self.head("chat.completion"),  # type: ignore[typeddict-item]
            "choices": [self._choice(part) for part in final.outputs],
            "usage": self.tally.usage(),
        }
        if self.body.return_token_ids:
            completion["prompt_token_ids"] = final.prompt_token_ids
        num_top = self.body.prompt_logprobs
        if num_top is not None and final.prompt_logprobs is not None:
            completion["prompt_logprobs"] = prompt_logprobs(
                final.prompt_logprobs, final.prompt_token_ids, num_top
            )
        return completion

    def _choice(self, part: CompletionOutput) -> ChatChoice:
        message: ChatMessage = {"role": "assistant", "content": part.text, "refusal": None}
        if self._use is not None:
            writer = MessageWriter(self._use)
            self._writers[part.index] = writer
            writer.feed(part.text, finished=True)
            message["content"] = writer.content or (None if writer.calls else "")
            if writer.calls:
                message["tool_calls"] = writer.calls
        choice: ChatChoice = {
            "index": part.index,
            "message": message,
            "logprobs": self._logprobs(part),
            "finish_reason": self._finish_reason(part) or "stop",
            "stop_reason": part.stop_reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = part.token_ids
        return choice

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events: the role of each output, then its text."""
        ended: set[int] = set()
        begun = False
        async with aclosing(self.serving.answers(await self._work(), "delta")) as outputs:
            async for _, output in outputs:
                if not begun:
                    begun = True
                    for data in self._first_events(output):
                        yield data
                for part in output.outputs:
                    if part.index in ended or not (part.token_ids or part.finish_reason):
                        continue
                    if part.finish_reason is not None:
                        ended.add(part.index)
                    self.tally.take(0, output, len(part.token_ids))
                    choice = self._chunk_choice(part)
                    if _says_something(choice):
                        yield self.chunk(choice)
        for data in self.usage_chunk():
            yield data
        yield DONE

    def _first_events(self, output: RequestOutput) -> list[bytes]:
        more = {"prompt_token_ids": output.prompt_token_ids} if self.body.return_token_ids else {}
        self.tally.take(0, output, 0)
        events = []
        for part in output.outputs:
            choice: ChatChunkChoice = {
                "index": part.index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            events.append(self.chunk(choice, **more))
        return events

    def _chunk_choice(self, part: CompletionOutput) -> ChatChunkChoice:
        delta: ChatDelta = {"content": part.text} if part.text else {}
        if self._use is not None:
            if part.index not in self._writers:
                self._writers[part.index] = MessageWriter(self._use)
            writer = self._writers[part.index]
            delta = writer.feed(part.text, finished=part.finish_reason is not None)
        choice: ChatChunkChoice = {
            "index": part.index,
            "delta": delta,
            "logprobs": self._logprobs(part),
            "finish_reason": self._finish_reason(part),
        }
        if part.finish_reason is not None:
            choice["stop_reason"] = part.stop_reason
        if self.body.return_token_ids:
            choice["token_ids"] = part.token_ids
        return choice

    def _finish_reason(self, part: CompletionOutput) -> FinishReason | None:
        writer = self._writers.get(part.index)
        if part.finish_reason == "stop" and writer is not None and writer.ends_in_calls:
            return "tool_calls"
        return part.finish_reason

    def _logprobs(self, part: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        content = chat_logprobs(
            part.logprobs or [],
            part.token_ids,
            self.body.top_logprobs or 0,
            self.serving.engine.get_tokenizer(),
        )
        return {"content": content, "refusal": None}


def _says_something(choice: ChatChunkChoice) -> bool:
    """Whether a chunk is worth sending: a token may be half a character and show no text yet."""
    return bool(
        choice["delta"] or choice["finish_reason"] or choice["logprobs"] or choice.get("token_ids")
    )
