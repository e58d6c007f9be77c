"""`LLM`: generate, chat, stream and score, offline, with vLLM's names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir.engine.frontend import Frontend, Messages
from llmir.engine.generation_config import GenerationConfig
from llmir.engine.llm_engine import LLMEngine
from llmir.engine.ngram import NgramConfig
from llmir.engine.outputs import RequestOutput
from llmir.engine.pins import PinnedPrefix, Pins
from llmir.engine.progress import progress_bar
from llmir.engine.prompt_rows import LogitRows, PromptRows, ScoreRows
from llmir.engine.prompts import ParsedPrompt, Prompt, Prompts, parse_prompt, parse_prompts
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import SchedulerConfig
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError
from llmir.runtime.base import F32, StepRunner


class LLM(Frontend):
    """A model that answers prompts.  Not thread-safe.

    Args:
        runner: runs the steps.
        tokenizer: text to ids and back, and the chat template; None: prompts are token ids,
            and the outputs have no text.
        generation_config: EOS ids and default sampling; None: the tokenizer's EOS alone.
        config: what a step may hold; within the runner's limits.
        speculation: how tokens are proposed, to be verified several in one step; None: not at all.
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
        self.engine = LLMEngine(
            runner,
            tokenizer,
            eos_token_ids=self.eos_token_ids(),
            config=config,
            speculation=speculation,
        )
        self._request_ids = itertools.count()
        # A step serves everyone; the latest output of each request waits here until asked for.
        self._latest: dict[str, RequestOutput | None] = {}

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer prompts, many at a time; the outputs are in the order of the prompts.

        Args:
            prompts: text, a list of token ids, a dict with `prompt` or `prompt_token_ids`, or a
                list of such.
            sampling_params: for all prompts, or one for each; None: the model's defaults.
            use_tqdm: show progress on stderr, if it is a terminal.
            priority: for all prompts, or one for each; the lower is served first, under the
                scheduling_policy `priority` alone.

        Raises:
            RequestError: a prompt or parameter that cannot be served; nothing is served then.
            DeviceError: a step failed; all of these requests are aborted.
        """
        parsed = parse_prompts(prompts, self.tokenizer)
        return self._run_all(parsed, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        priority: int | Sequence[int] | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them.

        Args:
            messages: dicts with `role` and `content`.
            tools: JSON schemas of functions, for the template to show.
            chat_template: a template to use instead of the model's, or the name of one of its.
            chat_template_kwargs: further names the template reads.
        Otherwise as `generate`.
        """
        several = (
            isinstance(messages, list | tuple)
            and bool(messages)
            and all(isinstance(item, list | tuple) for item in messages)
        )
        conversations: Sequence[Any] = messages if several else [messages]
        prompts = [
            self.render_chat(
                conversation,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                chat_template=chat_template,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, priority=priority)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        delta: bool = False,
        priority: int = 0,
    ) -> Iterator[RequestOutput]:
        """Answer one prompt, yielding as it goes; the last output has `finished` set.

        Each output is cumulative; with `delta`, it holds only what is new since the one
        before.  The request begins with the first `next`, and closing the iterator aborts
        it.  Several streams, and `generate` between, may be open: each step serves all, and
        an output holds all that was made since the last was asked for.  `priority` is as
        `generate` has it.

        Raises as `generate`: RequestError at this call, DeviceError while iterating.
        """
        parsed = parse_prompt(prompt, self.tokenizer)
        (params,) = self._params(sampling_params, 1)
        self.engine.check_request(parsed.token_ids, params)
        self.engine.scheduler.check_priority(priority)
        return self._follow(parsed, params, delta, priority)

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Log-probability of each token but the first, given all those before it.

        Returns float32 [len(token_ids) - 1], from the model's unchanged logits.
        Raises RequestError on an empty or too long sequence.
        """
        (parsed,) = parse_prompts([token_ids], self.tokenizer)
        rows = ScoreRows(parsed.token_ids)
        self._run_prompt(parsed.token_ids, rows)
        return rows.scores

    def logits(self, token_ids: Sequence[int]) -> F32:
        """Teacher-forced logits, float32 [len(token_ids), V]: large; meant for tests."""
        (parsed,) = parse_prompts([token_ids], self.tokenizer)
        rows = LogitRows(len(parsed.token_ids), self.engine.limits.vocab_size)
        self._run_prompt(parsed.token_ids, rows)
        return rows.logits

    def pin_prefix(self, prompt: Prompt) -> PinnedPrefix:
        """Compute a prompt's whole pages now, and keep them in the cache until `unpin`.

        What is answered later and begins alike starts from there.
        Raises RequestError: there is no prefix cache, the prompt has no whole page, or pins would
        leave too little room for the longest request.
        """
        parsed = parse_prompt(prompt, self.tokenizer)
        pins = self._pins()
        tokens = pins.check(parsed.token_ids)
        self._run_prompt(tokens, None)
        return pins.pin(tokens)

    def unpin(self, pinned: PinnedPrefix) -> None:
        """Let a prefix be evicted again.  Raises RequestError: it is not pinned here."""
        self._pins().unpin(pinned)

    def _pins(self) -> Pins:
        pins = self.engine.scheduler.blocks.pins
        if pins is None:
            raise RequestError(
                "a prefix is pinned in the prefix cache: enable_prefix_caching is off"
            )
        return pins

    # -- driving the engine --------------------------------------------------------------

    def _add(
        self,
        prompts: Sequence[ParsedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None = None,
    ) -> list[str]:
        """Queue prompts, all or none; returns their request ids."""
        params = self._params(sampling_params, len(prompts))
        priorities = _priorities(priority, len(prompts))
        added: list[str] = []
        try:
            for prompt, param, number in zip(prompts, params, priorities, strict=True):
                request_id = str(next(self._request_ids))
                self.engine.add_request(
                    request_id, prompt.token_ids, param, prompt=prompt.text, priority=number
                )
                self._latest[request_id] = None
                added.append(request_id)
        except RequestError:
            self._drop(added)
            raise
        return added

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * count
        params = list(given)
        if len(params) != count:
            raise RequestError(f"{len(params)} SamplingParams were given for {count} prompts")
        for param in params:
            if not isinstance(param, SamplingParams):
                raise RequestError(f"expected SamplingParams, not {type(param).__name__}")
        return params

    def _step(self) -> None:
        for output in self.engine.step():
            if output.request_id in self._latest:
                self._latest[output.request_id] = output

    @contextmanager
    def _serving(self, request_ids: Sequence[str]) -> Iterator[None]:
        """Whatever ends the block, an interrupt too, leaves none of these requests behind."""
        try:
            yield
        finally:
            self._drop(request_ids)

    def _drop(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.engine.abort(request_id)
            self._latest.pop(request_id, None)

    def _run_all(
        self,
        prompts: Sequence[ParsedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        show_progress: bool,
        priority: int | Sequence[int] | None,
    ) -> list[RequestOutput]:
        request_ids = self._add(prompts, sampling_params, priority)
        done: dict[str, RequestOutput] = {}
        with (
            self._serving(request_ids),
            progress_bar("Answering", len(request_ids), show_progress) as advance,
        ):
            while len(done) < len(request_ids):
                self._step()
                for request_id in request_ids:
                    output = self._latest[request_id]
                    if output is not None and output.finished and request_id not in done:
                        done[request_id] = output
                        advance()
        return [done[request_id] for request_id in request_ids]

    def _follow(
        self, prompt: ParsedPrompt, params: SamplingParams, delta: bool, priority: int
    ) -> Iterator[RequestOutput]:
        (request_id,) = self._add([prompt], params, priority)
        shown: RequestOutput | None = None
        with self._serving([request_id]):
            while shown is None or not shown.finished:
                while (output := self._latest[request_id]) is None:
                    self._step()
                self._latest[request_id] = None
                new = output.since(shown)
                # A chunk of the prompt alone is nothing to show.
                if output.finished or any(part.token_ids for part in new.outputs):
                    yield new if delta else output
                    shown = output

    def _run_prompt(self, token_ids: Sequence[int], rows: PromptRows | None) -> None:
        request_id = str(next(self._request_ids))
        self.engine.add_prompt(request_id, token_ids, rows)
        self._latest[request_id] = None
        with self._serving([request_id]):
            while (output := self._latest[request_id]) is None or not output.finished:
                self._step()


def _priorities(given: int | Sequence[int] | None, count: int) -> list[int]:
    if given is None:
        return [0] * count
    if not isinstance(given, Sequence):
        return [given] * count
    priorities = list(given)
    if len(priorities) != count:
        raise RequestError(f"{len(priorities)} priorities were given for {count} prompts")
    return priorities
