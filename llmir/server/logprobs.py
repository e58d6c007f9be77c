"""Log-probabilities in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmir.engine import Logprob, Tokenizer
from llmir.engine.outputs import TokenLogprobs
from llmir.server.protocol.chat import ChatLogprob, ChatTokenLogprob
from llmir.server.protocol.common import PromptLogprobs
from llmir.server.protocol.completions import CompletionLogprobs
from llmir.server.token_bytes import token_bytes

LOWEST = -9999.0
"""What stands for minus infinity, which JSON does not have: OpenAI's and vLLM's number."""


def completion_logprobs(
    entries: Iterable[TokenLogprobs | None],
    token_ids: Sequence[int],
    num_top: int,
    tokenizer: Tokenizer,
    offset: int,
) -> CompletionLogprobs:
    """The object of /v1/completions.

    entries: candidates for each of `token_ids`; None: for the first of a prompt, nothing.
    offset: characters of the choice's text before the first token.
    """
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token_id, entry in zip(token_ids, entries, strict=True):
        text = tokenizer.token_text(token_id)
        found["tokens"].append(text)
        found["text_offset"].append(offset)
        offset += len(text)
        if entry is None:
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
            continue
        found["token_logprobs"].append(_finite(entry[token_id].logprob))
        top: dict[str, float] = {}
        for candidate in entry.values():
            # Tokens of different bytes may read alike; the likeliest is the first.
            if candidate.rank <= num_top or candidate is entry[token_id]:
                top.setdefault(candidate.decoded_token or "", _finite(candidate.logprob))
        found["top_logprobs"].append(top)
    return found


def chat_logprobs(
    entries: Iterable[TokenLogprobs],
    token_ids: Sequence[int],
    num_top: int,
    tokenizer: Tokenizer,
) -> list[ChatTokenLogprob]:
    """The list of /v1/chat/completions: each token with its `num_top` likeliest candidates."""
    found: list[ChatTokenLogprob] = []
    for token_id, entry in zip(token_ids, entries, strict=True):
        ranked = sorted(entry.items(), key=lambda item: item[1].rank)
        top = [_chat_logprob(i, c, tokenizer) for i, c in ranked if c.rank <= num_top]
        chosen = _chat_logprob(token_id, entry[token_id], tokenizer)
        found.append({**chosen, "top_logprobs": top})
    return found


def prompt_logprobs(
    entries: Iterable[TokenLogprobs | None], token_ids: Sequence[int], num_top: int
) -> PromptLogprobs:
    """vLLM's list: for each token of a prompt itself and the `num_top` likeliest candidates.

    entries: as many candidates, or more where another parameter asked for them.
    """
    return [
        None
        if entry is None
        else {
            str(token_id): {
                "logprob": _finite(candidate.logprob),
                "rank": candidate.rank,
                "decoded_token": candidate.decoded_token,
            }
            for token_id, candidate in entry.items()
            if candidate.rank <= num_top or token_id == own
        }
        for own, entry in zip(token_ids, entries, strict=True)
    ]


def _chat_logprob(token_id: int, candidate: Logprob, tokenizer: Tokenizer) -> ChatLogprob:
    text = candidate.decoded_token or ""
    return {
        "token": text,
        "logprob": _finite(candidate.logprob),
        "bytes": list(token_bytes(tokenizer, token_id, text)),
    }


def _finite(logprob: float) -> float:
    return max(float(logprob), LOWEST)
