"""One request to an OpenAI-compatible server: what is sent, and when which token came back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmir.bench.serve.datasets import SampleRequest
from llmir.bench.serve.http_stream import HttpError, HttpPool

Backend = Literal["openai", "openai-chat"]
PATHS: dict[Backend, str] = {"openai": "/completions", "openai-chat": "/chat/completions"}
# A model that loops may make a token a minute; a server that hangs makes none.
DEFAULT_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests go and what is in them besides prompt and length.

    base_url       with the version: "http://127.0.0.1:8000/v1"
    backend        openai: /completions; openai-chat: /chat/completions, which takes text alone
    ignore_eos     answers go on to their full length; not of OpenAI's API, but widely served
    include_usage  the server counts the tokens, in a last event
    extra_body     further fields, which win
    """

    base_url: str
    model: str
    backend: Backend = "openai"
    headers: Mapping[str, str] = field(default_factory=dict)
    ignore_eos: bool = True
    include_usage: bool = True
    temperature: float = 0.0
    top_p: float | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def url(self) -> str:
        return self.base_url + PATHS[self.backend]

    def body(self, request: SampleRequest) -> bytes:
        """The JSON of a request."""
        fields: dict[str, Any] = {"model": self.model}
        if self.backend == "openai-chat":
            fields["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            fields["prompt"] = request.prompt
        fields |= {"max_tokens": request.output_len, "temperature": self.temperature}
        if self.top_p is not None:
            fields["top_p"] = self.top_p
        fields["stream"] = True
        if self.include_usage:
            fields["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            fields["ignore_eos"] = True
        return json.dumps({**fields, **self.extra_body}, separators=(",", ":")).encode()


@dataclass(slots=True, kw_only=True)
class RequestResult:
    """What came of one request.  Times are seconds; `start` is of `time.perf_counter`.

    queue_s        between its arrival and its being sent, which it spent waiting for one of
                   the concurrent requests to end
    ttft_s         to the first event with a token; None: there was none
    itls_s         between such events; an event may hold several tokens
    latency_s      to the last of them
    prompt_tokens  as the server counted; else as the request was made
    output_tokens  as the server counted; else the number of events
    is_counted     whether the server counted
    error          "": none
    """

    start: float
    prompt_tokens: int
    queue_s: float = 0.0
    ttft_s: float | None = None
    itls_s: list[float] = field(default_factory=list)
    latency_s: float = 0.0
    output_tokens: int = 0
    is_counted: bool = False
    error: str = ""

    @property
    def success(self) -> bool:
        return not self.error

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None: there are no others."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1)

    def token_times(self) -> list[float]:
        """When each event with a token came, on the clock of `start`."""
        times: list[float] = []
        if self.ttft_s is not None:
            times.append(self.start + self.ttft_s)
            for itl in self.itls_s:
                times.append(times[-1] + itl)
        return times


class AnswerReader:
    """Reads the server-sent events of an answer as they come.

    An event is one `data:` line, as every server of this API writes it.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.usage: Mapping[str, Any] | None = None
        self.error = ""
        self.is_whole = False
        self._rest = b""

    def feed(self, piece: bytes, now: float) -> None:
        """Take a piece of the body that came at `now`."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now)

    def _take(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.is_whole = True
            return
        try:
            event = json.loads(data)
            if "error" in event:
                self.error = f"the server sent an error: {_message(event)}"
                return
            if event.get("usage"):
                self.usage = event["usage"]
            for choice in event.get("choices") or ():
                if choice.get("finish_reason"):
                    self.is_whole = True
                if _has_token(choice):
                    self.times.append(now)
        except (ValueError, TypeError, AttributeError) as error:
            self.error = f"an event that is no completion chunk ({error}): {data[:80]!r}"


def _has_token(choice: Mapping[str, Any]) -> bool:
    """Whether an event tells of a token.

    One without text does if its token is half a character; the one that tells the role, and
    the one that only ends the answer, do not.
    """
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text")) or not choice.get("finish_reason")
    said = delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls")
    return bool(said) or not (choice.get("finish_reason") or "role" in delta)


def _message(document: Any) -> str:
    """The message of an error in OpenAI's shape, or in any other."""
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error)


def refusal(status: int, body: bytes) -> str:
    """An answer that is not 200, in a sentence."""
    text = body.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError):  # what is not JSON is shown as it is
        text = _message(json.loads(text))
    return f"status {status}: {text[:300]}" if text else f"status {status}"


async def send(
    pool: HttpPool, path: str, body: bytes, request: SampleRequest, timeout_s: float
) -> RequestResult:
    """Send a request and read its answer; what goes wrong is the result's error."""
    reader = AnswerReader()
    start = time.perf_counter()
    result = RequestResult(start=start, prompt_tokens=request.input_len)
    try:
        async with asyncio.timeout(timeout_s):
            answer = await pool.post(path, body, reader.feed)
        if answer.status != 200:
            result.error = refusal(answer.status, answer.body)
    except TimeoutError:
        result.error = f"no whole answer within {timeout_s:g} s"
    except (HttpError, OSError) as error:
        result.error = str(error) or type(error).__name__
    _fill(result, reader)
    return result


def _fill(result: RequestResult, reader: AnswerReader) -> None:
    times = reader.times
    if times:
        result.ttft_s = times[0] - result.start
        result.itls_s = [b - a for a, b in itertools.pairwise(times)]
        result.latency_s = times[-1] - result.start
    result.output_tokens = len(times)
    if reader.usage is not None:
        result.prompt_tokens = int(reader.usage.get("prompt_tokens", result.prompt_tokens))
        result.output_tokens = int(reader.usage.get("completion_tokens", len(times)))
        result.is_counted = True
    if result.error:
        return
    if reader.error:
        result.error = reader.error
    elif not reader.is_whole:
        result.error = "the stream ended before the answer did"
    elif not times:
        result.error = "an answer without a token"
