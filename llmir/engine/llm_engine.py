"""The engine in one thread: requests in, steps, outputs out.

check → core.step() → processor.process() → outputs
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmir.engine.core import EngineCore
from llmir.engine.ngram import NgramConfig
from llmir.engine.output_processor import OutputProcessor
from llmir.engine.outputs import RequestOutput
from llmir.engine.prompt_rows import LogprobRows, PromptRows
from llmir.engine.request import Request
from llmir.engine.request_checks import RequestChecks
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import Scheduler, SchedulerConfig
from llmir.engine.stats import EngineStats
from llmir.engine.structured_output import Grammar
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError
from llmir.runtime.base import StepRunner


class LLMEngine:
    """Serves any number of requests on one runner.  Not thread-safe.

    Args:
        runner: runs the steps.
        tokenizer: for text, stop strings and the tokens in logprobs; None: token ids alone.
        eos_token_ids: ids that end an answer, besides those of `stop_token_ids`.
        config: what a step may hold; within the runner's limits.
        speculation: how tokens are proposed, to be verified several in one step; None: not at all.
    """

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: Tokenizer | None,
        *,
        eos_token_ids: Sequence[int] = (),
        config: SchedulerConfig | None = None,
        speculation: NgramConfig | None = None,
    ) -> None:
        self.core = EngineCore(
            runner, tokenizer, eos_token_ids=eos_token_ids, config=config, speculation=speculation
        )
        self.limits = runner.limits
        self.tokenizer = tokenizer
        self._checks = RequestChecks(
            self.limits, self.scheduler.blocks, tokenizer, self.core.grammars
        )
        self._processor = OutputProcessor(tokenizer)

    @property
    def scheduler(self) -> Scheduler:
        """Who is served next, and who holds which page."""
        return self.core.scheduler

    @property
    def max_model_len(self) -> int:
        """The longest sequence, prompt and output together, that the pools hold alone."""
        return self._checks.max_model_len

    def step(self) -> list[RequestOutput]:
        """Run one step; returns the cumulative outputs of the requests that got on in it.

        Raises DeviceError when the runner does; nothing is lost then: the step can be
        tried again, or the requests aborted.
        """
        result = self.core.step()
        if result is None:
            return []
        processed = self._processor.process(result)
        for request_id, index in processed.stopped:
            self.core.stop(request_id, index)
        return [self._processor.output(request_id) for request_id in processed.request_ids]

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return self.core.has_unfinished_requests()

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
    ) -> None:
        """Queue a request; `step` serves it, under the policy `priority` the lower first.

        Raises RequestError as `check_request`, and for a priority under another policy.
        """
        self._check_id(request_id)
        self.scheduler.check_priority(priority)
        self._add(
            make_request(
                self._checks,
                request_id,
                prompt_token_ids,
                params,
                prompt=prompt,
                priority=priority,
            )
        )

    def add_prompt(
        self, request_id: str, token_ids: Sequence[int], rows: PromptRows | None
    ) -> None:
        """Queue a prompt that is only run, for the rows of its logits or to be in the cache.

        Raises RequestError.
        """
        self._check_id(request_id)
        self._checks.prompt(token_ids)
        self._add(
            Request(
                request_id=request_id,
                prompt_token_ids=list(token_ids),
                params=SamplingParams(temperature=0.0, detokenize=False),
                max_tokens=0,
                prompt_rows=rows,
            )
        )

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and free what it holds, at once; None: there is no such request."""
        self.core.abort(request_id)
        return self._processor.abort(request_id, time.monotonic())

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> int:
        """How many tokens the output may have; nothing is queued.

        Raises RequestError: the prompt is empty, holds ids the model does not have, or could
        not be served even alone; a parameter names such an id, or a form of the output that
        cannot be had.
        """
        max_tokens = self._checks.request(prompt_token_ids, params)
        self._checks.grammar(params)
        return max_tokens

    def stats(self) -> EngineStats:
        """What there is to know of the engine now."""
        return self.core.stats()

    def _check_id(self, request_id: str) -> None:
        if request_id in self._processor:
            raise RequestError(f"a request with the id {request_id!r} is being served")

    def _add(self, request: Request) -> None:
        self.core.add(request)
        self._processor.add(request)


def make_request(
    checks: RequestChecks,
    request_id: str,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    prompt: str | None = None,
    priority: int = 0,
    grammar: Grammar | None = None,
) -> Request:
    """A request that can be served.

    grammar: of `params.structured_outputs`, where somebody has compiled it.

    Raises RequestError as `RequestChecks.request` and `RequestChecks.grammar`.
    """
    max_tokens = checks.request(prompt_token_ids, params)
    token_ids = list(prompt_token_ids)
    rows = None
    if params.prompt_logprobs is not None:
        rows = LogprobRows(token_ids, params.prompt_logprobs, checks.tokenizer)
    return Request(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=token_ids,
        params=params,
        max_tokens=max_tokens,
        priority=priority,
        grammar=checks.grammar(params, grammar),
        prompt_rows=rows,
    )
