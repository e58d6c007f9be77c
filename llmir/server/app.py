"""The application: routes, and what stands before them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

import llmir
from llmir.engine import AsyncLLM
from llmir.errors import LlmirError
from llmir.server import chat, completions, models, page, responses, tokenize
from llmir.server.errors import as_api_error
from llmir.server.json_body import JsonResponse
from llmir.server.middleware import ApiKeys, BodyLimit, RequestScope
from llmir.server.serving import Serving
from llmir.server.settings import ServerSettings


def create_app(engine: AsyncLLM, settings: ServerSettings) -> FastAPI:
    """The server of one engine; `app.state.serving` is what its endpoints share."""
    serving = Serving(engine, settings)
    app = FastAPI(
        title="llmir",
        version=llmir.__version__,
        middleware=_middleware(serving),
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # To an absolute address that a proxy before the server may not answer at.
        redirect_slashes=False,
    )
    app.state.serving = serving
    for kind in (HTTPException, RequestValidationError, LlmirError, TimeoutError):
        app.add_exception_handler(kind, _answer_error)
    for module in (completions, chat, responses, models, tokenize):
        app.include_router(module.router)
    if settings.page:
        app.include_router(page.router())
    _describe(app, settings)
    return app


def _describe(app: FastAPI, settings: ServerSettings) -> None:
    """Have /openapi.json say what this server takes: its models, its most candidates."""
    make = app.openapi
    most = {"maximum": settings.max_logprobs}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for name, schema in make()["components"]["schemas"].items():
                fields = schema.get("properties", {}) if name.endswith("Request") else {}
                if "model" in fields:
                    fields["model"]["anyOf"][0]["enum"] = list(settings.model_names)
                for field in ("logprobs", "top_logprobs", "prompt_logprobs"):
                    for kind in fields.get(field, {}).get("anyOf", ()):
                        if kind["type"] == "integer":
                            kind.update(most)
        return make()

    app.openapi = openapi  # type: ignore[method-assign]


def _middleware(serving: Serving) -> list[Middleware]:
    settings = serving.settings
    stack = [Middleware(RequestScope, open_requests=serving.open_requests)]
    if settings.allowed_origins:
        # Outside the keys: a browser asks without one whether it may send it.
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.allowed_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )
        )
    if settings.api_keys:
        stack.append(Middleware(ApiKeys, keys=settings.api_keys))
    stack.append(
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    )
    return stack


async def _answer_error(request: Request, error: Exception) -> Response:
    told = as_api_error(error)
    headers: dict[str, Any] = dict(told.headers or {})
    return JsonResponse(told.body(), told.status_code, headers=headers)
