"""From a body to a request: bounded before it is parsed, off the event loop, and up to its first mistake."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from pangu_server.aside import Aside
from pangu_server.errors import RequestError

# What a body may hold, in JSON values. A token id is one; a key and an object cost as much time and memory as these.
MOST_VALUES = 1 << 18
KEY_VALUES, OBJECT_VALUES = 8, 16
# pydantic reports each member of a union by itself; this says it in one sentence
UNION_FIELDS = {
    "prompt": "Input should be a string, a list of strings, or lists of token ids",
    "input": 'Input should be a string, or a list of {"role": …, "content": a string or a list of text parts}',
    "stop": "Input should be a string or a list of strings",
    "prediction": 'Input should be {"type": "content", "content": a string or a list of text parts}',
}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Model = TypeVar("Model", bound=BaseModel)


class BodyRequest(Request):
    """A request whose body of `size` bytes is `parsed`."""

    parsed: BaseModel
    size: int

    async def body(self) -> bytes:
        """Something, for FastAPI to ask for its JSON."""
        return b"{}"

    async def json(self) -> Any:
        """The model, which FastAPI takes as it is."""
        return self.parsed


class BodyRoute(APIRoute):
    """Its body becomes a model by `parse`, on the threads of the application's `Aside`."""

    def get_route_handler(self) -> Handler:
        """See `APIRoute`."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model = self.body_field.field_info.annotation

        async def read(request: Request) -> Response:
            require_json(request)
            body = await request.body()
            aside: Aside = request.app.state.aside
            headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            whole = BodyRequest({**request.scope, "headers": headers}, request.receive)
            whole.size = len(body)
            whole.parsed = await aside(whole.size, parse, model, body)
            return await handle(whole)

        return read


def require_json(request: Request) -> None:
    """Any body is read as JSON, whatever its type, but for web pages: one that need not say so needs no preflight, and
    any page could then use this server.

    Raises:
        RequestError: a page sends something else.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in request.headers and media_type != "application/json":
        raise RequestError("a web page has to send the header Content-Type: application/json")


def parse(model: type[Model], body: bytes) -> Model:
    """The request in `body`.

    Raises:
        RequestError: it holds too much, is not JSON, or not of the model's form. Names the first mistake.
    """
    if not body:
        raise RequestError("the body is empty: send a JSON object")
    if _holds_too_much(body):
        raise RequestError(f"the body holds more than {MOST_VALUES} JSON values: split the request")
    try:
        value = json.loads(body.decode())
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not valid JSON (not UTF-8)") from None
    except ValueError:  # Python reads no integer of thousands of digits
        raise RequestError("the body is not valid JSON (a number is too long)") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise first_mistake(error) from None


def first_mistake(error: ValidationError) -> RequestError:
    """What is wrong with a body, in one sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # loc is (field, …); the members of a union add their own names behind the field
    field = str(first["loc"][0]) if first["loc"] else None
    missing = first["loc"] == (field,) and first["type"] == "missing"
    message = first["msg"] if missing else UNION_FIELDS.get(field or "", first["msg"])
    return RequestError(f"{field or 'body'}: {message}", param=field)


def _holds_too_much(body: bytes) -> bool:
    """Whether there are more than `MOST_VALUES`; counted at the speed of memory, with little at a time."""
    if _values(body) <= MOST_VALUES:  # also what is in strings: it is no more than that
        return False
    body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if body.count(b'"') > 2 * MOST_VALUES:
        return True
    return sum(map(_values, body.split(b'"')[::2])) > MOST_VALUES


def _values(text: bytes) -> int:
    single = text.count(b",") + text.count(b"[")
    return single + KEY_VALUES * text.count(b":") + OBJECT_VALUES * text.count(b"{")
