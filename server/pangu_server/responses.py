"""Models and errors as responses."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from pangu_server.errors import ServerError
from pangu_server.protocol.base import ErrorResponse


def error_response(error: ServerError) -> JSONResponse:
    """OpenAI's body for `error`, with the headers that its class asks for.

    An ASGI application, as every response of Starlette's is.
    """
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    return JSONResponse(ErrorResponse.of(error).model_dump(), error.status, headers=headers)


def json_response(body: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as it is: FastAPI would check and copy it on the event loop."""
    return Response(json_bytes(body), media_type="application/json", headers=headers)


def json_bytes(body: BaseModel) -> bytes:
    """`body` as JSON: `model_dump_json` without a text in between, which takes long when it is long."""
    return body.__pydantic_serializer__.to_json(body)
