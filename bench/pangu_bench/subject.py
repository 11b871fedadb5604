"""What is measured by itself, as `load` and `editor` do: an artifact that we serve, or a server that runs already."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pangu_bench.artifacts import subject_of
from pangu_bench.costs import measured_server, what_runs
from pangu_bench.latency import EndpointTokenizer, tokenizer_of
from pangu_bench.options import Running, UsageError
from pangu_bench.rows import RowFile, ServedRow
from pangu_convert.artifact import Artifact, read_artifact
from pangu_training.asking.endpoint import Endpoint, file_stem, identity, running
from pangu_training.stage.command import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`measured` is the artifact, or the endpoint of the server; `identity` goes into a result's configuration."""

    measured: Artifact | Endpoint
    name: str
    context: int | None  # tokens, where it is known
    identity: Mapping[str, Any]
    tokenizer: Any
    server: ServerOptions

    @classmethod
    def of(cls, path: Path | None, base_url: Running | None, server: ServerOptions) -> Self:
        """The one that is given.

        Raises:
            UsageError: both are, or none.
            ArtifactError, ServedError: nothing is there.
        """
        if path is not None and base_url is None:
            artifact = read_artifact(path)
            return cls(
                measured=artifact,
                name=artifact.manifest.name,
                context=artifact.manifest.context_length,
                identity=subject_of(artifact, server),
                tokenizer=tokenizer_of(artifact),
                server=server,
            )
        if path is None and base_url is not None:
            endpoint = running(base_url.url)
            return cls(
                measured=endpoint,
                name=base_url.name or endpoint.model,
                context=endpoint.card.get("max_model_len"),
                identity=identity(endpoint),
                tokenizer=EndpointTokenizer(endpoint),
                server=server,
            )
        raise UsageError("give one of an artifact and --base-url")

    def file(self, folder: Path, ending: str) -> Path:
        """Where `folder` has what is measured of it: its name and `ending`."""
        return folder / f"{file_stem(self.name)}.{ending}"

    @contextlib.contextmanager
    def served(self, rows: RowFile, folder: Path) -> Iterator[Endpoint]:
        """The endpoint, for as long as the context lasts; an artifact's start is a row, and its log is in `folder`."""
        if isinstance(self.measured, Endpoint):
            yield self.measured
            return
        log = self.file(folder, "server.log")
        with measured_server(self.measured, rows, None, options=self.server, log=log) as endpoint:
            yield endpoint

    def what_ran(self, rows: RowFile) -> dict[str, Any]:
        """What answered and on which machine, for a report."""
        if isinstance(self.measured, Endpoint):
            return {
                "served": f"A server that ran already, {self.measured.base_url}",
                "environment": None,
            }
        started = rows.of(ServedRow)[-1]
        return {"served": what_runs(started), "environment": started.environment}
