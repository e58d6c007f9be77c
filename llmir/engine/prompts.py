"""The forms in which prompts come: vLLM's."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeGuard

import numpy as np

from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class _TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


class TokensPrompt(_TokensPrompt, total=False):
    """A prompt as token ids, and optionally the text they came from, which is only shown."""

    prompt: str


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
Prompts = Prompt | Sequence[Prompt]


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt's token ids, and its text where it has one."""

    token_ids: list[int]
    text: str | None


def is_one_prompt(prompts: Prompts) -> TypeGuard[Prompt]:
    """Whether this is a single prompt; a list of ints is one, an empty list is none."""
    if isinstance(prompts, str | Mapping):
        return True
    return len(prompts) > 0 and isinstance(prompts[0], int | np.integer)


def parse_prompts(prompts: Prompts, tokenizer: Tokenizer | None) -> list[ParsedPrompt]:
    """The prompts in order.

    Raises RequestError, naming what came, on anything that is not a prompt.
    """
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if not isinstance(prompts, str | Mapping | list | tuple):
        raise RequestError(
            "a prompt must be text, a list of token ids, or a dict with prompt or "
            f"prompt_token_ids, not {type(prompts).__name__}"
        )
    if is_one_prompt(prompts):
        return [parse_prompt(prompts, tokenizer)]
    return [parse_prompt(prompt, tokenizer) for prompt in prompts]


def parse_prompt(prompt: Any, tokenizer: Tokenizer | None) -> ParsedPrompt:
    """One prompt.  Raises RequestError as `parse_prompts`."""
    if isinstance(prompt, str):
        return ParsedPrompt(_encode(prompt, tokenizer), prompt)
    if isinstance(prompt, Mapping):
        unknown = sorted(set(prompt) - {"prompt", "prompt_token_ids"})
        if unknown:
            raise RequestError(f"a prompt with {unknown[0]} is not supported")
        text = prompt.get("prompt")
        if text is not None and not isinstance(text, str):
            raise RequestError(f"prompt must be text, not {type(text).__name__}")
        if prompt.get("prompt_token_ids") is not None:
            return ParsedPrompt(_token_ids(prompt["prompt_token_ids"]), text)
        if text is not None:
            return ParsedPrompt(_encode(text, tokenizer), text)
        raise RequestError("a prompt dict must have prompt or prompt_token_ids")
    return ParsedPrompt(_token_ids(prompt), None)


def _encode(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise RequestError("this model has no tokenizer: give token ids, not text")
    return tokenizer.encode(text)


def _token_ids(values: Any) -> list[int]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RequestError(f"token ids must be a list of integers, not {type(values).__name__}")
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise RequestError("token ids must be a list of integers") from None
