"""Who is asked: `NAME=WHERE`, with WHERE one or several servers that run already, or an artifact to be served.

mine=artifacts/starcoder-int8                            pangu-serve runs for as long as it is asked
big=http://gpu-1:8000,http://gpu-2:8000                  two servers of one model share the requests
api=https://host/v1#some-model                           one of a server's models, by default its first
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_training.asking.endpoint import Endpoint, ServedError, identity, running
from pangu_training.asking.server_process import ServerProcess
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.errors import PanguError
from pangu_training.stage.files import read_object
from pangu_training.stage.identity import MANIFEST, artifact_hash

SCHEMES = ("http://", "https://")


class SourceError(PanguError):
    """A student or a teacher cannot be asked as it is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A student or a teacher. `identity` is the model itself: retrained or quantized anew it is another."""

    role: str
    name: str
    style: str
    identity: Mapping[str, Any]
    endpoints: tuple[Endpoint, ...] = ()
    artifact: Path | None = None

    @property
    def model(self) -> str:
        """The model's own name."""
        return str(self.identity["model"])

    @contextlib.contextmanager
    def serving(self, options: ServerOptions, *, log: Path) -> Iterator[Sequence[Endpoint]]:
        """The servers to ask; an artifact's lives as long as the context.

        Raises:
            ServedError: the artifact cannot be served.
        """
        if self.artifact is None:
            yield self.endpoints
            return
        with ServerProcess(self.artifact, options, log=log) as server:
            yield [server.ready()[0]]


def source_of(role: str, name: str, place: str, style: str) -> Source:
    """The source at `place`.

    Raises:
        SourceError: the folder is not an artifact, or the servers do not have the same model.
        ServedError: no server answers. One that does not is left out, with a warning, while another does.
    """
    if not place.startswith(SCHEMES):
        found = _artifact_identity(Path(place))
        return Source(role=role, name=name, style=style, identity=found, artifact=Path(place))
    endpoints: list[Endpoint] = []
    troubles: list[ServedError] = []
    for address in place.split(","):
        url, _, model = address.strip().partition("#")
        try:
            endpoints.append(running(url, model))
        except ServedError as error:
            troubles.append(error)
    if not endpoints:
        raise troubles[0]
    for trouble in troubles:
        print(f"warning: {name}: left out: {trouble}", file=sys.stderr)
    first, *others = endpoints
    for other in others:
        if identity(other) != identity(first):
            raise SourceError(
                f"{name} must be one model, but {first.base_url} has {identity(first)} and {other.base_url} has "
                f"{identity(other)}: give each a name of its own"
            )
    return Source(role=role, name=name, style=style, identity=identity(first), endpoints=tuple(endpoints))


def _artifact_identity(folder: Path) -> dict[str, Any]:
    """An artifact's model name and the hash of its files, from its manifest."""
    try:
        manifest = read_object(folder / MANIFEST)
        return {"model": manifest["name"], "sha256": artifact_hash(manifest["files"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise SourceError(
            f"{folder} is not an artifact: give a folder that pangu-convert wrote, or the URLs of servers"
        ) from None
