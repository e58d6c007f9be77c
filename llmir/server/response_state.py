"""A response as it grows, and the events that tell of it.

created ─ in_progress ─ output_item.added ─ content_part.added ─ output_text.delta …
   ─ output_text.done ─ content_part.done ─ output_item.done ─ completed, incomplete or failed
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from llmir.engine import CompletionOutput, RequestOutput
from llmir.server.errors import ApiError
from llmir.server.protocol.responses import (
    OutputMessage,
    OutputTextPart,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from llmir.server.sse import event


class ResponseState:
    """One response of one message.

    told: the fields that say what the request said.
    """

    def __init__(self, request_id: str, told: dict[str, Any]) -> None:
        self.id = f"resp_{request_id}"
        self._message_id = f"msg_{request_id}"
        self._told = told
        self._text = ""
        self._usage: ResponseUsage | None = None
        self._num_output = 0
        self._status: Any = "in_progress"
        self._error: ResponseError | None = None
        self._has_message = False
        self._numbers = itertools.count()

    def take(self, output: RequestOutput, part: CompletionOutput) -> None:
        """Go on by what is new in an output."""
        self._has_message = True
        self._text += part.text
        self._num_output += len(part.token_ids)
        num_input = len(output.prompt_token_ids)
        self._usage = {
            "input_tokens": num_input,
            "input_tokens_details": {
                "cached_tokens": output.num_cached_tokens or 0,
                "cache_write_tokens": 0,
            },
            "output_tokens": self._num_output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_input + self._num_output,
        }
        match part.finish_reason:
            case "stop":
                self._status = "completed"
            case "length":
                self._status = "incomplete"
            case "abort":
                self._fail("the server is shutting down")

    # -- events --------------------------------------------------------------------------

    def begin(self) -> Iterator[bytes]:
        """What comes before any text, and before the first `take`."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self.body())
        item = {**self._message(), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part_event("response.content_part.added", part=_part(""))

    def delta(self, text: str) -> bytes:
        """A piece of the text."""
        return self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def end(self) -> Iterator[bytes]:
        """What comes after the text."""
        yield self._part_event("response.output_text.done", text=self._text, logprobs=[])
        yield self._part_event("response.content_part.done", part=_part(self._text))
        yield self._event("response.output_item.done", output_index=0, item=self._message())
        yield self._last_event()

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that cannot go on."""
        self._fail(error.message)
        return self._last_event()

    def _fail(self, message: str) -> None:
        self._status = "failed"
        # Of OpenAI's codes, the one for what is not the request's fault.
        self._error = {"code": "server_error", "message": message}

    def _last_event(self) -> bytes:
        return self._event(f"response.{self._status}", response=self.body())

    def _part_event(self, name: str, **more: Any) -> bytes:
        return self._event(name, item_id=self._message_id, output_index=0, content_index=0, **more)

    def _event(self, name: str, **more: Any) -> bytes:
        return event({"type": name, "sequence_number": next(self._numbers), **more}, name)

    # -- bodies --------------------------------------------------------------------------

    def body(self) -> ResponseObject:
        """The response as it is now."""
        is_incomplete = self._status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
            "output": [self._message()] if self._has_message else [],
            "previous_response_id": None,
            "tools": [],
            "truncation": "disabled",
            "background": False,
            "store": False,
            "service_tier": "default",
            "usage": self._usage,
            **self._told,  # type: ignore[typeddict-item]
        }

    def _message(self) -> OutputMessage:
        return {
            "id": self._message_id,
            "type": "message",
            # A response may have failed, a message is then incomplete.
            "status": "incomplete" if self._status == "failed" else self._status,
            "role": "assistant",
            "content": [_part(self._text)],
        }


def _part(text: str) -> OutputTextPart:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
