"""The web application over an engine. `create_app` reads nothing global and imports no framework."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pangu_server.aside import Aside
from pangu_server.engine import Engine
from pangu_server.errors import GenerationFailed, RequestError, ServerError
from pangu_server.page import add_page
from pangu_server.protocol.base import ErrorDetail, ErrorResponse
from pangu_server.responses import error_response
from pangu_server.routes.generation import generation_routes
from pangu_server.routes.service import service_routes

logger = logging.getLogger(__name__)


def create_app(engine: Engine) -> FastAPI:
    """The application that serves `engine`."""
    app = FastAPI(
        title="pangu-coder2",
        description="OpenAI-style completion over a quantized code model",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; this server's page is at /
        redoc_url=None,
    )
    app.state.engine, app.state.aside = engine, Aside()
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    # FastAPI answers a wrong body with 422, this server with 400: the schema must not promise the form of a 422.
    statuses = (400, 401, 404, 408, 413, 422, 429, 500, 503)
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in statuses}
    app.include_router(generation_routes(engine, errors))
    app.include_router(service_routes(engine, errors))
    add_page(app)
    return app


async def _server_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServerError)
    return error_response(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]  # of a path: bodies are read by `parsing`
    return error_response(RequestError(f"{first['loc'][-1]}: {first['msg']}"))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = ErrorDetail(
        message=f"{error.detail}: {request.method} {request.url.path}", type="invalid_request_error"
    )
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status_code, headers=error.headers)


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("unexpected error", exc_info=error)
    return error_response(GenerationFailed("unexpected error; the server's log has the cause"))
