"""What answering a completion and answering a chat have in common."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from llmir.engine import RequestOutput, SamplingParams
from llmir.engine.structured_output import Grammar
from llmir.server.errors import ApiError, as_api_error
from llmir.server.forms import Form, compile_form, wanted_form
from llmir.server.protocol.common import Usage
from llmir.server.protocol.sampling import SamplingFields
from llmir.server.serving import Serving
from llmir.server.sse import event


class Tally:
    """Counts the tokens of a request as its outputs pass, for `usage`."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._num_completion = 0

    def take(self, index: int, output: RequestOutput, num_new: int) -> None:
        """Note an output of prompt `index`, of which `num_new` tokens are new."""
        self._prompts[index] = (len(output.prompt_token_ids), output.num_cached_tokens or 0)
        self._num_completion += num_new

    def usage(self) -> Usage:
        num_prompt = sum(num for num, _ in self._prompts.values())
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self._num_completion,
            "total_tokens": num_prompt + self._num_completion,
            "prompt_tokens_details": {"cached_tokens": sum(c for _, c in self._prompts.values())},
        }


class Job:
    """One request for text, on its way.

    Attributes:
        id: what the answer is called by.
        tally: tokens so far.
        form: what the output must be; None: any text.
    """

    chunk_object = ""
    """What the chunks of a stream call themselves."""

    def __init__(self, serving: Serving, body: SamplingFields, id: str) -> None:
        serving.check_model(body.model)
        serving.check_open()  # before a long prompt is tokenized for nothing
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options is for streams: set stream", param="stream_options")
        options = body.stream_options
        if options is not None and options.continuous_usage_stats and not options.include_usage:
            name = "stream_options.continuous_usage_stats"
            raise ApiError(400, f"{name} needs include_usage", param=name)
        if body.prompt_logprobs is not None and body.stream:
            raise ApiError(400, "prompt_logprobs does not come in streams", param="prompt_logprobs")
        self.serving = serving
        self.id = id
        self.tally = Tally()
        self.form: Form | None = wanted_form(body)
        self._created = int(time.time())
        self._model = body.model or serving.model_name
        self._usage_last = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)

    def head(self, object: str) -> dict[str, Any]:
        """What the answer, and each chunk of it, begins with."""
        return {"id": self.id, "object": object, "created": self._created, "model": self._model}

    def chunk(self, choice: Any, **more: Any) -> bytes:
        """An event with one choice."""
        body = {**self.head(self.chunk_object), "choices": [choice], **more}
        if self._usage_always:
            body["usage"] = self.tally.usage()
        elif self._usage_last:
            body["usage"] = None
        return event(body)

    def usage_chunk(self) -> Iterable[bytes]:
        """The event that ends a stream whose client wants to know the numbers of tokens."""
        if self._usage_last:
            head = self.head(self.chunk_object)
            yield event({**head, "choices": [], "usage": self.tally.usage()})

    def default_max_tokens(self, otherwise: int | None) -> int | None:
        """The model's own limit on outputs, where it has one."""
        own = self.serving.engine.generation_config.sampling.get("max_tokens")
        return otherwise if own is None else int(own)

    def sampling_params(
        self, body: SamplingFields, renamed: dict[str, str], **more: Any
    ) -> SamplingParams:
        """The sampler's parameters.  Raises ApiError, with the name that the request has for it.

        renamed: what SamplingParams calls otherwise than the request.
        """
        self._check_logprobs("prompt_logprobs", body.prompt_logprobs)
        if self.form is not None:
            more["structured_outputs"] = self.form.params
        try:
            return body.sampling_params(self.serving.engine.get_default_sampling_params(), **more)
        except ValueError as error:
            told = as_api_error(error, SamplingParams.__dataclass_fields__)
            told.param = renamed.get(told.param or "", told.param)
            raise told from error

    async def prepare(self, params: SamplingParams) -> Grammar | None:
        """Compile the output's form beside the event loop.  Raises ApiError: it has none."""
        return await compile_form(self.serving.engine, params, self.form)

    def _check_logprobs(self, name: str, value: int | None) -> None:
        most = self.serving.settings.max_logprobs
        if value is not None and value > most:
            raise ApiError(400, f"{name} must be at most {most}, not {value}", param=name)
