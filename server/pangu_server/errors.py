"""What can be wrong with a request, each with its HTTP status and OpenAI error `type`.

* PanguError
  + RequestError            400 invalid_request_error
    x ContextLengthExceeded 400, code context_length_exceeded
    x ModelNotFound         404, code model_not_found
  + InvalidApiKey           401 invalid_request_error, code invalid_api_key
  + BodyTimeout             408 invalid_request_error, code body_timeout
  + BodyTooLarge            413 invalid_request_error, code body_too_large
  + Overloaded              429 rate_limit_exceeded, Retry-After
  + NotReady                503 server_error, Retry-After (loading or draining)
  + DeadlineExceeded        503 timeout_error, Retry-After
  + GenerationFailed        500 server_error (a fault of the server, logged with its traceback)
"""

from collections.abc import Mapping
from typing import ClassVar

from pangu_training.stage.errors import PanguError


class ServerError(PanguError):
    """Base of the errors with an HTTP status. `param` names the request field at fault."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    headers: ClassVar[Mapping[str, str]] = {}
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestError(ServerError):
    """The request asks for something that is wrong or that this server does not do."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(RequestError):
    """Prompt and `max_tokens` together are longer than the model's context."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """The request names a model that is not served here."""

    status = 404
    code = "model_not_found"


class InvalidApiKey(ServerError):
    """The request carries none of this server's API keys."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers: ClassVar[Mapping[str, str]] = {"www-authenticate": "Bearer"}


class BodyTimeout(ServerError):
    """The body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "body_timeout"
    headers: ClassVar[Mapping[str, str]] = {"connection": "close"}


class BodyTooLarge(ServerError):
    """The body is longer than this server takes."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"
    headers: ClassVar[Mapping[str, str]] = {"connection": "close"}


class Overloaded(ServerError):
    """The queue is full."""

    status = 429
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"
    retry_after_seconds = 1


class NotReady(ServerError):
    """The model is still loading, or the server is shutting down."""

    status = 503
    code = "not_ready"
    retry_after_seconds = 5


class DeadlineExceeded(ServerError):
    """The time for a request was over before it had any result."""

    status = 503
    type = "timeout_error"
    code = "deadline_exceeded"
    retry_after_seconds = 5


class GenerationFailed(ServerError):
    """The backend raised; the cause is in the server's log."""
