"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from llmir.errors import OptionError
from llmir.server.tools.formats import get_format


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Names, keys and limits.

    model_names          names that requests may call the model by; the first is the one it answers
                         with
    api_keys             with any, nothing but /health answers without one of them
    allowed_origins      origins of web pages that may call; "*": all; none: no CORS
    chat_template        a Jinja template in the place of the model's
    page                 whether there is a page at / to chat and to see the load
    tool_call_parser     how the model writes calls of tools; None: as its chat template does
    max_waiting          sequences that may wait to be run before others are told to come later
    max_logprobs         most candidates that `logprobs`, `top_logprobs` or `prompt_logprobs` gives
    max_body_bytes       longest body of a request
    body_timeout_s       how long a client may take to send one; likewise the headers
    request_timeout_s    from a request to the end of its answer; None: as long as it takes
    shutdown_timeout_s   how long running requests may take when the server is asked to end
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    chat_template: str | None = None
    page: bool = True
    tool_call_parser: str | None = None
    max_waiting: int = 4096
    max_logprobs: int = 20
    max_body_bytes: int = 4 << 20
    body_timeout_s: float = 30.0
    request_timeout_s: float | None = 600.0
    shutdown_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise OptionError("a served model needs a name: served_model_name must not be empty")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise OptionError(
                    "an API key must be printable ASCII characters without a space, as it comes "
                    "in a header"
                )
        if self.tool_call_parser is not None:
            get_format(self.tool_call_parser)
        for name in ("max_waiting", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_logprobs < 0:
            raise OptionError(f"max_logprobs must be at least 0, not {self.max_logprobs}")
        for name in ("body_timeout_s", "request_timeout_s"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise OptionError(f"{name} must be more than 0, not {seconds}")
        if not self.shutdown_timeout_s >= 0:
            raise OptionError(
                f"shutdown_timeout_s must be at least 0, not {self.shutdown_timeout_s}"
            )
