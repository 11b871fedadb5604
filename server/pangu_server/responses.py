"""An error as a response: OpenAI's body, and the headers that the error's class asks for."""

from starlette.responses import JSONResponse

from pangu_server.errors import ServerError
from pangu_server.protocol.base import ErrorResponse


def error_response(error: ServerError) -> JSONResponse:
    """The response for `error`; an ASGI application, as every response of Starlette's is."""
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    return JSONResponse(ErrorResponse.of(error).model_dump(), error.status, headers=headers)
