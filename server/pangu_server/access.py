"""Who may ask: API keys. Only their hashes are kept, so that no log and no traceback can show one."""

import hashlib
import hmac
import logging
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pangu_server.errors import InvalidApiKey
from pangu_server.responses import error_response
from pangu_training.stage.errors import PanguError

KEYS_VARIABLE = "PANGU_API_KEYS"
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics", "/version"})
OPEN_PREFIX = "/page/"  # the static files of the page at /

logger = logging.getLogger(__name__)


class AccessError(PanguError):
    """The API keys cannot be used."""


@dataclass(frozen=True, slots=True)
class Access:
    """The keys that open this server; none leaves it open to everyone."""

    key_hashes: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Access":
        """Access with any of `keys`."""
        return cls(tuple(_hash(key.encode()) for key in keys))

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self.key_hashes

    def allows(self, key: bytes) -> bool:
        """Whether `key` is one of the server's keys; takes the same time whichever it is, or none."""
        key_hash, found = _hash(key), False
        for known in self.key_hashes:
            found |= hmac.compare_digest(key_hash, known)
        return found


def read_access(file: Path | None, environment: Mapping[str, str]) -> Access:
    """The keys in `file` (one a line; blank lines and `#` comments are skipped) and in `PANGU_API_KEYS`
    (separated by commas).

    Raises:
        AccessError: a source is there and holds no key (serving without any is not what was meant), or
            something in it cannot be a key. The message says where, never what.
        OSError: the file cannot be read.
    """
    keys: list[str] = []
    if file is not None:
        lines = file.read_bytes().decode(errors="replace").splitlines()
        keys += _checked({f"line {number}": line.strip() for number, line in enumerate(lines, 1)}, str(file))
        if file.stat().st_mode & stat.S_IROTH:
            logger.warning("every user of this machine can read the API keys in %s: chmod o-r it", file)
    if KEYS_VARIABLE in environment:
        entries = environment[KEYS_VARIABLE].split(",")
        keys += _checked(
            {f"entry {number}": entry.strip() for number, entry in enumerate(entries, 1)}, KEYS_VARIABLE
        )
    return Access.of(keys)


class Keys:
    """The access that holds now. `read` gives it anew, as when the server started."""

    def __init__(self, read: Callable[[], Access]) -> None:
        self._read = read
        self.access = read()

    def reload(self) -> None:
        """Read them again. Keys that cannot be used leave the old ones in force, and no reload opens the server."""
        try:
            access = self._read()
            if access.open is not self.access.open:
                raise AccessError("keys cannot be introduced or taken away while the server runs: restart it")
        except (AccessError, OSError) as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        self.access = access
        if not access.open:
            logger.info("read %d API keys again", len(access.key_hashes))


class RequireKey:
    """Passes on what carries a key (`Authorization: Bearer KEY` or `X-Api-Key: KEY`) or needs none; 401 else.

    Probes, metrics and the page's files need none. They say what runs and never what was asked.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
        else:
            message = (
                "Incorrect or missing API key: send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'"
            )
            await error_response(InvalidApiKey(message))(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return True
        headers = Headers(scope=scope)
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        sent = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            sent.append(credentials.strip())
        return any(self._keys.access.allows(key.encode("latin-1")) for key in sent)


def _checked(entries: Mapping[str, str], source: str) -> list[str]:
    keys = {place: entry for place, entry in entries.items() if entry and not entry.startswith("#")}
    if not keys:
        raise AccessError(f"{source} holds no API key: add one, or leave the option out to serve without")
    for place, key in keys.items():
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise AccessError(f"{source}, {place}: an API key is printable ASCII without spaces")
    return list(keys.values())


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
