"""What `llmir verify` asks: prompts of its own, or those of a file, as token ids.

The built-in ones differ in what they make a model do: prose, code, numbers, a conversation,
scripts of several bytes a character, and one of more than a hundred tokens, which fills many
pages of the KV cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmir.engine.prompts import parse_prompt
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import OptionError, RequestError, UnknownNameError

_LONG = (
    "A lighthouse is a tower that shows a light to ships. The oldest of which much is known "
    "stood at Alexandria: some hundred metres high, it burned wood, and a mirror threw the light "
    "out to sea. Later towers burned oil, and in 1822 Augustin Fresnel made lenses of rings of "
    "glass, so thin that a lamp could be seen twenty miles away. Each light blinks in its own "
    "way, and sailors find in a list which tower blinks once in five seconds and which twice in "
    "ten. Today most are run by nobody: a sensor lights the lamp when the day ends, and a radio "
    "calls somebody when it fails. Asked what Fresnel had changed, the keeper said:"
)
BUILT_IN = {
    "prose": "The old man closed the door and",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "numbers": "2, 4, 8, 16, 32,",
    "chat": "What is the capital of France?",
    "scripts": "Привет, мир! 你好，世界。",
    "long": _LONG,
}
"""Name → text; that of "chat" is a question, which goes through the model's chat template."""


@dataclass(frozen=True, slots=True)
class VerifyPrompt:
    """A prompt with what the report calls it: "chat", or "line 3" of a file."""

    name: str
    token_ids: list[int]


def built_in_prompts(
    tokenizer: Tokenizer | None, vocab_size: int, most_tokens: int, names: Sequence[str] = ()
) -> list[VerifyPrompt]:
    """The built-in prompts, or those of these names, each cut to its first `most_tokens`.

    For a model without a tokenizer they are ids drawn at random, with a fixed seed each.
    Raises UnknownNameError for another name; OptionError if no token is left.
    """
    if most_tokens < 1:
        raise OptionError(
            "max-tokens leaves no room for a prompt in the sequences that the artifact was "
            "compiled for; give fewer"
        )
    found = []
    for name in names or BUILT_IN:
        if name not in BUILT_IN:
            raise UnknownNameError("built-in prompt", name, BUILT_IN)
        token_ids = _built_in(name, tokenizer, vocab_size)
        found.append(VerifyPrompt(name, token_ids[:most_tokens]))
    return found


def _built_in(name: str, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    text = BUILT_IN[name]
    if tokenizer is None:
        rng = np.random.default_rng(list(BUILT_IN).index(name))
        drawn: list[int] = rng.integers(0, vocab_size, 2 + len(text) // 4).tolist()
        return drawn
    if name == "chat" and "default" in tokenizer.chat_templates:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=True)
    return tokenizer.encode(text)


def read_prompts(file: Path, tokenizer: Tokenizer | None, most_tokens: int) -> list[VerifyPrompt]:
    """The prompts of a file: each line one, blank lines none.

    Of a file named *.jsonl a line is JSON: text, a list of token ids, or an object with `prompt`,
    `prompt_token_ids` or `messages`.  Of any other it is the text itself.
    Raises: OSError; RequestError naming the line, for one that is no prompt or too long.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}"
        try:
            given = json.loads(line) if file.suffix == ".jsonl" else line
            token_ids = _token_ids(given, tokenizer)
        except (ValueError, RequestError) as error:
            raise RequestError(f"{where}: {error}") from error
        if not 1 <= len(token_ids) <= most_tokens:
            raise RequestError(
                f"{where} has {len(token_ids)} tokens; from 1 to {most_tokens} fit beside the "
                "answer of max-tokens"
            )
        found.append(VerifyPrompt(f"line {number}", token_ids))
    if not found:
        raise RequestError(f"{file} holds no prompt")
    return found


def _token_ids(given: Any, tokenizer: Tokenizer | None) -> list[int]:
    if isinstance(given, Mapping) and "messages" in given:
        if tokenizer is None:
            raise RequestError("this model has no tokenizer: give token ids, not messages")
        return tokenizer.apply_chat_template(given["messages"], tokenize=True)
    return parse_prompt(given, tokenizer).token_ids
