"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmir.engine import CompletionOutput, RequestOutput, SamplingParams, TokensPrompt
from llmir.engine.outputs import TokenLogprobs
from llmir.server.errors import as_api_error
from llmir.server.job import Job
from llmir.server.json_body import JsonResponse, JsonRoute
from llmir.server.logprobs import completion_logprobs, prompt_logprobs
from llmir.server.protocol.common import ERRORS
from llmir.server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from llmir.server.serving import Serving, Work
from llmir.server.sse import DONE, EventStream, answer

router = APIRouter(route_class=JsonRoute)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, where neither the request nor the model says anything."""


@router.post(
    "/v1/completions",
    response_model=None,
    responses={200: {"model": Completion, "content": {"text/event-stream": {}}}, **ERRORS},
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts."""
    serving: Serving = request.app.state.serving
    job = CompletionJob(serving, body, f"cmpl-{request.state.request_id}")
    timeout_s = serving.settings.request_timeout_s
    if body.stream:
        return EventStream(job.events(), to_error=as_api_error, timeout_s=timeout_s)
    return JsonResponse(await answer(request, job.completion(), timeout_s))


class CompletionJob(Job):
    """A request to /v1/completions.  Choice p · n + i is output i of prompt p."""

    chunk_object = "text_completion"

    def __init__(self, serving: Serving, body: CompletionRequest, id: str) -> None:
        super().__init__(serving, body, id)
        self.body = body
        # Who wants the prompt's log-probabilities alone asks for no token; the engine makes one.
        self._drop_output = body.max_tokens == 0
        self._check_logprobs("logprobs", body.logprobs)
        self._offsets: dict[int, int] = {}  # choice → characters of its tokens so far
        self.params = self._params()
        prompt: Any = body.prompt
        one = isinstance(prompt, str) or isinstance(prompt[0], int)
        self._given: list[str | list[int]] = [prompt] if one else prompt
        # Before any of them is tokenized for nothing.
        serving.check_room(len(self._given), self.params.n, "prompt")

    def _params(self) -> SamplingParams:
        body = self.body
        max_tokens = body.max_tokens
        if max_tokens is None:
            max_tokens = self.default_max_tokens(DEFAULT_MAX_TOKENS)
        more: dict[str, Any] = {"max_tokens": max_tokens or 1, "logprobs": body.logprobs}
        if body.echo and body.logprobs is not None:
            more["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
        return self.sampling_params(body, {}, **more)

    async def _work(self) -> Work:
        prompts = await self._prompts()
        return Work(
            request_id=self.id,
            prompts=prompts,
            params=self.params,
            grammar=await self.prepare(self.params),
            priority=self.body.priority or 0,
        )

    async def _prompts(self) -> list[TokensPrompt]:
        serving = self.serving
        texts = [one for one in self._given if isinstance(one, str)]
        if texts:
            for text in texts:
                serving.check_text(text, "prompt")
            special = self.body.add_special_tokens is not False
            tokens = await serving.tokenize(texts, add_special_tokens=special)
            return [
                {"prompt_token_ids": token_ids, "prompt": text}
                for token_ids, text in zip(tokens, texts, strict=True)
            ]
        lists = [one for one in self._given if isinstance(one, list)]
        for token_ids in lists:
            serving.check_length(len(token_ids), "prompt")
        if not self.body.echo:
            return [{"prompt_token_ids": token_ids} for token_ids in lists]
        return await asyncio.to_thread(self._with_texts, lists)

    def _with_texts(self, lists: list[list[int]]) -> list[TokensPrompt]:
        decode = self.serving.engine.get_tokenizer().decode
        return [
            {"prompt_token_ids": token_ids, "prompt": decode(token_ids, skip_special_tokens=False)}
            for token_ids in lists
        ]

    # -- answers -------------------------------------------------------------------------

    async def completion(self) -> Completion:
        """The whole answer."""
        choices: list[CompletionChoice] = []
        async with aclosing(self.serving.answers(await self._work(), "final")) as outputs:
            async for index, output in outputs:
                choices += [self._choice(index, output, part) for part in output.outputs]
        choices.sort(key=lambda choice: choice["index"])
        return {
            **self.head("text_completion"),  # type: ignore[typeddict-item]
            "choices": choices,
            "usage": self.tally.usage(),
        }

    async def events(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events."""
        ended: set[int] = set()
        async with aclosing(self.serving.answers(await self._work(), "delta")) as outputs:
            async for index, output in outputs:
                for part in output.outputs:
                    number = index * self.params.n + part.index
                    if number in ended or not (part.token_ids or part.finish_reason):
                        continue
                    if part.finish_reason is not None:
                        ended.add(number)
                    choice = self._choice(index, output, part)
                    if _says_something(choice):
                        yield self.chunk(choice)
        for data in self.usage_chunk():
            yield data
        yield DONE

    def _choice(
        self, index: int, output: RequestOutput, part: CompletionOutput
    ) -> CompletionChoice:
        """A choice, or what is new of it since the last call for it."""
        number = index * self.params.n + part.index
        is_first = number not in self._offsets
        self._offsets.setdefault(number, 0)
        token_ids = [] if self._drop_output else part.token_ids
        self.tally.take(index, output, len(token_ids))
        text = "" if self._drop_output else part.text
        if self.body.echo and is_first:
            text = (output.prompt or "") + text
        choice: CompletionChoice = {
            "index": number,
            "text": text,
            "logprobs": self._logprobs(number, output, part, is_first),
            "finish_reason": "length" if self._drop_output else part.finish_reason,
            "stop_reason": part.stop_reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = token_ids
            if is_first:
                choice["prompt_token_ids"] = output.prompt_token_ids
        num_top = self.body.prompt_logprobs
        if num_top is not None and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(
                output.prompt_logprobs, output.prompt_token_ids, num_top
            )
        return choice

    def _logprobs(
        self, number: int, output: RequestOutput, part: CompletionOutput, is_first: bool
    ) -> CompletionLogprobs | None:
        num_top = self.body.logprobs
        if num_top is None:
            return None
        token_ids: list[int] = []
        entries: list[TokenLogprobs | None] = []
        if self.body.echo and is_first:
            token_ids += output.prompt_token_ids
            entries += output.prompt_logprobs or []
        if not self._drop_output:
            token_ids += part.token_ids
            entries += part.logprobs or []
        tokenizer = self.serving.engine.get_tokenizer()
        found = completion_logprobs(entries, token_ids, num_top, tokenizer, self._offsets[number])
        self._offsets[number] += sum(map(len, found["tokens"]))
        return found


def _says_something(choice: CompletionChoice) -> bool:
    """Whether a chunk is worth sending: a token may be half a character and show no text yet."""
    return bool(
        choice["text"]
        or choice["finish_reason"]
        or choice["logprobs"]
        or choice.get("token_ids")
        or choice.get("prompt_token_ids")
    )
