"""Asks a server what it takes, before it is loaded: model, token ids, what is not of OpenAI's API.

Its answers are seen by nobody else, so that plain httpx serves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from llmir.bench.serve.client import AnswerReader, Endpoint, refusal
from llmir.bench.serve.datasets import SampleRequest, Vocabulary
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError

TRIAL_PROMPT_TOKENS, TRIAL_OUTPUT_TOKENS = 8, 4
# A server's first answer may wait for much that it has not done yet.
TRIAL_TIMEOUT_S = 600.0
READY_POLL_S = 0.1

# What a request may have beyond OpenAI's API, and what it is without.
_EXTRAS = {
    "ignore_eos": "ignore_eos is refused: answers may be shorter than asked for",
    "include_usage": "stream_options is refused: an event counts as a token",
    "token_ids": "token ids are refused as a prompt: prompts are text, a word for each token",
}
_UNCOUNTED = "no usage is sent: an event counts as a token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """An endpoint with what the server takes, what prompts are drawn from, and what it refused."""

    endpoint: Endpoint
    vocabulary: Vocabulary
    notes: Sequence[str]


class Probe:
    """Asks one server.

    Args:
        endpoint: with what is wished for; its model "" means the server's first.
        tokenizer_dir: whose words prompts are made of; None: the server is asked for them.
        must_ignore_eos: None: if the server takes it.
        ready_timeout_s: how long it may be loading before it answers.

    Raises ConnectionError if nobody answers, RequestError if nothing is accepted.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tokenizer_dir: Path | None = None,
        must_ignore_eos: bool | None = None,
        ready_timeout_s: float = 0.0,
    ) -> None:
        self._endpoint = dataclasses.replace(endpoint, ignore_eos=must_ignore_eos is not False)
        self._tokenizer_dir = tokenizer_dir
        self._must_ignore_eos = must_ignore_eos
        self._ready_timeout_s = ready_timeout_s
        self._http = httpx.Client(headers=endpoint.headers, timeout=TRIAL_TIMEOUT_S)

    def run(self) -> Probed:
        with self._http:
            self._wait()
            endpoint = dataclasses.replace(self._endpoint, model=self._model())
            return self._trials(endpoint, self._vocabulary(endpoint.model))

    def _wait(self) -> None:
        """Until the server answers with something else than that it cannot yet."""
        end = time.monotonic() + self._ready_timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(ConnectionError):
                if self._get(f"{self._endpoint.base_url}/models").status_code != 503:
                    return
            time.sleep(READY_POLL_S)

    def _model(self) -> str:
        """The model that was asked for, or the first that the server has."""
        if self._endpoint.model:
            return self._endpoint.model
        answer = self._get(f"{self._endpoint.base_url}/models")
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise RequestError(
                f"{self._endpoint.base_url}/models names no model "
                f"({refusal(answer.status_code, answer.content)}): give --model"
            ) from None

    def _vocabulary(self, model: str) -> Vocabulary | None:
        """Token ids of ordinary words; None: nobody knows them."""
        if self._endpoint.backend != "openai":
            return None
        if self._tokenizer_dir is not None:
            tokenizer = Tokenizer.from_dir(self._tokenizer_dir)
            return Vocabulary.of_tokenizer(
                lambda text: tokenizer.encode(text, add_special_tokens=False)
            )
        # vLLM and llmir know the first form, llama-server the second.
        forms: list[dict[str, Any]] = [
            {"model": model, "prompt": "", "add_special_tokens": False},
            {"content": "", "add_special": False},
        ]
        for form in forms:
            text_field = "prompt" if "prompt" in form else "content"
            found = Vocabulary.of_tokenizer(
                lambda text, form=form, name=text_field: self._tokenize({**form, name: text})  # type: ignore[misc]
            )
            if found.items:
                return found
        return None

    def _tokenize(self, form: dict[str, Any]) -> list[int]:
        root = self._endpoint.base_url.removesuffix("/v1")
        answer = self._post(f"{root}/tokenize", form)
        if answer.status_code != 200:
            return []
        try:
            tokens = answer.json()["tokens"]
        except (ValueError, LookupError, TypeError):
            return []
        is_ids = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
        return tokens if is_ids else []

    def _trials(self, endpoint: Endpoint, vocabulary: Vocabulary | None) -> Probed:
        """The first of the combinations that the server answers, those with most in them first."""
        extras = ["include_usage"]
        if self._must_ignore_eos is None:
            extras.append("ignore_eos")
        if vocabulary is not None:
            extras.append("token_ids")
        first = ""
        for count in range(len(extras) + 1):
            for without in itertools.combinations(extras, count):
                changes = {name: False for name in without if name != "token_ids"}
                trial = dataclasses.replace(endpoint, **changes)  # type: ignore[arg-type]
                has_ids = vocabulary is not None and "token_ids" not in without
                words = vocabulary if has_ids else Vocabulary.of_words()
                assert words is not None
                reader, refused = self._try(trial, words)
                if not refused:
                    notes = [_EXTRAS[name] for name in without]
                    if trial.include_usage and reader.usage is None:
                        notes.append(_UNCOUNTED)
                    if vocabulary is None and endpoint.backend == "openai":
                        notes.append("no /tokenize here: prompts are text, a word for each token")
                    return Probed(endpoint=trial, vocabulary=words, notes=notes)
                first = first or refused
        raise RequestError(f"{endpoint.url} does not answer a request: {first}")

    def _try(self, endpoint: Endpoint, vocabulary: Vocabulary) -> tuple[AnswerReader, str]:
        """What came of one small request, and why it was refused; "": it was not."""
        request = SampleRequest(
            prompt=vocabulary.prompt(list(vocabulary.items[:TRIAL_PROMPT_TOKENS])),
            input_len=TRIAL_PROMPT_TOKENS,
            output_len=TRIAL_OUTPUT_TOKENS,
        )
        reader = AnswerReader()
        answer = self._post(endpoint.url, json.loads(endpoint.body(request)))
        if answer.status_code in (401, 403, 404):  # no other request would be answered
            said = refusal(answer.status_code, answer.content)
            raise RequestError(f"{endpoint.url} does not answer a request: {said}")
        if answer.status_code != 200:
            return reader, refusal(answer.status_code, answer.content)
        reader.feed(answer.content + b"\n", 0.0)
        if not (reader.is_whole or reader.error):
            return reader, "the answer is no stream of completion chunks"
        return reader, reader.error

    def _get(self, url: str) -> httpx.Response:
        return self._ask("GET", url)

    def _post(self, url: str, body: dict[str, Any]) -> httpx.Response:
        return self._ask("POST", url, json=body)

    def _ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionError(f"no answer from {url}: {error}") from error
