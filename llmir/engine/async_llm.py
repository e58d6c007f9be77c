"""`AsyncLLM`: many requests at once, from asyncio.

    event loop   generate() ─ check ─► command ┐           ┌► text, stop strings ─► streams
                                               ▼           │
    step thread                         step, step, … ── result

The loop never waits for a step: the model runs on the step thread, which holds Python's lock
only between its calls, and texts are made on the loop while it runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from llmir.engine.core import EngineCore
from llmir.engine.frontend import Frontend
from llmir.engine.generation_config import GenerationConfig
from llmir.engine.llm_engine import make_request
from llmir.engine.ngram import NgramConfig
from llmir.engine.output_processor import OutputProcessor
from llmir.engine.outputs import RequestOutput
from llmir.engine.prompts import Prompt, parse_prompt
from llmir.engine.request import Request, StepResult
from llmir.engine.request_checks import RequestChecks
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import SchedulerConfig
from llmir.engine.stats import EngineStats
from llmir.engine.step_thread import Command, StepThread
from llmir.engine.structured_output import Grammar
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import EngineStoppedError, RequestError
from llmir.runtime.base import StepRunner


class _Stream:
    """Where the reader of one request waits."""

    def __init__(self, *, final_only: bool) -> None:
        self.final_only = final_only
        self.error: Exception | None = None
        self.output: RequestOutput | None = None  # the last one, if it was ended from outside
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Until something is new; raises what the request failed with."""
        await self._event.wait()
        self._event.clear()
        if self.error is not None:
            raise self.error


class AsyncLLM(Frontend):
    """A model that answers many at once.  To be used from one event loop.

    Args: as `LLM`.

    `async with AsyncLLM(…) as llm` shuts it down at the end.
    """

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: Tokenizer | None,
        *,
        generation_config: GenerationConfig | None = None,
        config: SchedulerConfig | None = None,
        speculation: NgramConfig | None = None,
    ) -> None:
        super().__init__(tokenizer, generation_config)
        self._core = EngineCore(
            runner,
            tokenizer,
            eos_token_ids=self.eos_token_ids(),
            config=config,
            speculation=speculation,
        )
        self._checks = RequestChecks(
            runner.limits, self._core.scheduler.blocks, tokenizer, self._core.grammars
        )
        self._processor = OutputProcessor(tokenizer)
        self._streams: dict[str, _Stream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: StepThread | None = None
        # Of its own, so that what else is done on threads does not wait for the slowest grammars.
        self._compiling = ThreadPoolExecutor(thread_name_prefix="llmir-grammar")
        self._closing = False
        self._error: Exception | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown(drain_seconds=0)

    async def prepare(self, params: SamplingParams) -> Grammar | None:
        """Compile what `structured_outputs` asks for, on a thread; give `generate` the result.

        Without it the call of `generate` compiles, which takes seconds for the largest.
        None: these parameters ask for no form.  Raises RequestError and EngineStoppedError as
        `generate`.
        """
        self._check_running()
        form = params.structured_outputs
        if form is None:
            return None
        compiling = self._compiling.submit(self._core.grammars.compile, form)
        try:
            return await asyncio.wrap_future(compiling)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EngineStoppedError("the engine is shutting down") from None

    # -- requests ------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str,
        priority: int = 0,
        delta: bool = False,
        final_only: bool = False,
        grammar: Grammar | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer one prompt, yielding as it goes; the last output has `finished` set.

        Each output is cumulative; with `delta`, it holds only what is new since the one before;
        with `final_only` there is the last one alone.  `grammar` is what `prepare` made of these
        parameters.  A reader that is slower than the steps
        gets several tokens at once.  The request begins with the first `anext`; closing the
        generator, or cancelling who waits for it, aborts it.

        Raises:
            RequestError: at this call, for what can never be served, or an id in use, or a
                priority under another policy than `priority`.
            EngineStoppedError: at this call, after `shutdown`; while iterating, if the engine
                broke.
            DeviceError, or what else a step failed with: while iterating.
        """
        self._check_running()
        parsed = parse_prompt(prompt, self.tokenizer)
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise RequestError(f"expected SamplingParams, not {type(params).__name__}")
        if request_id in self._processor:
            raise RequestError(f"a request with the id {request_id!r} is being served")
        self._core.scheduler.check_priority(priority)
        request = make_request(
            self._checks,
            request_id,
            parsed.token_ids,
            params,
            prompt=parsed.text,
            priority=priority,
            grammar=grammar,
        )
        return self._follow(request, delta, final_only)

    async def abort(self, request_id: str) -> bool:
        """End a request, whose reader gets what there is with the finish_reason "abort".

        False: there is no such request.
        """
        stream = self._streams.get(request_id)
        if stream is None:
            return False
        stream.output = self._drop(request_id)
        stream.wake()
        return True

    async def _follow(
        self, request: Request, delta: bool, final_only: bool
    ) -> AsyncGenerator[RequestOutput, None]:
        request_id = request.request_id
        stream = self._begin(request, final_only)
        shown: RequestOutput | None = None
        try:
            while shown is None or not shown.finished:
                await stream.wait()
                output = stream.output or self._processor.output(request_id)
                new = output.since(shown)
                # A chunk of the prompt alone is nothing to show.
                if output.finished or any(part.token_ids for part in new.outputs):
                    shown = output
                    yield new if delta else output
        finally:
            self._drop(request_id)
            del self._streams[request_id]
            if not self._streams:
                self._idle.set()

    def _begin(self, request: Request, final_only: bool) -> _Stream:
        thread = self._started()
        if request.request_id in self._streams:
            raise RequestError(f"a request with the id {request.request_id!r} is being served")
        stream = self._streams[request.request_id] = _Stream(final_only=final_only)
        self._idle.clear()
        self._processor.add(request)
        thread.submit(Command(request.request_id, partial(_add, request)))
        return stream

    def _drop(self, request_id: str) -> RequestOutput | None:
        """End a request where it is, for the step too; None: it has ended already."""
        output = self._processor.abort(request_id, time.monotonic())
        if output is not None and self._thread is not None:
            self._thread.submit(Command(request_id, partial(_abort, request_id)))
        return output

    # -- results, on the loop ------------------------------------------------------------

    def _started(self) -> StepThread:
        """The step thread; it begins with the first request, whose loop is the one to serve."""
        self._check_running()
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = StepThread(
                self._core,
                on_result=partial(self._post, self._take),
                on_failure=partial(self._post, self._fail),
                on_stop=partial(self._post, self._stopped),
            )
            self._thread.start()
        assert asyncio.get_running_loop() is self._loop, "AsyncLLM serves one event loop"
        return self._thread

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """Have the loop call something; called on the step thread."""
        assert self._loop is not None
        assert self._thread is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            self._thread.stop()  # nobody is left to read

    def _take(self, result: StepResult) -> None:
        processed = self._processor.process(result)
        if self._thread is not None:
            for request_id, index in processed.stopped:
                self._thread.submit(Command(request_id, partial(_stop, request_id, index)))
        for request_id in processed.request_ids:
            stream = self._streams[request_id]
            if not stream.final_only or self._processor.is_finished(request_id):
                stream.wake()

    def _fail(self, failed: Sequence[str], error: Exception) -> None:
        for request_id in failed:
            stream = self._streams.get(request_id)
            if stream is not None and self._processor.abort(request_id, time.monotonic()):
                stream.error = error
                stream.wake()

    def _stopped(self, error: Exception | None) -> None:
        if error is None:
            return
        self._error = error
        stopped = EngineStoppedError(f"the engine broke: {error}")
        stopped.__cause__ = error
        self._fail(self._processor.request_ids(), stopped)

    # -- the engine ----------------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        """The longest sequence, prompt and output together, that the pools hold alone."""
        return self._checks.max_model_len

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return not self._closing and self._error is None

    @property
    def errored(self) -> Exception | None:
        """What the engine broke with; None: nothing.  A failed step alone does not break it."""
        return self._error

    @property
    def num_running(self) -> int:
        """Sequences in the batch; `stats` has this and more, and takes longer."""
        return len(self._core.scheduler.running)

    def stats(self) -> EngineStats:
        """What there is to know of the engine now."""
        return self._core.stats()

    async def shutdown(self, *, drain_seconds: float | None = None) -> None:
        """Take no more requests, finish those there are, and end the step thread.

        drain_seconds: after this time what still runs is aborted; None: it may take its time.
        """
        self._closing = True
        try:
            await asyncio.wait_for(self._idle.wait(), drain_seconds)
        except TimeoutError:
            for request_id in list(self._streams):
                await self.abort(request_id)
        if self._thread is not None:
            self._thread.stop()
            await asyncio.to_thread(self._thread.join)
        self._compiling.shutdown(wait=False, cancel_futures=True)

    def _check_running(self) -> None:
        if self._error is not None:
            raise EngineStoppedError(f"the engine broke: {self._error}") from self._error
        if self._closing:
            raise EngineStoppedError("the engine is shutting down")


def _add(request: Request, core: EngineCore) -> None:
    core.add(request)


def _abort(request_id: str, core: EngineCore) -> None:
    core.abort(request_id)


def _stop(request_id: str, index: int, core: EngineCore) -> None:
    core.stop(request_id, index)
