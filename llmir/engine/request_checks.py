"""What can be served at all: everything else is refused before it is queued.

Nothing here waits for anything: a request that fits the pools alone is served sooner or later.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmir.engine.block_manager import BlockManager
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.structured_output import Grammar, GrammarCompiler
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError
from llmir.runtime.base import StepLimits


class RequestChecks:
    """Checks prompts and parameters against a runner's limits and its pools.  Thread-safe."""

    def __init__(
        self,
        limits: StepLimits,
        blocks: BlockManager,
        tokenizer: Tokenizer | None,
        grammars: GrammarCompiler,
    ) -> None:
        self.grammars = grammars
        self._limits = limits
        self._page_size = blocks.page_size
        self._capacity = blocks.capacity_tokens
        self.tokenizer = tokenizer

    @property
    def max_model_len(self) -> int:
        """The longest sequence, prompt and output together, that the pools hold alone."""
        longest = self._limits.max_model_len
        # The last token is never fed back, so that it needs no place in a page.
        return longest if self._capacity is None else min(longest, self._capacity + 1)

    def request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> int:
        """How many tokens the output may have.

        Raises RequestError: the prompt is empty, holds ids the model does not have, or could
        not be served even alone; a parameter names such an id.  The form of the output is
        `grammar`'s to check.
        """
        self._check_prompt(prompt_token_ids)
        self._check_params(params)
        return self._max_tokens(len(prompt_token_ids), params)

    def grammar(self, params: SamplingParams, given: Grammar | None = None) -> Grammar | None:
        """What the outputs are held to; compiled here unless it is `given`.

        Raises RequestError: it cannot be compiled, or what is given is of another form.
        """
        form = params.structured_outputs
        if given is not None and given.form != form:
            raise RequestError("the grammar was compiled for other structured_outputs than these")
        return self.grammars.compile(form) if given is None and form is not None else given

    def prompt(self, token_ids: Sequence[int]) -> None:
        """Raises RequestError as `request`, of a prompt that is only run."""
        self._check_prompt(token_ids)
        self._check_fits(len(token_ids), len(token_ids), "")

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) == 0:
            raise RequestError("the prompt is empty: it must have at least one token")
        vocab_size = self._limits.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"the prompt has token id {token_id}; the model has 0 … {vocab_size - 1}"
                )

    def _check_params(self, params: SamplingParams) -> None:
        if params.stop and self.tokenizer is None:
            raise RequestError("stop needs a tokenizer, and this model has none")
        vocab_size = self._limits.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(params, name) or ():
                if token_id >= vocab_size:
                    raise RequestError(
                        f"{name} has token id {token_id}; the model has 0 … {vocab_size - 1}"
                    )
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(params, name) or 0) > vocab_size:
                raise RequestError(
                    f"{name} is {getattr(params, name)}; the model has {vocab_size} tokens"
                )

    def _max_tokens(self, num_prompt: int, params: SamplingParams) -> int:
        """How many tokens the output may have: `max_tokens`, cut to the model's context."""
        longest = self._limits.max_model_len
        if num_prompt >= longest:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and needs room for one more, but the "
                f"model's context (max_model_len) is {longest} tokens"
            )
        self._check_fits(num_prompt, num_prompt, "")
        if params.max_tokens is None:
            max_tokens = self.max_model_len - num_prompt
        else:
            max_tokens = min(params.max_tokens, longest - num_prompt)
            self._check_fits(
                num_prompt,
                num_prompt + max_tokens - 1,
                f" and up to {max_tokens} of output: lower max_tokens",
            )
        if params.min_tokens > max_tokens:
            raise RequestError(
                f"min_tokens is {params.min_tokens}, but only {max_tokens} tokens fit after a "
                f"prompt of {num_prompt}"
            )
        return max_tokens

    def _check_fits(self, num_prompt: int, num_cached: int, what: str) -> None:
        """Refuse what could never be served, however long it waited."""
        if num_prompt > self._limits.max_model_len:
            raise RequestError(
                f"the prompt has {num_prompt} tokens, but the model's context (max_model_len) "
                f"is {self._limits.max_model_len} tokens"
            )
        capacity, page_size = self._capacity, self._page_size
        if capacity is not None and num_cached > capacity:
            raise RequestError(
                f"a prompt of {num_prompt} tokens{what} needs {-(-num_cached // page_size)} pages "
                f"of {page_size} tokens, but the KV cache has room for {capacity // page_size}: "
                "give the cache more memory"
            )
