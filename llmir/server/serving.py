"""What the endpoints share: the engine, who may use it now, and a request's way through it.

endpoint ─ prompts, SamplingParams ─► Serving.answers ─ one stream each ─► AsyncLLM
                                          │
                                counted, measured, aborted when nobody reads on
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from llmir.engine import AsyncLLM, RequestOutput, SamplingParams, TokensPrompt
from llmir.engine.structured_output import Grammar
from llmir.engine.tokenizer import LONG_TEXT
from llmir.errors import LlmirError, RequestError
from llmir.server.errors import ApiError, as_api_error, overloaded, shown
from llmir.server.merge import merge
from llmir.server.metrics import Metrics
from llmir.server.middleware import OpenRequests
from llmir.server.settings import ServerSettings

LONGEST_TURN_S = 0.005
"""How long the prompts of one request are looked at before others have their turn."""

Form = Literal["delta", "final"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one HTTP request asks of the engine.

    request_id  what its outputs are called by, in the engine and in the answer
    prompts     served at the same time; an answer's `index` is a prompt's place here
    params      of the sampler, the same for all
    grammar     what the engine's `prepare` made of them
    priority    lower ones are served first, where the scheduler looks at it
    param       the parameter that the prompts came in, for errors about them
    """

    request_id: str
    prompts: Sequence[TokensPrompt]
    params: SamplingParams
    grammar: Grammar | None = None
    priority: int = 0
    param: str = "prompt"

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.params.n


class Serving:
    """The engine as the endpoints use it.

    Attributes:
        num_sequences: outputs that are being computed or wait to be.
        draining: whether the server is about to end and takes nothing new.
    """

    def __init__(self, engine: AsyncLLM, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine, settings.model_names[0])
        self.open_requests = OpenRequests()
        self.num_sequences = 0
        self.draining = False
        self.created = int(time.time())
        self._numbers = itertools.count()
        self._turns = asyncio.Lock()

    @property
    def model_name(self) -> str:
        return self.settings.model_names[0]

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine.is_running and not self.draining

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for a model that is not served here; None: the one that is."""
        if name is not None and name not in self.settings.model_names:
            raise ApiError(
                404,
                f"there is no model {shown(name)} here, but {', '.join(self.settings.model_names)}",
                param="model",
                code="model_not_found",
            )

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The tokens of each text.  Long ones, or many, are tokenized beside the event loop."""
        encode = self.engine.get_tokenizer().encode

        def work() -> list[list[int]]:
            return [encode(text, add_special_tokens) for text in texts]

        if len(texts) <= LONG_TEXT and sum(map(len, texts)) <= LONG_TEXT:
            return await self.in_turn(work)
        return await asyncio.to_thread(work)

    async def in_turn(self, work: Callable[[], Result]) -> Result:
        """The result of a millisecond's work on the loop, one at a time.

        Hundreds of requests that come together would else hold it for hundreds of milliseconds.
        """
        async with self._turns:
            await asyncio.sleep(0)
            return work()

    def check_text(self, text: str, param: str) -> None:
        """Raises ApiError where a text's length alone says that it has too many tokens."""
        if len(text) > LONG_TEXT:
            num_tokens = self.engine.get_tokenizer().min_tokens(text)
            self.check_length(num_tokens, param, f"at least {num_tokens}")

    def check_length(self, num_tokens: int, param: str, said: str = "") -> None:
        """Raises ApiError for a prompt of more tokens than the model's context has room for."""
        longest = self.engine.max_model_len
        if num_tokens >= longest:
            raise ApiError(
                400,
                f"{param} has {said or num_tokens} tokens and needs room for one more, but the "
                f"model's context (max_model_len) is {longest} tokens",
                param=param,
                code="context_length_exceeded",
            )

    async def answers(
        self, work: Work, form: Form
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """(index of the prompt, its output), as they come.

        form: "delta": what is new each time; "final": one output of each prompt, whole.

        The last output of a prompt has `finished` set.  Closing this aborts what is left.
        Raises ApiError: nothing is served then, or nothing more.
        """
        with self._admitted(work):
            streams = await self._start(work, form)
            watch = self.metrics.watch(work.params, len(streams))
            try:
                async with aclosing(merge(streams)) as outputs:
                    async for index, output in outputs:
                        _check_output(output)
                        watch.take(index, output, streamed=form == "delta")
                        yield index, output
            except Exception as error:
                watch.end("error")
                raise as_api_error(error) from error
            finally:
                watch.end("abort")

    async def _start(self, work: Work, form: Form) -> list[AsyncGenerator[RequestOutput, None]]:
        """A stream for each prompt, all or none; they begin when they are read."""
        streams = []
        turn = time.monotonic() + LONGEST_TURN_S
        try:
            for prompt in work.prompts:
                streams.append(self._stream(prompt, work, form))
                if time.monotonic() > turn:
                    await asyncio.sleep(0)
                    turn = time.monotonic() + LONGEST_TURN_S
        except LlmirError as error:
            raise as_api_error(
                error, {*type(work.params).__dataclass_fields__, "priority"}
            ) from error
        return streams

    def _stream(
        self, prompt: TokensPrompt, work: Work, form: Form
    ) -> AsyncGenerator[RequestOutput, None]:
        self.check_length(len(prompt["prompt_token_ids"]), work.param)
        try:
            return self.engine.generate(
                prompt,
                work.params,
                request_id=f"{work.request_id}-{next(self._numbers)}",
                priority=work.priority,
                delta=form == "delta",
                final_only=form == "final",
                grammar=work.grammar,
            )
        except RequestError as error:
            if str(error).startswith(("the prompt ", "a prompt ")):
                raise ApiError(400, str(error), param=work.param) from error
            raise

    def check_open(self, num_wanted: int = 1) -> None:
        """Raises ApiError 503 if `num_wanted` sequences more cannot be taken now."""
        if self.engine.errored is not None:
            raise ApiError(503, "the engine broke: this server must be started again")
        if not self.is_ready:
            raise overloaded("the server is shutting down", retry_after_s=5)
        # Those on their way to the engine count too, which its own numbers do not show yet.
        num_waiting = max(0, self.num_sequences - self.engine.num_running)
        if num_waiting + num_wanted > self.settings.max_waiting:
            raise overloaded(f"{num_waiting} sequences are waiting already; try again later")

    def check_room(self, num_prompts: int, n: int, param: str) -> None:
        """Raises ApiError for `n` outputs of each prompt if there is no room, ever or now."""
        num_wanted, most = num_prompts * n, self.settings.max_waiting
        if num_wanted > most:
            raise ApiError(
                400,
                f"the request asks for {num_wanted} outputs; this server takes {most} at a time",
                param=param if num_prompts > 1 else "n",
            )
        self.check_open(num_wanted)

    @contextmanager
    def _admitted(self, work: Work) -> Iterator[None]:
        """Counts the sequences of some work while it is being done, if it may be."""
        num_wanted = work.num_sequences
        self.check_room(len(work.prompts), work.params.n, work.param)
        self.num_sequences += num_wanted
        try:
            yield
        finally:
            self.num_sequences -= num_wanted


def _check_output(output: RequestOutput) -> None:
    """Raises ApiError for an output that llmir could not go on with."""
    for part in output.outputs:
        if part.finish_reason == "error":
            raise ApiError(
                500,
                f"the output could not be gone on with: {part.stop_reason}",
                code="generation_error",
            )
