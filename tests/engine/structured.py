"""Constrained outputs of an engine on the fake runner, whose logits are as good as random."""

from __future__ import annotations

from typing import Any

from llmir.engine import (
    CompletionOutput,
    LLMEngine,
    SamplingParams,
    SchedulerConfig,
    StructuredOutputsParams,
    Tokenizer,
)

from .fake_runner import FakeRunner, small_limits
from .helpers import TOKENIZER, run
from .tiny_tokenizers import byte_fallback

SENTENCEPIECE = Tokenizer(byte_fallback(), {"eos_token": "</s>"})
KINDS = {"byte-level": TOKENIZER, "sentencepiece": SENTENCEPIECE}
EOS = 2
"""The id of <|im_end|> in the one, and of </s> in the other."""

PADDING = 20
"""Rows of logits beyond the tokenizer's vocabulary."""


def make_engine(
    tokenizer: Tokenizer | None = TOKENIZER, eos: tuple[int, ...] = (EOS,), **limits: Any
) -> LLMEngine:
    vocab_size = TOKENIZER.vocab_size if tokenizer is None else tokenizer.vocab_size
    sizes = {"max_model_len": 2048, "num_pages": (2048,), "vocab_size": vocab_size + PADDING}
    return LLMEngine(
        FakeRunner(small_limits(**{**sizes, **limits})),
        tokenizer,
        eos_token_ids=eos,
        config=SchedulerConfig(),
    )


def params(max_tokens: int = 400, **fields: Any) -> SamplingParams:
    """SamplingParams whose fields of StructuredOutputsParams are in their place."""
    own = {name: fields.pop(name) for name in STRUCTURED if name in fields}
    form = StructuredOutputsParams(**own) if own else None
    return SamplingParams(max_tokens=max_tokens, structured_outputs=form, **fields)


STRUCTURED = (
    *("json", "regex", "choice", "grammar", "json_object"),
    *("disable_any_whitespace", "whitespace_pattern"),
)


def outputs(engine: LLMEngine, *requests: SamplingParams) -> list[CompletionOutput]:
    """The outputs of requests that are served together, each with a prompt of its own."""
    for number, request in enumerate(requests):
        engine.add_request(str(number), [7, 3 + number, 11], request)
    done = run(engine)
    return [part for number in range(len(requests)) for part in done[str(number)].outputs]


def closers(tokenizer: Tokenizer, bias: float = 4.0) -> dict[int, float]:
    """A bias to what ends strings and brackets; without one, half of all strings are long."""
    ends = {'"', "}", "]", '"}', '"]', '",', "},", "],"}
    return {i: bias for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) in ends}
