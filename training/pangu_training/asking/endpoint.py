"""A server with OpenAI's endpoints that runs already: what it has, and how to ask it."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pangu_training.stage.errors import PanguError

if TYPE_CHECKING:
    import httpx

BUSY = (429, 503)  # come again later
REFUSED = (400, 413, 422)  # this request, for what is in it
BUSY_TRIES, FAILED_TRIES = 60, 5
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0


class ServedError(PanguError):
    """The server does not start, does not answer, or refuses what is asked."""


class RefusedError(ServedError):
    """The server refuses one request for what is in it, e.g. a prompt beyond its context; others may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server that answers. `card` is its model's row of `/v1/models`: what really runs."""

    base_url: str
    model: str
    card: Mapping[str, Any]

    def client_options(self) -> dict[str, Any]:
        """What an `httpx` client needs; the key is the one that OpenAI's own clients send."""
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A server may take its time to answer, and none to take the connection.
        return {"base_url": self.base_url, "headers": headers, "timeout": _timeout(), "trust_env": False}


def identity(endpoint: Endpoint) -> dict[str, Any]:
    """What a running server has, as part of a result's configuration; its port may change."""
    names = (
        "quantization",
        "compute_type",
        "kernel",
        "engine",
        "backend",
        "device",
        "weight_bytes",
        "source",
        "sha256",
    )
    card = endpoint.card
    return {"model": endpoint.model, **{name: card[name] for name in names if name in card}}


def running(base_url: str, model: str = "") -> Endpoint:
    """The server at `base_url`, with or without `/v1`, and its `model`, by default the first that it has.

    Raises:
        ServedError: nothing answers there as such a server does, or it has no such model.
    """
    import httpx

    address = base_url.rstrip("/").removesuffix("/v1")
    endpoint = Endpoint(base_url=address, model="", card={})
    try:
        with httpx.Client(**endpoint.client_options()) as client:
            answer = client.get("/v1/models").raise_for_status().json()
        cards = {card["id"]: card for card in answer["data"]}
        name = model or answer["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ServedError(f"no OpenAI-style server answers at {base_url}: {error}") from None
    if name not in cards:
        raise ServedError(f"{base_url} has no model {model!r}: choose one of {', '.join(cards)}")
    return Endpoint(base_url=address, model=name, card=cards[name])


def file_stem(model: str) -> str:
    """A model's name as the beginning of a file's."""
    return model.replace("/", "_")


async def post(client: "httpx.AsyncClient", path: str, body: dict[str, Any], what: str) -> Any:
    """The answer's JSON; waits while the server is busy, and asks again when it fails. `what` names the request.

    Raises:
        RefusedError: the server refuses this request.
        ServedError: the server stays busy, keeps failing, is gone, or takes no requests from here.
    """
    import httpx

    wait_seconds, busy, failed = FIRST_WAIT_SECONDS, 0, 0
    while True:
        after = ""
        try:
            response = await client.post(path, json=body)
            if response.is_success:
                return response.json()
        except (httpx.HTTPError, ValueError) as error:
            failed += 1
            trouble = (
                f"the server at {client.base_url} is gone ({error or type(error).__name__}): start it and run "
                "the same command again to go on"
            )
        else:
            said = f"{what}: the server said {response.status_code}: {_words(response)}"
            after = response.headers.get("retry-after", "")
            if response.status_code in BUSY:
                busy += 1
                trouble = (
                    f"{client.base_url} stays busy ({_words(response)}): lower --concurrency, or come again"
                )
            elif response.status_code >= 500:
                failed += 1
                trouble = said
            else:
                raise (RefusedError if response.status_code in REFUSED else ServedError)(said)
        if busy == BUSY_TRIES or failed == FAILED_TRIES:
            raise ServedError(trouble)
        await asyncio.sleep(float(after) if after.isdigit() else wait_seconds)
        wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)


def _words(response: "httpx.Response") -> str:
    """An error body's message, in OpenAI's form or as it is."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.text[:200]


def _timeout() -> "httpx.Timeout":
    import httpx

    return httpx.Timeout(None, connect=30)
