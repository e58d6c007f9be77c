"""The addresses that say what is served, and how the server is."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

import llmir
from llmir.server.errors import ApiError
from llmir.server.json_body import JsonResponse, JsonRoute
from llmir.server.metrics import CONTENT_TYPE
from llmir.server.protocol.common import ERRORS
from llmir.server.serving import Serving

router = APIRouter(route_class=JsonRoute)


class ModelCard(TypedDict):
    """A name that the model can be called by.  `root` is the first of them."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class Version(TypedDict):
    version: str


@router.get("/v1/models", response_model=None, responses={200: {"model": ModelList}, **ERRORS})
async def list_models(request: Request) -> Response:
    """The names that the model can be called by."""
    serving: Serving = request.app.state.serving
    cards = [_card(serving, name) for name in serving.settings.model_names]
    return JsonResponse({"object": "list", "data": cards})


@router.get(
    "/v1/models/{model:path}", response_model=None, responses={200: {"model": ModelCard}, **ERRORS}
)
async def retrieve_model(model: str, request: Request) -> Response:
    """One of them."""
    serving: Serving = request.app.state.serving
    serving.check_model(model)
    return JsonResponse(_card(serving, model))


def _card(serving: Serving, name: str) -> ModelCard:
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "llmir",
        "root": serving.model_name,
        "max_model_len": serving.engine.max_model_len,
    }


@router.get("/version", response_model=None, responses={200: {"model": Version}, **ERRORS})
async def version() -> Response:
    """llmir's version."""
    return JsonResponse({"version": llmir.__version__})


@router.head("/health", include_in_schema=False)
@router.get("/health", response_class=Response, responses=ERRORS)
async def health(request: Request) -> Response:
    """200 while the engine works; it need not be taking requests."""
    serving: Serving = request.app.state.serving
    if serving.engine.errored is not None:
        raise ApiError(503, "the engine broke: this server must be started again")
    return Response()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_class=Response, responses=ERRORS)
async def ready(request: Request) -> Response:
    """200 while requests are taken; 503 as soon as the server is asked to end."""
    serving: Serving = request.app.state.serving
    if not serving.is_ready:
        raise ApiError(503, "the server takes no requests", code="not_ready")
    return Response()


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS},
)
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    serving: Serving = request.app.state.serving
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE)
